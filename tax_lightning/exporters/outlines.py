"""Masks as the shapes that annotation tools keep: outlines along the edges of pixels, and runs.

The point (0, 0) is the upper left corner of an image, and (1, 1) the lower right corner of its
first pixel. An outline along the edges of pixels encloses exactly the pixels that it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Ring = npt.NDArray[np.float64]
"""Corners ``[N, 2]`` of a closed outline, x and y in pixels; the last joins the first."""

Bools = npt.NDArray[np.bool_]


def outlines(mask: Bools) -> list[list[Ring]]:
    """The polygons of a mask, each with its outline first and then its holes.

    Pixels that share an edge are in one polygon. Outlines run clockwise, holes against it, and
    neither meets itself, so that polygons are valid in the sense of the OGC's Simple Features.

    Args:
        mask: Truth values ``[H, W]``.

    Example:
        >>> [[ring.tolist() for ring in rings] for rings in outlines(np.ones((1, 2), bool))]
        [[[[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]]]
    """
    parts, count = ndimage.label(mask)  # by edges, not by corners
    outer: list[list[Ring]] = [[] for _ in range(count)]
    holes: list[list[Ring]] = [[] for _ in range(count)]
    for ring in _rings(np.pad(mask, 1)):
        (x, y), (next_x, _) = ring[:2].astype(int).tolist()
        inside = parts[y, x] if next_x > x else parts[y - 1, next_x]  # right of the first edge
        (outer if _area(ring) > 0 else holes)[inside - 1].append(ring)
    return [[*outline, *inner] for outline, inner in zip(outer, holes, strict=True)]


def _rings(mask: Bools) -> list[Ring]:
    """The simple rings of a mask with a margin of one pixel; each begins with a level edge.

    In a row of corners the first is joined to the second, the third to the fourth and so on; and
    so in a column.
    """
    a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    odd = (a ^ b ^ c ^ d) == 1
    crossed = (a == d) & (b == c) & (a != b)  # two pixels that meet at their corners
    corners = np.argwhere(odd | crossed)
    twice = np.repeat(corners, crossed[tuple(corners.T)] + 1, axis=0)
    # Where pixels meet at their corners, one ring turns round the left one and one round the right
    # one. The first of the two leads to the left, and up if the left pixel is the upper one.
    second = np.r_[False, (twice[1:] == twice[:-1]).all(1)] if len(twice) else np.zeros(0, bool)
    rows, columns = twice.T
    falling = a[rows, columns]
    by_row = np.lexsort((second, columns, rows))
    by_column = np.lexsort((second == falling, rows, columns))
    level, upright = np.empty(len(twice), int), np.empty(len(twice), int)
    for partner, order in ((level, by_row), (upright, by_column)):
        partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return [
        ring
        for loop in _loops(level.tolist(), upright.tolist())
        for ring in _simple([(int(columns[i]), int(rows[i])) for i in _directed(loop, twice, mask)])
    ]


def _loops(level: Sequence[int], upright: Sequence[int]) -> list[list[int]]:
    seen, loops = [False] * len(level), []
    for start in range(len(level)):
        if seen[start]:
            continue
        loop, at = [], start
        while not seen[at]:
            other = level[at]
            seen[at] = seen[other] = True
            loop += [at, other]
            at = upright[other]
        loops.append(loop)
    return loops


def _directed(loop: list[int], corners: npt.NDArray[np.int64], mask: Bools) -> list[int]:
    """The loop in the direction that has the mask on its right."""
    (row, one), (_, other) = corners[loop[0]], corners[loop[1]]
    below = mask[row + 1, min(one, other) + 1]
    return loop if below == (other > one) else loop[::-1]


def _simple(points: list[tuple[int, int]]) -> list[Ring]:
    """A ring cut where it meets itself; each part begins with a level edge."""
    if len(set(points)) == len(points):
        return [np.array(points, float)]
    rings, path, place = [], list[tuple[int, int]](), dict[tuple[int, int], int]()
    for point in points:
        if point in place:
            first = place[point]
            rings.append(path[first:])
            for gone in path[first:]:
                del place[gone]
            del path[first:]
        place[point] = len(path)
        path.append(point)
    whole = (*rings, path)
    return [np.array(r if r[0][1] == r[1][1] else [*r[1:], r[0]], float) for r in whole]


def _area(ring: Ring) -> float:
    """Twice the area; above 0 if the ring runs clockwise."""
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
    return float((x * next_y - next_x * y).sum())


def runs(mask: Bools) -> list[int]:
    """Lengths of runs in a mask row by row, of zeros and ones in turn, zeros first.

    Example:
        >>> runs(np.array([[0, 1], [1, 0]]) > 0)
        [1, 2, 1]
    """
    flat = mask.ravel().astype(np.int8)
    change = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *change, flat.size]).tolist()  # type: ignore[no-any-return]
