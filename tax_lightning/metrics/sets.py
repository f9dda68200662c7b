"""Does the set of predictions of an image cover the set of its annotations?

Predictions are those of the N annotators, or any number S of samples; nothing is paired here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tax_lightning.metrics.inputs import (
    Averages,
    check_inputs,
    check_names,
    foreground_masks,
    labelled_pixels,
    macro_over_classes,
)

_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class _Maps(NamedTuple):
    """Segmentations of each image as zeros and ones, ready for matrix products."""

    foreground: Tensor  # pixels of each class but the background [B, C - 1, N, HW]
    labelled: Tensor  # pixels that count [B, 1, N, HW]


def _maps(labels: Tensor, num_classes: int, labelled: Tensor) -> _Maps:
    foreground = foreground_masks(labels, num_classes) & labelled.unsqueeze(2)
    by_class = (
        maps.transpose(1, 2).flatten(3).float() for maps in (foreground, labelled[:, :, None])
    )
    return _Maps(*by_class)


def _common_and_area(first: _Maps, second: _Maps) -> tuple[Tensor, Tensor]:
    """Intersection and sum of areas of all pairs, over what both label ``[B, I, J, C - 1]``.

    Matrix products of zeros and ones, exact in float32 for images of up to 2^24 pixels (also in
    TF32, whose sums are float32).
    """
    # Mixed precision would round the counts of pixels.
    with torch.autocast(first.labelled.device.type, enabled=False):
        common = first.foreground @ second.foreground.mT
        area = first.foreground @ second.labelled.mT + first.labelled @ second.foreground.mT
    return common.movedim(1, -1), area.movedim(1, -1)


# In both scores 0 / 0 is NaN for a class in neither map. An epsilon there would make such pairs
# count as far apart, and so change what is said of sets that hold empty maps.


def _pair_dice(first: _Maps, second: _Maps) -> Tensor:
    common, area = _common_and_area(first, second)
    return macro_over_classes(2 * common / area)


def _pair_iou(first: _Maps, second: _Maps) -> Tensor:
    common, area = _common_and_area(first, second)
    return macro_over_classes(common / (area - common))


def _predicted_and_given(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> tuple[_Maps, _Maps, Tensor]:
    """Check the arguments; both sets, and which annotators labelled any pixel ``[B, N]``."""
    check_inputs(
        ("annotator_prediction", annotator_prediction, "BSHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    labelled = labelled_pixels(masks, present)
    everywhere = torch.ones_like(annotator_prediction, dtype=torch.bool)
    predicted = _maps(annotator_prediction, num_classes, everywhere)
    return predicted, _maps(masks, num_classes, labelled), labelled.flatten(2).any(-1)


def generalized_energy_distance(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Squared generalised energy distance between predicted and given segmentations.

    2 E d(P, A) - E d(P, P') - E d(A, A') as a V-statistic: each expectation is the mean over all
    pairs, a map with itself among them. d = 1 - IoU, where IoU is the macro average over the
    foreground classes that appear in either map, and 1 where none appears. Pixels that an
    annotation does not label are left out of its pairs.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Distances ``[B]``, at most 2 and 0 where both sets are the same; NaN for an image that no
        annotator labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> masks = torch.tensor([[[[0, 1, 1]], [[0, 0, 1]]]])
        >>> present = torch.tensor([[True, True]])
        >>> generalized_energy_distance(masks[:, :1], masks, present, num_classes=2)
        tensor([0.2500])

    Source:
        G. J. Székely, M. L. Rizzo, "Energy statistics: a class of statistics based on distances",
        2013; for segmentations: S. Kohl et al., "A Probabilistic U-Net for Segmentation of
        Ambiguous Images", 2018.
    """
    predicted, given, judged = _predicted_and_given(
        annotator_prediction, masks, present, num_classes
    )
    across, among_predicted, among_given = (
        1 - _pair_iou(*pair)
        for pair in ((predicted, given), (predicted, predicted), (given, given))
    )
    # An absent annotator has no pixel, so its distances are 0 and only the counts leave it out.
    samples, annotators = annotator_prediction.shape[1], judged.sum(1)
    return (
        2 * across.sum((1, 2)) / (samples * annotators)
        - among_predicted.mean((1, 2))
        - among_given.sum((1, 2)) / annotators**2
    )


