"""Does the set of predictions of an image cover the set of its annotations?

Predictions are those of the N annotators, or any number S of samples; nothing is paired here.
Scores of images ``[B]`` are NaN for an image that nobody labelled. Arguments are explained in
:mod:`tax_lightning.metrics`.
"""

import math
from collections.abc import Sequence

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


def _maps(labels: Tensor, num_classes: int, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels by foreground class ``[B, C - 1, N, HW]`` and labelled ``[B, N, HW]``, 0 or 1."""
    foreground = foreground_masks(labels, num_classes) & labelled.unsqueeze(2)
    return foreground.transpose(1, 2).flatten(3).contiguous().float(), labelled.flatten(2).float()


def _overlap(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Dice and IoU of all pairs ``[B, I, J]``, over the pixels that both label.

    Macro averages over the foreground classes that appear in either, 1 where none does.
    """
    # Matrix products of zeros and ones, exact in float32 for images of up to 2^24 pixels (also in
    # TF32, whose sums are float32); mixed precision would round the counts of pixels.
    with torch.autocast(first[0].device.type, enabled=False):
        common = (first[0] @ second[0].mT).movedim(1, -1)
        area = (_area(first[0], second[1]) + _area(second[0], first[1]).mT).movedim(1, -1)
    # 0 / 0 is NaN for a class in neither map. An epsilon there would make such pairs count as far
    # apart, and so change what is said of sets that hold empty maps.
    dice, iou = 2 * common / area, common / (area - common)
    return macro_over_classes(dice), macro_over_classes(iou)


def _area(by_class: Tensor, labelled: Tensor) -> Tensor:
    """Pixels of a class that the others label ``[B, C - 1, I, J]``."""
    # The classes as further rows: to repeat `labelled` for each would copy all of its pixels.
    rows: Tensor = by_class.flatten(1, 2) @ labelled.mT
    by_pair: Tensor = rows.unflatten(1, by_class.shape[1:3])
    return by_pair


def _predicted_and_given(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Check the arguments; both sets, and which annotators labelled any pixel ``[B, N]``."""
    check_inputs(("annotator_prediction", annotator_prediction, "BSHW"), ("masks", masks, "BNHW"))
    labelled = labelled_pixels(masks, present)
    everywhere = torch.ones_like(annotator_prediction, dtype=torch.bool)
    predicted = _maps(annotator_prediction, num_classes, everywhere)
    return predicted, _maps(masks, num_classes, labelled), labelled.flatten(2).any(-1)


def generalized_energy_distance(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Squared generalised energy distance between predicted and given segmentations ``[B]``.

    2 E d(P, A) - E d(P, P') - E d(A, A') as a V-statistic: each expectation is the mean over all
    pairs, a map with itself among them. d = 1 - IoU, where IoU is the macro average over the
    foreground classes that appear in either map, and 1 where none appears. Pixels that an
    annotation does not label are left out of its pairs. At most 2; 0 where both sets are the same.

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
    inputs = annotator_prediction, masks, present, num_classes
    predicted, given, judged = _predicted_and_given(*inputs)
    pairs = (predicted, given), (predicted, predicted), (given, given)
    across, among_predicted, among_given = (1 - _overlap(*pair)[1] for pair in pairs)
    # An absent annotator has no pixel, so its distances are 0 and only the counts leave it out.
    samples, annotators = annotator_prediction.shape[1], judged.sum(1)
    return (
        2 * across.sum((1, 2)) / (samples * annotators)
        - among_predicted.mean((1, 2))
        - among_given.sum((1, 2)) / annotators**2
    )


def _soft_dice(annotator_probs: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Soft Dice of each foreground class ``[B, C - 1]``, as :class:`SetDice` defines it.

    NaN for a class that exceeds no threshold on either side, and all over an image without labels.
    """
    check_inputs(("annotator_probs", annotator_probs, "BSCHW"), ("masks", masks, "BNHW"))
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


def matched_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Dice of each annotation with a prediction of its own, in the best matching ``[B]``.

    The sum of 1 - Dice is smallest (Hungarian matching). Predictions left over are not judged, so
    that more samples are an advantage: compare models with the same number of them. Where S
    predictions are fewer than the N annotators who labelled the image, each is copied and may be
    matched to up to ceil(N / S) annotators.

    Example:
        >>> masks, present = torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]]), torch.ones(1, 2) > 0
        >>> matched_dice(masks.flip(1), masks, present, num_classes=2)
        tensor([1.])

    Source:
        Y. Wu et al., "Diversified and Personalized Multi-rater Medical Image Segmentation", 2024;
        copies of the smaller set: S. Kohl et al., "A Hierarchical
        Probabilistic U-Net for Modeling Multi-Scale Ambiguities", 2019.
    """
    inputs = annotator_prediction, masks, present, num_classes
    predicted, given, judged = _predicted_and_given(*inputs)
    return _matched(_overlap(predicted, given)[0], judged)


def _matched(dice: Tensor, judged: Tensor) -> Tensor:
    """Mean Dice ``[B]`` of the best matching, of all pairs ``[B, S, N]`` of whom is judged."""
    found = []
    for image, there in zip(dice.cpu().numpy(), judged.cpu().numpy(), strict=True):
        table = np.tile(image[:, there], (math.ceil(there.sum() / len(image)), 1))
        # Largest sum of Dice is smallest sum of 1 - Dice.
        best = table[linear_sum_assignment(table, maximize=True)]
        found.append(float(best.mean()) if there.any() else math.nan)
    return dice.new_tensor(found)


class GeneralizedEnergyDistance(Averages):
    """Averages :func:`generalized_energy_distance` over images: ``{"ged2"}``, 0 is best."""

    higher_is_better = False
    key, score = "ged2", staticmethod(generalized_energy_distance)

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = check_names("classes", classes, least=2)
        super().__init__(self.key)

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        self.add_images(self.score(annotator_prediction, masks, present, len(self.classes)))


class MatchedDice(GeneralizedEnergyDistance):
    """Averages :func:`matched_dice` over images: ``{"dice_match"}``, 1 is best."""

    higher_is_better = True
    key, score = "dice_match", staticmethod(matched_dice)


class SetDice(Averages):
    """Three kinds of Dice between the set of predictions and the set of masks, over images.

    ``compute`` returns

    - ``dice_soft/<class>``: the mean over t = .1, .3, .5, .7, .9 of Dice(mean P > t, mean A > t). P
      are the class probabilities of the predictions; mean A is the share, among those who labelled
      the pixel, of the annotators who gave the class. Pixels that nobody labelled are left out. At
      a threshold that neither side exceeds anywhere, Dice is 1. A class leaves out the images where
      it exceeds none on either side. ``dice_soft/mean`` is over images of each image's macro
      average over the other classes, 1 where there is none;
    - ``dice_max/predictions``: mean over predictions of the largest Dice with an annotation, low
      where predictions resemble nobody; ``dice_max/annotators``: mean over annotators of the
      largest Dice with a prediction, low where somebody is not covered; ``dice_max/mean`` of both;
    - ``dice_match``: :func:`matched_dice`.

    Example:
        >>> metric, masks = SetDice(["background", "cell"]), torch.tensor([[[[1, 0]], [[1, 1]]]])
        >>> said = torch.nn.functional.one_hot(masks[:, :1], 2).movedim(-1, 2).float()
        >>> predicted = dict(annotator_prediction=masks[:, :1], annotator_probs=said)
        >>> metric.update(**predicted, masks=masks, present=torch.ones(1, 2) > 0)
        >>> metric.compute()["dice_max/predictions"], metric.compute()["dice_max/annotators"]
        (tensor(1.), tensor(0.8333))

    Source:
        Soft: W. Ji et al., "Learning Calibrated Medical Image Segmentation via Multi-rater
        Agreement Modeling", 2021; maximal: Y. Wu et al., "Diversified and Personalized Multi-rater
        Medical Image Segmentation", 2024.
    """

    higher_is_better = True

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = check_names("classes", classes, least=2)
        soft = (f"dice_soft/{name}" for name in (*self.classes[1:], "mean"))
        largest = (f"dice_max/{kind}" for kind in ("predictions", "annotators", "mean"))
        super().__init__(*soft, *largest, "dice_match")

    def update(
        self,
        *,
        annotator_prediction: Tensor,
        annotator_probs: Tensor,
        masks: Tensor,
        present: Tensor,
    ) -> None:
        """Add one batch."""
        check_inputs(("annotator_probs", annotator_probs, "BSCHW"), C=len(self.classes))
        soft = _soft_dice(annotator_probs, masks, present)
        inputs = annotator_prediction, masks, present, len(self.classes)
        predicted, given, judged = _predicted_and_given(*inputs)
        mean = macro_over_classes(soft).masked_fill(~judged.any(1), torch.nan)
        dice, _ = _overlap(predicted, given)
        predictions = dice.masked_fill(~judged.unsqueeze(1), 0).amax(2).mean(1)
        predictions = predictions.masked_fill(~judged.any(1), torch.nan)
        annotators = (dice.amax(1) * judged).sum(1) / judged.sum(1)
        largest = predictions, annotators, (predictions + annotators) / 2
        self.add_images(*soft.unbind(1), mean, *largest, _matched(dice, judged))
