"""Where the files of a run lie, and what was run: the command, versions, the checkpoint."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from tax_lightning.constants import __version__
from tax_lightning.files import write_json

_STARTED = "TAX_RUN_STARTED"
_LIBRARIES = ("torch", "lightning", "torchmetrics", "segmentation-models-pytorch")


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """A folder for a new run: by the number of its job where there is one, else by date and time.

    All processes of a run get the same, and a job that is requeued gets its folder again.

    Example:
        >>> run_folder("cells").parent.as_posix()
        'runs/cells'
    """
    # An interactive job of SLURM may hold many runs, which Lightning too takes for no job.
    key = "SLURM_JOB_ID" if SLURMEnvironment.detect() else "TORCHELASTIC_RUN_ID"
    number = os.environ.get(key, "none")
    job = None if number == "none" else f"job-{number}"
    started = os.environ.get(_STARTED) if "LOCAL_RANK" in os.environ else None
    if started is None:
        now = started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        more = count(2)
        while Path(root, name, started).exists():
            started = f"{now}_{next(more)}"
    os.environ[_STARTED] = started  # which the processes that Lightning starts inherit
    return Path(root, name, job or started)


def mark_latest(folder: Path) -> None:
    """Make the folder of a run, and let ``latest`` beside it lead there.

    Raises:
        OSError: If that cannot be written, or the system knows no links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder.with_name("latest")
    with TemporaryDirectory(dir=folder.parent) as place:
        new = Path(place, "latest")
        new.symlink_to(folder.name, target_is_directory=True)
        new.replace(link)


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
    path = Path(checkpoint).with_name("metrics.json")
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not isinstance(known, dict):
        raise ValueError(f"it holds {type(known).__name__}")
    values = {name: float(metrics[name]) for name in sorted(metrics)}
    write_json(path, {**known, stage: {**run_record(checkpoint), "metrics": values}})
    return path
