"""Habits of labelling: what an annotator makes of an object's mask or class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image, disk

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


class Rule(ABC):
    """One way of drawing an object other than it is.

    A rule changes the outline (`redraw`), the class (`relabel`), or both. Rules are frozen
    dataclasses: equal rules are one and the same cause, with one `name`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the rule does, with its strength, as tables and pictures show it."""

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Returns the outline that is drawn for the object ``mask``, both bool ``[H, W]``."""
        return mask

    def relabel(self, label: int) -> int:
        """Returns the class id that is given to an object of class ``label``."""
        return label


@dataclass(frozen=True)
class OverSegment(Rule):
    """Draws the outline too wide, by a disc of radius ``pixels``.

    Args:
        pixels: Width of the rim that is added.

    Example:
        >>> dot = np.zeros((5, 5), dtype=bool)
        >>> dot[2, 2] = True
        >>> int(OverSegment(1).redraw(dot, np.random.default_rng(0)).sum())
        5
    """

    pixels: int

    @property
    def name(self) -> str:
        """Name with the width of the rim."""
        return f"over-segments by {self.pixels} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Adds the rim."""
        return as_bool(ndimage.binary_dilation(mask, disc(self.pixels)))


@dataclass(frozen=True)
class UnderSegment(Rule):
    """Draws the outline too tight, by a disc of radius ``pixels``.

    Objects thinner than the disc vanish. What touches the image's edge is not eroded from there.

    Args:
        pixels: Width of the rim that is left out.
    """

    pixels: int

    @property
    def name(self) -> str:
        """Name with the width of the rim."""
        return f"under-segments by {self.pixels} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Takes the rim away."""
        return as_bool(ndimage.binary_erosion(mask, disc(self.pixels), border_value=1))


@dataclass(frozen=True)
class Miss(Rule):
    """Does not draw the object at all. As the only habit of an annotator: a blank mask."""

    @property
    def name(self) -> str:
        """Name of the rule."""
        return "misses"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Draws nothing."""
        return np.zeros_like(mask)


@dataclass(frozen=True)
class Shift(Rule):
    """Draws the right outline at the wrong place.

    Args:
        dy: Rows downwards.
        dx: Columns to the right.
    """

    dy: int
    dx: int

    @property
    def name(self) -> str:
        """Name with the displacement."""
        return f"shifts by {self.dy:+d}, {self.dx:+d} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Moves the outline; what leaves the image is lost."""
        moved = np.zeros_like(mask)
        rows, columns = np.nonzero(mask)
        rows, columns = rows + self.dy, columns + self.dx
        inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        moved[rows[inside], columns[inside]] = True
        return moved


@dataclass(frozen=True)
class ConvexHull(Rule):
    """Draws the convex hull: fills bays and holes, as people do who click a few corners."""

    @property
    def name(self) -> str:
        """Name of the rule."""
        return "fills bays"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Fills the hull."""
        return _hull(mask)


@dataclass(frozen=True)
class Polygon(Rule):
    """Clicks a few corners of the outline and joins them by straight lines.

    The corners are the object's farthest pixels in evenly spread directions, upwards first. What
    bulges over the lines is cut off.

    Args:
        corners: Number of clicks, at least 3.
    """

    corners: int

    @property
    def name(self) -> str:
        """Name with the number of corners."""
        return f"clicks {self.corners} corners"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Fills the polygon."""
        pixels = np.argwhere(mask)
        angles = np.arange(self.corners) * 2 * np.pi / self.corners
        ahead = np.stack([-np.cos(angles), np.sin(angles)])
        aside = np.stack([np.sin(angles), np.cos(angles)])
        offsets = pixels - pixels.mean(axis=0)
        # of pixels equally far ahead, the one that lies straightest ahead
        farness = offsets @ ahead - 1e-3 * np.abs(offsets @ aside)
        rows, columns = pixels[farness.argmax(axis=0)].T
        clicked = np.zeros_like(mask)
        clicked[rows, columns] = True
        return _hull(clicked)


