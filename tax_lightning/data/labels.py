"""What the pixels of a mask mean: grey values or colours, and the class ids that they stand for."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.pixels import MAX_GREY

MaskValues: TypeAlias = Mapping[int | str, str]
"""Grey value, or colour as ``"red,green,blue"``, -> name of a class, or ``"ignore"``."""

IGNORE_NAME = "ignore"
"""Reserved class name in ``mask_values``: what is mapped to it becomes `IGNORE_INDEX`."""

_NO_VALUE = (
    "mask_values: {value!r} is no grey value and no colour, expected whole numbers, or red, green "
    'and blue such as "255,0,0", and the names of their classes, e.g. '
    "{{0: {classes[0]}, 255: {classes[1]}}}."
)
_UNKNOWN = 254  # no class has this id: there are 254 of them at most
_SHOWN = 8  # values in a message


def has_colours(mask_values: MaskValues | None) -> bool:
    """Whether the values are colours."""
    return mask_values is not None and any("," in str(value) for value in mask_values)


def check_mask_values(mask_values: MaskValues | None, classes: Sequence[str]) -> None:
    """Check that every value is in range, every name is known, and every class has a value.

    Raises:
        ValueError: If one is not; the message names it.
    """
    for value, name in (mask_values or {}).items():
        if not (hasattr(value, "__index__") or isinstance(value, str)):
            raise ValueError(_NO_VALUE.format(value=value, classes=classes))
        code = _code(value, _NO_VALUE.format(value=value, classes=classes))
        if "," not in str(value) and not 0 <= code <= MAX_GREY:
            raise ValueError(f"mask_values: grey value {value}, expected 0..{MAX_GREY}.")
        if name not in classes and name != IGNORE_NAME:
            raise ValueError(
                f"mask_values: value {value} means {name!r}, which is no class. "
                f"Expected one of {', '.join(classes)}, or 'ignore'."
            )
    for name in classes:
        if mask_values is not None and name not in mask_values.values():
            raise ValueError(
                f"mask_values: no value means the class {name!r}. Add its value, or take the class "
                "out of classes."
            )


def labels_from_values(
    values: npt.NDArray[Any],
    classes: Sequence[str],
    mask_values: MaskValues | None,
    source: Path | str,
    out: npt.NDArray[np.uint8] | None = None,
    cure: str = "",
) -> npt.NDArray[np.uint8]:
    """Map the values of a mask to class ids.

    Args:
        values: Grey values, whole numbers ``[H, W]``, or colours ``[H, W, 3]`` uint8.
        classes: Names of the classes; the index is the class id.
        mask_values: Value -> class name or ``"ignore"``; None: the values are class ids.
        source: Where the values come from, for the message.
        out: Array ``[H, W]`` to write to; None: a new one.
        cure: For the message, where ``mask_values`` are not the user's.

    Returns:
        uint8 class ids ``[H, W]``; `IGNORE_INDEX` where the value means "ignore".

    Raises:
        ValueError: If a value stands for no class. The message names the source and the cure.

    Example:
        >>> grey = np.array([[0, 255], [128, 0]])
        >>> meaning = {0: "background", 255: "cell", 128: "ignore"}
        >>> labels_from_values(grey, ["background", "cell"], meaning, "mask.png").tolist()
        [[0, 1], [255, 0]]
    """
    key = tuple(classes), None if mask_values is None else tuple(mask_values.items())
    if values.dtype == np.uint8 and values.ndim < 3 and not has_colours(mask_values):
        if values.size and values.max() < _own_ids(*key):  # nothing to look up
            if out is None:
                return values.copy()
            out[...] = values
            return out
        found = np.asarray(cv2.LUT(values, _of_bytes(*key), out), np.uint8).reshape(values.shape)
        if (found.size and found.max() < _UNKNOWN) or not (found == _UNKNOWN).any():
            return found
    codes, ids = _of_codes(*key)
    pixels = _coded(values, has_colours(mask_values))
    place = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    unknown = codes[place] != pixels
    if unknown.any():
        raise ValueError(_unknown_text(values, unknown, classes, mask_values, source, cure))
    if out is None:
        labels: npt.NDArray[np.uint8] = ids[place]
        return labels
    out[...] = ids[place]
    return out


def _code(value: int | str, refusal: str = "") -> int:
    """A number for a grey value, or for a colour: its 24 bits."""
    if not isinstance(value, str):
        return int(value)
    parts = value.replace(" ", "").split(",")
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 3):
        raise ValueError(refusal)
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        return numbers[0]
    if max(numbers) > 255:
        raise ValueError(refusal)
    red, green, blue = numbers
    return red << 16 | green << 8 | blue


def _coded(values: npt.NDArray[Any], colours: bool) -> npt.NDArray[np.int64]:
    """Numbers as of `_code`; those of colours where none are expected are no grey value."""
    if values.ndim < 3:
        return values.astype(np.int64) * (0x010101 if colours else 1)
    parts = values.astype(np.int64)
    codes: npt.NDArray[np.int64] = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    return codes if colours else -1 - codes


@lru_cache(maxsize=16)
def _of_codes(
    classes: tuple[str, ...], mask_values: tuple[tuple[int | str, str], ...] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The numbers that mean something, sorted, and the class id of each."""
    ids = {name: index for index, name in enumerate(classes)} | {IGNORE_NAME: IGNORE_INDEX}
    given: list[tuple[int | str, str]]
    given = [*enumerate(classes)] if mask_values is None else list(mask_values)
    colours = has_colours(dict(given))
    grey = 0x010101 if colours else 1  # beside colours a grey value is the grey colour
    coded = {_code(v) * (1 if "," in str(v) else grey): ids[n] for v, n in given}
    codes = sorted(coded)
    return np.array(codes, np.int64), np.array([coded[code] for code in codes], np.uint8)


