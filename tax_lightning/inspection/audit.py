"""What is counted about a data set: one pass over its samples, and nothing kept of the pixels."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from skimage.measure import label

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import Source
from tax_lightning.data.samples import RawSample, SampleTable
from tax_lightning.data.splits import SPLITS
from tax_lightning.findings import LabelCounts
from tax_lightning.tendencies import Groups, tendency_sums

ABSENT, EMPTY, DRAWN = range(3)
"""What an annotator did with an image: no mask, a mask without foreground, one with."""

OUTLIERS = 6
"""How many of the masks that disagree most with all others are kept by name."""

_ONE_HOT = 2**22  # entries multiplied at a time; up to 2**24 float32 counts without error
Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where a sample stands: its split, its number there, its name, its group if it has one."""

    split: str
    number: int
    id: str
    group: str = ""


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """What is known about one image after it was looked at; ``N`` annotators, ``C`` classes.

    Args:
        place: Where it stands.
        size: Height and width in pixels.
        digest: Hash of the pixels; equal images have equal ones.
        confusion: ``[M, C, M, C]``: pixels that one plane calls by one class and another plane by
            another, where both are labelled. The planes are the N annotators' masks, and then the
            reference where there is one. Zero for those who are absent.
        labels: Where the annotators differ, tie, or are wrong alike.
        ignored: Pixels of a mask that bear no label ``[N]``.
        objects: Connected pieces of foreground, those of different classes apart ``[N]``.
        rim: Share of the pixels at the image's border that are foreground, in [0, 1] ``[N]``.
        tendencies: Sums of `tendency_sums` over the annotators' masks.
    """

    place: Place
    size: tuple[int, int]
    digest: bytes
    confusion: Counts
    labels: LabelCounts
    ignored: Counts
    objects: Counts
    rim: Array
    tendencies: Array

    @property
    def class_pixels(self) -> Counts:
        """Pixels of each class in each plane ``[M, C]``."""
        return _class_pixels(self.confusion)

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """`ABSENT`, `EMPTY` or `DRAWN` for each plane ``[M]``."""
        pixels = self.class_pixels
        drawn = np.where(pixels[:, 1:].any(1), DRAWN, EMPTY)
        return np.where(pixels.any(1), drawn, ABSENT).astype(np.uint8)


class ImageRow(NamedTuple):
    """What is kept of each image."""

    place: Place
    size: tuple[int, int]
    digest: bytes
    status: bytes
    """`ABSENT`, `EMPTY` or `DRAWN`, a byte for each annotator."""
    equal: tuple[tuple[int, int], ...]
    """Pairs of planes with equal masks that are not empty; the reference is plane ``N``."""


class Outlier(NamedTuple):
    """A mask that disagrees with all others of its image.

    ``dice`` is its mean Dice with them, ``among_others`` is theirs with each other (NaN if there is
    one other only).
    """

    dice: float
    among_others: float
    annotator: str
    place: Place


@dataclass(frozen=True, eq=False)
class Audit:
    """A data set in numbers; annotators ``N``, classes ``C``. NaN where there was no case.

    Args:
        annotators: Names, in the order of every axis ``N``.
        classes: Names, the background first.
        persons: Whether an annotator is the same person throughout.
        has_reference: Whether there is a reference segmentation.
        images: One row an image, in the order of the splits.
        class_pixels: Labelled pixels by class ``[N, C]``.
        ignored: Pixels of masks without a label ``[N]``.
        relative_area: Foreground area over the mean of the annotators present on the image, mean
            over the images with foreground ``[N]``.
        objects: Connected pieces of foreground in a mask that is not empty, mean ``[N]``.
        object_size: Their mean area in pixels ``[N]``.
        inside_out: Images on which the annotator's foreground covers more than half, and more than
            half of the border ``[N]``.
        dice: Mean Dice of two annotators over the images on which it is defined ``[N, N]``.
        kappa: Cohen's kappa of two annotators over all pixels that both labelled ``[N, N]``.
        foreground_dice: Mean Dice of foreground against background, over the images on which
            neither mask is empty ``[N, N]``.
        inverted_dice: The same with the first annotator's mask inverted ``[N, N]``.
        reference_dice: Mean Dice with the reference ``[N]``.
        tendencies: Sums of `tendency_sums` over all images.
        outliers: The masks with the lowest mean Dice with all others, at most one an image.
        labels: Where the annotators differ, tie, or are wrong alike.
        groups: Groups of annotators, by which tables are read too.
    """

    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    persons: bool
    has_reference: bool
    images: tuple[ImageRow, ...]
    class_pixels: Counts
    ignored: Counts
    relative_area: Array
    objects: Array
    object_size: Array
    inside_out: Counts
    dice: Array
    kappa: Array
    foreground_dice: Array
    inverted_dice: Array
    reference_dice: Array
    tendencies: Array
    outliers: tuple[Outlier, ...]
    labels: LabelCounts
    groups: Groups

    @property
    def class_shares(self) -> Array:
        """Share of each class in an annotator's labelled pixels, in [0, 1] ``[N, C]``."""
        return _ratio(self.class_pixels, self.class_pixels.sum(1, keepdims=True))

    def rows(self, split: str | None = None) -> list[ImageRow]:
        """The images of a split, of all splits without one."""
        return [row for row in self.images if split in (None, row.place.split)]

    def masks(self, status: int, split: str | None = None) -> Counts:
        """How many images have this status ``[N]``: `ABSENT`, `EMPTY` or `DRAWN`."""
        given = np.array([list(row.status) for row in self.rows(split)], np.uint8)
        return np.asarray((given.reshape(-1, len(self.annotators)) == status).sum(0))

    def mean_with_others(self, pairs: Array) -> Array:
        """Mean of each row of a matrix ``[N, N]`` without its diagonal ``[N]``."""
        others = np.where(np.eye(len(pairs), dtype=np.bool_), np.nan, pairs)
        return _ratio(np.nansum(others, 1), (~np.isnan(others)).sum(1))


