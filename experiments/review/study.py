"""Does the review queue of ``tax inspect`` find masks that were spoilt? Plant errors and see.

    python -m experiments.review.study --root data/bubil_mini --seeds 0 1 2

Of all masks with foreground 5 % are spoilt, each in one of four ways: shifted, swapped with its
annotator's mask of another image, truncated, or with a blob that is not there. The masks are ranked
by the queue's score, by plain Dice with the majority of the annotators, and at random. Average
precision counts planted errors alone as right: real ones among the masks of cells count as wrong.
``results.csv`` gets a row for each data set and seed. With ``--only_tables`` the table is printed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tax_lightning.comparison.report import Cell, markdown_table
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import FolderDataModule, MultiAnnotatorDataModule
from tax_lightning.data.samples import RawSample
from tax_lightning.data.splits import SPLITS
from tax_lightning.inspection.audit import audit
from tax_lightning.inspection.review import mask_scores
from tax_lightning.simulation import SyntheticDataModule

RESULTS = Path(__file__).with_name("results.csv")
SPOILT = 0.05  # of the masks with foreground
KINDS = ("shifted", "swapped", "truncated", "blob")
WAYS = ("queue", "dice with majority", "random")
RANDOM_ORDERS = 200

Labels = npt.NDArray[np.uint8]


class Listed(list[RawSample]):
    """Samples as a source."""

    @property
    def ids(self) -> Sequence[str]:
        """Their names."""
        return [sample.id for sample in self]


class Spoilt(MultiAnnotatorDataModule):
    """The samples of a data module, of which some masks are spoilt.

    Args:
        data: The data module.
        seed: Of what is spoilt, and how.
    """

    def __init__(self, data: MultiAnnotatorDataModule, seed: int) -> None:
        super().__init__(data.annotators, data.classes, data.channels)
        sources = [data._samples_of(split) for split in SPLITS]
        samples = [source[i] for source in sources for i in range(len(source.ids))]
        masks, self.kinds = plant(np.stack([s.masks for s in samples]), seed)
        self.samples = Listed(
            replace(s, masks=m, reference=None) for s, m in zip(samples, masks, strict=True)
        )

    def _source(self, split: str) -> Listed:
        return self.samples if split == "train" else Listed()


def plant(masks: Labels, seed: int) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Masks ``[I, N, H, W]`` with errors, and where: the place in `KINDS`, else -1 ``[I, N]``."""
    rng = np.random.default_rng(seed)
    spoilt, kinds = masks.copy(), np.full(masks.shape[:2], -1)
    drawn = ((masks > 0) & (masks != IGNORE_INDEX)).any((2, 3))
    able = rng.permutation(np.argwhere(drawn))
    for number, (i, n) in enumerate(able[: round(SPOILT * len(able))]):
        kind = number % len(KINDS)
        others = np.setdiff1d(np.flatnonzero(drawn[:, n]), [i])
        spoilt[i, n] = spoil(KINDS[kind], masks[i, n], masks[rng.choice(others), n], rng)
        kinds[i, n] = kind
    return spoilt, kinds


def spoil(kind: str, mask: Labels, another: Labels, rng: np.random.Generator) -> Labels:
    """One mask ``[H, W]`` with an error of this kind; ``another`` is that of another image."""
    height, width = mask.shape
    drawn = (mask > 0) & (mask != IGNORE_INDEX)
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "swapped":
        return another.copy()
    if kind == "shifted":  # by 6 to 15 % of the longer side
        far = rng.uniform(0.06, 0.15) * max(height, width)
        down, right = round(far * np.sin(angle)), round(far * np.cos(angle))
        moved = np.roll(mask, (down, right), (0, 1))
        moved[: max(down, 0)] = moved[height + min(down, 0) :] = 0
        moved[:, : max(right, 0)] = moved[:, width + min(right, 0) :] = 0
        return moved
    spoilt = mask.copy()
    if kind == "truncated":  # 30 to 60 % of the foreground, on one side of a line
        rows, columns = drawn.nonzero()
        place = rows * np.sin(angle) + columns * np.cos(angle)
        beyond = place > np.quantile(place, rng.uniform(0.4, 0.7))
        spoilt[rows[beyond], columns[beyond]] = 0
        return spoilt
    area, ratio = drawn.sum() * rng.uniform(0.3, 1), rng.uniform(0.6, 1.6)
    rows, columns = (
        np.mgrid[:height, :width] - (rng.uniform(0.15, 0.85, 2) * mask.shape)[:, None, None]
    )
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    blob = along**2 / ratio + across**2 * ratio <= area / np.pi
    spoilt[blob & ~drawn] = rng.choice(np.unique(mask[drawn]))
    return spoilt


