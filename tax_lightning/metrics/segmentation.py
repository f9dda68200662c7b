"""Are the predictions right? Overlap, relative areas and calibration of segmentations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.functional.segmentation import dice_score

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import (
    Averages,
    PooledMetric,
    check_inputs,
    check_names,
    foreground_masks,
    labelled_pixels,
    macro_over_classes,
)

_GROUPS = 15
_BINS = 1000  # of equal width, from which the groups of equal mass are made
_UNIT = 2**24  # confidences are summed as whole multiples of 1 / this, exactly and in any order


def _class_dice(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Dice of each foreground class ``[B, N, C - 1]`` of two label maps ``[B, N, H, W]``.

    Pixels with the label 255 are left out; NaN for a class that appears on neither side.
    """
    counted = predicted.masked_fill(labels == IGNORE_INDEX, IGNORE_INDEX)
    # The average is always named: its default has changed between releases of torchmetrics.
    scores: Tensor = dice_score(
        foreground_masks(counted, num_classes).flatten(0, 1),
        foreground_masks(labels, num_classes).flatten(0, 1),
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
    """Dice of each annotator's predicted and given segmentation, image by image ``[B, N]``.

    A macro average over the foreground classes that appear on either side, over the labelled
    pixels; 1 where no foreground class appears on either side. NaN where an annotator is absent or
    labelled no pixel.

    Example:
        >>> masks = torch.tensor([[[[0, 1]], [[0, 0]], [[255, 255]]]])
        >>> predicted = torch.tensor([[[[1, 1]], [[0, 0]], [[0, 1]]]])
        >>> annotator_dice(predicted, masks, torch.tensor([[True, True, False]]), num_classes=2)
        tensor([[0.6667, 1.0000,    nan]])
    """
    judged = labelled_pixels(masks, present).flatten(2).any(-1)
    check_inputs(("masks", masks, "BNHW"), ("annotator_prediction", annotator_prediction, "BNHW"))
    scores = macro_over_classes(_class_dice(annotator_prediction, masks, num_classes))
    return scores.masked_fill(~judged, torch.nan)


def fused_dice(prediction: Tensor, reference: Tensor, num_classes: int) -> Tensor:
    """Dice of the fused segmentation and the reference ``[B, num_classes - 1]``.

    Pixels of unknown reference are left out; NaN for a class that appears on neither side.

    Example:
        >>> fused_dice(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=3)
        tensor([[0.6667,    nan]])
    """
    check_inputs(("prediction", prediction, "BHW"), ("reference", reference, "BHW"))
    return _class_dice(prediction[:, None], reference[:, None], num_classes)[:, 0]


class AnnotatorDice(Averages):
    """Dice of each annotator's prediction with that same annotator's mask.

    Averages :func:`annotator_dice` over the images that the annotator labelled:
    ``{"dice/<annotator>", "dice/mean"}``, the mean over the annotators that have any.
    """

    higher_is_better = True

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        self.classes = check_names("classes", classes, least=2)
        super().__init__(*(f"dice/{name}" for name in self.annotators))

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("masks", masks, "BNHW"), N=len(self.annotators))
        scores = annotator_dice(annotator_prediction, masks, present, len(self.classes))
        self.add_images(*scores.unbind(1))

    def compute(self) -> dict[str, Tensor]:
        """Average over images, by annotator, and over annotators."""
        return super().compute() | {"dice/mean": self.averages.nanmean()}


