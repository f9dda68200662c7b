"""JSON files of foreign tools, read so that what is odd is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The contents of a file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON in UTF-8: {error}.") from error


def files_by_annotator(root: Path, suffix: str = ".json") -> list[tuple[Path, str]]:
    """Files of an export that does not tell who drew, each with its annotator.

    Args:
        root: One file, or a folder. A file in it is called for its annotator; so is a folder in
            it, with all files below that, as they are unpacked from the tool's archives.
        suffix: Of the files.
    """
    return [
        (path, path.stem if path.parent in (root, root.parent) else path.relative_to(root).parts[0])
        for path in export_files(root, suffix)
    ]


def export_files(root: Path, suffix: str = ".json", below: bool = True) -> list[Path]:
    """The file itself, or those in a folder, sorted by name."""
    if root.is_file():
        return [root]
    files = sorted(root.rglob(f"*{suffix}") if below else root.glob(f"*{suffix}"))
    found = [path for path in files if not path.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"{root} holds no {suffix} files, expected the tool's export.")
    return found
