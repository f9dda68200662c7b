"""Arrays: images and masks of any number of annotators in NPY, NPZ, MAT or HDF5 files.

::

    CASE.npz   CASE.mat   CASE.h5        image, and masks/ANNOTATOR for each annotator; or
                                         image, masks [annotators, ...], and annotators: their names

    images/NAME.npy                      or a file for each array
    masks/ANNOTATOR/NAME.npy

- A mask is a picture ``[H, W]`` or a volume ``[slices, H, W]``, of which the pictures are taken.
  The image is of the same size, perhaps with channels behind.
- In MAT files, before and since version 7.3, ``masks`` may be a struct with a field for each
  annotator, and ``annotators`` a cell array of names.
- Values of images are kept. Other than unsigned integers of 8 or 16 bits, or numbers from 0 to 1,
  they need ``intensity_range``.
- A file or key that is not there: this annotator did not label the image. Python objects are
  refused, as to read them may run what they hold.

Source: the NumPy format (numpy.lib.format); MAT-File Format, The MathWorks; HDF5, The HDF Group.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import from_patterns
from tax_lightning.importers.cases import Found, Pixels
from tax_lightning.importers.volumes import Scan, Shape, Volume, names_and_ids, slices

_SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,  # of HDF5, and of zip files that are encrypted or of an unknown version
    zipfile.BadZipFile,
    zlib.error,
)


def find(
    root: Path,
    classes: Sequence[str] | None = None,
    image: str = "image",
    masks: str = "masks",
    annotators: str = "annotators",
    axis: int = 0,
    intensity_range: tuple[float, float] | None = None,
    empty_slices: bool = False,
) -> Found:
    """The arrays below a folder.

    Args:
        root: The folder.
        classes: Names of the values 0, 1, 2 and so on in masks; 255 then means not labelled. None:
            a class for each value that any mask holds.
        image: Key of the image.
        masks: Key of the masks.
        annotators: Key of the annotators' names.
        axis: The axis to slice volumes along, 0 to 2.
        intensity_range: Values that mean black and white. None: those of the type.
        empty_slices: Keep slices of a volume on which nobody drew anything.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If a file cannot be read or arrays do not fit each other.
        ModuleNotFoundError: If h5py is not installed, for HDF5 files and MAT files of version 7.3.
    """
    free = intensity_range is not None
    if (root / "images").is_dir():
        samples, _ = from_patterns(
            root, "images/{name}.npy", "masks/{annotator}/{name}.npy", suffixes={".npy"}
        )
        left_out = [f"{s.id}: {s.image} has no mask." for s in samples if not s.masks]
        scans = [
            _scan(s.id, s.image, _npy(s.image), {by: _npy(f) for by, f in s.masks.items()}, free)
            for s in samples
            if s.masks
        ]
    else:
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"{root} holds no folder images/ and no {', '.join(_SUFFIXES)} files, expected "
                "images/NAME.npy and masks/ANNOTATOR/NAME.npy, or a file for each case."
            )
        scans, left_out = [], []
        for path in files:
            arrays = open_arrays(path)
            if image not in arrays:
                raise ValueError(
                    f"{path} has no array {image!r} but {', '.join(arrays)}. Name the image's with "
                    "the option image."
                )
            name = path.relative_to(root).with_suffix("").as_posix()
            drawn = _drawn(path, arrays, masks, annotators)
            if drawn:
                scans.append(_scan(name, path, arrays[image], drawn, free))
            else:
                left_out.append(f"{path} has no {masks}.")
    if not scans:
        raise FileNotFoundError(f"{root} holds images but no masks, expected those of somebody.")
    channels = scans[0].images[0].channels
    names, ids = names_and_ids(scans, classes)
    description = Description(
        root.resolve().name,
        names,
        {1: ("grey",), 3: ("red", "green", "blue")}.get(
            channels, tuple(f"channel {i + 1}" for i in range(channels))
        ),
        intensity_range,
    )
    cases = slices(scans, ids, axis, intensity_range or (0.0, 1.0), empty_slices)
    return Found(description, cases, left_out=left_out)


def _drawn(
    path: Path, arrays: Mapping[str, Callable[[], Pixels]], masks: str, annotators: str
) -> dict[str, Callable[[], Pixels]]:
    """Annotator -> mask, of the arrays in a file."""
    start = f"{masks}/"
    drawn = {key.removeprefix(start): arrays[key] for key in arrays if key.startswith(start)}
    if drawn or masks not in arrays:
        return drawn
    names = (
        [str(name).strip() for name in arrays[annotators]().ravel()] if annotators in arrays else []
    )
    stack = arrays[masks]()
    if len(names) != len(stack):
        raise ValueError(
            f"{path} has {masks} of shape {stack.shape} and {len(names)} name(s) in {annotators}. "
            f"Expected a name for each mask along the first axis, or arrays {masks}/NAME."
        )

    def at(place: int) -> Pixels:
        mask: Pixels = arrays[masks]()[place]
        return mask

    return {name: partial(at, place) for place, name in enumerate(names)}


def _scan(
    name: str,
    path: Path,
    image: Callable[[], Pixels],
    masks: Mapping[str, Callable[[], Pixels]],
    free: bool,
) -> Scan:
    """A picture is a volume of one slice."""
    shapes = {by: read().shape for by, read in masks.items()}
    size = next(iter(shapes.values()))
    whole = image().shape
    odd = {by: shape for by, shape in shapes.items() if shape != size}
    if odd or len(size) not in (2, 3) or whole[: len(size)] != size or len(whole) > len(size) + 1:
        found = ", ".join(f"{by} {shape}" for by, shape in shapes.items())
        raise ValueError(
            f"{path}: the image has the shape {whole}, and masks {found}. Expected masks [H, W] or "
            "[slices, H, W], and an image of that shape, perhaps with channels behind."
        )
    shape: Shape = (*(1,) * (3 - len(size)), *size)
    channels = whole[len(size)] if len(whole) > len(size) else 1

    def read_image() -> Pixels:
        values = image() if free else _checked(image(), path)
        return values.reshape(shape if channels == 1 else (*shape, channels))

    def read_mask(by: str) -> Pixels:
        return masks[by]().reshape(shape)

    drawn = {by: Volume(path, shape, None, partial(read_mask, by)) for by in masks}
    return Scan(name, (Volume(path, shape, None, read_image, channels),), drawn)


def _checked(values: Pixels, path: Path) -> Pixels:
    """The values, of which the type says what is black and white."""
    if values.dtype in (np.uint8, np.uint16, np.bool_):
        return values
    least, most = values.min(), values.max()
    example = f"[{least:g}, {most:g}]"
    if values.dtype.kind != "f" or not (least >= 0 and most <= 1):  # also true for NaN
        raise ValueError(
            f"{path}: the image holds {values.dtype} values from {least} to {most}, of which "
            f"nothing says what is black and white. Set intensity_range, e.g. {example}."
        )
    return values


def _npy(path: Path) -> Callable[[], Pixels]:
    def read() -> Pixels:
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except _BROKEN as error:
            raise _unreadable(path, error) from error

    return read


def open_arrays(path: Path) -> dict[str, Callable[[], Pixels]]:
    """Key -> function that reads the array, of an NPZ, MAT or HDF5 file; keys in groups have ``/``.

    Raises:
        ValueError: If the file cannot be read.
        ModuleNotFoundError: If it needs h5py, which is not installed.
    """
    if path.suffix.lower() == ".mat" and not _is_hdf5(path):
        return dict(_mat(path))
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: partial(_npz, path, key) for key in file.files}
        with _h5py().File(path, "r") as file:
            keys: list[str] = []
            file.visititems(lambda key, item: keys.append(key) if hasattr(item, "shape") else None)
        return {key: partial(_h5, path, key) for key in keys if not key.startswith("#")}
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"Cannot read {path}: {error}. Expected a whole file of numbers: save it anew."
    )


def _npz(path: Path, key: str) -> Pixels:
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[key])
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, as MAT files are since version 7.3, behind 512 bytes of text."""
    with path.open("rb") as file:
        head = file.read(520)
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])


