"""``dataset.yaml``: what a folder of images and masks holds, in words that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.files import write_text

FILE = "dataset.yaml"
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What a data set in the one format says of itself.

    Args:
        name: Of the data set.
        classes: Names of the classes; the index is the id in the masks, the first the background.
        channels: What the channels of an image are, such as ``("red", "green", "blue")``.
        intensity_range: The values of an image that mean black and white, where the kind of the
            file does not tell; None: 0 to 255, 0 to 65535, or 0 to 1.
        persons: Whether the masks of one folder are all by the same person.
        source: Where the data come from: a publication, an address, a tool.
        licence: The terms under which they may be used.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> Description("cells", ("background", "cell"), ("grey",)).persons
        True
    """

    name: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    intensity_range: tuple[float, float] | None = None
    persons: bool = True
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty, expected a name for each channel of an image.")
        if self.intensity_range is not None:
            check_range(self.intensity_range)

    def write(self, folder: Path) -> None:
        """Write ``dataset.yaml``."""
        known = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        text = yaml.safe_dump(
            {"format": FORMAT, **known, "ignore": IGNORE_INDEX}, sort_keys=False, allow_unicode=True
        )
        write_text(folder / FILE, text)

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """The description of a folder; None where it has none.

        Raises:
            ValueError: If the file is there and cannot be read; the message names the key.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as YAML in UTF-8: {error}") from error
        return cls._checked(found, path)

    @classmethod
    def _checked(cls, found: Any, path: Path) -> Description:  # noqa: ANN401 - of a file
        kinds = {field.name: _KINDS[field.name] for field in fields(cls)}
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            has = found.get("format") if isinstance(found, dict) else found
            raise ValueError(f"{path} has the format {has!r}, expected `format: {FORMAT}`.")
        if found.pop("ignore", IGNORE_INDEX) != IGNORE_INDEX:
            raise ValueError(f"{path}: expected `ignore: {IGNORE_INDEX}`, the only value so far.")
        found.pop("format")
        if unknown := sorted(map(str, found.keys() - kinds)):
            raise ValueError(
                f"{path}: {unknown[0]!r} is unknown, expected some of {', '.join(kinds)}."
            )
        for key in ("name", "classes", "channels"):
            if key not in found:
                raise ValueError(f"{path} lacks the key {key!r}, expected {kinds[key][1]}.")
        for key, value in found.items():
            is_kind, words = kinds[key]
            if not is_kind(value):
                raise ValueError(f"{path}: {key} is {value!r}, expected {words}.")
        plain: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in found.items()
        }
        try:
            return cls(**plain)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _is_range(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    )


_TEXT = (lambda value: isinstance(value, str)), "a text"
_NAMES = _is_names, "a list of names"
_KINDS: dict[str, Any] = {
    "name": _TEXT,
    "classes": _NAMES,
    "channels": _NAMES,
    "intensity_range": (_is_range, "two numbers, or null"),
    "persons": (lambda value: isinstance(value, bool), "true or false"),
    "source": _TEXT,
    "licence": _TEXT,
}


def check_range(limits: Sequence[float]) -> tuple[float, float]:
    """The values that mean black and white, of which the second is the larger.

    Raises:
        ValueError: If they are not that.
    """
    low, high = limits
    if not low < high:
        raise ValueError(
            f"intensity_range {[low, high]}: expected the value of black and the larger one of "
            "white, e.g. [0, 4095]."
        )
    return float(low), float(high)
