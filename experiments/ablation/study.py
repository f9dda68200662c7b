"""Train and test every variant of the study, each with several seeds; resumable.

    python experiments/ablation/study.py --data synthetic --jobs 2 --seeds 0 1 2

Each run is a ``tax fit``, then a ``tax test`` of its best checkpoint, in a temporary folder. What
remains is one file a run, ``OUT/DATA/VARIANT/seedK.json``, written only when the run is complete. A
run whose file exists is not repeated. A run that fails leaves ``seedK.failed.txt`` instead, the
study goes on, and the next call tries it again. ``table.py`` makes tables of the files.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variants import DATA, Variant, groups, variants

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
PROGRAM = (sys.executable, "-m", "tax_lightning")
TEST_FLAGS = ("--model.init_args.explanation_metrics=true",)
TAIL = 40  # lines of a failed run's output to keep


class RunFailedError(Exception):
    """A run gave no result; the message says why."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Args:
        data: Name of the data set.
        variant: What to train.
        seed: Of everything random in training; the data stay the same.
        out: Folder of all results.
        root: Folder of the data set; ``None`` for data that are made as the run goes.
    """

    data: str
    variant: Variant
    seed: int
    out: Path
    root: Path | None = None

    @property
    def result(self) -> Path:
        """The file that a complete run leaves."""
        return self.out / self.data / self.variant.name / f"seed{self.seed}.json"

    @property
    def failure(self) -> Path:
        """The file that a failed run leaves."""
        return self.result.with_suffix(".failed.txt")

    def __str__(self) -> str:
        return f"{self.data} {self.variant.name} seed {self.seed}"


def fit_arguments(run: Run, scratch: Path) -> list[str]:
    """Arguments of ``tax`` that train a run, its files going to ``scratch``."""
    return [
        *_common(run, "fit", scratch),
        f"--checkpoint.dirpath={scratch / 'checkpoints'}",
        "--checkpoint.save_last=false",
        *(f"--{flag}={value}" for flag, value in run.variant.flags.items()),
    ]


def test_arguments(run: Run, scratch: Path, checkpoint: Path) -> list[str]:
    """Arguments of ``tax`` that test a checkpoint, its metrics going to a CSV file in ``scratch``.

    The variant's flags are left out: the model's come from the checkpoint, and data and reference
    are those of the configuration, so that all variants are measured alike.
    """
    return [
        *_common(run, "test", scratch),
        f"--ckpt_path={checkpoint}",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={scratch / 'test'}",
        *TEST_FLAGS,
    ]


def _common(run: Run, command: str, scratch: Path) -> list[str]:
    config = (HERE / f"{run.data}.yaml").relative_to(REPO)
    root = [f"--data.init_args.root={run.root}"] if run.root else []
    return [
        command,
        f"--config={config}",
        *root,
        f"--seed_everything={run.seed}",
        f"--trainer.default_root_dir={scratch}",
    ]


async def carry_out(run: Run) -> bool:
    """Train, test and store; a failure is stored too.

    Returns:
        Whether there is a result.
    """
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        try:
            result = await _result(run, Path(folder))
        except RunFailedError as error:
            write_whole(run.failure, f"{error}\n")
            return False
    write_whole(run.result, json.dumps(result, indent=2, allow_nan=False) + "\n")
    run.failure.unlink(missing_ok=True)
    return True


async def _result(run: Run, scratch: Path) -> dict[str, Any]:
    """What is stored of a run."""
    commit = _commit()
    fit = fit_arguments(run, scratch)
    fit_seconds = await _execute(fit, scratch)
    test = test_arguments(run, scratch, _only(scratch, "checkpoints/*.ckpt"))
    test_seconds = await _execute(test, scratch)
    return {
        "data": run.data,
        "variant": run.variant.name,
        "seed": run.seed,
        "flags": dict(run.variant.flags),
        "metrics": read_metrics(_only(scratch, "test/**/metrics.csv")),
        "seconds": {"fit": round(fit_seconds, 1), "test": round(test_seconds, 1)},
        "commands": [_as_typed(fit, scratch), _as_typed(test, scratch)],
        "commit": commit,
    }


async def _execute(arguments: Sequence[str], scratch: Path) -> float:
    """Run ``tax``; returns the seconds that it took.

    Raises:
        RunFailedError: If it exits with an error, with the end of what it printed.
    """
    log, start = scratch / "log.txt", time.monotonic()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
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
        command = _as_typed(arguments, scratch)
        raise RunFailedError("\n".join([command, f"exit status {status}", "", *tail]))
    return time.monotonic() - start


def _only(scratch: Path, pattern: str) -> Path:
    """The one file that a run must have left."""
    found = sorted(scratch.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise RunFailedError(f"expected one file {pattern} after the run, found {names}.")
    return found[0]


def read_metrics(path: Path) -> dict[str, float]:
    """The metrics of a test in a file of Lightning's ``CSVLogger``.

    Args:
        path: The file.

    Returns:
        Finite values by key, such as ``"test/dice/mean"``; a metric without a case is left out.

    Raises:
        RunFailedError: If there is none.
    """
    metrics: dict[str, float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {key: float(text) for key, text in row.items() if text}
            metrics |= {
                key: value
                for key, value in values.items()
                if key.startswith("test/") and math.isfinite(value)
            }
    if not metrics:
        raise RunFailedError(f"{path.name} holds no metric whose name starts with test/.")
    return metrics


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _as_typed(arguments: Sequence[str], scratch: Path) -> str:
    """The command as one would type it, with RUN for the temporary folder."""
    command = shlex.join(["python", "-m", "tax_lightning", *arguments])
    return command.replace(str(scratch), "$RUN")


def _commit() -> str:
    """The commit of the code, with ``-dirty`` where files in git were changed since."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=REPO,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


