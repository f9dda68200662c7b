"""Volumes on disk: NIfTI files decoded slice by slice, and scans as samples."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tax_lightning.data.files import MAX_GREY, File, Part, Window, cut
from tax_lightning.data.samples import Sample

SUFFIXES = (".nii", ".nii.gz")
PERCENTILES = (0.5, 99.5)
"""Of a volume's voxels; what lies outside becomes black or white."""
CACHE_BYTES = 512 * 2**20
"""Memory that decompressed volumes may take, in each process."""
_WHOLE = 1e-3  # how far a stored mask value may lie from a whole number

_LOCK = threading.RLock()  # nothing is decompressed twice because two threads ask for it at once


@dataclass(frozen=True)
class Volumes:
    """Decodes slices of NIfTI files (``.nii``, ``.nii.gz``): each is a ``Part(path, number)``.

    Axes of length 1 count for nothing, so a flat picture may be stored as a volume of one slice.
    Several modalities are the last axis of one file, or several files (``endings``). A slice lies
    as it is stored: its rows are the first axis that is left, its columns the second. The
    orientation in the header is not applied, so pictures may lie on their side.

    Intensities are scaled to [0, 1] for each volume and modality by the percentiles 0.5 and 99.5 of
    all its voxels, or by ``intensity_range``. A voxel that is no number becomes 0.

    Slices of a ``.nii`` file are read from where they lie. A ``.nii.gz`` file can only be
    decompressed as a whole, so the volumes used last are kept, up to 512 MiB in each process.
    Where a data set is larger than that, unpack its files.

    Args:
        channels: Number of modalities.
        axis: The stored axis along which a volume is sliced: 0, 1 or 2.
        intensity_range: Intensities that become 0 and 1, e.g. [-125, 275] Hounsfield units for the
            abdomen. None: the percentiles.
        endings: Where each modality has a file of its own: how the files' names end, in the order
            of the channels, e.g. ("_flair", "_t2"). An image is then named by the first of them.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import tempfile
        >>> import nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "scan.nii.gz"
        ...     voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        ...     nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        ...     Volumes(axis=0).image_shape(path), Volumes(axis=0).image(Part(path, 1)).shape
        ((3, 4, 2), (3, 4, 1))
    """

    channels: int = 1
    axis: int = 2
    intensity_range: tuple[float, float] | None = None
    endings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels={self.channels}: expected at least 1.")
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis={self.axis}: expected 0, 1 or 2, the axis to slice along.")
        if self.intensity_range is not None and not _increasing(self.intensity_range):
            raise ValueError(
                f"intensity_range={self.intensity_range}: expected two numbers, the lower first, "
                "e.g. [-125, 275]."
            )
        if self.endings and len(self.endings) != self.channels:
            raise ValueError(
                f"endings={self.endings}: expected one for each of the {self.channels} channels."
            )

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """A slice of all modalities: float32 in [0, 1], ``[H, W, channels]``."""
        parts = [self._scaled(path, _number(file)) for path in self.files(file)]
        return cut(np.concatenate(parts, axis=2), window)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """A slice of a mask: its grey values, ``[H, W]``.

        Files of floating-point numbers are admitted as long as these are whole.
        """
        return cut(_whole_numbers(self._plane(_path(file), _number(file), 1), file), window)

    def files(self, image: File) -> tuple[Path, ...]:
        """The files of an image, one a modality if there are ``endings``.

        Raises:
            ValueError: If the name does not end as it should, or a file is not there.
        """
        path = _path(image)
        if not self.endings:
            return (path,)
        name = _name(path)
        if not name.endswith(self.endings[0]):
            raise ValueError(f"{path}: expected a name that ends in {self.endings[0]!r}.")
        scan = name.removesuffix(self.endings[0])
        return tuple(_either(path.parent / f"{scan}{ending}") for ending in self.endings)

    def image_shape(self, image: File) -> tuple[int, int, int]:
        """Height, width and number of slices of an image, from the headers of its files.

        Raises:
            ValueError: If one cannot be read or holds no such volume, or they differ.
        """
        first, *others = self.files(image)
        shape = self._layout(first, self._modalities).size
        for path in others:
            _check_shape(path, self._layout(path, self._modalities).size, first, shape)
        return shape

    def mask_shape(self, path: Path) -> tuple[int, int, int]:
        """Height, width and number of slices of a mask, from its header; see `image_shape`."""
        return self._layout(path, 1).size

    def drawn(self, path: Path) -> npt.NDArray[np.bool_]:
        """Whether anything is drawn, for every slice of a mask: ``[slices]``. Reads all of it."""
        layout = self._layout(path, 1)
        with _named(path):
            voxels = np.asanyarray(_open(path).dataobj)
        along = () if layout.slices is None else (layout.slices,)
        others = tuple(axis for axis in range(voxels.ndim) if axis not in along)
        drawn: npt.NDArray[np.bool_] = (voxels != 0).any(axis=others)
        return drawn.reshape(-1)

    @property
    def _modalities(self) -> int:
        """Modalities in each of the files of an image."""
        return 1 if self.endings else self.channels

    def _layout(self, path: Path, modalities: int) -> _Layout:
        return _layout(path, stored_shape(path), modalities, self.axis)

    def _plane(self, path: Path, number: int, modalities: int) -> npt.NDArray[Any]:
        """One slice as stored: ``[H, W]``, or ``[H, W, modalities]`` if there are several."""
        layout = self._layout(path, modalities)
        if not 0 <= number < layout.size[2]:
            raise ValueError(
                f"{path} has no slice {number}, expected one of its {layout.size[2]} slice(s), "
                "numbered from 0."
            )
        return _read(path, layout.place(number))

    def _scaled(self, path: Path, number: int) -> npt.NDArray[np.float32]:
        """One slice in [0, 1]: ``[H, W, modalities of the file]``."""
        plane = self._plane(path, number, self._modalities).astype(np.float32)
        low, high = self._ranges(path).T
        unit = (plane.reshape(*plane.shape[:2], -1) - low) / np.maximum(high - low, 1e-12)
        return np.where(np.isnan(unit), 0, unit.clip(0, 1)).astype(np.float32)

    def _ranges(self, path: Path) -> npt.NDArray[np.float32]:
        """Intensities that become 0 and 1: ``[modalities of the file, 2]``."""
        if self.intensity_range is not None:
            return np.array([self.intensity_range] * self._modalities, np.float32)
        axis = self._layout(path, self._modalities).modality
        with _named(path), _LOCK:
            return np.array(_percentiles(path, _stamp(path), axis), np.float32)


