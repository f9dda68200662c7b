"""The annotators that a picture names: all of up to twelve, else the leading ones and the others.

More colours than twelve cannot be told apart, the less so with colour-blindness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.maps import as_array
from tax_lightning.visualization.palette import Colour, annotator_palette

MOST = 12
"""Colours that can be told apart, and so the most entries of a legend of annotators."""


@dataclass(frozen=True)
class Cast:
    """Who is named in a picture, in which colours.

    Args:
        names: of those who are named; where some are not, the last entry counts them.
        colours: one a name.
        slots: ``[N]``, for every annotator the position of the entry that stands for it.
        parts: share of the decided pixels of which each entry has the largest weight; they sum to
            1, or are all NaN where no pixel is decided.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    slots: NDArray[np.intp]
    parts: NDArray[np.floating]

    @property
    def named(self) -> int:
        """How many entries stand for one annotator each."""
        return len(self.names) - (len(self.names) < len(self.slots))


def cast_of(explanation: Explanation) -> Cast:
    """Who is named in the pictures of an image.

    Up to twelve annotators have the colours of their positions, the same in all pictures. Of more,
    the eleven who decide most pixels of the image are named. Each of them takes the colour of its
    position, counted round the eleven, if nobody who decides more has it; so whoever decides most
    keeps the colour from picture to picture.

    Args:
        explanation: the explanation of one image.
    """
    annotators = explanation.annotators
    decided = ~as_array(explanation.unanimous[0])
    pixels = np.bincount(as_array(explanation.leader[0])[decided], minlength=len(annotators))
    parts = pixels / (pixels.sum() or np.nan)
    colours = annotator_palette(min(len(annotators), MOST))
    if len(annotators) <= MOST:
        return Cast(annotators, colours, np.arange(len(annotators)), parts)
    leading = np.argsort(-pixels, kind="stable")[: MOST - 1]
    slots = np.full(len(annotators), MOST - 1)
    free = list(range(MOST - 1))
    for n in leading:
        slots[n] = min(free, key=lambda place: (place - n) % (MOST - 1))
        free.remove(slots[n])
    by_slot = leading[np.argsort(slots[leading])]
    others = f"{len(annotators) - len(leading)} others"
    return Cast(
        names=(*(annotators[n] for n in by_slot), others),
        colours=colours,
        slots=slots,
        parts=np.append(parts[by_slot], 1 - parts[by_slot].sum()),
    )
