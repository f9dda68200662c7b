"""What would mislead who overlooks it: how it is said, and what label maps alone tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX

_ENTRIES = 2**22  # looked at at a time
_WRONG = 0.1  # share of the objects on which an error of all is worth a word
_TIED = 0.2  # share of the disputed pixels at which a majority is said to tie
_NOISE, _SENSE = 0.1, 0.3  # kappa of an annotator below, and of the others from

Shares = NDArray[np.float64]


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


# ----------------------------------------------------------------------------------------- counts


class Counts:
    """Counts of pixels, which add up over images."""

    def __add__(self, other: Self) -> Self:
        """The counts of both together."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class LabelCounts(Counts):
    """Counts of what annotators drew, or of what a model expects them to draw.

    Args:
        given: images of which the masks are given; the others have what is expected.
        same: ``[N, N]``, pixels to which two annotators give the same label.
        both: ``[N, N]``, pixels that two annotators label.
        classes: ``[N, C]``, pixels of each annotator by class.
        compared: pixels that two or more label.
        differ: those of them where labels differ.
        tied: those of them where no class has the most votes.
        objects: pixels of known reference where it, or an annotator, has no background.
        wrong_alike: those of them where two or more agree on a label that is not the reference's.
    """

    given: int
    same: Shares
    both: Shares
    classes: Shares
    compared: int
    differ: int
    tied: int
    objects: int
    wrong_alike: int

    @classmethod
    def of(
        cls,
        labels: NDArray[np.integer],
        classes: int,
        reference: NDArray[np.integer] | None = None,
        given: bool = True,
    ) -> LabelCounts:
        """The counts of one image; 255 is no label.

        Args:
            labels: class ids ``[N, H, W]``.
            classes: number of classes C.
            reference: class ids ``[H, W]``.
            given: whether the labels were drawn by the annotators.
        """
        flat = labels.reshape(len(labels), -1)
        truth = np.full_like(flat[0], IGNORE_INDEX) if reference is None else reference.reshape(-1)
        step = max(1, _ENTRIES // (len(flat) * classes))
        parts = range(0, max(1, len(truth)), step)
        counted = (cls._part(flat[:, i : i + step], truth[i : i + step], classes) for i in parts)
        return reduce(add, counted, cls(int(given), *[0] * 8))  # type: ignore[arg-type]

    @classmethod
    def _part(
        cls, labels: NDArray[np.integer], truth: NDArray[np.integer], classes: int
    ) -> LabelCounts:
        one_hot = labels[:, None] == np.arange(classes)[:, None]  # [N, C, P]
        votes = one_hot.sum(axis=0)
        labelled, most = votes.sum(axis=0), votes.max(axis=0)
        differ, judged = most < labelled, truth != IGNORE_INDEX
        wrong = judged & ~differ & (labelled > 1) & (votes.argmax(axis=0) != truth)
        drawn = one_hot.reshape(len(labels), -1).astype(np.float32)
        known = (labels != IGNORE_INDEX).astype(np.float32)
        return cls(
            given=0,
            same=(drawn @ drawn.T).astype(np.float64),
            both=(known @ known.T).astype(np.float64),
            classes=one_hot.sum(axis=2).astype(np.float64),
            compared=int((labelled > 1).sum()),
            differ=int(differ.sum()),
            tied=int((differ & ((votes == most).sum(axis=0) > 1)).sum()),
            objects=int((judged & ((truth > 0) | votes[1:].any(axis=0))).sum()),
            wrong_alike=int(wrong.sum()),
        )

    @property
    def how(self) -> str:
        """Words that tell masks from what is expected of them."""
        return "" if self.given else ", as the model expects"

    @property
    def dispute(self) -> float | None:
        """Share of the pixels at which given masks differ, in ``[0, 1]``."""
        return self.differ / self.compared if self.given and self.compared else None

    @property
    def kappa(self) -> Shares:
        """Cohen's kappa of each two annotators, ``[N, N]``; NaN where there is no case."""
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = self.classes / self.classes.sum(axis=1, keepdims=True)
            chance = shares @ shares.T
            kappa: Shares = (self.same / self.both - chance) / (1 - chance)
        return kappa


# --------------------------------------------------------------------------------------- findings


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
