"""A data set as a table of samples, and the decoding of the files that it names."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.labels import (
    IGNORE_NAME,
    MaskValues,
    check_mask_values,
    has_colours,
    labels_from_values,
)
from tax_lightning.data.patches import Place, check_patches
from tax_lightning.data.pixels import (
    Pictures,
    cut,
    palette_of,
    read_colours,
    read_size,
    size_text,
)
from tax_lightning.data.splits import SPLITS, fold_groups, split_groups
from tax_lightning.windows import Window, cover

_PICTURES = Pictures()
_MAX_CLASSES = 254  # labels are stored as uint8, with 255 for "not labelled"


@dataclass(frozen=True)
class Sample:
    """One image and the masks that the annotators drew on it, as files.

    Args:
        id: Name of the image, unique in its table.
        image: The image file.
        masks: Annotator name -> mask file. An annotator missing here did not label the image.
        reference: File of a reference segmentation, where there is one.
        group: Patient, slide or scan the image belongs to; ``""`` means the image stands alone.
        split: ``"train"``, ``"val"``, ``"test"``, or None as long as it is not assigned.
        window: The part of the image that the sample shows; None: all of it.
        owner: File that tells for each pixel who is the expert, by their place among all
            annotators; of simulated data only.
        facts: What else is known of the image: column of ``samples.csv`` -> text.
        shown_before: Rows at the top and columns at the left that another part of the image shows
            too, and that are not to be counted again: they are read as not labelled.
    """

    id: str
    image: Path
    masks: Mapping[str, Path]
    reference: Path | None = None
    group: str = ""
    split: str | None = None
    window: Window | None = None
    owner: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    shown_before: tuple[int, int] = (0, 0)

    @property
    def place(self) -> Place | None:
        """Where the sample lies if it is a part of an image; None if it is whole."""
        return Place.of(self.facts, self.id)

    @property
    def group_name(self) -> str:
        """Name of the group, which is the sample's own id where it stands alone."""
        return self.group or self.id

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """The files of all masks, that of the reference last."""
        reference = () if self.reference is None else (self.reference,)
        return (*self.masks.values(), *reference)


