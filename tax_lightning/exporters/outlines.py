"""A mask as what tools hold: outlines along the edges of its pixels, and runs of pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.float64]
"""Corners of a closed outline ``[M, 2]``: x, y."""

Bools = npt.NDArray[np.bool_]


def outlines(mask: Bools) -> list[list[Ring]]:
    """The objects of a mask as outlines along the edges of its pixels: exact.

    Returns:
        For each object its outline, then those of its holes; no corner is repeated at the end.

    Raises:
        ModuleNotFoundError: If shapely is not installed.

    Example:
        >>> [[ring.tolist() for ring in rings] for rings in outlines(np.ones((1, 2)) > 0)]
        [[[[0.0, 0.0], [0.0, 1.0], [2.0, 1.0], [2.0, 0.0]]]]
    """
    try:
        import shapely
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'shapely is missing, by which outlines are made: pip install "tax-lightning[tools]".'
        ) from error
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    merged = shapely.union_all(shapely.box(starts, rows, ends, rows + 1)).normalize()
    parts = shapely.get_parts(shapely.simplify(merged, 0))
    return [
        [np.array(ring.coords)[:-1] for ring in (part.exterior, *part.interiors)]
        for part in parts
        if not part.is_empty
    ]


def runs(mask: Bools) -> list[int]:
    """Lengths of runs in a mask row by row, of zeros and ones in turn, zeros first.

    Example:
        >>> runs(np.array([[0, 1], [1, 0]]) > 0)
        [1, 2, 1]
    """
    flat = mask.ravel().astype(np.int8)
    change = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *change, flat.size]).tolist()  # type: ignore[no-any-return]