async def study(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Carry out the runs that have no result yet.

    Args:
        runs: In the order in which to start them.
        jobs: How many at a time.

    Returns:
        Those that failed.
    """
    due = [run for run in runs if not run.result.exists()]
    print(f"{len(runs)} runs, of which {len(runs) - len(due)} are there already", flush=True)
    places, done, failed = asyncio.Semaphore(jobs), 0, []

    async def take_turn(run: Run) -> None:
        nonlocal done
        async with places:
            start = time.monotonic()
            good = await carry_out(run)
        done += 1
        outcome = f"{time.monotonic() - start:.0f} s" if good else f"FAILED, see {run.failure}"
        print(f"[{done}/{len(due)}] {run}: {outcome}", flush=True)
        if not good:
            failed.append(run)

    async with asyncio.TaskGroup() as group:
        for run in due:
            group.create_task(take_turn(run))
    return failed


async def _interruptible(runs: Sequence[Run], jobs: int) -> list[Run]:
    """`study`, ended in good order by SIGTERM too, as asyncio does it upon Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None  # in a coroutine there is one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await study(runs, jobs)


def _chosen(data: str, only: Sequence[str] | None) -> list[Variant]:
    """The variants by name or by the title of their group; all where none is named.

    Raises:
        ValueError: If a name is neither.
    """
    every, titles = variants(data), groups(data)
    names: dict[str, None] = {}
    for name in only if only is not None else every:
        if name in titles:
            names |= dict.fromkeys(variant.name for variant in titles[name])
        elif name in every:
            names[name] = None
        else:
            raise ValueError(
                f"--only {name!r}: expected a variant or a group of {data}: "
                f"{', '.join([*every, *map(repr, titles)])}."
            )
    return [every[name] for name in names]


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    parser.add_argument("--root", type=Path, help="folder of the data set, for bubil_mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants or groups; default all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the study.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0 if every run has a result, 1 if some failed, 130 if interrupted.
    """
    parser = _options()
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: expected 1 or more.")
    if options.data == "synthetic":
        root = None
    elif options.root is None or not options.root.is_dir():
        parser.error(f"--root {options.root}: expected the folder of {options.data}.")
    else:
        root = options.root.resolve()
    try:
        chosen = _chosen(options.data, options.only)
    except ValueError as error:
        parser.error(str(error))
    runs = [
        Run(options.data, variant, seed, options.out.resolve(), root)
        for seed in dict.fromkeys(options.seeds)  # a whole table with one seed first, then more
        for variant in chosen
    ]
    try:
        failed = asyncio.run(_interruptible(runs, options.jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the same command takes up where this one ended", file=sys.stderr)
        return 130
    for run in failed:
        print(f"failed: {run}: {run.failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
