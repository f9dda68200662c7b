"""Train and test every variant with several seeds; resumable.

    python -m experiments.ablation.study --data synthetic --jobs 2 --seeds 0 1 2

``results.csv`` gets a row for each run; ``experiments.ablation.table`` makes tables of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.ablation.variants import DATA, Variant, groups, variants
from experiments.runs import Run, carry_out, fit_and_test
from experiments.tables import study_parser

HERE = Path(__file__).resolve().parent


def chosen(data: str, only: Sequence[str] | None) -> list[Variant]:
    """The variants by name or by the title of their group; all where none is named.

    Raises:
        ValueError: If a name is neither.
    """
    every, titles = variants(data), groups(data)
    names: dict[str, None] = {}
    for name in only if only is not None else every:
        if name not in titles and name not in every:
            raise ValueError(
                f"--only {name!r}: expected a variant or a group of {data}: "
                f"{', '.join([*every, *map(repr, titles)])}."
            )
        members = [variant.name for variant in titles[name]] if name in titles else [name]
        names |= dict.fromkeys(members)
    return [every[name] for name in names]


def make_runs(options: argparse.Namespace) -> list[Run]:
    """Every variant that was asked for, with each seed: all with one seed first, then more.

    Raises:
        ValueError: If an option is wrong.
    """
    root: tuple[str, ...] = ()
    if options.data != "synthetic":
        if options.root is None or not options.root.is_dir():
            raise ValueError(f"--root {options.root}: expected the folder of {options.data}.")
        root = (f"--data.init_args.root={options.root.resolve()}",)
    test = ("--model.init_args.explanation_metrics=true",)
    return [
        Run(HERE / f"{options.data}.yaml", variant.name, seed, root, variant.flags, test)
        for seed in options.seeds
        for variant in chosen(options.data, options.only)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the study; returns the exit status of `carry_out`."""
    parser = study_parser(__doc__, HERE / "results.csv")
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    parser.add_argument("--root", type=Path, help="folder of the data set, for bubil_mini")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants or groups; default all")
    options = parser.parse_args(arguments)
    try:
        runs = make_runs(options)
    except ValueError as error:
        parser.error(str(error))
    return carry_out(options.table, runs, fit_and_test, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
