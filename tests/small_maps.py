"""Label maps small enough to work out by hand, and what plain loops over pairs say of them."""

import numpy as np
import torch
from torchmetrics import Metric

IGNORED = 255


def maps(*lines: tuple[int, ...]) -> torch.Tensor:
    """One image with a line of pixels for each annotator or prediction ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


def everyone(annotators: int, images: int = 1) -> torch.Tensor:
    """All are present ``[B, N]``."""
    return torch.ones(images, annotators, dtype=torch.bool)


def pair_score(first: np.ndarray, second: np.ndarray, num_classes: int, score: str) -> float:
    """``"dice"`` or ``"iou"`` of two maps over the classes that appear, 1 where none does."""
    both = (first != IGNORED) & (second != IGNORED)
    scores = []
    for c in range(1, num_classes):
        a, b = (first == c) & both, (second == c) & both
        if (a | b).any():
            area = a.sum() + b.sum() if score == "dice" else 2 * (a | b).sum()
            scores.append(2 * (a & b).sum() / area)
    return float(np.mean(scores, dtype=np.float64)) if scores else 1.0


def judged(masks: np.ndarray, present: np.ndarray) -> list[int]:
    """Annotators of one image who labelled any pixel."""
    return [n for n, mask in enumerate(masks) if present[n] and (mask != IGNORED).any()]


def dice_table(predicted: np.ndarray, masks: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of every prediction of one image with every mask ``[S, N]``."""
    return np.array([[pair_score(p, m, num_classes, "dice") for m in masks] for p in predicted])


def computed(metric: Metric, **batch: torch.Tensor) -> dict[str, float]:
    """What a new metric says of one batch."""
    metric.update(**batch)
    return {name: float(value) for name, value in metric.compute().items()}
