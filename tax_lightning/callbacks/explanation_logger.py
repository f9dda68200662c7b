"""Pictures of explanations while a model is trained, for loggers and as files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image

from tax_lightning.batch import Batch
from tax_lightning.callbacks.run import file_name, is_dry_run, is_explained, run_folder
from tax_lightning.callbacks.samples import picture_maker, stretched, validation_samples
from tax_lightning.callbacks.source_patches import callout_patches
from tax_lightning.explain.callouts import SourcePatch
from tax_lightning.explain.explanation import Explanation
from tax_lightning.explain.palette import Picture
from tax_lightning.explain.panels import render_panel


class ExplanationLogger(Callback):
    """Show who decides and why, on the same few validation images throughout a training run.

    Every ``every_n_epochs`` epochs, and once more at the end, each image's panel (see
    :func:`tax_lightning.explain.panels.render_panel`) goes to every logger that takes pictures, and
    into a folder as PNG. The training patches in a panel are read again from the data each time; no
    checkpoint holds image data. Only the process of rank zero draws, and it waits for no other. A
    logger or folder that fails is reported once; training goes on. A module that does not explain
    itself has no pictures, which is said once.

    Args:
        samples: how many validation images to show, spread evenly over the set.
        every_n_epochs: epochs between two pictures of the same image.
        output_dir: where the folder ``explanations`` is made; by default in the run's log folder.

    Attributes:
        folder: the folder of pictures, once there is one.
        paths: the files written at the end of training.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> ExplanationLogger(samples=2, every_n_epochs=10).paths
        []
    """

    def __init__(
        self, samples: int = 4, every_n_epochs: int = 5, output_dir: str | None = None
    ) -> None:
        for name, value in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(
                    f"ExplanationLogger: {name}={value}, expected 1 or more; leave the callback "
                    "out to have no pictures."
                )
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self.output_dir = output_dir
        self.folder: Path | None = None
        self.paths: list[Path] = []
        self._drawn_step = -1
        self._finished = False
        self._complaints: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the pictures of an earlier run."""
        self.folder, self.paths, self._drawn_step, self._finished = None, [], -1, False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw after every so many epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, f"epoch={trainer.current_epoch:03d}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the model as trained, unless its prototypes are still to be projected."""
        if is_explained(pl_module):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw a model that projected its prototypes only as training ended."""
        if not self._finished:
            self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paths = self._draw(trainer, pl_module, "final")
        self._finished = True

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> list[Path]:
        """Draw every sample and hand the pictures on; returns the files written."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return []
        if not hasattr(pl_module, "explain"):
            name = type(pl_module).__name__
            self._complain(name, f"ExplanationLogger: {name} explains nothing, so no pictures.")
            return []
        # Reading samples may draw random numbers: training goes on as if nobody had looked.
        with isolate_rng(), torch.no_grad(), _evaluating(pl_module):
            samples = list(validation_samples(trainer, pl_module, self.samples))
            explanations = [_explain(trainer, pl_module, sample) for sample in samples]
            patches = callout_patches(trainer, pl_module, explanations)
        if not samples:
            self._complain("samples", "ExplanationLogger: no validation images, so no pictures.")
        self.folder = Path(self.output_dir or run_folder(trainer)) / "explanations"
        new_to_loggers = trainer.global_step != self._drawn_step
        self._drawn_step = trainer.global_step
        paths = []
        for sample, explanation in zip(samples, explanations, strict=True):
            panel = _panel(trainer, sample, explanation, patches)
            if new_to_loggers:
                self._log(trainer, f"explanations/{explanation.ids[0]}", panel)
            path = self.folder / f"{stage}-{file_name(explanation.ids[0])}.png"
            paths += self._write(path, panel)
        return paths

    def _log(self, trainer: L.Trainer, key: str, panel: Picture) -> None:
        for logger in trainer.loggers:
            try:
                send_picture(logger, key, panel, trainer.global_step)
            except Exception as error:  # a tracker may fail in any way
                name = type(logger).__name__
                self._complain(
                    name,
                    f"{name} did not take the picture {key!r}: {error!r}. Training goes on; the "
                    f"pictures are files in {self.folder}.",
                )

    def _write(self, path: Path, panel: Picture) -> list[Path]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(panel).save(path)
        except OSError as error:
            self._complain(
                "folder",
                f"ExplanationLogger: cannot write {path}: {error}. Training goes on without these "
                "files; set output_dir to a folder that can be written.",
            )
            return []
        return [path]

    def _complain(self, about: str, message: str) -> None:
        """Warn, but once only about the same thing."""
        if about not in self._complaints:
            self._complaints.add(about)
            rank_zero_warn(message)


def send_picture(logger: Logger, key: str, picture: Picture, step: int) -> None:
    """Hand a picture to a logger, if it is of a kind that takes pictures.

    Args:
        logger: one that has Lightning's ``log_image`` (Weights & Biases), or TensorBoard's.
        key: name of the picture.
        picture: ``[H, W, 3]`` uint8; never rescaled.
        step: the training step that it belongs to.
    """
    log_image = getattr(logger, "log_image", None)
    if callable(log_image):
        log_image(key=key, images=[picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode in which it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _explain(trainer: L.Trainer, pl_module: Any, sample: Batch) -> Explanation:  # noqa: ANN401
    """The explanation of one sample, in the precision of the run and without padding."""
    precision = trainer.precision_plugin
    with precision.forward_context():
        images = precision.convert_input(sample["image"].to(pl_module.device))
        explanation: Explanation = pl_module.explain(images, sample["id"])
    explanation = explanation.to("cpu")
    return explanation.crop(*map(int, sample["size"][0])) if "size" in sample else explanation


def _panel(
    trainer: L.Trainer,
    sample: Batch,
    explanation: Explanation,
    patches: Mapping[tuple[int, int], SourcePatch],
) -> Picture:
    """The panel of one sample, without its padding."""
    height, width = explanation.probs.shape[-2:]
    maker = picture_maker(trainer)
    image = sample["image"][0]
    picture = maker.to_picture(image) if maker is not None else stretched(image)
    labels = {
        key: np.asarray(sample[key][0])[..., :height, :width]
        for key in ("masks", "reference")
        if key in sample
    }
    return render_panel(explanation, picture[:height, :width], patches=patches, **labels)
