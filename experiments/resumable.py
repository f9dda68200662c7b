"""What the studies share: runs that leave one file each, so that a study can be taken up again.

A run is a ``tax fit``, mostly with a ``tax test`` of its best checkpoint, in a temporary folder.
What remains is one file, ``OUT/CONFIG/NAME/seedK.json``, written only when the run is complete. A
run whose file exists is not repeated. A run that fails leaves ``seedK.failed.txt`` instead, the
others go on, and the next call tries it again.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
TAX = "tax_lightning"
LAUNCHER = (sys.executable, "-m")  # runs the module whose name comes next
TAIL = 40  # lines of a failed run's output to keep
INTERRUPTED = 130  # exit status, as a shell gives it after Ctrl-C
MISSING = "-"


class RunFailedError(Exception):
    """A run gave no result; the message says why."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        config: Configuration file; its name without ending is that of a folder of results.
        name: What is trained, also the folder of its results.
        seed: Of everything random in training; the data stay the same.
        out: Folder of all results.
        flags: Options of ``tax fit``, without dashes, and their values.
        options: Arguments of every command.
    """

    config: Path
    name: str
    seed: int
    out: Path
    flags: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()

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
"""Carries out a run, its files going to the folder, and returns what is to be stored."""


# ---------------------------------------------------------------------- one run


def fit_arguments(run: Run, scratch: Path, options: Sequence[str] = ()) -> list[str]:
    """Arguments of ``tax`` that train a run, its files going to ``scratch``.

    Args:
        run: What to train.
        scratch: The run's temporary folder.
        options: Further arguments; the run's own flags beat them.
    """
    return [
        *_common(run, "fit", scratch),
        f"--checkpoint.dirpath={scratch / 'checkpoints'}",
        "--checkpoint.save_last=false",
        *options,
        *(f"--{flag}={value}" for flag, value in run.flags),
    ]


def test_arguments(run: Run, scratch: Path, checkpoint: Path, options: Sequence[str]) -> list[str]:
    """Arguments of ``tax`` that test a checkpoint, its metrics going to a CSV file in ``scratch``.

    The run's flags are left out: the model's come from the checkpoint, and data and reference are
    those of the configuration, so that all runs are measured alike.

    Args:
        run: What was trained.
        scratch: The run's temporary folder.
        checkpoint: Of its model.
        options: Further arguments.
    """
    return [
        *_common(run, "test", scratch),
        f"--ckpt_path={checkpoint}",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={scratch / 'test'}",
        *options,
    ]


def _common(run: Run, command: str, scratch: Path) -> list[str]:
    inside = run.config.is_relative_to(REPO)
    return [
        command,
        f"--config={run.config.relative_to(REPO) if inside else run.config}",
        f"--seed_everything={run.seed}",
        f"--trainer.default_root_dir={scratch}",
        *run.options,
    ]


async def fit_and_test(
    run: Run,
    scratch: Path,
    *,
    fit_options: Sequence[str] = (),
    test_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a run, and test its checkpoint.

    Args:
        run: What to train.
        scratch: The run's temporary folder.
        fit_options: As in `fit_arguments`.
        test_options: As in `test_arguments`.

    Returns:
        ``{"metrics", "seconds", "commands"}``, as they are stored.

    Raises:
        RunFailedError: If there is no result.
    """
    fit = await execute(fit_arguments(run, scratch, fit_options), scratch)
    arguments = test_arguments(run, scratch, only(scratch, "checkpoints/*.ckpt"), test_options)
    test = await execute(arguments, scratch)
    return {
        "metrics": read_metrics(only(scratch, "test/**/metrics.csv")),
        "seconds": {"fit": fit.seconds, "test": test.seconds},
        "commands": [fit.command, test.command],
    }


@dataclass(frozen=True)
class Executed:
    """A program that has run.

    Args:
        command: As one would type it, with ``$RUN`` for the temporary folder.
        seconds: How long it took, to a tenth.
    """

    command: str
    seconds: float


async def execute(arguments: Sequence[str], scratch: Path, module: str = TAX) -> Executed:
    """Run ``python -m MODULE ARGUMENTS`` on one thread, in the folder of the repository.

    Args:
        arguments: Of the command line.
        scratch: The run's temporary folder.
        module: Whose ``main`` runs.

    Returns:
        What was run, and how long.

    Raises:
        RunFailedError: If it exits with an error, with the end of what it printed.
    """
    log, start = scratch / "log.txt", time.monotonic()
    status = await _exit_status([*LAUNCHER, module, *arguments], log)
    command = shlex.join(["python", "-m", module, *arguments]).replace(str(scratch), "$RUN")
    if status:
        tail = log.read_text(errors="replace").splitlines()[-TAIL:]
        raise RunFailedError("\n".join([command, f"exit status {status}", "", *tail]))
    return Executed(command, round(time.monotonic() - start, 1))