class FusedOverlap(Averages):
    """Dice and intersection over union of the fused prediction with the reference.

    Dice is taken image by image. A class's Dice is the mean over the images where the class appears
    on either side: images in which there is nothing to find do not raise it. IoU is taken over all
    pixels of the data set, a class at a time. The mean of each is over the classes that appear, and
    that of Dice is 1 where no class does. ``compute`` returns ``{"fused_dice/<class>",
    "fused_dice/mean", "fused_iou/<class>", "fused_iou/mean"}`` of the foreground classes in [0, 1].

    Example:
        >>> metric = FusedOverlap(["background", "cup"])
        >>> reference = torch.tensor([[[0, 0, 1]]])
        >>> metric.update(prediction=torch.tensor([[[0, 1, 1]]]), reference=reference)
        >>> metric.compute()["fused_dice/cup"], metric.compute()["fused_iou/cup"]
        (tensor(0.6667), tensor(0.5000))
    """

    higher_is_better = True

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = check_names("classes", classes, least=2)
        confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
        super().__init__(*(f"fused_dice/{name}" for name in self.classes[1:]), confusion=confusion)

    def update(self, *, prediction: Tensor, reference: Tensor | None = None) -> None:
        """Add one batch; nothing where it has no reference."""
        if reference is None:
            return
        self.add_images(*fused_dice(prediction, reference, len(self.classes)).unbind(1))
        confusion = multiclass_confusion_matrix(
            prediction,
            reference,
            num_classes=len(self.classes),
            ignore_index=IGNORE_INDEX,
            validate_args=False,  # it would look at every value
        )
        self.add(confusion=confusion)

    def compute(self) -> dict[str, Tensor]:
        """Average Dice over images; take IoU over all pixels."""
        # torchmetrics' Jaccard index gives 0 to a class that appears nowhere; 0 / 0 is NaN here.
        confusion = self.sums["confusion"]
        both = confusion.diagonal()
        iou = (both / (confusion.sum(0) + confusion.sum(1) - both))[1:]
        by_class = {f"fused_iou/{name}": iou[c] for c, name in enumerate(self.classes[1:])}
        dice = macro_over_classes(self.averages) if confusion.any() else self.averages.mean()
        means = {"fused_dice/mean": dice, "fused_iou/mean": iou.nanmean()}
        return super().compute() | by_class | means


def _relative_area(labels: Tensor, counted: Tensor) -> Tensor:
    """Foreground area over the mean area of all annotators of the image ``[B, N]``.

    Of the pixels counted, boolean ``[B, N, H, W]``. NaN for an annotator without any, and for an
    image whose mean area is 0.
    """
    there = counted.flatten(2).any(-1)
    area = ((labels > 0) & counted).flatten(2).sum(-1)
    # An image without foreground gives 0 / 0, which is the NaN that is wanted.
    relative = area * there.sum(1, keepdim=True) / area.sum(1, keepdim=True)
    return relative.masked_fill(~there, torch.nan)


def _rank_agreement(predicted: Tensor, true: Tensor) -> Tensor:
    """Spearman's rank correlation ``[N]``; NaN for fewer than three values or all equal ones."""
    both = ~(predicted.isnan() | true.isnan())
    predicted, true = predicted[both], true[both]
    if len(true) < 3 or (true == true[0]).all() or (predicted == predicted[0]).all():
        return torch.full((), torch.nan, device=both.device)
    return spearman_corrcoef(predicted, true)


