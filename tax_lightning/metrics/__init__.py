"""Metrics of multi-annotator segmentation: how well, and whether the explanation is right.

Every metric is a :class:`torchmetrics.Metric` with states that add up, so that any number of
processes with any number of images each gives the result of one process. Each returns a dict, whose
keys name annotators and classes; a value without a single case is NaN. Arguments mean the same in
all of them, and a ValueError says which does not fit:

- ``annotators``: names, in the order of the N axis; ``classes``: names, in the order of class ids,
  where 0 is the background; ``num_classes``: their number C, with the background;
- ``masks``: class ids given by each annotator ``[B, N, H, W]``, 255 where not labelled;
  ``present``: which annotators labelled the image, boolean ``[B, N]``;
- ``reference``: true class ids ``[B, H, W]``, 255 where unknown; ``expert``: index of the expert at
  each pixel ``[B, H, W]``, 255 where there is none, known for synthetic data only. Either may be
  None;
- ``prediction`` ``[B, H, W]`` and ``probs`` ``[B, C, H, W]``: class ids and probabilities of the
  fused segmentation; ``annotator_prediction`` ``[B, N, H, W]`` and ``annotator_probs``
  ``[B, N, C, H, W]``: of each annotator, or of any number of samples instead;
- ``who`` ``[B, N, H, W]``: weight of each annotator in the result, sums to 1 over N.
"""

from collections.abc import Sequence

from torchmetrics import Metric, MetricCollection

from tax_lightning.metrics.dispute import Dispute, Votes
from tax_lightning.metrics.explanation import ExplanationMetrics, PrototypesInUse, WhoMetrics
from tax_lightning.metrics.segmentation import (
    AnnotatorDice,
    FusedOverlap,
    RelativeArea,
    SegmentationCalibration,
    annotator_dice,
    fused_dice,
)
from tax_lightning.metrics.sets import (
    GeneralizedEnergyDistance,
    MatchedDice,
    SetDice,
    generalized_energy_distance,
    matched_dice,
)
from tax_lightning.metrics.tendencies import Tendencies
from tax_lightning.metrics.who import AnnotatorShares, TrustScore, WhoAccuracy

__all__ = [
    "AnnotatorDice",
    "AnnotatorShares",
    "Dispute",
    "ExplanationMetrics",
    "FusedOverlap",
    "GeneralizedEnergyDistance",
    "MatchedDice",
    "PrototypesInUse",
    "RelativeArea",
    "SegmentationCalibration",
    "SetDice",
    "Tendencies",
    "TrustScore",
    "Votes",
    "WhoAccuracy",
    "WhoMetrics",
    "annotator_dice",
    "fused_dice",
    "generalized_energy_distance",
    "matched_dice",
    "sample_metrics",
    "segmentation_metrics",
]


def segmentation_metrics(
    annotators: Sequence[str],
    classes: Sequence[str],
    kernels: int | None = None,
    *,
    who: bool = True,
    named: bool = True,
    sets: bool = False,
) -> MetricCollection:
    """All metrics of a multi-annotator segmentation, as one collection.

    Update it with one call of all keywords; each metric takes those it knows. Its
    ``clone(prefix="val/")`` puts a prefix before every key.

    Args:
        annotators: Names.
        classes: Names.
        kernels: Number K of kernels of an annotator; ``None`` for a model without any.
        who: Whether the model says who decides.
        named: Whether the model says which annotator would draw what; of one that does not, such as
            a probabilistic model, ``annotator_prediction`` are any number of samples.
        sets: Whether to add those of a test, which take longer: Dice of sets, calibration, dispute
            and votes.

    Example:
        >>> metrics = segmentation_metrics(["Ada", "Ben"], ["background", "cup"], kernels=4)
        >>> sorted(metrics)[:4]
        ['annotator_dice', 'fused_overlap', 'ged2', 'prototypes_in_use']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "fused_overlap": FusedOverlap(classes),
        "ged2": GeneralizedEnergyDistance(classes),
    }
    if named:
        metrics["annotator_dice"] = AnnotatorDice(annotators, classes)
        metrics["relative_area"] = RelativeArea(annotators)
    if who:
        metrics["who_accuracy"] = WhoAccuracy()
    if kernels is not None:
        metrics["prototypes_in_use"] = PrototypesInUse(len(annotators), kernels)
    if sets:
        metrics["set_dice"] = SetDice(classes)
        metrics["calibration"] = SegmentationCalibration()
        if named:
            metrics["dispute"] = Dispute()
            metrics["votes"] = Votes(len(annotators), len(classes))
        if named and who:
            metrics["shares"] = AnnotatorShares(annotators)
    # Compute groups are off: the collection would find them by comparing states after the first
    # batch, and metrics that have seen no case yet are alike without measuring the same.
    return MetricCollection(metrics, compute_groups=False)


def sample_metrics(classes: Sequence[str]) -> MetricCollection:
    """Metrics of a set of sampled segmentations, under names that begin with ``samples/``.

    Example:
        >>> sorted(sample_metrics(["background", "cup"]).keys())
        ['samples/dice_match', 'samples/ged2']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "ged2": GeneralizedEnergyDistance(classes),
        "dice_match": MatchedDice(classes),
    }
    return MetricCollection(metrics, prefix="samples/", compute_groups=False)
