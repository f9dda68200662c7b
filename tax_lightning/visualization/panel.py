"""The panel: an explanation as one picture, of who says what where, and why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Example, Explanation
from tax_lightning.visualization import drawing
from tax_lightning.visualization.annotations import (
    SourcePatch,
    Spot,
    example_against,
    example_for,
    find_spots,
)
from tax_lightning.visualization.palette import (
    INK,
    PAPER,
    Colour,
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.sheet import SMALLEST_TILE, Entry, Sheet, shorten
from tax_lightning.visualization.summary import Summary, cautions, trust_words

_LARGEST_TILE = 512
_COLUMNS = 3
_CHIP = 14
_MOST_MAPS = 12  # small maps of annotators
_TAGLINE = "Where annotators would differ, who would say what, and the training pixels behind it"
_CARDS_TITLE = "WHY, continued: what speaks for the result at each number, and what against it"
_NOBODY = "Nothing is disputed: no two annotators are expected to differ anywhere."
_MAPS_TITLE = "Each annotator beside the result (solid: would add; hatched: would leave out)"


def render_panel(
    explanation: Explanation,
    image: NDArray[Any],
    masks: NDArray[np.integer] | None = None,
    reference: NDArray[np.integer] | None = None,
    patches: Mapping[Example, SourcePatch] | None = None,
) -> Picture:
    """Draw the explanation of one image.

    Six tiles: the image, the annotators' contours and the result; below them who, why and how much
    is disputed. WHO shows whom the result trusts, in the annotators' colours, where the weights
    follow the image; else how many annotators would say the same. Numbers in WHY lead to the cards:
    the training pixel that speaks for the result there, and the one that speaks against it. A small
    map for each annotator shows what they would add and leave out.

    Args:
        explanation: the explanation of one image.
        image: ``[H, W]`` or ``[H, W, ch]``, grey, RGB or of more channels, see
            :func:`~tax_lightning.visualization.drawing.as_picture`.
        masks: ``[N, H, W]`` class ids as the annotators drew them, 255 where not labelled; without
            them the contours are those that the model expects of each annotator.
        reference: ``[H, W]`` class ids of the reference, 255 where unknown.
        patches: the training patches at hand, see
            :func:`~tax_lightning.visualization.annotations.spot_patches`; other examples are named
            without a picture.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: if there are several images, or the size of an array is not the explanation's.

    Example:
        >>> import torch
        >>> from tax_lightning import TAXLightningModule
        >>> module = TAXLightningModule(["Ana", "Ben"], ["background", "cell"], encoder="resnet18")
        >>> explanation = module.explain(torch.zeros(1, 3, 32, 32), ids=["new"])
        >>> panel = render_panel(explanation, image=np.zeros((32, 32), dtype=np.uint8))
        >>> panel.shape[2], panel.dtype
        (3, dtype('uint8'))
    """
    drawing.check_single(explanation)
    _check_sizes(explanation, image, masks, reference)
    summary = Summary.of(explanation)
    view = View(explanation, image, masks, reference)
    spots = find_spots(explanation)
    sheet = Sheet(view.scale)
    drawn = "Annotators" if masks is not None else "Annotators, as predicted"
    trusted = explanation.trust.kind == "image"
    who = [Entry("colour: whom the result trusts; grey: shared")] if trusted else view.vote_scale()
    shade = [Entry("colour and shade: the prototype behind the result; numbers: see below")]
    tiles = [
        sheet.tile("Image", view.image, image_notes(image)),
        sheet.tile(drawn, view.contours(), mask_notes(explanation.annotators, masks)),
        sheet.tile("Result", view.result(), _class_entries(view)),
        sheet.tile("WHO is trusted" if trusted else "WHO: votes", view.who(), who),
        sheet.tile("WHY", _with_numbers(view.why(), view, spots, sheet), shade),
        sheet.tile("DISPUTE", view.dispute_map(), dispute_entries(summary, masks)),
    ]
    width = sheet.grid(tiles, _COLUMNS).width
    cards = [_card(sheet, explanation, spot, patches or {}, width) for spot in spots]
    maps = [
        sheet.tile(shorten(name), view.difference(n), [])
        for n, name in enumerate(explanation.annotators[:_MOST_MAPS])
    ]
    words = [trust_words(explanation.trust), *cautions(explanation)]
    return sheet.framed(
        [
            sheet.heading(explanation.ids[0], _TAGLINE, width),
            sheet.grid(tiles, _COLUMNS),
            sheet.flow(annotator_entries(explanation.annotators), width),
            sheet.flow(_sign_entries(explanation.dispute_threshold), width),
            *(sheet.text([sentence], width) for sentence in words),
            sheet.line(_CARDS_TITLE if cards else _NOBODY, sheet.title, width),
            *cards,
            sheet.line(_MAPS_TITLE, sheet.title, width),
            sheet.grid(maps, _COLUMNS),
        ]
    )


def _check_sizes(
    explanation: Explanation,
    image: NDArray[Any],
    masks: NDArray[np.integer] | None,
    reference: NDArray[np.integer] | None,
) -> None:
    """Every array has the explanation's height and width."""
    size = tuple(explanation.probs.shape[-2:])
    if image.ndim not in (2, 3) or image.shape[:2] != size:
        raise ValueError(
            f"image has shape {image.shape}, expected {size} or {(*size, 3)}; "
            "give the image of the explanation, at its size and with the channels last."
        )
    expected = {"masks": (len(explanation.annotators), *size), "reference": size}
    for name, array in (("masks", masks), ("reference", reference)):
        if array is not None and array.shape != expected[name]:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {expected[name]}; "
                "give class ids of the explanation's size."
            )


