"""What is counted about a data set: one pass over its samples, and nothing kept of the pixels."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.checks import QuickChecks
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import Source
from tax_lightning.data.samples import RawSample, SampleTable
from tax_lightning.data.splits import SPLITS
from tax_lightning.findings import Finding, LabelCounts
from tax_lightning.inspection.unlikely import Cases, count_cases
from tax_lightning.tendencies import Groups, tendency_sums

ABSENT, EMPTY, DRAWN = range(3)
"""What an annotator did with an image: no mask, a mask without foreground, one with."""

THUMB = 24
"""Side of the small pictures by which masks of different images are compared."""

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
        labels: Pixels that the annotators' masks and the reference, M = N + 1 planes, call alike
            and not; where they differ, tie, or are wrong alike.
        ignored: Pixels of a mask that bear no label ``[N]``.
        objects: Connected pieces of foreground, those of different classes apart ``[N]``.
        tendencies: Sums of `tendency_sums` over the annotators' masks.
        cases: What each annotator says where the others say something.
        thumb: Where most annotators draw, 0 to 255 ``[THUMB, THUMB]``.
    """

    place: Place
    size: tuple[int, int]
    digest: bytes
    labels: LabelCounts
    ignored: Counts
    objects: Counts
    tendencies: Array
    cases: Cases
    thumb: npt.NDArray[np.uint8]

    @property
    def class_pixels(self) -> Counts:
        """Pixels of each class in each plane ``[M, C]``."""
        return np.asarray(np.einsum("icic->ic", self.labels.pairs))

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


@dataclass(frozen=True, eq=False)
class Audit:
    """A data set in numbers; annotators ``N``, classes ``C``. NaN where there was no case.

    Args:
        annotators: Names, in the order of every axis ``N``.
        classes: Names, the background first.
        persons: Whether an annotator is the same person throughout.
        has_reference: Whether there is a reference segmentation.
        quick: What `QuickChecks` found.
        images: One row an image, in the order of the splits.
        class_pixels: Labelled pixels by class ``[N, C]``.
        ignored: Pixels of masks without a label ``[N]``.
        relative_area: Foreground area over the mean of the annotators present on the image, mean
            over the images with foreground ``[N]``.
        objects: Connected pieces of foreground in a mask that is not empty, mean ``[N]``.
        object_size: Their mean area in pixels ``[N]``.
        dice: Mean Dice of two annotators over the images on which it is defined ``[N, N]``.
        kappa: Cohen's kappa of two annotators over all pixels that both labelled ``[N, N]``.
        reference_dice: Mean Dice with the reference ``[N]``.
        tendencies: Sums of `tendency_sums` over all images.
        cases: Of each image, what each annotator says where the others say something.
        thumbs: Of each image, where most annotators draw, 0 to 255 ``[I, THUMB, THUMB]``.
        disputes: Of each image, the share of the pixels with several labels where they differ.
        labels: Where the annotators differ, tie, or are wrong alike.
        groups: Groups of annotators, by which tables are read too.
    """

    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    persons: bool
    has_reference: bool
    quick: tuple[Finding, ...]
    images: tuple[ImageRow, ...]
    class_pixels: Counts
    ignored: Counts
    relative_area: Array
    objects: Array
    object_size: Array
    dice: Array
    kappa: Array
    reference_dice: Array
    tendencies: Array
    cases: tuple[Cases, ...]
    thumbs: npt.NDArray[np.uint8]
    disputes: Array
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

    @property
    def together(self) -> Counts:
        """How many images each two annotators labelled both ``[N, N]``."""
        labelled = np.array([list(row.status) for row in self.images]) != ABSENT
        return np.asarray(labelled.T.astype(np.int64) @ labelled)

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
        >>> from tax_lightning.simulation import SyntheticDataModule
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

    quick = QuickChecks(data.annotators, data.classes[0])

    def look(place: Place) -> ImageCounts:
        sample = sources[place.split][place.number]
        quick.add(sample)
        return count_image(sample, classes, place)

    tally = Tally(data.annotators, data.classes)
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for done, counts in enumerate(pool.map(look, places), start=1):
            tally.add(counts)
            progress(done, len(places))
    return tally.result(quick.findings(), data.persons, data.groups)


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
    masks = given_labels(sample)
    ignored, objects = zip(*map(_look_at, masks), strict=True)
    return ImageCounts(
        place=place,
        size=(masks.shape[1], masks.shape[2]),
        digest=_digest(sample.image),
        labels=LabelCounts.of(masks, classes, sample.reference),
        ignored=np.where(sample.present, ignored, 0),
        objects=np.array(objects, np.int64),
        tendencies=tendency_sums(masks, classes),
        cases=count_cases(masks, classes),
        thumb=thumbnail(drawn(masks).mean(0) >= 0.5),
    )


