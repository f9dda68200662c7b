"""Carries out the runs of a comparison: a training and a test of its best checkpoint each.

A run has a folder of its own. It is done when it has a row; without one it is begun anew by the
next call, whatever an interruption left in its folder.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tax_lightning.comparison.models import Model
from tax_lightning.comparison.results import Key, Results, of_run
from tax_lightning.run_record import code_version

LAUNCHER = (sys.executable, "-m", "tax_lightning.comparison.process")
INTERRUPTED = 130  # exit status, as a shell gives it after Ctrl-C
TAIL = 40  # lines of a failed run's output to show
QUIET = [f"--trainer.{o}=false" for o in ("logger", "enable_progress_bar", "enable_model_summary")]
# Pictures cannot be switched off: one at the end.
FIT = ["--checkpoint.save_last=false", "--explanations.every_n_epochs=1000000"]
FIT += ["--explanations.samples=1"]


class RunFailedError(Exception):
    """A run gave no result; the message says why."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        model: What is trained.
        seed: Of everything random in training; the data stay the same.
        fold: Which fold is tested, from 0; ``None`` for the split of the configuration.
        configs: Files with the configurations of the training and of the test.
        options: Of both, which say the fold.
        reference: What all models are measured against.
    """

    model: Model
    seed: int
    fold: int | None
    configs: tuple[Path, Path]
    options: tuple[str, ...]
    reference: str

    @property
    def key(self) -> Key:
        """What tells its rows from the others."""
        return self.model.name, str(self.seed), "" if self.fold is None else str(self.fold)

    @property
    def folder(self) -> Path:
        """Its folder, below that of the comparison."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return Path(self.model.folder, f"seed{self.seed}{fold}")

    def __str__(self) -> str:
        """Name, seed and fold, for messages."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.model.name}, seed {self.seed}{fold}"


def carry_out(folder: Path, results: Results, runs: Sequence[Run], jobs: int) -> int:
    """Carry out the runs that have no row yet, ``jobs`` at a time.

    Returns:
        0; 1 if some failed; `INTERRUPTED` after Ctrl-C or SIGTERM.
    """
    due = [run for run in runs if run.key not in results.keys]
    say(f"{len(runs)} runs, {len(due)} to do")
    try:
        return asyncio.run(_carry_out(folder, results, due, jobs)) if due else 0
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("interrupted; the same command goes on where this one ended")
        return INTERRUPTED


async def _carry_out(folder: Path, results: Results, due: Sequence[Run], jobs: int) -> int:
    task = asyncio.current_task()
    assert task is not None  # in a coroutine there is one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    places, code, failed = asyncio.Semaphore(jobs), code_version(), []

    async def take_turn(run: Run) -> None:
        async with places:
            say(f"start  {run}")
            place = folder / run.folder
            shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted
            place.mkdir(parents=True)
            try:
                seconds = await fit_and_test(run, place, jobs)
            except RunFailedError as error:
                failed.append(f"FAILED {run}")
                return say(f"{failed[-1]}\n{error}")
        figures, images = of_run(place)
        results.add(run.key, {"code": code, **seconds, **figures}, images)
        say(f"done   {run}, {sum(seconds.values()):.0f} s")

    async with asyncio.TaskGroup() as group:
        for run in due:
            group.create_task(take_turn(run))
    for failure in failed:  # again, after all the others
        say(failure)
    return 1 if failed else 0


async def fit_and_test(run: Run, place: Path, jobs: int) -> dict[str, float]:
    """Train, and test the best checkpoint; returns the seconds that both took."""
    trusted = run.model.class_path.partition(".")[0]
    common = [f"--seed_everything={run.seed}", *run.options, *QUIET]
    checkpoints = place / "checkpoints"
    places = [f"--output={place}", f"--checkpoint.dirpath={checkpoints}"]
    places.append(f"--explanations.output_dir={place / 'explanations'}")
    fit = ["fit", f"--config={run.configs[0]}", *common, *FIT, *places]
    test = [
        "test",
        f"--config={run.configs[1]}",
        *common,
        f"--ckpt_path={checkpoints / 'best.ckpt'}",
    ]
    test.append(f"--model.init_args.reference={run.reference}")
    return {
        "fit_seconds": await execute(fit, place, jobs, trusted),
        "test_seconds": await execute(test, place, jobs, trusted),
    }


async def execute(arguments: Sequence[str], place: Path, jobs: int, trusted: str) -> float:
    """Run ``tax ARGUMENTS``, which may load a model of a package; returns the seconds it took."""
    log, start = place / "log.txt", time.monotonic()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *LAUNCHER,
            *arguments,
            env=shared_environment(jobs, trusted),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Out of reach of Ctrl-C, upon which Lightning would stop training and seem to be done.
            start_new_session=True,
        )
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:  # interrupted: end it and its loader processes
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status:
        tail = log.read_text(errors="replace").splitlines()[-TAIL:]
        command = " ".join(["tax", *arguments])
        raise RunFailedError("\n".join([command, f"exit status {status}", *tail]))
    return round(time.monotonic() - start, 1)


def shared_environment(jobs: int, trusted: str) -> Mapping[str, str]:
    """The environment of a run; of several at a time each has its share of the processor cores.

    The checkpoint of a model that the user named may be of the ``trusted`` package.
    """
    cores = os.cpu_count() or 1
    share = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    more = f"{trusted} {os.environ.get('TAX_TRUSTED', '')}"
    return {**share, **os.environ, "TAX_TRUSTED": more}


def say(text: str) -> None:
    """Progress goes beside the tables, which are what is printed."""
    print(text, file=sys.stderr, flush=True)
