"""Metrics of multi-annotator segmentation: how well, and whether the explanation is right.

Every metric is a :class:`torchmetrics.Metric` with states that add up, so that any number of
processes with any number of images each gives the result of one process. Every metric but
:class:`GeneralizedEnergyDistance` returns a dict, whose keys name annotators and classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchmetrics import Metric, MetricCollection

from tax_lightning.metrics.belief import (
    AgreementLift,
    WhoCalibration,
    WhoEntropy,
    agreement_lift,
    who_calibration,
    who_entropy,
)
from tax_lightning.metrics.calibration import SegmentationCalibration, segmentation_calibration
from tax_lightning.metrics.consistency import ConsistencyError, consistency_error
from tax_lightning.metrics.correlation import (
    NormalizedCrossCorrelation,
    normalized_cross_correlation,
)
from tax_lightning.metrics.distance import GeneralizedEnergyDistance, generalized_energy_distance
from tax_lightning.metrics.explanation import EvidenceMetrics, ExplanationMetrics
from tax_lightning.metrics.overlap import AnnotatorDice, FusedOverlap, annotator_dice, fused_dice
from tax_lightning.metrics.probes import (
    patch_insertion,
    prototype_integrity,
    source_integrity,
    stability,
)
from tax_lightning.metrics.purity import (
    Purity,
    attribute_information,
    events,
    prototype_consistency,
    prototype_purity,
)
from tax_lightning.metrics.removal import Removal, removal_effects
from tax_lightning.metrics.sets import (
    MatchedDice,
    MaxDice,
    SoftDice,
    matched_dice,
    max_dice,
    soft_dice,
)
from tax_lightning.metrics.tendency import RelativeArea, relative_area
from tax_lightning.metrics.usage import (
    AssignmentUsage,
    PrototypeUsage,
    assignment_information,
    prototype_max_cosine,
    prototype_usage,
    pruned_share,
)
from tax_lightning.metrics.who import (
    ExpertAccuracy,
    WhoAccuracy,
    disagreement,
    expert_accuracy,
    who_accuracy,
)
from tax_lightning.metrics.why import WhyFaithfulness, why_faithfulness

__all__ = [
    "AgreementLift",
    "AnnotatorDice",
    "AssignmentUsage",
    "ConsistencyError",
    "EvidenceMetrics",
    "ExpertAccuracy",
    "ExplanationMetrics",
    "FusedOverlap",
    "GeneralizedEnergyDistance",
    "MatchedDice",
    "MaxDice",
    "NormalizedCrossCorrelation",
    "PrototypeUsage",
    "Purity",
    "RelativeArea",
    "Removal",
    "SegmentationCalibration",
    "SoftDice",
    "WhoAccuracy",
    "WhoCalibration",
    "WhoEntropy",
    "WhyFaithfulness",
    "agreement_lift",
    "annotator_dice",
    "assignment_information",
    "attribute_information",
    "consistency_error",
    "disagreement",
    "events",
    "expert_accuracy",
    "fused_dice",
    "generalized_energy_distance",
    "matched_dice",
    "max_dice",
    "normalized_cross_correlation",
    "patch_insertion",
    "prototype_consistency",
    "prototype_integrity",
    "prototype_max_cosine",
    "prototype_purity",
    "prototype_usage",
    "pruned_share",
    "relative_area",
    "removal_effects",
    "segmentation_calibration",
    "segmentation_metrics",
    "set_metrics",
    "soft_dice",
    "source_integrity",
    "stability",
    "who_accuracy",
    "who_calibration",
    "who_entropy",
    "why_faithfulness",
]


def segmentation_metrics(
    annotators: Sequence[str],
    classes: Sequence[str],
    kernels: int | None = None,
    who: bool = True,
    named: bool = True,
) -> MetricCollection:
    """All metrics of a multi-annotator segmentation, as one collection.

    Update it with one call of all keywords; each metric takes those it knows: ``prediction``
    ``[B, H, W]``, ``annotator_prediction`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]``,
    ``present`` ``[B, N]``, ``who`` ``[B, N, H, W]``, ``within`` ``[B, N, K, H, W]``, and, where the
    data have them, ``reference`` and ``expert`` ``[B, H, W]``. ``compute`` returns one flat
    dict of scalars; a value without a single case, such as that of a reference that the data lack,
    is NaN.

    Args:
        annotators: Names, in the order of the N axis.
        classes: Names, where the index is the class id and 0 is the background.
        kernels: Number K of kernels of an annotator; ``None`` for a model without any.
        who: Whether the model says who decides.
        named: Whether the model says which annotator would draw what; of one that does not,
            ``annotator_prediction`` are any number of samples.

    Returns:
        The collection; ``clone(prefix="val/")`` puts a prefix before every key.

    Raises:
        ValueError: If names repeat, or if there are too few annotators, classes or kernels.

    Example:
        >>> metrics = segmentation_metrics(["Ada", "Ben"], ["background", "cup"], kernels=4)
        >>> sorted(metrics)[:4]
        ['annotator_dice', 'fused_overlap', 'ged2', 'expert_accuracy']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "fused_overlap": FusedOverlap(classes),
        "ged2": GeneralizedEnergyDistance(len(classes)),
    }
    if named:
        metrics["annotator_dice"] = AnnotatorDice(annotators, classes)
        metrics["relative_area"] = RelativeArea(annotators)
    if who:
        metrics["who_accuracy"] = WhoAccuracy()
        metrics["expert_accuracy"] = ExpertAccuracy()
    if kernels is not None:
        metrics["prototype_usage"] = PrototypeUsage(annotators, kernels)
    # Compute groups are off: the collection would find them by comparing states after the first
    # batch, and metrics that have seen no case yet are alike without measuring the same.
    return MetricCollection(metrics, compute_groups=False)


def set_metrics(
    annotators: Sequence[str], classes: Sequence[str], *, paired: bool = True
) -> MetricCollection:
    """All metrics of the agreement with annotators, for any model that predicts segmentations.

    Those of them that :func:`segmentation_metrics` has are here under the same keys. Update it with
    one call of all keywords; each metric takes those it knows: ``prediction`` ``[B, H, W]`` and
    ``probs`` ``[B, C, H, W]``, the fused ones; ``annotator_prediction`` ``[B, S, H, W]`` and
    ``annotator_probs`` ``[B, S, C, H, W]``, those of the N annotators or of any number of samples;
    ``masks`` ``[B, N, H, W]``, ``present`` ``[B, N]``, and, where the data have it, ``reference``
    ``[B, H, W]``. ``compute`` returns one flat dict of scalars; a value without a single case is
    NaN.

    Args:
        annotators: Names, in the order of the N axis.
        classes: Names, where the index is the class id and 0 is the background.
        paired: Whether the n-th prediction is that of the n-th annotator. With ``False``, as for
            the samples of a probabilistic model, the metrics that compare the two by identity,
            ``annotator_dice`` and ``consistency_error``, are left out.

    Returns:
        The collection; ``clone(prefix="test/")`` puts a prefix before every key.

    Raises:
        ValueError: If names repeat, or if there are too few annotators or classes.

    Example:
        >>> sorted(set_metrics(["Ada", "Ben"], ["background", "cup"], paired=False))
        ['calibration', 'dice_match', 'dice_max', 'dice_soft', 'fused_overlap', 'ged2', 'ncc']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "fused_overlap": FusedOverlap(classes),
        "ged2": GeneralizedEnergyDistance(len(classes)),
        "dice_soft": SoftDice(classes),
        "dice_max": MaxDice(len(classes)),
        "dice_match": MatchedDice(len(classes)),
        "ncc": NormalizedCrossCorrelation(),
        "calibration": SegmentationCalibration(),
    }
    if paired:
        metrics["annotator_dice"] = AnnotatorDice(annotators, classes)
        metrics["consistency_error"] = ConsistencyError(annotators, classes)
    return MetricCollection(metrics, compute_groups=False)
