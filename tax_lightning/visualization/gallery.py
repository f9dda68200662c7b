"""The gallery: a card for each prototype, with the training pixels that it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.palette import Colour, Picture, annotator_palette
from tax_lightning.visualization.annotations import Read, SourcePatch, read_patches
from tax_lightning.visualization.sheet import FAINT_INK, Sheet, shorten
from tax_lightning.visualization.summary import Summary

_COLUMNS = 4
_CARD, _CROP, _EXAMPLE = 304, 184, 88  # pixels
TAGLINE = (
    "A prototype is one pixel of a training image, and selects a rule of labelling. Large: that "
    "pixel, ringed. Small: for every class, the pixel most like it that the annotator gave it"
)


@dataclass(frozen=True)
class PrototypeCard:
    """What is to be said of one prototype.

    Example:
        >>> cell = Example("cell", "train-0012", 31, 40, 0.97)
        >>> source = PrototypeSource("Ana", 2, True, cell, (cell,))
        >>> PrototypeCard(source, (0, 114, 178), use=0.12).facts[-1]
        'the first reason at 12% of the disputed pixels'
    """

    source: PrototypeSource
    colour: Colour  # of the prototype's annotator
    # The surroundings of the source's pixels, of those whose image is at hand.
    patches: Mapping[Example, SourcePatch] = field(default_factory=dict)
    use: float | None = None  # share of the disputed pixels whose first reason it is, if counted

    @property
    def facts(self) -> tuple[str, ...]:
        """Where the prototype is from, and how much it is used."""
        taken = self.source.taken_from
        if taken is None:
            return ("not yet projected: no training pixel",)
        facts = [f"{origin(taken)}, labelled {taken.label}"]
        if taken not in self.patches:
            facts.append("(the training image is not at hand)")
        if not self.source.active:
            facts.append("pruned: no training pixel is like it, so it decides nothing")
        elif self.use is not None:
            facts.append(f"the first reason at {self.use:.0%} of the disputed pixels")
        return tuple(facts)


def shown_examples(source: PrototypeSource) -> tuple[Example, ...]:
    """The most similar example of every class."""
    labels = dict.fromkeys(example.label for example in source.examples)
    return tuple(example for label in labels if (example := source.example(label)))


def origin(example: Example) -> str:
    """Where a training pixel lies, in words."""
    return f"{shorten(example.sample_id)} at y {example.y}, x {example.x}"


def read_cards(
    sources: Sequence[Sequence[PrototypeSource]], read: Read | None
) -> list[PrototypeCard]:
    """Cards of all prototypes ``[N][K]``, in the order of annotators and kernels."""
    everything = [source for row in sources for source in row]
    taken = [source.taken_from for source in everything if source.taken_from]
    examples = [example for source in everything for example in shown_examples(source)]
    patches = read_patches([*taken, *examples], read)
    colours = annotator_palette(len(sources))
    return [
        PrototypeCard(source, colour, patches)
        for row, colour in zip(sources, colours, strict=True)
        for source in row
    ]


def with_use(cards: Sequence[PrototypeCard], summary: Summary) -> list[PrototypeCard]:
    """The cards of all prototypes with their use in the images that are summed up."""
    use = summary.shares(summary.reasons).ravel() if summary.disputed else [None] * len(cards)
    return [replace(card, use=share) for card, share in zip(cards, use, strict=False)]


def render_card(card: PrototypeCard) -> Picture:
    """Draw one prototype as a picture ``[height, width, 3]`` uint8."""
    return np.asarray(_drawn(Sheet(), card))


def render_gallery(cards: Sequence[PrototypeCard]) -> Picture:
    """Draw many prototypes, at least one, four in a row."""
    if not cards:
        raise ValueError("render_gallery: no cards, expected at least one prototype.")
    sheet = Sheet()
    grid = sheet.grid([_drawn(sheet, card) for card in cards], _COLUMNS)
    heading = sheet.heading("Prototypes", TAGLINE, max(grid.width, 2 * _CARD))
    return sheet.framed([heading, grid])


def _drawn(sheet: Sheet, card: PrototypeCard) -> Image.Image:
    """A card: name, the prototype's pixel, facts, and its example of every class."""
    source = card.source
    name = f"{shorten(source.annotator)} · prototype {source.kernel}"
    bar = Image.new("RGB", (_CARD, sheet.frame), card.colour)
    parts = [bar, sheet.line(name, sheet.title, _CARD)]
    if source.taken_from:
        parts.append(sheet.source(card.patches.get(source.taken_from), card.colour, _CROP))
    parts.append(sheet.text(card.facts, _CARD))
    boxes = []
    for example in shown_examples(card.source):
        box = sheet.source(card.patches.get(example), FAINT_INK, _EXAMPLE)
        words = [shorten(example.label, 12), f"like it: {example.similarity:.2f}"]
        boxes.append(sheet.stacked([box, sheet.text(words, box.width)], gap=2))
    if boxes:
        columns = _CARD // boxes[0].width
        parts.append(sheet.grid(boxes, columns, sheet.frame))
    return sheet.stacked(parts)