class RelativeArea(Averages):
    """Does an annotator who draws larger areas than the others do so in the prediction too?

    An annotator's relative area in an image is the foreground area divided by the mean area of the
    annotators who labelled the image, for the masks and for the predictions on the same pixels. An
    image without foreground is left out, on the side that has none. ``compute`` returns averages
    over images ``{"relative_area_true/<annotator>", "relative_area_predicted/<annotator>"}``, 1 for
    who draws as much as the mean; ``"relative_area_spearman"``, their rank correlation over
    annotators in [-1, 1]; and ``"relative_area_error"``, their mean absolute difference.

    Example:
        >>> metric = RelativeArea(["Ada", "Ben"])
        >>> masks = torch.tensor([[[[0, 1, 1, 1]], [[0, 0, 0, 1]]]])
        >>> present = torch.tensor([[True, True]])
        >>> metric.update(annotator_prediction=masks[:, [0, 0]], masks=masks, present=present)
        >>> metric.compute()["relative_area_true/Ada"], metric.compute()["relative_area_error"]
        (tensor(1.5000), tensor(0.5000))
    """

    def __init__(self, annotators: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        sides = ("true", "predicted")
        super().__init__(*(f"relative_area_{s}/{name}" for s in sides for name in self.annotators))

    def update(self, *, annotator_prediction: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        inputs = ("masks", masks, "BNHW"), ("annotator_prediction", annotator_prediction, "BNHW")
        check_inputs(*inputs, N=len(self.annotators))
        counted = labelled_pixels(masks, present)
        areas = [_relative_area(labels, counted) for labels in (masks, annotator_prediction)]
        self.add_images(*torch.cat(areas, 1).unbind(1))

    def compute(self) -> dict[str, Tensor]:
        """Averages by annotator, and how well the predicted ones follow the true ones."""
        true, predicted = self.averages.view(2, -1)
        return super().compute() | {
            "relative_area_spearman": _rank_agreement(predicted, true),
            "relative_area_error": (true - predicted).abs().nanmean(),
        }


def confidence_bins() -> Tensor:
    """Start of a sum of :func:`histogram`."""
    return torch.zeros(2, _BINS, dtype=torch.long)


def histogram(confidence: Tensor, hits: Tensor, cases: Tensor) -> Tensor:
    """Number of cases by confidence, and sum of (hit - confidence) in 2^-24, ``[2, 1000]``.

    ``hits`` says how many of the ``cases`` with a confidence in [0, 1] are right, in parts perhaps;
    where there is no case, the rest is not read. Whole numbers add up exactly.
    """
    cases = cases.flatten().long()
    confidence = torch.where(cases > 0, confidence.float().flatten(), 0)
    right = hits.flatten()
    units = (right * _UNIT).round().long() if right.is_floating_point() else right * _UNIT
    gaps = units * cases.sign() - cases * (confidence * _UNIT).round().long()
    index = (confidence * _BINS).long().clamp(0, _BINS - 1)
    return confidence_bins().to(index.device).index_add(1, index, torch.stack([cases, gaps]))


def calibration_error(bins: Tensor) -> Tensor:
    """Mean of ``|accuracy - confidence|`` over 15 groups of equal mass; NaN without a case.

    Of equal mass, as nearly all pixels are certain and would fill one of the groups of equal width
    that torchmetrics has. From the bins of a :func:`histogram`, so that memory does not grow with
    the data: confidences less than 1/1000 apart count as equal, equal ones are in no order, and a
    group may hold a part of a case.

    Example:
        >>> confidence, hits = torch.tensor([0.5, 0.5, 0.75]), torch.tensor([1, 0, 1])
        >>> calibration_error(histogram(confidence, hits, torch.ones(3)))
        tensor(0.0833)

    Source:
        K. Nguyen, B. O'Connor, "Posterior calibration and exploratory analysis for natural language
        processing models", 2015.
    """
    counts, gaps = bins
    total = counts.sum()
    # In fifteenths of a case, so that borders are whole numbers.
    end = counts.cumsum(0) * _GROUPS
    border = torch.arange(_GROUPS + 1, device=counts.device).unsqueeze(1) * total
    shared = torch.minimum(end, border[1:]) - torch.maximum(end - counts * _GROUPS, border[:-1])
    gap = (shared.clamp(min=0) * (gaps / counts.clamp(min=1))).sum(1)
    error: Tensor = gap.abs().sum() / _UNIT / (total * _GROUPS)
    return error


class SegmentationCalibration(PooledMetric):
    """Is a segmentation as often right as it is sure?

    The confidence at a pixel is the largest class probability, the background's too. ``compute``
    returns :func:`calibration_error` ``ece_reference``, of the fused probabilities against the
    reference, and ``ece_annotators``, of the average of all annotators' (or samples') probabilities
    against every label of every annotator, each label a case. In [0, 1], 0 is best.
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(ece_reference=confidence_bins(), ece_annotators=confidence_bins())

    def update(
        self,
        *,
        probs: Tensor,
        annotator_probs: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        if reference is None:
            reference = torch.full_like(masks[:, 0], IGNORE_INDEX)
        check_inputs(
            ("probs", probs, "BCHW"),
            ("annotator_probs", annotator_probs, "BSCHW"),
            ("masks", masks, "BNHW"),
            ("reference", reference, "BHW"),
        )
        confidence, prediction = probs.max(1)
        hits, cases = prediction == reference, reference != IGNORE_INDEX
        self.add(ece_reference=histogram(confidence, hits, cases))
        # One case for each annotator who labelled the pixel, all with the pixel's confidence.
        confidence, prediction = annotator_probs.mean(1, dtype=torch.float32).max(1)
        labelled = labelled_pixels(masks, present)
        hits = labelled & (masks == prediction.unsqueeze(1))
        self.add(ece_annotators=histogram(confidence, hits.sum(1), labelled.sum(1)))

    def compute(self) -> dict[str, Tensor]:
        """Group the bins to equal mass."""
        return {key: calibration_error(bins) for key, bins in self.sums.items()}
