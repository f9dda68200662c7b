"""Is a confidence as often right as it is large?"""

from __future__ import annotations

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import check_inputs, labelled_pixels
from tax_lightning.metrics.pooled import PooledMetric

_GROUPS = 15
_BINS = 1000  # of equal width, from which the groups of equal mass are made
_UNIT = 2**24  # confidences are summed as whole multiples of 1 / this, exactly and in any order


def bins() -> Tensor:
    """Start of a histogram of confidences."""
    return torch.zeros(_BINS, dtype=torch.long)


def histogram(confidence: Tensor, hits: Tensor, cases: Tensor) -> tuple[Tensor, Tensor]:
    """Count cases by their confidence, in numbers that add up exactly.

    Args:
        confidence: In [0, 1], of any shape.
        hits: How many of the cases with this confidence are right, boolean or integer.
        cases: How many there are, boolean or integer; where there is none, the rest is not read.

    Returns:
        Number of cases ``[1000]`` and sum of (hit - confidence) ``[1000]`` for each bin of
        confidence, the second in units of 2^-24; both are whole numbers.

    Example:
        >>> confidence = torch.tensor([0.25, 0.25, 0.75])
        >>> counts, gaps = histogram(confidence, confidence < 0.5, torch.ones(3))
        >>> counts[[250, 750]].tolist(), (gaps[[250, 750]] / 2**24).tolist()
        ([2, 1], [1.5, -0.75])
    """
    cases = cases.flatten().long()
    confidence = torch.where(cases > 0, confidence.float().flatten(), 0)
    gaps = hits.flatten() * cases.sign() * _UNIT - cases * (confidence * _UNIT).round().long()
    index = (confidence * _BINS).long().clamp(0, _BINS - 1)
    empty = torch.zeros(_BINS, dtype=torch.long, device=index.device)
    return empty.index_add(0, index, cases), empty.index_add(0, index, gaps)


def calibration_error(counts: Tensor, gaps: Tensor) -> Tensor:
    """Mean of |accuracy - confidence| over 15 groups of equal mass.

    A bin that lies on the border of two groups is split between them by mass. So confidences less
    than 1/1000 apart count as equal, equal ones are in no order, and a group may hold a part of a
    case.

    Args:
        counts: Number of cases in each bin, see :func:`histogram`.
        gaps: Sum of (hit - confidence) in each bin, see :func:`histogram`.

    Returns:
        A scalar in [0, 1], 0 is best; NaN without a case.

    Example:
        >>> confidence, hits = torch.tensor([0.5, 0.5, 0.75]), torch.tensor([1, 0, 1])
        >>> calibration_error(*histogram(confidence, hits, torch.ones(3)))
        tensor(0.0833)

    Source:
        K. Nguyen, B. O'Connor, "Posterior calibration and exploratory analysis for natural language
        processing models", 2015.
    """
    total = counts.sum()
    # In fifteenths of a case, so that borders are whole numbers.
    end = counts.cumsum(0) * _GROUPS
    border = torch.arange(_GROUPS + 1, device=counts.device).unsqueeze(1) * total
    shared = torch.minimum(end, border[1:]) - torch.maximum(end - counts * _GROUPS, border[:-1])
    gap = (shared.clamp(min=0) * (gaps / counts.clamp(min=1))).sum(1)
    error: Tensor = gap.abs().sum() / _UNIT / (total * _GROUPS)
    return error


