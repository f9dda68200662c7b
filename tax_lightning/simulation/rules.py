"""Habits of labelling: what an annotator makes of an object's mask or class."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image, disk

from tax_lightning.refusals import check_number

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
Box = tuple[slice, slice]
"""Rows and columns of a rectangle in an image."""
Brush = Literal["disc", "square"]
MOST_PIXELS = 1024
"""More than that is no habit, and takes more memory than there is."""


class Rule(ABC):
    """One way of drawing an object other than it is.

    A rule changes the outline (`redraw`), the class (`relabel`), or both. Rules are frozen
    dataclasses: equal rules are one and the same cause, with one `name`. Where a rule takes a
    class, that is its id or its name; `resolved` turns names into ids.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the rule does, with its strength, as tables and pictures show it."""

    @property
    def reach(self) -> int | None:
        """How far `redraw` may draw beyond the object's bounding box, in pixels.

        With a reach, what is drawn depends on the object and the image's edges within that
        distance alone, so that a part of the image is enough. None: anything in the image counts.
        """
        return None

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Returns the outline that is drawn for the object ``mask``, both bool ``[H, W]``."""
        return mask

    def relabel(self, label: int) -> int:
        """Returns the class id that is given to an object of class ``label``."""
        return label

    def concerns(self, label: int) -> bool:
        """Returns whether the rule does anything at all to objects of class ``label``."""
        return True

    def resolved(self, classes: Sequence[str]) -> Self:
        """Returns the rule with class ids in the place of class names.

        Args:
            classes: Names of the classes; the index is the class id.

        Raises:
            ValueError: If a class is none of these.
        """
        return self


class _Outline(Rule):
    """A rule that keeps within the bounding box of the object, unless its subclass says other."""

    @property
    def reach(self) -> int:
        """No farther than the object itself."""
        return 0


@dataclass(frozen=True)
class OverSegment(_Outline):
    """Draws the outline too wide.

    Args:
        pixels: Width of the rim that is added.
        brush: ``"disc"`` of that radius; ``"square"``: one dilation by 3 x 3 pixels for every
            pixel of width.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> dot = np.zeros((5, 5), dtype=bool)
        >>> dot[2, 2] = True
        >>> [int(OverSegment(1, how).redraw(dot, np.random.default_rng(0)).sum())
        ...     for how in ("disc", "square")]
        [5, 9]
    """

    pixels: int
    brush: Brush = "disc"

    def __post_init__(self) -> None:
        check_number("OverSegment.pixels", self.pixels, 0, MOST_PIXELS)

    @property
    def name(self) -> str:
        """Name with the width of the rim."""
        return f"over-segments by {self.pixels} px{_BRUSH_NAMES[self.brush]}"

    @property
    def reach(self) -> int:
        """The width of the rim."""
        return self.pixels

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Adds the rim."""
        return as_bool(ndimage.binary_dilation(mask, _brush(self.brush, self.pixels)))


@dataclass(frozen=True)
class UnderSegment(_Outline):
    """Draws the outline too tight.

    Objects thinner than the brush vanish. What touches the image's edge is not eroded from there.

    Args:
        pixels: Width of the rim that is left out.
        brush: ``"disc"`` of that radius; ``"square"``: one erosion by 3 x 3 pixels for every pixel
            of width.

    Raises:
        ValueError: If a number is out of its range.
    """

    pixels: int
    brush: Brush = "disc"

    def __post_init__(self) -> None:
        check_number("UnderSegment.pixels", self.pixels, 0, MOST_PIXELS)

    @property
    def name(self) -> str:
        """Name with the width of the rim."""
        return f"under-segments by {self.pixels} px{_BRUSH_NAMES[self.brush]}"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Takes the rim away."""
        brush = _brush(self.brush, self.pixels)
        return as_bool(ndimage.binary_erosion(mask, brush, border_value=1))


@dataclass(frozen=True)
class Miss(_Outline):
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

    @property
    def reach(self) -> int:
        """The longer of the two displacements."""
        return max(abs(self.dy), abs(self.dx))

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Moves the outline; what leaves the image is lost."""
        moved = np.zeros_like(mask)
        rows, columns = np.nonzero(mask)
        rows, columns = rows + self.dy, columns + self.dx
        inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        moved[rows[inside], columns[inside]] = True
        return moved


@dataclass(frozen=True)
class ConvexHull(_Outline):
    """Draws the convex hull: fills bays and holes, as people do who click a few corners."""

    @property
    def name(self) -> str:
        """Name of the rule."""
        return "fills bays"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Fills the hull."""
        return _hull(mask)


@dataclass(frozen=True)
class Polygon(_Outline):
    """Clicks a few corners of the outline and joins them by straight lines.

    The corners are the object's farthest pixels in evenly spread directions, upwards first. What
    bulges over the lines is cut off.

    Args:
        corners: Number of clicks, at least 3.

    Raises:
        ValueError: If a number is out of its range.
    """

    corners: int

    def __post_init__(self) -> None:
        check_number("Polygon.corners", self.corners, 3, MOST_PIXELS)

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
        # whole numbers up to the division: the same wherever in the image the object lies
        offsets = (pixels * len(pixels) - pixels.sum(axis=0)) / len(pixels)
        # of pixels equally far ahead, the one that lies straightest ahead
        farness = offsets @ ahead - 1e-3 * np.abs(offsets @ aside)
        rows, columns = pixels[farness.argmax(axis=0)].T
        clicked = np.zeros_like(mask)
        clicked[rows, columns] = True
        return _hull(clicked)


