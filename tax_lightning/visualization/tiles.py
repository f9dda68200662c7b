"""The pictures in a panel: an image, its contours, the result, who, why, and how sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.cast import cast_of
from tax_lightning.visualization.maps import as_array
from tax_lightning.visualization.painting import (
    as_picture,
    blend,
    dashed,
    hatching,
    outlines_of,
    rgb,
    seams_between,
    taking_turns,
)
from tax_lightning.visualization.palette import (
    Picture,
    class_palette,
    kernel_shade,
    uncertainty_colours,
)

SMALLEST_TILE = 256
"""The least side of a tile in pixels; text and lines are sized for it."""

_LARGEST_TILE = 512


class View:
    """The maps of one image at the size at which they are shown, one array each.

    Args:
        explanation: of one image.
        image: ``[H, W, ...]``, see :func:`~tax_lightning.visualization.painting.as_picture`.
        masks: ``[N, H, W]`` as drawn; by default as the model expects each to draw.
        reference: ``[H, W]``.
    """

    def __init__(
        self,
        explanation: Explanation,
        image: NDArray[Any],
        masks: NDArray[np.integer] | None,
        reference: NDArray[np.integer] | None,
    ) -> None:
        self.cast = cast_of(explanation)
        self.classes, self.kernels = explanation.classes, explanation.kernels
        source_size = image.shape[:2]
        self.size = height, width = _display_size(*source_size)
        self.zoom = np.divide(self.size, source_size)
        self.scale = max(1.0, width / SMALLEST_TILE)  # of text and lines
        self.line = round(2 * self.scale)
        rows, columns = (
            ((np.arange(shown) + 0.5) * size // shown).astype(int)
            for shown, size in zip(self.size, source_size, strict=True)
        )
        place: Any = (..., rows[:, None], columns)
        picture = Image.fromarray(as_picture(image))
        self.image = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
        self.grey = np.asarray(Image.fromarray(self.image).convert("L"), dtype=np.float32)
        self.reference = None if reference is None else reference[place].astype(np.uint8)
        drawn = None if masks is None else masks[place]
        if max(self.zoom) < 1:  # fewer pixels to work on
            index = torch.from_numpy(rows), torch.from_numpy(columns)
            explanation, place = explanation.sampled(*index), ...
        if drawn is None:
            drawn = as_array(explanation.annotator_decisions[0])[place]
        self.masks = drawn.astype(np.uint8)
        self.decision = as_array(explanation.decision[0])[place].astype(np.uint8)
        self.leader = as_array(explanation.leader[0])[place]
        self.kernel = as_array(explanation.leader_kernel[0])[place]
        self.certainty = as_array(explanation.certainty[0])[place]
        self.uncertainty = as_array(explanation.uncertainty[0])[place]
        self.unanimous = as_array(explanation.unanimous[0])[place]


def contour_picture(view: View) -> Picture:
    """Every annotator's contour; where several coincide their colours take turns along the line.

    Those who are not named have thin lines in one colour, and only where there is no other line.
    """
    slots, colours = view.cast.slots, np.asarray(view.cast.colours, dtype=np.uint8)
    named = slots < view.cast.named
    line, whose = taking_turns(outlines_of(view.masks[named], view.line))
    picture = rgb(0.5 * view.grey + 70)
    if not named.all():
        picture[outlines_of(view.masks[~named], 1).any(axis=0)] = colours[-1]
    picture[line] = colours[slots[named]][whose[line]]
    return picture


def result_picture(view: View) -> Picture:
    """The resulting classes over the grey image, the reference as a dashed line."""
    picture = rgb(view.grey)
    colours = np.asarray(class_palette(len(view.classes)), dtype=np.uint8)
    inside = view.decision > 0
    picture[inside] = blend(picture[inside], colours[view.decision[inside]], 0.55)
    outline = outlines_of(view.decision, view.line)
    picture[outline] = colours[view.decision[outline]]
    if view.reference is not None:
        picture = dashed(picture, outlines_of(view.reference, view.line))
    return picture


def who_picture(view: View) -> Picture:
    """The leader's colour, fading to the grey image as the others weigh more."""
    colours = np.asarray(view.cast.colours)[view.cast.slots]
    picture = blend(rgb(view.grey), colours[view.leader], view.certainty[..., None])
    return _with_unanimous(picture, view)


def why_picture(view: View) -> Picture:
    """Shades of the leader's colour for the deciding kernels, with seams between them."""
    kernels = max(view.kernels, int(view.kernel.max()) + 1)
    shades = np.asarray(
        [
            [kernel_shade(colour, k, kernels) for k in range(kernels)]
            for colour in view.cast.colours
        ],
        dtype=np.uint8,
    )
    picture = shades[view.cast.slots[view.leader], view.kernel]
    prototype = np.where(view.unanimous, -1, view.leader * kernels + view.kernel)
    picture[seams_between(prototype)] = (0, 0, 0)
    return _with_unanimous(picture, view)


def uncertainty_picture(view: View) -> Picture:
    """How unsure the result is, in the colours of the scale bar."""
    return uncertainty_colours(view.uncertainty)


def _with_unanimous(picture: Picture, view: View) -> Picture:
    """Wash out and hatch the pixels where nobody in particular decides."""
    washed = rgb(np.where(hatching(*view.size, round(7 * view.scale)), 178, 0.25 * view.grey + 176))
    picture[view.unanimous] = washed[view.unanimous]
    return picture


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))
