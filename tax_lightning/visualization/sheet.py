"""The sheet that pictures are laid out on: its sizes, and blocks of text and pictures in rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tax_lightning.visualization.callouts import SourcePatch
from tax_lightning.visualization.legend import LegendEntry
from tax_lightning.visualization.lettering import shorten, text_width, wrapped, write
from tax_lightning.visualization.painting import blend, outlines_of
from tax_lightning.visualization.palette import INK, PAPER, Colour, Picture
from tax_lightning.visualization.tiles import SMALLEST_TILE

FAINT_INK: Colour = (105, 105, 105)
NO_PICTURE: Colour = (238, 238, 238)
"""The ground of a frame whose picture is not at hand."""


class Sheet:
    """Draws text and blocks of pictures at one scale, so that every sheet has the same look."""

    def __init__(self, scale: float = 1.0) -> None:
        def scaled(pixels: int) -> int:
            return round(scale * pixels)

        self.head, self.title, self.body = scaled(21), scaled(18), scaled(14)
        self.step = scaled(20)  # from one line of text to the next
        self.margin, self.gap, self.nearby = scaled(18), scaled(16), scaled(8)
        self.cell, self.patch, self.frame = scaled(SMALLEST_TILE), scaled(96), scaled(4)
        self.disc = scaled(22)

    def framed(self, blocks: Sequence[Image.Image]) -> Picture:
        """The finished sheet: the blocks below each other, with a margin all round."""
        inside = self.stacked(blocks)
        size = (inside.width + 2 * self.margin, inside.height + 2 * self.margin)
        paper = Image.new("RGB", size, PAPER)
        paper.paste(inside, (self.margin, self.margin))
        return np.asarray(paper)

    def side_by_side(self, blocks: Sequence[Image.Image], gap: int | None = None) -> Image.Image:
        """Blocks in a row, their tops aligned."""
        gap = self.gap if gap is None else gap
        width = sum(block.width for block in blocks) + gap * (len(blocks) - 1)
        row = Image.new("RGB", (width, max(block.height for block in blocks)), PAPER)
        left = 0
        for block in blocks:
            row.paste(block, (left, 0))
            left += block.width + gap
        return row

    def stacked(self, blocks: Sequence[Image.Image], gap: int | None = None) -> Image.Image:
        """Blocks below each other, their left edges aligned."""
        gap = self.nearby if gap is None else gap
        height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
        column = Image.new("RGB", (max(block.width for block in blocks), height), PAPER)
        top = 0
        for block in blocks:
            column.paste(block, (0, top))
            top += block.height + gap
        return column

    def grid(self, blocks: Sequence[Image.Image], columns: int) -> Image.Image:
        """Blocks in rows of so many."""
        starts = range(0, len(blocks), columns)
        rows = [self.side_by_side(blocks[start : start + columns]) for start in starts]
        return self.stacked(rows, self.gap)

    def heading(self, title: str, tagline: str, width: int) -> Image.Image:
        """What the sheet is of, and in one sentence what it shows."""
        name = self.line(shorten(title, 40), self.head, width)
        return self.stacked([name, self.text([tagline], width, fill=FAINT_INK)], gap=0)

    def line(self, text: str, size: int, width: int) -> Image.Image:
        """One line of text."""
        block = Image.new("RGB", (width, round(1.4 * size)), PAPER)
        write(ImageDraw.Draw(block), (0, 2), text, size, INK)
        return block

    def text(
        self, texts: Iterable[str], width: int, indent: int = 0, fill: Colour = INK
    ) -> Image.Image:
        """Texts below each other, each in as many lines as the width needs, the first indented."""
        lines: list[str] = []
        for text in texts:
            lines += wrapped(text, self.body, width - (0 if lines else indent))
        block = Image.new("RGB", (width, max(1, len(lines)) * self.step), PAPER)
        for row, line in enumerate(lines):
            place = (0 if row else indent, 1 + row * self.step)
            write(ImageDraw.Draw(block), place, line, self.body, fill)
        return block

    def tile(self, title: str, picture: Picture, notes: Sequence[LegendEntry]) -> Image.Image:
        """A titled picture with its notes below, centred in a cell that can hold the text."""
        height, width = picture.shape[:2]
        cell = Image.new("RGB", (self.cell, max(height, 2 * self.disc)), PAPER)
        place = ((cell.width - width) // 2, (cell.height - height) // 2)
        cell.paste(Image.fromarray(picture), place)
        return self.stacked(
            [self.line(title, self.title, cell.width), cell, self.flow(notes, cell.width)]
        )

    def flow(self, entries: Iterable[LegendEntry], width: int) -> Image.Image:
        """Legend entries one after the other, in as many lines as the width needs."""
        items = [self._legend_item(entry, width) for entry in entries]
        places, x, y, bottom = [], 0, 0, 0
        for item in items:
            if x and x + item.width > width:
                x, y = 0, bottom
            places.append((x, y))
            x += item.width + self.nearby + self.frame
            bottom = max(bottom, y + item.height)
        block = Image.new("RGB", (width, bottom), PAPER)
        for item, place in zip(items, places, strict=True):
            block.paste(item, place)
        return block

    def _legend_item(self, entry: LegendEntry, width: int) -> Image.Image:
        """A chip and its text."""
        chip = Image.new("RGB", (0, 0))
        if entry.chip is not None:
            chip = Image.fromarray(entry.chip)
            size = (chip.width * self.body // chip.height, self.body)
            chip = chip.resize(size, Image.Resampling.NEAREST)  # its colours stay what they are
        indent = chip.width + self.nearby - self.frame if chip.width else 0
        lines = wrapped(entry.text, self.body, width - indent)
        length = 1 + max(math.ceil(text_width(line, self.body)) for line in lines)
        item = Image.new("RGB", (indent + length, len(lines) * self.step), PAPER)
        item.paste(chip, (0, 2))
        for row, line in enumerate(lines):
            place = (indent, 1 + row * self.step)
            write(ImageDraw.Draw(item), place, line, self.body, INK)
        return item

    def number(self, number: int) -> Image.Image:
        """A call-out's number on a disc, with alpha outside it."""
        return _number_disc(number, self.disc)

    def source(
        self,
        patch: SourcePatch | None,
        edge: Colour,
        side: int,
        region: NDArray[np.bool_] | None = None,
    ) -> Image.Image:
        """A training patch enlarged to a framed box: its pixel marked, a region of it outlined.

        Args:
            patch: the patch; without one the box stays empty.
            edge: colour of the frame.
            side: of the box in pixels, without the frame.
            region: ``[h, w]``, pixels of the patch to outline.
        """
        box = Image.new("RGB", (side + 2 * self.frame, side + 2 * self.frame), edge)
        inside = Image.new("RGB", (side, side), NO_PICTURE)
        if patch is not None:
            height, width = patch.image.shape[:2]
            zoom = side / max(height, width)
            shown = Image.fromarray(patch.image).resize(
                (max(1, round(width * zoom)), max(1, round(height * zoom))),
                Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX,
            )
            if region is not None and region.any():
                shown = self._outlined(shown, region)
            left, top = (side - shown.width) // 2, (side - shown.height) // 2
            inside.paste(shown, (left, top))
            self._mark(inside, left + (patch.x + 0.5) * zoom, top + (patch.y + 0.5) * zoom)
        box.paste(inside, (self.frame, self.frame))
        return box

    def _outlined(self, picture: Image.Image, region: NDArray[np.bool_]) -> Image.Image:
        """The picture paler outside a region, whose edge is a light line beside a dark one."""
        inside = np.asarray(Image.fromarray(region).resize(picture.size, Image.Resampling.NEAREST))
        pixels = blend(np.asarray(picture), PAPER, 0.4 * ~inside[..., None])
        for fill, thickness in ((INK, self.frame), (PAPER, self.frame // 2)):
            pixels[outlines_of(inside.astype(np.uint8), thickness)] = fill
        return Image.fromarray(pixels)

    def _mark(self, picture: Image.Image, x: float, y: float) -> None:
        """A ring and four ticks round a pixel."""
        draw = ImageDraw.Draw(picture)
        inner, ring, outer = (0.1 * k * self.disc for k in (2.4, 4, 6))
        for fill, thickness in ((INK, self.frame), (PAPER, self.frame // 2)):
            # light on dark shows on any image
            draw.ellipse([x - ring, y - ring, x + ring, y + ring], outline=fill, width=thickness)
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                ends = [(x + r * dx, y + r * dy) for r in (inner, outer)]
                draw.line(ends, fill=fill, width=thickness)


@functools.lru_cache
def _number_disc(number: int, side: int) -> Image.Image:
    """A white number on a dark disc, drawn large and shrunk for smooth edges."""
    fine = 4 * side
    disc = Image.new("RGBA", (fine, fine))
    draw = ImageDraw.Draw(disc)
    draw.ellipse([0, 0, fine - 1, fine - 1], fill=PAPER)
    draw.ellipse([6, 6, fine - 7, fine - 7], fill=INK)
    font = ImageFont.load_default(size=0.68 * fine)
    draw.text((fine / 2, fine / 2), str(number), font=font, fill=PAPER, anchor="mm")
    return disc.resize((side, side), Image.Resampling.LANCZOS)
