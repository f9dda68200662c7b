"""The sheet that panels and galleries are laid out on: text, and blocks of pictures in rows."""

import contextlib
import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tax_lightning.palette import INK, PAPER, Colour, Picture
from tax_lightning.visualization.annotations import SourcePatch

FAINT_INK: Colour = (105, 105, 105)
NO_PICTURE: Colour = (238, 238, 238)
"""The ground of a frame whose picture is not at hand."""

SMALLEST_TILE = 256
"""The least side of a tile in pixels; text and lines are sized for it."""

_AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Entry(NamedTuple):
    """A line of a legend: a text and, before it, a small picture of what it stands for."""

    text: str
    chip: Picture | None = None


class Sheet:
    """Draws text and blocks of pictures at one scale, so that every sheet has the same look."""

    def __init__(self, scale: float = 1.0) -> None:
        def scaled(pixels: int) -> int:
            return round(scale * pixels)

        self.head, self.title, self.body = scaled(21), scaled(18), scaled(14)  # heights of letters
        self.step = scaled(20)  # from one line of text to the next
        self.margin, self.gap, self.nearby = scaled(18), scaled(16), scaled(8)
        self.cell, self.patch, self.frame = scaled(SMALLEST_TILE), scaled(96), scaled(4)
        self.disc = scaled(22)

    def framed(self, blocks: Sequence[Image.Image]) -> Picture:
        """The finished sheet: the blocks below each other, with a margin all round."""
        return np.asarray(ImageOps.expand(self.stacked(blocks), self.margin, PAPER))

    def stacked(self, blocks: Sequence[Image.Image], gap: int | None = None) -> Image.Image:
        """Blocks below each other, their left edges aligned."""
        return self.grid(blocks, 1, self.nearby if gap is None else gap)

    def grid(
        self, blocks: Sequence[Image.Image], columns: int, gap: int | None = None
    ) -> Image.Image:
        """Blocks in rows of so many, their tops aligned."""
        gap = self.gap if gap is None else gap
        places, right, bottom = [], 0, -gap
        for start in range(0, len(blocks), columns):
            x, y = 0, bottom + gap
            for block in blocks[start : start + columns]:
                places.append((block, (x, y)))
                right, bottom = max(right, x + block.width), max(bottom, y + block.height)
                x += block.width + gap
        return _pasted(places, right, bottom)

    def heading(self, title: str, tagline: str, width: int) -> Image.Image:
        """What the sheet is of, and in one sentence what it shows."""
        name = self.line(shorten(title, 40), self.head, width)
        return self.stacked([name, self.text([tagline], width, fill=FAINT_INK)], gap=0)

    def line(self, text: str, size: int, width: int) -> Image.Image:
        """One line of text, in letters of this size."""
        text = " ".join(text.split())
        block = Image.new("RGB", (width, round(1.4 * size)), PAPER)
        ImageDraw.Draw(block).text((0, 2), text, INK, font_for(text, size))
        return block

    def text(
        self, texts: Iterable[str], width: int, indent: int = 0, fill: Colour = INK
    ) -> Image.Image:
        """Texts below each other, each in as many lines as the width needs, the first indented."""
        lines: list[str] = []
        for text in texts:
            lines += self._wrapped(text, width - (0 if lines else indent))
        block = Image.new("RGB", (width, max(1, len(lines)) * self.step), PAPER)
        for row, line in enumerate(lines):
            place = (0 if row else indent, 1 + row * self.step)
            ImageDraw.Draw(block).text(place, line, fill, font_for(line, self.body))
        return block

    def _wrapped(self, text: str, width: int) -> list[str]:
        """The text in lines that fit: broken at spaces, else cut short."""
        lines = [""]
        for word in text.split():  # a name may hold line breaks
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self._width(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return [self._cut(line, width) for line in lines]

    def _cut(self, line: str, width: int) -> str:
        """The line itself, or its middle left out so that it fits the width."""
        limit = len(line)
        while limit > 3 and self._width(shorten(line, limit)) > width:
            limit -= 1
        return shorten(line, limit)

    def _width(self, line: str) -> float:
        return font_for(line, self.body).getlength(line)

    def tile(self, title: str, picture: Picture, notes: Sequence[Entry]) -> Image.Image:
        """A titled picture with its notes below, centred in a cell that can hold the text."""
        height, width = picture.shape[:2]
        cell = Image.new("RGB", (self.cell, max(height, 2 * self.disc)), PAPER)
        place = ((cell.width - width) // 2, (cell.height - height) // 2)
        cell.paste(Image.fromarray(picture), place)
        return self.stacked(
            [self.line(title, self.title, cell.width), cell, self.flow(notes, cell.width)]
        )

    def flow(self, entries: Iterable[Entry], width: int) -> Image.Image:
        """Legend entries one after the other, in as many lines as the width needs."""
        places, x, y, bottom = [], 0, 0, 0
        for item in (self._legend_item(entry, width) for entry in entries):
            if x and x + item.width > width:
                x, y = 0, bottom
            places.append((item, (x, y)))
            x += item.width + self.nearby + self.frame
            bottom = max(bottom, y + item.height)
        return _pasted(places, width, bottom)

    def _legend_item(self, entry: Entry, width: int) -> Image.Image:
        """A chip and its text."""
        chip = Image.new("RGB", (0, 0))
        if entry.chip is not None:
            chip = Image.fromarray(entry.chip)
            size = (chip.width * self.body // chip.height, self.body)
            chip = chip.resize(size, Image.Resampling.NEAREST)  # its colours stay what they are
        indent = chip.width + self.nearby - self.frame if chip.width else 0
        lines = self._wrapped(entry.text, width - indent)
        length = 1 + max(math.ceil(self._width(line)) for line in lines)
        item = Image.new("RGB", (indent + length, len(lines) * self.step), PAPER)
        item.paste(self.text(lines, length), (indent, 0))
        item.paste(chip, (0, 2))
        return item

    def number(self, picture: Image.Image, number: int, x: float, y: float) -> None:
        """Draw a white number on a dark disc."""
        draw, radius = ImageDraw.Draw(picture), self.disc / 2
        font = ImageFont.load_default(size=0.68 * self.disc)
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=INK, outline=PAPER, width=self.frame // 2)
        draw.text((x, y), str(number), font=font, fill=PAPER, anchor="mm")

    def source(self, patch: SourcePatch | None, edge: Colour, side: int) -> Image.Image:
        """A training patch in a square, the pixel that counts ringed, in a frame of this colour."""
        inside = Image.new("RGB", (side, side), NO_PICTURE)
        if patch is not None:
            height, width = patch.image.shape[:2]
            zoom = side / max(height, width)
            method = Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX
            inside = ImageOps.pad(Image.fromarray(patch.image), inside.size, method, NO_PICTURE)
            x = side / 2 + (patch.x + 0.5 - width / 2) * zoom
            y = side / 2 + (patch.y + 0.5 - height / 2) * zoom
            ring, draw = 0.4 * self.disc, ImageDraw.Draw(inside)
            # Light on dark, so that it shows on any image.
            for ink, thickness in ((INK, self.frame), (PAPER, self.frame // 2)):
                box = (x - ring, y - ring, x + ring, y + ring)
                draw.ellipse(box, outline=ink, width=thickness)
        return ImageOps.expand(inside, self.frame, edge)


def _pasted(
    blocks: Iterable[tuple[Image.Image, tuple[int, int]]], width: int, height: int
) -> Image.Image:
    """Blocks on paper of this size, each with its left and top edge."""
    paper = Image.new("RGB", (width, height), PAPER)
    for block, place in blocks:
        paper.paste(block, place)
    return paper


# ---------------------------------------------------------------------------------------- letters


def shorten(name: str, limit: int = 24) -> str:
    """A name of at most so many characters: its middle left out, as names differ at the end."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def font_for(text: str, size: int) -> _AnyFont:
    """The built-in font, which has little but ASCII, or one of the system's."""
    return _font(text.translate({ord(sign): None for sign in "…·"}).isascii(), size)


@functools.lru_cache(maxsize=64)
def _font(plain: bool, size: int) -> _AnyFont:
    """The built-in font for ASCII, else one of the system's that has other letters."""
    for name in () if plain else ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "arial.ttf"):
        with contextlib.suppress(OSError):  # not on this machine
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)