def audit(
    data: MultiAnnotatorDataModule,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int | None = None,
) -> Audit:
    """Look once at every sample of every split, without transforms.

    Memory holds a few images at a time, and of those that were looked at a row of counts each.

    Args:
        data: Any data module.
        progress: Called with the number of images looked at, and of all images.
        threads: Images that are looked at at the same time. None: by the processors, at most 4.

    Returns:
        The counts.

    Raises:
        ValueError: If there are no samples, or a file cannot be read; the message names it.

    Example:
        >>> from tax_lightning.data import SyntheticDataModule
        >>> data = SyntheticDataModule(train_samples=2, val_samples=1, test_samples=0)
        >>> found = audit(data)
        >>> len(found.rows("train")), len(found.rows("val")), found.dice.shape
        (2, 1, (5, 5))
    """
    sources = {split: data._samples_of(split) for split in SPLITS}
    places = list(_places(data, sources))
    if not places:
        raise ValueError(
            f"{type(data).__name__} has no samples in any split, expected at least one."
        )
    classes = len(data.classes)

    def look(place: Place) -> ImageCounts:
        return count_image(sources[place.split][place.number], classes, place)

    tally = Tally(data.annotators, data.classes)
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for done, counts in enumerate(pool.map(look, places), start=1):
            tally.add(counts)
            progress(done, len(places))
    return tally.result(persons=data.persons, groups=data.groups)


def _places(data: MultiAnnotatorDataModule, sources: dict[str, Source]) -> Iterator[Place]:
    """Every sample in order, with its group where the data module has a table that tells it."""
    table = getattr(data, "table", None)
    samples = table.samples if isinstance(table, SampleTable) else ()
    groups = {sample.id: sample.group for sample in samples}
    for split, source in sources.items():
        for index, name in enumerate(source.ids):
            yield Place(split, index, name, groups.get(name, ""))


def count_image(sample: RawSample, classes: int, place: Place) -> ImageCounts:
    """Count what there is to count in one image.

    Args:
        sample: Decoded sample.
        classes: Number of classes.
        place: Where it stands.
    """
    absent = ~sample.present[:, None, None]
    masks = np.where(absent, IGNORE_INDEX, sample.masks) if absent.any() else sample.masks
    planes = masks if sample.reference is None else np.stack([*masks, sample.reference])
    rim = np.ones(masks.shape[1:], np.bool_)
    rim[1:-1, 1:-1] = False
    ignored, objects, on_rim = zip(*(_look_at(mask, rim) for mask in masks), strict=True)
    return ImageCounts(
        place=place,
        size=(masks.shape[1], masks.shape[2]),
        digest=_digest(sample.image),
        confusion=pair_confusion(planes, classes),
        labels=LabelCounts.of(masks, classes, sample.reference),
        ignored=np.where(sample.present, ignored, 0),
        objects=np.array(objects, np.int64),
        rim=np.array(on_rim, np.float64),
        tendencies=tendency_sums(masks, classes),
    )