@lru_cache(maxsize=16)
def _of_bytes(
    classes: tuple[str, ...], mask_values: tuple[tuple[int | str, str], ...] | None
) -> npt.NDArray[np.uint8]:
    """The class id of each byte; `_UNKNOWN` without meaning."""
    codes, ids = _of_codes(classes, mask_values)
    table = np.full(256, _UNKNOWN, np.uint8)
    table[codes[codes < 256]] = ids[codes < 256]
    return table


@lru_cache(maxsize=16)
def _own_ids(
    classes: tuple[str, ...], mask_values: tuple[tuple[int | str, str], ...] | None
) -> int:
    """How many of the lowest values are the id of their class."""
    table = _of_bytes(classes, mask_values)[: len(classes)]
    differ = np.flatnonzero(table != np.arange(len(table)))
    return int(differ[0]) if differ.size else len(table)


def value_texts(values: npt.NDArray[Any]) -> list[str]:
    """The values of a mask as they are written in ``mask_values``, without doubles."""
    if values.ndim < 3:
        return [str(value) for value in np.unique(values).tolist()]
    colours = np.unique(values.reshape(-1, values.shape[-1]), axis=0).tolist()
    return [f'"{",".join(map(str, colour))}"' for colour in colours]


def _unknown_text(
    values: npt.NDArray[Any],
    unknown: npt.NDArray[np.bool_],
    classes: Sequence[str],
    mask_values: MaskValues | None,
    source: Path | str,
    cure: str,
) -> str:
    """The message for values that are no class, with the cure that fits the values found."""
    found = value_texts(values)
    bad = value_texts(values[unknown][None])
    if mask_values is None:
        expected = f"the class ids 0..{len(classes) - 1} ({', '.join(classes)})"
    else:
        expected = ", ".join(f"{value} ({name})" for value, name in mask_values.items())
    usual = (
        "say under mask_values which class each value means, or map it to 'ignore' "
        "(masks saved as JPEG hold stray values: save them as PNG)"
    )
    if len(found) == len(classes) and mask_values is None:
        pairs = ", ".join(f"{value}: {name}" for value, name in zip(found, classes, strict=True))
        usual = f"add mask_values: {{{pairs}}}"
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return (
        f"Mask {source} holds the value(s) {', '.join(bad[:_SHOWN])}{more}, "
        f"expected {expected}. Cure: {cure or usual}."
    )
