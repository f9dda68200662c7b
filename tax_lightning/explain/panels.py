"""From an explanation to a picture that a person can read: who decides where, and why.

Everything here is a pure function from arrays to pixels, drawn with Pillow and NumPy. Colours are
fixed by position: an annotator has the same colour in every tile, legend and file.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.segmentation import find_boundaries
from torch import Tensor

from tax_lightning.data.samples import IGNORE_INDEX
from tax_lightning.explain.explanation import Explanation

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]  # [H, W, 3]

UNDECIDED_INDEX = 254
"""Value in an index map of "who" where all annotators would say the same."""

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

_PAPER, _NO_PICTURE = (255, 255, 255), (238, 238, 238)
_INK, _FAINT_INK = (28, 28, 28), (105, 105, 105)
_SMALLEST_TILE, _LARGEST_TILE = 256, 512
_CHIP = 14
_TAGLINE = "which annotator's way of labelling decides each pixel, and the training pixel behind it"
_CARDS_TITLE = "WHY, continued: the training pixel that each numbered prototype was taken from"
_NOBODY = "All annotators would say the same everywhere: nobody in particular decides."


@dataclass(frozen=True)
class SourcePatch:
    """A piece of a training image round the pixel that a prototype was taken from.

    Args:
        image: ``[h, w, 3]`` uint8, cut from the image.
        y: row of the pixel within the piece.
        x: column of the pixel within the piece.
    """

    image: Picture
    y: int
    x: int


@dataclass(frozen=True)
class CallOut:
    """A numbered spot of the picture: the largest region that one prototype decides.

    Args:
        number: 1 for the prototype that decides most pixels, then 2, and so on.
        annotator: index of the deciding annotator.
        kernel: index of the deciding kernel within the annotator.
        y: row of the spot, well inside the region.
        x: column of the spot.
        share: mean share of the kernel in the decisions of the region, in ``[0, 1]``.
    """

    number: int
    annotator: int
    kernel: int
    y: int
    x: int
    share: float


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: a small picture and what it stands for."""

    text: str
    chip: Picture | None = None


def annotator_palette(n: int) -> tuple[Colour, ...]:
    """The colours of ``n`` annotators, by position; distinct and never grey.

    The first twelve can be told apart with normal, protan and deutan vision; those that follow
    differ in hue and lightness.

    Args:
        n: number of annotators.

    Returns:
        ``n`` RGB triples in ``0..255``.

    Example:
        >>> annotator_palette(2)
        ((0, 114, 178), (230, 159, 0))
    """
    return _listed_or_spread(_ANNOTATOR_COLOURS, n)


def class_palette(n: int) -> tuple[Colour, ...]:
    """The colours of ``n`` classes, by class id; the background is grey.

    Args:
        n: number of classes.

    Returns:
        ``n`` RGB triples in ``0..255``.

    Example:
        >>> class_palette(2)
        ((128, 128, 128), (220, 20, 90))
    """
    return _listed_or_spread(_CLASS_COLOURS, n)


def kernel_shade(colour: Colour, kernel: int, kernels: int) -> Colour:
    """The shade of an annotator's colour that stands for one of the annotator's kernels.

    Shades get darker rather than lighter, as light shades of different colours are alike.

    Args:
        colour: the annotator's colour.
        kernel: index of the kernel, ``0 .. kernels - 1``.
        kernels: how many kernels the annotator has.

    Returns:
        An RGB triple between a dark and a light version of ``colour``.

    Example:
        >>> kernel_shade((0, 114, 178), 0, 1)
        (0, 114, 178)
    """
    position = 0.0 if kernels == 1 else 2 * kernel / (kernels - 1) - 1
    towards, most = (255, 0.25) if position > 0 else (0, 0.45)
    mixed = [round(c + (towards - c) * most * abs(position)) for c in colour]
    return mixed[0], mixed[1], mixed[2]


def who_index_map(explanation: Explanation) -> NDArray[np.uint8]:
    """Who decides each pixel, as one index a pixel.

    Args:
        explanation: the explanation of one image.

    Returns:
        ``[H, W]``: position of the annotator with the largest weight, ``254`` where all would say
        the same.

    Raises:
        ValueError: if there are several images, or more annotators than an index map can name.
    """
    _check_single(explanation)
    if len(explanation.annotators) > UNDECIDED_INDEX:
        raise ValueError(
            f"{len(explanation.annotators)} annotators, but a picture of indices names at most "
            f"{UNDECIDED_INDEX}; read the array 'who' instead."
        )
    leader = _numpy(explanation.leader[0]).astype(np.uint8)
    leader[_numpy(explanation.undecided[0])] = UNDECIDED_INDEX
    return leader


