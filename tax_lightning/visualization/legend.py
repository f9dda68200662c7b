"""The entries of a panel's legends: what its colours, lines and looks stand for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Explanation
from tax_lightning.visualization.cast import Cast
from tax_lightning.visualization.lettering import shorten
from tax_lightning.visualization.painting import blend, dashed, hatching, rgb, shown_range
from tax_lightning.visualization.palette import (
    Colour,
    Picture,
    annotator_palette,
    class_palette,
    uncertainty_colours,
)

_CHIP = 14


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: a small picture and what it stands for."""

    text: str
    chip: Picture | None = None


def legend_entries(cast: Cast) -> tuple[LegendEntry, ...]:
    """The legend of a panel: every annotator that it names, with colour and part.

    Args:
        cast: who is named.

    Returns:
        A title, then one entry a name with its share of the decided pixels.
    """
    decided = not np.isnan(cast.parts).any()
    title = "Annotators, with their share of what is not hatched:" if decided else "Annotators:"
    entries = (
        LegendEntry(shorten(name) + (f" {part:.0%}" if decided else ""), _solid_chip(colour))
        for name, colour, part in zip(cast.names, cast.colours, cast.parts, strict=True)
    )
    return LegendEntry(title), *entries


def image_notes(image: NDArray[Any]) -> list[LegendEntry]:
    """The image's size, and what of it is shown where that is not everything."""
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    texts = [f"{width} x {height} pixels"]
    if channels not in (1, 3):
        texts.append(f"channel 1 of {channels}")
    if image.dtype != np.uint8:
        texts.append("black {:.5g}, white {:.5g}".format(*shown_range(image)))
    return [LegendEntry(text) for text in texts]


def scale_entries() -> tuple[LegendEntry, ...]:
    """The scale bar of the uncertainty, its ends named."""
    bar = uncertainty_colours(np.linspace(0, 1, 6 * _CHIP)[None].repeat(_CHIP, axis=0))
    return (
        LegendEntry("0 sure"),
        LegendEntry("1 even odds", bar),
        LegendEntry("entropy of the classes' probabilities, over its maximum"),
    )


def mask_notes(explanation: Explanation, masks: NDArray[np.integer] | None) -> list[LegendEntry]:
    """Which annotators have no contour, and why; a predicted contour needs no such note."""
    if masks is None:
        return [LegendEntry("as the model expects each to draw")]
    pixels = masks.reshape(len(masks), -1)
    absent = (pixels == IGNORE_INDEX).all(axis=1)
    empty = ~absent & ((pixels == 0) | (pixels == IGNORE_INDEX)).all(axis=1)
    notes = []
    for title, chosen in (("did not label: ", absent), ("drew nothing: ", empty)):
        names = list(itertools.compress(explanation.annotators, chosen))
        if names:
            notes.append(LegendEntry(title + _some(names)))
    return notes or [LegendEntry("as each of them drew")]


def class_entries(
    classes: Sequence[str],
    decision: NDArray[np.integer],
    reference: NDArray[np.integer] | None,
) -> list[LegendEntry]:
    """The classes that occur in the result or the reference, and the reference's line."""
    maps = [decision] if reference is None else [decision, reference]
    found = sum(np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1) for labels in maps)
    present = np.flatnonzero(found)
    colours = class_palette(len(classes))
    entries = [
        LegendEntry(shorten(classes[index]), _solid_chip(colours[index]))
        for index in present.tolist()
        if index != IGNORE_INDEX
    ]
    if reference is not None:
        entries.append(LegendEntry("reference", _dash_chip()))
    return entries


def sign_entries() -> tuple[LegendEntry, ...]:
    """What the looks mean that are not an annotator's colour."""
    strength = np.linspace(1, 0, 2 * _CHIP)[None, :, None].repeat(_CHIP, axis=0)
    grey = rgb(np.full((_CHIP, 2 * _CHIP), 120.0))
    fading = blend(grey, annotator_palette(1)[0], strength)
    hatched = rgb(np.where(hatching(_CHIP, 2 * _CHIP, 7), 178.0, 220.0))
    return (
        LegendEntry("fading to grey: several annotators share the decision", fading),
        LegendEntry("hatched: all would say the same, nobody in particular decides", hatched),
    )


def _some(names: Sequence[str], limit: int = 3) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shorten(name) for name in names[:limit]) + more


def _solid_chip(colour: Colour) -> Picture:
    return np.full((_CHIP, _CHIP, 3), colour, dtype=np.uint8)


def _dash_chip() -> Picture:
    line = np.zeros((_CHIP, 20), dtype=bool)
    line[6:9] = True
    return dashed(rgb(np.full(line.shape, 225.0)), line)
