"""What is said of the windows of a large image becomes one.

Shares are averaged where windows overlap, with weights that fall towards the edges of a window,
where a network sees least of what lies around. What cannot be averaged, such as an index, is that
of the window that weighs most.
"""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tax_lightning.windows import Places, Window

WIDTH = 1 / 8  # standard deviation of the weights, of a window's side
LEAST = 1e-3  # weight at the edges of a window: pixels that no other window shows count too
BAND_VALUES = 2**22  # float32 numbers of an image that are put together at once, 16 MB

Part = tuple[Window, Mapping[str, Tensor]]
"""A window, and maps of it by name, ``[..., height, width]`` each."""


def blend(
    parts: Iterable[Part], rows: Places, columns: Places, averaged: Collection[str]
) -> dict[str, Tensor]:
    """The maps of an image, or of some of its pixels, from those of windows.

    Args:
        parts: The windows, one at a time. Those that show none of the pixels may be left out.
        rows: Of the pixels, such as a range.
        columns: Of the pixels.
        averaged: Names of the maps to be averaged. Of the others, the values of the window that
            weighs most are kept.

    Returns:
        Maps by name, ``[..., rows, columns]``, float32 where averaged. Where no window came they
        are NaN, or 0 where they are not averaged.

    Example:
        >>> left, right = Window(0, 0, 1, 4), Window(0, 2, 1, 4)
        >>> parts = [(left, {"p": torch.ones(1, 4)}), (right, {"p": torch.zeros(1, 4)})]
        >>> blend(parts, range(1), range(7), ["p"])["p"].round(decimals=2)
        tensor([[1.0000, 1.0000, 0.9800, 0.0200, 0.0000, 0.0000,    nan]])
    """
    y, x = torch.tensor([*rows]), torch.tensor([*columns])
    total, best = torch.zeros(2, len(y), len(x))
    whole: dict[str, Tensor] = {}
    for (top, left, height, width), maps in parts:
        first = torch.searchsorted(y, torch.tensor([top, top + height])).tolist()
        second = torch.searchsorted(x, torch.tensor([left, left + width])).tolist()
        place = (..., slice(*first), slice(*second))
        own = y[place[1]] - top, x[place[2]] - left
        weight = _weights(height)[own[0]][:, None] * _weights(width)[own[1]]
        around = weight > best[place]
        best[place] = torch.maximum(best[place], weight)
        total[place] += weight
        for name, values in maps.items():
            here = _selected(values, *own)
            kind = torch.float32 if name in averaged else values.dtype
            if name not in whole:
                whole[name] = torch.zeros(*values.shape[:-2], len(y), len(x), dtype=kind)
            if name in averaged:
                whole[name][place] += here.cpu() * weight
            else:
                whole[name][place] = torch.where(around, here.cpu(), whole[name][place])
    total[total == 0] = torch.nan
    for name in whole.keys() & set(averaged):
        whole[name] /= total
    return whole


def _weights(length: int) -> Tensor:
    """Weights along a side of a window: 1 in the middle, little at both ends."""
    place = (torch.arange(length) + 0.5) / length - 0.5
    return torch.exp(-0.5 * (place / WIDTH) ** 2).clamp_min(LEAST)


def _selected(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The values at these rows and columns, which are often all."""
    if len(rows) < values.shape[-2]:
        values = values.index_select(-2, rows.to(values.device))
    if len(columns) < values.shape[-1]:
        values = values.index_select(-1, columns.to(values.device))
    return values


class Parts:
    """Maps of the windows of one image, on disk until they are blended.

    Args:
        folder: Where the files are; other processes may look into it too.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = Parts(Path(folder, "a"))
        ...     parts.add(Window(0, 0, 1, 2), {"p": torch.tensor([[0.25, 0.75]])})
        ...     blend(parts.showing(0, 1), range(1), range(2), ["p"])
        {'p': tensor([[0.2500, 0.7500]])}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.windows: list[Window] = []

    def add(self, window: Window, maps: Mapping[str, Tensor]) -> None:
        """Keep the maps ``[..., height, width]`` of a window, numbers in half precision."""
        self.windows.append(window)
        for name, values in maps.items():
            small = torch.float16 if values.is_floating_point() else torch.int16
            np.save(self._folder(window) / f"{name}.npy", values.cpu().to(small).numpy())

    def showing(self, top: int, bottom: int) -> Iterator[Part]:
        """The windows that show some of these rows; of their maps only what is used is read."""
        for window in self.windows:
            if window.top < bottom and top < window.top + window.height:
                files = sorted(self._folder(window).iterdir())
                # Mode "c": PyTorch warns of memory that cannot be written.
                yield window, {f.stem: torch.from_numpy(np.load(f, "c")) for f in files}

    def forget(self, bottom: int) -> None:
        """Delete the windows that end above this row."""
        for window in [w for w in self.windows if w.top + w.height <= bottom]:
            shutil.rmtree(self._folder(window))
            self.windows.remove(window)

    def _folder(self, window: Window) -> Path:
        folder = self.folder / f"{window.top},{window.left}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
