"""What was run, for whoever finds its files later: the command, versions, the checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tax_lightning.constants import __version__

_LIBRARIES = ("torch", "lightning", "torchmetrics", "segmentation-models-pytorch")


def run_record(checkpoint: str | Path | None = None) -> dict[str, Any]:
    """The command line of this process, the versions in use, and the checkpoint's name and hash.

    Args:
        checkpoint: File of the weights; None: none.

    Example:
        >>> sorted(run_record()), run_record()["checkpoint"]
        (['checkpoint', 'command', 'sha256', 'versions'], None)
    """
    digest = None
    if checkpoint is not None:
        with Path(checkpoint).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    program, *arguments = sys.argv
    return {
        "command": shlex.join([Path(program).name, *arguments]),
        "versions": {"tax-lightning": __version__, **{name: version(name) for name in _LIBRARIES}},
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "sha256": digest,
    }


def note_metrics(checkpoint: str | Path, stage: str, metrics: Mapping[str, Any]) -> Path:
    """Write the figures of a stage to ``metrics.json`` beside the checkpoint.

    Those of other stages stay.

    Args:
        checkpoint: The file that was measured.
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        metrics: Name -> value, a number or a tensor of one.

    Returns:
        The file.
    """
    path = Path(checkpoint).with_name("metrics.json")
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    values = {name: float(metrics[name]) for name in sorted(metrics)}
    write_json(path, {**known, stage: {**run_record(checkpoint), "metrics": values}})
    return path


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write a file that appears whole or not at all; numbers that JSON lacks become null.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"dice": float("nan")})
        ...     Path(folder, "a.json").read_text().split()
        ['{', '"dice":', 'null', '}']
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(_plain(content), ensure_ascii=False, indent=2), "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _plain(content: Any) -> Any:  # noqa: ANN401
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