@dataclass(frozen=True)
class Smooth(_Outline):
    """Cuts off whatever is narrower than a disc of radius ``pixels`` (morphological opening).

    Args:
        pixels: Radius of the disc.

    Raises:
        ValueError: If a number is out of its range.
    """

    pixels: int

    def __post_init__(self) -> None:
        check_number("Smooth.pixels", self.pixels, 0, MOST_PIXELS)

    @property
    def name(self) -> str:
        """Name with the radius."""
        return f"smooths by {self.pixels} px"

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Opens the outline."""
        return as_bool(ndimage.binary_opening(mask, disc(self.pixels)))


@dataclass(frozen=True)
class Fracture(_Outline):
    """Draws the object in pieces: leaves out the last ``dropped`` of ``every`` so many pixels.

    Pixels are counted in reading order, along columns where the object is wider than high: the
    gaps then run across it.

    Args:
        dropped: Pixels in a gap.
        every: Pixels from one gap to the next, more than ``dropped``.

    Raises:
        ValueError: If a number is out of its range.
    """

    dropped: int
    every: int

    def __post_init__(self) -> None:
        check_number("Fracture.every", self.every, 1)
        check_number("Fracture.dropped", self.dropped, 0, self.every - 1)

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
        pixels: Standard deviation of the straying outline; it never strays four times as far.
        scale: Length over which the hand strays, in pixels.

    Raises:
        ValueError: If a number is out of its range.
    """

    pixels: float
    scale: float = 3.0

    def __post_init__(self) -> None:
        check_number("Wobble.pixels", self.pixels, 0, MOST_PIXELS)
        check_number("Wobble.scale", self.scale, 0, MOST_PIXELS)

    @property
    def name(self) -> str:
        """Name with the strength."""
        return f"wobbles by {self.pixels:g} px"

    @property
    def reach(self) -> int:
        """Four standard deviations."""
        return ceil(4 * self.pixels)

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Moves the outline by a smooth random field."""
        box = bounds(mask, self.reach)
        around = np.pad(mask[box], 1)  # an object that fills the image has an outline too
        depth = ndimage.distance_transform_edt(around) - ndimage.distance_transform_edt(~around)
        stray = ndimage.gaussian_filter(rng.standard_normal(around.shape), self.scale)
        stray *= self.pixels / max(float(stray.std()), np.finfo(float).tiny)
        drawn = np.zeros_like(mask)
        drawn[box] = (depth + stray.clip(-self.reach, self.reach) > 0)[1:-1, 1:-1]
        return drawn


@dataclass(frozen=True)
class Noise(Rule):
    """Flips pixels at random, each by itself.

    Args:
        share: Probability in [0, 1] that a pixel is flipped.
        within: Flips only pixels that are no farther than this from the outline, on either side.
            None: all for which this object is the nearest one, however far away.

    Raises:
        ValueError: If the share is no probability.
    """

    share: float
    within: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: expected a probability from 0 to 1.")

    @property
    def name(self) -> str:
        """Name with the share, and the place."""
        place = "anywhere" if self.within is None else f"within {self.within} px of outlines"
        return f"flips {self.share:g} of the pixels {place}"

    @property
    def reach(self) -> int | None:
        """The distance within which pixels are flipped."""
        return self.within

    def redraw(self, mask: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Flips the pixels."""
        box = (slice(None), slice(None)) if self.within is None else bounds(mask, self.within)
        drawn = mask.copy()
        flipped = rng.random(mask[box].shape) < self.share
        if self.within is not None:
            near = disc(self.within)
            flipped &= ndimage.binary_dilation(mask[box], near)
            flipped &= ~ndimage.binary_erosion(mask[box], near, border_value=1)
        drawn[box] ^= flipped
        return drawn


@dataclass(frozen=True)
class SwapClass(_Outline):
    """Draws the right outline and gives it the wrong class, always the same one.

    Args:
        to: Class that is given instead: its id or its name.
        called: Name of that class, where it is given by id.
    """

    to: int | str
    called: str = ""

    @property
    def name(self) -> str:
        """Name with the class that is given."""
        return f"calls it {self.called or self.to}"

    def relabel(self, label: int) -> int:
        """Gives the wrong class."""
        return known_id(self.to)

    def concerns(self, label: int) -> bool:
        """Objects of that class are right."""
        return label != self.to

    def resolved(self, classes: Sequence[str]) -> Self:
        """See `Rule.resolved`."""
        to = class_id(self.to, classes)
        return replace(self, to=to, called=classes[to])


