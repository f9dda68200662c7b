"""What would mislead who overlooks it in explained images: for terminal, panel and page alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tax_lightning.explanation import Explanation, TrustBasis
from tax_lightning.findings import Finding, listed, noise, slots, ties, wrong_alike
from tax_lightning.visualization.summary import Summary

_ALIKE = 0.02  # mean distance of probabilities below which two annotators are not told apart


def findings(of: Explanation, summary: Summary) -> list[Finding]:
    """What misleads in explained images: one of them, for the names, and the counts of all."""
    trust, labels = of.trust, summary.labels
    found = [] if of.persons else [slots(of.annotators)]
    if not summary.foreground:
        found.append(_nothing(of.classes[0], summary.pixels))
    if of.persons:
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
        evidence = f"On the {summary.dispute:.0%} of the pixels that are disputed, no two of them "
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
