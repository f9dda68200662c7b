"""The gallery: a card for each prototype, with its training pixel and examples of every class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.visualization.annotations import SourcePatch, read_patches
from tax_lightning.visualization.drawing import thumbnail
from tax_lightning.visualization.palette import INK, PAPER, Colour, Picture, annotator_palette
from tax_lightning.visualization.sheet import FAINT_INK, NO_PICTURE, Entry, Sheet, shorten
from tax_lightning.visualization.summary import Summary

_SHOWN_CLASSES = 3
_COLUMNS = 4
_CARD, _CROP, _THUMBNAIL, _EXAMPLE = 304, 184, 104, 92  # pixels
_SCENE = 160  # pixels a side, at most, of a whole image on a card
_TAGLINE = (
    "What the model compares new pixels with: each prototype is one pixel of a training image"
)
_SIGNS = (
    Entry("ring: the pixel"),
    Entry("box: where the patch lies in its image"),
    Entry("below: the most similar pixels that the annotator gave each class"),
)


@dataclass(frozen=True)
class PrototypeCard:
    """What is to be said of one prototype. What was not measured is ``None`` and not shown.

    Args:
        source: annotator, kernel, and the training pixels.
        colour: of the prototype's annotator.
        use: share of the disputed pixels of some images whose reason it is, in ``[0, 1]``.
        patches: crops around the training pixels that are at hand.
        image: the whole training image that the prototype was taken from, in any size.
        size: height and width of that image in pixels.

    Example:
        >>> cell = Example("cell", "train-0012", 31, 40, 0.97)
        >>> source = PrototypeSource("Ana", 2, True, cell, (cell,))
        >>> PrototypeCard(source, (0, 114, 178), use=0.12).use
        0.12
    """

    source: PrototypeSource
    colour: Colour
    use: float | None = None
    patches: dict[Example, SourcePatch] | None = None
    image: Picture | None = None
    size: tuple[int, int] | None = None

    def patch(self, example: Example | None) -> SourcePatch | None:
        """The crop around one of the pixels, if it is at hand."""
        return None if example is None else (self.patches or {}).get(example)


def read_cards(
    sources: Sequence[Sequence[PrototypeSource]], read: Callable[[str], Picture] | None
) -> list[PrototypeCard]:
    """Cards of all prototypes, with small pictures of the training images that are at hand.

    Args:
        sources: ``[N][K]``.
        read: see `read_patches`; None: no image is at hand.

    Example:
        >>> cell = Example("cell", "a", 1, 90, 1.0)
        >>> image = np.zeros((100, 200, 3), dtype=np.uint8)
        >>> (card,) = read_cards([[PrototypeSource("Ana", 0, True, cell, ())]], lambda id: image)
        >>> card.patch(cell).image.shape, card.image.shape
        ((48, 48, 3), (80, 160, 3))
    """
    scenes: dict[str, tuple[Picture, tuple[int, int]]] = {}

    def picture_of(sample_id: str) -> Picture:
        if read is None:
            raise LookupError(sample_id)
        picture = read(sample_id)
        scenes[sample_id] = thumbnail(picture, _SCENE), (picture.shape[0], picture.shape[1])
        return picture

    shown = {source: _shown(source) for row in sources for source in row}
    patches = read_patches(picture_of, itertools.chain.from_iterable(shown.values()))
    cards = []
    for row, colour in zip(sources, annotator_palette(len(sources)), strict=True):
        for source in row:
            own = {pixel: patches[pixel] for pixel in shown[source] if pixel in patches}
            name = source.taken_from.sample_id if source.taken_from else ""
            image, size = scenes.get(name, (None, None))
            cards.append(PrototypeCard(source, colour, None, own, image, size))
    return cards


def with_use(cards: Sequence[PrototypeCard], summary: Summary) -> list[PrototypeCard]:
    """The cards of all prototypes, told of how many disputed pixels each is the reason."""
    shares = summary.kernel_usage.ravel().tolist()
    return [replace(card, use=use) for card, use in zip(cards, shares, strict=True)]


def shown_images(sources: Sequence[Sequence[PrototypeSource]]) -> set[str]:
    """The ids of the training images from which cards show something."""
    return {pixel.sample_id for row in sources for source in row for pixel in _shown(source)}


def _shown(source: PrototypeSource) -> list[Example]:
    """The pixels that are shown: where the prototype was taken from, then one of each class."""
    first = [] if source.taken_from is None else [source.taken_from]
    return [*first, *_one_a_class(source)]


def _one_a_class(source: PrototypeSource) -> list[Example]:
    """The most similar pixel of each class, the most similar first."""
    labels = dict.fromkeys(example.label for example in source.examples)
    found = (source.example(label) for label in labels)
    return [example for example in found if example is not None]


def render_card(card: PrototypeCard) -> Picture:
    """Draw one prototype as a picture ``[height, width, 3]`` uint8.

    Example:
        >>> source = PrototypeSource("Ana", 2, True, None, ())
        >>> render_card(PrototypeCard(source, (0, 114, 178))).shape[2]
        3
    """
    return np.asarray(_drawn(Sheet(), card))


def render_gallery(cards: Sequence[PrototypeCard]) -> Picture:
    """Draw many prototypes, four in a row; each annotator's begin a row of their own.

    Args:
        cards: at least one; those of one annotator one after the other.
    """
    if not cards:
        raise ValueError("render_gallery: no cards, expected at least one prototype.")
    sheet = Sheet()
    grouped = itertools.groupby(cards, key=lambda card: card.source.annotator)
    rows = {expert: [_drawn(sheet, card) for card in group] for expert, group in grouped}
    title = f"Prototypes of {next(iter(rows))}" if len(rows) == 1 else "Prototypes"
    columns = min(_COLUMNS, max(map(len, rows.values())))
    width = max(2, columns) * (_CARD + sheet.gap) - sheet.gap
    return sheet.framed(
        [
            sheet.heading(title, _TAGLINE, width),
            sheet.flow(_SIGNS, width),
            sheet.stacked([sheet.grid(row, columns) for row in rows.values()], 2 * sheet.gap),
        ]
    )


def card_facts(card: PrototypeCard) -> tuple[str, ...]:
    """The lines that stand on a card: where the prototype is from, and what was measured of it."""
    pixel = card.source.taken_from
    if pixel is None:
        return ("not yet projected: no training pixel",)
    facts = [
        f"from {shorten(pixel.sample_id)} at y {pixel.y}, x {pixel.x}",
        f"labelled: {pixel.label}",
    ]
    if not card.source.active:
        facts.append("pruned: no training pixel is like it, so it decides nothing")
    if card.use is not None and not math.isnan(card.use):
        facts.append(f"reason of {card.use:.0%} of the disputed pixels")
    facts.append(f"similarity when taken: {pixel.similarity:.2f}")
    return tuple(facts)


def _drawn(sheet: Sheet, card: PrototypeCard) -> Image.Image:
    """A card: name, crop and whole image, facts, examples of every class."""
    source = card.source
    name = f"{shorten(source.annotator)} · prototype {source.kernel}"
    bar = Image.new("RGB", (_CARD, sheet.frame), card.colour)
    parts = [bar, sheet.line(name, sheet.title, _CARD)]
    if source.projected:
        crop = sheet.source(card.patch(source.taken_from), card.colour, _CROP)
        parts.append(sheet.side_by_side([crop, _scene(card)], sheet.nearby))
    parts.append(sheet.text(card_facts(card), _CARD))
    return sheet.stacked([*parts, *_examples(sheet, card)])


def _scene(card: PrototypeCard) -> Image.Image:
    """The whole training image, a box round the part that the crop shows."""
    if card.image is None or card.size is None:
        return Image.new("RGB", (1, 1), PAPER)
    height, width = card.size
    zoom = _THUMBNAIL / max(height, width)
    shown = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = Image.fromarray(card.image).resize(shown, Image.Resampling.BOX)
    pixel, patch = card.source.taken_from, card.patch(card.source.taken_from)
    if pixel is None or patch is None:
        return image
    rows, columns = patch.image.shape[:2]
    left, top = pixel.x - patch.x, pixel.y - patch.y
    corners = np.multiply((left, top, left + columns, top + rows), zoom).round()
    x0, y0, x1, y1 = (corners - (0, 0, 1, 1)).astype(int).tolist()
    draw = ImageDraw.Draw(image)
    for inset, fill in enumerate((INK, PAPER, INK)):
        if x1 - x0 >= 2 * inset and y1 - y0 >= 2 * inset:  # thin images have no room for all
            box = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
            draw.rectangle(box, outline=fill)
    return image


def _examples(sheet: Sheet, card: PrototypeCard) -> list[Image.Image]:
    """The most similar pixels of some classes, the most similar class first."""
    boxes = []
    for example in _one_a_class(card.source)[:_SHOWN_CLASSES]:
        box = sheet.source(card.patch(example), NO_PICTURE, _EXAMPLE)
        words = [shorten(example.label, 12), f"{example.similarity:.2f}"]
        boxes.append(sheet.stacked([box, sheet.text(words, box.width, fill=FAINT_INK)], gap=2))
    if not boxes:
        return []
    title = sheet.text(["most similar pixels by label:"], _CARD, fill=FAINT_INK)
    gap = (_CARD - _SHOWN_CLASSES * boxes[0].width) // 2
    return [title, sheet.side_by_side(boxes, gap)]
