"""Who decides: does the model name the right annotator where annotators disagree?

The annotator named at a pixel is the one with the largest share among those who labelled it. All
metrics pool the pixels of all images, and are NaN without a case. Arguments of ``update``:

- ``who``: share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N;
- ``masks``: class ids ``[B, N, H, W]``, 255 where not labelled; ``present``: boolean ``[B, N]``;
- ``reference``: true class ids ``[B, H, W]``, 255 where unknown, or None;
- ``expert``: index of the expert at each pixel ``[B, H, W]``, 255 where there is none, or None; it
  is known for synthetic data only.

All raise a ValueError if tensors do not fit one another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import (
    Averages,
    PooledMetric,
    check_count,
    check_inputs,
    labelled_pixels,
)
from tax_lightning.metrics.segmentation import CalibrationErrors, histogram
from tax_lightning.models.mixture import among, mix

# Shares crowd near 0 and 1, where bins of equal width would make ties of most. Their logits spread,
# and in single precision those of the shares above 1/2 all lie below 16.
_LOGIT_LIMIT = 16
_BINS_PER_LOGIT = 32
_BINS = 2 * _LOGIT_LIMIT * _BINS_PER_LOGIT


def disagreement(masks: Tensor, present: Tensor) -> Tensor:
    """Find the pixels where at least two annotators gave different labels.

    Args:
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Boolean ``[B, H, W]``; false where fewer than two annotators gave a label.

    Example:
        >>> masks = torch.tensor([[[[0, 1, 1]], [[0, 0, 255]]]])
        >>> disagreement(masks, torch.tensor([[True, True]])).tolist()
        [[[False, True, False]]]
    """
    check_inputs(("masks", masks, "BNHW"), ("present", present, "BN"))
    labelled = labelled_pixels(masks, present)
    highest = masks.masked_fill(~labelled, -1).amax(1)
    lowest = masks.masked_fill(~labelled, IGNORE_INDEX).amin(1)
    return highest > lowest


class _Pixels(NamedTuple):
    """What the labels of a batch say of each pixel, and whom the model names there."""

    labelled: Tensor  # who gave a label, boolean [B, N, H, W]
    right: Tensor  # who gave that of the reference, boolean [B, N, H, W]
    named: Tensor  # index of the annotator named [B, 1, H, W]
    hit: Tensor  # whether that annotator is right, boolean [B, H, W]
    known: Tensor  # disputed pixels whose reference is known, boolean [B, H, W]
    only_one: Tensor  # of these, where exactly one annotator is right
    by_expert: Tensor  # of these, those that their expert labelled
    expert: Tensor  # index of the expert [B, 1, H, W], 0 where there is none


def _pixels(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor | None, expert: Tensor | None
) -> _Pixels:
    unknown = torch.full_like(masks[:, 0], IGNORE_INDEX)
    reference = unknown if reference is None else reference
    expert = unknown if expert is None else expert
    maps = ("masks", masks, "BNHW"), ("reference", reference, "BHW"), ("expert", expert, "BHW")
    check_inputs(("who", who, "BNHW"), *maps)
    disputed, labelled = disagreement(masks, present), labelled_pixels(masks, present)
    known = disputed & (reference != IGNORE_INDEX)
    right = labelled & (masks == reference.unsqueeze(1))
    named = who.masked_fill(~labelled, -torch.inf).argmax(1, keepdim=True)
    index = expert.masked_fill(expert == IGNORE_INDEX, 0).unsqueeze(1)
    return _Pixels(
        labelled=labelled,
        right=right,
        named=named,
        hit=right.gather(1, named).squeeze(1),
        known=known,
        only_one=known & (right.sum(1) == 1),
        by_expert=known & (expert != IGNORE_INDEX) & labelled.gather(1, index).squeeze(1),
        expert=index,
    )


class WhoAccuracy(Averages):
    """Does the model name the annotator who is right, and the expert?

    ``compute`` returns

    - over D1, the pixels where annotators disagree and exactly one gave the reference's label:
      ``who_accuracy_d1``, how often the model names that one, and ``who_chance_d1``, how often a
      blind guess among those who labelled the pixel would;
    - over the disputed pixels whose reference is known: ``who_agreement_lift``, (P(named is right)
      - P(average is right)) / (1 - P(average is right)), the average over those who labelled the
      pixel; 1 where the named annotator is always right, 0 where as often as the average one;
    - over those of them that their expert labelled: ``who_accuracy_expert``, how often the model
      names the expert; ``who_chance_expert``, how often a blind guess would; ``who_ceiling_expert``,
      how often a guess among those who are right would (0 at a pixel whose expert is not); and
      ``majority_overrules_expert``, how often the other annotators' labels, one vote each, outvote
      the expert's (a tie counts half). The last three depend on the labels alone.

    Example:
        >>> metric = WhoAccuracy()
        >>> metric.update(
        ...     who=torch.tensor([0.7, 0.2, 0.1]).view(1, 3, 1, 1),
        ...     masks=torch.tensor([1, 1, 0]).view(1, 3, 1, 1),
        ...     present=torch.ones(1, 3, dtype=torch.bool),
        ...     reference=torch.tensor([[[1]]]),
        ...     expert=torch.tensor([[[0]]]),
        ... )
        >>> metric.compute()["who_accuracy_expert"], metric.compute()["who_ceiling_expert"]
        (tensor(1.), tensor(0.5000))
    """

    higher_is_better = True

    def __init__(self) -> None:
        expert = (f"who_{kind}_expert" for kind in ("accuracy", "ceiling", "chance"))
        d1 = "who_accuracy_d1", "who_chance_d1"
        super().__init__("named", "average", *d1, *expert, "majority_overrules_expert")

    def update(
        self,
        *,
        who: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None = None,
        expert: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        pixels = _pixels(who, masks, present, reference, expert)
        labelled, right, index = pixels.labelled, pixels.right, pixels.expert
        chance, ceiling = 1 / labelled.sum(1), right.gather(1, index).squeeze(1) / right.sum(1)
        self.add_pixels(
            (pixels.hit, pixels.known),
            (right.sum(1) / labelled.sum(1), pixels.known),
            (pixels.hit, pixels.only_one),
            (chance, pixels.only_one),
            ((pixels.named == index).squeeze(1), pixels.by_expert),
            (ceiling.nan_to_num(nan=0.0), pixels.by_expert),  # 0 / 0 where nobody is right
            (chance, pixels.by_expert),
            (_outvoted(masks, labelled, index), pixels.by_expert),
        )

    def compute(self) -> dict[str, Tensor]:
        """Average over each kind of pixels."""
        named, average, *_ = self.averages  # of those who disagree one at least is wrong: no 0 / 0
        lift = {"who_agreement_lift": (named - average) / (1 - average)}
        return lift | dict(zip(self.keys[2:], self.averages[2:].unbind(), strict=True))


def _outvoted(masks: Tensor, labelled: Tensor, index: Tensor) -> Tensor:
    """Whether the others outvote annotator ``index`` ``[B, H, W]``: 1, or 1/2 for a tie."""
    own = masks.gather(1, index)
    others = labelled.scatter(1, index, value=False)
    support = (others & (masks == own)).sum(1)
    rival = torch.zeros_like(support)
    # One annotator at a time: all pairs at once would be N times the memory of the masks.
    for theirs, voted in zip(masks.unbind(1), others.unbind(1), strict=True):
        votes = (others & (masks == theirs.unsqueeze(1))).sum(1)
        rival = torch.where(voted & (theirs != own.squeeze(1)), rival.maximum(votes), rival)
    outvoted: Tensor = (rival > support) + (rival == support) / 2
    return outvoted


class WhoCalibration(CalibrationErrors):
    """Is the largest share as often right as it is large?

    Shares are taken among those who labelled the pixel, so that they sum to 1 over these (equal
    ones, where none of these has a share). ``compute`` returns calibration errors in [0, 1], 0 is
    best: ``who_ece_d1``, for being the annotator who is right, and ``who_ece_expert``, for being
    the expert, over the same pixels as the accuracies of :class:`WhoAccuracy`.

    Example:
        >>> metric = WhoCalibration()
        >>> metric.update(
        ...     who=torch.tensor([0.75, 0.25]).view(1, 2, 1, 1),
        ...     masks=torch.tensor([1, 0]).view(1, 2, 1, 1),
        ...     present=torch.ones(1, 2, dtype=torch.bool),
        ...     reference=torch.tensor([[[1]]]),
        ...     expert=torch.tensor([[[1]]]),
        ... )
        >>> metric.compute()
        {'who_ece_d1': tensor(0.2500), 'who_ece_expert': tensor(0.7500)}
    """

    def __init__(self) -> None:
        super().__init__("who_ece_d1", "who_ece_expert")

    def update(
        self,
        *,
        who: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None = None,
        expert: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        pixels = _pixels(who, masks, present, reference, expert)
        shares = who.float().masked_fill(~pixels.labelled, 0)
        shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, pixels.labelled.float())
        total = shares.sum(1).clamp(min=torch.finfo(shares.dtype).tiny)
        confidence = shares.gather(1, pixels.named).squeeze(1) / total
        is_expert = (pixels.named == pixels.expert).squeeze(1)
        self.add(
            who_ece_d1=histogram(confidence, pixels.hit, pixels.only_one),
            who_ece_expert=histogram(confidence, is_expert, pixels.by_expert),
        )


class WhoEntropy(Averages):
    """How evenly are the shares spread, where annotators disagree and where they agree?

    H(w) / log N of the shares of all N annotators: 0 where one has it all, 1 where all have the
    same share. ``compute`` returns the means in [0, 1] ``who_entropy_disputed``, over the pixels
    whose labels differ, and ``who_entropy_unanimous``, over those which at least two annotators
    labelled, all alike. Shares can tell annotators apart only where these disagree.

    Example:
        >>> metric = WhoEntropy()
        >>> who, masks = torch.tensor([[[[1, 0.5]], [[0, 0.5]]]]), torch.tensor([[[[1, 1]], [[0, 1]]]])
        >>> metric.update(who=who, masks=masks, present=torch.ones(1, 2, dtype=torch.bool))
        >>> metric.compute()
        {'who_entropy_disputed': tensor(0.), 'who_entropy_unanimous': tensor(1.)}
    """

    def __init__(self) -> None:
        super().__init__("who_entropy_disputed", "who_entropy_unanimous")

    def update(self, *, who: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("who", who, "BNHW"), ("masks", masks, "BNHW"))
        entropy = torch.special.entr(who.float()).sum(1) / math.log(max(2, who.shape[1]))
        disputed = disagreement(masks, present)
        unanimous = ~disputed & (labelled_pixels(masks, present).sum(1) >= 2)
        self.add_pixels((entropy, disputed), (entropy, unanimous))


class Removal(PooledMetric):
    """Does the annotator named decide? Leave annotators out and see.

    Annotator n is removed by giving the others n's share, in proportion to theirs (equally, where
    nobody else has any), and mixing again. The decision is the class with the highest probability.
    Counted are the disputed pixels; all N annotators may be named and are removed there, for all
    took part in the decision.

    ``update`` takes ``log_who`` ``[B, N, H, W]``, the logarithms of the shares;
    ``log_annotator_probs`` ``[B, N, C, H, W]``; and ``named`` ``[B, N, H, W]``, the shares that the
    explanation claims (those of ``log_who`` if not given). ``compute`` returns

    - ``who_flip_rate``: share of pixels whose decision changes without the annotator named;
    - ``who_necessity``: the same less the mean of that over the other N - 1, in [-1, 1];
    - ``who_sufficiency``: share of pixels where the annotator named alone decides the same;
    - ``who_deletion_auroc``: chance that of a removal that flips a pixel's decision and one that
      does not, the first is of the larger share claimed; equal ones count half. Shares are counted
      in 1024 bins on the logit scale, so that memory does not grow with the data.

    Args:
        num_annotators: Number N of annotators; of one, nobody would be left, and all is NaN.

    Example:
        >>> metric = Removal(num_annotators=2)
        >>> probs = torch.tensor([[0.1, 0.9], [0.7, 0.3]])  # annotators x classes
        >>> metric.update(
        ...     log_who=torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]).log(),
        ...     log_annotator_probs=probs.log()[None, :, :, None, None].expand(1, 2, 2, 1, 2),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> metric.compute()["who_necessity"], metric.compute()["who_deletion_auroc"]
        (tensor(1.), tensor(1.))
    """

    higher_is_better = True

    def __init__(self, num_annotators: int) -> None:
        self.num_annotators = check_count("num_annotators", num_annotators)
        names = ("pixels", "flipped_top", "flipped_other", "sufficient")
        super().__init__(
            **{name: torch.zeros((), dtype=torch.long) for name in names},
            scores=torch.zeros(2, _BINS, dtype=torch.long),  # of removals: no flip, flip
        )

    def update(
        self,
        *,
        log_who: Tensor,
        log_annotator_probs: Tensor,
        masks: Tensor,
        present: Tensor,
        named: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        named = log_who.exp() if named is None else named
        check_inputs(
            ("log_who", log_who, "BNHW"),
            ("log_annotator_probs", log_annotator_probs, "BNCHW"),
            ("named", named, "BNHW"),
            ("masks", masks, "BNHW"),
            N=self.num_annotators,
        )
        disputed = disagreement(masks, present)
        log_who, log_annotator_probs = log_who.float(), log_annotator_probs.float()
        named, top = named.float(), named.argmax(1)
        decision = mix(log_who, log_annotator_probs, "prob").argmax(1)
        alone = log_annotator_probs.argmax(2).gather(1, top.unsqueeze(1)).squeeze(1)
        self.add(pixels=disputed.sum(), sufficient=(disputed & (alone == decision)).sum())
        for n in range(self.num_annotators if self.num_annotators > 1 else 0):
            left = mix(_without(log_who, n), log_annotator_probs, "prob").argmax(1)
            flips, bins = disputed & (left != decision), _score_bins(named[:, n])
            self.add(
                flipped_top=(flips & (top == n)).sum(),
                flipped_other=(flips & (top != n)).sum(),
                scores=torch.stack(
                    [
                        bins[disputed & ~flips].bincount(minlength=_BINS),
                        bins[flips].bincount(minlength=_BINS),
                    ]
                ),
            )

    def compute(self) -> dict[str, Tensor]:
        """Average over the disputed pixels."""
        sums, others = self.sums, self.num_annotators - 1
        flip_rate = sums["flipped_top"] / sums["pixels"]
        no_flip, flip = sums["scores"]
        # Shares before products: the product of two counts of pixels may exceed 64 bits.
        below = (no_flip.cumsum(0) - no_flip / 2) / no_flip.sum()
        return {
            "who_flip_rate": flip_rate,
            "who_necessity": flip_rate - sums["flipped_other"] / (others * sums["pixels"]),
            "who_sufficiency": sums["sufficient"] / sums["pixels"],
            "who_deletion_auroc": (below * (flip / flip.sum())).sum(),
        }


def _without(log_who: Tensor, n: int) -> Tensor:
    """Logarithms of shares if annotator n took no part; equal ones if nobody else has a share."""
    others = torch.arange(log_who.shape[1], device=log_who.device).view(-1, 1, 1) != n
    nobody = log_who.masked_fill(~others, -torch.inf).amax(1, keepdim=True).isneginf()
    return among(log_who.masked_fill(nobody, 0), others)


def _score_bins(shares: Tensor) -> Tensor:
    """Bin of each share on the logit scale, 0 to 1023."""
    logits = torch.logit(shares, eps=torch.finfo(shares.dtype).eps)
    return ((logits + _LOGIT_LIMIT) * _BINS_PER_LOGIT).long()
