"""Shapes that people drew with annotation tools, as class ids.

Coordinates are those of the image with the corner of the first pixel at (0, 0), as tools write
them: the pixel in row y and column x covers x to x + 1 and y to y + 1. It belongs to a polygon if
its centre lies inside, and a centre on the outline belongs to what is on its right, so that
neighbours with a common border neither share a pixel nor leave one out. Where an outline crosses
itself, inside is what a way from outside reaches over an odd number of lines.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tax_lightning.data.pixels import size_text
from tax_lightning.exporters.outlines import Bools, Ring

Size = tuple[int, int]
"""Height and width."""

_CORNERS = 720  # of an ellipse: off by a hundred-thousandth of its radius


class Patch(NamedTuple):
    """Some pixels of an image: a rectangle of truth values, wholly inside of it."""

    top: int
    left: int
    pixels: Bools

    def paint(self, labels: npt.NDArray[Any], value: int) -> None:
        """Set the pixels of the patch in an array of the image's size."""
        height, width = self.pixels.shape
        labels[self.top : self.top + height, self.left : self.left + width][self.pixels] = value


@dataclass(frozen=True)
class Shape:
    """Something that a person drew.

    Args:
        label: Its class.
        draw: Gives the pixels that belong to it, for the image's height and width.
        order: Of shapes that overlap, the one with the larger number lies above; of equal ones the
            later one.
    """

    label: str
    draw: Callable[[Size], Patch]
    order: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.label, str):  # of a foreign file
            raise ValueError(f"The label {self.label!r} is no text, expected the name of a class.")


def placed(pixels: Bools, top: int, left: int, size: Size) -> Patch:
    """A mask of a box at its place in the image."""
    height, width = pixels.shape
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"a mask of {width} x {height} pixels at {left}, {top} does not lie in its image of "
            f"{size_text(size)}"
        )
    return Patch(top, left, pixels)


def inside(rings: Sequence[Ring], size: Size) -> Bools:
    """The pixels whose centre lies inside an odd number of outlines, bool ``[H, W]``.

    Example:
        >>> square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
        >>> inside([square], (3, 3)).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    # OpenCV and scikit-image give pixels on a common border to both neighbours or to none, and
    # shapely needs half a minute for an outline of ragged pixels; so the crossings are counted here
    height, width = size
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upwards = (starts[:, 1] > ends[:, 1])[:, None]  # an edge is the same from both of its sides
    a, b = np.where(upwards, ends, starts), np.where(upwards, starts, ends)
    first = np.clip(np.ceil(a[:, 1] - 0.5), 0, height).astype(int)  # rows: a.y <= centre < b.y
    count = np.clip(np.ceil(b[:, 1] - 0.5), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(a)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (b[edge, 0] - a[edge, 0]) / (b[edge, 1] - a[edge, 1])
    crossing = a[edge, 0] + (row + 0.5 - a[edge, 1]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
    edges = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    left_of = np.cumsum(edges.reshape(height, width + 1)[:, :width], axis=1)
    odd: Bools = left_of % 2 == 1
    return odd


def polygon(rings: Iterable[object], label: str, order: int = 0) -> Shape:
    """A shape from outlines, each a list of x and y: that of the object, then those of holes."""
    arrays = []
    for ring in rings:
        try:
            array = np.asarray(ring, np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 2 or array.shape[1] < 2 or not np.isfinite(array).all():
            raise ValueError(
                f"An outline of {label!r} is no list of points x, y: {str(ring)[:80]}."
            )
        arrays.append(array[:, :2])
    if not arrays:
        raise ValueError(f"A polygon of {label!r} has no outline.")
    return Shape(label, partial(_filled, arrays), order)


def _filled(rings: Sequence[Ring], size: Size) -> Patch:
    """The pixels of a polygon, in the box around its outline."""
    (left, top), (right, bottom) = (
        np.clip(edge, 0, size[::-1]).astype(int).tolist()
        for edge in (np.floor(rings[0].min(0)), np.ceil(rings[0].max(0)))
    )
    moved, box = [ring - (left, top) for ring in rings], (bottom - top, right - left)
    pixels = inside(moved[:1], box)
    for hole in moved[1:]:
        _filled([hole], box).paint(pixels, False)
    return Patch(top, left, pixels)


def ellipse(x: float, y: float, across: float, down: float) -> Ring:
    """The outline of an upright ellipse about a point, from half of its width and of its height."""
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Ring:
    """The outline of an upright rectangle from two opposite corners, in pixels."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def turned(ring: Ring, degrees: float, about: tuple[float, float]) -> Ring:
    """An outline turned clockwise about a point."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    there: Ring = (ring - about) @ np.array([[cos, sin], [-sin, cos]]) + about
    return there


def from_runs(lengths: Sequence[int], size: Size) -> Bools:
    """The mask of :func:`tax_lightning.exporters.outlines.runs`."""
    if sum(lengths) != size[0] * size[1] or min(lengths, default=0) < 0:
        raise ValueError(
            f"Runs of {sum(lengths)} pixels in a box of {size_text(size)}: expected as many as "
            "the box has."
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size)


def from_png(png: bytes, size: Size) -> Bools:
    """The mask of a PNG file, no larger than its image: what is opaque, or not black."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise ValueError("a mask is no PNG file")
    declared = int.from_bytes(png[20:24], "big"), int.from_bytes(png[16:20], "big")
    if declared[0] > size[0] or declared[1] > size[1]:  # before it is decoded
        raise ValueError(f"a mask of {size_text(declared)} in an image of {size_text(size)} pixels")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("a mask is no whole PNG file")
    colours = np.asarray(pixels).reshape(*declared, -1)
    return np.asarray((colours[..., 3:] if colours.shape[2] == 4 else colours).any(2), np.bool_)
