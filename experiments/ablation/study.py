"""Train and test every variant with several seeds, and print tables; resumable.

    python -m experiments.ablation.study --data synthetic --jobs 2 --seeds 0 1 2
    python -m experiments.ablation.study --data synthetic --only_tables --figure FILE.png > FILE.md

``results.csv`` gets a row for each run. The tables are printed at the end, or at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.ablation.variants import BASE, DATA, DEFAULT, Variant, groups, variants
from experiments.dots import Panel, Row, draw
from experiments.runs import Run, carry_out, fit_and_test
from experiments.tables import Rows, cell, commits, stored, study_parser, table, values

HERE = Path(__file__).resolve().parent
GONE = "Terms and options that are gone"

# Title of a column -> the metric. Those whose title ends in "ECE" are better when lower.
WHO = {
    "synthetic": {
        "Who @expert": "who_accuracy_expert",
        "Label-only ceiling": "who_ceiling_expert",
        "Who ECE": "who_ece_expert",
    },
    # Nobody is known to be the expert, and a majority never has just one member, so the
    # calibration error of who has no case here.
    "bubil_mini": {"Agreement lift": "who_agreement_lift"},
}
COLUMNS = {
    data: {
        "Annotator Dice": "dice/mean",
        "Fused Dice": "fused_dice/mean",
        **who,
    }
    for data, who in WHO.items()
}


def chosen(data: str, only: Sequence[str] | None) -> list[Variant]:
    """The variants by name or by the title of their group; all where none is named.

    Raises:
        ValueError: If a name is neither.
    """
    every, titles = variants(data), groups(data)
    found: dict[str, Variant] = {}
    for name in only if only is not None else every:
        if name not in titles and name not in every:
            known = ", ".join([*every, *map(repr, titles)])
            raise ValueError(f"--only {name!r}: expected a variant or a group of {data}: {known}.")
        found |= {v.name: v for v in titles.get(name) or [every[name]]}
    return list(found.values())


def make_runs(
    data: str, root: Path | None, only: Sequence[str] | None, seeds: Sequence[int]
) -> list[Run]:
    """Every variant that was asked for, with each seed: all with one seed first, then more.

    Raises:
        ValueError: If an option is wrong.
    """
    if data != "synthetic" and (root is None or not root.is_dir()):
        raise ValueError(f"--root {root}: expected the folder of {data}.")
    where = () if root is None else (f"--data.init_args.root={root.resolve()}",)
    test = ("--model.init_args.explanation_metrics=true",)
    return [
        Run(HERE / f"{data}.yaml", variant.name, seed, where, (*BASE, *variant.flags), test)
        for seed in seeds
        for variant in chosen(data, only)
    ]


def all_groups(rows: Rows, data: str) -> dict[str, list[Variant]]:
    """The groups of variants, and one of those with results that the code no longer has."""
    gone = dict.fromkeys(row["name"] for row in rows if row["name"] not in variants(data))
    base = Variant(DEFAULT, "none of these (base)")
    return groups(data) | ({GONE: [base, *(Variant(name, name) for name in gone)]} if gone else {})


def tables(rows: Rows, data: str, seeds: Sequence[int]) -> str:
    """All tables of a data set as Markdown, one a group, and what they were made with."""
    columns = COLUMNS[data]

    def line(variant: Variant) -> list[str]:
        found = (values(rows, variant.name, metric) for metric in columns.values())
        return [variant.label, *(cell(one, len(seeds)) for one in found)]

    found = all_groups(rows, data).items()
    parts = [table(title, map(line, members), list(columns)) for title, members in found]
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
        if points and title != "Label-only ceiling":  # the same for every variant
            hint = "lower is better" if title.endswith("ECE") else "higher is better"
            panels.append(Panel(title, hint, points))
    return lines, panels


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the study and print its tables; returns the exit status."""
    parser = study_parser(__doc__, HERE / "results.csv")
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    parser.add_argument("--root", type=Path, help="folder of the data set, for bubil_mini")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants or groups; default all")
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    status = 0
    if not options.only_tables:
        try:
            runs = make_runs(options.data, options.root, options.only, options.seeds)
        except ValueError as error:
            parser.error(str(error))
        status = carry_out(options.table, runs, fit_and_test, options.jobs)
    rows = stored(options.table, options.data, options.seeds)
    if not rows:
        return status or 1
    print(tables(rows, options.data, options.seeds))
    if options.figure is not None:
        lines, panels = figure_parts(rows, options.data)
        draw(lines, panels, baseline=DEFAULT).save(options.figure)
    return status


if __name__ == "__main__":
    sys.exit(main())
