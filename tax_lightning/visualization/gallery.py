"""The gallery: a card for each prototype, with its training pixel and how the model uses it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.annotations import SourcePatch, read_source_patches
from tax_lightning.visualization.drawing import thumbnail
from tax_lightning.visualization.palette import INK, PAPER, Colour, Picture, annotator_palette
from tax_lightning.visualization.sheet import FAINT_INK, NO_PICTURE, Entry, Sheet, shorten
from tax_lightning.visualization.summary import Summary

_SHOWN_NEAREST = 3
_COLUMNS = 4
_CARD, _CROP, _THUMBNAIL, _NEAREST = 304, 184, 104, 92  # pixels
_SCENE = 160  # pixels a side, at most, of a whole image on a card
_TAGLINE = (
    "What the model compares new pixels with: each prototype is one pixel of a training image"
)
_SIGNS = (
    Entry("ring: the pixel"),
    Entry("box: where the patch lies in its image"),
)


@dataclass(frozen=True)
class PrototypeCard:
    """What is to be said of one prototype. What was not measured is ``None`` and not shown.

    Args:
        source: annotator, kernel, and the training pixel, with its nearest pixels.
        colour: of the prototype's annotator.
        use: share of the decided pixels of some images that the prototype decides, in ``[0, 1]``.
        patch: a crop of the training image around the pixel.
        image: the whole training image, in any size.
        size: height and width of the training image in pixels of ``source.y`` and ``source.x``.
        nearest: crops around the first of ``source.nearest``; ``None`` for images not at hand.

    Example:
        >>> source = PrototypeSource("Ana", 2, "train-0012", 31, 40, 0.97, "cell", True, ())
        >>> PrototypeCard(source, (0, 114, 178), use=0.12).use
        0.12
    """

    source: PrototypeSource
    colour: Colour
    use: float | None = None
    patch: SourcePatch | None = None
    image: Picture | None = None
    size: tuple[int, int] | None = None
    nearest: tuple[SourcePatch | None, ...] = ()


def read_cards(
    sources: Sequence[Sequence[PrototypeSource]], read: Callable[[str], Picture] | None
) -> list[PrototypeCard]:
    """Cards of all prototypes, with small pictures of the training images that are at hand.

    Args:
        sources: ``[N][K]``.
        read: see `read_source_patches`; None: no image is at hand.

    Example:
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 200, 3), dtype=np.uint8)
        >>> (card,) = read_cards([[source]], lambda id: image)
        >>> card.patch.image.shape, card.image.shape
        ((48, 48, 3), (80, 160, 3))
    """
    cards = [
        PrototypeCard(source, colour)
        for row, colour in zip(sources, annotator_palette(len(sources)), strict=True)
        for source in row
    ]
    places = {
        (n, rank): place for n, card in enumerate(cards) for rank, place in _places(card.source)
    }
    scenes: dict[str, tuple[Picture, tuple[int, int]]] = {}

    def picture_of(sample_id: str) -> Picture:
        if read is None:
            raise LookupError(sample_id)
        picture = read(sample_id)
        scenes[sample_id] = thumbnail(picture, _SCENE), (picture.shape[0], picture.shape[1])
        return picture

    patches = read_source_patches(picture_of, places)
    for n, card in enumerate(cards):
        image, size = scenes.get(card.source.sample_id, (None, None))
        patch, *nearest = (patches.get((n, rank)) for rank, _ in _places(card.source))
        cards[n] = replace(card, patch=patch, image=image, size=size, nearest=tuple(nearest))
    return cards


def with_use(cards: Sequence[PrototypeCard], summary: Summary) -> list[PrototypeCard]:
    """The cards of all prototypes, told how much each decides."""
    shares = summary.kernel_usage.ravel().tolist()
    return [replace(card, use=use) for card, use in zip(cards, shares, strict=True)]


def shown_images(sources: Sequence[Sequence[PrototypeSource]]) -> set[str]:
    """The ids of the training images from which cards show something."""
    projected = (source for row in sources for source in row if source.projected)
    return {place.sample_id for source in projected for _, place in _places(source)}


def _places(source: PrototypeSource) -> Iterator[tuple[int, PrototypeSource]]:
    """The pixel itself with rank 0, then its nearest ones."""
    yield 0, source
    for rank, (sample_id, y, x, _) in enumerate(source.nearest[:_SHOWN_NEAREST], start=1):
        yield rank, replace(source, sample_id=sample_id, y=y, x=x)


def render_card(card: PrototypeCard) -> Picture:
    """Draw one prototype as a picture ``[height, width, 3]`` uint8.

    Example:
        >>> source = PrototypeSource("Ana", 2, "", -1, -1, float("nan"), "", True, ())
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
    source = card.source
    if not source.projected:
        return ("not yet projected: no training pixel",)
    facts = [f"from {shorten(source.sample_id)} at y {source.y}, x {source.x}"]
    if source.label:
        facts.append(f"labelled: {source.label}")
    if not source.active:
        facts.append("pruned: no training pixel is like it, so it decides nothing")
    for value, text in (
        (card.use, "decides: {:.0%} of the disputed pixels"),
        (source.purity, "nearest pixels with one label: {:.0%}"),
        (source.similarity, "similarity when taken: {:.2f}"),
    ):
        if value is not None and not math.isnan(value):
            facts.append(text.format(value))
    return tuple(facts)