@dataclass(frozen=True)
class RawSample:
    """One decoded sample before any transform.

    Its arrays are its own. A source that keeps one for the next time marks it as not writeable.

    Args:
        id: Name of the image.
        image: uint8 in 0..255, or float32 in [0, 1]; ``[H, W, ch]``.
        masks: uint8 class ids ``[N, H, W]``; `IGNORE_INDEX` where not labelled.
        present: bool ``[N]``: the annotator labelled this image (an empty mask is present).
        reference: uint8 class ids ``[H, W]``; `IGNORE_INDEX` where unknown.
        facts: What else is known of the image: column of ``samples.csv`` -> text, and ``file``,
            the name of its file; of a tile, whose image is in no file, there is none.
        expert: uint8 ``[H, W]``: index of the annotator who is the expert here,
            `IGNORE_INDEX` for none.
        deviation: uint8 ``[N, H, W]``: 0 where the annotator agrees with the truth, else the id of
            the rule that changed the pixel.
    """

    id: str
    image: npt.NDArray[Any]
    masks: npt.NDArray[np.uint8]
    present: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.uint8] | None = None
    expert: npt.NDArray[np.uint8] | None = None
    deviation: npt.NDArray[np.uint8] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleTable:
    """All samples of a data set, and how their pixels are to be read.

    A reader's whole work is to turn a folder into such a table. The table checks everything that
    names alone can tell as soon as it is made; `check` opens the files too.

    Args:
        samples: The samples, in any order.
        annotators: Names of the annotators; their order is that of the axis ``N``.
        classes: Names of the classes; the index is the class id and the first is the background.
        mask_values: Grey value or colour in the mask files -> class name, or ``"ignore"``. None:
            the values are class ids.
        pictures: How image files become pixels.
        with_reference: Samples without a reference file get one that is unknown everywhere. Turns
            true by itself where any sample has a file, and stays so in every part of the table.

    Raises:
        ValueError: If names are missing, double or unknown, or a group lies in two splits.

    Example:
        >>> cell = Sample("a", Path("a.png"), {"Ann": Path("ann/a.png")}, split="train")
        >>> table = SampleTable((cell,), ("Ann", "Bob"), ("background", "cell"), {0: "background",
        ...     255: "cell"})
        >>> table.ids, table.select("train").ids, table.select("test").ids
        (('a',), ('a',), ())
    """

    samples: tuple[Sample, ...]
    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    mask_values: MaskValues | None = None
    pictures: Pictures = _PICTURES
    with_reference: bool = False

    def __post_init__(self) -> None:
        check_names(self.annotators, self.classes)
        check_mask_values(self.mask_values, self.classes)
        _check_samples(self.samples, self.annotators)
        if any(sample.reference is not None for sample in self.samples):
            object.__setattr__(self, "with_reference", True)  # the table is frozen

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RawSample:
        """The decoded sample at this place of the table."""
        return self.read(self.samples[index])

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.pictures.channels

    @property
    def ids(self) -> tuple[str, ...]:
        """The samples' ids, in the order of the table."""
        return tuple(sample.id for sample in self.samples)

    def select(self, split: str) -> SampleTable:
        """The part of the table that belongs to one split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.")
        return replace(self, samples=tuple(s for s in self.samples if s.split == split))

    def split_by_seed(
        self, val_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0
    ) -> SampleTable:
        """Draw the splits at random, keeping every group whole.

        The draw depends on the ids, the groups and the seed only, not on the samples' order.

        Args:
            val_fraction: Share of the samples for validation, in [0, 1).
            test_fraction: Share of the samples for testing, in [0, 1).
            seed: Seed of the draw.

        Raises:
            ValueError: If the fractions leave nothing for training, or there are fewer groups than
                splits to fill.
        """
        sizes = Counter(sample.group_name for sample in self.samples)
        split_of = split_groups(sizes, val_fraction, test_fraction, seed)
        return replace(
            self, samples=tuple(replace(s, split=split_of[s.group_name]) for s in self.samples)
        )

    def split_by_fold(
        self, fold: int, folds: int, val_fraction: float = 0.15, seed: int = 0
    ) -> SampleTable:
        """Splits for cross-validation: every group is tested in exactly one of the folds.

        Args:
            fold: Number of the fold to test on, from 0.
            folds: Number of folds, at least 2.
            val_fraction: Share of the samples outside the fold for validation, in [0, 1).
            seed: Seed of the draw; the same for all folds.

        Raises:
            ValueError: If there is no such fold, or there are too few groups.
        """
        sizes = Counter(sample.group_name for sample in self.samples)
        fold_of = fold_groups(sizes, folds, seed)
        if not 0 <= fold < folds:
            raise ValueError(f"fold={fold}: expected 0..{folds - 1}, as folds={folds}.")
        rest = {name: size for name, size in sizes.items() if fold_of[name] != fold}
        split_of = dict.fromkeys(sizes, "test") | split_groups(rest, val_fraction, 0.0, seed)
        return replace(
            self, samples=tuple(replace(s, split=split_of[s.group_name]) for s in self.samples)
        )

    def in_patches(self, size: int, stride: int | None = None) -> SampleTable:
        """Cut every image into square windows, each a sample of its own.

        A patch is named ``NAME@top,left`` and stays in the group of its image. The last windows of
        a row and a column are moved inwards. An image that fits into one patch stays as it is.

        Args:
            size: Side of a patch, in pixels.
            stride: Pixels from one patch to the next, 1..size; None: the size.

        Raises:
            ValueError: If ``size`` or ``stride`` is out of range, a file cannot be read, or a
                mask's size is not that of its image.
        """
        check_patches(size, stride)
        return replace(
            self,
            samples=tuple(
                patch for sample in self.samples for patch in self._patches(sample, size, stride)
            ),
        )

    def _patches(self, sample: Sample, size: int, stride: int | None) -> Iterable[Sample]:
        shown = sample.window or Window(0, 0, *self._checked_size(sample))
        windows = cover(shown.height, shown.width, size, stride)
        if len(windows) == 1:
            return (sample,)
        return (
            replace(
                sample,
                id=f"{sample.id}@{top},{left}",
                group=sample.group_name,
                window=Window(shown.top + top, shown.left + left, height, width),
                facts=_placed(sample, top, left, shown),
            )
            for top, left, height, width in windows
        )

    def counted_once(self) -> SampleTable:
        """The same with every labelled pixel in one sample only, where parts of an image overlap.

        Figures would count pixels twice else. A part leaves out what the part above it and the part
        to its left show.
        """
        tops: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lefts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        parts = [(sample, place) for sample in self.samples if (place := sample.place) is not None]
        for sample, place in parts:
            size = sample.window or Window(0, 0, *read_size(sample.image))
            tops[place.whole].append((place.top, size.height))
            lefts[place.whole].append((place.left, size.width))

        def before(place: Place) -> tuple[int, int]:
            rows, columns = (
                max([0, *(start + long - at for start, long in there if start < at)])
                for there, at in ((tops[place.whole], place.top), (lefts[place.whole], place.left))
            )
            return rows, columns

        known = {sample.id: before(place) for sample, place in parts}
        return replace(
            self,
            samples=tuple(replace(s, shown_before=known.get(s.id, (0, 0))) for s in self.samples),
        )

    def from_top(self) -> SampleTable:
        """The same with the parts of an image one after the other, from top to bottom.

        So a prediction can be written while it grows. Whole images come first, in their order.
        """

        def order(sample: Sample) -> tuple[str, int, int]:
            place = sample.place
            return ("", 0, 0) if place is None else (place.whole, place.top, place.left)

        return replace(self, samples=tuple(sorted(self.samples, key=order)))

    def _checked_size(self, sample: Sample) -> tuple[int, int]:
        """Height and width of an image, which are those of its masks too.

        A window would fit into a mask of another size, and show another place of it.
        """
        size = read_size(sample.image)
        for file in sample.mask_files:
            _check_mask_size(file, read_size(file), sample.image, size)
        return size

    def read(self, sample: Sample) -> RawSample:
        """Decode one sample's files, or the window of them that it shows.

        Args:
            sample: A sample of this table.

        Raises:
            ValueError: If a file cannot be decoded, a mask's size is not that of its image, or a
                mask holds a value that is no class.
        """
        image = self.pictures.image(sample.image, sample.window)
        size = image.shape[:2]
        masks = np.empty((len(self.annotators), *size), np.uint8)
        for name, plane in zip(self.annotators, masks, strict=True):
            if name in sample.masks:
                self._read_labels(sample.masks[name], sample, plane)
            else:
                plane[:] = IGNORE_INDEX
        reference = self._read_reference(sample, size)
        rows, columns = sample.shown_before
        for labels in (masks, *(() if reference is None else (reference,))):
            labels[..., :rows, :] = IGNORE_INDEX
            labels[..., :columns] = IGNORE_INDEX
        return RawSample(
            id=sample.id,
            image=image,
            masks=masks,
            present=np.array([name in sample.masks for name in self.annotators], dtype=np.bool_),
            reference=reference,
            expert=None if sample.owner is None else self._read_owner(sample, size),
            facts=sample.facts if sample.place else {**sample.facts, "file": sample.image.name},
        )

    def check(self, look: Callable[[RawSample], None] = lambda sample: None) -> None:
        """Decode every file once, so that a broken one is found before training and not halfway.

        Args:
            look: Called with each decoded sample, from any thread.

        Raises:
            ValueError: As `read`, for the first sample that cannot be read; or if the numbers of
                two masks' palettes mean different colours, so that they are no class ids.
        """
        for_each(lambda sample: look(self.read(sample)), self.samples)
        if not has_colours(self.mask_values):
            self._check_palettes()

    def _check_palettes(self) -> None:
        seen: dict[int, tuple[tuple[int, int, int], Path]] = {}
        for file in (file for sample in self.samples for file in sample.mask_files):
            for number, colour in palette_of(file).items():
                known, first = seen.setdefault(number, (colour, file))
                if known != colour:
                    raise ValueError(
                        f"Masks {first} and {file} have palettes that differ: number {number} is "
                        f"the colour {known} in one and {colour} in the other, so numbers do not "
                        "tell classes. Give colours in mask_values, e.g. "
                        f'"{",".join(map(str, colour))}": {self.classes[-1]}.'
                    )

    def _read_reference(
        self, sample: Sample, size: tuple[int, ...]
    ) -> npt.NDArray[np.uint8] | None:
        if sample.reference is None and not self.with_reference:
            return None
        labels = np.full(size, IGNORE_INDEX, np.uint8)
        if sample.reference is not None:
            self._read_labels(sample.reference, sample, labels)
        return labels

    def _read_owner(self, sample: Sample, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Who is the expert at each pixel, by their place among the annotators."""
        assert sample.owner is not None  # asked by `read`
        owner = self.pictures.mask(sample.owner, sample.window)
        _check_mask_size(sample.owner, owner.shape, sample.image, size)
        known = (owner < len(self.annotators)) | (owner == IGNORE_INDEX)
        if not known.all():
            raise ValueError(
                f"{sample.owner} holds the value {owner[~known][0]}, expected the place of an "
                f"annotator, below {len(self.annotators)}, or {IGNORE_INDEX} for nobody."
            )
        return owner.astype(np.uint8)

    def _read_labels(self, file: Path, sample: Sample, out: npt.NDArray[np.uint8]) -> None:
        """Write the class ids of one mask file to an array of its image's size."""
        if has_colours(self.mask_values):
            values = cut(read_colours(file), sample.window)
        else:
            values = self.pictures.mask(file, sample.window)
        _check_mask_size(file, values.shape[:2], sample.image, out.shape)
        labels_from_values(values, self.classes, self.mask_values, file, out)


