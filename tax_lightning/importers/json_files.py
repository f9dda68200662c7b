"""JSON files of foreign tools, read so that what is odd is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The contents of a file.

    Raises:
        ValueError: If it is no JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON in UTF-8: {error}.") from error


def json_files(root: Path, suffix: str = ".json") -> list[Path]:
    """The file itself, or those directly in a folder, sorted by name.

    Raises:
        FileNotFoundError: If there is none.
    """
    if root.is_file():
        return [root]
    found = [p for p in sorted(root.glob(f"*{suffix}")) if not p.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"{root} holds no {suffix} files, expected the tool's export.")
    return found


def files_by_annotator(root: Path, suffix: str = ".json") -> list[tuple[Path, str]]:
    """Files of an export that does not tell who drew, each with its annotator.

    Args:
        root: One file, or a folder. A file in it is called for its annotator; so is a folder in
            it, with all files below that, as they are unpacked from the tool's archives.
        suffix: Of the files.

    Raises:
        FileNotFoundError: If there is none.
    """
    if root.is_file():
        return [(root, root.stem)]
    found = [
        (path, path.stem if path.parent == root else path.relative_to(root).parts[0])
        for path in sorted(root.rglob(f"*{suffix}"))
        if not path.name.startswith(".")
    ]
    if not found:
        raise FileNotFoundError(
            f"{root} holds no {suffix} files, expected one for each annotator, or a folder each."
        )
    return found


@contextmanager
def of_file(path: Path, what: str) -> Iterator[None]:
    """Errors that come from what a file lacks name it.

    Args:
        path: The file.
        what: What it should be, such as "an export of Label Studio as JSON".
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        odd = f"lacks {error}" if isinstance(error, KeyError) else f"is built otherwise ({error})"
        raise ValueError(f"{path} {odd}, expected {what}.") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from error


def lazily(path: Path, what: str, make: Callable[..., Any], *args: Any) -> Callable[..., Any]:  # noqa: ANN401
    """The function, called later, whose errors name the file."""

    def call(size: tuple[int, int]) -> Any:  # noqa: ANN401
        with of_file(path, what):
            return make(*args, size)

    return call
