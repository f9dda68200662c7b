"""Make Markdown tables and a figure of what ``study.py`` has stored.

python experiments/ablation/table.py --data synthetic --figure synthetic.png > synthetic.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from dots import Panel, Row, draw
from resumable import Results, add_seeds, cell, make_parser, read_results, table, values
from variants import DATA, DEFAULT, Variant, groups, variants

HERE = Path(__file__).resolve().parent

# Title of a column -> key of the metric.
_HOW_WELL = {
    "Annotator Dice": "test/dice/mean",
    "Fused Dice": "test/fused_dice/mean",
}
_WHY = {
    "Necessity": "test/who_necessity",
    "Prototype usage": "test/prototype_usage/mean",
    "Purity": "test/purity/class",
}
COLUMNS: dict[str, dict[str, str]] = {
    "synthetic": {
        **_HOW_WELL,
        "Who @expert": "test/who_accuracy_expert",
        "Label-only ceiling": "test/who_ceiling_expert",
        "Who ECE": "test/who_ece_expert",
        **_WHY,
    },
    # No expert is known, and a majority never has just one member, so the calibration error of who
    # has no case here.
    "bubil_mini": {
        **_HOW_WELL,
        "Agreement lift": "test/who_agreement_lift",
        "Who Brier": "test/who_brier",
        **_WHY,
    },
}
LOWER_IS_BETTER = ("Who ECE", "Who Brier")
NOT_DRAWN = ("Label-only ceiling",)  # it is the data's, the same for every variant


def tables(results: Results, data: str, seeds: Sequence[int]) -> str:
    """All tables of a data set, one a group, and what they were made with.

    Args:
        results: As `read_results` gives them.
        data: Name of the data set.
        seeds: The seeds that were asked for.

    Returns:
        Markdown.
    """
    columns = COLUMNS[data]

    def line(row: Variant) -> list[str]:
        found = (values(results, row.name, key) for key in columns.values())
        return [row.label, *(cell(one, len(seeds)) for one in found)]

    parts = [table(title, map(line, rows), list(columns)) for title, rows in groups(data).items()]
    return "\n\n".join([*parts, _made_with(results, seeds)])


def _made_with(results: Results, seeds: Sequence[int]) -> str:
    """Seeds and commits: results of several commits may not be comparable."""
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    commits = ", ".join(sorted({run["commit"] for run in runs})) or "none"
    numbers = ", ".join(map(str, seeds))
    return (
        f"Mean ± standard deviation over the seeds {numbers}; {len(runs)} runs; commit {commits}."
    )


def figure_parts(results: Results, data: str) -> tuple[list[Row], list[Panel]]:
    """Rows and panels of the figure: the default first, then each group without it.

    Args:
        results: As `read_results` gives them.
        data: Name of the data set.

    Returns:
        Rows of variants and headings, and a panel for each metric that has a value.
    """
    rows = [Row("base", DEFAULT)]
    for title, members in groups(data).items():
        rows.append(Row(title))
        rows += [Row(row.label, row.name) for row in members if row.name != DEFAULT]
    panels = []
    for title, key in COLUMNS[data].items():
        points = {name: found for name in results if (found := values(results, name, key))}
        if points and title not in NOT_DRAWN:
            hint = "lower is better" if title in LOWER_IS_BETTER else "higher is better"
            panels.append(Panel(title, hint, points))
    return rows, panels


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    add_seeds(parser)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="of study.py")
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and draw the figure.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0, or 1 where there are no results.
    """
    options = _parser().parse_args(arguments)
    seeds = list(dict.fromkeys(options.seeds))
    results = read_results(options.results / options.data, variants(options.data), seeds)
    if not results:
        where = options.results / options.data
        print(f"no results of the seeds {seeds} in {where}: run study.py first", file=sys.stderr)
        return 1
    print(tables(results, options.data, seeds))
    if options.figure is not None:
        rows, panels = figure_parts(results, options.data)
        draw(rows, panels, baseline=DEFAULT).save(options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
