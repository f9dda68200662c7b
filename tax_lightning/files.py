"""Files that appear whole or not at all, and names that every file system takes."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def file_name(name: str, reserved: Sequence[str] = ()) -> str:
    """A name that every file system takes; names that differ stay different."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only).strip("._")[:80]
    if clean == name != "" and name.lower() not in reserved:
        return name
    return f"{clean or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file, which appears whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole; numbers that JSON lacks become null."""
    write_whole(path, json.dumps(plain(content), ensure_ascii=False, indent=2))


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content as JSON can hold it: NumPy's numbers as Python's, null for what is no number."""
    text = json.dumps(content, default=lambda value: value.tolist())
    return dict(json.loads(text, parse_constant=lambda _: None))
