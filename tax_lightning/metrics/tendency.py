"""Are the annotators' tendencies kept: who draws large, who draws small?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import spearman_corrcoef

from tax_lightning.metrics.inputs import check_inputs, check_names, labelled_pixels


def relative_area(labels: Tensor, counted: Tensor) -> Tensor:
    """Foreground area of each annotator relative to the others' in the same image.

    Args:
        labels: Class ids ``[B, N, H, W]``, 0 is the background.
        counted: Pixels that count, boolean ``[B, N, H, W]``; an annotator with none is absent.

    Returns:
        Area divided by the mean area of the annotators that are there ``[B, N]``, at least 0, and 1
        for an annotator who draws as much as the average. NaN where an annotator is absent, and for
        an image whose mean area is 0.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[[[0, 1, 1, 1]], [[0, 0, 0, 1]]]])
        >>> relative_area(labels, torch.ones_like(labels, dtype=torch.bool))
        tensor([[1.5000, 0.5000]])
    """
    check_inputs(("labels", labels, "BNHW"), ("counted", counted, "BNHW"))
    there = counted.flatten(2).any(-1)
    area = ((labels > 0) & counted).flatten(2).sum(-1)
    # An image without foreground gives 0 / 0, which is the NaN that is wanted.
    relative = area * there.sum(1, keepdim=True) / area.sum(1, keepdim=True)
    return relative.masked_fill(~there, torch.nan)


def rank_agreement(predicted: Tensor, true: Tensor) -> Tensor:
    """Spearman's rank correlation over the entries that both sides have.

    Args:
        predicted: Values ``[N]``, NaN where there is none.
        true: Values ``[N]``, NaN where there is none.

    Returns:
        A scalar in [-1, 1]; NaN for fewer than three entries and where one side is all equal.

    Example:
        >>> import torch
        >>> value = rank_agreement(torch.tensor([0.8, 0.9, 1.3]), torch.tensor([0.7, 1.0, 1.2]))
        >>> round(float(value), 3)
        1.0

    Source:
        C. Spearman, "The proof and measurement of association between two things", 1904.
    """
    both = ~(predicted.isnan() | true.isnan())
    predicted, true = predicted[both], true[both]
    if len(true) < 3 or (true == true[0]).all() or (predicted == predicted[0]).all():
        return torch.full((), torch.nan, device=both.device)
    return spearman_corrcoef(predicted, true)


class RelativeArea(Metric):
    """Foreground area by annotator relative to the other annotators, true and predicted.

    Values of :func:`relative_area` are averaged over images, for the masks and for the predictions
    of the same annotators on the same labelled pixels. An image without foreground is left out, of
    the masks' average if the masks have none and of the predictions' if the predictions have none.

    ``update`` takes ``annotator_prediction`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255
    where not labelled) and ``present`` (boolean ``[B, N]``). ``compute`` returns
    ``{"relative_area_true/<annotator>", "relative_area_predicted/<annotator>",
    "relative_area_spearman", "relative_area_error"}``: averages of at least 0, the rank correlation
    of both over annotators (see :func:`rank_agreement`), and the mean absolute difference of both.
    A value without a case is NaN.

    Args:
        annotators: Names, in the order of the N axis.

    Raises:
        ValueError: If names repeat or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = RelativeArea(["Ada", "Ben"])
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[0, 1, 1, 1]], [[0, 1, 1, 1]]]]),
        ...     masks=torch.tensor([[[[0, 1, 1, 1]], [[0, 0, 0, 1]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> {name: float(value) for name, value in metric.compute().items() if "true" in name}
        {'relative_area_true/Ada': 1.5, 'relative_area_true/Ben': 0.5}
        >>> metric.compute()["relative_area_error"]
        tensor(0.5000)
    """

    is_differentiable = False
    full_state_update = False

    true: Tensor
    true_images: Tensor
    predicted: Tensor
    predicted_images: Tensor

    def __init__(self, annotators: Sequence[str]) -> None:
        super().__init__()
        self.annotators = check_names("annotators", annotators, least=1)
        count = len(self.annotators)
        for side in ("true", "predicted"):
            self.add_state(side, torch.zeros(count), dist_reduce_fx="sum")
            images = torch.zeros(count, dtype=torch.long)
            self.add_state(f"{side}_images", images, dist_reduce_fx="sum")

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(
            ("masks", masks, "BNHW"),
            ("present", present, "BN"),
            ("annotator_prediction", annotator_prediction, "BNHW"),
            N=len(self.annotators),
        )
        counted = labelled_pixels(masks, present)
        true = relative_area(masks, counted)
        predicted = relative_area(annotator_prediction, counted)
        self.true += true.nansum(0)
        self.true_images += (~true.isnan()).sum(0)
        self.predicted += predicted.nansum(0)
        self.predicted_images += (~predicted.isnan()).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Averages by annotator, and how well the predicted ones follow the true ones."""
        true = self.true / self.true_images
        predicted = self.predicted / self.predicted_images
        names = self.annotators
        return (
            {f"relative_area_true/{name}": true[n] for n, name in enumerate(names)}
            | {f"relative_area_predicted/{name}": predicted[n] for n, name in enumerate(names)}
            | {"relative_area_spearman": rank_agreement(predicted, true)}
            | {"relative_area_error": (true - predicted).abs().nanmean()}
        )