# ------------------------------------------------------------------------------------------ tiles


class View:
    """The maps of one image at the size at which they are shown, and the tiles drawn from them."""

    def __init__(
        self,
        explanation: Explanation,
        image: NDArray[Any],
        masks: NDArray[np.integer] | None,
        reference: NDArray[np.integer] | None,
    ) -> None:
        self.classes, self.kernels = explanation.classes, explanation.kernels
        self.colours = annotator_palette(len(explanation.annotators))
        source_size = image.shape[:2]
        self.size = height, width = _display_size(*source_size)
        self.zoom = np.divide(self.size, source_size)
        self.scale = max(1.0, width / SMALLEST_TILE)  # of text and lines
        self.line = round(2 * self.scale)
        rows, columns = (
            ((np.arange(shown) + 0.5) * size // shown).astype(int)
            for shown, size in zip(self.size, source_size, strict=True)
        )
        place = (..., rows[:, None], columns)
        picture = Image.fromarray(drawing.as_picture(image))
        self.image = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
        self.grey = np.asarray(Image.fromarray(self.image).convert("L"), dtype=np.float32)
        self.reference = None if reference is None else reference[place].astype(np.uint8)
        explanation = explanation.sampled(torch.from_numpy(rows), torch.from_numpy(columns))
        if masks is None:
            drawn = drawing.as_array(explanation.annotator_decisions[0])
        else:
            drawn = masks[place]
        self.masks = drawn.astype(np.uint8)
        self.decision = drawing.as_array(explanation.decision[0]).astype(np.uint8)
        self.trusted = explanation.trust.kind == "image"
        self.leader = drawing.as_array(explanation.leader[0])
        self.certainty = drawing.as_array(explanation.certainty[0])
        self.votes = drawing.as_array(explanation.votes[0])
        self.reason = drawing.as_array(explanation.reason[0])
        self.kernel = drawing.as_array(explanation.reason_kernel[0])
        self.dispute = drawing.as_array(explanation.dispute[0])
        self.undisputed = drawing.as_array(explanation.undisputed[0])

    def contours(self) -> Picture:
        """Every annotator's contour; where several coincide their colours take turns along it."""
        line, whose = drawing.taking_turns(drawing.contours(self.masks, self.line))
        picture = drawing.grey_rgb(0.5 * self.grey + 70)
        picture[line] = np.asarray(self.colours, dtype=np.uint8)[whose[line]]
        return picture

    def result(self) -> Picture:
        """The resulting classes over the grey image, the reference as a dashed line."""
        picture = drawing.grey_rgb(self.grey)
        colours = np.asarray(class_palette(len(self.classes)), dtype=np.uint8)
        inside = self.decision > 0
        picture[inside] = drawing.blend(picture[inside], colours[self.decision[inside]], 0.55)
        outline = drawing.contours(self.decision, self.line)
        picture[outline] = colours[self.decision[outline]]
        if self.reference is not None:
            picture = drawing.dashed(picture, drawing.contours(self.reference, self.line))
        return picture

    def who(self) -> Picture:
        """Whom the result trusts, fading to grey where several are; or how many say the same."""
        if self.trusted:
            colours = np.asarray(self.colours)[self.leader]
            picture = drawing.blend(drawing.grey_rgb(self.grey), colours, self.certainty[..., None])
        else:
            picture = value_colours(1 - self.votes / len(self.colours))
        return self._with_undisputed(picture)

    def vote_scale(self) -> list[Entry]:
        """The scale bar of the votes, its ends named."""
        people = len(self.colours)
        bar = value_colours(np.linspace(0, 1, 6 * _CHIP)[None].repeat(_CHIP, axis=0))
        return [Entry(f"would say the same: all {people}"), Entry("none", bar)]

    def why(self) -> Picture:
        """Shades of an annotator's colour for the prototypes that are the reason, with seams."""
        kernels = max(self.kernels, int(self.kernel.max()) + 1)
        shades = [[kernel_shade(c, k, kernels) for k in range(kernels)] for c in self.colours]
        picture = np.asarray(shades, dtype=np.uint8)[self.reason, self.kernel]
        prototype = np.where(self.undisputed, -1, self.reason * kernels + self.kernel)
        picture[drawing.seams(prototype)] = (0, 0, 0)
        return self._with_undisputed(picture)

    def dispute_map(self) -> Picture:
        """How often two annotators are expected to differ, in the colours of the scale bar."""
        return value_colours(self.dispute.clip(0, 1))

    def difference(self, annotator: int) -> Picture:
        """What an annotator would add to the result, and, hatched, leave out or name otherwise."""
        drawn, colour = self.masks[annotator], np.asarray(self.colours[annotator])
        picture = drawing.grey_rgb(0.5 * self.grey + 110)
        known = drawn != IGNORE_INDEX
        picture[known & (drawn > 0) & (self.decision == 0)] = colour
        hatched = drawing.hatching(*self.size, round(7 * self.scale))
        less = known & (self.decision > 0) & (drawn != self.decision)
        picture[less] = PAPER
        picture[less & hatched] = colour
        picture[drawing.contours(self.decision, max(1, self.line // 2))] = INK
        return picture

    def _with_undisputed(self, picture: Picture) -> Picture:
        """Wash out and hatch the pixels where annotators are not expected to differ."""
        hatched = drawing.hatching(*self.size, round(7 * self.scale))
        washed = drawing.grey_rgb(np.where(hatched, 178, 0.25 * self.grey + 176))
        picture[self.undisputed] = washed[self.undisputed]
        return picture


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


# ---------------------------------------------------------------------------------------- legends


def annotator_entries(annotators: Sequence[str]) -> list[Entry]:
    """A title, then every annotator with colour."""
    people = zip(annotators, annotator_palette(len(annotators)), strict=True)
    named = [Entry(shorten(name), _solid_chip(colour)) for name, colour in people]
    return [Entry("Annotators:"), *named]


def image_notes(image: NDArray[Any]) -> list[Entry]:
    """The image's size, and what of it is shown where that is not everything."""
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    texts = [f"{width} x {height} pixels"]
    if channels not in (1, 3):
        texts.append(f"channel 1 of {channels}")
    if image.dtype != np.uint8:
        texts.append("black {:.5g}, white {:.5g}".format(*drawing.shown_range(image)))
    return [Entry(text) for text in texts]


def dispute_entries(summary: Summary, masks: NDArray[np.integer] | None) -> list[Entry]:
    """The scale bar of the dispute, the share expected, and the real one where it is known."""
    bar = value_colours(np.linspace(0, 1, 6 * _CHIP)[None].repeat(_CHIP, axis=0))
    entries = [
        Entry("0 nobody differs"),
        Entry("1 everybody", bar),
        Entry(f"expected to be disputed: {summary.share_disputed:.0%} of the pixels"),
    ]
    if masks is not None:
        known = masks != IGNORE_INDEX
        lowest, highest = masks.min(axis=0), np.where(known, masks, -1).max(axis=0)
        several = known.sum(axis=0) > 1
        if several.any():
            share = (several & (highest > lowest)).sum() / several.sum()
            entries.append(Entry(f"really disputed: {share:.0%}"))
    return entries


def mask_notes(annotators: Sequence[str], masks: NDArray[np.integer] | None) -> list[Entry]:
    """Which annotators have no contour, and why; a predicted contour needs no such note."""
    if masks is None:
        return [Entry("as the model expects each to draw")]
    pixels = masks.reshape(len(masks), -1)
    absent = (pixels == IGNORE_INDEX).all(axis=1)
    empty = ~absent & ((pixels == 0) | (pixels == IGNORE_INDEX)).all(axis=1)
    notes = []
    for title, chosen in (("did not label: ", absent), ("drew nothing: ", empty)):
        names = [shorten(name) for name in itertools.compress(annotators, chosen)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            notes.append(Entry(title + ", ".join(names[:3]) + more))
    return notes or [Entry("as each of them drew")]


def _class_entries(view: View) -> list[Entry]:
    """The classes that occur in the result or the reference, and the reference's line."""
    maps = [view.decision] if view.reference is None else [view.decision, view.reference]
    colours = class_palette(len(view.classes))
    present = np.setdiff1d(np.concatenate([labels.ravel() for labels in maps]), [IGNORE_INDEX])
    entries = [Entry(shorten(view.classes[c]), _solid_chip(colours[c])) for c in present.tolist()]
    if view.reference is not None:
        line = np.zeros((_CHIP, 20), dtype=bool)
        line[6:9] = True
        entries.append(
            Entry("reference", drawing.dashed(drawing.grey_rgb(np.full(line.shape, 225.0)), line))
        )
    return entries


def _sign_entries(threshold: float) -> list[Entry]:
    """What the looks mean that are not an annotator's colour."""
    hatched = drawing.grey_rgb(np.where(drawing.hatching(_CHIP, 2 * _CHIP, 7), 178.0, 220.0))
    words = f"hatched: undisputed, fewer than {threshold:.0%} of pairs of annotators would differ"
    return [Entry(words, hatched)]


def _solid_chip(colour: Colour) -> Picture:
    return np.full((_CHIP, _CHIP, 3), colour, dtype=np.uint8)


# -------------------------------------------------------------------------------------- spots


def spot_words(explanation: Explanation, spot: Spot) -> str:
    """What is decided at a spot, and by whom, as far as that is true."""
    people = len(explanation.annotators)
    said = f"{spot.votes:.1f} of {people} would say {explanation.classes[spot.decision]}"
    if explanation.trust.kind != "image":
        return said
    place = (0, spot.y, spot.x)
    name = shorten(explanation.annotators[int(explanation.leader[place])])
    weight = float(explanation.who[0, :, spot.y, spot.x].max())
    if bool(explanation.decides[place]):
        return f"{name} decides, with a weight of {weight:.0%} · {said}"
    if weight >= 0.5:
        return f"{name} is outvoted, with a weight of {weight:.0%} · {said}"
    return f"shared: {name} has the largest weight, {weight:.0%} · {said}"


def _card(
    sheet: Sheet,
    explanation: Explanation,
    spot: Spot,
    patches: Mapping[Example, SourcePatch],
    width: int,
) -> Image.Image:
    """A spot's number and words, and the examples for and against."""
    names, classes = explanation.annotators, explanation.classes
    disc = sheet.number(spot.number)
    head = sheet.text([spot_words(explanation, spot)], width, indent=sheet.disc + sheet.frame)
    head.paste(disc, (0, 0), disc)
    reason = f"{shorten(names[spot.annotator])} · prototype {spot.kernel}, {spot.share:.0%}"
    columns = [
        (f"FOR: {reason}", spot.annotator, spot.kernel, example_for(explanation, spot)),
    ]
    if spot.dissent == spot.decision:
        against = sheet.text(["AGAINST: nobody is expected to dissent"], sheet.cell)
    else:
        who = f"{shorten(names[spot.dissenter])} would say {shorten(classes[spot.dissent])}"
        pixel = example_against(explanation, spot)
        columns.append((f"AGAINST: {who}, as here", spot.dissenter, spot.dissent_kernel, pixel))
        against = None
    boxes = [
        _example(sheet, explanation, words, (n, k), pixel, patches, (width - sheet.gap) // 2)
        for words, n, k, pixel in columns
    ]
    return sheet.stacked([head, sheet.side_by_side([*boxes, *([against] if against else [])])])


def _example(
    sheet: Sheet,
    explanation: Explanation,
    words: str,
    prototype: tuple[int, int],
    example: Example | None,
    patches: Mapping[Example, SourcePatch],
    width: int,
) -> Image.Image:
    """A training pixel in a frame of its prototype's shade, beside where it is from."""
    annotator, kernel = prototype
    colour = annotator_palette(len(explanation.annotators))[annotator]
    edge = kernel_shade(colour, kernel, explanation.kernels)
    patch = None if example is None else patches.get(example)
    box = sheet.source(patch, edge, sheet.patch)
    lines = [words, "no training pixel with this label is like it"]
    if example is not None:
        lines = [
            words,
            f"labelled {example.label} in {shorten(example.sample_id)} at y {example.y}, "
            f"x {example.x}",
            *([] if patch else ["(image not at hand)"]),
        ]
    text = sheet.text(lines, width - box.width - sheet.nearby)
    return sheet.side_by_side([box, text], sheet.nearby)


def _with_numbers(picture: Picture, view: View, spots: Sequence[Spot], sheet: Sheet) -> Picture:
    """Put the numbers of the spots on their places, the lowest on top."""
    canvas = Image.fromarray(picture)
    for spot in reversed(spots):
        y, x = (np.array([spot.y, spot.x]) + 0.5) * view.zoom
        disc = sheet.number(spot.number)
        canvas.paste(disc, (round(x - disc.width / 2), round(y - disc.height / 2)), disc)
    return np.asarray(canvas)