def dice_with_majority(masks: Labels, classes: int) -> npt.NDArray[np.float64]:
    """Dice of each mask with the majority of its image, mean over classes in either ``[I, N]``."""
    one_hot = np.stack([masks == c for c in range(classes)], 2)  # [I, N, C, H, W]
    majority = one_hot.sum(1).argmax(1)[:, None, None] == np.arange(classes)[:, None, None]
    both = 2 * (one_hot & majority).sum((3, 4))[..., 1:]
    sizes = (one_hot.sum((3, 4)) + majority.sum((3, 4)))[..., 1:]
    there = (sizes > 0).sum(2)
    dice = (both / np.maximum(sizes, 1)).sum(2) / np.maximum(there, 1)
    return np.asarray(np.where(there > 0, dice, 1.0))


def average_precision(score: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """Mean, over what is right, of the share that is right down to there, highest score first.

    Example:
        >>> average_precision(np.array([3.0, 2, 1, 0]), np.array([True, False, True, False]))
        0.8333333333333333
    """
    ranked = right[np.argsort(-score, kind="stable")]
    precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def measure(data: MultiAnnotatorDataModule, seed: int) -> dict[str, float]:
    """Average precision of every way to rank, of all errors and of each kind among sound masks."""
    spoilt = Spoilt(data, seed)
    masks = np.stack([sample.masks for sample in spoilt.samples])
    ranks = {
        "queue": np.nan_to_num(mask_scores(audit(spoilt, threads=1)), nan=-np.inf),
        "dice with majority": -dice_with_majority(masks, len(data.classes)),
    }
    kinds, planted = spoilt.kinds, spoilt.kinds >= 0
    found: dict[str, float] = {"masks": planted.size, "planted": int(planted.sum())}
    for way, score in ranks.items():
        found[way] = average_precision(score.ravel(), planted.ravel())
        for number, kind in enumerate(KINDS):
            among = ~planted | (kinds == number)
            found[f"{way}: {kind}"] = average_precision(score[among], planted[among])
    rng = np.random.default_rng(seed)
    orders = [
        average_precision(rng.random(planted.size), planted.ravel()) for _ in range(RANDOM_ORDERS)
    ]
    found["random"] = statistics.fmean(orders)
    return found


def tables(rows: Sequence[dict[str, str]]) -> str:
    """Average precision of each way, mean and deviation over seeds, and by kind of error."""
    columns = [*WAYS, *(f"queue: {kind}" for kind in KINDS)]
    lines = [["Average precision", *columns]]
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        lines.append([name, *(Cell.of([float(row[c]) for row in own]).text() for c in columns)])
    return markdown_table(lines)


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("data/bubil_mini"), help="of the cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--table", type=Path, default=RESULTS, help="CSV file of results")
    parser.add_argument("--only_tables", action="store_true", help="print what is there")
    args = parser.parse_args()
    if not args.only_tables:
        rows = []
        for seed in args.seeds:
            grey: dict[int | str, str] = {0: "background", 255: "cell"}
            cells = FolderDataModule(args.root, ["background", "cell"], mask_values=grey)
            sets = {"cells": cells, "scenes": SyntheticDataModule(seed=seed)}
            for name, data in sets.items():
                found = measure(data, seed)
                numbers = {
                    key: f"{value:.4f}" if isinstance(value, float) else str(value)
                    for key, value in found.items()
                }
                rows.append({"data": name, "seed": str(seed), **numbers})
        with args.table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row["data"], int(row["seed"]))))
    with args.table.open(encoding="utf-8", newline="") as file:
        print(tables(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
