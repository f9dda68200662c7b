"""What both tests share: runs that leave one file each, so that a test can be taken up again."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The scripts of the other study are no package; and the code is that of this copy of the project,
# as for the programs that are run, whatever copy is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent / "ablation"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import study
from study import REPO, RunFailedError, read_metrics, write_whole
from table import MISSING, cell, table

__all__ = [
    "HERE",
    "REPO",
    "TAX",
    "Run",
    "RunFailedError",
    "carry_out_all",
    "execute",
    "fit_arguments",
    "listed",
    "make_parser",
    "only",
    "read_metrics",
    "summary",
    "test_arguments",
    "write_whole",
]

HERE = Path(__file__).resolve().parent
TAX = "tax_lightning"
# Pictures cannot be switched off: one at the end. The second logger replaces what a file asks for.
FIT_FLAGS = (
    "--checkpoint.save_last=false",
    "--trainer.logger=false",
    "--explanations.every_n_epochs=1000",
    "--explanations.samples=1",
)
TEST_FLAGS = ("--trainer.logger=false", "--trainer.logger=CSVLogger")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        config: Configuration file.
        name: What is trained, also the folder of its results.
        seed: Of everything random in training; the data stay the same.
        out: Folder of all results.
        flags: Options of ``tax fit``, without dashes, and their values.
    """

    config: Path
    name: str
    seed: int
    out: Path
    flags: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of all results with this configuration."""
        return self.out / self.config.stem

    @property
    def result(self) -> Path:
        """The file that a complete run leaves."""
        return self.folder / self.name / f"seed{self.seed}.json"

    @property
    def failure(self) -> Path:
        """The file that a failed run leaves."""
        return self.result.with_suffix(".failed.txt")

    def __str__(self) -> str:
        return f"{self.config.stem} {self.name} seed {self.seed}"


Measure = Callable[[Run, Path], Awaitable[Mapping[str, Any]]]
"""Trains a run, its files going to the folder, and returns what is to be stored."""


def fit_arguments(run: Run, scratch: Path) -> list[str]:
    """Arguments of ``tax`` that train a run, its files going to ``scratch``."""
    return [
        *_common(run, "fit", scratch),
        f"--checkpoint.dirpath={scratch / 'checkpoints'}",
        *FIT_FLAGS,
        *(f"--{flag}={value}" for flag, value in run.flags),
    ]


def test_arguments(run: Run, scratch: Path, checkpoint: Path) -> list[str]:
    """Arguments of ``tax`` that test a checkpoint, its metrics going to a file in ``scratch``."""
    return [
        *_common(run, "test", scratch),
        f"--ckpt_path={checkpoint}",
        *TEST_FLAGS,
        f"--trainer.logger.save_dir={scratch / 'test'}",
    ]


def _common(run: Run, command: str, scratch: Path) -> list[str]:
    inside = run.config.is_relative_to(REPO)
    return [
        command,
        f"--config={run.config.relative_to(REPO) if inside else run.config}",
        f"--seed_everything={run.seed}",
        f"--trainer.default_root_dir={scratch}",
        *QUIET,
    ]


async def execute(arguments: Sequence[str], scratch: Path, module: str = TAX) -> dict[str, Any]:
    """Run ``python -m MODULE ARGUMENTS`` on one thread, in the folder of the repository.

    Args:
        arguments: Of the command line.
        scratch: The run's temporary folder.
        module: Whose ``main`` runs.

    Returns:
        ``{"command", "seconds"}``: what was run, with ``$RUN`` for ``scratch``, and how long.

    Raises:
        RunFailedError: If it exits with an error, with the end of what it printed.
    """
    log, start = scratch / "log.txt", time.monotonic()
    command = shlex.join(["python", "-m", module, *arguments]).replace(str(scratch), "$RUN")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
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
        tail = log.read_text(errors="replace").splitlines()[-study.TAIL :]
        raise RunFailedError("\n".join([command, f"exit status {status}", "", *tail]))
    return {"command": command, "seconds": round(time.monotonic() - start, 1)}


def only(scratch: Path, pattern: str) -> Path:
    """The one file that a run must have left."""
    return study._only(scratch, pattern)


def carry_out_all(runs: Sequence[Run], measure: Measure, jobs: int) -> int:
    """Carry out the runs that have no result yet; a failed one is noted, and the others go on.

    Args:
        runs: In the order in which to start them.
        measure: Carries out one.
        jobs: How many at a time.

    Returns:
        Exit status: 0 if every run has a result, 1 if some failed, 130 if interrupted.
    """
    try:
        failed = asyncio.run(_carry_out_all(runs, measure, jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the same command takes up where this one ended", file=sys.stderr)
        return 130
    for run in failed:
        print(f"failed: {run}: {run.failure}", file=sys.stderr)
    return 1 if failed else 0


async def _carry_out_all(runs: Sequence[Run], measure: Measure, jobs: int) -> list[Run]:
    task = asyncio.current_task()
    assert task is not None  # in a coroutine there is one
    # As asyncio does it upon Ctrl-C.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    due = [run for run in runs if not run.result.exists()]
    print(f"{len(runs)} runs, of which {len(runs) - len(due)} are there already", flush=True)
    places, done, failed = asyncio.Semaphore(jobs), 0, []

    async def take_turn(run: Run) -> None:
        nonlocal done
        async with places:
            start = time.monotonic()
            good = await _carry_out(run, measure)
        done += 1
        outcome = f"{time.monotonic() - start:.0f} s" if good else f"FAILED, see {run.failure}"
        print(f"[{done}/{len(due)}] {run}: {outcome}", flush=True)
        if not good:
            failed.append(run)

    async with asyncio.TaskGroup() as group:
        for run in due:
            group.create_task(take_turn(run))
    return failed


async def _carry_out(run: Run, measure: Measure) -> bool:
    """Measure and store; a failure is stored too."""
    said = {"config": run.config.stem, "name": run.name, "seed": run.seed}
    said["commit"] = study._commit()
    with tempfile.TemporaryDirectory(prefix="trust-") as folder:
        try:
            result = {**said, **await measure(run, Path(folder))}
        except RunFailedError as error:
            write_whole(run.failure, f"{error}\n")
            return False
    write_whole(run.result, json.dumps(result, indent=2, allow_nan=False) + "\n")
    run.failure.unlink(missing_ok=True)
    return True


def make_parser(description: str | None, config: Path, out: Path) -> argparse.ArgumentParser:
    """The options that both tests have.

    Args:
        description: What ``--help`` says.
        config: Default of ``--config``.
        out: Default of ``--out``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=_file, default=config, help="configuration to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time, a thread each")
    parser.add_argument("--out", type=Path, default=out, help="folder of results")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser


