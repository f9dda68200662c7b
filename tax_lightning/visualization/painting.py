"""Lines, hatching and blends on pictures held as arrays, and images of any kind made pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.visualization.palette import Colour, Picture

_LOOKED_AT = 512  # pixels a side, at most, from which the range of grey values is taken
_STRAY = 0.1  # per cent of the pixels at each end that may be darker than black, or above white


def as_picture(image: NDArray[Any]) -> Picture:
    """An image of any kind as a person would see it.

    Args:
        image: ``[H, W]`` or ``[H, W, ch]``. uint8 stays as it is; anything else, such as 16-bit or
            floating-point values, is stretched to :func:`shown_range`. Of one, two or more than
            three channels the first is shown in grey.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        ValueError: if the array is not an image.

    Example:
        >>> as_picture(np.array([[300, 800, 1300]], dtype=np.uint16))[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    planes = _shown_planes(image)
    if planes.dtype != np.uint8:
        low, high = shown_range(image)
        values = np.nan_to_num(planes.astype(np.float32), nan=low, posinf=high, neginf=low)
        scaled = ((values - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
        planes = np.floor(scaled + 0.5).astype(np.uint8)
    return np.broadcast_to(planes, (*planes.shape[:2], 3)).copy()


def shown_range(image: NDArray[Any]) -> tuple[float, float]:
    """The values shown as black and as white: all but one in a thousand lie between them.

    Args:
        image: ``[H, W]`` or ``[H, W, ch]``; what is not finite does not count, nor do channels
            that are not shown.

    Returns:
        Two values that occur in the image; 0 and 1 if it has none.

    Example:
        >>> shown_range(np.array([[300.0, 800.0, np.nan]]))
        (300.0, 800.0)
    """
    step = -(-max(image.shape[:2]) // _LOOKED_AT)
    values = _shown_planes(image)[::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (_STRAY, 100 - _STRAY), method="nearest")
    return float(low), float(high)


def _shown_planes(image: NDArray[Any]) -> NDArray[Any]:
    """The channels that a picture shows, ``[H, W, 1 or 3]``."""
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"image has shape {image.shape}, expected [H, W] or [H, W, channels] with pixels."
        )
    planes = image if image.ndim == 3 else image[..., None]
    return planes if planes.shape[2] == 3 else planes[..., :1]


def rgb(grey: NDArray[np.floating]) -> Picture:
    """A grey picture with three channels."""
    return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def blend(
    picture: Picture, colour: Colour | NDArray[np.integer], strength: float | NDArray[np.floating]
) -> Picture:
    """The picture mixed with a colour: strength 0 leaves it, 1 covers it."""
    mixed = picture + (np.asarray(colour, dtype=np.float32) - picture) * np.float32(strength)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def outlines_of(labels: NDArray[Any], width: int) -> NDArray[np.bool_]:
    """The inner edge of every labelled region, so many pixels wide.

    Args:
        labels: class ids ``[..., H, W]``; 0 is the background, and 255, not labelled, counts as it.
        width: of the lines, in pixels.

    Returns:
        ``[..., H, W]``; all maps are done at once.
    """
    known = np.where(labels == IGNORE_INDEX, 0, labels)
    edge = np.zeros(known.shape, dtype=bool)
    for axis in (-2, -1):
        along = np.moveaxis(known, axis, -1)
        differs = along[..., 1:] != along[..., :-1]
        marked = np.moveaxis(edge, axis, -1)
        marked[..., 1:] |= differs
        marked[..., :-1] |= differs
    edge &= known > 0
    return _widened(edge, width - 1) & (known > 0)


def _widened(line: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """The line with all pixels that are no farther from it than ``by``, in rows and columns."""
    for axis in (-2, -1):
        before, line = np.moveaxis(line, axis, -1), line.copy()
        after = np.moveaxis(line, axis, -1)
        for step in range(1, min(by, before.shape[-1] - 1) + 1):
            after[..., step:] |= before[..., :-step]
            after[..., :-step] |= before[..., step:]
    return line


def seams_between(regions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Lines one pixel wide between two regions; none towards -1, where thin regions would drown."""
    seams = np.zeros(regions.shape, dtype=bool)
    for axis in (0, 1):
        before, after = regions.swapaxes(0, axis)[:-1], regions.swapaxes(0, axis)[1:]
        seams.swapaxes(0, axis)[1:] |= (before != after) & (before >= 0) & (after >= 0)
    return seams


def dashed(picture: Picture, line: NDArray[np.bool_]) -> Picture:
    """The picture with a line in black and white dashes."""
    white = (np.add(*_places(line.shape)) // 5 % 2 == 0)[line]
    picture[line] = np.where(white[:, None], np.uint8(255), np.uint8(0))
    return picture


def hatching(height: int, width: int, period: int) -> NDArray[np.bool_]:
    """Diagonal lines."""
    return np.add(*_places((height, width))) % period < period // 6


def taking_turns(outlines: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which of several lines to show where they coincide: each for a few pixels, then the next.

    Args:
        outlines: ``[M, H, W]``.

    Returns:
        Where there is a line, and which of the M is shown there, both ``[H, W]``.
    """
    rank = outlines.cumsum(axis=0, dtype=np.int16)
    together = rank[-1]
    turn = np.add(*_places(together.shape)) // 6 % np.maximum(together, 1) + 1
    return together > 0, (outlines & (rank == turn)).argmax(axis=0)


def _places(shape: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows ``[H, 1]`` and columns ``[1, W]``."""
    height, width = shape
    return np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
