"""Overlap of the predictions with the annotators and with the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.functional.segmentation import dice_score

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import (
    check_inputs,
    check_names,
    foreground_masks,
    labelled_pixels,
    macro_over_classes,
)


def class_dice(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Dice coefficient of each foreground class in each pair of label maps.

    Pixels with the label 255 are left out on both sides.

    Args:
        predicted: Predicted class ids ``[B, N, H, W]``.
        labels: Given class ids ``[B, N, H, W]``, 255 where not labelled.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Scores in [0, 1] ``[B, N, num_classes - 1]``; NaN for a class that appears on neither side.

    Example:
        >>> import torch
        >>> predicted = torch.tensor([[[[0, 1, 1, 1]]]])
        >>> labels = torch.tensor([[[[0, 0, 1, 255]]]])
        >>> class_dice(predicted, labels, num_classes=3)
        tensor([[[0.6667,    nan]]])

    Source:
        L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    given = foreground_masks(labels, num_classes).flatten(0, 1)
    counted = predicted.masked_fill(labels == IGNORE_INDEX, IGNORE_INDEX)
    # The average is always named: its default has changed between releases of torchmetrics.
    scores: Tensor = dice_score(
        foreground_masks(counted, num_classes).flatten(0, 1),
        given,
        num_classes=num_classes - 1,
        include_background=True,  # the background is no longer among the masks
        average="none",
        input_format="one-hot",
        aggregation_level="samplewise",
    )
    return scores.reshape(*labels.shape[:2], num_classes - 1)


def annotator_dice(
    annotator_prediction: Tensor, masks: Tensor, present: Tensor, num_classes: int
) -> Tensor:
    """Dice coefficient of each annotator's predicted and given segmentation, image by image.

    A macro average over the foreground classes that appear on either side, over the labelled
    pixels; 1 where no foreground class appears on either side.

    Args:
        annotator_prediction: Class ids predicted for each annotator ``[B, N, H, W]``.
        masks: Class ids given by each annotator ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Scores in [0, 1] ``[B, N]``; NaN where an annotator is absent or labelled no pixel.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[0, 1]], [[0, 0]], [[255, 255]]]])
        >>> predicted = torch.tensor([[[[1, 1]], [[0, 0]], [[0, 1]]]])
        >>> annotator_dice(predicted, masks, torch.tensor([[True, True, False]]), num_classes=2)
        tensor([[0.6667, 1.0000,    nan]])
    """
    check_inputs(
        ("annotator_prediction", annotator_prediction, "BNHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    scores = macro_over_classes(class_dice(annotator_prediction, masks, num_classes))
    judged = labelled_pixels(masks, present).flatten(2).any(-1)
    return scores.masked_fill(~judged, torch.nan)


def fused_dice(prediction: Tensor, reference: Tensor, num_classes: int) -> Tensor:
    """Dice coefficient of the fused segmentation and the reference, by image and class.

    Args:
        prediction: Predicted class ids ``[B, H, W]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown; such pixels are left out.
        num_classes: Number of classes with the background, which is class 0.

    Returns:
        Scores in [0, 1] ``[B, num_classes - 1]``; NaN for a class that appears on neither side.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> fused_dice(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=3)
        tensor([[0.6667,    nan]])
    """
    check_inputs(("prediction", prediction, "BHW"), ("reference", reference, "BHW"))
    return class_dice(prediction[:, None], reference[:, None], num_classes)[:, 0]


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each foreground class, from a confusion matrix of pixels.

    Pooled over the pixels of a data set before the division, as papers report it. (torchmetrics'
    ``MeanIoU`` averages the IoU of single images, and its ``MulticlassJaccardIndex`` cannot tell a
    class that never appears from one that is never met.)

    Args:
        confusion: Pixel counts ``[classes, classes]``, true class by predicted class.

    Returns:
        Scores in [0, 1] ``[classes - 1]``; NaN for a class that appears on neither side.

    Example:
        >>> import torch
        >>> class_iou(torch.tensor([[5, 1, 0], [1, 2, 0], [0, 0, 0]]))
        tensor([0.5000,    nan])
    """
    both = confusion.diagonal()
    return (both / (confusion.sum(0) + confusion.sum(1) - both))[1:]


