"""Tendencies: does each annotator, as predicted, draw like the real one?"""

from collections.abc import Sequence

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
    :func:`tax_lightning.tendencies.tendency_sums`. ``compute`` returns the mean distance of
    outlines in pixels, above 0 outside, ``"outline_true/<annotator>"`` and
    ``"outline_predicted/<annotator>"``, and the values of
    :func:`tax_lightning.tendencies.agreement`. All figures, by class and size of objects too, stand
    in :meth:`table`.

    Example:
        >>> metric = Tendencies(["Ada", "Ben", "Cem"], ["background", "cell"])
        >>> masks = torch.zeros(1, 3, 30, 30, dtype=torch.long)
        >>> masks[..., 10:20, :] = 1
        >>> masks[:, 2, 9:21] = 1
        >>> present = torch.ones(1, 3, dtype=torch.bool)
        >>> metric.update(annotator_prediction=masks[:, [0, 0, 0]], masks=masks, present=present)
        >>> metric.compute()["outline_true/Cem"], metric.compute()["outline_predicted/Cem"]
        (tensor(1.), tensor(0.))
    """

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        self.classes = check_names("classes", classes, least=2)
        shape = len(self.annotators), len(self.classes) - 1, len(SIZES), len(SUMS)
        start = torch.zeros(shape, dtype=torch.double)
        super().__init__(masks=start, model=start.clone())

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        inputs = ("masks", masks, "BNHW"), ("annotator_prediction", annotator_prediction, "BNHW")
        check_inputs(*inputs, N=len(self.annotators))
        unknown = ~labelled_pixels(masks, present)
        for name, labels in (("masks", masks), ("model", annotator_prediction)):
            images = labels.masked_fill(unknown, IGNORE_INDEX).cpu().numpy()
            sums = sum(tendency_sums(image, len(self.classes)) for image in images)
            self.add(**{name: torch.as_tensor(sums, device=self.device)})

    def compute(self) -> dict[str, Tensor]:
        """Distances of outlines by annotator, and how well the two sides agree."""
        self.sides = {name: sums.double().cpu().numpy() for name, sums in self.sums.items()}
        values = agreement(self.sides["masks"], self.sides["model"])
        for side, sums in (("true", "masks"), ("predicted", "model")):
            outline = figures(self.sides[sums].sum((1, 2)))["outline"]
            names = (f"outline_{side}/{name}" for name in self.annotators)
            values |= dict(zip(names, outline.tolist(), strict=True))
        return {name: torch.tensor(value) for name, value in values.items()}

    def table(self, groups: Groups | None = None) -> Table:
        """All figures by name, masks beside model, as last computed; groups follow annotators."""
        return tendency_table(self.sides, self.annotators, self.classes, groups)
