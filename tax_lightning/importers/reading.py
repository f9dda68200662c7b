"""Foreign files: whatever goes wrong with a broken one names it."""

from __future__ import annotations

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


def lazily(path: Path, what: str, make: Callable[..., Any], *args: Any) -> Callable[..., Any]:  # noqa: ANN401
    """The function with these first arguments, whose errors name the file when it is called."""

    def call(*more: Any) -> Any:  # noqa: ANN401
        with reading(path, what):
            return make(*args, *more)

    return call
