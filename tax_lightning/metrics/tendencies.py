"""Tendencies: does each annotator, as predicted, draw like the real one?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import PooledMetric, check_inputs, check_names, labelled_pixels
from tax_lightning.tables import Table
from tax_lightning.tendencies import (
    SIZES,
    SUMS,
    Groups,
    agreement,
    figures,
    tendency_sums,
    tendency_table,
)


class Tendencies(PooledMetric):
    """How annotators differ from the consensus: in their masks, and as predicted of them.

    Each side is measured against its own majority, on the pixels that the annotator labelled; see
    :func:`tax_lightning.tendencies.tendency_sums`. ``compute`` returns the mean distance of outlines
    from it in pixels, ``"outline_true/<annotator>"`` and ``"outline_predicted/<annotator>"``, above
    0 outside; and what :func:`tax_lightning.tendencies.agreement` says. All figures, also by class
    and size of objects, stand in :meth:`table`.

    Example:
        >>> metric = Tendencies(["Ada", "Ben", "Cem"], ["background", "cell"])
        >>> masks = torch.zeros(1, 3, 20, 20, dtype=torch.long)
        >>> masks[..., 8:12, 8:12] = 1
        >>> masks[:, 2, 8:12, 6:14] = 1
        >>> present = torch.ones(1, 3, dtype=torch.bool)
        >>> metric.update(annotator_prediction=masks[:, :1], masks=masks, present=present)
    """

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        self.classes = check_names("classes", classes, least=2)
        shape = len(self.annotators), len(self.classes) - 1, len(SIZES), len(SUMS)
        super().__init__(masks=torch.zeros(shape), model=torch.zeros(shape))

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        inputs = ("masks", masks, "BNHW"), ("annotator_prediction", annotator_prediction, "BNHW")
        check_inputs(*inputs, N=len(self.annotators))
        unknown = ~labelled_pixels(masks, present)
        for name, labels in (("masks", masks), ("model", annotator_prediction)):
            images = labels.masked_fill(unknown, IGNORE_INDEX).cpu().numpy()
            sums = sum(tendency_sums(image, len(self.classes)) for image in images)
            self.add(**{name: torch.as_tensor(sums, dtype=torch.float32, device=self.device)})

    def compute(self) -> dict[str, Tensor]:
        """Distances of outlines by annotator, and how well the two sides agree."""
        self.sides = {name: sums.double().cpu().numpy() for name, sums in self.sums.items()}