def _sums(
    probs: Tensor, annotator_probs: Tensor, masks: Tensor, present: Tensor, reference: Tensor | None
) -> dict[str, Tensor]:
    """Histograms of the fused prediction and of the average one."""
    check_inputs(
        ("probs", probs, "BCHW"),
        ("annotator_probs", annotator_probs, "BSCHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    if reference is None:
        reference = torch.full_like(masks[:, 0], IGNORE_INDEX)
    check_inputs(("probs", probs, "BCHW"), ("reference", reference, "BHW"))
    confidence, prediction = probs.max(1)
    reference_counts, reference_gaps = histogram(
        confidence, prediction == reference, reference != IGNORE_INDEX
    )
    # One case for each annotator who labelled the pixel, all with the pixel's confidence.
    confidence, prediction = annotator_probs.mean(1, dtype=torch.float32).max(1)
    labelled = labelled_pixels(masks, present)
    hits = labelled & (masks == prediction.unsqueeze(1))
    annotators_counts, annotators_gaps = histogram(confidence, hits.sum(1), labelled.sum(1))
    return {
        "reference_counts": reference_counts,
        "reference_gaps": reference_gaps,
        "annotators_counts": annotators_counts,
        "annotators_gaps": annotators_gaps,
    }


def _errors(
    reference_counts: Tensor,
    reference_gaps: Tensor,
    annotators_counts: Tensor,
    annotators_gaps: Tensor,
) -> dict[str, Tensor]:
    """Results of :func:`segmentation_calibration` from its sums."""
    return {
        "ece_reference": calibration_error(reference_counts, reference_gaps),
        "ece_annotators": calibration_error(annotators_counts, annotators_gaps),
    }


def segmentation_calibration(
    probs: Tensor,
    annotator_probs: Tensor,
    masks: Tensor,
    present: Tensor,
    reference: Tensor | None = None,
) -> dict[str, Tensor]:
    """Expected calibration error of the segmentation, for the reference and for the annotators.

    The confidence at a pixel is the largest class probability, the background's too, and it is
    right where its class is the label. The error is the mean of ``|accuracy - confidence|`` over 15
    groups of equal mass, made from 1000 bins of equal width; see :func:`calibration_error` for what
    that resolves.

    Args:
        probs: Fused class probabilities ``[B, C, H, W]``.
        annotator_probs: Class probabilities of each prediction ``[B, S, C, H, W]``: those of the N
            annotators, or of any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.

    Returns:
        ``ece_reference``, of the fused probabilities against the reference; ``ece_annotators``, of
        the average of all predictions' probabilities against every label of every annotator, each
        label a case. Both in [0, 1], 0 is best; NaN where nothing is labelled.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> probs = torch.tensor([[[[0.25, 0.25]], [[0.75, 0.75]]]])
        >>> segmentation_calibration(
        ...     probs,
        ...     annotator_probs=probs.unsqueeze(1),
        ...     masks=torch.tensor([[[[1, 1]], [[1, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1, 1]]]),
        ... )  # right every time, and three times out of four
        {'ece_reference': tensor(0.2500), 'ece_annotators': tensor(0.)}

    Source:
        M. P. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", 2015;
        groups of equal mass: K. Nguyen, B. O'Connor, "Posterior calibration and exploratory
        analysis for natural language processing models", 2015.
    """
    return _errors(**_sums(probs, annotator_probs, masks, present, reference))


class SegmentationCalibration(PooledMetric):
    """Expected calibration error of the segmentation, for the reference and for the annotators.

    Pools the pixels of all images, in memory that does not grow with them and in whole numbers, so
    that any number of processes gives exactly what one gives; see :func:`segmentation_calibration`.

    ``update`` takes ``probs`` ``[B, C, H, W]``, ``annotator_probs`` ``[B, S, C, H, W]``, ``masks``
    ``[B, N, H, W]`` (255 where not labelled), ``present`` (boolean ``[B, N]``) and ``reference``
    ``[B, H, W]`` (255 where unknown); without a reference a batch adds nothing to
    ``ece_reference``. ``compute`` returns ``{"ece_reference", "ece_annotators"}``, in [0, 1], 0 is
    best; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> metric = SegmentationCalibration()
        >>> probs = torch.tensor([[[[0.25, 0.25]], [[0.75, 0.75]]]])
        >>> metric.update(
        ...     probs=probs,
        ...     annotator_probs=probs.unsqueeze(1),
        ...     masks=torch.tensor([[[[1, 1]], [[1, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1, 1]]]),
        ... )
        >>> metric.compute()
        {'ece_reference': tensor(0.2500), 'ece_annotators': tensor(0.)}
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(
            reference_counts=bins(),
            reference_gaps=bins(),
            annotators_counts=bins(),
            annotators_gaps=bins(),
        )

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
        self.add(**_sums(probs, annotator_probs, masks, present, reference))

    def compute(self) -> dict[str, Tensor]:
        """Group the bins to equal mass."""
        return _errors(**self.sums)
