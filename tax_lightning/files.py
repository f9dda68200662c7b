"""Names of files that every file system takes, and files that appear whole or not at all."""

import csv
import errno
import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
from PIL import Image

# What a disk that is full, broken or read-only answers.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_PART = ".part"  # ending of a file that is not complete
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins a formula in a spreadsheet
_KEPT = " ()[]{}+,;=@!#$&'^~`"  # characters that every file system takes beside letters and digits


def file_name(name: str, reserved: Sequence[str] = ()) -> str:
    """A short name in plain letters; names that differ stay different."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only).strip("._")[:80]
    if clean == name != "" and name.lower() not in reserved:
        return name
    return f"{clean or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def file_of(name: str) -> str:
    """The name of a file, without its ending, for a name that may hold anything.

    What some file system does not take is written as ``%`` and its bytes in hexadecimal.

    Example:
        >>> file_of("slide 7/a:b"), name_of("slide 7%2Fa%3Ab")
        ('slide 7%2Fa%3Ab', 'slide 7/a:b')
    """
    safe = "".join(c if c.isalnum() else quote(c, safe=_KEPT) for c in name)
    if safe[:1] in (".", " "):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if safe[-1:] in (".", " "):
        safe = f"{safe[:-1]}%{ord(safe[-1]):02X}"
    return safe


def name_of(file: str) -> str:
    """The name that :func:`file_of` wrote as this file."""
    return unquote(file)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to write a file, so that it is there as a whole or not at all; makes its folder.

    The file lies beside its target until it is complete and on the disk. What a killed process
    leaves of it is removed by :func:`remove_parts`.

    Raises:
        OSError: if the disk is full or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with appearing(Path(folder, "new", "a.txt")) as part:
        ...         part.touch()
        ...         path = Path(folder, "new", "a.txt")
        ...         before = path.exists()
        ...     before, path.exists()
        (False, True)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise OSError(
            f"{path}: it cannot be written ({error.strerror}). What was there before is whole. "
            "Make room on its disk, or let its folder be written to."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write bytes, as :func:`appearing` does."""
    with appearing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as :func:`appearing` does; line breaks are those of the text."""
    with appearing(path) as part:
        part.write_text(text, "utf-8", newline="")


def write_png(path: Path, image: Image.Image, compress_level: int = 6) -> None:
    """Write a picture, as :func:`appearing` does."""
    with appearing(path) as part:
        image.save(part, "png", compress_level=compress_level)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name to an NPZ file, as :func:`appearing` does."""
    with appearing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table, as :func:`appearing` does.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(Path(folder, "a.csv"), ["image", "change"], [("=1+1", "-0.5")])
        ...     Path(folder, "a.csv").read_text().split()
        ['image,change', "'=1+1,-0.5"]
    """
    with appearing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(_no_formula, columns))
        writer.writerows(map(_no_formula, row) for row in rows)


def _no_formula(cell: object) -> object:
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing below this folder."""
    for part in folder.rglob(f".*.[0-9]*{_PART}"):
        part.unlink(missing_ok=True)


def check_writable(folder: str | Path, argument: str) -> None:
    """Refuse a folder that cannot be written to, before any work is done for it.

    Args:
        folder: need not exist.
        argument: what gave the folder, for the message.

    Raises:
        OSError: if it, or the folder in which it is to be made, cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     check_writable(file.name, "--output")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        NotADirectoryError: --output /...: it is a file, expected a folder to write into.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"{argument} {folder}: it is a file, expected a folder to write into."
        )
    there = folder
    while not there.exists():  # what is made for the test need not be removed
        there = there.parent
    try:
        with TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{argument} {folder}: it cannot be written to ({error.strerror}). Name a folder that "
            "can, or make room on its disk."
        ) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write a file that appears whole or not at all; numbers that JSON lacks become null.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"dice": float("nan")})
        ...     Path(folder, "a.json").read_text().split()
        ['{', '"dice":', 'null', '}']
    """
    write_text(path, json.dumps(plain(content), ensure_ascii=False, indent=2))


def plain(content: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """The same for JSON: numbers that it lacks become null.

    Example:
        >>> plain({"scores": (0.5, math.nan)})
        {'scores': [0.5, None]}
    """
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
