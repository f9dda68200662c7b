"""What would mislead who overlooks it: how it is said, and what label maps alone tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX

_ENTRIES = 2**22  # looked at at a time
_WRONG = 0.1  # share of the objects on which an error of all is worth a word
_TIED = 0.2  # share of the disputed pixels at which a majority is said to tie
_RANGE = 0.25  # share of the intensities below which most are unused
_NOISE, _SENSE = 0.1, 0.3  # kappa of an annotator below, and of the others from

Shares = NDArray[np.float64]
Pixels = NDArray[np.int64]


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
        pairs: ``[N + 1, C, N + 1, C]``, as of `pair_confusion`; the last plane is the reference,
            which has no pixels where it is unknown.
        compared: pixels that two or more label.
        differ: those of them where labels differ.
        tied: those of them where no class has the most votes.
        objects: pixels of known reference where it, or an annotator, has no background.
        wrong_alike: those of them where two or more agree on a label that is not the reference's.
    """

    given: int
    pairs: Pixels
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
        pairs = pair_confusion(np.stack([*flat, truth]), classes)
        step = max(1, _ENTRIES // (len(flat) * classes))
        parts = range(0, max(1, len(truth)), step)
        counts = np.sum(
            [_dispute(flat[:, i : i + step], truth[i : i + step], classes) for i in parts], axis=0
        )
        return cls(int(given), pairs, *counts.tolist())

    @property
    def how(self) -> str:
        """Words that tell masks from what is expected of them."""
        return "" if self.given else ", as the model expects"

    @property
    def dispute(self) -> float | None:
        """Share of the pixels at which given masks differ, in ``[0, 1]``."""
        return self.differ / self.compared if self.given and self.compared else None

    @property
    def classes(self) -> Pixels:
        """Pixels of each annotator by class, ``[N, C]``."""
        own: Pixels = np.einsum("icic->ic", self.pairs)[:-1]
        return own

    @property
    def kappa(self) -> Shares:
        """Cohen's kappa of each two annotators over all classes, ``[N, N]``.

        At most 1; NaN without a common pixel, and where chance alone agrees wholly.

        Source:
            J. Cohen, "A coefficient of agreement for nominal scales", 1960.
        """
        pairs = self.pairs[:-1, :, :-1].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = pairs / pairs.sum((1, 3), keepdims=True)
            agreed = np.einsum("icjc->ij", shares)
            chance = np.einsum("icj,ijc->ij", shares.sum(3), shares.sum(1))
            kappa: Shares = (agreed - chance) / (1 - chance)
        return kappa


def _dispute(
    labels: NDArray[np.integer], truth: NDArray[np.integer], classes: int
) -> tuple[int, ...]:
    """The last five of the `LabelCounts` of some pixels: ``[N, P]``, and ``[P]``."""
    one_hot = labels[:, None] == np.arange(classes)[:, None]  # [N, C, P]
    votes = one_hot.sum(axis=0)
    labelled, most = votes.sum(axis=0), votes.max(axis=0)
    differ, judged = most < labelled, truth != IGNORE_INDEX
    wrong = judged & ~differ & (labelled > 1) & (votes.argmax(axis=0) != truth)
    cases = (
        labelled > 1,
        differ,
        differ & ((votes == most).sum(axis=0) > 1),
        judged & ((truth > 0) | votes[1:].any(axis=0)),
        wrong,
    )
    return tuple(int(case.sum()) for case in cases)


def pair_confusion(planes: NDArray[np.integer], classes: int) -> Pixels:
    """How many pixels each two label planes call by each two classes.

    The product of all one-hot planes with themselves is every confusion matrix at once.

    Args:
        planes: Class ids ``[M, ...]``, 255 where not labelled.
        classes: Number of classes ``C``.

    Returns:
        ``[M, C, M, C]``; pixels that either plane leaves unlabelled do not count.

    Example:
        >>> planes = np.array([[[0, 1, 1]], [[0, 0, 255]]], np.uint8)
        >>> pair_confusion(planes, 2)[0, :, 1].tolist()
        [[1, 0], [1, 0]]
    """
    flat = planes.reshape(len(planes), -1)
    there = np.flatnonzero([(plane != IGNORE_INDEX).any() for plane in flat])
    width = len(there) * classes
    counts = np.zeros((len(planes), classes, len(planes), classes), np.int64)
    if not width:
        return counts
    product = np.zeros((width, width), np.int64)
    step = max(1, _ENTRIES // width)  # up to 2**24 float32 count without error
    ids = np.arange(classes)[:, None]
    for start in range(0, flat.shape[1], step):
        part = flat[there, None, start : start + step]
        one_hot = (part == ids).reshape(width, -1).astype(np.float32)
        product += (one_hot @ one_hot.T).astype(np.int64)
    counts[there[:, None], :, there] = product.reshape(
        len(there), classes, len(there), classes
    ).transpose(0, 2, 1, 3)
    return counts


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


def types() -> Finding:
    """Ways of drawing that could be taken for persons."""
    return Finding(
        "types",
        "hint",
        "These are types of annotation, not persons",
        "In each image every mask was taken for the type that it fits best, whoever drew it. A "
        "type says how somebody may draw, and nothing about a person.",
    )


def noise(
    annotators: Sequence[str], kappa: Shares, classes: Pixels, given: bool
) -> Iterator[Finding]:
    """Annotators who draw something else than all others.

    Args:
        annotators: names, length N.
        kappa: of each two annotators, ``[N, N]``.
        classes: pixels of each annotator by class, ``[N, C]``; nothing drawn is no noise.
        given: whether these are real masks, or what a model expects.
    """
    own = np.eye(len(annotators), dtype=bool)
    pairs = np.ma.masked_invalid(np.where(own, np.nan, kappa))
    mean = pairs.mean(axis=1).filled(1)
    strangers, how = [], "" if given else ", as the model expects"
    for n in np.flatnonzero((mean < _NOISE) & classes[:, 1:].any(axis=1)):
        name = annotators[int(n)]
        among = np.ma.filled(pairs[~own[n]][:, ~own[n]].mean(), 0)
        if among < _SENSE:
            if given and pairs[n].max() < _NOISE:
                strangers.append(f"{name} ({mean[n]:.2f})")
            continue
        yield Finding(
            "noise",
            "warning",
            f"What {name} draws has nothing to do with what the others draw",
            f"Agreement beyond chance (Cohen's kappa) with them is {mean[n]:.2f}{how}, theirs "
            f"with each other {among:.2f}. So {name} is noise in votes and dispute, and as a "
            f"dissenter says nothing. Look at the masks of {name}; leave them out with "
            "exclude_annotators if they are at fault.",
        )
    if strangers:
        yield Finding(
            "strangers",
            "warning",
            "Some annotators agree with nobody",
            f"Mean agreement beyond chance (Cohen's kappa) with the others: "
            f"{listed(strangers)}; 0 is chance. The others hardly agree with each other either, so "
            "that it is not known who is at fault. Do masks belong to their images, and do all "
            "call the same things by the same class?",
        )


def polarity(
    annotators: Sequence[str],
    background: str,
    drawn: Pixels,
    inside_out: Pixels,
    plain: Shares,
    inverted: Shares,
) -> Iterator[Finding]:
    """Object and background swapped: by everybody, or by somebody.

    Args:
        annotators: names, length N.
        background: name of the first class.
        drawn: masks with foreground ``[N]``.
        inside_out: those of them whose foreground covers more than half of the image, and more than
            half of its border ``[N]``.
        plain: mean Dice of the foreground with all others ``[N]``, NaN where there is none.
        inverted: the same with the annotator's own masks inverted ``[N]``.
    """
    suspect = (inside_out * 2 > drawn) & (drawn > 0)
    swapped = (inverted > 0.5) & (inverted > plain + 0.2)
    if (swapped & suspect).any():  # of two who contradict each other, it is this one
        swapped &= suspect
    for index in np.flatnonzero(swapped):
        name = annotators[int(index)]
        yield Finding(
            "polarity",
            "warning",
            f"Object and background of {name} look swapped",
            f"The masks of {name} agree with the others' only when they are inverted: mean Dice "
            f"{inverted[index]:.2f} inverted, {plain[index]:.2f} as they are. Look at the files, "
            "and invert them before use.",
        )
    if left := [int(i) for i in np.flatnonzero(suspect & ~swapped)]:
        everybody = len(left) == int((drawn > 0).sum())
        names = "all annotators" if everybody else listed([annotators[i] for i in left])
        images, total = int(inside_out[left].sum()), int(drawn[left].sum())
        yield Finding(
            "polarity",
            "warning",
            f"Object and background look swapped: {names}",
            f"In {images} of {total} masks of {names} the foreground covers more than half of the "
            f"image and more than half of its border, as a background does. Is {background} "
            "really what the masks call it? If not, swap the values in mask_values.",
        )


def nothing_drawn(
    annotators: Sequence[str], labelled: Pixels, drawn: Pixels, background: str
) -> Iterator[Finding]:
    """Masks that are all empty, of everybody or of somebody.

    Args:
        annotators: names, length N.
        labelled: masks ``[N]``.
        drawn: those of them with foreground ``[N]``.
        background: name of the first class.
    """
    if labelled.any() and not drawn.any():
        yield Finding(
            "nothing-drawn",
            "warning",
            "Nobody drew anything",
            f"All {labelled.sum()} masks hold {background} alone. A model learns to say "
            f"{background} everywhere, and every score of it will be perfect. Are the values in "
            "mask_values right, and are these the right files?",
        )
    elif lazy := [annotators[int(n)] for n in np.flatnonzero((drawn == 0) & (labelled > 2))]:
        yield Finding(
            "nothing-drawn",
            "warning",
            f"All masks of {listed(lazy)} are empty",
            "Others drew something. An empty mask says that there is nothing to see; where nobody "
            "looked, take the files away, or leave the annotator out with exclude_annotators.",
        )


def constant_images(names: Sequence[str], images: int) -> Iterator[Finding]:
    """Images without any contrast.

    Args:
        names: of the images whose pixels are all equal.
        images: number of all images.
    """
    if names:
        yield Finding(
            "constant",
            "warning",
            f"{len(names)} of {images} images show nothing",
            f"All their pixels are equal: {listed(sorted(names), 4)}. Nothing can be learnt from "
            "them. Is a channel, a slice or the intensity_range wrong? Else remove them.",
        )


def unused_range(low: float, high: float) -> Iterator[Finding]:
    """Images that use a small part of the range of intensities.

    Args:
        low: the darkest value of all images, where 0 is black and 1 is white.
        high: the brightest.
    """
    if 0 < high - low < _RANGE:
        yield Finding(
            "range",
            "hint",
            "Most of the range of intensities is unused",
            f"The values of all images lie between {low:.1%} (black is 0%) and {high:.1%} (white "
            "is 100%), as those of 12 bits in files of 16 do. Set intensity_range to the values in "
            "the files that mean black and white, e.g. [0, 4095].",
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
