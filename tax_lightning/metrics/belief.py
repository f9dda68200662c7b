"""Are the annotators' shares to be believed, not their leader only?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.calibration import bins, calibration_error, histogram
from tax_lightning.metrics.inputs import check_inputs, labelled_pixels, named_annotator, sum_where
from tax_lightning.metrics.pooled import PooledMetric, count, total
from tax_lightning.metrics.who import disagreement, expert_pixels, labelled_and_right


def _shares(who: Tensor, labelled: Tensor) -> Tensor:
    """Shares in single precision if only those who labelled a pixel took part ``[B, N, H, W]``.

    They are equal where those who labelled have no share at all, and 0 where nobody labelled.
    """
    left = who.float().masked_fill(~labelled, 0)
    left = torch.where(left.sum(1, keepdim=True) > 0, left, labelled.float())
    return left / left.sum(1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)


def _lift_sums(who: Tensor, masks: Tensor, present: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Pixels where the named annotator is right, sum of the shares who are, number of pixels."""
    labelled, right = labelled_and_right(who, masks, present, reference)
    cases = disagreement(masks, present) & (reference != IGNORE_INDEX)
    hits = right.gather(1, named_annotator(who, labelled)).squeeze(1)
    average = right.sum(1) / labelled.sum(1)
    return {
        "hits": (hits & cases).sum(),
        "average": sum_where(average, cases),
        "pixels": cases.sum(),
    }


