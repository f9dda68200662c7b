"""Distance between the set of predicted and the set of given segmentations of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.metrics.inputs import (
    check_inputs,
    foreground_masks,
    labelled_pixels,
    macro_over_classes,
)


def _pair_distances(
    first: Tensor, first_labelled: Tensor, second: Tensor, second_labelled: Tensor
) -> Tensor:
    """1 - macro IoU of all pairs ``[B, I, J]``.

    Takes masks by class ``[B, classes, I, HW]`` and ``[B, classes, J, HW]``, labelled pixels
    ``[B, 1, I, HW]`` and ``[B, 1, J, HW]``. Every count of pixels is one matrix product of zeros
    and ones, exact in float32 for images of up to 2^24 pixels (TF32 changes nothing: its inputs
    hold zeros and ones exactly and its sums are float32).
    """
    common = first @ second.mT
    union = first @ second_labelled.mT + first_labelled @ second.mT - common
    # 0 / 0 is NaN for a class in neither map. An epsilon here would make such pairs count as far
    # apart, and so change the distance of sets that hold empty maps.
    return 1 - macro_over_classes((common / union).movedim(1, -1))


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

    def by_class(maps: Tensor) -> Tensor:
        return maps.transpose(1, 2).flatten(3).float()

    labelled = labelled_pixels(masks, present)
    judged = labelled.flatten(2).any(-1).sum(1)
    given = by_class(foreground_masks(masks, num_classes) & labelled.unsqueeze(2))
    predicted = by_class(foreground_masks(annotator_prediction, num_classes))
    given_labelled = by_class(labelled.unsqueeze(2))
    predicted_labelled = torch.ones_like(predicted[:, :1])
    # Mixed precision would round the counts of pixels.
    with torch.autocast(masks.device.type, enabled=False):
        across = _pair_distances(predicted, predicted_labelled, given, given_labelled)
        among_predicted = _pair_distances(
            predicted, predicted_labelled, predicted, predicted_labelled
        )
        among_given = _pair_distances(given, given_labelled, given, given_labelled)
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
        if num_classes < 2:
            raise ValueError(
                f"`num_classes` is {num_classes}, expected at least 2; count the background too."
            )
        self.num_classes = num_classes
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
