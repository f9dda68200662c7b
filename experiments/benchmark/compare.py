"""Train every method on every data set with every seed, on equal terms; resumable.

    python -m experiments.benchmark.compare --bubil_mini DIR --lidc_mini DIR --jobs 2 --seeds 0 1 2
    python -m experiments.benchmark.compare --only_tables --figures DIR > FILE.md

``results.csv`` gets a row for each run. Tables are printed at the end, or at once.

All methods have the same images, masks, backbone, augmentation, optimizer, number of steps and rule
for choosing a checkpoint (the smallest GED^2 on the validation images). These stand in the
configuration of the data set. The test images are read once, after training.

``--configs experiments/benchmark/large`` takes the configurations of that folder: larger networks
and images, longer training, for a GPU. Their table lies beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark.methods import METHODS
from experiments.benchmark.report import FIGURES, draw_figures, text_of
from experiments.runs import Run, carry_out, fit_and_test
from experiments.tables import stored, study_parser

HERE = Path(__file__).resolve().parent
# Data set -> the option of its folder, and whose folder that is; none are made as a run goes.
FOLDERS: dict[str, tuple[str, str]] = {
    "synthetic": ("", ""),
    "simulated": ("data.init_args.data.init_args.root", "bubil_mini"),
    "bubil_mini": ("data.init_args.root", "bubil_mini"),
    "lidc_mini": ("data.init_args.root", "lidc_mini"),
}


def make_runs(options: argparse.Namespace) -> list[Run]:
    """Every method on every data set: all with one seed first, then more.

    Raises:
        ValueError: If the folder or the configuration of a data set is not there.
    """
    for name in options.data:
        if not (options.configs / f"{name}.yaml").is_file():
            raise ValueError(f"--configs {options.configs}: expected a folder with {name}.yaml.")
    folders = {name: folder_option(name, options) for name in options.data}
    return [
        Run(
            (options.configs / f"{data}.yaml").resolve(),
            name,
            seed,
            (*folders[data], *METHODS[name].options),
            METHODS[name].fit,
            ("--images=true", *METHODS[name].test),
        )
        for seed in options.seeds
        for data in options.data
        for name in options.methods
    ]


def folder_option(data: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The option that names the folder of a data set; a ``ValueError`` if there is no such."""
    option, source = FOLDERS[data]
    if not option:
        return ()
    folder: Path | None = getattr(options, source)
    if folder is None or not folder.is_dir():
        raise ValueError(f"--{source} {folder}: expected the folder of {source}, for {data}.")
    return (f"--{option}={folder.resolve()}",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the comparison and print its tables; returns the exit status."""
    parser = study_parser(__doc__, None)
    parser.add_argument("--bubil_mini", type=Path, help="folder of the cells")
    parser.add_argument("--lidc_mini", type=Path, help="folder of the lung nodules")
    parser.add_argument("--data", nargs="+", choices=list(FOLDERS), default=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--configs", type=Path, default=HERE, help="folder of configurations")
    parser.add_argument("--figures", type=Path, help=f"folder for {' and '.join(FIGURES)}")
    options = parser.parse_args(arguments)
    table, status = options.table or options.configs / "results.csv", 0
    if not options.only_tables:
        try:
            runs = make_runs(options)
        except ValueError as error:
            parser.error(str(error))
        status = carry_out(table, runs, fit_and_test, options.jobs)
    found = ((data, stored(table, data, options.seeds)) for data in options.data)
    everything = {data: rows for data, rows in found if rows}
    if not everything:
        return status or 1
    print(text_of(everything, options.seeds))
    if options.figures is not None:
        draw_figures(options.figures, everything)
    return status


if __name__ == "__main__":
    sys.exit(main())