class _Layout(NamedTuple):
    """Which stored axis is what."""

    shape: tuple[int, ...]
    rows: int
    columns: int
    slices: int | None
    modality: int | None

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, number of slices."""
        slices = 1 if self.slices is None else self.shape[self.slices]
        return self.shape[self.rows], self.shape[self.columns], slices

    def place(self, number: int) -> tuple[int | slice, ...]:
        """Index of a slice."""
        whole = (self.rows, self.columns, self.modality)
        return tuple(
            slice(None) if axis in whole else (number if axis == self.slices else 0)
            for axis in range(len(self.shape))
        )


def _layout(path: Path, shape: tuple[int, ...], modalities: int, axis: int) -> _Layout:
    """What the axes mean; those of length 1 mean nothing."""
    long = [place for place, length in enumerate(shape) if length > 1]
    modality = long.pop() if modalities > 1 and long else None
    if len(long) not in (2, 3) or (modality is not None and shape[modality] != modalities):
        last = f" and, as the last axis, {modalities} modalities" if modalities > 1 else ""
        raise ValueError(
            f"{path} holds an array of {_times(shape)}, expected a picture (two axes) or a volume "
            f"(three){last}. Take the file out, or read it with the number of modalities that it "
            "has."
        )
    slices = long.pop(axis) if len(long) == 3 else None
    return _Layout(shape, long[0], long[1], slices, modality)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _increasing(numbers: Sequence[float]) -> bool:
    return len(numbers) == 2 and bool(numbers[0] < numbers[1])


def _path(file: File) -> Path:
    return file.path if isinstance(file, Part) else file


def _name(path: Path) -> str:
    """The file's name without its extension."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _either(stem: Path) -> Path:
    """The file with this path, plain or compressed."""
    for suffix in SUFFIXES:
        if (path := stem.with_name(stem.name + suffix)).is_file():
            return path
    raise ValueError(f"{stem}.nii is not there, neither plain nor compressed (.nii.gz). Add it.")


def _number(file: File) -> int:
    """Number of the slice; a file without one is a picture."""
    key = file.key if isinstance(file, Part) else 0
    if not isinstance(key, int):
        raise ValueError(f"{file}: expected the number of a slice in brackets, found {key!r}.")
    return key


def _whole_numbers(values: npt.NDArray[Any], file: File) -> npt.NDArray[Any]:
    """The values as integers, if they are whole numbers."""
    if values.dtype.kind in "iu":
        return values
    rounded = np.rint(values)
    with np.errstate(invalid="ignore"):  # infinity minus itself
        odd = ~(np.abs(values - rounded) <= _WHOLE)  # also true for NaN
    if odd.any():
        raise ValueError(
            f"Mask {file} holds {values[odd][0]:g}, expected whole numbers, one a class. Export it "
            "without interpolation."
        )
    whole: npt.NDArray[np.int32] = rounded.clip(-1, MAX_GREY + 1).astype(np.int32)
    return whole


# Reading


def stored_shape(path: Path) -> tuple[int, ...]:
    """Lengths of a file's axes, from its header.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot be read.
    """
    with _named(path):
        return _shape(path, _stamp(path))


class _Decompressed:
    """The volumes used last, up to a number of bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, tuple[int, int]], npt.NDArray[Any]] = OrderedDict()

    def get(self, path: Path) -> npt.NDArray[Any]:
        """All voxels of a file."""
        key = (path, _stamp(path))
        with _LOCK:
            if key not in self._kept:
                self._kept[key] = _compact(np.asanyarray(_open(path).dataobj))
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and self.nbytes > CACHE_BYTES:
                self._kept.popitem(last=False)
            return self._kept[key]

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(voxels.nbytes for voxels in self._kept.values())


_DECOMPRESSED = _Decompressed()


def _compact(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read-only, and in single precision where a scaled file comes in double."""
    voxels = voxels.astype(np.float32) if voxels.dtype == np.float64 else voxels
    voxels.flags.writeable = False
    return voxels


