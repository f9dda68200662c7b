"""JSON files that name everything a folder of results holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tax_lightning.explain.palette import Colour


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest, which appears whole or not at all.

    Args:
        path: of the file.
        content: what JSON can hold; numbers that it has not become null.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = path.with_suffix(".json.tmp")
    text = json.dumps(_plain(content), ensure_ascii=False, indent=2)
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def coloured_names(names: Sequence[str], colours: Sequence[Colour]) -> list[dict[str, Any]]:
    """Annotators or classes by position, with the colours that stand for them in pictures."""
    return [
        {"index": index, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for index, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """The value with null for numbers that JSON has not (a similarity that was never measured)."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
