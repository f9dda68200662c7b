"""What the commands of all studies share beside the runner: their options, and Markdown tables."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.runs import Row, read_rows, say

MISSING = "-"
Rows = Sequence[Row]
"""The rows of one data set, and of the seeds that were asked for."""


def study_parser(description: str | None, table: Path | None) -> argparse.ArgumentParser:
    """A parser with the options of every study."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=style)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--table", type=Path, default=table, help="CSV file of results")
    parser.add_argument(
        "--only_tables", action="store_true", help="print what is there, run nothing"
    )
    return parser


def stored(path: Path, data: str, seeds: Sequence[int]) -> Rows:
    """The rows of a data set and of some seeds, ordered by seed; says if there are none."""
    wanted = {str(seed): place for place, seed in enumerate(seeds)}
    rows = [row for row in read_rows(path) if row["data"] == data and row["seed"] in wanted]
    if not rows:
        say(f"no results of {data} with these seeds in {path}")
    return sorted(rows, key=lambda row: wanted[row["seed"]])


def values(rows: Rows, name: str, metric: str) -> list[float]:
    """The values of a metric over the seeds of a name; empty where it was not measured."""
    return [float(row[metric]) for row in rows if row["name"] == name and metric in row]


def cell(found: Sequence[float], asked: int) -> str:
    """Mean and sample deviation over seeds.

    Args:
        found: A value for each seed.
        asked: Number of seeds that were asked for; shown where there are fewer values.

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


def table(title: str, lines: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """A Markdown table, its numbers to the right.

    Example:
        >>> print(table("Kernels", [["1", "0.5"]], ["Dice"]))
        | Kernels | Dice |
        |---|---:|
        | 1 | 0.5 |
    """
    text = [f"| {' | '.join(line)} |" for line in [[title, *columns], *lines]]
    text.insert(1, f"|---|{'---:|' * len(columns)}")
    return "\n".join(text)


def by_seed(title: str, rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """A Markdown table with a line for each seed, and one for mean and sample deviation.

    Example:
        >>> print(by_seed("Seed", {"0": {"dice": 0.5}, "1": {"dice": 0.7}}, {"Dice": "dice"}))
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


def commits(rows: Rows) -> str:
    """The commits of the code that the rows were measured with."""
    return ", ".join(sorted({row["commit"] for row in rows}))