def _look_at(mask: npt.NDArray[np.uint8], rim: npt.NDArray[np.bool_]) -> tuple[int, int, float]:
    """Of one mask: its unlabelled pixels, its objects, and how much of the rim is foreground."""
    unlabelled = mask == IGNORE_INDEX
    drawn = np.where(unlabelled, 0, mask)
    pieces = int(label(drawn, connectivity=2).max()) if drawn.any() else 0
    return int(unlabelled.sum()), pieces, float((drawn[rim] > 0).mean())


def _digest(image: npt.NDArray[np.generic]) -> bytes:
    """A hash of shape, type and pixels."""
    head = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def pair_confusion(planes: npt.NDArray[np.uint8], classes: int) -> Counts:
    """How many pixels each two label planes call by each two classes.

    The product of all one-hot planes with themselves is every confusion matrix at once.

    Args:
        planes: Class ids ``[M, H, W]``, 255 where not labelled.
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
    step = max(1, _ONE_HOT // width)
    ids = np.arange(classes, dtype=np.uint8)[:, None]
    for start in range(0, flat.shape[1], step):
        part = flat[there, None, start : start + step]
        one_hot = (part == ids).reshape(width, -1).astype(np.float32)
        product += (one_hot @ one_hot.T).astype(np.int64)
    counts[there[:, None], :, there] = product.reshape(
        len(there), classes, len(there), classes
    ).transpose(0, 2, 1, 3)
    return counts


def _class_pixels(confusion: Counts) -> Counts:
    """Pixels of each class in each plane ``[M, C]``: what a plane has in common with itself."""
    return np.asarray(np.einsum("icic->ic", confusion))


def pair_dice(confusion: Counts) -> Array:
    """Dice of each two planes, averaged over the foreground classes present in either.

    Args:
        confusion: As `pair_confusion` returns it, ``[M, C, M, C]``.

    Returns:
        ``[M, M]`` in [0, 1]; NaN where neither plane has foreground, or one is absent.

    Source:
        L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    both = np.einsum("icjc->ijc", confusion)[..., 1:]
    sizes = confusion.sum(3).transpose(0, 2, 1) + confusion.sum(1).transpose(0, 1, 2)
    dice = _ratio(2 * both, sizes[..., 1:])
    return _ratio(np.nansum(dice, 2), (~np.isnan(dice)).sum(2))


