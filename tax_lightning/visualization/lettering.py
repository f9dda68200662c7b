"""Text in pictures: made to fit, in a font that has its letters."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from PIL import ImageDraw, ImageFont

from tax_lightning.visualization.palette import Colour

_AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shorten(name: str, limit: int = 24) -> str:
    """A long name with its middle left out, as names often differ at the end.

    Args:
        name: the name.
        limit: the most characters to return.

    Returns:
        ``name`` itself if it is short enough.

    Example:
        >>> shorten("radiologist-07-second-reading", 15)
        'radiolo…reading'
    """
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines that fit the width: broken at " · ", else at spaces, else cut short."""
    parts = text.split(" · ")
    if len(parts) > 1 and text_width(text, size) > width:
        return [line for part in parts for line in wrapped(part, size, width)]
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, size, width) for line in lines]


def text_width(text: str, size: int) -> float:
    """The width in pixels that ``write`` gives to the text."""
    font, drawable = _lettering(text, size)
    return font.getlength(drawable)


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, fill: Colour
) -> None:
    """Draw a line of text with its top left corner at ``place`` (x, y), letters ``size`` high."""
    font, drawable = _lettering(text, size)
    draw.text(place, drawable, font=font, fill=fill)


def _cut(line: str, size: int, width: int) -> str:
    """The line itself, or its middle left out so that it fits the width."""
    limit = len(line)
    while limit > 3 and text_width(shorten(line, limit), size) > width:
        limit -= 1
    return shorten(line, limit)


@functools.lru_cache(maxsize=4096)
def _lettering(text: str, size: int) -> tuple[_AnyFont, str]:
    """A font for the text, and the text with what no font at hand can draw put in ASCII."""
    fonts = _fonts(size)
    lacking = [sum(not _has_letter(font, char) for char in text) for font in fonts]
    font = fonts[int(np.argmin(lacking))]
    letters = (char if _has_letter(font, char) else _plain(char) for char in text)
    return font, "".join(letters)


@functools.lru_cache
def _fonts(size: int) -> tuple[_AnyFont, ...]:
    """The built-in font, which has little but ASCII, then those of the system for other letters."""
    found: list[_AnyFont] = [ImageFont.load_default(size=size)]
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "arial.ttf"):
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # not on this machine
            continue
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _has_letter(font: _AnyFont, char: str) -> bool:
    """Whether the font draws something else than its box for a missing letter."""
    return char == " " or bytes(font.getmask(char)) != bytes(font.getmask("\U0010ffff"))


def _plain(char: str) -> str:
    """The letter without its accents, or a question mark."""
    return unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode() or "?"
