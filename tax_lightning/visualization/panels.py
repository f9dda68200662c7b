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

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.callouts import (
    CallOut,
    SourcePatch,
    callout_caption,
    find_callouts,
)
from tax_lightning.visualization.legend import (
    LegendEntry,
    class_entries,
    image_notes,
    legend_entries,
    mask_notes,
    scale_entries,
    sign_entries,
)
from tax_lightning.visualization.maps import check_single
from tax_lightning.visualization.palette import INK, PAPER, Picture, kernel_shade
from tax_lightning.visualization.sheet import Sheet
from tax_lightning.visualization.tally import Tally, caveat
from tax_lightning.visualization.tiles import (
    View,
    contour_picture,
    result_picture,
    uncertainty_picture,
    who_picture,
    why_picture,
)

_COLUMNS = 3
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
    prototype was taken from, its pixel marked. Of more than twelve annotators those who decide most
    of the image are named, see :func:`~tax_lightning.visualization.cast.cast_of`.

    Args:
        explanation: the explanation of one image.
        image: ``[H, W]`` or ``[H, W, ch]``, grey, RGB or of more channels, see
            :func:`~tax_lightning.visualization.painting.as_picture`.
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
    check_single(explanation)
    _check_sizes(explanation, image, masks, reference)
    view = View(explanation, image, masks, reference)
    callouts = find_callouts(explanation)
    sheet = Sheet(view.scale)
    drawn = "Annotators" if masks is not None else "Annotators, as predicted"
    classes = class_entries(explanation.classes, view.decision, view.reference)
    why = _with_numbers(why_picture(view), view, callouts, sheet)
    decides = [LegendEntry("colour: the annotator who decides, named below")]
    shade = [LegendEntry("shade: the prototype that decides; numbers lead to the cards below")]
    tiles = sheet.grid(
        [
            sheet.tile("Image", view.image, image_notes(image)),
            sheet.tile(drawn, contour_picture(view), mask_notes(explanation, masks)),
            sheet.tile("Result", result_picture(view), classes),
            sheet.tile("WHO decides", who_picture(view), decides),
            sheet.tile("WHY", why, shade),
            sheet.tile("UNCERTAINTY of the result", uncertainty_picture(view), scale_entries()),
        ],
        _COLUMNS,
    )
    cards = [_card(sheet, view, explanation, callout, patches or {}) for callout in callouts]
    return sheet.framed(
        [
            sheet.heading(explanation.ids[0], _TAGLINE, tiles.width),
            tiles,
            sheet.flow(legend_entries(view.cast), tiles.width),
            sheet.flow(sign_entries(), tiles.width),
            *(sheet.flow([LegendEntry(words)], tiles.width) for words in _caveats(explanation)),
            sheet.line(_CARDS_TITLE if cards else _NOBODY, sheet.title, tiles.width),
            *([sheet.grid(cards, _COLUMNS)] if cards else []),
        ]
    )


def _caveats(explanation: Explanation) -> list[str]:
    words = caveat(Tally.of(explanation).largest_weight, len(explanation.annotators))
    return [] if words is None else [words]


def _card(
    sheet: Sheet,
    view: View,
    explanation: Explanation,
    callout: CallOut,
    patches: Mapping[tuple[int, int], SourcePatch],
) -> Image.Image:
    """A call-out's training patch, number and caption."""
    colour = view.cast.colours[view.cast.slots[callout.annotator]]
    patch = patches.get((callout.annotator, callout.kernel))
    edge = kernel_shade(colour, callout.kernel, explanation.kernels)
    box = sheet.source(patch, edge, sheet.patch)
    caption = callout_caption(explanation, callout, patch is not None)
    width = sheet.cell - box.width - sheet.nearby
    text = sheet.text(caption, width, indent=sheet.disc + sheet.frame)
    disc = sheet.number(callout.number)
    text.paste(disc, (0, 0), disc)
    return sheet.side_by_side([box, text], sheet.nearby)


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


def _with_numbers(
    picture: Picture, view: View, callouts: Sequence[CallOut], sheet: Sheet
) -> Picture:
    """Put the call-outs' numbers on the picture, beside regions too thin to hold them."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    taken: list[tuple[float, float]] = []
    for callout in callouts:
        y, x = (np.array([callout.y, callout.x]) + 0.5) * view.zoom
        region = (view.leader == callout.annotator) & (view.kernel == callout.kernel)
        cy, cx = _free_place(y, x, region & ~view.unanimous, ~view.unanimous, taken, sheet.disc / 2)
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

    def cost(place: tuple[float, float]) -> float:
        cy, cx = place
        window = _around(cy, radius, height), _around(cx, radius, width)
        rows, cols = np.ogrid[window]
        disc = (rows - cy) ** 2 + (cols - cx) ** 2 <= radius**2
        away = place != (y, x)
        hidden = decided[window] if away else decided[window] & ~own[window]
        covered = hidden[disc].mean() if disc.any() else 0.0
        clash = sum(math.hypot(cy - ty, cx - tx) < 2 * radius for ty, tx in taken)
        outside = not (radius <= cy <= height - radius and radius <= cx <= width - radius)
        return float(covered + 0.2 * away + 4 * clash + 2 * outside)

    places = [(y, x)]
    for distance in (2.2 * radius, 3.4 * radius):
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        places += [(y + distance * np.sin(a), x + distance * np.cos(a)) for a in angles]
    return min(places, key=cost)


def _around(centre: float, radius: float, length: int) -> slice:
    """The pixels of an axis within a disc."""
    return slice(max(0, math.floor(centre - radius)), min(length, math.ceil(centre + radius) + 1))