def soft_dice(annotator_probs: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Dice of how sure the predictions are and how many annotators agree.

    The mean over t = .1, .3, .5, .7, .9 of Dice(mean P > t, mean A > t): P are the class
    probabilities of the predictions; mean A is the share, among those who labelled the pixel, of
    the annotators who gave the class. Pixels that nobody labelled are left out. At a threshold that
    neither side exceeds anywhere, Dice is 1.

    Args:
        annotator_probs: Class probabilities of each prediction ``[B, S, C, H, W]``.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Scores in [0, 1] ``[B, C - 1]``, one a foreground class; NaN for a class that exceeds no
        threshold on either side, and for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> masks = torch.tensor([[[[1, 1, 0]], [[0, 1, 0]]]])
        >>> cup = torch.tensor([[[[0.6, 1.0, 0.0]]]])
        >>> soft_dice(torch.stack([1 - cup, cup], 2), masks, torch.tensor([[True, True]]))
        tensor([[0.9333]])

    Source:
        W. Ji et al., "Learning Calibrated Medical Image Segmentation via Multi-rater Agreement
        Modeling", 2021.
    """
    check_inputs(
        ("annotator_probs", annotator_probs, "BSCHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    samples, num_classes = annotator_probs.shape[1:3]
    labelled = labelled_pixels(masks, present)
    given = (foreground_masks(masks, num_classes) & labelled.unsqueeze(2)).sum(1)
    share = given / labelled.sum(1).unsqueeze(1)  # NaN exceeds nothing: nobody labelled the pixel
    # Divided as the share is, so that equal fractions stay equal to each other and to a threshold.
    mean = annotator_probs[:, :, 1:].sum(1, dtype=share.dtype) / samples
    mean = torch.where(labelled.any(1, keepdim=True), mean, 0)

    thresholds = torch.tensor(_THRESHOLDS, device=share.device).view(-1, 1, 1, 1)
    predicted, given = (x.unsqueeze(1) > thresholds for x in (mean, share))
    area = (predicted.sum((-2, -1)) + given.sum((-2, -1))).float()
    dice = torch.where(area > 0, 2 * (predicted & given).sum((-2, -1)) / area, 1)
    return dice.mean(1).masked_fill(~(area > 0).any(1), torch.nan)


def max_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Dice of each prediction with the most similar annotation, and the reverse.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Scores in [0, 1] ``[B]`` each. ``dice_max/predictions``: mean over predictions of the
        largest Dice with an annotation, low where predictions resemble nobody;
        ``dice_max/annotators``: mean over annotators of the largest Dice with a prediction, low
        where somebody is not covered; ``dice_max/mean`` of both. Dice as in
        :func:`annotator_dice`. NaN for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> masks = torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]])
        >>> max_dice(masks[:, :1], masks, torch.tensor([[True, True]]), 2)["dice_max/annotators"]
        tensor([0.5000])

    Source:
        Y. Wu et al., "Diversified and Personalized Multi-rater Medical Image Segmentation", 2024.
    """
    predicted, given, judged = _predicted_and_given(
        annotator_prediction, masks, present, num_classes
    )
    dice = _pair_dice(predicted, given)
    predictions = dice.masked_fill(~judged.unsqueeze(1), 0).amax(2).mean(1)
    predictions = predictions.masked_fill(~judged.any(1), torch.nan)
    annotators = (dice.amax(1) * judged).sum(1) / judged.sum(1)
    return {
        "dice_max/predictions": predictions,
        "dice_max/annotators": annotators,
        "dice_max/mean": (predictions + annotators) / 2,
    }


def matched_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Dice of each annotation with a prediction of its own, in the best matching.

    The sum of 1 - Dice is smallest (Hungarian matching). Predictions left over are not judged, so
    that more samples are an advantage: compare models with the same number of them. Where S
    predictions are fewer than the N annotators who labelled the image, each is copied and may be
    matched to up to ceil(N / S) annotators.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Means over annotators in [0, 1] ``[B]``; NaN for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> masks, present = torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]]), torch.tensor([[True, True]])
        >>> matched_dice(masks.flip(1), masks, present, 2), matched_dice(masks[:, :1], masks, present, 2)
        (tensor([1.]), tensor([0.5000]))

    Source:
        Y. Wu et al., "Diversified and Personalized Multi-rater Medical Image Segmentation", 2024;
        copies of the smaller set: S. Kohl et al., "A Hierarchical Probabilistic U-Net for Modeling
        Multi-Scale Ambiguities", 2019.
    """
    predicted, given, judged = _predicted_and_given(
        annotator_prediction, masks, present, num_classes
    )
    dice = _pair_dice(predicted, given)
    images = zip(dice.cpu().numpy(), judged.cpu().numpy(), strict=True)
    return dice.new_tensor([_matched(image[:, there]) for image, there in images])


def _matched(dice: np.ndarray) -> float:
    """Mean Dice ``[S, N]`` of the best matching of one image."""
    samples, annotators = dice.shape
    if annotators == 0:
        return math.nan
    dice = np.tile(dice, (math.ceil(annotators / samples), 1))
    # Largest sum of Dice is smallest sum of 1 - Dice.
    return float(dice[linear_sum_assignment(dice, maximize=True)].mean())


class _SetMetric(Averages):
    """Averages over the images that any annotator labelled."""

    higher_is_better = True

    def __init__(self, classes: Sequence[str], *keys: str) -> None:
        self.classes = check_names("classes", classes, least=2)
        super().__init__(*keys)


class GeneralizedEnergyDistance(_SetMetric):
    """Averages :func:`generalized_energy_distance` over images: ``{"ged2"}``, 0 is best.

    Args:
        classes: Names, where the index is the class id and 0 is the background.

    Example:
        >>> metric = GeneralizedEnergyDistance(["background", "cup"])
        >>> masks, present = torch.tensor([[[[0, 1, 1]], [[0, 0, 1]]]]), torch.ones(1, 2) > 0
        >>> metric.update(annotator_prediction=masks[:, :1], masks=masks, present=present)
        >>> metric.compute()
        {'ged2': tensor(0.2500)}
    """

    higher_is_better = False

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes, "ged2")

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        inputs = annotator_prediction, masks, present, len(self.classes)
        self.add_images(generalized_energy_distance(*inputs))


class SoftDice(_SetMetric):
    """Averages :func:`soft_dice` over images: ``{"dice_soft/<class>", "dice_soft/mean"}``.

    A class's score leaves out the images where the class exceeds no threshold on either side; the
    mean is over images of each image's macro average over the other classes, 1 where there is none.

    Args:
        classes: Names, where the index is the class id and 0 is the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes, *(f"dice_soft/{name}" for name in (*classes[1:], "mean")))

    def update(self, *, annotator_probs: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("annotator_probs", annotator_probs, "BSCHW"), C=len(self.classes))
        scores = soft_dice(annotator_probs, masks, present)
        unknown = ~labelled_pixels(masks, present).flatten(1).any(1)
        mean = macro_over_classes(scores).masked_fill(unknown, torch.nan)
        self.add_images(*scores.unbind(1), mean)


class MaxDice(_SetMetric):
    """Averages :func:`max_dice` over images, under the same keys.

    Args:
        classes: Names, where the index is the class id and 0 is the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        kinds = ("predictions", "annotators", "mean")
        super().__init__(classes, *(f"dice_max/{kind}" for kind in kinds))

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        inputs = annotator_prediction, masks, present, len(self.classes)
        self.add_images(*max_dice(*inputs).values())


class MatchedDice(_SetMetric):
    """Averages :func:`matched_dice` over images: ``{"dice_match"}``.

    Args:
        classes: Names, where the index is the class id and 0 is the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes, "dice_match")

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        self.add_images(matched_dice(annotator_prediction, masks, present, len(self.classes)))
