"""The runner of all studies: train and test a list of runs, one row of a CSV file for each.

A run is a ``tax fit`` and mostly a ``tax test`` of its best checkpoint, in a temporary folder. Its
row is written as soon as it is done, so a study that was interrupted goes on with the same command:
runs that have a row are not repeated. A run that fails is reported and gets no row, and the others
go on. To run something again, delete its row.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LAUNCHER = (sys.executable, "-m")  # runs the module whose name comes next
INTERRUPTED = 130  # exit status, as a shell gives it after Ctrl-C
TAIL = 40  # lines of a failed run's output to show
FIRST = ("data", "name", "seed", "commit", "fit_seconds", "test_seconds")  # columns
QUIET = [f"--trainer.{o}=false" for o in ("logger", "enable_progress_bar", "enable_model_summary")]
# Pictures cannot be switched off: one at the end.
FIT = ["--checkpoint.save_last=false", "--explanations.every_n_epochs=1000"]
FIT += ["--explanations.samples=1"]


class RunFailedError(Exception):
    """A run gave no result; the message says why."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        config: Configuration file; its name without ending is that of the data in the table.
        name: What is trained: a variant, a method.
        seed: Of everything random in training; the data stay the same.
        options: Of ``tax fit`` and ``tax test``.
        fit: Of ``tax fit`` alone. The test takes the model from the checkpoint, and data and
            reference from the configuration, so that all runs are measured alike.
        test: Of ``tax test`` alone.
    """

    config: Path
    name: str
    seed: int
    options: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells a row from the others."""
        return self.config.stem, self.name, str(self.seed)


Row = Mapping[str, str]
Measure = Callable[[Run, Path], Awaitable[Mapping[str, float | str]]]
"""Carries out a run, its files going to the folder, and returns the columns of its row."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a table; none where there is no file. A metric without a case is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]


def add_row(path: Path, row: Mapping[str, float | str]) -> None:
    """Add a row; whenever this is interrupted, the file is the old or the new one."""
    rows = [
        *read_rows(path),
        {k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()},
    ]
    columns = [*FIRST, *sorted({key for row in rows for key in row} - set(FIRST))]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


async def fit(run: Run, scratch: Path) -> float:
    """Train; the best checkpoint is ``scratch / "best.ckpt"``. Returns the seconds it took."""
    options = [*FIT, f"--checkpoint.dirpath={scratch}", *run.options, *run.fit]
    return await execute("tax_lightning", ["fit", *_common(run, scratch), *options], scratch)


async def fit_and_test(run: Run, scratch: Path) -> dict[str, float | str]:
    """Train, and test the best checkpoint; returns metrics and seconds."""
    fit_seconds, result = await fit(run, scratch), scratch / "result.json"
    files = [f"--ckpt_path={scratch / 'best.ckpt'}", f"--result={result}"]
    arguments = ["test", *_common(run, scratch), *files, *run.options, *run.test]
    seconds = await execute("experiments.score", arguments, scratch)
    return {"fit_seconds": fit_seconds, "test_seconds": seconds, **json.loads(result.read_text())}


def _common(run: Run, scratch: Path) -> list[str]:
    places = [f"--config={run.config}", f"--trainer.default_root_dir={scratch}"]
    return [*places, f"--seed_everything={run.seed}", *QUIET]


async def execute(module: str, arguments: Sequence[str], scratch: Path) -> float:
    """Run ``python -m MODULE ARGUMENTS`` on one thread; returns the seconds it took."""
    log, start = scratch / "log.txt", time.monotonic()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(*LAUNCHER, module, *arguments),
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
        command = " ".join(["python", "-m", module, *arguments])
        raise RunFailedError("\n".join([command, f"exit status {status}", *tail]))
    return round(time.monotonic() - start, 1)


def code_commit() -> str:
    """The commit of the code, with ``-dirty`` where files in git were changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def carry_out(table: Path, runs: Iterable[Run], measure: Measure, jobs: int) -> int:
    """Carry out the runs that have no row yet; returns 0, 1 if some failed, or `INTERRUPTED`."""
    there = {(row["data"], row["name"], row["seed"]) for row in read_rows(table)}
    due = {run.key: run for run in runs if run.key not in there}
    say(f"{len(due)} runs to do")
    try:
        return asyncio.run(_carry_out(table, list(due.values()), measure, jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("interrupted; the same command takes up where this one ended")
        return INTERRUPTED


async def _carry_out(table: Path, due: Sequence[Run], measure: Measure, jobs: int) -> int:
    task = asyncio.current_task()
    assert task is not None  # in a coroutine there is one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    places, commit, failed = asyncio.Semaphore(jobs), code_commit(), []

    async def take_turn(run: Run) -> None:
        async with places:
            say(f"start {' '.join(run.key)}")
            with tempfile.TemporaryDirectory(prefix="study-") as folder:
                try:
                    found = await measure(run, Path(folder))
                except RunFailedError as error:
                    failed.append(f"FAILED {' '.join(run.key)}")
                    return say(f"{failed[-1]}\n{error}")
        add_row(table, {**dict(zip(FIRST, (*run.key, commit), strict=False)), **found})

    async with asyncio.TaskGroup() as group:
        for run in due:
            group.create_task(take_turn(run))
    for failure in failed:  # again, after all the others
        say(failure)
    return 1 if failed else 0


def say(text: str) -> None:
    """Progress goes beside the tables, which are what is printed."""
    print(text, file=sys.stderr, flush=True)
