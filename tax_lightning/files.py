"""Names of files that every file system takes."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence


def file_name(name: str, reserved: Sequence[str] = ()) -> str:
    """A name that every file system takes; names that differ stay different."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only).strip("._")[:80]
    if clean == name != "" and name.lower() not in reserved:
        return name
    return f"{clean or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
