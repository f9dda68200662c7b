"""What both tests of trust share: what is stored of a run, options, and tables over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import (
    MISSING,
    Measure,
    Run,
    add_jobs,
    add_seeds,
    carry_out_all,
    cell,
    code_commit,
    make_parser,
    table,
)

HERE = Path(__file__).resolve().parent
# The logger of a test comes after these; without the last, it would join what a file asks for.
OPTIONS = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
)
# Pictures cannot be switched off: one at the end.
FIT_OPTIONS = ("--explanations.every_n_epochs=1000", "--explanations.samples=1")


def carry_out_tests(runs: Sequence[Run], measure: Measure, jobs: int) -> int:
    """`carry_out_all`, with what was trained, and by which code, stored before what was measured.

    Args:
        runs: In the order in which to start them.
        measure: Carries out one.
        jobs: How many at a time.

    Returns:
        Exit status, as `carry_out_all` gives it.
    """

    async def measure_all(run: Run, scratch: Path) -> dict[str, Any]:
        return {
            "config": run.config.stem,
            "name": run.name,
            "seed": run.seed,
            "commit": code_commit(),
            **await measure(run, scratch),
        }

    return carry_out_all(runs, measure_all, jobs)


def make_test_parser(description: str | None, config: Path, out: Path) -> argparse.ArgumentParser:
    """The options that both tests have.

    Args:
        description: What ``--help`` says.
        config: Default of ``--config``.
        out: Default of ``--out``.
    """
    parser = make_parser(description)
    parser.add_argument("--config", type=_file, default=config, help="configuration to train")
    add_seeds(parser)
    add_jobs(parser)
    parser.add_argument("--out", type=Path, default=out, help="folder of results")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser


def _file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file.")
    return path


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
