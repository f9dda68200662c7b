"""What was run: the command, the versions, the code, the checkpoint and its figures."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tax_lightning.constants import __version__
from tax_lightning.files import write_json

# Beside the checkpoint that was measured: figures of all stages; scores of the test images.
METRICS, TEST_IMAGES = "metrics.json", "test_images.csv"
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


def code_version() -> str:
    """The commit of the code, ``-dirty`` where files were changed since; else the version."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    if (here.parent / ".git").exists():
        with suppress(OSError):
            said = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
            return said.stdout.strip() or __version__
    return __version__


def note_metrics(checkpoint: str | Path, stage: str, metrics: Mapping[str, Any]) -> Path:
    """Write the figures of a stage to ``metrics.json`` beside the checkpoint.

    Those of other stages stay.

    Args:
        checkpoint: The file that was measured.
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        metrics: Name -> value, a number or a tensor of one.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
        ValueError: If there is a file of that name that is no such JSON.
    """
    path = Path(checkpoint).with_name(METRICS)
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not isinstance(known, dict):
        raise ValueError(f"it holds {type(known).__name__}")
    values = {name: float(metrics[name]) for name in sorted(metrics)}
    write_json(path, {**known, stage: {**run_record(checkpoint), "metrics": values}})
    return path
