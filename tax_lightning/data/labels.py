"""Grey values and class ids: what the pixels of a mask mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.files import MAX_GREY, File

_UNKNOWN = 254  # no class has this id: there are 254 of them at most
IGNORE_NAME = "ignore"
"""Reserved class name in ``mask_values``: grey values mapped to it become `IGNORE_INDEX`."""


def labels_from_values(
    values: npt.NDArray[Any],
    classes: Sequence[str],
    mask_values: Mapping[int, str] | None,
    source: File | str,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Map the grey values of a mask to class ids.

    Args:
        values: Integer grey values of any shape.
        classes: Names of the classes; the index is the class id.
        mask_values: Grey value -> class name or ``"ignore"``; None: the values are class ids.
        source: Where the values come from, for the message.
        out: Array of the same shape to write to; None: a new one.

    Returns:
        uint8 class ids of the same shape; `IGNORE_INDEX` where the value means "ignore".

    Raises:
        ValueError: If a value stands for no class. The message names the source and the cure.

    Example:
        >>> grey = np.array([[0, 255], [128, 0]])
        >>> meaning = {0: "background", 255: "cell", 128: "ignore"}
        >>> labels_from_values(grey, ["background", "cell"], meaning, "mask.png").tolist()
        [[0, 1], [255, 0]]
    """
    key = tuple(classes), None if mask_values is None else tuple(mask_values.items())
    if values.dtype == np.uint8:
        _, of_bytes = _lookup_tables(*key)
        found = np.asarray(cv2.LUT(values, of_bytes, out), np.uint8).reshape(values.shape)
        if (found.size and found.max() < _UNKNOWN) or not (found == _UNKNOWN).any():
            return found
    if values.dtype not in (np.uint8, np.uint16):
        values = values.clip(-1, MAX_GREY + 1)  # both ends fall on the table's last entry
    labels: npt.NDArray[np.int16] = _lookup_tables(*key)[0][values]
    if (labels < 0).any():
        raise ValueError(_unknown_values_text(values, labels < 0, classes, mask_values, source))
    if out is None:
        return labels.astype(np.uint8)
    out[...] = labels
    return out


@lru_cache(maxsize=16)
def _lookup_tables(
    classes: tuple[str, ...], mask_values: tuple[tuple[int, str], ...] | None
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Grey value -> class id, of all values (-1 without meaning) and of bytes (`_UNKNOWN`)."""
    table = np.full(MAX_GREY + 2, -1, np.int16)
    ids = {name: index for index, name in enumerate(classes)} | {IGNORE_NAME: IGNORE_INDEX}
    for value, name in tuple(enumerate(classes)) if mask_values is None else mask_values:
        table[value] = ids[name]
    # Above all class ids, so that a look at the highest is enough where nothing is ignored.
    return table, np.where(table < 0, _UNKNOWN, table)[:256].astype(np.uint8)


def _unknown_values_text(
    values: npt.NDArray[Any],
    unknown: npt.NDArray[np.bool_],
    classes: Sequence[str],
    mask_values: Mapping[int, str] | None,
    source: File | str,
) -> str:
    """The message for values that are no class, with the cure that fits the values found."""
    found = np.unique(values).tolist()
    bad = np.unique(values[unknown]).tolist()
    if mask_values is None:
        expected = f"the class ids 0..{len(classes) - 1} ({', '.join(classes)})"
    else:
        expected = ", ".join(f"{value} ({name})" for value, name in sorted(mask_values.items()))
    if len(found) == len(classes):
        pairs = ", ".join(f"{value}: {name}" for value, name in zip(found, classes, strict=True))
        cure = f"add mask_values: {{{pairs}}}"
    else:
        cure = (
            "say under mask_values which class each value means, or map it to 'ignore' "
            "(masks saved as JPEG hold stray values: save them as PNG)"
        )
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return (
        f"Mask {source} holds the value(s) {', '.join(map(str, bad[:8]))}{more}, "
        f"expected {expected}. Cure: {cure}."
    )
