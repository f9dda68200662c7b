"""The colours of annotators, classes and prototypes: one palette for every picture and page."""

import colorsys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]  # [H, W, 3]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 28, 28)

# The seven chromatic colours of Okabe and Ito, then five chosen for the largest CIEDE2000 distance
# to those before them under normal, protan and deutan vision. No greys: grey means "nobody". Sky
# blue comes late, as it is close to a light shade of blue.
_ANNOTATOR_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (213, 94, 0),  # vermilion
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (102, 17, 0),  # maroon
    (51, 34, 136),  # indigo
    (255, 157, 167),  # pink
    (139, 69, 19),  # brown
    (0, 59, 54),  # dark teal
)
# Hues that no annotator has among the first, so that a class is not taken for an annotator.
_CLASS_COLOURS: tuple[Colour, ...] = (
    (128, 128, 128),  # grey: the background
    (220, 20, 90),  # crimson
    (0, 200, 200),  # turquoise
    (150, 200, 30),  # lime
    (120, 60, 200),  # violet
    (250, 140, 60),  # apricot
)
# From 0 to 1, each darker than the one before, so that they differ without hues too.
_VALUE_COLOURS: tuple[Colour, ...] = (
    (247, 246, 240),
    (254, 217, 130),
    (244, 122, 60),
    (178, 30, 85),
    (70, 10, 90),
    (16, 4, 40),
)


def annotator_palette(n: int) -> tuple[Colour, ...]:
    """The colours of ``n`` annotators, by position; distinct and never grey.

    The first twelve can be told apart with normal, protan and deutan vision; those that follow
    differ in hue and lightness.

    Example:
        >>> annotator_palette(2)
        ((0, 114, 178), (230, 159, 0))
    """
    return _listed_or_spread(_ANNOTATOR_COLOURS, n)


def class_palette(n: int) -> tuple[Colour, ...]:
    """The colours of ``n`` classes, by class id; the background is grey."""
    return _listed_or_spread(_CLASS_COLOURS, n)


def kernel_shade(colour: Colour, kernel: int, kernels: int) -> Colour:
    """The shade of an annotator's colour for one of the annotator's ``kernels`` prototypes.

    Shades get darker rather than lighter, as light shades of different colours are alike.

    Example:
        >>> kernel_shade((0, 114, 178), 0, 1)
        (0, 114, 178)
    """
    position = 0.0 if kernels == 1 else 2 * kernel / (kernels - 1) - 1
    towards, most = (255, 0.25) if position > 0 else (0, 0.45)
    mixed = [round(c + (towards - c) * most * abs(position)) for c in colour]
    return mixed[0], mixed[1], mixed[2]


def value_colours(values: NDArray[np.floating]) -> Picture:
    """The colours ``[..., 3]`` of values ``[...]``: light where they are 0, ever darker up to 1.

    Example:
        >>> value_colours(np.array([[0.0, 1.0]])).tolist()
        [[[247, 246, 240], [16, 4, 40]]]
    """
    anchors = np.array(_VALUE_COLOURS)
    at = (values * 255).round().clip(0, 255) * ((len(anchors) - 1) / 255)
    tones = [np.interp(at, range(len(anchors)), channel) for channel in anchors.T]
    return np.stack(tones, axis=-1).round().astype(np.uint8)


def css(colour: Colour) -> str:
    """A colour as style sheets write it, such as ``#0072b2``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def indexed_png(array: NDArray[np.uint8], palette: Mapping[int, Colour]) -> Image.Image:
    """Numbers ``[H, W]``, shown in colours, as a picture that reads back as the same numbers.

    Example:
        >>> picture = indexed_png(np.array([[0, 254]], dtype=np.uint8), {254: (200, 200, 200)})
        >>> np.asarray(picture).tolist(), picture.convert("RGB").getpixel((1, 0))
        ([[0, 254]], (200, 200, 200))
    """
    picture = Image.fromarray(array)
    picture.putpalette([tone for i in range(256) for tone in palette.get(i, (0, 0, 0))])
    return picture


def _listed_or_spread(listed: tuple[Colour, ...], n: int) -> tuple[Colour, ...]:
    """The listed colours, then hues a golden section apart at three lightnesses."""
    colours = list(listed[:n])
    for extra in range(n - len(listed)):
        lightness = (0.42, 0.66, 0.28)[extra % 3]
        r, g, b = colorsys.hls_to_rgb(0.04 + extra * 0.618034 % 1, lightness, 0.7)
        colours.append((round(255 * r), round(255 * g), round(255 * b)))
    return tuple(colours)
