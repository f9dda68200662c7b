"""Predictions of the parts of an image, put together to one of the whole image."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tax_lightning.explanation import Prediction
from tax_lightning.files import file_name
from tax_lightning.visualization.drawing import as_array

_BAND = 64  # rows that are in memory at once
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
        folder: Where this process may keep files.

    Example:
        >>> import tempfile
        >>> ones = torch.ones(1, 2, 4, 4) / 2
        >>> left = Prediction(("a@0,0",), ("Ana",), ("no", "yes"), ones, ones.unsqueeze(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stitcher = Stitcher(Path(folder) / "parts")
        ...     for column in (0, 2):
        ...         stitcher.add(left, Whole("a", 4, 6), top=0, left=column)
        ...     bands = list(together([Path(folder) / "parts"], Whole("a", 4, 6), left))
        >>> [tuple(band.probs.shape) for _, band in bands], bands[0][1].probs.unique()
        ([(1, 2, 4, 6)], tensor([0.5000]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wholes: dict[str, Whole] = {}

    def add(self, part: Prediction, whole: Whole, top: int, left: int) -> None:
        """Add the prediction of one part, with B = 1, at its place in the whole image.

        Raises:
            ValueError: If the part does not lie in the whole, or parts tell of wholes that differ.
        """
        height, width = part.probs.shape[-2:]
        known = self.wholes.setdefault(whole.id, whole)
        same = (known.height, known.width) == (whole.height, whole.width)
        if not same or top + height > whole.height or left + width > whole.width:
            raise ValueError(
                f"{part.ids[0]!r} has {height} x {width} pixels at row {top} and column {left} of "
                f"{whole.id!r}, which has {whole.height} x {whole.width} by this part and "
                f"{known.height} x {known.width} by others. Expected parts that lie in one image: "
                "correct samples.csv, or import the tiles anew."
            )
        rows, columns = slice(top, top + height), slice(left, left + width)
        weight = _tent(height)[:, None] * _tent(width)
        best = self._canvas(whole, "best", np.float32)
        around = weight > best[rows, columns]
        best[rows, columns] = np.maximum(best[rows, columns], weight)
        self._canvas(whole, "total", np.float32)[rows, columns] += weight
        for name, values in part.tensors().items():
            array = as_array(values[0])
            if values.is_floating_point():
                sums = self._canvas(whole, name, np.float32, array.shape[:-2])
                sums[..., rows, columns] += array * weight
            else:
                kept = self._canvas(whole, name, np.int16, array.shape[:-2])
                kept[..., rows, columns] = np.where(around, array, kept[..., rows, columns])

    def _canvas(
        self, whole: Whole, name: str, kind: type, axes: tuple[int, ...] = ()
    ) -> npt.NDArray[Any]:
        """An array on disk of the size of the whole image, zeros at first."""
        path = _file(self.folder, whole, name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", kind, (*axes, whole.height, whole.width))
        opened: npt.NDArray[Any] = np.load(path, "r+")
        return opened


def together(
    folders: Sequence[Path], whole: Whole, template: Prediction
) -> Iterator[tuple[int, Prediction]]:
    """The prediction of a whole image in bands of rows from top to bottom.

    Args:
        folders: Those of the stitchers of all processes.
        whole: The image.
        template: A prediction that has all but the maps, such as that of a part.

    Yields:
        The first row of a band, and the prediction of the band. Its shares are NaN where no part
        came.
    """
    there = [folder for folder in folders if _file(folder, whole, "best").exists()]

    def stored(name: str, rows: slice) -> npt.NDArray[Any]:
        return np.stack([np.load(_file(f, whole, name), "r")[..., rows, :] for f in there])

    for top in range(0, whole.height, _BAND):
        rows = slice(top, min(top + _BAND, whole.height))
        total, first = stored("total", rows).sum(0), stored("best", rows).argmax(0)
        total[total == 0] = np.nan  # no part shows these pixels
        maps: dict[str, Tensor] = {}
        for name, values in template.tensors().items():
            parts = stored(name, rows)
            if values.is_floating_point():
                maps[name] = torch.from_numpy(parts.sum(0) / total)[None]
            else:
                at = np.broadcast_to(first, parts.shape[1:])[None]
                kept = np.take_along_axis(parts, at, 0)
                maps[name] = torch.from_numpy(kept.astype(np.int64))
        band = dataclasses.replace(template, ids=(whole.id,), **maps)  # type: ignore[arg-type]
        yield top, band


def _tent(length: int) -> npt.NDArray[np.float32]:
    """Weights along a side: 1 in the middle, little at both ends."""
    place = (np.arange(length) + 0.5) / length
    return (1 - abs(2 * place - 1)).clip(_LEAST).astype(np.float32)


def _file(folder: Path, whole: Whole, name: str) -> Path:
    return folder / file_name(whole.id) / f"{name}.npy"