def _lift(hits: Tensor, average: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Result of :func:`agreement_lift` from its sums."""
    mean = average / pixels
    return {"who_agreement_lift": (hits / pixels - mean) / (1 - mean)}


def agreement_lift(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor
) -> dict[str, Tensor]:
    """How much more often the named annotator is right than the average one, where they disagree.

    (P(named is right) - P(average is right)) / (1 - P(average is right)) over the pixels where
    annotators disagree and the reference is known. Both the annotator named, who has the largest
    share, and the average are among those who labelled the pixel.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.

    Returns:
        ``who_agreement_lift``, at most 1, where the named annotator is always right; 0 where he is
        right as often as the average; negative where less often. NaN where no pixel counts; with
        a pixel the divisor is never 0, for of those who disagree one at least is wrong.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> agreement_lift(
        ...     who=torch.tensor([[[[0.9, 0.8]], [[0.1, 0.1]], [[0.0, 0.1]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True, True]]),
        ...     reference=torch.tensor([[[1, 0]]]),
        ... )  # one of two pixels is right, and on average one of three annotators
        {'who_agreement_lift': tensor(0.2500)}
    """
    return _lift(**_lift_sums(who, masks, present, reference))


def _calibration_sums(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor, expert: Tensor | None
) -> dict[str, Tensor]:
    """Histograms over D1 and over the owned pixels; sums of NLL and Brier score, their pixels."""
    labelled, right = labelled_and_right(who, masks, present, reference)
    how_many = right.sum(1)
    disputed = disagreement(masks, present)
    shares = _shares(who, labelled)
    named = named_annotator(who, labelled)
    confidence = shares.gather(1, named).squeeze(1)
    d1_counts, d1_gaps = histogram(
        confidence, right.gather(1, named).squeeze(1), disputed & (how_many == 1)
    )

    if expert is None:
        cases, hits = torch.zeros_like(disputed), disputed
    else:
        cases, index = expert_pixels(labelled, disputed, reference, expert)
        hits = (named == index).squeeze(1)
    expert_counts, expert_gaps = histogram(confidence, hits, cases)

    cases = disputed & (how_many > 0)
    target = right / how_many.unsqueeze(1)  # NaN where nobody is right, which is no case
    nll = -(target * shares.clamp(min=torch.finfo(shares.dtype).eps).log()).sum(1)
    brier = (shares - target).square().sum(1)
    return {
        "d1_counts": d1_counts,
        "d1_gaps": d1_gaps,
        "expert_counts": expert_counts,
        "expert_gaps": expert_gaps,
        "nll": sum_where(nll, cases),
        "brier": sum_where(brier, cases),
        "pixels": cases.sum(),
    }


def _calibration_means(
    d1_counts: Tensor,
    d1_gaps: Tensor,
    expert_counts: Tensor,
    expert_gaps: Tensor,
    nll: Tensor,
    brier: Tensor,
    pixels: Tensor,
) -> dict[str, Tensor]:
    """Results of :func:`who_calibration` from its sums."""
    return {
        "who_ece_d1": calibration_error(d1_counts, d1_gaps),
        "who_ece_expert": calibration_error(expert_counts, expert_gaps),
        "who_nll": nll / pixels,
        "who_brier": brier / pixels,
    }


def who_calibration(
    who: Tensor,
    masks: Tensor,
    present: Tensor,
    reference: Tensor,
    expert: Tensor | None = None,
) -> dict[str, Tensor]:
    """Is the largest share as often right as it is large, and how far are shares from the truth?

    Shares are taken among those who labelled the pixel, so that they sum to 1 over these (equal
    ones, where none of these has a share). The confidence is the largest of them.

    The calibration error is the mean of ``|accuracy - confidence|`` over 15 groups of equal mass,
    made from 1000 bins of equal width, so that memory does not grow with the data; see
    :func:`.calibration_error` for what that resolves.

    The truth that all shares are held against is q: equal among those who gave the reference's
    label and 0 for the others, at the pixels where annotators disagree and at least one is right.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.
        expert: Index of the expert at each pixel ``[B, H, W]``, 255 where there is none; for
            synthetic data.

    Returns:
        ``who_ece_d1``, calibration error for being the annotator that is right, where exactly one
        is (the cases of :func:`.who_accuracy`); ``who_ece_expert``, the same for being the pixel's
        expert (the cases of :func:`.expert_accuracy`); both in [0, 1], 0 is best. ``who_nll``,
        -sum_n q_n log share_n in nats, where a share less than 1.2e-7 counts as that much, in
        [0, 16); ``who_brier``, sum_n (share_n - q_n)^2, in [0, 2]. NaN where no pixel counts.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> result = who_calibration(
        ...     who=torch.tensor([[[[0.8, 0.8]], [[0.2, 0.2]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1, 0]]]),
        ... )
        >>> {name: round(float(value), 3) for name, value in result.items()}
        {'who_ece_d1': 0.3, 'who_ece_expert': nan, 'who_nll': 0.916, 'who_brier': 0.68}
    """
    return _calibration_means(**_calibration_sums(who, masks, present, reference, expert))


def _entropy_sums(who: Tensor, masks: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Sum of entropies and number of pixels, disputed and then unanimous."""
    check_inputs(("who", who, "BNHW"), ("masks", masks, "BNHW"), ("present", present, "BN"))
    entropy = torch.special.entr(who.float()).sum(1) / math.log(max(2, who.shape[1]))
    disputed = disagreement(masks, present)
    unanimous = ~disputed & (labelled_pixels(masks, present).sum(1) >= 2)
    return {
        "disputed": sum_where(entropy, disputed),
        "disputed_pixels": disputed.sum(),
        "unanimous": sum_where(entropy, unanimous),
        "unanimous_pixels": unanimous.sum(),
    }


def _entropy_means(
    disputed: Tensor, disputed_pixels: Tensor, unanimous: Tensor, unanimous_pixels: Tensor
) -> dict[str, Tensor]:
    """Results of :func:`who_entropy` from its sums."""
    return {
        "who_entropy_disputed": disputed / disputed_pixels,
        "who_entropy_unanimous": unanimous / unanimous_pixels,
    }


def who_entropy(who: Tensor, masks: Tensor, present: Tensor) -> dict[str, Tensor]:
    """How unanimous the shares are, where annotators disagree and where they are unanimous.

    H(w) / log N of the shares of all N annotators, in [0, 1]: 0 where one has it all, 1 where all
    have the same share. Shares can tell annotators apart only where these disagree.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        ``who_entropy_disputed``, mean over the pixels whose labels differ;
        ``who_entropy_unanimous``, mean over those which at least two annotators labelled, all
        alike. NaN where there is no such pixel, so always with a single annotator.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> who_entropy(
        ...     who=torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 1]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        {'who_entropy_disputed': tensor(0.), 'who_entropy_unanimous': tensor(1.)}
    """
    return _entropy_means(**_entropy_sums(who, masks, present))


class AgreementLift(PooledMetric):
    """How much more often is the named annotator right than the average one?

    Pools the pixels of all images; see :func:`agreement_lift`.

    ``update`` takes ``who`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255 where not labelled),
    ``present`` (boolean ``[B, N]``) and ``reference`` ``[B, H, W]`` (255 where unknown); without a
    reference a batch adds nothing. ``compute`` returns ``{"who_agreement_lift"}``, at most 1; NaN
    without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = AgreementLift()
        >>> metric.update(
        ...     who=torch.tensor([[[[0.9, 0.8]], [[0.1, 0.1]], [[0.0, 0.1]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True, True]]),
        ...     reference=torch.tensor([[[1, 0]]]),
        ... )
        >>> metric.compute()
        {'who_agreement_lift': tensor(0.2500)}
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(hits=count(), average=total(), pixels=count())

    def update(
        self, *, who: Tensor, masks: Tensor, present: Tensor, reference: Tensor | None = None
    ) -> None:
        """Add one batch; nothing where it has no reference."""
        if reference is not None:
            self.add(**_lift_sums(who, masks, present, reference))

    def compute(self) -> dict[str, Tensor]:
        """Compare the two averages over the disputed pixels."""
        return _lift(**self.sums)


class WhoCalibration(PooledMetric):
    """Is the largest share as often right as it is large, and how far are shares from the truth?

    Pools the pixels of all images, in memory that does not grow with them; see
    :func:`who_calibration`.

    ``update`` takes ``who`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255 where not labelled),
    ``present`` (boolean ``[B, N]``), ``reference`` ``[B, H, W]`` (255 where unknown) and ``expert``
    ``[B, H, W]`` (255 where there is none); without a reference a batch adds nothing, and without
    an expert nothing to ``who_ece_expert``. ``compute`` returns ``{"who_ece_d1", "who_ece_expert",
    "who_nll", "who_brier"}``, 0 at best; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = WhoCalibration()
        >>> metric.update(
        ...     who=torch.tensor([[[[0.75]], [[0.25]]]]),
        ...     masks=torch.tensor([[[[1]], [[0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1]]]),
        ...     expert=torch.tensor([[[1]]]),
        ... )
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'who_ece_d1': 0.25, 'who_ece_expert': 0.75, 'who_nll': 0.288, 'who_brier': 0.125}
    """

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(
            d1_counts=bins(),
            d1_gaps=bins(),
            expert_counts=bins(),
            expert_gaps=bins(),
            nll=total(),
            brier=total(),
            pixels=count(),
        )

    def update(
        self,
        *,
        who: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None = None,
        expert: Tensor | None = None,
    ) -> None:
        """Add one batch; nothing where it has no reference."""
        if reference is not None:
            self.add(**_calibration_sums(who, masks, present, reference, expert))

    def compute(self) -> dict[str, Tensor]:
        """Group the bins to equal mass, and average over the pixels."""
        return _calibration_means(**self.sums)


class WhoEntropy(PooledMetric):
    """How unanimous are the shares, where annotators disagree and where they are unanimous?

    Pools the pixels of all images; see :func:`who_entropy`.

    ``update`` takes ``who`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255 where not labelled)
    and ``present`` (boolean ``[B, N]``). ``compute`` returns ``{"who_entropy_disputed",
    "who_entropy_unanimous"}``, in [0, 1]; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = WhoEntropy()
        >>> metric.update(
        ...     who=torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 1]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> metric.compute()
        {'who_entropy_disputed': tensor(0.), 'who_entropy_unanimous': tensor(1.)}
    """

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__(
            disputed=total(),
            disputed_pixels=count(),
            unanimous=total(),
            unanimous_pixels=count(),
        )

    def update(self, *, who: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        self.add(**_entropy_sums(who, masks, present))

    def compute(self) -> dict[str, Tensor]:
        """Average over the pixels of each kind."""
        return _entropy_means(**self.sums)
