"""What would mislead who overlooks it, in plain words: one list for terminal, panel and page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tax_lightning.explanation import Explanation, TrustBasis
from tax_lightning.visualization.summary import LabelCounts, Shares, Summary

_ALIKE = 0.02  # mean distance of probabilities below which two annotators are not told apart
_WRONG = 0.1  # share of the objects on which an error of all is worth a word
_TIED = 0.2  # share of the disputed pixels at which a majority is said to tie
_NOISE, _SENSE = 0.1, 0.3  # kappa of an annotator below, and of the others from


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Args:
        kind: What kind of thing, e.g. ``"duplicate"``; also its anchor on a page.
        severity: ``"warning"``: look at it first. ``"hint"``: good to know.
        title: The finding in a few words.
        text: Its evidence, what it means, and what to do about it.
    """

    kind: str
    severity: Literal["warning", "hint"]
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.said}"

    @property
    def said(self) -> str:
        """Title and text."""
        return f"{self.title}. {self.text}"


def findings(of: Explanation, summary: Summary) -> list[Finding]:
    """What misleads in explained images.

    Args:
        of: one of the explanations, for the names and what trust was taught with.
        summary: the counts of all of them.
    """
    trust, labels = of.trust, summary.labels
    found = [] if of.persons else [slots(of.annotators)]
    if not summary.foreground:
        found.append(_nothing(of.classes[0], summary.pixels))
    found += _not_told_apart(of.annotators, summary)
    if of.persons:
        found += noise(of.annotators, labels.kappa, labels.classes, bool(labels.given))
    if trust.reference == "given":
        found += wrong_alike(labels)
    if trust.reference == "majority":
        found += ties(labels)
    return found + list(_trust(trust))


def slots(annotators: Sequence[str]) -> Finding:
    """Columns of a table that pass for persons."""
    return Finding(
        "slots",
        "warning",
        "These annotators are not persons",
        f"{listed(annotators)} are the columns of a table, filled by other people from image to "
        "image. Figures of a single annotator, and who decides or dissents, mean nothing here. "
        "Trust what treats the masks of an image as a set.",
    )


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
        share = f"disputed are {summary.dispute:.0%} of the pixels, and there "
        yield Finding(
            "identical",
            "warning",
            f"The model expects the same of all {people} annotators",
            f"{'' if certain else share}no two of them differ by {_ALIKE:.0%} in probability. "
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


def noise(
    annotators: Sequence[str], kappa: Shares, classes: Shares, given: bool
) -> Iterator[Finding]:
    """Annotators who draw something else than all others, who agree with each other.

    Args:
        annotators: names, length N.
        kappa: of each two annotators, ``[N, N]``.
        classes: pixels of each annotator by class, ``[N, C]``.
        given: whether these are real masks, or what a model expects.
    """
    own = np.eye(len(annotators), dtype=bool)
    pairs = np.ma.masked_invalid(np.where(own, np.nan, kappa))
    mean = pairs.mean(axis=1).filled(1)
    for n in np.flatnonzero((mean < _NOISE) & classes[:, 1:].any(axis=1)):
        among = np.ma.filled(pairs[~own[n]][:, ~own[n]].mean(), 0)
        if among >= _SENSE:
            name, how = annotators[int(n)], "" if given else ", as the model expects"
            yield Finding(
                "noise",
                "warning",
                f"What {name} draws has nothing to do with what the others draw",
                f"Agreement beyond chance (Cohen's kappa) with them is {mean[n]:.2f}{how}, theirs "
                f"with each other {among:.2f}. So {name} is noise in votes and dispute, and as a "
                f"dissenter says nothing. Look at the masks of {name}; leave them out with "
                "exclude_annotators if they are at fault.",
            )


def wrong_alike(labels: LabelCounts) -> Iterator[Finding]:
    """An error of all, which neither votes nor weights can show."""
    share = labels.wrong_alike / max(1, labels.objects)
    if share >= _WRONG:
        yield Finding(
            "wrong-alike",
            "warning",
            f"On {share:.0%} of what is drawn all annotators are wrong alike",
            f"There all say the same{labels.how}, and the reference says something else. Nobody "
            "can be trusted there, and votes and weights cannot show it. Was the reference drawn "
            "by another rule? If not, have such images labelled again.",
        )


def ties(labels: LabelCounts) -> Iterator[Finding]:
    """Pixels on which a majority says nothing."""
    share = labels.tied / max(1, labels.differ)
    if share >= _TIED:
        yield Finding(
            "ties",
            "warning",
            f"On {share:.0%} of the pixels where annotators differ their majority is a tie",
            f"As many say one class as another there{labels.how}: it is not known who is right, "
            "and trust is taught by the other pixels alone. Give a reference of your own, set "
            "reference=staple, or add an annotator.",
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


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names as a sentence has them; a long list is cut.

    Example:
        >>> listed(["Ana", "Ben", "Cleo"])
        'Ana, Ben and Cleo'
    """
    shown = list(names)
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
