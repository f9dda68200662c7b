"""Train and test every variant of the study, each with several seeds; resumable.

    python experiments/ablation/study.py --data synthetic --jobs 2 --seeds 0 1 2

Each run is a ``tax fit``, then a ``tax test`` of its best checkpoint, in a temporary folder. What
remains is one file a run, ``OUT/DATA/VARIANT/seedK.json``, written only when the run is complete. A
run whose file exists is not repeated. A run that fails leaves ``seedK.failed.txt`` instead, the
study goes on, and the next call tries it again. ``table.py`` makes tables of the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from resumable import (
    Run,
    add_jobs,
    add_seeds,
    carry_out_all,
    code_commit,
    fit_and_test,
    make_parser,
)
from variants import DATA, Variant, groups, variants

HERE = Path(__file__).resolve().parent
TEST_OPTIONS = ("--model.init_args.explanation_metrics=true",)


async def measure(run: Run, scratch: Path) -> dict[str, Any]:
    """Train and test a variant."""
    commit = code_commit()  # of the code that will run; it may change meanwhile
    return {
        "data": run.config.stem,
        "variant": run.name,
        "seed": run.seed,
        "flags": dict(run.flags),
        **await fit_and_test(run, scratch, test_options=TEST_OPTIONS),
        "commit": commit,
    }


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


def _make_runs(options: argparse.Namespace) -> list[Run]:
    """Every variant that was asked for, with each seed.

    Raises:
        ValueError: If an option is wrong.
    """
    root = _root(options.data, options.root)
    chosen = _chosen(options.data, options.only)
    config, out = HERE / f"{options.data}.yaml", options.out.resolve()
    return [
        Run(config, variant.name, seed, out, tuple(variant.flags.items()), root)
        for seed in dict.fromkeys(options.seeds)  # a whole table with one seed first, then more
        for variant in chosen
    ]


def _root(data: str, folder: Path | None) -> tuple[str, ...]:
    """The argument that names the folder of the data; none for data that are made as a run goes.

    Raises:
        ValueError: If there is no such folder.
    """
    if data == "synthetic":
        return ()
    if folder is None or not folder.is_dir():
        raise ValueError(f"--root {folder}: expected the folder of {data}.")
    return (f"--data.init_args.root={folder.resolve()}",)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--data", choices=DATA, required=True, help="data set")
    parser.add_argument("--root", type=Path, help="folder of the data set, for bubil_mini")
    add_seeds(parser)
    add_jobs(parser)
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
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        runs = _make_runs(options)
    except ValueError as error:
        parser.error(str(error))
    return carry_out_all(runs, measure, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