def pair_kappa(confusion: Counts) -> Array:
    """Cohen's kappa of each two planes, over all classes.

    Args:
        confusion: As `pair_confusion` returns it, ``[M, C, M, C]``.

    Returns:
        ``[M, M]``, at most 1; NaN without a common pixel, and where chance alone agrees wholly.

    Source:
        J. Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    total = confusion.sum((1, 3))
    agreed = _ratio(np.einsum("icjc->ij", confusion), total)
    first = _ratio(confusion.sum(3).transpose(0, 2, 1), total[..., None])
    second = _ratio(confusion.sum(1).transpose(0, 1, 2), total[..., None])
    chance = (first * second).sum(2)
    return _ratio(agreed - chance, 1 - chance)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Array:
    """Part by whole; NaN for 0 / 0."""
    whole = np.asarray(whole, np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(part, np.float64) / np.where(whole == 0, np.nan, whole)


@dataclass(eq=False)
class _Mean:
    """A mean of arrays of one shape, entry by entry, that passes over NaN."""

    total: Array | float = 0.0
    count: Counts | int = field(default=0)

    def add(self, values: Array) -> None:
        self.total = self.total + np.nan_to_num(values)
        self.count = self.count + (~np.isnan(values)).astype(np.int64)

    @property
    def value(self) -> Array:
        return _ratio(self.total, self.count)


class Tally:
    """Adds up the counts of single images.

    Args:
        annotators: Names of the annotators.
        classes: Names of the classes.
    """

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        self.annotators, self.classes = tuple(annotators), tuple(classes)
        people = len(self.annotators)
        self._rows: list[ImageRow] = []
        self._outliers: list[tuple[tuple[float, float, int], Outlier]] = []
        self._confusion: Counts | None = None
        self._labels: LabelCounts | None = None
        self._ignored, self._inside_out, self._pieces, self._drawn = np.zeros((4, people), np.int64)
        self._relative_area, self._dice = _Mean(), _Mean()
        self._foreground, self._inverted = _Mean(), _Mean()
        self._tendencies: Array | float = 0.0

    def add(self, image: ImageCounts) -> None:
        """Take one image into account."""
        people = len(self.annotators)
        pixels, status = image.class_pixels, image.status
        dice = pair_dice(image.confusion)
        self._rows.append(
            ImageRow(
                image.place,
                image.size,
                image.digest,
                status[:people].tobytes(),
                _equal_pairs(image.confusion, status),
            )
        )
        if self._confusion is None:
            self._confusion = np.zeros_like(image.confusion)
        self._confusion += image.confusion
        self._labels = image.labels if self._labels is None else self._labels + image.labels
        self._ignored += image.ignored
        self._pieces += image.objects
        self._drawn += status[:people] == DRAWN
        self._tendencies = self._tendencies + image.tendencies
        self._dice.add(dice)
        self._add_areas(pixels[:people], status[:people], image.rim)
        plain, inverted = _foreground_dice(image.confusion, status)
        self._foreground.add(plain)
        self._inverted.add(inverted)
        self._keep_outlier(dice[:people, :people], image.place)

    def _add_areas(self, pixels: Counts, status: npt.NDArray[np.uint8], rim: Array) -> None:
        area, present = pixels[:, 1:].sum(1), status != ABSENT
        mean = _ratio(area.sum(), present.sum())
        self._relative_area.add(np.where(present, _ratio(area, mean), np.nan))
        covered = np.nan_to_num(_ratio(area, pixels.sum(1)))
        self._inside_out += (covered > 0.5) & (rim > 0.5)

    def _keep_outlier(self, dice: Array, place: Place) -> None:
        """Remember the image's mask that agrees least with the others, if it is among the worst.

        Of masks that agree equally little, those come first whose others agree with each other.
        """
        others = np.where(np.eye(len(dice), dtype=np.bool_), np.nan, dice)
        means = _ratio(np.nansum(others, 1), (~np.isnan(others)).sum(1))
        if np.isnan(means).all():
            return
        worst = int(np.nanargmin(means))
        rest = np.delete(np.delete(others, worst, 0), worst, 1)
        among = float(_ratio(np.nansum(rest), (~np.isnan(rest)).sum()))
        found = Outlier(float(means[worst]), among, self.annotators[worst], place)
        key = (-found.dice, float(np.nan_to_num(among)), -len(self._rows))
        heapq.heappush(self._outliers, (key, found))
        if len(self._outliers) > OUTLIERS:
            heapq.heappop(self._outliers)

    def result(self, persons: bool = True, groups: Groups | None = None) -> Audit:
        """Everything that was counted.

        Args:
            persons: Whether an annotator is the same person throughout.
            groups: Groups of annotators.
        """
        # `audit` refuses data without samples.
        assert self._confusion is not None
        assert self._labels is not None
        people = len(self.annotators)
        mutual = (slice(people), slice(people))
        pixels = _class_pixels(self._confusion)[:people]
        has_reference = len(self._confusion) > people
        return Audit(
            annotators=self.annotators,
            classes=self.classes,
            persons=persons,
            has_reference=has_reference,
            images=tuple(self._rows),
            class_pixels=pixels,
            ignored=self._ignored,
            relative_area=self._relative_area.value,
            objects=_ratio(self._pieces, self._drawn),
            object_size=_ratio(pixels[:, 1:].sum(1), self._pieces),
            inside_out=self._inside_out,
            dice=self._dice.value[mutual],
            kappa=pair_kappa(self._confusion)[mutual],
            foreground_dice=self._foreground.value[mutual],
            inverted_dice=self._inverted.value[mutual],
            reference_dice=(
                self._dice.value[:people, people] if has_reference else np.full(people, np.nan)
            ),
            tendencies=np.asarray(self._tendencies),
            groups=groups or {},
            outliers=tuple(found for _, found in sorted(self._outliers, reverse=True)),
            labels=self._labels,
        )


def _equal_pairs(confusion: Counts, status: npt.NDArray[np.uint8]) -> tuple[tuple[int, int], ...]:
    """Pairs of planes that are not empty and equal in every pixel, labelled or not."""
    same = np.einsum("icjc->ij", confusion)
    labelled = np.diag(same)
    equal = (same == labelled[:, None]) & (same == labelled[None, :])
    equal &= (status == DRAWN)[:, None] & (status == DRAWN)[None, :]
    return tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(equal, 1)))


def _foreground_dice(confusion: Counts, status: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
    """Dice of foreground against background, as drawn and with the first mask inverted."""
    two = np.add.reduceat(np.add.reduceat(confusion, [0, 1], axis=1), [0, 1], axis=3)
    neither, second, first, both = (
        two[:, 0, :, 0],
        two[:, 0, :, 1],
        two[:, 1, :, 0],
        two[:, 1, :, 1],
    )
    plain = _ratio(2 * both, 2 * both + first + second)
    inverted = _ratio(2 * second, 2 * second + neither + both)
    undrawn = ~((status == DRAWN)[:, None] & (status == DRAWN)[None, :])
    return np.where(undrawn, np.nan, plain), np.where(undrawn, np.nan, inverted)