def _mat(path: Path) -> Iterator[tuple[str, Callable[[], Pixels]]]:
    """Arrays of a MAT file of version 4 to 7; the fields of a struct are a group."""
    from scipy.io import loadmat

    def unpacked(value: Pixels) -> Pixels:
        cells = value.dtype == object
        return np.array([str(c[0]) for c in value.ravel()]) if cells else value

    try:
        stored = loadmat(path)
    except Exception as error:  # of a broken file the library raises what it meets
        raise _unreadable(path, error) from error
    for key, value in stored.items():
        if isinstance(value, np.ndarray) and value.dtype.names:
            for field in value.dtype.names:
                yield f"{key}/{field}", partial(unpacked, value[field].ravel()[0])
        elif isinstance(value, np.ndarray):
            yield key, partial(unpacked, value)


def _h5(path: Path, key: str) -> Pixels:
    """An array of an HDF5 file; MATLAB stores its arrays with the axes in reverse order."""
    try:
        with _h5py().File(path, "r") as file:
            item = file[key]
            kind = item.attrs.get("MATLAB_class")
            if kind == b"cell":
                return np.array([_text(file[of][()]) for of in np.asarray(item).ravel()])
            if item.dtype.kind == "O":
                return np.array(item.asstr()[()])
            values = np.asarray(item)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    return values if kind is None else values.T


def _text(codes: Any) -> str:  # noqa: ANN401 - of h5py
    return "".join(map(chr, np.asarray(codes).ravel()))


def _h5py() -> Any:  # noqa: ANN401 - a module
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'HDF5 files need h5py, which is not installed: pip install "tax-lightning[hdf5]".'
        ) from error
    return h5py
