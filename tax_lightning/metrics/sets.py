"""How well does the set of predictions cover the set of annotations of an image?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tax_lightning.metrics.inputs import (
    check_inputs,
    check_names,
    check_num_classes,
    foreground_masks,
    labelled_pixels,
    macro_over_classes,
)
from tax_lightning.metrics.pairs import class_maps, pair_dice
from tax_lightning.metrics.pooled import ImageAverage

_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def soft_dice(annotator_probs: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Dice coefficient of how sure the predictions are and how many annotators agree.

    The mean over t = .1, .3, .5, .7, .9 of Dice(mean P > t, mean A > t): P are the class
    probabilities of the predictions; mean A is the share, among those who labelled the pixel, of
    the annotators who gave the class. Pixels that nobody labelled are left out. At a threshold that
    neither side exceeds anywhere, Dice is 1.

    Args:
        annotator_probs: Class probabilities of each prediction ``[B, S, C, H, W]``: those of the N
            annotators, or of any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Scores in [0, 1] ``[B, C - 1]``, one a foreground class; NaN for a class that exceeds no
        threshold on either side, and for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
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


def _dice_to_annotators(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Dice of every prediction with every annotator ``[B, S, N]``, and who labelled ``[B, N]``."""
    check_inputs(
        ("annotator_prediction", annotator_prediction, "BSHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    labelled = labelled_pixels(masks, present)
    predicted = class_maps(annotator_prediction, num_classes)
    dice = pair_dice(predicted, class_maps(masks, num_classes, labelled))
    return dice, labelled.flatten(2).any(-1)


def max_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Dice coefficient of each prediction with the annotator next to it, and the reverse.

    Dice of a prediction and an annotation is taken over the pixels that are labelled; a macro
    average over the foreground classes that appear on either side, 1 where none does.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``: the N annotators' predictions,
            or any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Scores in [0, 1] ``[B]`` each. ``dice_max/predictions``: mean over predictions of the
        largest over annotators, low where predictions resemble nobody; ``dice_max/annotators``:
        mean over annotators of the largest over predictions, low where somebody is not covered;
        ``dice_max/mean`` of both. NaN for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]])
        >>> max_dice(masks[:, :1], masks, torch.tensor([[True, True]]), num_classes=2)
        {'dice_max/predictions': tensor([1.]), 'dice_max/annotators': tensor([0.5000]), 'dice_max/mean': tensor([0.7500])}

    Source:
        Y. Wu et al., "Diversified and Personalized Multi-rater Medical Image Segmentation", 2024.
    """  # noqa: E501  (the last line is what the interpreter prints)
    dice, judged = _dice_to_annotators(annotator_prediction, masks, present, num_classes)
    predictions = dice.masked_fill(~judged.unsqueeze(1), 0).amax(2).mean(1)
    predictions = predictions.masked_fill(~judged.any(1), torch.nan)
    annotators = (dice.amax(1) * judged).sum(1) / judged.sum(1)
    return {
        "dice_max/predictions": predictions,
        "dice_max/annotators": annotators,
        "dice_max/mean": (predictions + annotators) / 2,
    }


def _matched(dice: np.ndarray) -> float:
    """Mean Dice ``[S, N]`` of the annotators and the predictions that fit them best together."""
    samples, annotators = dice.shape
    if annotators == 0:
        return math.nan
    dice = np.tile(dice, (math.ceil(annotators / samples), 1))
    # Largest sum of Dice is smallest sum of 1 - Dice.
    return float(dice[linear_sum_assignment(dice, maximize=True)].mean())


def matched_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Dice coefficient of each annotator with a prediction of their own, matched at best.

    Annotators are matched to predictions so that the sum of 1 - Dice is smallest (Hungarian
    matching); Dice is that of :func:`max_dice`. Predictions left over are not judged, so that more
    samples are an advantage: compare models with the same number of them. Where S predictions are
    fewer than the N annotators who labelled the image, each is copied and may be matched to up to
    ceil(N / S) annotators.

    Args:
        annotator_prediction: Predicted class ids ``[B, S, H, W]``: the N annotators' predictions,
            or any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Means over annotators in [0, 1] ``[B]``; NaN for an image that nobody labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]])
        >>> present = torch.tensor([[True, True]])
        >>> matched_dice(masks.flip(1), masks, present, num_classes=2)
        tensor([1.])
        >>> matched_dice(masks[:, [0, 0]], masks, present, num_classes=2)
        tensor([0.5000])

    Source:
        Y. Wu et al., "Diversified and Personalized Multi-rater Medical Image Segmentation", 2024;
        copies of the smaller set: S. Kohl et al., "A Hierarchical Probabilistic U-Net for Modeling
        Multi-Scale Ambiguities", 2019.
    """
    dice, judged = _dice_to_annotators(annotator_prediction, masks, present, num_classes)
    images = zip(dice.cpu().numpy(), judged.cpu().numpy(), strict=True)
    return dice.new_tensor([_matched(image[:, there]) for image, there in images])