@dataclass(frozen=True)
class Smooth(Rule):
    """Cuts off whatever is narrower than a disc of radius ``pixels`` (morphological opening).

    Args:
        pixels: Radius of the disc.
    """

    pixels: int

    @property
    def name(self) -> str:
        """Name with the radius."""
        return f"smooths by {self.pixels} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Opens the outline."""
        return as_bool(ndimage.binary_opening(mask, disc(self.pixels)))


@dataclass(frozen=True)
class Fracture(Rule):
    """Draws the object in pieces: leaves out the last ``dropped`` of ``every`` so many pixels.

    Pixels are counted in reading order, along columns where the object is wider than high: the
    gaps then run across it.

    Args:
        dropped: Pixels in a gap.
        every: Pixels from one gap to the next, more than ``dropped``.
    """

    dropped: int
    every: int

    @property
    def name(self) -> str:
        """Name with the share that is left out."""
        return f"drops {self.dropped} of every {self.every} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Leaves the gaps out."""
        rows, columns = np.nonzero(mask)
        if np.ptp(columns) > np.ptp(rows):
            columns, rows = np.nonzero(mask.T)
        kept = np.arange(rows.size) % self.every < self.every - self.dropped
        drawn = np.zeros_like(mask)
        drawn[rows[kept], columns[kept]] = True
        return drawn


@dataclass(frozen=True)
class Wobble(Rule):
    """Draws with an unsteady hand: the outline strays at random, smoothly along its course.

    Args:
        pixels: Standard deviation of the straying outline.
        scale: Length over which the hand strays, in pixels.
    """

    pixels: float
    scale: float = 3.0

    @property
    def name(self) -> str:
        """Name with the strength."""
        return f"wobbles by {self.pixels:g} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Moves the outline by a smooth random field."""
        depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        stray = ndimage.gaussian_filter(rng.standard_normal(mask.shape), self.scale)
        stray *= self.pixels / max(float(stray.std()), np.finfo(float).tiny)
        return as_bool(depth + stray > 0)


@dataclass(frozen=True)
class SwapClass(Rule):
    """Draws the right outline and gives it the wrong class.

    A permutation of classes is one habit a class, each with `When` naming the class it is for.

    Args:
        to: Class id that is given instead.
        called: Name of that class.
    """

    to: int
    called: str

    @property
    def name(self) -> str:
        """Name with the class that is given."""
        return f"calls it {self.called}"

    def relabel(self, label: int) -> int:
        """Gives the wrong class."""
        return self.to


@dataclass(frozen=True)
class Chain(Rule):
    """Applies several rules, one after the other.

    Args:
        rules: The rules, in the order they are applied.

    Example:
        >>> Chain((UnderSegment(2), SwapClass(3, "debris"))).name
        'under-segments by 2 px, then calls it debris'
    """

    rules: tuple[Rule, ...]

    @property
    def name(self) -> str:
        """Names of the rules, in order."""
        return ", then ".join(rule.name for rule in self.rules)

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Passes the outline through all rules; what has vanished stays away."""
        for rule in self.rules:
            mask = rule.redraw(mask, rng) if mask.any() else mask
        return mask

    def relabel(self, label: int) -> int:
        """Passes the class through all rules."""
        for rule in self.rules:
            label = rule.relabel(label)
        return label


def as_bool(array: npt.NDArray[Any]) -> BoolArray:
    """The untyped result of an image operation as a boolean array."""
    return np.asarray(array, dtype=np.bool_)


@lru_cache
def disc(radius: int) -> ByteArray:
    """Disc-shaped neighbourhood."""
    return np.asarray(disk(radius), dtype=np.uint8)


def _hull(mask: BoolArray) -> BoolArray:
    """Convex hull of the pixels, their whole area included."""
    return as_bool(convex_hull_image(mask))