def _placed(sample: Sample, top: int, left: int, shown: Window) -> dict[str, str]:
    """The facts of a part of a sample, which may be a part of a larger image itself."""
    around = sample.place
    if around is None:
        place = Place(sample.id, top, left, shown.height, shown.width)
        return {**sample.facts, **place.facts(), "file": sample.image.name}
    place = around._replace(top=around.top + top, left=around.left + left)
    return {**sample.facts, **place.facts()}


def _check_mask_size(
    file: Path, size: tuple[int, ...], image: Path, wanted: tuple[int, ...]
) -> None:
    if size != wanted:
        raise ValueError(
            f"Mask {file} is {size_text(size)} pixels, but its image {image} is "
            f"{size_text(wanted)}. Export the mask at the size of the image."
        )


def for_each(read: Callable[[Sample], object], samples: Iterable[Sample]) -> None:
    """Read samples in several threads and keep nothing of them.

    Args:
        read: What reads one.
        samples: The samples.
    """

    def dropped(sample: Sample) -> None:
        read(sample)  # the pixels may not pile up in the pool

    workers = min(8, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter lock
        for _ in pool.map(dropped, samples):
            pass


def check_names(annotators: Sequence[str], classes: Sequence[str]) -> None:
    """Check the names of annotators and classes.

    Args:
        annotators: Names of the annotators.
        classes: Names of the classes, the background first.

    Raises:
        ValueError: If there are too few names, or double or reserved ones.
    """
    if len(classes) < 2:
        wish = ", ".join(["background", *classes])
        raise ValueError(
            f"classes: [{', '.join(classes)}] has {len(classes)} name(s), expected at least 2: "
            f"name the background first, e.g. [{wish}]."
        )
    if len(classes) > _MAX_CLASSES:
        raise ValueError(f"classes has {len(classes)} names, expected at most {_MAX_CLASSES}.")
    if IGNORE_NAME in classes:
        raise ValueError(
            f"classes: the name {IGNORE_NAME!r} is reserved for pixels without a label. "
            "Give the class another name, or map its grey value to 'ignore' in mask_values."
        )
    if not annotators:
        raise ValueError("annotators is empty, expected at least one name.")
    for argument, names in (("classes", classes), ("annotators", annotators)):
        if double := _first_double(names):
            raise ValueError(f"{argument}: the name {double!r} stands twice, expected it once.")


def _check_samples(samples: Sequence[Sample], annotators: Sequence[str]) -> None:
    """Unique ids, known annotators and splits, and every group in one split."""
    if double := _first_double(sample.id for sample in samples):
        raise ValueError(f"Sample id {double!r} stands twice, expected every id once: rename one.")
    split_of: dict[str, str | None] = {}
    for sample in samples:
        Place.of(sample.facts, sample.id)  # refuses what is no place
        if unknown := set(sample.masks) - set(annotators):
            raise ValueError(
                f"Sample {sample.id!r} has a mask of {min(unknown)!r}, who is not among the "
                f"annotators {', '.join(annotators)}."
            )
        if sample.split is not None and sample.split not in SPLITS:
            raise ValueError(
                f"Sample {sample.id!r} is in split {sample.split!r}, expected one of "
                f"{', '.join(SPLITS)}."
            )
        other = split_of.setdefault(sample.group_name, sample.split)
        if other != sample.split:
            raise ValueError(
                f"Group {sample.group_name!r} lies in two splits, {other} and {sample.split}: its "
                "images would leak from training into testing. Put all of them into one split."
            )


def _first_double(names: Iterable[str]) -> str | None:
    """The first name that stands more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
