"""Tables and figures of the comparison.

A value is bold where its method is the best of its column and a paired test over the test images
says so: Wilcoxon's signed ranks against each other method, on the scores of the images averaged
over seeds, with p < 0.05 after Holm's correction.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from experiments.benchmark.methods import METHODS, TAX
from experiments.dots import Panel, Row, draw
from experiments.tables import Rows, cell, commits, table, values

SIGNIFICANT = 0.05
HIGHER, LOWER = 1, -1

# Title of a column -> the metric, and which direction is better.
COLUMNS = {
    "Annotator Dice": ("dice/mean", HIGHER),
    "Fused Dice": ("fused_dice/mean", HIGHER),
    "GED²": ("ged2", LOWER),
    "GED², samples": ("samples/ged2", LOWER),
    "Dice soft": ("dice_soft/mean", HIGHER),
    "Dice max": ("dice_max/mean", HIGHER),
    "Dice match": ("dice_match", HIGHER),
    "Dice match, samples": ("samples/dice_match", HIGHER),
    "ECE annotators": ("ece_annotators", LOWER),
}
# Metric -> the scores of single images, where there are some.
OF_IMAGES = {
    "dice/mean": "images/dice",
    "fused_dice/mean": "images/fused_dice",
    "ged2": "images/ged2",
}
EXPLANATION = {
    "Who @expert": "who_accuracy_expert",
    "Label-only ceiling": "who_ceiling_expert",
    "Who ECE": "who_ece_expert",
    "Agreement lift": "who_agreement_lift",
    "Majority overrules expert": "majority_overrules_expert",
}
FIGURES = {
    "annotator_dice.png": ("dice/mean", "higher is better"),
    "ged2.png": ("ged2", "lower is better"),
}

Scores = NDArray[np.float64]
"""A score for each image; NaN where there is no case."""


def image_scores(rows: Rows, name: str, column: str) -> Scores:
    """The scores of the images, averaged over seeds; NaN where a seed has no case."""
    texts = [row[column] for row in rows if row["name"] == name]
    return np.mean([np.array(text.split(), dtype=np.float64) for text in texts], axis=0)


def is_supported(best: Scores, others: Sequence[Scores]) -> bool:
    """Whether a paired test over images tells one method from each of the others.

    Example:
        >>> is_supported(np.ones(9), [np.full(9, 0.5)]), is_supported(np.ones(9), [np.ones(9)])
        (True, False)
    """
    chances = sorted(_chance(best, other) for other in others)
    return bool(chances) and all(
        chance * (len(chances) - rank) < SIGNIFICANT for rank, chance in enumerate(chances)
    )


def _chance(one: Scores, other: Scores) -> float:
    """The p of Wilcoxon's signed-rank test; 1 where no image differs."""
    differences = (one - other)[np.isfinite(one - other)]
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def best_method(rows: Rows, metric: str, direction: int) -> str | None:
    """The method with the best mean, where the paired test supports it."""
    means = {
        name: direction * statistics.fmean(found)
        for name in METHODS
        if (found := values(rows, name, metric))
    }
    if metric not in OF_IMAGES or len(means) < 2:
        return None
    first = max(means, key=lambda name: means[name])
    own, *others = (
        image_scores(rows, name, OF_IMAGES[metric]) for name in (first, *(means.keys() - {first}))
    )
    return first if is_supported(own, others) else None


def comparison(rows: Rows, seeds: Sequence[int]) -> str:
    """The table of a data set: a line for each method."""
    best = {metric: best_method(rows, metric, way) for metric, way in COLUMNS.values()}

    def text(name: str, metric: str) -> str:
        found = cell(values(rows, name, metric), len(seeds))
        return f"**{found}**" if best[metric] == name else found

    lines = [[name, *(text(name, metric) for metric, _ in COLUMNS.values())] for name in _in(rows)]
    return table("Method", lines, list(COLUMNS))


def explanation(rows: Rows, seeds: Sequence[int]) -> str:
    """The table of who: the methods that say it, and the metrics that have a case."""
    who = [name for name in _in(rows) if METHODS[name].says_who]
    columns = {
        title: metric
        for title, metric in EXPLANATION.items()
        if any(values(rows, name, metric) for name in who)
    }
    lines = [
        [name, *(cell(values(rows, name, metric), len(seeds)) for metric in columns.values())]
        for name in who
    ]
    return table("Method", lines, list(columns)) if columns else ""


def _in(rows: Rows) -> list[str]:
    """The methods that have a row, in the order of `METHODS`."""
    return [name for name in METHODS if any(row["name"] == name for row in rows)]


def text_of(everything: Mapping[str, Rows], seeds: Sequence[int]) -> str:
    """All tables, and what they were made with."""
    parts: list[str] = []
    for data, rows in everything.items():
        parts += [f"### {data}", comparison(rows, seeds), explanation(rows, seeds)]
    runs = [row for rows in everything.values() for row in rows]
    seconds = sum(float(run.get(f"{part}_seconds", 0)) for run in runs for part in ("fit", "test"))
    parts.append(
        f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; {len(runs)} runs, "
        f"{seconds / 60:.0f} minutes of one thread each; commit {commits(runs)}."
    )
    return "\n\n".join(part for part in parts if part)


def draw_figures(folder: Path, everything: Mapping[str, Rows]) -> None:
    """Dot plots: a line for each method, a panel for each data set that has the metric."""
    for file, (metric, hint) in FIGURES.items():
        panels = []
        for data, rows in everything.items():
            points = {name: found for name in METHODS if (found := values(rows, name, metric))}
            panels += [Panel(data, hint, points)] if points else []
        if panels:
            draw([Row(name, name) for name in METHODS], panels, baseline=TAX).save(folder / file)
