"""The sheet that a panel is laid out on: its sizes, and blocks of text and pictures in rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tax_lightning.explain.callouts import CallOut, SourcePatch, callout_caption
from tax_lightning.explain.explanation import Explanation
from tax_lightning.explain.legend import LegendEntry
from tax_lightning.explain.lettering import shorten, text_width, wrapped, write
from tax_lightning.explain.palette import INK, PAPER, Picture, annotator_palette, kernel_shade

SMALLEST_TILE = 256
"""The least side of a tile in pixels; text and lines are sized for it."""

_NO_PICTURE, _FAINT_INK = (238, 238, 238), (105, 105, 105)
_TAGLINE = "which annotator's way of labelling decides each pixel, and the training pixel behind it"


class Sheet:
    """Draws text and blocks of pictures at one scale, so that every sheet has the same look."""

    def __init__(self, scale: float) -> None:
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

    def side_by_side(self, blocks: Sequence[Image.Image]) -> Image.Image:
        """Blocks in a row, their tops aligned."""
        width = sum(block.width for block in blocks) + self.gap * (len(blocks) - 1)
        row = Image.new("RGB", (width, max(block.height for block in blocks)), PAPER)
        left = 0
        for block in blocks:
            row.paste(block, (left, 0))
            left += block.width + self.gap
        return row

    def stacked(self, blocks: Sequence[Image.Image]) -> Image.Image:
        """Blocks below each other, their left edges aligned."""
        height = sum(block.height for block in blocks) + self.nearby * (len(blocks) - 1)
        column = Image.new("RGB", (max(block.width for block in blocks), height), PAPER)
        top = 0
        for block in blocks:
            column.paste(block, (0, top))
            top += block.height + self.nearby
        return column

    def heading(self, sample_id: str, width: int) -> Image.Image:
        """The image's name, and in one sentence what the sheet shows."""
        name = shorten(sample_id, 40)
        block = self.line(name, self.head, width)
        left = round(text_width(name, self.head)) + self.gap
        place = (left, self.head - self.body + 2)
        write(ImageDraw.Draw(block), place, _TAGLINE, self.body, _FAINT_INK)
        return block

    def line(self, text: str, size: int, width: int) -> Image.Image:
        """One line of text."""
        block = Image.new("RGB", (width, round(1.4 * size)), PAPER)
        write(ImageDraw.Draw(block), (0, 2), text, size, INK)
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
            chip = chip.resize((chip.width * self.body // chip.height, self.body))
        indent = chip.width + self.nearby - self.frame if chip.width else 0
        lines = wrapped(entry.text, self.body, width - indent)
        length = max(math.ceil(text_width(line, self.body)) for line in lines)
        item = Image.new("RGB", (indent + length, len(lines) * self.step), PAPER)
        item.paste(chip, (0, 2))
        for row, line in enumerate(lines):
            place = (indent, 1 + row * self.step)
            write(ImageDraw.Draw(item), place, line, self.body, INK)
        return item

    def card(
        self, explanation: Explanation, callout: CallOut, patch: SourcePatch | None
    ) -> Image.Image:
        """A call-out's training patch, number and caption."""
        colour = annotator_palette(len(explanation.annotators))[callout.annotator]
        edge = kernel_shade(colour, callout.kernel, explanation.kernels)
        side = self.patch + 2 * self.frame
        box = Image.new("RGB", (side, side), edge)
        if patch is None:
            box.paste(_NO_PICTURE, (self.frame, self.frame, side - self.frame, side - self.frame))
        else:
            box.paste(self._marked_patch(patch), (self.frame, self.frame))
        left, indent = side + self.nearby, self.disc + self.frame
        name, *rest = callout_caption(explanation, callout, patch is not None)
        lines = wrapped(name, self.body, self.cell - left - indent)
        for text in rest:
            lines += wrapped(text, self.body, self.cell - left)
        card = Image.new("RGB", (self.cell, max(side, len(lines) * self.step)), PAPER)
        card.paste(box, (0, 0))
        disc = self.number(callout.number)
        card.paste(disc, (left, 0), disc)
        for row, line in enumerate(lines):
            place = (left + (0 if row else indent), 1 + row * self.step)
            write(ImageDraw.Draw(card), place, line, self.body, INK)
        return card

    def number(self, number: int) -> Image.Image:
        """A call-out's number on a disc, with alpha outside it."""
        return _number_disc(number, self.disc)

    def _marked_patch(self, patch: SourcePatch) -> Image.Image:
        """The patch enlarged to a fixed box, a ring and four ticks round its pixel."""
        height, width = patch.image.shape[:2]
        zoom = self.patch / max(height, width)
        shown = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        box = Image.new("RGB", (self.patch, self.patch), _NO_PICTURE)
        corner = ((self.patch - shown[0]) // 2, (self.patch - shown[1]) // 2)
        box.paste(Image.fromarray(patch.image).resize(shown, Image.Resampling.NEAREST), corner)
        x, y = corner[0] + (patch.x + 0.5) * zoom, corner[1] + (patch.y + 0.5) * zoom
        draw = ImageDraw.Draw(box)
        inner, ring, outer = (0.1 * k * self.disc for k in (2.4, 4, 6))
        for fill, thickness in ((INK, self.frame), (PAPER, self.frame // 2)):
            # light on dark shows on any image
            draw.ellipse([x - ring, y - ring, x + ring, y + ring], outline=fill, width=thickness)
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                ends = [(x + r * dx, y + r * dy) for r in (inner, outer)]
                draw.line(ends, fill=fill, width=thickness)
        return box


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
