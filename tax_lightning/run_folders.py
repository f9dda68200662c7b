"""Where the files of a run lie: one folder, by name and time, and ``latest`` beside it."""

import os
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

_STARTED = "TAX_RUN_STARTED"


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """A folder for a new run: by the number of its job where there is one, else by date and time.

    All processes of a run get the same, and a job that is requeued gets its folder again.

    Example:
        >>> run_folder("cells").parent.as_posix()
        'runs/cells'
    """
    job = in_job()
    started = os.environ.get(_STARTED) if "LOCAL_RANK" in os.environ else None
    if started is None:
        now = started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        more = count(2)
        while Path(root, name, started).exists():
            started = f"{now}_{next(more)}"
    os.environ[_STARTED] = started  # which the processes that Lightning starts inherit
    return Path(root, name, job or started)


def in_job() -> str | None:
    """``job-NUMBER`` in a job of SLURM or torchrun, whose folder is one for all its starts."""
    # An interactive job of SLURM may hold many runs, which Lightning too takes for no job.
    key = "SLURM_JOB_ID" if SLURMEnvironment.detect() else "TORCHELASTIC_RUN_ID"
    number = os.environ.get(key, "none")
    return None if number == "none" else f"job-{number}"


def last_run(settings: Namespace) -> Path:
    """The folder of the last run with the settings of ``tax fit``; it need not exist."""
    if known := settings.output or settings.trainer.default_root_dir:
        return Path(known)
    new = run_folder(_name(settings))  # a job has one folder
    return new if new.exists() else new.with_name("latest")


def _name(settings: Namespace) -> str:
    files = settings.config or ()
    return Path(str(files[0])).stem if files else settings.model.class_path.rpartition(".")[2]


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


def place_files(config: Namespace, arguments: Sequence[str]) -> Path | None:
    """Put all files of a run into one folder, which is returned where it is new.

    What the user says of single files stays.
    """
    command, settings = config.subcommand, config[config.subcommand]
    if command == "fit":
        return _place_training(settings)
    if not any(a.startswith("--trainer.logger") for a in arguments):
        settings.trainer.logger = False  # a tracker's run of its own would hold nothing
    checkpoint = settings.ckpt_path
    # Lightning would say that the callback's folder is no longer that of the run.
    settings.checkpoint.dirpath = settings.checkpoint.dirpath or str(Path(checkpoint).parent)
    if command == "predict":
        writer = settings.predictions
        beside = _run_of(checkpoint) or Path(checkpoint).parent
        writer.output_dir = settings.output or writer.output_dir or str(beside / "predictions")
    return None


def _place_training(settings: Namespace) -> Path | None:
    trainer, output = settings.trainer, settings.output
    # The best figure so far belongs to a folder: a run that goes on does so where it was.
    known = _run_of(os.path.realpath(settings.ckpt_path)) if settings.ckpt_path else None
    folder, new = output or trainer.default_root_dir or known, None
    if folder is None:
        folder = new = run_folder(_name(settings))
    trainer.default_root_dir = str(folder)
    for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
        options = logger.get("init_args", {}) if isinstance(logger, Namespace) else {}
        if "save_dir" in options and (output or options["save_dir"] in (None, ".")):
            options["save_dir"] = str(folder)
    for part, key, name in (
        (settings.checkpoint, "dirpath", "checkpoints"),
        (settings.explanations, "output_dir", "explanations"),
    ):
        part[key] = part[key] or str(Path(folder, name))
    return new


def _run_of(checkpoint: str) -> Path | None:
    """The folder of the run that a checkpoint lies in, if it lies as `tax fit` writes it."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else None
