"""Who decides: does the model name the right annotator where annotators disagree?

The annotator named at a pixel is the one with the largest share among those who labelled it; where
several have it, each is named in part. The pixels of all images are pooled. Arguments are explained
in :mod:`tax_lightning.metrics`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import (
    Averages,
    PooledMetric,
    check_count,
    check_inputs,
    check_names,
    disputed_pixels,
    labelled_pixels,
)
from tax_lightning.metrics.segmentation import calibration_error, confidence_bins, histogram


class WhoAccuracy(Averages):
    """Are the shares right: is the annotator named the one to believe, and how sure is it?

    ``compute`` returns, in [0, 1] where nothing else is said,

    - over D1, the pixels where annotators disagree and exactly one gave the reference's label:
      ``who_accuracy_d1``, how often the model names that one, and ``who_chance_d1``, how often a
      blind guess among those who labelled the pixel would;
    - over all disputed pixels whose reference is known: ``who_agreement_lift``, (P(named is right)
      - P(average is right)) / (1 - P(average is right)), the average over those who labelled the
      pixel; 1 where the named annotator is always right, below 0 where less often than the average;
    - over those of them that their expert labelled: ``who_accuracy_expert``, how often the model
      names the expert; ``who_chance_expert``, how often a blind guess would;
      ``who_ceiling_expert``, how often a guess among those who are right would (0 at a pixel whose
      expert is not); and ``majority_overrules_expert``, how often the other annotators' labels, one
      vote each, outvote the expert's (a tie counts half). The last three depend on labels alone;
    - ``who_ece_d1`` and ``who_ece_expert``, calibration errors of the largest share for both
      accuracies, 0 is best. Shares are taken among those who labelled the pixel, and are equal
      where none of these has any;
    - ``who_entropy_disputed`` and ``who_entropy_unanimous``, H(w) / log N of all N shares, where
      labels differ, and where at least two were given, all alike: 0 where one annotator has it all,
      1 where all have the same.

    Example:
        >>> metric, who = WhoAccuracy(), torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
        >>> masks, present = torch.tensor([[[[1]], [[0]]]]), torch.tensor([[True, True]])
        >>> metric.update(who=who, masks=masks, present=present, reference=masks[:, 0])
        >>> metric.compute()["who_accuracy_d1"], metric.compute()["who_chance_d1"]
        (tensor(1.), tensor(0.5000))
    """

    def __init__(self) -> None:
        d1 = (f"who_{kind}_d1" for kind in ("accuracy", "chance"))
        expert = (f"who_{kind}_expert" for kind in ("accuracy", "ceiling", "chance"))
        entropy = (f"who_entropy_{kind}" for kind in ("disputed", "unanimous"))
        keys = "named", "average", *d1, *expert, "majority_overrules_expert", *entropy
        super().__init__(*keys, who_ece_d1=confidence_bins(), who_ece_expert=confidence_bins())

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
        unknown = torch.full_like(masks[:, 0], IGNORE_INDEX)
        reference, expert = (unknown if x is None else x for x in (reference, expert))
        maps = ("masks", masks, "BNHW"), ("reference", reference, "BHW"), ("expert", expert, "BHW")
        check_inputs(("who", who, "BNHW"), *maps)
        labelled = labelled_pixels(masks, present)
        disputed = disputed_pixels(masks, present)
        right, labels = labelled & (masks == reference.unsqueeze(1)), labelled.sum(1)
        among = who.masked_fill(~labelled, -torch.inf)
        leaders = among == among.amax(1, keepdim=True)  # several where all weigh the same
        index = expert.masked_fill(expert == IGNORE_INDEX, 0).unsqueeze(1)
        known = disputed & (reference != IGNORE_INDEX)
        d1 = known & (right.sum(1) == 1)
        by_expert = known & (expert != IGNORE_INDEX) & labelled.gather(1, index).squeeze(1)

        hit = (leaders & right).sum(1) / leaders.sum(1)
        is_expert = leaders.gather(1, index).squeeze(1) / leaders.sum(1)
        ceiling = right.gather(1, index).squeeze(1) / right.sum(1)  # 0 / 0 where nobody is right
        entropy = torch.special.entr(who.float()).sum(1) / math.log(max(2, who.shape[1]))
        self.add_pixels(
            (hit, known),
            (right.sum(1) / labels, known),
            (hit, d1),
            (1 / labels, d1),
            (is_expert, by_expert),
            (ceiling.nan_to_num(nan=0.0), by_expert),
            (1 / labels, by_expert),
            (_outvoted(masks, labelled, index), by_expert),
            (entropy, disputed),
            (entropy, ~disputed & (labels >= 2)),
        )
        shares = who.float().masked_fill(~labelled, 0)
        shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, labelled.float())
        total = shares.sum(1).clamp(min=torch.finfo(shares.dtype).tiny)
        confidence = shares.amax(1) / total
        self.add(
            who_ece_d1=histogram(confidence, hit, d1),
            who_ece_expert=histogram(confidence, is_expert, by_expert),
        )

    def compute(self) -> dict[str, Tensor]:
        """Average over each kind of pixels."""
        values = super().compute()
        # Of those who disagree one at least is wrong, so there is no 0 / 0.
        named, average = values.pop("named"), values.pop("average")
        bins = "who_ece_d1", "who_ece_expert"
        errors = {key: calibration_error(self.sums[key]) for key in bins}
        return values | errors | {"who_agreement_lift": (named - average) / (1 - average)}


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


class AnnotatorShares(Averages):
    """What each annotator has in the result, averaged over the disputed pixels.

    ``compute`` returns ``"votes/<annotator>"``, how probably the annotator says what is decided,
    and ``"weight/<annotator>"``, the weight. Summed over annotators, the first is the expected
    number of votes, and the second the trust in them.
    """

    def __init__(self, annotators: Sequence[str]) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        super().__init__(*(f"{kind}/{name}" for kind in ("votes", "weight") for name in annotators))

    def update(
        self,
        *,
        who: Tensor,
        annotator_probs: Tensor,
        prediction: Tensor,
        masks: Tensor,
        present: Tensor,
    ) -> None:
        """Add one batch."""
        check_inputs(
            ("who", who, "BNHW"),
            ("annotator_probs", annotator_probs, "BNCHW"),
            ("prediction", prediction, "BHW"),
            ("masks", masks, "BNHW"),
            N=len(self.annotators),
        )
        disputed = disputed_pixels(masks, present)
        decided = prediction[:, None, None].expand_as(annotator_probs[:, :, :1])
        says = annotator_probs.gather(2, decided).squeeze(2)
        shares = torch.cat([says, who], dim=1).float()
        self.add_pixels(*((share, disputed) for share in shares.unbind(1)))


class TrustScore(PooledMetric):
    """Do the weights w believe those who are right, and more so than constants would?

    Counted are the disputed pixels at which somebody is right and somebody is not; a tie of T
    labels counts 1 / T for each. Weights are those among the annotators who labelled the pixel.
    ``compute`` returns ``trust_agreement``, the weight of those who are right; ``trust_leader``,
    how often the annotator of the largest weight is; and ``trust_log_score``, the mean
    -log of the first at each pixel, in nats, 0 is best. Each comes also for weights that are

    - ``_uniform``: the same for all;
    - ``_exchanged``: those of the model, each said to be another annotator's;
    - ``_constant``: one for each annotator, as fitted on validation images; of models that have
      them.

    Example:
        >>> metric, who = TrustScore(annotators=2), torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
        >>> masks, present = torch.tensor([[[[1]], [[0]]]]), torch.tensor([[True, True]])
        >>> right = torch.tensor([False, True]).view(1, 2, 1, 1)  # of two classes the second
        >>> metric.update(who=who, masks=masks, present=present, right=right)
        >>> metric.compute()["trust_agreement"], metric.compute()["trust_agreement_uniform"]
        (tensor(0.7500), tensor(0.5000))
    """

    def __init__(self, annotators: int) -> None:
        self.annotators = check_count("annotators", annotators)
        super().__init__(sums_of_cases=torch.zeros(len(_WEIGHTS), 3), number=torch.zeros(()))
        # Log of the constant weights ``[N]``; set before the first update.
        self.constant: Tensor | None = None

    def update(self, *, who: Tensor, masks: Tensor, present: Tensor, right: Tensor) -> None:
        """Add one batch; ``right`` are the labels that count as right, bool ``[B, C, H, W]``."""
        maps = ("who", who, "BNHW"), ("masks", masks, "BNHW"), ("right", right, "BCHW")
        check_inputs(*maps, N=self.annotators)
        labelled = labelled_pixels(masks, present)
        exchanged_who, ties = exchanged(who), right.sum(1)
        sums, number = (torch.zeros_like(x) for x in self.sums.values())
        for label in range(right.shape[1]):
            correct = labelled & (masks == label)
            cases = right[:, label] & correct.any(1) & (labelled & ~correct).any(1)
            share = 1 / ties[cases]
            there, hit = (x.movedim(1, -1)[cases] for x in (labelled, correct))
            number += share.sum()
            own = who.movedim(1, -1)[cases]
            kinds = [own, torch.ones_like(own), exchanged_who.movedim(1, -1)[cases]]
            if self.constant is not None:
                kinds.append(self.constant.to(own).exp().expand_as(own))
            for i, weights in enumerate(kinds):
                among = weights.float() * there
                believed = (among * hit).sum(1) / among.sum(1).clamp_min(1e-12)
                leaders = there & (among == among.amax(1, keepdim=True))
                leads = (leaders & hit).sum(1) / leaders.sum(1)
                log = -believed.clamp_min(1e-6).log()
                sums[i] += torch.stack([(x * share).sum() for x in (believed, leads, log)])
        self.add(sums_of_cases=sums, number=number)

    def compute(self) -> dict[str, Tensor]:
        """Averages over cases; NaN without any."""
        means = self.sums["sums_of_cases"] / self.sums["number"]
        return {
            f"trust_{measure}{weights}": means[i, j]
            for i, weights in enumerate(_WEIGHTS)
            if weights != "_constant" or self.constant is not None
            for j, measure in enumerate(("agreement", "leader", "log_score"))
        }


_WEIGHTS = ("", "_uniform", "_exchanged", "_constant")


def exchanged(who: Tensor) -> Tensor:
    """A who map ``[B, N, H, W]`` in which each annotator's weight is said to be another's."""
    # In a circle, a step further in every image.
    others = max(1, who.shape[1] - 1)
    return torch.stack([image.roll(1 + i % others, dims=0) for i, image in enumerate(who)])
