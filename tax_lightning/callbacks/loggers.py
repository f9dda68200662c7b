"""What a run's folder and loggers get beyond scalars: pictures, files, settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from tax_lightning.files import write_png, write_text
from tax_lightning.palette import Picture


class Destinations:
    """The folder and the loggers of a run. Each gets what it can hold, in its own form.

    W&B takes pictures and artifacts; TensorBoard takes pictures; other loggers take pictures if
    they have Lightning's ``log_image``. A failure does not stop the training: it is reported once,
    and noted in ``warned``.
    """

    def __init__(self, trainer: L.Trainer, warned: set[str], folder: str | None = None) -> None:
        self.trainer, self.warned = trainer, warned
        self.folder = Path(folder) if folder else _logger_folder(trainer) / "explanations"

    def picture(self, key: str, picture: Picture, name: str) -> list[Path]:
        """Hand over a picture ``[H, W, 3]`` uint8; returns the file ``name`` if it was written."""

        def send(logger: Any, step: int) -> None:  # noqa: ANN401 - `log_image` is of some loggers
            if callable(getattr(logger, "log_image", None)):
                logger.log_image(key=key, images=[picture], step=step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, picture, step, dataformats="HWC")

        self._send(f"the picture {key!r}", send)
        image = Image.fromarray(picture)
        # Twice as fast as the usual compression, for files that are a tenth larger.
        return self.file(name, lambda path: write_png(path, image, compress_level=3))

    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Hand over files as one artifact of the type ``name``."""

        def send(logger: Logger, step: int) -> None:
            if isinstance(logger, WandbLogger):
                import wandb  # takes a second, which runs with other loggers need not wait for

                run = logger.experiment
                artifact = wandb.Artifact(f"{name}-{run.id}", type=name, metadata={"step": step})
                for file in files:
                    artifact.add_file(str(file), name=file.name)
                run.log_artifact(artifact)

        self._send(f"the artifact {name!r}", send)

    def file(self, name: str, write: Callable[[Path], None]) -> list[Path]:
        """Write a file into the folder; returns its path if that worked."""
        path = self.folder / name
        try:
            write(path)
        except (OSError, ValueError) as error:  # a page may refuse its content
            self.warn_once(
                type(error).__name__,
                f"ExplanationLogger: cannot write {path}: {error}. Training goes on without it. "
                "If the folder is at fault, set trainer.default_root_dir or the logger's save_dir.",
            )
            return []
        return [path]

    def warn_once(self, about: str, message: str) -> None:
        """Warn, but only once about the same thing."""
        if about not in self.warned:
            self.warned.add(about)
            rank_zero_warn(message)

    def _send(self, what: str, send: Callable[[Logger, int], None]) -> None:
        for logger in self.trainer.loggers:
            try:
                send(logger, self.trainer.global_step)
            except Exception as error:  # a logger may fail in any way
                name = type(logger).__name__
                message = f"{name} did not take {what}: {error!r}. Training goes on; the pictures "
                self.warn_once(name, f"{message}are files in {self.folder}.")


def _logger_folder(trainer: L.Trainer) -> Path:
    """Where the run keeps its files; unlike ``trainer.log_dir`` it needs no other process."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    if getattr(logger, "log_dir", None) is not None:
        return Path(str(logger.log_dir))
    parts = [str(part) for part in (logger.name, logger.version) if part is not None]
    return Path(logger.save_dir or trainer.default_root_dir, *parts)


def working(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers of a trainer; a ``CSVLogger`` in place of each that cannot begin, and a warning.

    A server may be out of reach, or a folder not writable: that is no reason not to train.
    """
    begun = []
    for logger in loggers:
        try:
            getattr(logger, "experiment", None)
            begun.append(logger)
        except Exception as error:  # a logger may fail in any way
            rank_zero_warn(
                f"{type(logger).__name__} cannot begin: {error!r}. Training goes on, and what it "
                f"would have got is in files in {logger.save_dir}."
            )
            begun.append(CSVLogger(logger.save_dir or ".", name=str(logger.name or "metrics")))
    return begun


class LoggedConfig(SaveConfigCallback):
    """Writes the whole configuration of a training to ``config.yaml``, and tells every logger.

    Lightning itself tells them the hyper-parameters of the model only.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Only a training has a folder of its own."""
        if stage == "fit":
            self.folder = trainer.log_dir  # for which all processes must ask
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file, whole or not at all, and tell the loggers."""
        text = self.parser.dump(self.config, skip_unset=False)
        write_text(Path(str(self.folder), self.config_filename), text)
        config: dict[str, Any] = yaml.safe_load(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