class AnnotatorDice(Metric):
    """Dice coefficient between each annotator's prediction and that same annotator's labels.

    Scores of :func:`annotator_dice` are averaged over the images that the annotator labelled.

    ``update`` takes ``annotator_prediction`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255
    where not labelled) and ``present`` (boolean ``[B, N]``). ``compute`` returns
    ``{"dice/<annotator>": ..., "dice/mean": ...}``, in [0, 1]; the mean is over the annotators that
    have a case, and a value without a case is NaN.

    Args:
        annotators: Names, in the order of the N axis.
        classes: Names, where the index is the class id and 0 is the background.

    Raises:
        ValueError: If names repeat or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = AnnotatorDice(["Ada", "Ben"], ["background", "cup"])
        >>> metric.update(
        ...     annotator_prediction=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     masks=torch.tensor([[[[0, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'dice/Ada': 0.667, 'dice/Ben': 1.0, 'dice/mean': 0.833}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    dice: Tensor
    images: Tensor

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        super().__init__()
        self.annotators = check_names("annotators", annotators, least=1)
        self.classes = check_names("classes", classes, least=2)
        count = len(self.annotators)
        self.add_state("dice", torch.zeros(count), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("masks", masks, "BNHW"), N=len(self.annotators))
        scores = annotator_dice(annotator_prediction, masks, present, len(self.classes))
        self.dice += scores.nansum(0)
        self.images += (~scores.isnan()).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Average over images, by annotator, and over annotators."""
        dice = self.dice / self.images
        by_name = {f"dice/{name}": dice[n] for n, name in enumerate(self.annotators)}
        return by_name | {"dice/mean": dice.nanmean()}


class FusedOverlap(Metric):
    """Dice coefficient and intersection over union of the fused prediction with the reference.

    Dice is taken image by image. A class's Dice leaves out the images where the class appears on
    neither side; the mean is over images of each image's macro average over the classes that
    appear, 1 where none does. IoU is taken over all pixels of the data set, a class at a time, and
    its mean is over the classes that appear. The background counts in neither.

    ``update`` takes ``prediction`` ``[B, H, W]`` and ``reference`` ``[B, H, W]`` (255 where
    unknown; such pixels are left out); without a reference a batch adds nothing. ``compute`` returns
    ``{"fused_dice/<class>", "fused_dice/mean", "fused_iou/<class>", "fused_iou/mean"}`` for the
    foreground classes, in [0, 1]; a value without a case is NaN.

    Args:
        classes: Names, where the index is the class id and 0 is the background.

    Raises:
        ValueError: If names repeat or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = FusedOverlap(["background", "cup"])
        >>> metric.update(
        ...     prediction=torch.tensor([[[0, 1, 1]]]), reference=torch.tensor([[[0, 0, 1]]])
        ... )
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'fused_dice/cup': 0.667, 'fused_dice/mean': 0.667, 'fused_iou/cup': 0.5, 'fused_iou/mean': 0.5}
    """  # noqa: E501  (the last line is what the interpreter prints)

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    class_dice: Tensor
    class_images: Tensor
    image_dice: Tensor
    images: Tensor
    confusion: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = check_names("classes", classes, least=2)
        count = len(self.classes)
        zero = torch.zeros((), dtype=torch.long)
        self.add_state("class_dice", torch.zeros(count - 1), dist_reduce_fx="sum")
        self.add_state("class_images", zero.repeat(count - 1), dist_reduce_fx="sum")
        self.add_state("image_dice", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", zero.clone(), dist_reduce_fx="sum")
        self.add_state("confusion", zero.repeat(count, count), dist_reduce_fx="sum")

    def update(self, *, prediction: Tensor, reference: Tensor | None = None) -> None:
        """Add one batch; nothing where it has no reference."""
        if reference is None:
            return
        scores = fused_dice(prediction, reference, len(self.classes))
        known = (reference != IGNORE_INDEX).flatten(1).any(1)
        self.class_dice += scores.nansum(0)
        self.class_images += (~scores.isnan()).sum(0)
        self.image_dice += (macro_over_classes(scores) * known).sum()
        self.images += known.sum()
        self.confusion += multiclass_confusion_matrix(
            prediction,
            reference,
            num_classes=len(self.classes),
            ignore_index=IGNORE_INDEX,
            validate_args=False,  # it would look at every value
        )

    def compute(self) -> dict[str, Tensor]:
        """Average Dice over images; take IoU over all pixels."""
        dice = self.class_dice / self.class_images
        iou = class_iou(self.confusion)
        foreground = self.classes[1:]
        return (
            {f"fused_dice/{name}": dice[c] for c, name in enumerate(foreground)}
            | {"fused_dice/mean": self.image_dice / self.images}
            | {f"fused_iou/{name}": iou[c] for c, name in enumerate(foreground)}
            | {"fused_iou/mean": iou.nanmean()}
        )
