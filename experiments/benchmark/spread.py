r"""What independent networks do to GED^2, whoever they learn from.

    python experiments/benchmark/compare.py --samples --out runs/spread --bubil_mini DIR \
        --data bubil_mini --methods TAX multi-head --seeds 0 1 2 3
    python experiments/benchmark/spread.py --results runs/spread --seeds 0 1 2 3

GED^2 compares how far the segmentations of a set lie from each other with how far those of the
annotators do. Those of separate networks lie apart for a reason that has nothing to do with
annotators too: each network errs in its own way. Here the same segmentations are grouped anew: a
set takes annotator n from the network of another seed, n, n + 1, ... in turn. Each segmentation is
used once as before, so each annotator is met exactly as well, and mean Dice is the same. What
changes in GED^2 is due to the networks alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from compare import FOLDERS
from methods import METHODS
from resumable import add_seeds, make_parser, table

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics import annotator_dice, generalized_energy_distance

COLUMNS = ("annotator Dice", "GED² of one network", "GED² of a set from all")


def in_turns(drawn: Tensor) -> Tensor:
    """Sets of which each annotator is taken from another network.

    Args:
        drawn: class ids ``[S, N, H, W]`` of S networks.

    Returns:
        S sets ``[S, N, H, W]``: annotator n of set r is that of network n + r, from the first
        again after the last.

    Example:
        >>> drawn = torch.tensor([[0, 1, 2], [10, 11, 12]])[..., None, None]
        >>> in_turns(drawn).flatten(1).tolist()
        [[0, 11, 2], [10, 1, 12]]
    """
    networks, annotators = drawn.shape[:2]
    chosen = torch.arange(annotators)
    return torch.stack([drawn[(chosen + r) % networks, chosen] for r in range(networks)])


def scores(drawn: Tensor, masks: Tensor, classes: int) -> list[float]:
    """The values of :data:`COLUMNS` on one image: ``[S, N, H, W]`` of S networks, ``[N, H, W]``."""
    given = masks.expand_as(drawn)
    present = (given != IGNORE_INDEX).flatten(2).any(dim=2)
    distances = [
        generalized_energy_distance(sets, given, present, classes)
        for sets in (drawn, in_turns(drawn))
    ]
    values = [annotator_dice(drawn, given, present, classes), *distances]
    return [float(value.nanmean()) for value in values]


def images_of(files: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor, int]]:
    """For each test image what S networks drew ``[S, N, H, W]``, its masks and count of classes."""
    networks = [np.load(file, allow_pickle=False) for file in files]
    for key in networks[0].files:
        if key.startswith("drawn/"):
            drawn = torch.from_numpy(np.stack([network[key] for network in networks])).long()
            masks = torch.from_numpy(networks[0][key.replace("drawn/", "masks/", 1)]).long()
            yield drawn, masks, int(networks[0]["classes"])


def row(files: Sequence[Path]) -> list[str]:
    """The values of :data:`COLUMNS`, means over the images."""
    means = np.nanmean([scores(*image) for image in images_of(files)], axis=0)
    return [f"{value:.3f}" for value in means]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_seeds(parser)
    parser.add_argument("--results", type=Path, required=True, help="of compare.py --samples")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each data set.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0, or 1 where no method has the samples of two seeds.
    """
    options = _parser().parse_args(arguments)
    tables = []
    for data in FOLDERS:
        rows = []
        for method in METHODS:
            folder = options.results / data / method
            named = [folder / f"seed{seed}.npz" for seed in dict.fromkeys(options.seeds)]
            files = [file for file in named if file.is_file()]
            if len(files) > 1 and METHODS[method].names_annotators:
                rows.append([f"{method}, {len(files)} networks", *row(files)])
        tables += [f"### {data}", table("Method", rows, COLUMNS)] if rows else []
    if not tables:
        print(
            f"no samples of two seeds in {options.results}: run compare.py --samples first (runs "
            "that have a result are not repeated)",
            file=sys.stderr,
        )
        return 1
    print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