def indexed_png(array: NDArray[np.uint8], palette: Mapping[int, Colour]) -> Image.Image:
    """A picture whose pixel values are the numbers of ``array``, shown in colours.

    Args:
        array: ``[H, W]``, the numbers.
        palette: the colour of each number; black for those that it leaves out.

    Returns:
        A picture of Pillow's mode ``"P"``: saved as PNG it reads back as ``array``.

    Example:
        >>> picture = indexed_png(np.array([[0, 254]], dtype=np.uint8), {254: (200, 200, 200)})
        >>> np.asarray(picture).tolist(), picture.convert("RGB").getpixel((1, 0))
        ([[0, 254]], (200, 200, 200))
    """
    picture = Image.fromarray(array)
    colours = [palette.get(index, (0, 0, 0)) for index in range(256)]
    picture.putpalette(list(itertools.chain.from_iterable(colours)))
    return picture


def find_callouts(explanation: Explanation, limit: int = 5) -> tuple[CallOut, ...]:
    """The prototypes that decide most pixels of an image, each with the spot to point at.

    Args:
        explanation: the explanation of one image.
        limit: the most call-outs to return.

    Returns:
        At most ``limit`` call-outs, each of another prototype, the one that decides most pixels
        first; none if all annotators would say the same everywhere.

    Raises:
        ValueError: if the explanation is of several images.
    """
    _check_single(explanation)
    leader, kernel = _numpy(explanation.leader[0]), _numpy(explanation.leader_kernel[0])
    share, decided = _numpy(explanation.leader_share[0]), ~_numpy(explanation.undecided[0])
    kernels = int(kernel.max()) + 1
    prototype = leader * kernels + kernel
    found, pixels = np.unique(prototype[decided], return_counts=True)
    largest = found[np.argsort(-pixels, kind="stable")][:limit]
    callouts = []
    for number, index in enumerate(largest, start=1):
        region = _largest_component(decided & (prototype == index))
        y, x = _innermost(region)
        n, k = divmod(int(index), kernels)
        callouts.append(CallOut(number, n, k, y, x, float(share[region].mean())))
    return tuple(callouts)


def callout_caption(
    explanation: Explanation, callout: CallOut, has_patch: bool = True
) -> tuple[str, ...]:
    """The lines that stand beside a call-out's training patch.

    Args:
        explanation: the explanation that the call-out is of.
        callout: the call-out.
        has_patch: whether the training patch is at hand.

    Returns:
        The annotator and prototype, where it was taken from, and its share in the decision.
    """
    source = explanation.sources[callout.annotator][callout.kernel]
    origin: tuple[str, ...] = ("not yet projected",)
    if source.projected:
        origin = (
            f"from {shorten(source.sample_id)}",
            f"at y {source.y}, x {source.x}",
            f"labelled: {source.label}",
        )
        origin += () if has_patch else ("(image not found)",)
    name = shorten(explanation.annotators[callout.annotator])
    return (
        f"{name} · prototype {callout.kernel}",
        *origin,
        f"share {callout.share:.0%}",
    )


def legend_entries(explanation: Explanation) -> tuple[LegendEntry, ...]:
    """The legend at the foot of a panel: every annotator with colour and part.

    Args:
        explanation: the explanation of one image.

    Returns:
        A title, then one entry an annotator with the share of the decided pixels of which the
        annotator has the largest weight.
    """
    colours = annotator_palette(len(explanation.annotators))
    decided = ~_numpy(explanation.undecided[0])
    leads = _numpy(explanation.leader[0])[decided]
    entries = []
    for n, (name, colour) in enumerate(zip(explanation.annotators, colours, strict=True)):
        part = f" {(leads == n).mean():.0%}" if decided.any() else ""
        entries.append(LegendEntry(shorten(name) + part, _solid_chip(colour)))
    title = "Annotators, with the share of the decided pixels that each decides:"
    return LegendEntry(title if decided.any() else "Annotators:"), *entries


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


