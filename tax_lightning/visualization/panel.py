"""The panel: an explanation as one picture that a person can read, who decides where and why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Explanation
from tax_lightning.visualization import drawing
from tax_lightning.visualization.annotations import CallOut, SourcePatch, find_callouts
from tax_lightning.visualization.palette import (
    Colour,
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.sheet import SMALLEST_TILE, Entry, Sheet, shorten
from tax_lightning.visualization.summary import Summary

_LARGEST_TILE = 512
_COLUMNS = 3
_CHIP = 14
_TAGLINE = "Which annotator's way of labelling decides each pixel, and the training pixel behind it"
_CARDS_TITLE = "WHY, continued: the training pixel that each numbered prototype was taken from"
_NOBODY = "All annotators would say the same everywhere: nobody in particular decides."


def render_panel(
    explanation: Explanation,
    image: NDArray[Any],
    masks: NDArray[np.integer] | None = None,
    reference: NDArray[np.integer] | None = None,
    patches: Mapping[tuple[int, int], SourcePatch] | None = None,
) -> Picture:
    """Draw the explanation of one image.

    Six tiles: the image, the annotators' contours and the resulting segmentation; below them who
    decides, why, and how unsure the result is. Under the tiles stand the annotators' colours.
    Numbers in the tile "why" lead to the cards at the foot: the training patch that the deciding
    prototype was taken from, its pixel marked.

    Args:
        explanation: the explanation of one image.
        image: ``[H, W]`` or ``[H, W, ch]``, grey, RGB or of more channels, see
            :func:`~tax_lightning.visualization.drawing.as_picture`.
        masks: ``[N, H, W]`` class ids as the annotators drew them, 255 where not labelled; without
            them the contours are those that the model expects of each annotator.
        reference: ``[H, W]`` class ids of the reference, 255 where unknown.
        patches: the training patches by annotator index and kernel; a prototype that is not among
            them is named without a picture.

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
    callouts = find_callouts(explanation)
    sheet = Sheet(view.scale)
    drawn = "Annotators" if masks is not None else "Annotators, as predicted"
    why = _with_numbers(view.why(), view, callouts, sheet)
    decides = [Entry("colour: the annotator who decides, named below")]
    shade = [Entry("shade: the prototype that decides; numbers lead to the cards below")]
    tiles = sheet.grid(
        [
            sheet.tile("Image", view.image, image_notes(image)),
            sheet.tile(drawn, view.contours(), mask_notes(explanation.annotators, masks)),
            sheet.tile("Result", view.result(), _class_entries(view)),
            sheet.tile("WHO decides", view.who(), decides),
            sheet.tile("WHY", why, shade),
            sheet.tile("UNCERTAINTY of the result", view.uncertainty(), scale_entries()),
        ],
        _COLUMNS,
    )
    cards = [_card(sheet, explanation, callout, patches or {}) for callout in callouts]
    return sheet.framed(
        [
            sheet.heading(explanation.ids[0], _TAGLINE, tiles.width),
            tiles,
            sheet.flow(annotator_entries(explanation.annotators, summary), tiles.width),
            sheet.flow(_sign_entries(), tiles.width),
            *([sheet.flow([Entry(summary.caveat)], tiles.width)] if summary.caveat else []),
            sheet.line(_CARDS_TITLE if cards else _NOBODY, sheet.title, tiles.width),
            *([sheet.grid(cards, _COLUMNS)] if cards else []),
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
        self.leader = drawing.as_array(explanation.leader[0])
        self.kernel = drawing.as_array(explanation.leader_kernel[0])
        self.certainty = drawing.as_array(explanation.certainty[0])
        self.entropy = drawing.as_array(explanation.uncertainty[0])
        self.unanimous = drawing.as_array(explanation.unanimous[0])

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
        """The leader's colour, fading to the grey image as the others weigh more."""
        colours = np.asarray(self.colours)[self.leader]
        picture = drawing.blend(drawing.grey_rgb(self.grey), colours, self.certainty[..., None])
        return self._with_unanimous(picture)

    def why(self) -> Picture:
        """Shades of the leader's colour for the deciding kernels, with seams between them."""
        kernels = max(self.kernels, int(self.kernel.max()) + 1)
        shades = [[kernel_shade(c, k, kernels) for k in range(kernels)] for c in self.colours]
        picture = np.asarray(shades, dtype=np.uint8)[self.leader, self.kernel]
        prototype = np.where(self.unanimous, -1, self.leader * kernels + self.kernel)
        picture[drawing.seams(prototype)] = (0, 0, 0)
        return self._with_unanimous(picture)

    def uncertainty(self) -> Picture:
        """How unsure the result is, in the colours of the scale bar."""
        return value_colours(self.entropy)

    def _with_unanimous(self, picture: Picture) -> Picture:
        """Wash out and hatch the pixels where nobody in particular decides."""
        hatched = drawing.hatching(*self.size, round(7 * self.scale))
        washed = drawing.grey_rgb(np.where(hatched, 178, 0.25 * self.grey + 176))
        picture[self.unanimous] = washed[self.unanimous]
        return picture


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


# ---------------------------------------------------------------------------------------- legends


def annotator_entries(annotators: Sequence[str], summary: Summary) -> list[Entry]:
    """A title, then every annotator with colour and share of the decided pixels, if any."""
    decided = summary.decided > 0
    title = "Annotators, with their share of what is not hatched:" if decided else "Annotators:"
    people = zip(annotators, annotator_palette(len(annotators)), summary.usage, strict=True)
    return [Entry(title)] + [
        Entry(shorten(name) + (f" {part:.0%}" if decided else ""), _solid_chip(colour))
        for name, colour, part in people
    ]


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


def scale_entries() -> list[Entry]:
    """The scale bar of the uncertainty, its ends named."""
    bar = value_colours(np.linspace(0, 1, 6 * _CHIP)[None].repeat(_CHIP, axis=0))
    measure = Entry("entropy of the classes' probabilities, over its maximum")
    return [Entry("0 sure"), Entry("1 even odds", bar), measure]


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


def _sign_entries() -> list[Entry]:
    """What the looks mean that are not an annotator's colour."""
    strength = np.linspace(1, 0, 2 * _CHIP)[None, :, None].repeat(_CHIP, axis=0)
    fading = drawing.blend(
        drawing.grey_rgb(np.full((_CHIP, 2 * _CHIP), 120.0)), annotator_palette(1)[0], strength
    )
    hatched = drawing.grey_rgb(np.where(drawing.hatching(_CHIP, 2 * _CHIP, 7), 178.0, 220.0))
    return [
        Entry("fading to grey: several annotators share the decision", fading),
        Entry("hatched: all would say the same, nobody in particular decides", hatched),
    ]


def _solid_chip(colour: Colour) -> Picture:
    return np.full((_CHIP, _CHIP, 3), colour, dtype=np.uint8)


# -------------------------------------------------------------------------------------- call-outs


def callout_caption(explanation: Explanation, callout: CallOut, has_patch: bool) -> tuple[str, ...]:
    """The annotator and prototype of a call-out, where it is from, and its share, line by line."""
    source = explanation.sources[callout.annotator][callout.kernel]
    origin = ["not yet projected"]
    if source.projected:
        origin = [
            f"from {shorten(source.sample_id)}",
            f"at y {source.y}, x {source.x}",
            f"labelled: {source.label}",
            *([] if has_patch else ["(image not found)"]),
        ]
    name = shorten(explanation.annotators[callout.annotator])
    title = f"{name} · prototype {callout.kernel}"
    return title, *origin, f"{callout.share:.0%} of the decision"


def _card(
    sheet: Sheet,
    explanation: Explanation,
    callout: CallOut,
    patches: Mapping[tuple[int, int], SourcePatch],
) -> Image.Image:
    """A call-out's training patch, number and caption."""
    colour = annotator_palette(len(explanation.annotators))[callout.annotator]
    patch = patches.get((callout.annotator, callout.kernel))
    edge = kernel_shade(colour, callout.kernel, explanation.kernels)
    box = sheet.source(patch, edge, sheet.patch)
    caption = callout_caption(explanation, callout, patch is not None)
    width = sheet.cell - box.width - sheet.nearby
    text = sheet.text(caption, width, indent=sheet.disc + sheet.frame)
    disc = sheet.number(callout.number)
    text.paste(disc, (0, 0), disc)
    return sheet.side_by_side([box, text], sheet.nearby)


def _with_numbers(
    picture: Picture, view: View, callouts: Sequence[CallOut], sheet: Sheet
) -> Picture:
    """Put the call-outs' numbers on their spots, the lowest on top."""
    canvas = Image.fromarray(picture)
    for callout in reversed(callouts):
        y, x = (np.array([callout.y, callout.x]) + 0.5) * view.zoom
        disc = sheet.number(callout.number)
        canvas.paste(disc, (round(x - disc.width / 2), round(y - disc.height / 2)), disc)
    return np.asarray(canvas)
