"""Decoded samples kept on disk, so that reading them again is a look into a memory map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX, __version__
from tax_lightning.data.files import File, Part, Window, cut, size_text
from tax_lightning.data.samples import RawSample, Sample, SampleTable, for_each

Labels: TypeAlias = npt.NDArray[np.uint8]

_MAGIC = b"TAX pixels 1\n"
_ALIGNED = 64  # bytes: where the pixels begin, so that numbers of any size lie well


@dataclass(frozen=True)
class CachedTable:
    """A table whose images are decoded once and then read from one file each.

    An entry holds a whole image and all its labels as they come out of the decoder; the windows of
    patches are cut from it. It is looked up by all that its pixels depend on: the paths, sizes and
    times of change of its files, the decoder, the classes and the grey values. What has changed is
    decoded anew and takes the place of the older entry. Processes may share the folder, whichever
    of them writes first: an entry is there as a whole or not at all.

    Of a `Part` in a folder of files, the folder's own time of change counts. Entries of files that
    are gone stay until the cache is deleted, which is safe at any time between runs.

    Args:
        table: The samples.
        folder: Folder of the entries, made when the first one is written. It takes the size of the
            images as raw pixels; labels of two classes take one bit a pixel.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "a.png"
        ...     Image.fromarray(np.eye(4, dtype=np.uint8)).save(path)
        ...     table = SampleTable((Sample("a", path, {"Ann": path}),), ("Ann",),
        ...         ("background", "cell"))
        ...     cached = CachedTable(table, Path(root) / "cache")
        ...     areas = [int(cached[0].masks.sum()) for _ in range(2)]  # decoded, then looked up
        >>> areas
        [4, 4]
    """

    table: SampleTable
    folder: Path

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> RawSample:
        """The sample at this place, from its entry or else decoded and stored."""
        return self.read(self.table.samples[index])

    @property
    def ids(self) -> tuple[str, ...]:
        """The samples' ids, in the order of the table."""
        return self.table.ids

    def read(self, sample: Sample) -> RawSample:
        """One sample, from its entry or else decoded and stored.

        Args:
            sample: A sample of the table.

        Raises:
            ValueError: As `SampleTable.read`.
            OSError: If the entry cannot be written.
        """
        path = self._entry(sample)
        entry = _open_entry(path)
        if entry is None:
            raw = self._store(sample, path)
            _check_inside(sample, raw.image.shape)
            return _windowed(raw, sample)
        _check_inside(sample, entry.size)
        return self._raw(sample, *entry.read(sample.window))

    def check(self) -> None:
        """Decode and store every image that has no entry yet.

        Raises:
            ValueError: As `read`, for the first sample that cannot be read.
            OSError: If an entry cannot be written.
        """
        for_each(self._keep, self.table.samples)

    def _keep(self, sample: Sample) -> None:
        path = self._entry(sample)
        if _open_entry(path) is None:
            self._store(sample, path)

    def _store(self, sample: Sample, path: Path) -> RawSample:
        """Decode the whole image and write its entry in place of older ones."""
        raw = self.table.read(replace(sample, window=None))
        labelled = [plane for plane, here in zip(raw.masks, raw.present, strict=True) if here]
        if sample.reference is not None and raw.reference is not None:
            labelled.append(raw.reference)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, raw.image, labelled)
        except OSError as error:
            raise OSError(
                f"cache: cannot write {path}: {error}. Free space or choose another folder, or "
                "leave cache out."
            ) from error
        for other in path.parent.glob("*.pixels"):
            if other != path:
                other.unlink(missing_ok=True)  # another process may have been faster
        return raw

    def _raw(self, sample: Sample, image: npt.NDArray[Any], planes: list[Labels]) -> RawSample:
        """The sample that the stored planes make up: present annotators', then the reference."""
        size = image.shape[:2]
        names = self.table.annotators
        masks = np.full((len(names), *size), IGNORE_INDEX, np.uint8)
        present = np.array([name in sample.masks for name in names], dtype=np.bool_)
        for index, plane in zip(np.flatnonzero(present), planes, strict=False):
            masks[index] = plane
        reference = planes[-1] if sample.reference is not None else None
        if reference is None and self.table.with_reference:
            reference = np.full(size, IGNORE_INDEX, np.uint8)
        return RawSample(sample.id, image, masks, present, reference)

    def _entry(self, sample: Sample) -> Path:
        """Where the pixels of a sample's files are kept, as they are now."""
        files = _files(sample, self.table.annotators)
        decoder = self.table.decoder
        values = self.table.mask_values
        meaning = (
            __version__,
            f"{type(decoder).__module__}.{decoder!r}",
            self.table.classes,
            None if values is None else sorted(values.items()),
            [_stamp(file) for file in files.values()],
            [_stamp(path) for path in self._further_files(sample.image)],
        )
        names = [(name, _address(file)) for name, file in files.items()]
        return self.folder / _hash(names) / f"{_hash(meaning)}.pixels"

    def _further_files(self, image: File) -> tuple[Path, ...]:
        """Where a decoder makes an image of several files, all of them."""
        files = getattr(self.table.decoder, "files", None)
        return () if files is None else tuple(files(image))


def _files(sample: Sample, annotators: Sequence[str]) -> dict[str, File]:
    """All that a sample is read from, by what it is for; annotators are numbered in their order."""
    files = {"image": sample.image}
    for index, name in enumerate(annotators):
        if name in sample.masks:
            files[f"{index} {name}"] = sample.masks[name]
    return files if sample.reference is None else files | {"reference": sample.reference}


