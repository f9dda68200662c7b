"""How unlikely a mask is, given the other masks of its image and the habits of its annotator.

What an annotator says of a pixel is predicted from what the others say there: the class with most
of their votes, how many of them gave it, and how far away the outline of what most drew is. How
often each annotator says which class in each such context is counted over all images. So a wide
outline is no surprise of somebody who always draws wide, and a missing object is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX

_DISTANCES = (1.01, 2.01, 3.01, 5.01, 8.01, 13.01)  # pixels from the outline, between bins
_SHARES = (0.67, 0.999)  # of the others' votes, between bins
_BINS = (len(_DISTANCES) + 1) * (len(_SHARES) + 1)
_PRIOR = 200.0  # pixels of what all annotators do that stand beside an annotator's own
_LEAST = 20.0  # nats: differences of less unlikely masks mean nothing
_EASED = 0.75  # of what an image makes all its masks unlikely is no fault of a mask
_FEW = 5  # masks from which on what is usual of an annotator is half known

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]


class Cases(NamedTuple):
    """How often each annotator said each class in each context, in one image: what is not 0.

    ``cell`` numbers the cells of ``[N, K, C]``, ``pixels`` how many.
    """

    cell: npt.NDArray[np.uint32]
    pixels: npt.NDArray[np.uint32]


def majority_of_others(masks: Labels, classes: int) -> tuple[Whole, Array]:
    """What most of the other annotators say of each pixel.

    Args:
        masks: Class ids ``[N, H, W]``, 255 where not labelled.
        classes: Number of classes.

    Returns:
        The class of most votes, the first of those that tie, and its share of their votes; -1 and
        0 where nobody else labelled the pixel. Both ``[N, H, W]``.

    Example:
        >>> masks = np.array([[[0, 1]], [[1, 1]], [[1, 255]]], np.uint8)
        >>> majority_of_others(masks, 2)[0][:, 0].tolist()
        [[1, 1], [0, 1], [0, 1]]
    """
    one_hot = masks[:, None] == np.arange(classes)[:, None, None]
    votes = one_hot.sum(0) - one_hot  # [N, C, H, W]
    total = votes.sum(1)
    most = np.where(total > 0, votes.argmax(1), -1)
    return most, votes.max(1) / np.maximum(total, 1)


def contexts(masks: Labels, classes: int) -> Whole:
    """The context of each pixel for each annotator, 0 to K - 1; -1 where nobody else labelled it.

    Args:
        masks: Class ids ``[N, H, W]``, 255 where not labelled.
        classes: Number of classes.
    """
    most, share = majority_of_others(masks, classes)
    distance = np.stack([_from_outline(plane) for plane in most])
    bins = np.digitize(distance, _DISTANCES) * (len(_SHARES) + 1) + np.digitize(share, _SHARES)
    return np.where(most < 0, -1, most * _BINS + bins)


def _from_outline(labels: Whole) -> npt.NDArray[np.float32]:
    """Distance to where two classes meet: 1 for the pixels that touch; far where there is one."""
    edge = np.zeros(labels.shape, np.bool_)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[one] != labels[other]
        edge[one] |= differ
        edge[other] |= differ
    if not edge.any():
        return np.full(labels.shape, np.inf, np.float32)
    inside = np.ascontiguousarray(~edge, np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance + 1, np.float32)


def count_cases(masks: Labels, classes: int) -> Cases:
    """The cases of one image.

    Args:
        masks: Class ids ``[N, H, W]``, 255 where not labelled.
        classes: Number of classes.
    """
    context = contexts(masks, classes)
    known = (context >= 0) & (masks != IGNORE_INDEX)
    who = known.nonzero()[0]
    cells = (who * (classes * _BINS) + context[known]) * classes + masks[known]
    cell, count = np.unique(cells, return_counts=True)
    return Cases(cell.astype(np.uint32), count.astype(np.uint32))


@dataclass(frozen=True, eq=False)
class Habits:
    """What annotators say in each context.

    Args:
        counts: Pixels of all images ``[N, K, C]``.
    """

    counts: Array

    @classmethod
    def of(cls, images: Sequence[Cases], people: int, classes: int) -> Habits:
        """Those of all images together."""
        total = np.zeros((people, classes * _BINS, classes))
        for cases in images:
            total.reshape(-1)[cases.cell] += cases.pixels
        return cls(total)

    def surprise(self, without: Cases) -> Array:
        """Minus the log probability of each class in each context ``[N, K, C]``, in nats.

        Args:
            without: Cases of the image that is looked at, which must not speak for itself.
        """
        counts = self.counts.copy()
        counts.reshape(-1)[without.cell] -= without.pixels
        everybody = counts.sum(0) + 0.5
        everybody /= everybody.sum(-1, keepdims=True)
        own = counts + _PRIOR * everybody
        return np.asarray(np.log(own.sum(-1, keepdims=True)) - np.log(own))

    def of_masks(self, cases: Cases) -> Array:
        """How unlikely the masks of an image are, in nats ``[N]``; NaN where nothing is compared.

        Args:
            cases: Those of the image.
        """
        seen = np.zeros_like(self.counts)
        seen.reshape(-1)[cases.cell] = cases.pixels
        nats = (seen * self.surprise(cases)).sum((1, 2))
        return np.where(seen.any((1, 2)), nats, np.nan)

    def of_pixels(self, masks: Labels) -> Array:
        """The same at each pixel ``[N, H, W]``; 0 where nothing is compared.

        Args:
            masks: Class ids ``[N, H, W]``, 255 where not labelled.
        """
        classes = self.counts.shape[-1]
        context = contexts(masks, classes)
        known = (context >= 0) & (masks != IGNORE_INDEX)
        table = self.surprise(count_cases(masks, classes))
        values = np.zeros(masks.shape)
        values[known] = table[known.nonzero()[0], context[known], masks[known]]
        return values


def scores(nats: Array) -> Array:
    """How much less likely than usual masks are, in robust standard deviations ``[I, N]``.

    The logarithm of a mask's surprise is compared with that of the image's masks, since some images
    are hard for everybody, and then with what is usual of its annotator.

    Args:
        nats: How unlikely each annotator's mask of each image is ``[I, N]``, NaN without one.

    Example:
        >>> scores(np.array([[40.0, 50], [40, 50], [40, 50], [40, 5000]])).round(1)[:, 1].tolist()
        [0.1, 0.1, 0.1, 8.3]
    """
    size = np.log(nats + _LEAST)
    rest = size - _EASED * _median(size, 1)
    typical, masks = _median(rest, 0), (~np.isnan(rest)).sum(0)
    usual = typical * (masks / (masks + _FEW)) + _median(rest) * (_FEW / (masks + _FEW))
    spread = 1.4826 * _median(abs(rest - usual), 0)
    return np.asarray((rest - usual) / np.sqrt(spread**2 + _median(spread) ** 2 + 0.1))


def _median(values: Array, axis: int | None = None) -> Array:
    """The median of what is known, along an axis that is kept; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return np.asarray(np.nanmedian(values, axis, keepdims=True))
