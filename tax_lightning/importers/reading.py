"""Foreign files, found and read: whatever goes wrong with a broken one names it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn every failure to read a file into one error that names it.

    Libraries raise what they meet in a damaged file, so that no list of errors is complete. An
    error that names the file already, or a library that is missing, stays as it is.

    Args:
        path: The file.
        what: What it should be, and perhaps a cure, such as "a whole NIfTI file".

    Raises:
        ValueError: If it cannot be read.

    Example:
        >>> with reading(Path("a.nii"), "NIfTI"):
        ...     {}["affine"]
        Traceback (most recent call last):
        ValueError: Cannot read a.nii: it lacks 'affine'. Expected NIfTI.
    """
    try:
        _check_kind(path)
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        said = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, KeyError):
            said = f"it lacks {error}"
        elif isinstance(error, TypeError | IndexError | AttributeError):
            said = f"it is built otherwise ({said})"
        raise ValueError(f"Cannot read {path}: {said}. Expected {what}.") from error


def _check_kind(path: Path) -> None:
    """Refuse pipes and devices, of which the end may never come."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a pipe or a device, expected a file.")


def lazily(path: Path, what: str, make: Callable[..., Any], *args: Any) -> Callable[..., Any]:  # noqa: ANN401
    """The function with these first arguments, whose errors name the file when it is called."""

    def call(*more: Any) -> Any:  # noqa: ANN401
        with reading(path, what):
            return make(*args, *more)

    return call


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The contents of a file."""
    _check_kind(path)
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
