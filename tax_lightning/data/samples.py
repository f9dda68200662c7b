"""The table of samples that every reader produces, and the decoding of the files it names."""

from __future__ import annotations

import os
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

IGNORE_INDEX = 255
"""Label of a pixel that nobody labelled, or whose label is unknown."""

IGNORE_NAME = "ignore"
"""Reserved class name in ``mask_values``: grey values mapped to it become `IGNORE_INDEX`."""

SPLITS = ("train", "val", "test")

IMAGE_SUFFIXES = frozenset(
    {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
)

_MAX_CLASSES = 254  # labels are stored as uint8, with 255 for "not labelled"
_MAX_GREY = 65535
_BROKEN_FILE = (
    OSError,
    SyntaxError,  # Pillow's way to say that a PNG chunk is broken
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


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
    """

    id: str
    image: Path
    masks: Mapping[str, Path]
    reference: Path | None = None
    group: str = ""
    split: str | None = None

    @property
    def group_name(self) -> str:
        """Name of the group, which is the sample's own id where it stands alone."""
        return self.group or self.id


@dataclass(frozen=True)
class RawSample:
    """One decoded sample before any transform.

    Args:
        id: Name of the image.
        image: uint8 in 0..255, or float32 in [0, 1]; ``[H, W, ch]``.
        masks: uint8 class ids ``[N, H, W]``; `IGNORE_INDEX` where not labelled.
        present: bool ``[N]``: the annotator labelled this image (an empty mask is present).
        reference: uint8 class ids ``[H, W]``; `IGNORE_INDEX` where unknown.
        owner: uint8 ``[H, W]``: index of the annotator who is the expert here,
            `IGNORE_INDEX` for none.
        deviation: uint8 ``[N, H, W]``: 0 where the annotator agrees with the truth, else the id of
            the rule that changed the pixel.
    """

    id: str
    image: npt.NDArray[Any]
    masks: npt.NDArray[np.uint8]
    present: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.uint8] | None = None
    owner: npt.NDArray[np.uint8] | None = None
    deviation: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class SampleTable:
    """All samples of a data set, and how their pixels are to be read.

    A reader's whole work is to turn a folder into such a table. The table checks everything that
    names alone can tell as soon as it is made; `check` opens the files too.

    Args:
        samples: The samples, in any order.
        annotators: Names of the annotators; their order is that of the axis ``N``.
        classes: Names of the classes; the index is the class id and the first is the background.
        mask_values: Grey value in the mask files -> class name, or ``"ignore"``. A 1-bit file's
            white is 255 where that value is listed and 1 otherwise. None: the values are class ids.
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        max_value: Grey value of the image files that means white. None: 255 in 8-bit files, 65535
            in 16-bit files and 1.0 in floating-point files.
        with_reference: Samples without a reference file get one that is unknown everywhere. Turns
            true by itself where any sample has a file, and stays so in every part of the table.

    Raises:
        ValueError: If names are missing, double or unknown, or a group lies in two splits.

    Example:
        >>> from pathlib import Path
        >>> cell = Sample("a", Path("a.png"), {"Ann": Path("ann/a.png")}, split="train")
        >>> table = SampleTable((cell,), ("Ann", "Bob"), ("background", "cell"), {0: "background",
        ...     255: "cell"})
        >>> table.ids, table.select("train").ids, table.select("test").ids
        (('a',), ('a',), ())
    """

    samples: tuple[Sample, ...]
    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    mask_values: Mapping[int, str] | None = None
    channels: int = 3
    max_value: float | None = None
    with_reference: bool = False

    def __post_init__(self) -> None:
        check_names(self.annotators, self.classes)
        _check_mask_values(self.mask_values, self.classes)
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: expected 1 (grey) or 3 (RGB).")
        if self.max_value is not None and not self.max_value > 0:
            raise ValueError(f"max_value={self.max_value}: expected a number above 0, e.g. 4095.")
        _check_samples(self.samples, self.annotators)
        if any(sample.reference is not None for sample in self.samples):
            object.__setattr__(self, "with_reference", True)  # the table is frozen

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RawSample:
        """The decoded sample at this place of the table."""
        return self.read(self.samples[index])

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

    def read(self, sample: Sample) -> RawSample:
        """Decode one sample's files.

        Args:
            sample: A sample of this table.

        Raises:
            ValueError: If a file cannot be decoded, a mask's size is not that of its image, or a
                mask holds a value that is no class.
        """
        image = read_image(sample.image, self.channels, self.max_value)
        size = image.shape[:2]
        masks = np.full((len(self.annotators), *size), IGNORE_INDEX, np.uint8)
        for index, name in enumerate(self.annotators):
            if name in sample.masks:
                masks[index] = self._read_labels(sample.masks[name], sample.image, size)
        return RawSample(
            id=sample.id,
            image=image,
            masks=masks,
            present=np.array([name in sample.masks for name in self.annotators], dtype=np.bool_),
            reference=self._read_reference(sample, size),
        )

    def check(self) -> None:
        """Decode every file once, so that a broken one is found before training and not halfway.

        Raises:
            ValueError: As `read`, for the first sample that cannot be read.
        """
        workers = min(8, 2 * (os.cpu_count() or 1))
        with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter lock
            for _ in pool.map(self._try_to_read, self.samples):
                pass

    def _try_to_read(self, sample: Sample) -> None:
        self.read(sample)  # drops the pixels: nothing may pile up in the pool

    def _read_reference(
        self, sample: Sample, size: tuple[int, ...]
    ) -> npt.NDArray[np.uint8] | None:
        if sample.reference is not None:
            return self._read_labels(sample.reference, sample.image, size)
        return np.full(size, IGNORE_INDEX, np.uint8) if self.with_reference else None

    def _read_labels(self, path: Path, image: Path, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """One mask file as class ids, checked against its image."""
        white = 255 if self.mask_values is not None and 255 in self.mask_values else 1
        values = read_mask(path, white)
        if values.shape != size:
            raise ValueError(
                f"Mask {path} is {_size_text(values.shape)} pixels, but its image {image} is "
                f"{_size_text(size)}. Export the mask at the size of the image."
            )
        return labels_from_values(values, self.classes, self.mask_values, path)


def labels_from_values(
    values: npt.NDArray[Any],
    classes: Sequence[str],
    mask_values: Mapping[int, str] | None,
    source: Path | str,
) -> npt.NDArray[np.uint8]:
    """Map the grey values of a mask to class ids.

    Args:
        values: Integer grey values of any shape.
        classes: Names of the classes; the index is the class id.
        mask_values: Grey value -> class name or ``"ignore"``; None: the values are class ids.
        source: Where the values come from, for the message.

    Returns:
        uint8 class ids of the same shape; `IGNORE_INDEX` where the value means "ignore".

    Raises:
        ValueError: If a value stands for no class. The message names the source and the cure.

    Example:
        >>> grey = np.array([[0, 255], [128, 0]])
        >>> meaning = {0: "background", 255: "cell", 128: "ignore"}
        >>> labels_from_values(grey, ["background", "cell"], meaning, "mask.png").tolist()
        [[0, 1], [255, 0]]
    """
    if values.dtype not in (np.uint8, np.uint16):
        values = values.clip(-1, _MAX_GREY + 1)  # both ends fall on the table's last entry
    labels: npt.NDArray[np.int16] = _lookup_table(classes, mask_values)[values]
    if (labels < 0).any():
        raise ValueError(_unknown_values_text(values, labels < 0, classes, mask_values, source))
    return labels.astype(np.uint8)


def _lookup_table(
    classes: Sequence[str], mask_values: Mapping[int, str] | None
) -> npt.NDArray[np.int16]:
    """Grey value -> class id, -1 for values without meaning."""
    table = np.full(_MAX_GREY + 2, -1, np.int16)
    ids = {name: index for index, name in enumerate(classes)} | {IGNORE_NAME: IGNORE_INDEX}
    for value, name in (dict(enumerate(classes)) if mask_values is None else mask_values).items():
        table[value] = ids[name]
    return table


def _unknown_values_text(
    values: npt.NDArray[Any],
    unknown: npt.NDArray[np.bool_],
    classes: Sequence[str],
    mask_values: Mapping[int, str] | None,
    source: Path | str,
) -> str:
    """The message for values that are no class, with the cure that fits the values found."""
    found = np.unique(values).tolist()
    bad = np.unique(values[unknown]).tolist()
    if mask_values is None:
        expected = f"the class ids 0..{len(classes) - 1} ({', '.join(classes)})"
    else:
        expected = ", ".join(f"{value} ({name})" for value, name in sorted(mask_values.items()))
    if len(found) == len(classes):
        pairs = ", ".join(f"{value}: {name}" for value, name in zip(found, classes, strict=True))
        cure = f"add mask_values: {{{pairs}}}"
    else:
        cure = (
            "say under mask_values which class each value means, or map it to 'ignore' "
            "(masks saved as JPEG hold stray values: save them as PNG)"
        )
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return (
        f"Mask {source} holds the value(s) {', '.join(map(str, bad[:8]))}{more}, "
        f"expected {expected}. Cure: {cure}."
    )


def split_groups(
    sizes: Mapping[str, int], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Assign whole groups to splits so that the splits' sizes come close to the fractions.

    Large groups are placed first, equal ones in random order, each into the split that lacks most
    of its share (as the Webster method hands out seats). The last groups go to splits that would
    stay empty otherwise.

    Args:
        sizes: Group name -> number of samples in it.
        val_fraction: Share of the samples for validation, in [0, 1).
        test_fraction: Share of the samples for testing, in [0, 1).
        seed: Seed of the draw.

    Returns:
        Group name -> ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ValueError: If the fractions leave nothing for training, or a split gets no group.

    Example:
        >>> splits = split_groups({f"patient{i}": 2 for i in range(10)}, 0.2, 0.1, seed=1)
        >>> sorted(splits.values())
        ['test', 'train', 'train', 'train', 'train', 'train', 'train', 'train', 'val', 'val']
    """
    shares = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    if min(val_fraction, test_fraction) < 0 or shares["train"] <= 0:
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction}: expected numbers from "
            "0 up whose sum is below 1, so that something is left for training."
        )
    shares = {split: share for split, share in shares.items() if share > 0}
    if len(sizes) < len(shares):
        empty = list(shares)[len(sizes)]
        raise ValueError(
            f"Split {empty!r} got no samples: {len(sizes)} group(s) cannot fill the splits "
            f"{', '.join(shares)}. Add images, use smaller groups, or set {empty}_fraction to 0."
        )
    return _hand_out(sizes, shares, seed)


def _hand_out(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Group name -> split, by the splits' shares."""
    names = np.array(sorted(sizes), dtype=object)
    drawn = np.random.default_rng(seed).permutation(names).tolist()
    filled = dict.fromkeys(shares, 0)
    assigned: dict[str, str] = {}
    for place, name in enumerate(sorted(drawn, key=lambda name: -sizes[name])):
        empty = [split for split in shares if not filled[split]]
        candidates = empty if len(empty) == len(sizes) - place else list(shares)
        quotients = {
            split: (filled[split] + sizes[name] / 2) / shares[split] for split in candidates
        }
        split = min(quotients, key=quotients.__getitem__)
        filled[split] += sizes[name]
        assigned[name] = split
    return assigned


def find_images(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted by name.

    Hidden files and files of other kinds are passed over. Names are compared in Unicode's composed
    form, since some file systems store accents decomposed.

    Args:
        folder: The folder; sub-folders are not searched.

    Raises:
        ValueError: If two files differ only in their extension.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = unicodedata.normalize("NFC", path.stem)
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} have the same name {name!r}. Expected one file a name: "
                "delete or rename one of them."
            )
        found[name] = path
    return found


def read_image(path: Path, channels: int = 3, max_value: float | None = None) -> npt.NDArray[Any]:
    """Decode an image file.

    Args:
        path: 8-bit grey, RGB, RGBA (the transparency is dropped), palette or 1-bit file, or a
            16-bit or floating-point grey file.
        channels: 1 (grey) or 3 (RGB).
        max_value: Grey value that means white; None: 255, 65535 or 1.0 by the kind of the file.

    Returns:
        ``[H, W, channels]``: uint8 in 0..255 for 8-bit files without ``max_value``, else float32
        in [0, 1].

    Raises:
        ValueError: If the file cannot be decoded, or is brighter than white.
    """
    image = _open(path)
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        pixels = np.asarray(image)[..., None].repeat(channels, axis=2)
    else:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
    if not deep and max_value is None:
        return pixels
    return _scale_to_unit(pixels, max_value or (1.0 if image.mode == "F" else _MAX_GREY), path)


def _scale_to_unit(pixels: npt.NDArray[Any], white: float, path: Path) -> npt.NDArray[np.float32]:
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        raise ValueError(
            f"Image {path} holds values from {low} to {high}, expected 0 to {white:g}. Set "
            "max_value to the grey value that means white, or rescale the image."
        )
    return (pixels / np.float32(white)).astype(np.float32)


def read_mask(path: Path, white: int = 255) -> npt.NDArray[Any]:
    """Decode a mask file to its grey values.

    Args:
        path: 1-bit, 8-bit, palette (whose indices are taken), or 16-bit grey file; RGB(A) too if
            its three colour channels are equal.
        white: Value of the set pixels of a 1-bit file.

    Returns:
        Integer grey values ``[H, W]``.

    Raises:
        ValueError: If the file cannot be decoded, or is a colour picture.
    """
    image = _open(path)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(white)
    if image.mode in ("L", "P") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0]
    if image.mode in ("RGB", "RGBA"):
        colours = np.asarray(image)[..., :3]
        if (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
    raise ValueError(
        f"Mask {path} is a colour or floating-point picture (mode {image.mode}), expected one grey "
        "value a pixel. Export it as an 8-bit grey or palette PNG with one value a class."
    )


def _open(path: Path) -> Image.Image:
    """The decoded file, or an error that names it."""
    try:
        with Image.open(path) as image:
            image.load()
            pages = getattr(image, "n_frames", 1)
    except _BROKEN_FILE as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole image file ("
            f"{', '.join(sorted(IMAGE_SUFFIXES))}): replace it or remove it."
        ) from error
    if pages > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a preview behind it
        raise ValueError(
            f"{path} holds {pages} pages, expected a single picture. Save every page as a file."
        )
    return image


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


def _check_mask_values(mask_values: Mapping[int, str] | None, classes: Sequence[str]) -> None:
    """Every value in range, every name known, every class reachable."""
    if mask_values is None:
        return
    for value, name in mask_values.items():
        if not 0 <= value <= _MAX_GREY:
            raise ValueError(f"mask_values: grey value {value}, expected 0..{_MAX_GREY}.")
        if name not in classes and name != IGNORE_NAME:
            raise ValueError(
                f"mask_values: value {value} means {name!r}, which is no class. "
                f"Expected one of {', '.join(classes)}, or 'ignore'."
            )
    for name in classes:
        if name not in mask_values.values():
            raise ValueError(
                f"mask_values: no value means the class {name!r}. Add its grey value, "
                "or take the class out of classes."
            )


def _check_samples(samples: Sequence[Sample], annotators: Sequence[str]) -> None:
    """Unique ids, known annotators and splits, and every group in one split."""
    if double := _first_double(sample.id for sample in samples):
        raise ValueError(f"Sample id {double!r} stands twice, expected every id once: rename one.")
    split_of: dict[str, str | None] = {}
    for sample in samples:
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


def _size_text(shape: Sequence[int]) -> str:
    """Width x height, the order in which image viewers show it."""
    return f"{shape[1]} x {shape[0]}"
