"""Where annotators disagree: is it foreseen where they do, by how many votes, and by whom?

These metrics need no truth: predictions are compared with the held-out masks themselves. Each
stands beside what constants reach that are fitted to the same masks, so that a value says something
only as far as it is better. Arguments are explained in :mod:`tax_lightning.metrics`.
"""

import math

import torch
from torch import Tensor

from tax_lightning.consensus import class_votes
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import expected_disagreement
from tax_lightning.metrics.inputs import (
    PooledMetric,
    check_count,
    check_inputs,
    disputed_pixels,
    labelled_pixels,
)
from tax_lightning.metrics.segmentation import calibration_error, confidence_bins, histogram

_PAIRS = 2**22  # of annotators at pixels, that are compared at once
_CERTAIN = 1e-12  # chance of a dispute below which it is not to be told from none
_VOTE_BINS = 1000  # of real shares of votes


class Dispute(PooledMetric):
    """Is it foreseen where annotators disagree? Of d, how often two of them would differ.

    Counted are the pixels that at least two annotators labelled. A pixel is disputed where two
    labels differ. ``compute`` returns, in [0, 1],

    - ``dispute_auroc``: chance that a disputed pixel has a larger d than one that is not;
      ``dispute_auroc_entropy``, its control: the same of the entropy of the result, which a model
      that knows no annotators has too;
    - ``dispute_predicted`` and ``dispute_real``, the mean of d and the real share of pairs of
      annotators who differ, and ``dispute_ece``, the calibration error of d;
    - ``hatched_though_disputed``: share hatched, where d is below the threshold, of the pixels at
      which two annotators or more differ from the most frequent label (with three annotators or
      fewer one); ``open_though_unanimous``: share not hatched of the pixels with equal labels.

    Args:
        threshold: of d, below which pictures are hatched.

    Example:
        >>> metric, masks = Dispute(), torch.tensor([[[[1]], [[0]]]])
        >>> p = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
        >>> labels = dict(masks=masks, present=torch.ones(1, 2) > 0)
        >>> metric.update(probs=p, annotator_probs=p.expand(1, 2, 2, 1, 1), **labels)
        >>> metric.compute()["dispute_predicted"], metric.compute()["dispute_real"]
        (tensor(0.5000), tensor(1.))
    """

    def __init__(self, threshold: float = 0.1) -> None:
        starts = {name: torch.zeros(2, dtype=torch.long) for name in ("disputed", "unanimous")}
        # Pixels by their score, those that are disputed and the others.
        starts |= {name: confidence_bins() for name in ("by_dispute", "by_entropy")}
        super().__init__(**starts, totals=torch.zeros(3), bins=confidence_bins())
        self.threshold = threshold

    def update(
        self, *, annotator_probs: Tensor, probs: Tensor, masks: Tensor, present: Tensor
    ) -> None:
        """Add one batch."""
        maps = ("annotator_probs", annotator_probs, "BNCHW"), ("probs", probs, "BCHW")
        check_inputs(*maps, ("masks", masks, "BNHW"))
        labelled = labelled_pixels(masks, present)
        differ = disputed_pixels(masks, present)
        votes = class_votes(masks.masked_fill(~labelled, IGNORE_INDEX), probs.shape[1])
        number = labelled.sum(1)
        pairs = number * (number - 1)  # in both orders
        differing = pairs - (votes * (votes - 1)).sum(1)
        d = expected_disagreement(annotator_probs).clamp(0, 1)
        cases, hatched = number >= 2, d < self.threshold
        clear = number - votes.amax(1) >= (2 if masks.shape[1] > 3 else 1)
        entropy = torch.special.entr(probs.float()).sum(1) / math.log(probs.shape[1])
        self.add(
            disputed=torch.stack([(clear & hatched).sum(), clear.sum()]),
            unanimous=torch.stack([(x & cases & ~differ).sum() for x in (~hatched, cases)]),
            totals=torch.stack([(d * pairs).sum(), differing.sum().float(), pairs.sum().float()]),
            bins=histogram(d, differing, pairs),
            by_dispute=_by_score(d, differ, cases),
            by_entropy=_by_score(entropy, differ, cases),
        )

    def compute(self) -> dict[str, Tensor]:
        """Shares of the pixels of each kind; NaN without any."""
        sums = self.sums
        predicted, real, pairs = sums["totals"]
        return {
            "dispute_auroc": _auroc(sums["by_dispute"]),
            "dispute_auroc_entropy": _auroc(sums["by_entropy"]),
            "dispute_ece": calibration_error(sums["bins"]),
            "dispute_predicted": predicted / pairs,
            "dispute_real": real / pairs,
            "hatched_though_disputed": sums["disputed"][0] / sums["disputed"][1],
            "open_though_unanimous": sums["unanimous"][0] / sums["unanimous"][1],
        }


