"""Large images in windows that overlap: where these lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # an import of masks needs no torch
    from torch import Tensor

OVERLAP = 4  # of a tile's side, one part in so many is shown by the next tile too


class Window(NamedTuple):
    """A rectangle of a picture, in pixels, wholly inside of it."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: Tensor) -> Tensor:
        """What the window shows of a picture ``[..., H, W]``."""
        rows = slice(self.top, self.top + self.height)
        return picture[..., rows, self.left : self.left + self.width]


def cover(height: int, width: int, size: int, stride: int | None = None) -> list[Window]:
    """The square windows that cover a picture, row by row; the last ones are moved inwards.

    Args:
        height: Of the picture.
        width: Of the picture.
        size: Side of a window; a shorter side of the picture is taken whole.
        stride: Pixels from one window to the next; None: the size.

    Example:
        >>> [(top, left) for top, left, _, _ in cover(4, 10, size=4)]
        [(0, 0), (0, 4), (0, 6)]
    """
    rows, columns = (
        [*range(0, length - size, stride or size), max(0, length - size)]
        for length in (height, width)
    )
    return [
        Window(top, left, min(size, height), min(size, width)) for top in rows for left in columns
    ]


def stride_of(tile: int) -> int:
    """Pixels from one tile to the next.

    Raises:
        ValueError: If the tile has fewer than 16 pixels a side.

    Example:
        >>> stride_of(512)
        384
    """
    if tile < 16:
        raise ValueError(f"tile={tile}: expected the side of a window in pixels, from 16 up.")
    return tile - tile // OVERLAP


def tiles(height: int, width: int, tile: int) -> list[Window]:
    """The windows of a picture that is segmented in tiles of this side."""
    return cover(height, width, tile, stride_of(tile))


def spread(length: int, count: int) -> NDArray[np.int32]:
    """So many of the places 0 to length - 1, or each several times, in the middle of its part."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int32)


Places = Sequence[int] | NDArray[np.integer]
"""Rows or columns of pixels, in ascending order."""
