"""Scenes of a microscope that never was: objects of five types on a backdrop, drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tax_lightning.simulation.annotators import (
    ObjectInfo,
    measure_contrast,
)
from tax_lightning.simulation.rules import (
    BoolArray,
    ByteArray,
)

FloatArray = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

CLASSES = ("background", "cell", "fibre", "debris")
MARGIN = 4
"""Least distance in pixels of an object from the image's edge."""
GAP = 8
"""Distance in pixels that objects keep from each other; bent outlines measure it roughly."""
_ATTEMPTS = 60
_REACH = 32
"""No object extends farther than this from its centre, its gap included."""
_OBJECTS = (3, 6)
"""Fewest and most objects on 96 x 96 pixels; larger scenes hold more, by their area."""


@dataclass(frozen=True)
class Place:
    """The surroundings of an object's centre, with coordinates turned to lie along the object.

    Args:
        window: Rows and columns of the surroundings in the scene.
        u: Coordinate along the object in pixels, over the window.
        v: Coordinate across it.
    """

    window: tuple[slice, ...]
    u: FloatArray
    v: FloatArray


@dataclass(frozen=True)
class ObjectType:
    """Looks of one type of object.

    Args:
        name: Name of the type.
        class_name: The class it belongs to, one of `CLASSES`.
        outline: Draws a size and a shape: signed distance to the outline, negative inside.
        texture: Draws the share of ``accent`` in the colour, in ``[0, 1]``, from the place and the
            signed distance.
        colour: RGB of the body.
        accent: RGB of what the texture adds.
        softness: Width of the boundary, in pixels.
        girth: Least distance of the centre from the edge and from other objects' gaps, in pixels.
    """

    name: str
    class_name: str
    outline: Callable[[Place, np.random.Generator], FloatArray]
    texture: Callable[[Place, FloatArray, np.random.Generator], FloatArray]
    colour: Colour
    accent: Colour
    softness: float
    girth: float

    @property
    def label(self) -> int:
        """Class id."""
        return CLASSES.index(self.class_name)


def _disc(place: Place, rng: np.random.Generator) -> FloatArray:
    """Radius 8 to 13."""
    return np.hypot(place.u, place.v) - rng.uniform(8, 13)


def _ellipse(place: Place, rng: np.random.Generator) -> FloatArray:
    """Half axes 11 to 15 and 7 to 9."""
    long, short = rng.uniform(11, 15), rng.uniform(7, 9)
    distance: FloatArray = (np.hypot(place.u / long, place.v / short) - 1) * short
    return distance


def _rod(place: Place, rng: np.random.Generator) -> FloatArray:
    """Slightly bent, half length 15 to 22, half width 4 to 5."""
    bent = place.v + rng.uniform(-0.012, 0.012) * place.u**2
    beyond = np.maximum(np.abs(place.u) - rng.uniform(11, 17), 0)
    return np.hypot(beyond, bent) - rng.uniform(4, 5)


def _shard(place: Place, rng: np.random.Generator) -> FloatArray:
    """Irregular polygon of six sides at 8 to 12 from the centre."""
    angles = (np.arange(6) + rng.uniform(-0.25, 0.25, 6)) * np.pi / 3
    sides = rng.uniform(9, 11) * rng.uniform(0.85, 1.1, 6)
    along = np.cos(angles)[:, None, None] * place.u + np.sin(angles)[:, None, None] * place.v
    return np.asarray((along - sides[:, None, None]).max(axis=0))


def _lobes(place: Place, rng: np.random.Generator) -> FloatArray:
    """Four lobes round a small core, with bays between them."""
    angles = (np.arange(4) + rng.uniform(-0.15, 0.15, 4)) * np.pi / 2
    reach, radii = rng.uniform(7.5, 9), rng.uniform(4.2, 5.2, 4)
    lobes = [
        np.hypot(place.u - reach * np.cos(angle), place.v - reach * np.sin(angle)) - radius
        for angle, radius in zip(angles, radii, strict=True)
    ]
    union: FloatArray = np.minimum.reduce([np.hypot(place.u, place.v) - 5.5, *lobes])
    return union


