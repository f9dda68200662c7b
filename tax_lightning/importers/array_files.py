"""Arrays in NPY, NPZ, MAT or HDF5 files, each read when it is asked for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.extras import needed
from tax_lightning.importers.cases import Pixels
from tax_lightning.importers.reading import reading

ARRAY_SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
"""Of files that hold several arrays by name."""

_WHAT = "a whole file of numbers: save it anew"


def open_array(path: Path) -> Callable[[], Pixels]:
    """A function that reads an NPY file.

    Args:
        path: The file; if it holds Python objects the function refuses it, as to read them may run
            what they hold.
    """
    return partial(_named, path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))


def open_arrays(path: Path) -> dict[str, Callable[[], Pixels]]:
    """Key -> function that reads the array, of an NPZ, MAT or HDF5 file; groups end with ``/``."""
    with reading(path, _WHAT):
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found = {key: partial(_npz, path, key) for key in file.files}
        elif path.suffix.lower() == ".mat" and not _is_hdf5(path):
            found = dict(_mat(path))
        else:
            found = dict(_hdf5(path))
    return {key: partial(_named, path, read) for key, read in found.items()}


def _named(path: Path, read: Callable[[], Pixels]) -> Pixels:
    with reading(path, _WHAT):
        return np.asarray(read())


def _npz(path: Path, key: str) -> Pixels:
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file[key])


def _is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, as MAT files are since version 7.3, behind 512 bytes of text."""
    with path.open("rb") as file:
        head = file.read(520)
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])


def _mat(path: Path) -> Iterator[tuple[str, partial[Pixels]]]:
    """Arrays of a MAT file of version 4 to 7; the fields of a struct are a group."""
    from scipy import io

    def unpacked(value: Pixels) -> Pixels:
        cells = value.dtype == object
        return np.array([str(c[0]) for c in value.ravel()]) if cells else value

    # A damaged file can crash SciPy's reader, which must not take the import with it.
    fork = get_context("fork") if "fork" in get_all_start_methods() else None
    with ProcessPoolExecutor(1, fork) as another:
        arrays = another.submit(io.loadmat, path).result()
    for key, value in arrays.items():
        if isinstance(value, np.ndarray) and value.dtype.names:
            for field in value.dtype.names:
                yield f"{key}/{field}", partial(unpacked, value[field].ravel()[0])
        elif isinstance(value, np.ndarray):
            yield key, partial(unpacked, value)


def _hdf5(path: Path) -> Iterator[tuple[str, partial[Pixels]]]:
    keys: list[str] = []
    with needed("h5py").File(path, "r") as file:
        file.visititems(lambda key, item: keys.append(key) if hasattr(item, "shape") else None)
    for key in keys:
        if not key.startswith("#"):  # what MATLAB refers to
            yield key, partial(_of_hdf5, path, key)


def _of_hdf5(path: Path, key: str) -> Pixels:
    """An array of an HDF5 file; MATLAB stores its arrays with the axes in reverse order."""

    def text(codes: Any) -> str:  # noqa: ANN401 - of h5py
        return "".join(map(chr, np.asarray(codes).ravel()))

    with needed("h5py").File(path, "r") as file:
        item = file[key]
        kind = item.attrs.get("MATLAB_class")
        if kind == b"cell":
            return np.array([text(file[of][()]) for of in np.asarray(item).ravel()])
        if item.dtype.kind == "O":
            return np.array(item.asstr()[()])
        values = np.asarray(item)
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    return values if kind is None else values.T
