"""What came out of the runs of a comparison: two CSV files, and their rows."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.files import appearing
from tax_lightning.run_record import METRICS, TEST_IMAGES

RUN = ("model", "seed", "fold")
Key = tuple[str, str, str]
"""Name of the model, seed, and fold ("" without folds)."""
Row = Mapping[str, str]
SCORES = ("dice", "fused_dice", "ged2", "samples/ged2")  # of images, which are kept


class Results:
    """The rows of the runs that are done, in two files that appear whole or not at all.

    ``results.csv`` has a row for each run: model, seed, fold, code, seconds, and every figure of
    validation (``val/...``) and test (``test/...``). ``images.csv`` has one for each test image of
    each run.

    Args:
        folder: Of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.table, self.images = folder / "results.csv", folder / "images.csv"
        self.rows = list(_read(self.table))
        self.image_rows = [row for row in _read(self.images) if key_of(row) in self.keys]

    @property
    def keys(self) -> set[Key]:
        """The runs that are done."""
        return {key_of(row) for row in self.rows}

    def add(self, key: Key, figures: Mapping[str, Any], images: Iterable[Row]) -> None:
        """Keep what a run found; the row that says that it is done comes last."""
        of = dict(zip(RUN, key, strict=True))
        self.image_rows += [{**of, **row} for row in images]
        _write(self.images, self.image_rows, (*RUN, "image", *SCORES))
        self.rows.append({**of, **{name: _text(value) for name, value in figures.items()}})
        first = (*RUN, "code", "fit_seconds", "test_seconds")
        others = sorted({name for row in self.rows for name in row} - set(first))
        _write(self.table, self.rows, (*first, *others))

    def of(self, names: Sequence[str], seeds: Sequence[int]) -> "Selection":
        """The rows of some models and seeds."""
        chosen = {str(seed) for seed in seeds}
        return Selection(
            [r for r in self.rows if r["model"] in names and r["seed"] in chosen],
            [r for r in self.image_rows if r["model"] in names and r["seed"] in chosen],
        )


class Selection:
    """The rows of some models and seeds, and what is computed from them."""

    def __init__(self, rows: Sequence[Row], image_rows: Sequence[Row]) -> None:
        self.rows, self.image_rows = rows, image_rows

    @property
    def folds(self) -> int:
        """How many folds there are; 0 without."""
        return len({row["fold"] for row in self.rows if row["fold"]})

    def values(self, name: str, figure: str) -> list[float]:
        """The values of a figure of the tests; empty where it was not measured.

        With several seeds there is one for each seed, the mean of its folds; with one seed, one for
        each fold.
        """
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if row["model"] == name and row.get(f"test/{figure}"):
                found[row["seed"]].append(float(row[f"test/{figure}"]))
        if len(found) == 1:
            return next(iter(found.values()))
        return [float(np.mean(values)) for values in found.values()]

    def scores(self, name: str, score: str) -> dict[str, float]:
        """Test image -> its score, the mean over seeds; without images that have no case."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.image_rows:
            if row["model"] == name:
                found[row["image"]].append(float(row.get(score) or "nan"))
        means = {image: float(np.mean(values)) for image, values in found.items()}
        return {image: mean for image, mean in means.items() if not np.isnan(mean)}


def of_run(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """The figures of a run, and the scores of its test images, from the files that it wrote."""
    beside = folder / "checkpoints"
    noted = json.loads((beside / METRICS).read_text("utf-8"))
    figures = {**noted["fit"]["metrics"], **noted["test"]["metrics"]}
    figures = {key: figures[key] for key in figures if key.startswith(("val/", "test/"))}
    return figures, list(_read(beside / TEST_IMAGES))


def key_of(row: Row) -> Key:
    """The run that a row belongs to."""
    return row["model"], row["seed"], row["fold"]


def _text(value: Any) -> str:  # noqa: ANN401 - a number, a text or nothing
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else str(value)


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    with appearing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
