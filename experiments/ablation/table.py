"""Make Markdown tables and a figure of what ``experiments.ablation.study`` has stored.

python -m experiments.ablation.table --data synthetic --figure synthetic.png > synthetic.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.ablation.variants import DATA, DEFAULT, Variant, groups, variants
from experiments.dots import Panel, Row, draw
from experiments.runs import read_rows, say
from experiments.tables import Rows, cell, commits, of_data, study_parser, table, values

HERE = Path(__file__).resolve().parent
GONE = "Terms and options that are gone"

# Title of a column -> the metric. Those whose title ends in "ECE" are better when lower.
HOW_WELL = {"Annotator Dice": "dice/mean", "Fused Dice": "fused_dice/mean"}
WHY = {
    "Necessity": "who_necessity",
    "Prototype usage": "prototype_usage/mean",
    "Purity": "purity/class",
}
COLUMNS = {
    "synthetic": {
        **HOW_WELL,
        "Who @expert": "who_accuracy_expert",
        "Label-only ceiling": "who_ceiling_expert",
        "Who ECE": "who_ece_expert",
        **WHY,
    },
    # Nobody is known to be the expert, and a majority never has just one member, so the
    # calibration error of who has no case here.
    "bubil_mini": {**HOW_WELL, "Agreement lift": "who_agreement_lift", **WHY},
}
NOT_DRAWN = ("Label-only ceiling",)  # it is the data's, the same for every variant


def all_groups(rows: Rows, data: str) -> dict[str, list[Variant]]:
    """The groups that have results, and one of the variants that the code no longer has."""
    found = {title: members for title, members in groups(data).items()}
    gone = dict.fromkeys(row["name"] for row in rows if row["name"] not in variants(data))
    base = Variant(DEFAULT, "none of these (base)")
    return found | ({GONE: [base, *(Variant(name, name) for name in gone)]} if gone else {})


def tables(rows: Rows, data: str, seeds: Sequence[int]) -> str:
    """All tables of a data set as Markdown, one a group, and what they were made with."""
    columns = COLUMNS[data]

    def line(variant: Variant) -> list[str]:
        found = (values(rows, variant.name, metric) for metric in columns.values())
        return [variant.label, *(cell(one, len(seeds)) for one in found)]

    parts = [
        table(title, map(line, members), list(columns))
        for title, members in all_groups(rows, data).items()
    ]
    numbers = ", ".join(map(str, seeds))
    made = f"Mean ± standard deviation over the seeds {numbers}; {len(rows)} runs"
    return "\n\n".join([*parts, f"{made}; commit {commits(rows)}."])


def figure_parts(rows: Rows, data: str) -> tuple[list[Row], list[Panel]]:
    """Lines and panels of the figure: the default first, then each group without it."""
    lines = [Row("base", DEFAULT)]
    for title, members in all_groups(rows, data).items():
        lines.append(Row(title))
        lines += [Row(member.label, member.name) for member in members if member.name != DEFAULT]
    panels = []
    names = dict.fromkeys(row["name"] for row in rows)
    for title, metric in COLUMNS[data].items():
        points = {name: found for name in names if (found := values(rows, name, metric))}
        if points and title not in NOT_DRAWN:
            hint = "lower is better" if title.endswith("ECE") else "higher is better"
            panels.append(Panel(title, hint, points))
    return lines, panels


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and draw the figure; returns 1 where there are no results."""
    parser = study_parser(__doc__, HERE / "results.csv")
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    rows = of_data(read_rows(options.table), options.data, options.seeds)
    if not rows:
        say(f"no results of {options.data} in {options.table}: run experiments.ablation.study")
        return 1
    print(tables(rows, options.data, options.seeds))
    if options.figure is not None:
        lines, panels = figure_parts(rows, options.data)
        draw(lines, panels, baseline=DEFAULT).save(options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
