"""What is said of some images in numbers and words, what misleads in them, and who is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Explanation, TrustBasis
from tax_lightning.findings import (
    Counts,
    Finding,
    LabelCounts,
    Shares,
    listed,
    noise,
    slots,
    ties,
    types,
    wrong_alike,
)
from tax_lightning.palette import Colour, annotator_palette
from tax_lightning.tendencies import tendency_sums
from tax_lightning.visualization.drawing import as_array

MOST_NAMED = 12
"""Colours that can be told apart, and so the most entries of a legend of annotators."""

SHARED, DECIDES, OUTVOTED = range(3)
"""How the annotator with the largest weight stands to the result; see `standing`."""

_OTHERS: Colour = (150, 150, 150)
_ALIKE = 0.02  # mean distance of probabilities below which two annotators are not told apart


def standing(explanation: Explanation) -> NDArray[np.uint8]:
    """``[B, H, W]``: whether who has the largest weight decides, is outvoted, or neither.

    Outvoted is a leader who would not say the result. Where nobody has half of the weight, the
    decision is shared.
    """
    own = explanation.annotator_decisions.gather(1, explanation.leader.unsqueeze(1)).squeeze(1)
    stands = np.where(as_array(own != explanation.decision), OUTVOTED, SHARED)
    stands[as_array(explanation.decides)] = DECIDES
    return stands.astype(np.uint8)


@dataclass(frozen=True)
class Summary(Counts):
    """Counts of what a model says of images."""

    pixels: int  # all
    foreground: int  # those whose class in the result is not the background
    disputed: int  # those where the model expects annotators to disagree
    # Of the disputed pixels:
    support: Shares  # ``[N]``, sum of how probably each says the result
    reasons: NDArray[np.int64]  # ``[N, K]``, how many by the prototype with the largest share
    decides: NDArray[np.int64]  # ``[N]``, how many each decides
    apart: Shares  # ``[N, N]``, sum of the distance in [0, 1] of what is expected of two annotators
    labels: LabelCounts  # of the annotators' masks, or of what the model expects each to draw

    @classmethod
    def of(
        cls,
        explanation: Explanation,
        masks: NDArray[np.integer] | None = None,
        reference: NDArray[np.integer] | None = None,
    ) -> Summary:
        """The counts of one explanation; with masks and reference, of one image."""
        n, k = len(explanation.annotators), explanation.kernels
        disputed = ~explanation.undisputed
        reasons = (explanation.reason * k + explanation.reason_kernel)[disputed]
        leading = explanation.leader[disputed & explanation.decides]
        expected = as_array(explanation.annotator_decisions.movedim(0, 1))
        labels = expected if masks is None else masks
        said = explanation.annotator_probs.movedim(1, 0).movedim(2, -1)[:, disputed].double()
        return cls(
            pixels=disputed.numel(),
            foreground=int((explanation.decision > 0).sum()),
            disputed=int(disputed.sum()),
            support=as_array(explanation.support.movedim(1, 0)[:, disputed].double().sum(dim=1)),
            reasons=np.bincount(as_array(reasons), minlength=n * k).reshape(n, k),
            decides=np.bincount(as_array(leading), minlength=n),
            apart=as_array(torch.cdist(said.flatten(1), said.flatten(1), p=1) / 2),
            labels=LabelCounts.of(labels, len(explanation.classes), reference, masks is not None),
        )

    def shares(self, counts: NDArray[np.int64] | Shares) -> Shares:
        """Counts of disputed pixels as shares of them; NaN where nothing is disputed."""
        return counts / (self.disputed or np.nan)

    @property
    def dispute(self) -> float:
        """Share of the pixels that is disputed, in ``[0, 1]``."""
        return self.disputed / self.pixels

    @property
    def votes(self) -> float:
        """Mean number of annotators who say the result at a disputed pixel, in ``[0, N]``."""
        return float(self.shares(self.support).sum())


def tendencies(
    explanation: Explanation, masks: NDArray[np.integer] | None
) -> dict[str, NDArray[np.float64]]:
    """Sums of `tendency_sums` of one image: of the masks ``[N, H, W]``, if any, and the model."""
    classes, model = len(explanation.classes), as_array(explanation.annotator_decisions[0])
    if masks is None:
        return {"model": tendency_sums(model, classes)}
    model = np.where(masks == IGNORE_INDEX, IGNORE_INDEX, model)
    return {"masks": tendency_sums(masks, classes), "model": tendency_sums(model, classes)}


# ------------------------------------------------------------------------------------------ words


def per_cent(share: float) -> str:
    """A share as people read it; little is not nothing.

    Example:
        >>> per_cent(0.444), per_cent(0.004), per_cent(0.0)
        ('44%', '< 1%', '0%')
    """
    return "< 1%" if 0 < share < 0.005 else f"{share:.0%}"


def threshold_words(threshold: float) -> str:
    """What is hatched, in words.

    Example:
        >>> threshold_words(0.1)
        'fewer than 1 pair of annotators in 10 is expected to differ'
    """
    pairs = round(1 / max(threshold, 0.001))
    if abs(threshold * pairs - 1) < 0.01:
        return f"fewer than 1 pair of annotators in {pairs} is expected to differ"
    return f"fewer than {100 * threshold:.2g} of 100 pairs of annotators are expected to differ"


_TAUGHT = {
    "given": "the reference that came with the data",
    "majority": "the majority of the annotators themselves",
    "staple": "STAPLE, a weighted vote of the annotators themselves",
    "none": "no reference",
}
_FORM = {
    "uniform": "All annotators weigh the same.",
    "constant": "The weights are one constant for each annotator.",
    "image": "The weights follow the image.",
}
_MEANING = {
    "uniform": "Nothing told whom to believe.",
    "constant": "The images did not tell more about whom to believe.",
    "image": "That was better than one constant for each annotator.",
}


def trust_words(trust: TrustBasis) -> str:
    """What the weights of the annotators were taught with, which form was kept, what it means."""
    by = _TAUGHT.get(trust.reference, trust.reference)
    taught = f"Trust in the annotators was taught with {by}"
    if not trust.measured:
        return f"{taught}. {_FORM[trust.kind]}"
    scores = "uniform {:.2f}, constant {:.2f}, image {:.2f}".format(*trust.scores)
    kept = f"{_FORM[trust.kind]} {_MEANING[trust.kind]}"
    return f"{taught} (log score, smaller is better: {scores}). {kept}"


# --------------------------------------------------------------------------------------- findings


def findings(of: Explanation, summary: Summary) -> list[Finding]:
    """What misleads in explained images: one of them, for the names, and the counts of all."""
    trust, labels = of.trust, summary.labels
    found = []
    if of.types:
        found.append(types())
    elif not of.persons:
        found.append(slots(of.annotators))
    if not summary.foreground:
        found.append(_nothing(of.classes[0], summary.pixels))
    if of.persons or of.types:  # a type too is the same in all images
        found += _not_told_apart(of.annotators, summary)
        found += noise(of.annotators, labels.kappa, labels.classes, bool(labels.given))
    if trust.reference == "given":
        found += wrong_alike(labels)
    if trust.reference == "majority":
        found += ties(labels)
    return found + list(_trust(trust))


def _nothing(background: str, pixels: int) -> Finding:
    return Finding(
        "nothing",
        "warning",
        f"The result is {background} everywhere",
        f"The model found nothing at any of {pixels} pixels, so that votes, who and why speak of "
        "background alone. If there is something to be seen, train longer or at another learning "
        "rate, or look whether the images are prepared as those of the training.",
    )


def _not_told_apart(annotators: Sequence[str], summary: Summary) -> Iterator[Finding]:
    """All annotators, or pairs of them, of whom the model expects the same."""
    distance = summary.shares(summary.apart)
    near = np.triu(distance < _ALIKE, 1)
    pairs = [f"{annotators[n]} and {annotators[m]}" for n, m in np.argwhere(near)]
    people = len(annotators)
    certain = summary.foreground and not summary.disputed
    if people > 1 and (certain or len(pairs) == people * (people - 1) / 2):
        evidence = (
            f"On the {per_cent(summary.dispute)} of the pixels that are disputed, no two of them "
        )
        evidence += f"differ by {_ALIKE:.0%} in probability on average."
        yield Finding(
            "identical",
            "warning",
            f"The model expects the same of all {people} annotators",
            f"{'No pixel is disputed.' if certain else evidence} "
            "It cannot tell them apart, so that names mean nothing here. Train longer; if it stays "
            "so, look with `tax inspect` whether their masks are equal.",
        )
    elif pairs:
        yield Finding(
            "duplicate",
            "warning",
            f"The model expects nearly the same of {listed(pairs, 4)}",
            f"Their probabilities differ by {distance[near].max():.1%} or less on average where "
            "annotators are disputed. Which of the two is named is chance, and together they count "
            "twice in votes. If one was entered twice, leave one out with exclude_annotators.",
        )


def _trust(trust: TrustBasis) -> Iterator[Finding]:
    uniform, constant, image = trust.scores
    if not trust.measured:
        yield Finding(
            "unmeasured",
            "warning",
            "Trust in the annotators was not measured",
            "It is not known whether the weights are right: do not rely on them. They are measured "
            "at the end of a training, on two or more validation images.",
        )
    elif trust.reference == "given" and trust.kind != "image":
        kept, score = "equal weights", uniform
        if trust.kind == "constant":
            kept, score = "one constant for each annotator", constant
        yield Finding(
            "invisible",
            "warning",
            "The images do not show who is right",
            f"There is a reference, but weights that follow the image have a log score of "
            f"{image:.2f} on validation images, {kept} of {score:.2f}, and smaller is better. So "
            "who is to be believed at a spot is not known: read votes and dispute instead. More "
            "images, or channels that show what the experts saw, may help.",
        )


# ------------------------------------------------------------------------------------------- cast


def cast_of(summary: Summary) -> tuple[tuple[int, ...], tuple[Colour, ...]]:
    """Positions of those who are named in a picture, and the colours of all annotators.

    Named are all of up to twelve annotators, else the eleven who are the first reason most often;
    the others share one grey.
    """
    n = len(summary.support)
    if n <= MOST_NAMED:
        return tuple(range(n)), annotator_palette(n)
    often = np.argsort(-summary.reasons.sum(axis=1), kind="stable")[: MOST_NAMED - 1]
    named = tuple(sorted(often.tolist()))
    colours = [_OTHERS] * n
    for position, colour in zip(named, annotator_palette(len(named)), strict=True):
        colours[position] = colour
    return named, tuple(colours)