def given_labels(sample: RawSample) -> npt.NDArray[np.uint8]:
    """The masks ``[N, H, W]``; 255 throughout for those who are absent."""
    if sample.present.all():
        return sample.masks
    return np.where(sample.present[:, None, None], sample.masks, np.uint8(IGNORE_INDEX))


def drawn(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where there is foreground."""
    return np.asarray((labels > 0) & (labels != IGNORE_INDEX))


def thumbnail(foreground: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """How much of each part of a picture is foreground, 0 to 255 ``[THUMB, THUMB]``."""
    grey = 255 * foreground.astype(np.uint8)
    return np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8)


def _look_at(mask: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Of one mask: its unlabelled pixels, and its objects."""
    objects = np.where(mask == IGNORE_INDEX, 0, mask)
    pieces = int(label(objects, connectivity=2).max()) if objects.any() else 0
    return int((mask == IGNORE_INDEX).sum()), pieces


def _digest(image: npt.NDArray[np.generic]) -> bytes:
    """A hash of shape, type and pixels."""
    head = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


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
        self._labels: LabelCounts | None = None
        self._cases: list[Cases] = []
        self._thumbs: list[npt.NDArray[np.uint8]] = []
        self._disputes: list[float] = []
        self._ignored, self._pieces, self._drawn = np.zeros((3, people), np.int64)
        self._relative_area, self._dice = _Mean(), _Mean()
        self._tendencies: Array | float = 0.0

    def add(self, image: ImageCounts) -> None:
        """Take one image into account."""
        people = len(self.annotators)
        pixels, status = image.class_pixels, image.status
        dice = pair_dice(image.labels.pairs)
        self._rows.append(
            ImageRow(
                image.place,
                image.size,
                image.digest,
                status[:people].tobytes(),
                _equal_pairs(image.labels.pairs, status),
            )
        )
        self._labels = image.labels if self._labels is None else self._labels + image.labels
        self._ignored += image.ignored
        self._pieces += image.objects
        self._drawn += status[:people] == DRAWN
        self._tendencies = self._tendencies + image.tendencies
        self._dice.add(dice)
        self._add_areas(pixels[:people], status[:people])
        self._cases.append(image.cases)
        self._thumbs.append(image.thumb)
        self._disputes.append(_ratio(image.labels.differ, image.labels.compared).item())

    def _add_areas(self, pixels: Counts, status: npt.NDArray[np.uint8]) -> None:
        area, present = pixels[:, 1:].sum(1), status != ABSENT
        mean = _ratio(area.sum(), present.sum())
        self._relative_area.add(np.where(present, _ratio(area, mean), np.nan))

    def result(self, quick: Sequence[Finding], persons: bool, groups: Groups) -> Audit:
        """Everything that was counted.

        Args:
            quick: What `QuickChecks` found.
            persons: Whether an annotator is the same person throughout.
            groups: Groups of annotators.
        """
        assert self._labels is not None  # `audit` refuses data without samples
        people = len(self.annotators)
        mutual = (slice(people), slice(people))
        pixels = self._labels.classes
        return Audit(
            annotators=self.annotators,
            classes=self.classes,
            persons=persons,
            has_reference=bool(self._labels.pairs[people].any()),
            quick=tuple(quick),
            images=tuple(self._rows),
            class_pixels=pixels,
            ignored=self._ignored,
            relative_area=self._relative_area.value,
            objects=_ratio(self._pieces, self._drawn),
            object_size=_ratio(pixels[:, 1:].sum(1), self._pieces),
            dice=self._dice.value[mutual],
            kappa=self._labels.kappa,
            reference_dice=self._dice.value[:people, people],
            tendencies=np.asarray(self._tendencies),
            groups=groups,
            cases=tuple(self._cases),
            thumbs=np.stack(self._thumbs),
            disputes=np.array(self._disputes),
            labels=self._labels,
        )


def _equal_pairs(confusion: Counts, status: npt.NDArray[np.uint8]) -> tuple[tuple[int, int], ...]:
    """Pairs of planes that are not empty and equal in every pixel, labelled or not."""
    same = np.einsum("icjc->ij", confusion)
    labelled = np.diag(same)
    equal = (same == labelled[:, None]) & (same == labelled[None, :])
    equal &= (status == DRAWN)[:, None] & (status == DRAWN)[None, :]
    return tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(equal, 1)))