def _read(path: Path, place: tuple[int | slice, ...]) -> npt.NDArray[Any]:
    """The voxels at a place."""
    with _named(path):
        voxels = _DECOMPRESSED.get(path) if path.suffix == ".gz" else _open(path).dataobj
        return np.asarray(voxels[place])


@lru_cache(maxsize=4096)
def _shape(path: Path, stamp: tuple[int, int]) -> tuple[int, ...]:
    """The stored axes' lengths; the stamp tells a file that changed."""
    return tuple(int(length) for length in _open(path).shape)


@lru_cache(maxsize=4096)
def _percentiles(
    path: Path, stamp: tuple[int, int], modality: int | None
) -> tuple[tuple[float, float], ...]:
    """Intensities that become 0 and 1, of every modality; for the stamp see `_shape`."""
    compressed = path.suffix == ".gz"
    voxels = _DECOMPRESSED.get(path) if compressed else np.asarray(_open(path).dataobj)
    parts = [voxels] if modality is None else np.moveaxis(voxels, modality, 0)
    return tuple(_robust_range(part) for part in parts)


def _robust_range(voxels: npt.NDArray[Any]) -> tuple[float, float]:
    """The percentiles, or the extremes where nearly all voxels are equal."""
    numbers = voxels[np.isfinite(voxels)]
    if not numbers.size:
        return 0.0, 0.0
    low, high = np.percentile(numbers, PERCENTILES)
    if low == high:
        low, high = numbers.min(), numbers.max()
    return float(low), float(high)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def _open(path: Path) -> Any:  # noqa: ANN401 - nibabel's images share no useful type
    """The opened file, of which only the header is read."""
    image: Any = _nibabel().load(path)
    kind = image.get_data_dtype().kind
    if kind not in "iuf":
        raise ValueError(f"its voxels are of type {image.get_data_dtype()}, expected numbers")
    return image


def _nibabel() -> Any:  # noqa: ANN401 - a module
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Reading NIfTI files needs nibabel, which is not installed: "
            "pip install 'tax-lightning[volumes]'."
        ) from error
    return nibabel


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give every failure to read a file the file's name."""
    nibabel = _nibabel()
    broken = (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    )
    try:
        yield
    except broken as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole NIfTI file ({', '.join(SUFFIXES)}): "
            "replace it or remove it."
        ) from error


# Scans as samples


def find_volumes(folder: Path) -> dict[str, Path]:
    """NIfTI files of a folder by name without extension, sorted by name.

    Args:
        folder: The folder; hidden files and files of other kinds are passed over. A folder that is
            not there holds none.

    Raises:
        ValueError: If a file is there both plain and compressed.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.name.endswith(SUFFIXES):
            continue
        name = _name(path)
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} have the same name {name!r}. Expected one file a name: "
                "delete one of them."
            )
        found[name] = path
    return found


def slice_scan(
    id: str,
    image: Path,
    masks: Mapping[str, Path],
    group: str,
    decoder: Volumes,
    empty_slices: bool = False,
) -> tuple[Sample, ...]:
    """The slices of one scan as samples.

    Reads the headers; of a scan with several slices also its masks, unless ``empty_slices``.

    Args:
        id: Name of the scan; ``_012`` is appended for the slice 12 of several.
        image: File of the image, or of its first modality.
        masks: Annotator name -> mask file.
        group: Name of what must stay in one split.
        decoder: How the files are to be read.
        empty_slices: Keep the slices on which no annotator drew anything. A scan of a single slice
            is always kept.

    Raises:
        ValueError: If a file cannot be read, or the files are not of one shape.
    """
    shape = decoder.image_shape(image)
    for path in masks.values():
        _check_shape(path, decoder.mask_shape(path), image, shape)
    count = shape[2]
    kept = np.ones(count, np.bool_)
    if count > 1 and not empty_slices:
        kept = np.any([decoder.drawn(path) for path in masks.values()], axis=0)
    return tuple(
        Sample(
            id=f"{id}_{number:03d}" if count > 1 else id,
            image=Part(image, number),
            masks={name: Part(path, number) for name, path in masks.items()},
            group=group,
        )
        for number in np.flatnonzero(kept).tolist()
    )


def _check_shape(
    path: Path, found: tuple[int, int, int], image: Path, expected: tuple[int, int, int]
) -> None:
    if found != expected:
        raise ValueError(
            f"{path} has {_size(found)}, but {image} has {_size(expected)}. Expected files of one "
            "shape: resample it, without interpolation if it is a mask, or remove it."
        )


def _size(shape: tuple[int, int, int]) -> str:
    height, width, slices = shape
    return f"{slices} slice(s) of {height} x {width} voxels"