def _rim(place: Place, outline: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A line just inside the outline."""
    line: FloatArray = np.exp(-(((outline + 2) / 1.4) ** 2))
    return line


def _dots(place: Place, outline: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A lattice of round dots."""
    u0, v0 = rng.uniform(0, 2 * np.pi, 2)
    waves = np.cos(place.u * 1.25 + u0) * np.cos(place.v * 1.25 + v0)
    dots: FloatArray = np.clip(4 * np.abs(waves) - 1.4, 0, 1)
    return dots


def _strands(place: Place, outline: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Bands across the object."""
    bands: FloatArray = 0.5 + 0.5 * np.cos(place.u * 1.3 + rng.uniform(0, 2 * np.pi))
    return bands


def _facets(place: Place, outline: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Flat sectors of differing brightness."""
    sector = ((np.arctan2(place.v, place.u) / np.pi + 1) * 3).astype(int) % 6
    facets: FloatArray = rng.permutation(np.linspace(0, 1, 6))[sector]
    return facets


def _grains(place: Place, outline: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Coarse random grain."""
    noise = ndimage.gaussian_filter(rng.standard_normal(outline.shape), 0.8)
    grain: FloatArray = np.clip(0.5 + 1.8 * noise, 0, 1)
    return grain


TYPES = (
    ObjectType("round cell", "cell", _disc, _rim, (142, 132, 200), (250, 250, 255), 1.5, 9),
    ObjectType("spotted cell", "cell", _ellipse, _dots, (236, 150, 176), (130, 24, 84), 1.5, 8),
    ObjectType("fibre", "fibre", _rod, _strands, (214, 150, 70), (120, 66, 22), 1.2, 7),
    ObjectType("crystal", "debris", _shard, _facets, (176, 226, 232), (20, 96, 122), 0.6, 8),
    ObjectType("clump", "debris", _lobes, _grains, (150, 186, 92), (44, 84, 34), 1.2, 10),
)
"""The types of object, recognisable by colour, texture and shape alike."""


def draw_scene(size: int, rng: np.random.Generator) -> tuple[ByteArray, tuple[ObjectInfo, ...]]:
    """Draws a scene.

    Args:
        size: Height and width in pixels.
        rng: Source of chance.

    Returns:
        image: ``[size, size, 3]``.
        objects: The objects in it, which keep about `GAP` pixels from each other and `MARGIN` from
            the edge. What else the image shows (faint streaks, blurred discs, dust) is background.

    Example:
        >>> image, objects = draw_scene(96, np.random.default_rng(0))
        >>> image.shape, 3 <= len(objects) <= 6
        ((96, 96, 3), True)
    """
    canvas = _backdrop(size, rng)
    few, many = _OBJECTS
    count = max(1, round(rng.integers(few, many + 1) * (size / 96) ** 2))
    free = np.pad(np.ones((size - 2 * MARGIN,) * 2, dtype=np.bool_), MARGIN)
    drawn: list[tuple[ObjectType, BoolArray]] = []
    for kind in _mixed_types(count, rng):
        found = _find_room(kind, free, rng)
        if found is None:
            continue
        place, outline = found
        share = kind.texture(place, outline, rng)[..., None]
        colour = share * kind.accent + (1 - share) * kind.colour
        _paint(canvas[place.window], outline, colour, kind.softness, rng.uniform(0.45, 1))
        mask = np.zeros_like(free)
        mask[place.window] = outline < 0
        drawn.append((kind, mask))
        free[place.window] &= outline >= GAP
    canvas += rng.normal(0, 4, canvas.shape)
    image = canvas.clip(0, 255).round().astype(np.uint8)
    foreground = np.logical_or.reduce([mask for _, mask in drawn], initial=False)
    return image, tuple(
        ObjectInfo(mask, kind.label, kind.name, measure_contrast(image, mask, foreground))
        for kind, mask in drawn
    )


def _mixed_types(count: int, rng: np.random.Generator) -> list[ObjectType]:
    """Types in random order, none a second time before all have had their turn."""
    rounds = [rng.permutation(len(TYPES)) for _ in range(-(-count // len(TYPES)))]
    return [TYPES[index] for index in np.concatenate(rounds)[:count]]


def _find_room(
    kind: ObjectType, free: BoolArray, rng: np.random.Generator
) -> tuple[Place, FloatArray] | None:
    """A place and an outline that lie on free pixels only, None if no attempt finds any."""
    centres = np.argwhere(ndimage.distance_transform_edt(free) > kind.girth)
    for _ in range(_ATTEMPTS if len(centres) else 0):
        place = _place(centres[rng.integers(len(centres))], free.shape[0], rng)
        outline = kind.outline(place, rng)
        if free[place.window][outline < 0].all():
            return place, outline
    return None


def _place(centre: npt.NDArray[Any], size: int, rng: np.random.Generator) -> Place:
    """The surroundings of a centre (row, column), turned at random."""
    row, column = centre
    window = tuple(
        slice(max(int(at) - _REACH, 0), min(int(at) + _REACH + 1, size)) for at in centre
    )
    y, x = np.ogrid[window]
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle), np.sin(angle)
    return Place(
        window=window,
        u=along * (x - column) + across * (y - row),
        v=along * (y - row) - across * (x - column),
    )


def _backdrop(size: int, rng: np.random.Generator) -> FloatArray:
    """Uneven pale light, and what looks like objects at a glance but is background to everybody."""
    slope = np.linspace(0, rng.uniform(0, 24), size)[:, None, None]
    canvas = np.full((size, size, 3), (222.0, 216.0, 204.0)) + slope + rng.uniform(-6, 6, 3)
    canvas = np.rot90(canvas, int(rng.integers(4))).copy()
    for _ in range(rng.integers(1, 4)):  # faint streaks
        streak = _place(rng.uniform(0, size, 2), size, rng)
        beyond = np.maximum(np.abs(streak.u) - rng.uniform(10, 25), 0)
        line = np.hypot(beyond, streak.v) - 1
        _paint(canvas[streak.window], line, np.array((150, 120, 110)), 2.0, rng.uniform(0.2, 0.4))
    for _ in range(rng.integers(0, 3)):  # discs out of focus
        blur = _place(rng.uniform(0, size, 2), size, rng)
        disc = np.hypot(blur.u, blur.v) - rng.uniform(6, 12)
        _paint(canvas[blur.window], disc, np.array((150, 150, 150)), 10.0, rng.uniform(0.15, 0.35))
    for _ in range(rng.integers(3, 9)):  # dust
        dust = _place(rng.uniform(0, size, 2), size, rng)
        dot = np.hypot(dust.u, dust.v) - rng.uniform(0.5, 1.3)
        _paint(canvas[dust.window], dot, np.array((90, 80, 80)), 1.0, rng.uniform(0.4, 0.9))
    return canvas


def _paint(
    canvas: FloatArray,
    outline: FloatArray,
    colour: npt.NDArray[np.floating | np.integer],
    softness: float,
    opacity: float,
) -> None:
    """Lays a colour over the canvas inside an outline that fades over ``softness`` pixels."""
    cover = opacity * np.clip(0.5 - outline / softness, 0, 1)[..., None]
    canvas += cover * (colour - canvas)
