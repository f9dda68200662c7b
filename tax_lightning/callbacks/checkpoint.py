"""Checkpoints of models that can name the training pixels behind their decisions."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


def is_explained(pl_module: L.LightningModule) -> bool:
    """Whether the prototypes are final; modules without prototypes have nothing to wait for."""
    return bool(getattr(pl_module, "explained", True))


def is_dry_run(trainer: L.Trainer) -> bool:
    """Whether this is Lightning's ``fast_dev_run``, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


class ExplainedCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that keeps only models whose prototypes are final.

    Before the final projection a model can have better metrics, but it cannot name the training
    pixels behind its decisions. So while the module's property ``explained`` is false, only the
    file of ``save_last`` is written, every epoch, for resuming. If the run ends before an explained
    model was stored, the model is stored as it is then. For a module without this property it is a
    plain ``ModelCheckpoint``.

    The arguments are those of ``lightning.pytorch.callbacks.ModelCheckpoint``. If ``monitor`` is
    the default of the module's class and the module has another, that of the module is used.

    Example:
        >>> ExplainedCheckpoint(monitor="val/dice", mode="max", save_last=True).best_model_path
        ''
    """

    _held_back = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Use the module's own monitor in place of the default of its class."""
        usual = getattr(type(pl_module), "monitor", None)
        if usual is not None and self.monitor == usual:
            self.monitor = getattr(pl_module, "monitor", usual)
        super().setup(trainer, pl_module, stage)

    def _should_skip_saving_checkpoint(self, trainer: L.Trainer) -> bool:
        """Save nothing by steps, time or epochs before the model is explained."""
        early = not is_explained(trainer.lightning_module)
        return early or super()._should_skip_saving_checkpoint(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the model is explained, save for resuming only."""
        super().on_train_epoch_end(trainer, pl_module)
        if is_explained(pl_module):
            return
        self._held_back = True
        if self.save_last and not is_dry_run(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            # With save_last="link" it would be the target of the next link, but is not kept.
            self._last_checkpoint_saved = ""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file of ``save_last``; a dry run leaves none."""
        if is_explained(pl_module) and not is_dry_run(trainer):
            super().on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the model if no explained epoch was stored."""
        if not self._held_back or self.best_model_path or is_dry_run(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
