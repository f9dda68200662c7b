"""The configuration of a run, told to its loggers."""

import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback


class LoggedConfig(SaveConfigCallback):
    """Tells every logger the whole configuration of a run, beside the file ``config.yaml``.

    Lightning itself tells them the hyper-parameters of the model only. The state of the source
    code, ``git``, is told too where the run was started in a repository.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the loggers."""
        config: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        for logger in trainer.loggers:
            logger.log_hyperparams({**config, **source_state(Path.cwd())})


def source_state(folder: Path) -> dict[str, Any]:
    """The commit that a folder is at, and whether its files differ from it.

    Args:
        folder: in a git repository or not.

    Returns:
        ``{"git": {"commit": ..., "changed": ...}}``; nothing outside a repository or without git.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": {"commit": commit, "changed": bool(changed)}}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
