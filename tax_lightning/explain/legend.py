"""The entries of a panel's legends: what its colours, lines and looks stand for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tax_lightning.data.labels import IGNORE_INDEX
from tax_lightning.explain.explanation import Explanation
from tax_lightning.explain.lettering import shorten
from tax_lightning.explain.maps import as_array
from tax_lightning.explain.painting import blend, dashed, hatching, rgb
from tax_lightning.explain.palette import Colour, Picture, annotator_palette, class_palette

_CHIP = 14


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: a small picture and what it stands for."""

    text: str
    chip: Picture | None = None


def legend_entries(explanation: Explanation) -> tuple[LegendEntry, ...]:
    """The legend at the foot of a panel: every annotator with colour and part.

    Args:
        explanation: the explanation of one image.

    Returns:
        A title, then one entry an annotator with the share of the decided pixels of which the
        annotator has the largest weight.
    """
    colours = annotator_palette(len(explanation.annotators))
    decided = ~as_array(explanation.undecided[0])
    leads = as_array(explanation.leader[0])[decided]
    entries = []
    for n, (name, colour) in enumerate(zip(explanation.annotators, colours, strict=True)):
        part = f" {(leads == n).mean():.0%}" if decided.any() else ""
        entries.append(LegendEntry(shorten(name) + part, _solid_chip(colour)))
    title = "Annotators, with the share of the decided pixels that each decides:"
    return LegendEntry(title if decided.any() else "Annotators:"), *entries


def mask_notes(explanation: Explanation, masks: NDArray[np.integer] | None) -> list[LegendEntry]:
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


def class_entries(
    classes: Sequence[str],
    decision: NDArray[np.integer],
    reference: NDArray[np.integer] | None,
) -> list[LegendEntry]:
    """The classes that occur in the result or the reference, and the reference's line."""
    maps = [decision] if reference is None else [decision, reference]
    present = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    colours = class_palette(len(classes))
    entries = [
        LegendEntry(shorten(classes[index]), _solid_chip(colours[index]))
        for index in present.astype(int)
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
