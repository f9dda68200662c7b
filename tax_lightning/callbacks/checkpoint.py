"""Checkpoints of models that can name the training pixels behind their decisions."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from tax_lightning.callbacks.run import is_dry_run, is_explained


class ExplainedCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that keeps only models whose prototypes are final.

    A model before its final prototype projection can be better in numbers, yet cannot name the
    training pixels behind its decisions. So the best model is sought among the epochs after it:
    while the module's property ``explained`` is false, nothing is kept but the file of
    ``save_last``, written every epoch for resuming. If the run ends before any such epoch could be
    stored, the model is stored as it is then. With modules that have no such property it is a
    ``ModelCheckpoint``.

    All arguments are those of ``lightning.pytorch.callbacks.ModelCheckpoint``. A module that does
    not log what is usually monitored says so by a ``monitor`` of its own, which is then taken.

    Example:
        >>> ExplainedCheckpoint(monitor="val/dice", mode="max", save_last=True).best_model_path
        ''
    """

    _held_back = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take over the module's own monitor in place of its class's."""
        usual = getattr(type(pl_module), "monitor", None)
        if usual is not None and self.monitor == usual:
            self.monitor = getattr(pl_module, "monitor", usual)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - as the parent
        batch: Any,  # noqa: ANN401 - as the parent
        batch_idx: int,
    ) -> None:
        """Save by steps or time, once the model is explained."""
        if is_explained(pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save by epochs after validation, once the model is explained."""
        if is_explained(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save by epochs, once the model is explained; before that, for resuming only."""
        if is_explained(pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            return
        self._held_back = True
        if self.save_last and not is_dry_run(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_checkpoint_saved = ""  # none of the best, to which save_last="link" links

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that ``save_last`` has its file; a dry run leaves none."""
        if is_explained(pl_module) and not is_dry_run(trainer):
            super().on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the model where no explained epoch could be stored."""
        if not self._held_back or self.best_model_path or is_dry_run(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
