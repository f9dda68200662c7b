"""Do the predictions agree among themselves as their annotators do?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tax_lightning.metrics.inputs import check_inputs, check_names, labelled_pixels
from tax_lightning.metrics.pairs import class_maps, pair_dice, shared_pixels
from tax_lightning.metrics.pooled import PooledMetric


def _sums(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Sums over images of the pairwise Dice on both sides, and number of images ``[N, N]``."""
    check_inputs(
        ("masks", masks, "BNHW"),
        ("annotator_prediction", annotator_prediction, "BNHW"),
        ("present", present, "BN"),
    )
    labelled = labelled_pixels(masks, present)
    true = class_maps(masks, num_classes, labelled)
    predicted = class_maps(annotator_prediction, num_classes, labelled)
    together = shared_pixels(true.labelled, true.labelled).squeeze(1) > 0
    return {
        "true": (pair_dice(true, true) * together).sum(0),
        "predicted": (pair_dice(predicted, predicted) * together).sum(0),
        "images": together.sum(0),
    }


def _averages(true: Tensor, predicted: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Both matrices ``[N, N]``, NaN for a pair without an image."""
    return {"true": true / images, "predicted": predicted / images}


def _error(true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Result of :func:`consistency_error` from the average matrices."""
    pairs = torch.ones_like(true, dtype=torch.bool).triu(1)
    return {"consistency_error": (true - predicted)[pairs].abs().nanmean()}


def consistency_error(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """How far pairs of predictions agree more or less than the pairs of their annotators do.

    For each pair of annotators, the Dice coefficient of their maps and that of the predictions for
    them, over the pixels that both labelled, are each averaged over the images where there is such
    a pixel; then the absolute difference of the two is averaged over pairs. Dice is a macro average
    over the foreground classes that appear in either map, 1 where none does.

    A model that draws the same for everybody has an error as large as the annotators' disagreement,
    even if its Dice coefficient with each of them is good.

    Args:
        annotator_prediction: Class ids predicted for each annotator ``[B, N, H, W]``.
        masks: Class ids given by each annotator ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        ``consistency_error``, in [0, 1], 0 is best; NaN where no two annotators labelled a pixel.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[1, 1, 0]], [[0, 1, 0]]]])
        >>> present = torch.tensor([[True, True]])
        >>> consistency_error(masks[:, [0, 0]], masks, present, num_classes=2)  # 1 - 2 / 3
        {'consistency_error': tensor(0.3333)}
    """
    return _error(**_averages(**_sums(annotator_prediction, masks, present, num_classes)))


class ConsistencyError(PooledMetric):
    """How far pairs of predictions agree more or less than the pairs of their annotators do.

    Both matrices of pairwise Dice coefficients are averaged over all images before their difference
    is taken; see :func:`consistency_error`. Predictions are paired with annotators by identity:
    it says nothing of samples that are nobody's.

    ``update`` takes ``annotator_prediction`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255
    where not labelled) and ``present`` (boolean ``[B, N]``). ``compute`` returns
    ``{"consistency_error"}``, in [0, 1], 0 is best; NaN without a case.

    Args:
        annotators: Names, in the order of the N axis.
        classes: Names, where the index is the class id and 0 is the background.

    Raises:
        ValueError: If names repeat or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = ConsistencyError(["Ada", "Ben"], ["background", "cup"])
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[1, 1, 0]], [[1, 1, 0]]]]),
        ...     masks=torch.tensor([[[[1, 1, 0]], [[0, 1, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> metric.compute()
        {'consistency_error': tensor(0.3333)}
        >>> metric.matrices()["true"]
        tensor([[1.0000, 0.6667],
                [0.6667, 1.0000]])
    """

    higher_is_better = False

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        self.classes = check_names("classes", classes, least=2)
        square = len(self.annotators), len(self.annotators)
        super().__init__(
            true=torch.zeros(square),
            predicted=torch.zeros(square),
            images=torch.zeros(square, dtype=torch.long),
        )

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("masks", masks, "BNHW"), N=len(self.annotators))
        self.add(**_sums(annotator_prediction, masks, present, len(self.classes)))

    def compute(self) -> dict[str, Tensor]:
        """Difference of the average matrices, averaged over pairs."""
        return _error(**_averages(**self.sums))

    def matrices(self) -> dict[str, Tensor]:
        """Both average matrices, of all processes; every process must call it.

        Returns:
            ``"true"`` and ``"predicted"``, each ``[N, N]`` in the order of ``annotators``; NaN for
            a pair without an image.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return _averages(**self.sums)
