"""What callbacks ask of a run: how far its model is, and where its files go."""

from pathlib import Path

import lightning as L


def is_explained(pl_module: L.LightningModule) -> bool:
    """Whether the prototypes are final; modules without prototypes have nothing to wait for."""
    return bool(getattr(pl_module, "explained", True))


def is_dry_run(trainer: L.Trainer) -> bool:
    """Whether this is Lightning's ``fast_dev_run``, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def run_folder(trainer: L.Trainer) -> Path:
    """Where the run keeps its files; unlike ``trainer.log_dir`` it needs no other process."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    log_dir = getattr(logger, "log_dir", None)
    if log_dir is not None:
        return Path(log_dir)
    parts = [part for part in (logger.name, logger.version) if part not in (None, "")]
    return Path(logger.save_dir or trainer.default_root_dir, *map(str, parts))