@dataclass(frozen=True)
class PermuteClasses(_Outline):
    """Draws the right outlines and confuses the classes: each is called the next one of a cycle.

    Args:
        cycle: Classes by id or name, the last of which is called the first: ``(1, 4, 2)`` calls 1
            4, 4 2, and 2 1. Other classes are named rightly. Empty: every class but the background
            is called the one before it, and the first of them the last.
        called: Names of these classes, where they are given by id.

    Raises:
        ValueError: If the cycle holds a class twice, or a single class.

    Example:
        >>> rule = PermuteClasses().resolved(["background", "cell", "fibre", "debris"])
        >>> rule.name, [rule.relabel(label) for label in (1, 2, 3)]
        ('calls debris fibre, fibre cell, cell debris', [3, 1, 2])
    """

    cycle: tuple[int | str, ...] = ()
    called: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.cycle) == 1 or len(set(self.cycle)) < len(self.cycle):
            raise ValueError(
                f"cycle={list(self.cycle)}: expected at least two classes, each of them once."
            )

    @property
    def name(self) -> str:
        """Name with the cycle."""
        names = self.called or self.cycle
        pairs = zip(names, (*names[1:], *names[:1]), strict=True)
        return "calls " + (", ".join(f"{one} {other}" for one, other in pairs) or "classes wrongly")

    def relabel(self, label: int) -> int:
        """Gives the next class."""
        ids = self._ids()
        return ids[(ids.index(label) + 1) % len(ids)] if label in ids else label

    def concerns(self, label: int) -> bool:
        """Only the classes of the cycle."""
        return label in self._ids()

    def resolved(self, classes: Sequence[str]) -> Self:
        """See `Rule.resolved`."""
        if not self.cycle and len(classes) < 3:
            raise ValueError(
                f"PermuteClasses: of the classes {', '.join(classes)} only one is no background, "
                "expected at least two to confuse. Leave annotators with this rule out."
            )
        given = self.cycle or range(len(classes) - 1, 0, -1)
        cycle = tuple(class_id(label, classes) for label in given)
        return replace(self, cycle=cycle, called=tuple(classes[label] for label in cycle))

    def _ids(self) -> tuple[int, ...]:
        return tuple(known_id(given) for given in self.cycle or ("all",))


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

    @property
    def reach(self) -> int | None:
        """What the rules' reaches add up to."""
        reaches = [rule.reach for rule in self.rules]
        return None if None in reaches else sum(reach or 0 for reach in reaches)

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

    def concerns(self, label: int) -> bool:
        """Returns whether any of the rules does anything."""
        return any(rule.concerns(label) for rule in self.rules)

    def resolved(self, classes: Sequence[str]) -> Self:
        """See `Rule.resolved`."""
        return replace(self, rules=tuple(rule.resolved(classes) for rule in self.rules))


def class_id(given: int | str, classes: Sequence[str]) -> int:
    """The id of a class that is given by its id or its name.

    Args:
        given: Id or name.
        classes: Names of the classes; the index is the class id.

    Raises:
        ValueError: If there is no such class.
    """
    ids: dict[int | str, int] = {name: label for label, name in enumerate(classes)}
    ids |= {label: label for label in range(len(classes))}
    if given not in ids:
        raise ValueError(
            f"A rule or its condition names the class {given!r}, expected one of "
            f"{', '.join(classes)}, or an id from 0 to {len(classes) - 1}."
        )
    return ids[given]


def known_id(given: int | str) -> int:
    """The class, which must be given by its id.

    Args:
        given: Id of a class, or a name that nobody has resolved.

    Raises:
        ValueError: If it is a name.
    """
    if isinstance(given, str):
        raise ValueError(
            f"The class {given!r} is given by name, expected its id: call resolved(classes) on the "
            "annotators first."
        )
    return given


def bounds(mask: BoolArray, margin: int = 0) -> Box:
    """The bounding box of a mask, and a margin round it as far as the image goes.

    Args:
        mask: Bool ``[H, W]``, at least one pixel of it true.
        margin: Width of the margin in pixels.

    Example:
        >>> bounds(np.eye(4, 9, k=5, dtype=bool), margin=1)
        (slice(0, 4, None), slice(4, 9, None))
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(int(rows[0]) - margin, 0), min(int(rows[-1]) + margin + 1, mask.shape[0])),
        slice(max(int(columns[0]) - margin, 0), min(int(columns[-1]) + margin + 1, mask.shape[1])),
    )


def as_bool(array: npt.NDArray[Any]) -> BoolArray:
    """The untyped result of an image operation as a boolean array."""
    return np.asarray(array, dtype=np.bool_)


@lru_cache
def disc(radius: int) -> ByteArray:
    """Disc-shaped neighbourhood."""
    return np.asarray(disk(radius), dtype=np.uint8)


_BRUSH_NAMES = {"disc": "", "square": " (square)"}


def _brush(brush: Brush, pixels: int) -> ByteArray:
    """Neighbourhood of that form."""
    return disc(pixels) if brush == "disc" else np.ones((2 * pixels + 1,) * 2, np.uint8)


def _hull(mask: BoolArray) -> BoolArray:
    """Convex hull of the pixels, their whole area included."""
    return as_bool(convex_hull_image(mask))
