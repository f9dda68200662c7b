"""Names of files that every file system takes, and files that appear whole or not at all."""

import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write a file that appears whole or not at all; numbers that JSON lacks become null.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"dice": float("nan")})
        ...     Path(folder, "a.json").read_text().split()
        ['{', '"dice":', 'null', '}']
    """
    with appearing(path) as part:
        part.write_text(json.dumps(plain(content), ensure_ascii=False, indent=2), "utf-8")


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
