"""What happens to the decision when an annotator is left out of it?"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.metrics.inputs import check_inputs, labelled_pixels
from tax_lightning.metrics.who import disagreement
from tax_lightning.models.mixture import among, mix
from typing import Literal

Mixing = Literal["prob"]

# Shares crowd near 0 and 1, where bins of equal width would make ties of most. Their logits spread,
# and in single precision those of the shares above 1/2 all lie below 16.
_LOGIT_LIMIT = 16
_BINS_PER_LOGIT = 32
_BINS = 2 * _LOGIT_LIMIT * _BINS_PER_LOGIT

# What single precision makes of no change; without it, a ratio of changes may be one of two errors.
_ROUNDING = 1e-6


class _Sums(NamedTuple):
    """What one batch adds to the states of :class:`Removal`, which have the same names."""

    pixels: Tensor  # disputed pixels
    flipped_top: Tensor  # of these, where the decision flips without the annotator named
    flipped_other: Tensor  # flips without one of the N - 1 others, over all of these
    sufficient: Tensor  # of the disputed pixels, where the annotator named alone decides the same
    scores: Tensor  # [2, bins]: histograms of named shares whose removal flips nothing; flips
    change: Tensor  # [2, N]: change by removing n, summed where another is named; where n is
    area: Tensor  # [2, N]: number of pixels of these


def _check_mixing(mixing: str) -> None:
    """Raise a ValueError that names the known ones if the mixing is not among them."""
    if mixing not in get_args(Mixing):
        raise ValueError(
            f"`mixing` is {mixing!r}, expected one of {', '.join(get_args(Mixing))}; pass the "
            "`mixing` that the model was built with."
        )


def _without(log_who: Tensor, n: int) -> Tensor:
    """Logarithms of shares if annotator n took no part; equal ones if nobody else has a share."""
    others = torch.arange(log_who.shape[1], device=log_who.device).view(-1, 1, 1) != n
    nobody = log_who.masked_fill(~others, -torch.inf).amax(1, keepdim=True).isneginf()
    return among(log_who.masked_fill(nobody, 0), others)


def _score_bins(shares: Tensor) -> Tensor:
    """Bin of each share on the logit scale, 0 to 1023."""
    logits = torch.logit(shares, eps=torch.finfo(shares.dtype).eps)
    return ((logits + _LOGIT_LIMIT) * _BINS_PER_LOGIT).long()


@torch.no_grad()
def _sums(
    log_who: Tensor,
    log_annotator_probs: Tensor,
    named: Tensor,
    masks: Tensor,
    present: Tensor,
    mixing: Mixing,
) -> _Sums:
    """Remove each annotator once, and sum up all that the metrics need."""
    annotators = log_who.shape[1]
    log_who, log_annotator_probs, named = (
        log_who.float(),
        log_annotator_probs.float(),
        named.float(),
    )
    disputed = disagreement(masks, present)
    seen = labelled_pixels(masks, present).any(1)
    top = named.argmax(1)
    log_probs = mix(log_who, log_annotator_probs)
    decision, probs = log_probs.argmax(1), log_probs.exp()
    alone = log_annotator_probs.argmax(2).gather(1, top.unsqueeze(1)).squeeze(1)

    flipped = torch.zeros(2, dtype=torch.long, device=log_who.device)  # other, top
    scores = flipped.new_zeros(2, _BINS)
    area = flipped.new_zeros(2, annotators)
    change = log_who.new_zeros(2, annotators)
    # Of one annotator nobody would be left.
    for n in range(annotators if annotators > 1 else 0):
        log_rest = mix(_without(log_who, n), log_annotator_probs)
        flips = log_rest.argmax(1) != decision
        bins = _score_bins(named[:, n])
        distance = (log_rest.exp() - probs).abs().sum(1) / 2
        distance = torch.where(distance < _ROUNDING, 0, distance)
        for inside, where in enumerate((top != n, top == n)):
            flipped[inside] += (flips & disputed & where).sum()
            change[inside, n] = torch.where(seen & where, distance, 0).sum()
            area[inside, n] = (seen & where).sum()
        for flip, where in enumerate((disputed & ~flips, disputed & flips)):
            scores[flip] += torch.bincount(bins[where], minlength=_BINS)
    return _Sums(
        pixels=disputed.sum(),
        flipped_top=flipped[1],
        flipped_other=flipped[0],
        sufficient=(disputed & (alone == decision)).sum(),
        scores=scores,
        change=change,
        area=area,
    )


def _auroc(negative: Tensor, positive: Tensor) -> Tensor:
    """Chance that a positive lies in a higher bin than a negative, half of it if in the same.

    Shares before products: the product of two counts of pixels may exceed 64 bits.
    """
    below = (negative.cumsum(0) - negative / 2) / negative.sum()
    area: Tensor = (below * (positive / positive.sum())).sum()
    return area


def _results(sums: _Sums) -> dict[str, Tensor]:
    """Results of :func:`removal_effects` from its sums."""
    flip_rate = sums.flipped_top / sums.pixels
    others = sums.area.shape[1] - 1
    outside, inside = sums.change / sums.area
    return {
        "who_flip_rate": flip_rate,
        "who_necessity": flip_rate - sums.flipped_other / (others * sums.pixels),
        "who_sufficiency": sums.sufficient / sums.pixels,
        "who_deletion_auroc": _auroc(*sums.scores),
        "who_locality": (inside / outside).nanmean(),
    }


def _check(
    log_who: Tensor,
    log_annotator_probs: Tensor,
    named: Tensor,
    masks: Tensor,
    present: Tensor,
    **sizes: int,
) -> None:
    """Check that tensors fit one another."""
    check_inputs(
        ("log_who", log_who, "BNHW"),
        ("log_annotator_probs", log_annotator_probs, "BNCHW"),
        ("named", named, "BNHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
        **sizes,
    )


def removal_effects(
    log_who: Tensor,
    log_annotator_probs: Tensor,
    masks: Tensor,
    present: Tensor,
    mixing: Mixing = "prob",
    named: Tensor | None = None,
) -> dict[str, Tensor]:
    """Does the annotator named as the decider decide? Leave annotators out and see.

    Annotator n is removed by giving the others his share, in proportion to theirs (equally, where
    nobody else has any), and mixing again. The decision is the class with the highest probability.
    All but locality are over the disputed pixels, those where annotators gave different labels; all
    N annotators may be named and are removed there, for all took part in the decision.

    Args:
        log_who: Logarithms of the shares that the model mixes by ``[B, N, H, W]``; their
            exponentials sum to 1 over N.
        log_annotator_probs: Logarithms of each annotator's class probabilities
            ``[B, N, C, H, W]``.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        mixing: How the model mixes annotators, ``"prob"`` or ``"logit"``.
        named: Shares in [0, 1] that the explanation claims ``[B, N, H, W]``, whose largest names
            the annotator; ``log_who.exp()`` if not given. Those of another image or with
            annotators exchanged serve as a control, which should do worse.

    Returns:
        ``who_flip_rate``: share of pixels whose decision changes when the annotator named is
        removed, in [0, 1].
        ``who_necessity``: the same less the mean of that over the other N - 1 annotators, in
        [-1, 1].
        ``who_sufficiency``: share of pixels where the annotator named alone would decide the
        same, in [0, 1].
        ``who_deletion_auroc``: chance that of a removal that flips a pixel's decision and one
        that does not, drawn from all (pixel, annotator), the first is of the larger share named;
        equal shares count half. In [0, 1], NaN if all or none flip. Shares are counted in 1024
        bins on the logit scale, so that memory does not grow with the data: logits less than 1/32
        apart count as equal, and so do all shares below 1.2e-7 and all above 1 - 1.2e-7.
        ``who_locality``: mean change by removing n where n is named over that where he is not,
        averaged over the n that have both. The change is the total variation, half the sum over
        classes of absolute differences of probability, where less than 1e-6 is rounding and counts
        as 0; the pixels are those that anybody labelled. Infinite if an annotator's removal
        changes nothing where he is not named; one whose removal changes nothing at all is left out.
        All are NaN without a case, so always with a single annotator.

    Raises:
        ValueError: If the shapes do not fit one another or the mixing is unknown.

    Example:
        The first annotator decides the left pixel, the second the right one:

        >>> import torch
        >>> who = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]])
        >>> probs = torch.tensor([[0.1, 0.9], [0.7, 0.3]])  # annotators x classes
        >>> result = removal_effects(
        ...     who.log(),
        ...     probs.log()[None, :, :, None, None].expand(1, 2, 2, 1, 2),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> {name: round(float(value), 3) for name, value in result.items()}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'who_flip_rate': 1.0, 'who_necessity': 1.0, 'who_sufficiency': 1.0,
         'who_deletion_auroc': 1.0, 'who_locality': 6.25}
    """
    named = log_who.exp() if named is None else named
    _check_mixing(mixing)
    _check(log_who, log_annotator_probs, named, masks, present)
    return _results(_sums(log_who, log_annotator_probs, named, masks, present, mixing))


class Removal(Metric):
    """Does the annotator named as the decider decide? Leave annotators out and see.

    Pools the pixels of all images, in memory that does not grow with them; see
    :func:`removal_effects`.

    ``update`` takes ``log_who`` ``[B, N, H, W]``, ``log_annotator_probs`` ``[B, N, C, H, W]``,
    ``masks`` ``[B, N, H, W]`` (255 where not labelled), ``present`` (boolean ``[B, N]``) and
    ``named`` ``[B, N, H, W]``, the shares that the explanation claims (``log_who.exp()`` if not
    given). ``compute`` returns ``{"who_flip_rate", "who_necessity", "who_sufficiency",
    "who_deletion_auroc", "who_locality"}``; NaN without a case.

    Args:
        num_annotators: Number N of annotators.
        mixing: How the model mixes annotators, ``"prob"`` or ``"logit"``.

    Raises:
        ValueError: If there is no annotator, the mixing is unknown, or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = Removal(num_annotators=2)
        >>> probs = torch.tensor([[0.1, 0.9], [0.7, 0.3]])  # annotators x classes
        >>> metric.update(
        ...     log_who=torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]).log(),
        ...     log_annotator_probs=probs.log()[None, :, :, None, None].expand(1, 2, 2, 1, 2),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ... )
        >>> float(metric.compute()["who_necessity"])
        1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    pixels: Tensor
    flipped_top: Tensor
    flipped_other: Tensor
    sufficient: Tensor
    scores: Tensor
    change: Tensor
    area: Tensor

    def __init__(self, num_annotators: int, mixing: Mixing = "prob") -> None:
        super().__init__()
        if num_annotators < 1:
            raise ValueError(
                f"`num_annotators` is {num_annotators}, expected at least 1; pass the size of the "
                "N axis."
            )
        _check_mixing(mixing)
        self.num_annotators = num_annotators
        self.mixing: Mixing = mixing
        for name in ("pixels", "flipped_top", "flipped_other", "sufficient"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        by_annotator = torch.zeros(2, num_annotators)
        self.add_state("scores", torch.zeros(2, _BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("change", by_annotator, dist_reduce_fx="sum")
        self.add_state("area", by_annotator.long(), dist_reduce_fx="sum")

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
        _check(log_who, log_annotator_probs, named, masks, present, N=self.num_annotators)
        sums = _sums(log_who, log_annotator_probs, named, masks, present, self.mixing)
        self.pixels += sums.pixels
        self.flipped_top += sums.flipped_top
        self.flipped_other += sums.flipped_other
        self.sufficient += sums.sufficient
        self.scores += sums.scores
        self.change += sums.change
        self.area += sums.area

    def compute(self) -> dict[str, Tensor]:
        """Average over the disputed pixels, and compare areas."""
        return _results(
            _Sums(
                pixels=self.pixels,
                flipped_top=self.flipped_top,
                flipped_other=self.flipped_other,
                sufficient=self.sufficient,
                scores=self.scores,
                change=self.change,
                area=self.area,
            )
        )