class SoftDice(ImageAverage):
    """Dice coefficient of how sure the predictions are and how many annotators agree.

    Averages the scores of :func:`soft_dice` over images. A class's score leaves out the images
    where the class exceeds no threshold on either side; the mean is over images of each image's
    macro average over the other classes, 1 where none exceeds any.

    ``update`` takes ``annotator_probs`` ``[B, S, C, H, W]`` (of the annotators or any number of
    samples), ``masks`` ``[B, N, H, W]`` (255 where not labelled) and ``present`` (boolean
    ``[B, N]``). ``compute`` returns ``{"dice_soft/<class>": ..., "dice_soft/mean": ...}`` for the
    foreground classes, in [0, 1]; a value without a case is NaN.

    Args:
        classes: Names, where the index is the class id and 0 is the background.

    Raises:
        ValueError: If names repeat or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = SoftDice(["background", "cup"])
        >>> cup = torch.tensor([[[[0.6, 1.0, 0.0]]]])
        >>> metric.update(
        ...     annotator_probs=torch.stack([1 - cup, cup], 2),
        ...     masks=torch.tensor([[[[1, 1, 0]], [[0, 1, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'dice_soft/cup': 0.933, 'dice_soft/mean': 0.933}
    """

    higher_is_better = True

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = check_names("classes", classes, least=2)
        super().__init__(*(f"dice_soft/{name}" for name in (*self.classes[1:], "mean")))

    def update(self, *, annotator_probs: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("annotator_probs", annotator_probs, "BSCHW"), C=len(self.classes))
        scores = soft_dice(annotator_probs, masks, present)
        judged = labelled_pixels(masks, present).flatten(1).any(1)
        mean = macro_over_classes(scores).masked_fill(~judged, torch.nan)
        self.add_images(*scores.unbind(1), mean)


class MaxDice(ImageAverage):
    """Dice coefficient of each prediction with the annotator next to it, and the reverse.

    Averages the scores of :func:`max_dice` over the images that any annotator labelled.

    ``update`` takes ``annotator_prediction`` ``[B, S, H, W]`` (the annotators' predictions or any
    number of samples), ``masks`` ``[B, N, H, W]`` (255 where not labelled) and ``present`` (boolean
    ``[B, N]``). ``compute`` returns ``{"dice_max/predictions", "dice_max/annotators",
    "dice_max/mean"}``, in [0, 1]; NaN without a case.

    Args:
        num_classes: Number of classes with the background, which is class 0.

    Raises:
        ValueError: If there are fewer than two classes or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = MaxDice(num_classes=2)
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[1, 1, 0]]]]),
        ...     masks=torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'dice_max/predictions': 1.0, 'dice_max/annotators': 0.5, 'dice_max/mean': 0.75}
    """

    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__("dice_max/predictions", "dice_max/annotators", "dice_max/mean")
        self.num_classes = check_num_classes(num_classes)

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        scores = max_dice(annotator_prediction, masks, present, self.num_classes)
        self.add_images(*(scores[key] for key in self.keys))


class MatchedDice(ImageAverage):
    """Dice coefficient of each annotator with a prediction of their own, matched at best.

    Averages the scores of :func:`matched_dice` over the images that any annotator labelled.

    ``update`` takes ``annotator_prediction`` ``[B, S, H, W]`` (the annotators' predictions or any
    number of samples), ``masks`` ``[B, N, H, W]`` (255 where not labelled) and ``present`` (boolean
    ``[B, N]``). ``compute`` returns ``{"dice_match"}``, in [0, 1]; NaN without a case.

    Args:
        num_classes: Number of classes with the background, which is class 0.

    Raises:
        ValueError: If there are fewer than two classes or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = MatchedDice(num_classes=2)
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[0, 0, 0]], [[1, 1, 0]]]]),
        ...     masks=torch.tensor([[[[1, 1, 0]], [[0, 0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> metric.compute()
        {'dice_match': tensor(1.)}
    """

    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__("dice_match")
        self.num_classes = check_num_classes(num_classes)

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        self.add_images(matched_dice(annotator_prediction, masks, present, self.num_classes))