def _file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file.")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 up.")
    return int(text)


def summary(title: str, rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """A Markdown table with a row a seed, and the mean and sample deviation of each column.

    Args:
        title: Of the first column.
        rows: Values by key, by name of the row.
        columns: Key by title of the column; a value that a row lacks becomes a dash.

    Example:
        >>> rows = {"0": {"dice": 0.5}, "1": {"dice": 0.7}}
        >>> print(summary("Seed", rows, {"Dice": "dice"}))
        | Seed | Dice |
        |---|---:|
        | 0 | 0.500 |
        | 1 | 0.700 |
        | mean ± sd | 0.600 ± 0.141 |
    """
    lines = [
        [name, *(f"{row[key]:.3f}" if key in row else MISSING for key in columns.values())]
        for name, row in rows.items()
    ]
    found = ([row[key] for row in rows.values() if key in row] for key in columns.values())
    lines.append(["mean ± sd", *(cell(values, len(rows)) for values in found)])
    return table(title, lines, list(columns))


def listed(
    title: str,
    rows: Mapping[str, Sequence[Sequence[float]]],
    columns: Sequence[str],
    asked: int,
) -> str:
    """A Markdown table whose cells are each the mean and sample deviation of several values.

    Args:
        title: Of the first column.
        rows: For each name and each column the values; none become a dash.
        columns: Titles.
        asked: Number of values that there should be; said where there are fewer.

    Example:
        >>> print(listed("Annotator", {"Ana": [[0.5, 0.7], []]}, ["AUROC", "Dice"], 2))
        | Annotator | AUROC | Dice |
        |---|---:|---:|
        | Ana | 0.600 ± 0.141 | - |
    """
    lines = [[name, *(cell(found, asked) for found in row)] for name, row in rows.items()]
    return table(title, lines, columns)
