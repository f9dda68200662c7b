"""Lines, hatching and blends on pictures held as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from tax_lightning.data.labels import IGNORE_INDEX
from tax_lightning.explain.palette import Colour, Picture


def rgb(grey: NDArray[np.floating]) -> Picture:
    """A grey picture with three channels."""
    return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def blend(
    picture: Picture, colour: Colour | NDArray[np.integer], strength: float | NDArray[np.floating]
) -> Picture:
    """The picture mixed with a colour: strength 0 leaves it, 1 covers it."""
    mixed = picture + (np.asarray(colour, dtype=np.float32) - picture) * strength
    return mixed.round().clip(0, 255).astype(np.uint8)


def outline_of(labels: NDArray[np.generic], width: int) -> NDArray[np.bool_]:
    """The inner edge of every labelled region, so many pixels wide."""
    known = np.where(labels == IGNORE_INDEX, 0, labels).astype(int)
    edge = find_boundaries(known, mode="inner", background=0)
    wider: NDArray[np.bool_] = ndimage.maximum_filter(edge, size=2 * width - 1)
    return wider & (known > 0)


def seams_between(regions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Lines one pixel wide between two regions; none towards -1, where thin regions would drown."""
    seams = np.zeros(regions.shape, dtype=bool)
    for axis in (0, 1):
        before, after = regions.swapaxes(0, axis)[:-1], regions.swapaxes(0, axis)[1:]
        seams.swapaxes(0, axis)[1:] |= (before != after) & (before >= 0) & (after >= 0)
    return seams


def dashed(picture: Picture, line: NDArray[np.bool_]) -> Picture:
    """The picture with a line in black and white dashes."""
    rows, cols = np.indices(line.shape)
    white = (rows + cols) // 5 % 2 == 0
    picture[line] = np.where(white[line][:, None], 255, 0)
    return picture


def hatching(height: int, width: int, period: int) -> NDArray[np.bool_]:
    """Diagonal lines."""
    rows, cols = np.indices((height, width))
    return (rows + cols) % period < period // 6