def _drawn(sheet: Sheet, card: PrototypeCard) -> Image.Image:
    """A card: name, crop and whole image, facts, nearest pixels."""
    source = card.source
    name = f"{shorten(source.annotator)} · prototype {source.kernel}"
    bar = Image.new("RGB", (_CARD, sheet.frame), card.colour)
    parts = [bar, sheet.line(name, sheet.title, _CARD)]
    if source.projected:
        crop = sheet.source(card.patch, card.colour, _CROP)
        parts.append(sheet.side_by_side([crop, _scene(card)], sheet.nearby))
    parts.append(sheet.text(card_facts(card), _CARD))
    return sheet.stacked([*parts, *(_nearest(sheet, card) if source.projected else [])])


def _scene(card: PrototypeCard) -> Image.Image:
    """The whole training image, a box round the part that the crop shows."""
    if card.image is None or card.size is None:
        return Image.new("RGB", (1, 1), PAPER)
    height, width = card.size
    zoom = _THUMBNAIL / max(height, width)
    shown = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = Image.fromarray(card.image).resize(shown, Image.Resampling.BOX)
    if card.patch is None:
        return image
    rows, columns = card.patch.image.shape[:2]
    left, top = card.source.x - card.patch.x, card.source.y - card.patch.y
    corners = np.multiply((left, top, left + columns, top + rows), zoom).round()
    x0, y0, x1, y1 = (corners - (0, 0, 1, 1)).astype(int).tolist()
    draw = ImageDraw.Draw(image)
    for inset, fill in enumerate((INK, PAPER, INK)):
        if x1 - x0 >= 2 * inset and y1 - y0 >= 2 * inset:  # thin images have no room for all
            box = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
            draw.rectangle(box, outline=fill)
    return image


def _nearest(sheet: Sheet, card: PrototypeCard) -> list[Image.Image]:
    """The next nearest pixels, each from another image."""
    boxes = []
    for patch, (sample_id, _, _, similarity) in zip(
        card.nearest[:_SHOWN_NEAREST], card.source.nearest, strict=False
    ):
        box = sheet.source(patch, NO_PICTURE, _NEAREST)
        words = [shorten(sample_id, 12), f"{similarity:.2f}"]
        boxes.append(sheet.stacked([box, sheet.text(words, box.width, fill=FAINT_INK)], gap=2))
    if not boxes:
        return []
    title = sheet.text(["next nearest, in other images:"], _CARD, fill=FAINT_INK)
    return [title, sheet.side_by_side(boxes, (_CARD - 3 * boxes[0].width) // 2)]
