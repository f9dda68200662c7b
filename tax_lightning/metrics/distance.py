"""Distance between the set of predicted and the set of given segmentations of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.metrics.inputs import check_inputs, check_num_classes, labelled_pixels
from tax_lightning.metrics.pairs import class_maps, pair_iou


def generalized_energy_distance(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Squared generalised energy distance between predicted and given segmentations.

    2 E d(P, A) - E d(P, P') - E d(A, A') as a V-statistic: each expectation is the mean over all
    pairs, a map with itself among them. d = 1 - IoU, where IoU is the macro average over the
    foreground classes that appear in either map, and 1 where none appears. Pixels that an
    annotation does not label are left out of its pairs.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``: the N annotators' predictions,
            or any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Distances ``[B]``, at most 2 and 0 where both sets are the same; NaN for an image that no
        annotator labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[0, 1, 1]], [[0, 0, 1]]]])
        >>> present = torch.tensor([[True, True]])
        >>> generalized_energy_distance(masks, masks, present, num_classes=2)
        tensor([0.])
        >>> generalized_energy_distance(masks[:, :1], masks, present, num_classes=2)
        tensor([0.2500])

    Source:
        G. J. Székely, M. L. Rizzo, "Energy statistics: a class of statistics based on distances",
        2013; as a measure of segmentations: S. Kohl et al., "A Probabilistic U-Net for
        Segmentation of Ambiguous Images", 2018.
    """
    check_inputs(
        ("annotator_prediction", annotator_prediction, "BSHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    labelled = labelled_pixels(masks, present)
    judged = labelled.flatten(2).any(-1).sum(1)
    given = class_maps(masks, num_classes, labelled)
    predicted = class_maps(annotator_prediction, num_classes)
    across, among_predicted, among_given = (
        1 - pair_iou(*pair) for pair in ((predicted, given), (predicted, predicted), (given, given))
    )
    # An absent annotator has no pixel, so its distances are 0 and only the counts leave it out.
    samples = annotator_prediction.shape[1]
    return (
        2 * across.sum((1, 2)) / (samples * judged)
        - among_predicted.mean((1, 2))
        - among_given.sum((1, 2)) / judged**2
    )


class GeneralizedEnergyDistance(Metric):
    """Squared generalised energy distance between predicted and given segmentations.

    Averages :func:`generalized_energy_distance` over the images that any annotator labelled.

    ``update`` takes ``annotator_prediction`` ``[B, S, H, W]`` (the annotators' predictions or any
    number of samples), ``masks`` ``[B, N, H, W]`` (255 where not labelled) and ``present`` (boolean
    ``[B, N]``). ``compute`` returns a scalar, at most 2, where 0 is best; NaN without a case.

    Args:
        num_classes: Number of classes with the background, which is class 0.

    Raises:
        ValueError: If there are fewer than two classes or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = GeneralizedEnergyDistance(num_classes=2)
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[0, 1, 1]]]]),
        ...     masks=torch.tensor([[[[0, 1, 1]], [[0, 0, 1]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> metric.compute()
        tensor(0.2500)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    distance: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = check_num_classes(num_classes)
        self.add_state("distance", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        distances = generalized_energy_distance(
            annotator_prediction, masks, present, self.num_classes
        )
        self.distance += distances.nansum()
        self.images += (~distances.isnan()).sum()

    def compute(self) -> Tensor:
        """Average over images."""
        return self.distance / self.images