class Votes(PooledMetric):
    """Is it foreseen how many annotators say what is decided, and which? On disputed pixels.

    An annotator dissents at a pixel where their label is not the result. All figures are of
    disputed pixels, so the model is asked what it expects of a pixel that is disputed: the chance
    that n dissents, given that not all who labelled it say the same (:func:`given_dispute`). The
    constants are fitted to disputed pixels as well. ``compute`` returns

    - ``votes_error``: mean error of the expected number of annotators who say what is decided, of
      those who labelled the pixel, in votes of all N; ``votes_error_constant``: that of the best
      constant number;
    - ``dissent_predicted`` and ``dissent_real``: mean probability and real share of dissent;
      ``dissent_ece`` and ``dissent_brier``, its calibration error and mean squared error, 0 is
      best. ``dissent_brier_constant`` and ``dissent_brier_table`` are those of the best constant,
      and of the best constant for each annotator and class decided, fitted to these same masks;
    - ``within_auc``: over pairs of annotators at one pixel, of whom one says what is decided and
      the other does not: chance that the first has the larger p_n(result); equal ones count half.
      ``within_auc_constant``, ``within_auc_table``: the same of the best constants as above;
      ``within_auc_exchanged``: of the model with its annotators exchanged.

    Example:
        >>> metric, masks = Votes(annotators=2, classes=2), torch.tensor([[[[1]], [[0]]]])
        >>> p = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).view(1, 2, 2, 1, 1)
        >>> labels = dict(prediction=masks[:, 0], masks=masks, present=torch.ones(1, 2) > 0)
        >>> metric.update(annotator_probs=p, **labels)
        >>> metric.compute()["dissent_predicted"], metric.compute()["dissent_real"]
        (tensor(0.5000), tensor(0.5000))
    """

    def __init__(self, annotators: int, classes: int) -> None:
        self.annotators = check_count("annotators", annotators)
        self.classes = check_count("classes", classes)
        super().__init__(
            # By class decided and annotator: labels, and those that dissent.
            labels=torch.zeros(classes, annotators, dtype=torch.long),
            dissents=torch.zeros(classes, annotators, dtype=torch.long),
            # By class decided and pair: the first says what is decided, the second does not. Each
            # pixel has the weight 1.
            pairs=torch.zeros(classes, annotators, annotators, dtype=torch.float64),
            # Sums over pixels: of the pixels, the ranks of both kinds, the vote errors.
            sums_of_pixels=torch.zeros(4, dtype=torch.float64),
            sums_of_labels=torch.zeros(2, dtype=torch.float64),  # probability, squared error
            real_votes=torch.zeros(_VOTE_BINS + 1, dtype=torch.long),
            bins=confidence_bins(),
        )

    def update(
        self, *, annotator_probs: Tensor, prediction: Tensor, masks: Tensor, present: Tensor
    ) -> None:
        """Add one batch."""
        check_inputs(
            ("annotator_probs", annotator_probs, "BNCHW"),
            ("prediction", prediction, "BHW"),
            ("masks", masks, "BNHW"),
            N=self.annotators,
            C=self.classes,
        )
        labelled = labelled_pixels(masks, present)
        disputed = disputed_pixels(masks, present)
        place = prediction[:, None, None].expand(-1, self.annotators, 1, -1, -1)
        planes = (
            annotator_probs.gather(2, place).squeeze(2),
            given_dispute(annotator_probs, prediction, labelled),
            masks == prediction.unsqueeze(1),
            labelled,
        )
        # Pixels last to first: [M, N], disputed ones only.
        says, given, said, labelled = (x.movedim(1, -1)[disputed] for x in planes)
        decided, said = prediction[disputed], said & labelled
        dissent = 1 - given.float()
        number = labelled.sum(1)
        expected = (given.float() * labelled).sum(1) / number
        share = said.sum(1) / number
        error = (expected - share).abs().sum().double() * self.annotators
        by_class = torch.nn.functional.one_hot(decided, self.classes)
        squared = (dissent - (~said).float()).square()
        within = torch.zeros(2, dtype=torch.float64, device=says.device)
        pairs = torch.zeros_like(self.sums["pairs"])
        step = max(1, _PAIRS // self.annotators**2)
        for start in range(0, len(says), step):
            part = slice(start, start + step)
            first, second = said[part], labelled[part] & ~said[part]
            both = first.unsqueeze(2) & second.unsqueeze(1)  # [m, N, N]
            # Not of the default type, which may be bfloat16.
            weight = both.float() / both.sum((1, 2), keepdim=True).clamp_min(1).float()
            for i, scores in enumerate((says[part], says[part].roll(1, dims=1))):
                ahead = torch.sign(scores.unsqueeze(2) - scores.unsqueeze(1)) / 2 + 0.5
                within[i] += (ahead * weight).sum().double()
            pairs += torch.einsum("mc,mij->cij", by_class[part].float(), weight).double()
        self.add(
            labels=by_class.T @ labelled.long(),
            dissents=by_class.T @ (labelled & ~said).long(),
            pairs=pairs,
            sums_of_pixels=torch.stack(
                [torch.as_tensor(len(says), device=says.device).double(), *within, error]
            ),
            sums_of_labels=torch.stack([(x * labelled).sum().double() for x in (dissent, squared)]),
            real_votes=(share * _VOTE_BINS).round().long().bincount(minlength=_VOTE_BINS + 1),
            bins=histogram(dissent, ~said, labelled),
        )

    def compute(self) -> dict[str, Tensor]:
        """Averages over disputed pixels; NaN without any."""
        sums = self.sums
        labels, dissents, pairs = sums["labels"], sums["dissents"], sums["pairs"]
        pixels, ranks, exchanged, error = sums["sums_of_pixels"]
        ranked = pairs.sum()  # pixels where somebody says what is decided
        by_annotator = dissents.sum(0, keepdim=True) / labels.sum(0, keepdim=True)
        table = dissents / labels  # NaN where nothing was labelled
        probability, squared = sums["sums_of_labels"] / labels.sum()
        real = dissents.sum() / labels.sum()
        values = {
            "votes_error": error / pixels,
            "votes_error_constant": self.annotators * _spread(sums["real_votes"]),
            "dissent_predicted": probability,
            "dissent_real": real,
            "dissent_ece": calibration_error(sums["bins"]),
            "dissent_brier": squared,
            "dissent_brier_constant": real * (1 - real),
            "dissent_brier_table": (labels * table * (1 - table)).nansum() / labels.sum(),
            "within_auc": ranks / ranked,
            "within_auc_constant": _rank_of(by_annotator, pairs) / ranked,
            "within_auc_table": _rank_of(table, pairs) / ranked,
            "within_auc_exchanged": exchanged / ranked,
        }
        return {name: value.float() for name, value in values.items()}


def given_dispute(annotator_probs: Tensor, decided: Tensor, labelled: Tensor) -> Tensor:
    """How probably each annotator says what is decided, if not all of them say the same.

    Their labels are taken to be independent, given what the model expects of each. With p_n(c) and
    A(c), the product of p_n(c) over those who labelled the pixel, this is
    (p_n(decided) - A(decided)) / (1 - sum_c A(c)), by the definition of a conditional probability.

    Args:
        annotator_probs: p_n, ``[B, N, C, H, W]`` in [0, 1].
        decided: class ids ``[B, H, W]``.
        labelled: who labelled each pixel, bool ``[B, N, H, W]``.

    Returns:
        ``[B, N, H, W]`` in [0, 1]; of those who did not label the pixel p_n(decided) itself.

    Example:
        >>> p = torch.tensor([0.9, 0.8]).view(1, 2, 1, 1)
        >>> probs = torch.stack([1 - p, p], dim=2)
        >>> one, both = torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 2, 1, 1) > 0
        >>> given_dispute(probs, one, both).flatten()  # 0.18 and 0.08 of 0.26
        tensor([0.6923, 0.3077])
    """
    probs = annotator_probs.double()
    together = probs.masked_fill(~labelled.unsqueeze(2), 1).prod(dim=1)
    at = decided.unsqueeze(1)
    says = probs.gather(2, at.unsqueeze(2).expand(-1, probs.shape[1], 1, -1, -1)).squeeze(2)
    disputed = (1 - together.sum(1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny)
    given = ((says - together.gather(1, at)) / disputed).clamp(0, 1)
    certain = disputed < _CERTAIN  # nothing but rounding is left
    return torch.where(labelled & ~certain, given, says).to(annotator_probs.dtype)


def _by_score(score: Tensor, differ: Tensor, cases: Tensor) -> Tensor:
    """How many disputed and other pixels have each score, ``[2, bins]``."""
    # torchmetrics compares every pixel with every threshold, which takes gigabytes an image.
    return torch.stack([histogram(score, differ, cases & kind)[0] for kind in (differ, ~differ)])


def _auroc(counts: Tensor) -> Tensor:
    """Chance that one of the first has a larger score than one of the others; equal count half."""
    disputed, others = counts
    below = others.cumsum(0) - others / 2
    chance: Tensor = (disputed * below).sum() / (disputed.sum() * others.sum())
    return chance


def _rank_of(dissent: Tensor, pairs: Tensor) -> Tensor:
    """Weight of the pairs ``[C, N, N]`` whose first annotator dissents less by these rates."""
    ahead = torch.sign(dissent.unsqueeze(1) - dissent.unsqueeze(2)) / 2 + 0.5
    return (ahead * pairs).nansum()


def _spread(counts: Tensor) -> Tensor:
    """Mean distance from the median, of shares counted in bins of equal width from 0 to 1."""
    shares = torch.linspace(0, 1, len(counts), device=counts.device)
    total = counts.sum()
    median = shares[(2 * counts.cumsum(0) >= total).long().argmax()]
    return ((shares - median).abs() * counts).sum() / total