def _address(file: File) -> tuple[str, int | str | None]:
    path, key = (file.path, file.key) if isinstance(file, Part) else (file, None)
    return os.path.abspath(path), key


def _stamp(file: File) -> tuple[int, int] | None:
    """Size and time of change; None where no file can be read, which the decoder then says."""
    try:
        status = os.stat(file.path if isinstance(file, Part) else file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


def _check_inside(sample: Sample, size: Sequence[int]) -> None:
    """A file may have become smaller since patches were cut."""
    top, left, height, width = sample.window or (0, 0, 0, 0)
    if top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"Cannot read {sample.image}: {sample.window} reaches beyond its {size_text(size)} "
            "pixels. Expected the size that it had when patches were cut: start again."
        )


def _windowed(raw: RawSample, sample: Sample) -> RawSample:
    """What a sample shows of its whole image; a copy, which does not keep the whole active."""
    top, left, height, width = sample.window or (0, 0, *raw.image.shape[:2])
    inside = (..., slice(top, top + height), slice(left, left + width))
    return replace(
        raw,
        id=sample.id,
        image=cut(raw.image, sample.window).copy(),
        masks=raw.masks[inside].copy(),
        reference=None if raw.reference is None else raw.reference[inside].copy(),
    )


class _Header(NamedTuple):
    """What an entry says of itself in its first line."""

    name: str
    dtype: str
    shape: list[int]
    codings: list[str]


class _Entry:
    """One file of pixels in memory: a header, the image, the planes of labels one after the other.

    A plane is ``blank`` (nothing labelled; takes no bytes), ``bits`` (0 and 1 only; eight pixels of
    a row a byte) or ``bytes``.
    """

    def __init__(self, stored: npt.NDArray[np.uint8], name: str) -> None:
        length = stored[len(_MAGIC) :][:4].view("<u4")
        text = stored[len(_MAGIC) + 4 :][: int(length[0])].tobytes()
        header = _Header(**json.loads(text))
        height, width, channels = header.shape
        self.size = (height, width)
        dtype = np.dtype(header.dtype)
        start = _start(text)
        self._planes_at = start + height * width * channels * dtype.itemsize
        self._codings = header.codings
        self._stored = stored
        whole = self._planes_at + sum(self._bytes_of(coding) for coding in header.codings)
        if stored[: len(_MAGIC)].tobytes() != _MAGIC or header.name != name or whole != stored.size:
            raise ValueError("not the entry, or not the whole of it")
        image = stored[start : self._planes_at].view(dtype)
        self._image = image.reshape(height, width, channels)

    def read(self, window: Window | None) -> tuple[npt.NDArray[Any], list[Labels]]:
        """Copies of the image and the planes, or of a window of them."""
        planes = []
        at = self._planes_at
        for coding in self._codings:
            count = self._bytes_of(coding)
            planes.append(self._plane(self._stored[at : at + count], coding, window))
            at += count
        return cut(self._image, window).copy(), planes

    def _plane(self, stored: Labels, coding: str, window: Window | None) -> Labels:
        height, width = self.size
        top, left, rows, columns = window or (0, 0, height, width)
        if coding == "blank":
            return np.full((rows, columns), IGNORE_INDEX, np.uint8)
        packed = stored.reshape(height, -1)[top : top + rows]
        if coding == "bytes":
            return packed[:, left : left + columns].copy()
        touched = packed[:, left // 8 : -(-(left + columns) // 8)]
        return np.unpackbits(touched, axis=1)[:, left % 8 : left % 8 + columns]

    def _bytes_of(self, coding: str) -> int:
        height, width = self.size
        return height * {"blank": 0, "bits": -(-width // 8), "bytes": width}[coding]


def _open_entry(path: Path) -> _Entry | None:
    """The entry; None where there is none that can be used."""
    try:
        return _Entry(np.asarray(np.memmap(path, np.uint8, "r")), _name(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, IndexError):  # broken off, or no entry at all
        return None


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _write(path: Path, image: npt.NDArray[Any], planes: Sequence[Labels]) -> None:
    """Write an entry under another name first, so that nobody finds half of it."""
    codings = [_coding(plane) for plane in planes]
    header = _Header(_name(path), image.dtype.str, list(image.shape), codings)
    text = json.dumps(header._asdict()).encode()
    head = _MAGIC + np.array([len(text)], "<u4").tobytes() + text
    part = path.with_name(f".{uuid4().hex}")
    try:
        with part.open("xb") as file:
            file.write(head.ljust(_start(text), b"\0"))
            file.write(np.ascontiguousarray(image).data)
            for plane, coding in zip(planes, codings, strict=True):
                file.write(_coded(plane, coding).data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _start(text: bytes) -> int:
    """Where the pixels begin behind such a header."""
    head = len(_MAGIC) + 4 + len(text)
    return -(-head // _ALIGNED) * _ALIGNED


def _coding(plane: Labels) -> str:
    low, high = int(plane.min()), int(plane.max())
    if low == IGNORE_INDEX:
        return "blank"
    return "bits" if high <= 1 else "bytes"


def _coded(plane: Labels, coding: str) -> Labels:
    if coding == "bits":
        return np.packbits(plane, axis=1)
    return np.ascontiguousarray(plane) if coding == "bytes" else np.empty(0, np.uint8)