async def _exit_status(command: Sequence[str], log: Path) -> int:
    """Run a command to its end, what it prints going to a file."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Out of reach of Ctrl-C, upon which Lightning would stop training and seem to be done.
            start_new_session=True,
        )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:  # interrupted: end it and its loader processes
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def only(scratch: Path, pattern: str) -> Path:
    """The one file that a run must have left.

    Raises:
        RunFailedError: If there is none, or more.
    """
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


def code_commit() -> str:
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


# ---------------------------------------------------------------------- files


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The file; its folder is made.

    Yields:
        Where to write; it becomes the file when the block has ended without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write text so that it is there whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that it is there whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


# ---------------------------------------------------------------------- all runs


def carry_out_all(runs: Sequence[Run], measure: Measure, jobs: int) -> int:
    """Carry out the runs that have no result yet; a failed one is noted, and the others go on.

    Args:
        runs: In the order in which to start them.
        measure: Carries out one.
        jobs: How many at a time.

    Returns:
        Exit status: 0 if every run has a result, 1 if some failed, `INTERRUPTED` if interrupted.
    """
    try:
        failed = asyncio.run(_interruptible(runs, measure, jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the same command takes up where this one ended", file=sys.stderr)
        return INTERRUPTED
    for run in failed:
        print(f"failed: {run}: {run.failure}", file=sys.stderr)
    return 1 if failed else 0


async def _interruptible(runs: Sequence[Run], measure: Measure, jobs: int) -> list[Run]:
    """`_queue`, ended in good order by SIGTERM too, as asyncio does it upon Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None  # in a coroutine there is one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await _queue(runs, measure, jobs)


async def _queue(runs: Sequence[Run], measure: Measure, jobs: int) -> list[Run]:
    """Carry out what is due, and return what failed."""
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
    """Measure and store; a failure is stored too. Returns whether there is a result."""
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        try:
            result = await measure(run, Path(folder))
        except RunFailedError as error:
            write_whole(run.failure, f"{error}\n")
            return False
    write_json(run.result, result)
    run.failure.unlink(missing_ok=True)
    return True


# ---------------------------------------------------------------------- command line


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add ``--seeds``."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add ``--jobs``."""
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time, a thread each")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 up.")
    return int(text)


# ---------------------------------------------------------------------- results

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""What is stored of each run, by its name and seed, of one configuration."""


def read_results(folder: Path, names: Iterable[str], seeds: Sequence[int]) -> Results:
    """The results there are.

    Args:
        folder: Of the results of a configuration.
        names: Of what was trained, in the order in which they are returned.
        seeds: The seeds that were asked for; others are left out.
    """
    results: dict[str, dict[int, Any]] = {}
    for name in names:
        for seed in seeds:
            path = folder / name / f"seed{seed}.json"
            if path.exists():
                results.setdefault(name, {})[seed] = json.loads(path.read_text())
    return results


def values(results: Results, name: str, key: str) -> list[float]:
    """The values of a metric over the seeds of a name; empty where it was not measured."""
    runs = results.get(name, {}).values()
    return [run["metrics"][key] for run in runs if key in run["metrics"]]


# ---------------------------------------------------------------------- tables


def cell(found: Sequence[float], asked: int) -> str:
    """Mean and standard deviation over seeds.

    Args:
        found: A value a seed.
        asked: Number of seeds that were asked for; said where it is not that of ``found``.

    Returns:
        The text, in which the deviation is that of a sample (n - 1), and only there from two on.

    Example:
        >>> cell([0.5, 0.7], 2)
        '0.600 ± 0.141'
        >>> cell([0.5], 3), cell([], 3)
        ('0.500 (1 of 3)', '-')
    """
    if not found:
        return MISSING
    deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    few = f" ({len(found)} of {asked})" if len(found) < asked else ""
    return f"{statistics.fmean(found):.3f}{deviation}{few}"


def table(title: str, rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """A Markdown table, its numbers to the right.

    Example:
        >>> print(table("Kernels", [["1", "0.5"]], ["Dice"]))
        | Kernels | Dice |
        |---|---:|
        | 1 | 0.5 |
    """
    lines = [[title, *columns], *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    text.insert(1, f"|---|{'---:|' * len(columns)}")
    return "\n".join(text)