def render_panel(
    explanation: Explanation,
    image: Picture,
    masks: NDArray[np.integer] | None = None,
    reference: NDArray[np.integer] | None = None,
    patches: Mapping[tuple[int, int], SourcePatch] | None = None,
) -> Picture:
    """Draw the explanation of one image.

    Five tiles in a row: the image, the annotators' contours, the resulting segmentation, who
    decides, and why. Numbers in the last tile lead to the row below: the training patch that the
    deciding prototype was taken from, its pixel marked. At the foot, the annotators' colours.

    Args:
        explanation: the explanation of one image.
        image: ``[H, W, 3]`` uint8, the image as a person would see it.
        masks: ``[N, H, W]`` class ids as the annotators drew them, 255 where not labelled; without
            them the contours are those that the model expects of each annotator.
        reference: ``[H, W]`` class ids of the reference, 255 where unknown.
        patches: the training patches by annotator index and kernel; a prototype that is not among
            them is named without a picture.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: if there are several images, or the size of an array is not the explanation's.
    """
    _check_single(explanation)
    _check_sizes(explanation, image, masks, reference)
    view = _View(explanation, image, masks, reference)
    callouts = find_callouts(explanation)
    sheet = _Sheet(view.scale)
    drawn = "Annotators" if masks is not None else "Annotators, as predicted"
    pixels = f"{image.shape[1]} x {image.shape[0]} pixels"
    decides = "colour: the annotator who decides"
    why = _with_numbers(_why_picture(view), view, callouts, sheet)
    tiles = sheet.side_by_side(
        [
            sheet.tile("Image", view.image, [LegendEntry(pixels)]),
            sheet.tile(drawn, _contour_picture(view), _mask_notes(explanation, masks)),
            sheet.tile("Result", _result_picture(view), _class_entries(view)),
            sheet.tile("WHO decides", _who_picture(view), [LegendEntry(decides)]),
            sheet.tile("WHY", why, [LegendEntry("shade: the prototype that decides")]),
        ]
    )
    cards = [
        sheet.card(explanation, callout, (patches or {}).get((callout.annotator, callout.kernel)))
        for callout in callouts
    ]
    return sheet.framed(
        [
            sheet.heading(explanation.ids[0], tiles.width),
            tiles,
            sheet.line(_CARDS_TITLE if cards else _NOBODY, sheet.title, tiles.width),
            *([sheet.side_by_side(cards)] if cards else []),
            sheet.flow(legend_entries(explanation), tiles.width),
            sheet.flow(_signs(), tiles.width),
        ]
    )


# ---------------------------------------------------------------------------- what the tiles show


class _View:
    """The maps of one image at the size at which they are shown."""

    def __init__(
        self,
        explanation: Explanation,
        image: Picture,
        masks: NDArray[np.integer] | None,
        reference: NDArray[np.integer] | None,
    ) -> None:
        self.explanation = explanation
        self.source_size = (image.shape[0], image.shape[1])
        self.size = height, width = _display_size(*self.source_size)
        self.scale = max(1.0, width / _SMALLEST_TILE)  # of text and lines
        self.line = round(2 * self.scale)
        self.image = np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        )
        self.grey = np.asarray(Image.fromarray(self.image).convert("L"), dtype=np.float32)
        self.decision = self._shown(explanation.decision[0])
        self.leader = self._shown(explanation.leader[0])
        self.kernel = self._shown(explanation.leader_kernel[0])
        self.certainty = self._shown(explanation.certainty[0].float())
        self.undecided = self._shown(explanation.undecided[0])
        drawn = explanation.annotator_decisions[0] if masks is None else masks
        self.masks = self._shown(drawn)
        self.reference = None if reference is None else self._shown(reference)

    def _shown(self, array: Tensor | NDArray[Any]) -> NDArray[Any]:
        """Nearest-neighbour resampling of the last two axes to the display size."""
        values = _numpy(array) if isinstance(array, Tensor) else array
        rows, cols = (
            (np.arange(shown) + 0.5) * size // shown
            for shown, size in zip(self.size, self.source_size, strict=True)
        )
        return values[..., rows.astype(int)[:, None], cols.astype(int)]


def _contour_picture(view: _View) -> Picture:
    """Every annotator's contour; where several coincide their colours take turns along the line."""
    outlines = np.stack([_outline(mask, view.line) for mask in view.masks])
    rank = outlines.cumsum(axis=0)
    together = rank[-1]
    rows, cols = np.indices(view.size)
    turn = (rows + cols) // 6 % np.maximum(together, 1) + 1
    picture = _rgb(0.5 * view.grey + 70)
    colours = annotator_palette(len(view.masks))
    for outline, position, colour in zip(outlines, rank, colours, strict=True):
        picture[outline & (position == turn)] = colour
    return picture


