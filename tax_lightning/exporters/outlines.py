"""Masks as the shapes that annotation tools keep: outlines along the edges of pixels, and runs.

The point (0, 0) is the upper left corner of an image, and (1, 1) the lower right corner of its
first pixel. An outline along the edges of pixels encloses exactly the pixels that it was made of.
"""

import cv2
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
        [[[[2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]]]
    """
    parts, _ = ndimage.label(mask)  # by edges, not by corners
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        # With four pixels for each, OpenCV's lines through the pixels of a border tell the edges:
        # its places 2 x and 2 x - 1 are both beside the edge x. So both ends of a slanting step
        # fall on the corner that it cuts.
        large = (parts[rows, columns] == number).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        rings = []
        for line in cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]:
            corners = (line[::-1, 0] + 1) // 2 + (columns.start, rows.start)
            once = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
            rings.append(corners[once].astype(np.float64))
        polygons.append(rings)
    return polygons


def runs(mask: Bools) -> list[int]:
    """Lengths of runs in a mask row by row, of zeros and ones in turn, zeros first.

    Example:
        >>> runs(np.array([[0, 1], [1, 0]]) > 0)
        [1, 2, 1]
    """
    flat = mask.ravel().astype(np.int8)
    change = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *change, flat.size]).tolist()  # type: ignore[no-any-return]
