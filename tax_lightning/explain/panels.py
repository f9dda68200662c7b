"""The panel: an explanation as one picture that a person can read, who decides where and why.

Everything here is a pure function from arrays to pixels, drawn with Pillow and NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tax_lightning.explain.callouts import CallOut, SourcePatch, find_callouts
from tax_lightning.explain.explanation import Explanation
from tax_lightning.explain.legend import (
    LegendEntry,
    class_entries,
    legend_entries,
    mask_notes,
    sign_entries,
)
from tax_lightning.explain.maps import as_array, check_single
from tax_lightning.explain.painting import blend, dashed, hatching, outline_of, rgb, seams_between
from tax_lightning.explain.palette import (
    INK,
    PAPER,
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
)
from tax_lightning.explain.sheet import SMALLEST_TILE, Sheet

_LARGEST_TILE = 512
_CARDS_TITLE = "WHY, continued: the training pixel that each numbered prototype was taken from"
_NOBODY = "All annotators would say the same everywhere: nobody in particular decides."


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
    check_single(explanation)
    _check_sizes(explanation, image, masks, reference)
    view = _View(explanation, image, masks, reference)
    callouts = find_callouts(explanation)
    sheet = Sheet(view.scale)
    drawn = "Annotators" if masks is not None else "Annotators, as predicted"
    pixels = f"{image.shape[1]} x {image.shape[0]} pixels"
    decides = "colour: the annotator who decides"
    why = _with_numbers(_why_picture(view), view, callouts, sheet)
    classes = class_entries(explanation.classes, view.decision, view.reference)
    tiles = sheet.side_by_side(
        [
            sheet.tile("Image", view.image, [LegendEntry(pixels)]),
            sheet.tile(drawn, _contour_picture(view), mask_notes(explanation, masks)),
            sheet.tile("Result", _result_picture(view), classes),
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
            sheet.flow(sign_entries(), tiles.width),
        ]
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
        self.scale = max(1.0, width / SMALLEST_TILE)  # of text and lines
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
        values = as_array(array) if isinstance(array, Tensor) else array
        rows, cols = (
            (np.arange(shown) + 0.5) * size // shown
            for shown, size in zip(self.size, self.source_size, strict=True)
        )
        return values[..., rows.astype(int)[:, None], cols.astype(int)]


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _contour_picture(view: _View) -> Picture:
    """Every annotator's contour; where several coincide their colours take turns along the line."""
    outlines = np.stack([outline_of(mask, view.line) for mask in view.masks])
    rank = outlines.cumsum(axis=0)
    together = rank[-1]
    rows, cols = np.indices(view.size)
    turn = (rows + cols) // 6 % np.maximum(together, 1) + 1
    picture = rgb(0.5 * view.grey + 70)
    colours = annotator_palette(len(view.masks))
    for outline, position, colour in zip(outlines, rank, colours, strict=True):
        picture[outline & (position == turn)] = colour
    return picture


def _result_picture(view: _View) -> Picture:
    """The resulting classes over the grey image, the reference as a dashed line."""
    picture = rgb(view.grey)
    colours = class_palette(len(view.explanation.classes))
    for index, colour in enumerate(colours[1:], start=1):
        inside = view.decision == index
        picture[inside] = blend(picture[inside], colour, 0.55)
    outline = outline_of(view.decision, view.line)
    picture[outline] = np.asarray(colours, dtype=np.uint8)[view.decision[outline].astype(int)]
    if view.reference is not None:
        picture = dashed(picture, outline_of(view.reference, view.line))
    return picture


def _who_picture(view: _View) -> Picture:
    """The leader's colour, fading to the grey image as the others weigh more."""
    colours = np.asarray(annotator_palette(len(view.explanation.annotators)))
    picture = blend(rgb(view.grey), colours[view.leader], view.certainty[..., None])
    return _with_undecided(picture, view)


def _why_picture(view: _View) -> Picture:
    """Shades of the leader's colour for the deciding kernels, with seams between them."""
    annotators = annotator_palette(len(view.explanation.annotators))
    kernels = max(view.explanation.kernels, int(view.kernel.max()) + 1)
    shades = np.asarray(
        [[kernel_shade(colour, k, kernels) for k in range(kernels)] for colour in annotators],
        dtype=np.uint8,
    )
    picture = shades[view.leader, view.kernel]
    prototype = np.where(view.undecided, -1, view.leader * kernels + view.kernel)
    picture[seams_between(prototype)] = (0, 0, 0)
    return _with_undecided(picture, view)


def _with_undecided(picture: Picture, view: _View) -> Picture:
    """Wash out and hatch the pixels where nobody in particular decides."""
    washed = rgb(np.where(hatching(*view.size, round(7 * view.scale)), 178, 0.25 * view.grey + 176))
    picture[view.undecided] = washed[view.undecided]
    return picture


# ------------------------------------------------------------------------ numbers on the last tile


def _with_numbers(
    picture: Picture, view: _View, callouts: Sequence[CallOut], sheet: Sheet
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
            draw.line([(cx, cy), (x, y)], fill=PAPER, width=sheet.frame)
            draw.line([(cx, cy), (x, y)], fill=INK, width=sheet.frame // 2)
            dot = 0.75 * sheet.frame
            draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=INK, outline=PAPER)
        disc = sheet.number(callout.number)
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
