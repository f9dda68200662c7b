"""Train every method on every data set with every seed, on equal terms; resumable.

    python experiments/benchmark/compare.py --bubil_mini DIR --lidc_mini DIR --jobs 2 --seeds 0 1 2

Each run is a ``tax fit`` and the test of its checkpoint (``fit_and_test.py``), in a temporary
folder. What remains is one file a run, ``OUT/DATA/METHOD/seedK.json``, written only when the run is
complete: a run whose file exists is not repeated, so that a grid which was interrupted goes on with
the same command. A run that fails leaves ``seedK.failed.txt``, and the others go on. ``report.py``
makes tables and figures of the files.

All methods have the same images, masks, backbone, augmentation, optimizer, number of steps and rule
for choosing a checkpoint (the smallest GED^2 on the validation images), all of which stand in the
configuration of the data set. The test images are read once, after training. Where a configuration
names a reference, it is for those methods that learn from one, and for measuring.

``--configs experiments/benchmark/large`` takes the configurations of that folder: larger networks
and images, longer training, for a GPU. Their results lie in the folder ``results`` beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from methods import METHODS
from resumable import (
    Run,
    add_jobs,
    add_seeds,
    carry_out_all,
    code_commit,
    execute,
    fit_arguments,
    make_parser,
    whole_file,
)

HERE = Path(__file__).resolve().parent
MODULE = "experiments.benchmark.fit_and_test"
# Data set -> the option of its folder, and whose folder that is; none are made as a run goes.
FOLDERS: dict[str, tuple[str, str] | None] = {
    "synthetic": None,
    "simulated": ("data.init_args.data.init_args.root", "bubil_mini"),
    "bubil_mini": ("data.init_args.root", "bubil_mini"),
    "lidc_mini": ("data.init_args.root", "lidc_mini"),
}


async def measure(run: Run, scratch: Path, keeps_samples: bool = False) -> dict[str, Any]:
    """Train and test one method; what it says that annotators draw may stay beside its result."""
    commit = code_commit()  # of the code that will run; it may change meanwhile
    result = scratch / "result.json"
    samples = scratch / "samples.npz"
    options = [f"--result={result}", *([f"--samples={samples}"] if keeps_samples else [])]
    done = await execute(fit_arguments(run, scratch, options), scratch, MODULE)
    if keeps_samples:
        with whole_file(run.result.with_suffix(".npz")) as part:
            shutil.copyfile(samples, part)
    return {
        "data": run.config.stem,
        "method": run.name,
        "seed": run.seed,
        "seconds": done.seconds,
        "command": done.command,
        "commit": commit,
        **json.loads(result.read_text()),
    }


def make_runs(options: argparse.Namespace) -> list[Run]:
    """The grid, a whole one with one seed first, then more.

    Raises:
        ValueError: If a method or data set is unknown, or its folder or configuration is not there.
    """
    for kind, asked, known in (
        ("methods", options.methods, METHODS),
        ("data", options.data, FOLDERS),
    ):
        for name in asked:
            if name not in known:
                raise ValueError(f"--{kind} {name!r}: expected some of {', '.join(known)}.")
    for name in options.data:
        if not (options.configs / f"{name}.yaml").is_file():
            raise ValueError(f"--configs {options.configs}: expected a folder with {name}.yaml.")
    folders = {name: _folder_option(name, options) for name in options.data}
    return [
        Run(
            (options.configs / f"{data}.yaml").resolve(),
            method,
            seed,
            (options.out or options.configs / "results").resolve(),
            tuple(METHODS[method].flags.items()),
            folders[data],
        )
        for seed in dict.fromkeys(options.seeds)
        for data in options.data
        for method in options.methods
    ]


def _folder_option(data: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The argument that names the folder of a data set.

    Raises:
        ValueError: If there is no such folder.
    """
    place = FOLDERS[data]
    if place is None:
        return ()
    option, source = place
    folder: Path | None = getattr(options, source)
    if folder is None or not folder.is_dir():
        raise ValueError(f"--{source} {folder}: expected the folder of {source}, for {data}.")
    return (f"--{option}={folder.resolve()}",)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--bubil_mini", type=Path, help="folder of the cells")
    parser.add_argument("--lidc_mini", type=Path, help="folder of the lung nodules")
    parser.add_argument("--data", nargs="+", metavar="NAME", default=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=list(METHODS))
    add_seeds(parser)
    add_jobs(parser)
    parser.add_argument("--configs", type=Path, default=HERE, help="folder of configurations")
    parser.add_argument(
        "--samples", action="store_true", help="keep NPZ files beside new results, for spread.py"
    )
    parser.add_argument("--out", type=Path, help="folder of results; default: CONFIGS/results")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the grid.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0 if every run has a result, 1 if some failed, 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        runs = make_runs(options)
    except ValueError as error:
        parser.error(str(error))
    return carry_out_all(runs, partial(measure, keeps_samples=options.samples), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
