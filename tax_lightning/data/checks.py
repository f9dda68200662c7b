"""Cheap checks of samples that are decoded anyway: what would spoil a training without a word."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.samples import RawSample
from tax_lightning.findings import (
    Finding,
    constant_images,
    nothing_drawn,
    pair_confusion,
    polarity,
    unused_range,
)


class QuickChecks:
    """Looks at samples one by one, in any order and from any thread, and keeps counts alone.

    Found are object and background swapped, by all or by one; masks that are all empty; images
    whose pixels are all equal; and a range of intensities of which most is unused.

    Args:
        annotators: Names of the annotators, N.
        background: Name of the first class.

    Example:
        >>> checks = QuickChecks(["Ann"], "background")
        >>> flat, empty = np.full((4, 4, 1), 255, np.uint8), np.zeros((1, 4, 4), np.uint8)
        >>> checks.add(RawSample("a", flat, empty, np.array([True])))
        >>> [sentence.partition(".")[0] for sentence in checks.sentences()]
        ['Nobody drew anything', '1 of 1 images show nothing']
    """

    def __init__(self, annotators: Sequence[str], background: str) -> None:
        people = len(annotators)
        self.annotators, self.background = tuple(annotators), background
        self._lock = Lock()
        self._images = 0
        self._constant: list[str] = []
        self._range = (np.inf, -np.inf)
        self._masks = np.zeros((3, people), np.int64)  # labelled, drawn, inside out
        self._dice = np.zeros((3, people, people))  # sums: plain, inverted, cases

    def add(self, sample: RawSample) -> None:
        """Take one sample into account; about as much work as decoding it.

        Args:
            sample: A sample as a source gives it, masks ``[N, H, W]``.
        """
        masks = np.where(sample.present[:, None, None], sample.masks, IGNORE_INDEX)
        known = masks != IGNORE_INDEX
        two = np.where(known, masks > 0, IGNORE_INDEX).astype(np.uint8)
        object_ = two == 1
        drawn = object_.any((1, 2))
        rim = np.ones(masks.shape[1:], np.bool_)
        rim[1:-1, 1:-1] = False
        covers = object_.sum((1, 2)) > known.sum((1, 2)) / 2
        inside_out = covers & (object_[:, rim].mean(1) > 0.5)
        dice = _foreground_dice(two, drawn)
        low, high, constant = _intensities(sample.image)
        with self._lock:
            self._images += 1
            self._constant += [sample.id] if constant else []
            self._range = (min(self._range[0], low), max(self._range[1], high))
            self._masks += np.stack([known.any((1, 2)), drawn, inside_out])
            self._dice += dice

    def findings(self) -> list[Finding]:
        """What was found, the worst first."""
        labelled, drawn, inside_out = self._masks
        cases = self._dice[2].copy()
        np.fill_diagonal(cases, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            # An annotator's mean over the others, each of whom counts once.
            pairs = np.where(cases > 0, self._dice[:2] / cases, np.nan)
            plain, inverted = np.nansum(pairs, 2) / (cases > 0).sum(1)
        return [
            *nothing_drawn(self.annotators, labelled, drawn, self.background),
            *polarity(self.annotators, self.background, drawn, inside_out, plain, inverted),
            *constant_images(self._constant, self._images),
            *unused_range(*self._range),
        ]

    def sentences(self) -> list[str]:
        """The findings in words."""
        return [finding.said for finding in self.findings()]


def _intensities(image: npt.NDArray[Any]) -> tuple[float, float, bool]:
    """Darkest and brightest value, as shares of white; and whether each channel is one value."""
    white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    low, high = (end(image, axis=(0, 1)) for end in (np.min, np.max))
    return float(low.min() / white), float(high.max() / white), bool((low == high).all())


def _foreground_dice(
    masks: npt.NDArray[np.uint8], drawn: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Of each two masks with foreground: Dice, Dice with the first inverted, and 1 ``[3, N, N]``.

    Args:
        masks: 1 for any foreground, 255 where not labelled ``[N, H, W]``.
        drawn: Which have foreground ``[N]``.
    """
    pairs = pair_confusion(masks, 2).astype(np.float64)
    neither, second, first, both = (pairs[:, i, :, j] for i in (0, 1) for j in (0, 1))
    plain = 2 * both / np.maximum(2 * both + first + second, 1)
    inverted = 2 * second / np.maximum(2 * second + neither + both, 1)
    compared = (pairs.sum((1, 3)) > 0) & drawn[:, None] & drawn[None, :]
    return np.where(compared, np.stack([plain, inverted, np.ones_like(plain)]), 0.0)