def _result_picture(view: _View) -> Picture:
    """The resulting classes over the grey image, the reference as a dashed line."""
    picture = _rgb(view.grey)
    colours = class_palette(len(view.explanation.classes))
    for index, colour in enumerate(colours[1:], start=1):
        inside = view.decision == index
        picture[inside] = _blend(picture[inside], colour, 0.55)
    outline = _outline(view.decision, view.line)
    picture[outline] = np.asarray(colours, dtype=np.uint8)[view.decision[outline].astype(int)]
    if view.reference is not None:
        picture = _dashed(picture, _outline(view.reference, view.line))
    return picture


def _who_picture(view: _View) -> Picture:
    """The leader's colour, fading to the grey image as the others weigh more."""
    colours = np.asarray(annotator_palette(len(view.explanation.annotators)))
    picture = _blend(_rgb(view.grey), colours[view.leader], view.certainty[..., None])
    return _with_undecided(picture, view)


def _why_picture(view: _View) -> Picture:
    """Shades of the leader's colour for the deciding kernels, with seams between them."""
    annotators = annotator_palette(len(view.explanation.annotators))
    kernels = max(_kernels(view.explanation), int(view.kernel.max()) + 1)
    shades = np.asarray(
        [[kernel_shade(colour, k, kernels) for k in range(kernels)] for colour in annotators],
        dtype=np.uint8,
    )
    picture = shades[view.leader, view.kernel]
    prototype = np.where(view.undecided, -1, view.leader * kernels + view.kernel)
    picture[_seams(prototype)] = (0, 0, 0)
    return _with_undecided(picture, view)


def _with_undecided(picture: Picture, view: _View) -> Picture:
    """Wash out and hatch the pixels where nobody in particular decides."""
    washed = _rgb(
        np.where(_hatching(*view.size, round(7 * view.scale)), 178, 0.25 * view.grey + 176)
    )
    picture[view.undecided] = washed[view.undecided]
    return picture


def _with_numbers(
    picture: Picture, view: _View, callouts: Sequence[CallOut], sheet: _Sheet
) -> Picture:
    """Put the call-outs' numbers on the picture, beside regions too thin to hold them."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    zoom = np.divide(view.size, view.source_size)
    taken: list[tuple[float, float]] = []
    for callout in callouts:
        y, x = (np.array([callout.y, callout.x]) + 0.5) * zoom
        region = (view.leader == callout.annotator) & (view.kernel == callout.kernel)
        cy, cx = _free_place(y, x, region & ~view.undecided, ~view.undecided, taken, sheet.disc / 2)
        taken.append((cy, cx))
        if (cy, cx) != (y, x):
            draw.line([(cx, cy), (x, y)], fill=_PAPER, width=sheet.frame)
            draw.line([(cx, cy), (x, y)], fill=_INK, width=sheet.frame // 2)
            dot = 0.75 * sheet.frame
            draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=_INK, outline=_PAPER)
        disc = _number_disc(callout.number, sheet.disc)
        canvas.paste(disc, (round(cx - disc.width / 2), round(cy - disc.height / 2)), disc)
    return np.asarray(canvas)


def _free_place(
    y: float,
    x: float,
    own: NDArray[np.bool_],
    decided: NDArray[np.bool_],
    taken: Sequence[tuple[float, float]],
    radius: float,
) -> tuple[float, float]:
    """Where to put a number for the spot (y, x): on it if the region is wide, else near it."""
    height, width = own.shape
    rows, cols = np.ogrid[:height, :width]

    def cost(place: tuple[float, float]) -> float:
        cy, cx = place
        disc = (rows - cy) ** 2 + (cols - cx) ** 2 <= radius**2
        away = place != (y, x)
        hidden = decided if away else decided & ~own
        covered = hidden[disc].mean() if disc.any() else 0.0
        clash = sum(math.hypot(cy - ty, cx - tx) < 2 * radius for ty, tx in taken)
        outside = not (radius <= cy <= height - radius and radius <= cx <= width - radius)
        return float(covered + 0.2 * away + 4 * clash + 2 * outside)

    places = [(y, x)]
    for distance in (2.2 * radius, 3.4 * radius):
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        places += [(y + distance * np.sin(a), x + distance * np.cos(a)) for a in angles]
    return min(places, key=cost)


# ------------------------------------------------------------------------------- text and layout


def _mask_notes(explanation: Explanation, masks: NDArray[np.integer] | None) -> list[LegendEntry]:
    """Which annotators have no contour, and why; a predicted contour needs no such note."""
    if masks is None:
        return [LegendEntry("as the model expects each to draw")]
    absent = [bool((mask == IGNORE_INDEX).all()) for mask in masks]
    empty = [
        not gone and not ((mask > 0) & (mask != IGNORE_INDEX)).any()
        for mask, gone in zip(masks, absent, strict=True)
    ]
    notes = []
    for title, chosen in (("did not label: ", absent), ("drew nothing: ", empty)):
        names = list(itertools.compress(explanation.annotators, chosen))
        if names:
            notes.append(LegendEntry(title + _some(names)))
    return notes or [LegendEntry("as each of them drew")]


def _some(names: Sequence[str], limit: int = 3) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shorten(name) for name in names[:limit]) + more


def _class_entries(view: _View) -> list[LegendEntry]:
    """The classes that occur in the result or the reference, and the reference's line."""
    maps = [view.decision] if view.reference is None else [view.decision, view.reference]
    present = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    classes = view.explanation.classes
    colours = class_palette(len(classes))
    entries = [
        LegendEntry(shorten(classes[index]), _solid_chip(colours[index]))
        for index in present.astype(int)
        if index != IGNORE_INDEX
    ]
    if view.reference is not None:
        entries.append(LegendEntry("reference", _dash_chip()))
    return entries


