"""Predictions of the parts of an image, put together to one of the whole image."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tax_lightning.explanation import Prediction
from tax_lightning.files import file_name

_BAND = 256  # rows that are in memory at once
_LEAST = 1e-3  # weight of a pixel at the edge of a part


class Whole(NamedTuple):
    """An image that comes in parts."""

    id: str
    height: int
    width: int
    facts: tuple[tuple[str, str], ...] = ()  # what else is known of it


class Stitcher:
    """Collects parts on disk, so that memory does not grow with the image.

    Where parts overlap their shares are averaged, with weights that fall towards the edges of each
    part, and of indices those of the part that lies around the pixel are kept.

    Args:
        folder: Where this process may keep files; removed by :meth:`close`.

    Example:
        >>> import tempfile
        >>> ones = torch.ones(1, 2, 4, 4) / 2
        >>> left = Prediction(("a@0,0",), ("Ana",), ("no", "yes"), ones, ones.unsqueeze(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stitcher = Stitcher(Path(folder) / "parts")
        ...     for column in (0, 2):
        ...         stitcher.add(left, Whole("a", 4, 6), top=0, left=column)
        ...     bands = list(together([Path(folder) / "parts"], Whole("a", 4, 6), left))
        ...     stitcher.close()
        >>> [tuple(band.probs.shape) for _, band in bands], bands[0][1].probs.unique()
        ([(1, 2, 4, 6)], tensor([0.5000]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wholes: dict[str, Whole] = {}

    def add(self, part: Prediction, whole: Whole, top: int, left: int) -> None:
        """Add the prediction of one part, with B = 1, at its place in the whole image."""
        self.wholes.setdefault(whole.id, whole)
        height, width = part.probs.shape[-2:]
        rows, columns = slice(top, top + height), slice(left, left + width)
        weight = _tent(height)[:, None] * _tent(width)
        best = _canvas(self.folder, whole, "best", (), np.float32)
        around = weight > best[rows, columns]
        best[rows, columns] = np.maximum(best[rows, columns], weight)
        total = _canvas(self.folder, whole, "total", (), np.float32)
        total[rows, columns] += weight
        for name, values in _maps_of(part).items():
            array = values[0].numpy()
            if values.is_floating_point():
                sums = _canvas(self.folder, whole, name, array.shape[:-2], np.float32)
                sums[..., rows, columns] += array * weight
            else:
                kept = _canvas(self.folder, whole, name, array.shape[:-2], np.int16)
                kept[..., rows, columns] = np.where(around, array, kept[..., rows, columns])

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def together(
    folders: Sequence[Path], whole: Whole, template: Prediction
) -> Iterator[tuple[int, Prediction]]:
    """The prediction of a whole image in bands of rows from top to bottom.

    Args:
        folders: Those of the stitchers of all processes.
        whole: The image.
        template: A prediction that has all but the maps, such as that of a part.

    Yields:
        The first row of a band, and the prediction of the band.
    """
    there = [folder for folder in folders if _file(folder, whole, "best").exists()]
    for top in range(0, whole.height, _BAND):
        rows = slice(top, min(top + _BAND, whole.height))
        weights = [np.load(_file(f, whole, "total"), "r")[rows] for f in there]
        bests = np.stack([np.load(_file(f, whole, "best"), "r")[rows] for f in there])
        total, first = np.sum(weights, axis=0), bests.argmax(0)
        maps: dict[str, Tensor] = {}
        for name, values in _maps_of(template).items():
            parts = np.stack([np.load(_file(f, whole, name), "r")[..., rows, :] for f in there])
            if values.is_floating_point():
                maps[name] = torch.from_numpy(parts.sum(0) / total)[None]
            else:
                at = np.broadcast_to(first, parts.shape[1:])[None]
                kept = np.take_along_axis(parts, at, 0)[0]
                maps[name] = torch.from_numpy(kept.astype(np.int64))[None]
        band = dataclasses.replace(template, ids=(whole.id,), **maps)  # type: ignore[arg-type]
        yield top, band


def _maps_of(prediction: Prediction) -> dict[str, Tensor]:
    values = {
        field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)
    }
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _tent(length: int) -> npt.NDArray[np.float32]:
    """Weights along a side: 1 in the middle, little at both ends."""
    place = (np.arange(length) + 0.5) / length
    weights: npt.NDArray[np.float32]
    weights = np.maximum(1 - np.abs(2 * place - 1), _LEAST).astype(np.float32)
    return weights


def _file(folder: Path, whole: Whole, name: str) -> Path:
    return folder / file_name(whole.id) / f"{name}.npy"


def _canvas(
    folder: Path, whole: Whole, name: str, axes: tuple[int, ...], kind: type
) -> npt.NDArray[Any]:
    """An array on disk of the size of the whole image, zeros at first."""
    path = _file(folder, whole, name)
    if path.exists():
        opened: npt.NDArray[Any] = np.load(path, "r+")
        return opened
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*axes, whole.height, whole.width)
    made: npt.NDArray[Any] = np.lib.format.open_memmap(path, "w+", kind, shape)
    return made
