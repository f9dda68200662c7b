"""Foreign files in binary formats: whatever a library says of a broken one names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        >>> with reading(Path("a.nii"), "a whole NIfTI file"):
        ...     [][0]
        Traceback (most recent call last):
        ValueError: Cannot read a.nii: list index out of range. Expected a whole NIfTI file.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        said = str(error) or type(error).__name__
        raise ValueError(f"Cannot read {path}: {said}. Expected {what}.") from error