class _Sheet:
    """Draws text and blocks of pictures at one scale, so that every sheet has the same look."""

    def __init__(self, scale: float) -> None:
        def scaled(pixels: int) -> int:
            return round(scale * pixels)

        self.head, self.title, self.body = scaled(21), scaled(18), scaled(14)
        self.step = scaled(20)  # from one line of text to the next
        self.margin, self.gap, self.nearby = scaled(18), scaled(16), scaled(8)
        self.cell, self.patch, self.frame = scaled(_SMALLEST_TILE), scaled(96), scaled(4)
        self.disc = scaled(22)

    def framed(self, blocks: Sequence[Image.Image]) -> Picture:
        """The finished sheet: the blocks below each other, with a margin all round."""
        inside = self.stacked(blocks)
        size = (inside.width + 2 * self.margin, inside.height + 2 * self.margin)
        paper = Image.new("RGB", size, _PAPER)
        paper.paste(inside, (self.margin, self.margin))
        return np.asarray(paper)

    def side_by_side(self, blocks: Sequence[Image.Image]) -> Image.Image:
        """Blocks in a row, their tops aligned."""
        width = sum(block.width for block in blocks) + self.gap * (len(blocks) - 1)
        row = Image.new("RGB", (width, max(block.height for block in blocks)), _PAPER)
        left = 0
        for block in blocks:
            row.paste(block, (left, 0))
            left += block.width + self.gap
        return row

    def stacked(self, blocks: Sequence[Image.Image]) -> Image.Image:
        """Blocks below each other, their left edges aligned."""
        height = sum(block.height for block in blocks) + self.nearby * (len(blocks) - 1)
        column = Image.new("RGB", (max(block.width for block in blocks), height), _PAPER)
        top = 0
        for block in blocks:
            column.paste(block, (0, top))
            top += block.height + self.nearby
        return column

    def heading(self, sample_id: str, width: int) -> Image.Image:
        """The image's name, and in one sentence what the sheet shows."""
        name = shorten(sample_id, 40)
        block = self.line(name, self.head, width)
        left = round(_text_width(name, self.head)) + self.gap
        place = (left, self.head - self.body + 2)
        _write(ImageDraw.Draw(block), place, _TAGLINE, self.body, _FAINT_INK)
        return block

    def line(self, text: str, size: int, width: int) -> Image.Image:
        """One line of text."""
        block = Image.new("RGB", (width, round(1.4 * size)), _PAPER)
        _write(ImageDraw.Draw(block), (0, 2), text, size, _INK)
        return block

    def tile(self, title: str, picture: Picture, notes: Sequence[LegendEntry]) -> Image.Image:
        """A titled picture with its notes below, centred in a cell that can hold the text."""
        height, width = picture.shape[:2]
        cell = Image.new("RGB", (self.cell, max(height, 2 * self.disc)), _PAPER)
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
        block = Image.new("RGB", (width, bottom), _PAPER)
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
        lines = _wrapped(entry.text, self.body, width - indent)
        length = max(math.ceil(_text_width(line, self.body)) for line in lines)
        item = Image.new("RGB", (indent + length, len(lines) * self.step), _PAPER)
        item.paste(chip, (0, 2))
        for row, line in enumerate(lines):
            place = (indent, 1 + row * self.step)
            _write(ImageDraw.Draw(item), place, line, self.body, _INK)
        return item

    def card(
        self, explanation: Explanation, callout: CallOut, patch: SourcePatch | None
    ) -> Image.Image:
        """A call-out's training patch, number and caption."""
        colour = annotator_palette(len(explanation.annotators))[callout.annotator]
        edge = kernel_shade(colour, callout.kernel, _kernels(explanation))
        side = self.patch + 2 * self.frame
        box = Image.new("RGB", (side, side), edge)
        if patch is None:
            box.paste(_NO_PICTURE, (self.frame, self.frame, side - self.frame, side - self.frame))
        else:
            box.paste(self._marked_patch(patch), (self.frame, self.frame))
        left, indent = side + self.nearby, self.disc + self.frame
        name, *rest = callout_caption(explanation, callout, patch is not None)
        lines = _wrapped(name, self.body, self.cell - left - indent)
        for text in rest:
            lines += _wrapped(text, self.body, self.cell - left)
        card = Image.new("RGB", (self.cell, max(side, len(lines) * self.step)), _PAPER)
        card.paste(box, (0, 0))
        disc = _number_disc(callout.number, self.disc)
        card.paste(disc, (left, 0), disc)
        for row, line in enumerate(lines):
            place = (left + (0 if row else indent), 1 + row * self.step)
            _write(ImageDraw.Draw(card), place, line, self.body, _INK)
        return card

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
        for fill, thickness in ((_INK, self.frame), (_PAPER, self.frame // 2)):
            # light on dark shows on any image
            draw.ellipse([x - ring, y - ring, x + ring, y + ring], outline=fill, width=thickness)
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                ends = [(x + r * dx, y + r * dy) for r in (inner, outer)]
                draw.line(ends, fill=fill, width=thickness)
        return box


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines that fit the width: broken at " · ", else at spaces, else cut short."""
    parts = text.split(" · ")
    if len(parts) > 1 and _text_width(text, size) > width:
        return [line for part in parts for line in _wrapped(part, size, width)]
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, size, width) for line in lines]


def _cut(line: str, size: int, width: int) -> str:
    """The line itself, or its middle left out so that it fits the width."""
    limit = len(line)
    while limit > 3 and _text_width(shorten(line, limit), size) > width:
        limit -= 1
    return shorten(line, limit)


def _text_width(text: str, size: int) -> float:
    font, drawable = _lettering(text, size)
    return font.getlength(drawable)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, fill: Colour
) -> None:
    font, drawable = _lettering(text, size)
    draw.text(place, drawable, font=font, fill=fill)


_AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont


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


# ------------------------------------------------------------------------- pixels, chips, colours


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-_SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _outline(labels: NDArray[np.generic], width: int) -> NDArray[np.bool_]:
    """The inner edge of every labelled region, so many pixels wide."""
    known = np.where(labels == IGNORE_INDEX, 0, labels).astype(int)
    edge = find_boundaries(known, mode="inner", background=0)
    wider: NDArray[np.bool_] = ndimage.maximum_filter(edge, size=2 * width - 1)
    return wider & (known > 0)


def _seams(regions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Lines one pixel wide between two regions; none towards -1, where thin regions would drown."""
    seams = np.zeros(regions.shape, dtype=bool)
    for axis in (0, 1):
        before, after = regions.swapaxes(0, axis)[:-1], regions.swapaxes(0, axis)[1:]
        seams.swapaxes(0, axis)[1:] |= (before != after) & (before >= 0) & (after >= 0)
    return seams


def _dashed(picture: Picture, line: NDArray[np.bool_]) -> Picture:
    """The picture with a line in black and white dashes."""
    rows, cols = np.indices(line.shape)
    white = (rows + cols) // 5 % 2 == 0
    picture[line] = np.where(white[line][:, None], 255, 0)
    return picture


def _hatching(height: int, width: int, period: int) -> NDArray[np.bool_]:
    """Diagonal lines."""
    rows, cols = np.indices((height, width))
    return (rows + cols) % period < period // 6


def _rgb(grey: NDArray[np.floating]) -> Picture:
    """A grey picture with three channels."""
    return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _blend(
    picture: Picture, colour: Colour | NDArray[np.integer], strength: float | NDArray[np.floating]
) -> Picture:
    """The picture mixed with a colour: strength 0 leaves it, 1 covers it."""
    mixed = picture + (np.asarray(colour, dtype=np.float32) - picture) * strength
    return mixed.round().clip(0, 255).astype(np.uint8)


def _signs() -> tuple[LegendEntry, ...]:
    """What the looks mean that are not an annotator's colour."""
    strength = np.linspace(1, 0, 2 * _CHIP)[None, :, None].repeat(_CHIP, axis=0)
    grey = _rgb(np.full((_CHIP, 2 * _CHIP), 120.0))
    fading = _blend(grey, annotator_palette(1)[0], strength)
    hatched = _rgb(np.where(_hatching(_CHIP, 2 * _CHIP, 7), 178.0, 220.0))
    return (
        LegendEntry("fading to grey: several annotators share the decision", fading),
        LegendEntry("hatched: all would say the same, nobody in particular decides", hatched),
    )


def _solid_chip(colour: Colour) -> Picture:
    return np.full((_CHIP, _CHIP, 3), colour, dtype=np.uint8)


def _dash_chip() -> Picture:
    line = np.zeros((_CHIP, 20), dtype=bool)
    line[6:9] = True
    return _dashed(_rgb(np.full(line.shape, 225.0)), line)


@functools.lru_cache
def _number_disc(number: int, side: int) -> Image.Image:
    """A white number on a dark disc, drawn large and shrunk for smooth edges."""
    fine = 4 * side
    disc = Image.new("RGBA", (fine, fine))
    draw = ImageDraw.Draw(disc)
    draw.ellipse([0, 0, fine - 1, fine - 1], fill=_PAPER)
    draw.ellipse([6, 6, fine - 7, fine - 7], fill=_INK)
    font = ImageFont.load_default(size=0.68 * fine)
    draw.text((fine / 2, fine / 2), str(number), font=font, fill=_PAPER, anchor="mm")
    return disc.resize((side, side), Image.Resampling.LANCZOS)


def _listed_or_spread(listed: tuple[Colour, ...], n: int) -> tuple[Colour, ...]:
    """The listed colours, then hues a golden section apart at three lightnesses."""
    colours = list(listed[:n])
    for extra in range(n - len(listed)):
        lightness = (0.42, 0.66, 0.28)[extra % 3]
        r, g, b = colorsys.hls_to_rgb(0.04 + extra * 0.618034 % 1, lightness, 0.7)
        colours.append((round(255 * r), round(255 * g), round(255 * b)))
    return tuple(colours)


# --------------------------------------------------------------------------------- small matters


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values; half precision, which NumPy lacks in part, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _kernels(explanation: Explanation) -> int:
    """The largest number of kernels that an annotator has."""
    return max(1, *(len(row) for row in explanation.sources), 1)


def _largest_component(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected part with the most pixels."""
    labels, _ = ndimage.label(region)
    sizes = np.bincount(labels.ravel())
    largest: NDArray[np.bool_] = labels == sizes[1:].argmax() + 1
    return largest


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the region that is farthest from its edge."""
    (window,) = ndimage.find_objects(region.astype(int))
    depth = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y + window[0].start), int(x + window[1].start)


def _check_single(explanation: Explanation) -> None:
    if len(explanation) != 1:
        raise ValueError(
            f"The explanation is of {len(explanation)} images, expected 1; "
            "take one of them: explanation[i]."
        )


def _check_sizes(
    explanation: Explanation,
    image: Picture,
    masks: NDArray[np.integer] | None,
    reference: NDArray[np.integer] | None,
) -> None:
    """Every array has the explanation's height and width, and the image is uint8 RGB."""
    size = tuple(explanation.probs.shape[-2:])
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise ValueError(
            f"image is {image.dtype} {image.shape}, expected uint8 {(*size, 3)}; "
            "turn it into RGB of the explanation's size."
        )
    expected = {"masks": (len(explanation.annotators), *size), "reference": size}
    for name, array in (("masks", masks), ("reference", reference)):
        if array is not None and array.shape != expected[name]:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {expected[name]}; "
                "give class ids of the explanation's size."
            )
