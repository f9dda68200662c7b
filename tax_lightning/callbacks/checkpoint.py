"""Checkpoints of models that can name the training pixels behind their decisions."""

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tax_lightning.arguments import unknown_name
from tax_lightning.files import appearing, remove_parts, write_bytes


def is_explained(pl_module: L.LightningModule) -> bool:
    """Whether the prototypes are final; modules without prototypes have nothing to wait for."""
    return bool(getattr(pl_module, "explained", True))


def is_dry_run(trainer: L.Trainer) -> bool:
    """Whether this is Lightning's ``fast_dev_run``, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to write checkpoints, but beside the target: a file is whole or not there.

    Lightning's own moves the file from the folder of temporary files, and a kill while it copies
    from one disk to another leaves half a file in place of the last checkpoint.

    Example:
        >>> trainer = L.Trainer(plugins=[WholeCheckpoints()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401 - as the parent
    ) -> None:
        """Write a checkpoint; one that is there stays until the new one is complete.

        Raises:
            OSError: if it cannot be written.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch's own writer does not say that a disk is full
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())


class ExplainedCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that keeps only models whose prototypes are final.

    Before the final projection a model can have better metrics, but it cannot name the training
    pixels behind its decisions. So while the module's property ``explained`` is false, only the
    file of ``save_last`` is written, every epoch, for resuming. If the run ends before an explained
    model was stored, the model is stored as it is then.

    ``last.ckpt`` is written too when a run is told to stop (``SIGTERMException``), and with
    ``save_on_exception``: an exception never makes a best checkpoint. A run that goes on in another
    folder takes its best checkpoints there. Files are never torn, see :class:`WholeCheckpoints`.

    The arguments are those of ``lightning.pytorch.callbacks.ModelCheckpoint``. If ``monitor`` is
    the default of the module's class and the module has another, that of the module is used.

    Example:
        >>> ExplainedCheckpoint(monitor="val/dice", mode="max", save_last=True).best_model_path
        ''
    """

    _held_back = False
    _overwrites = False  # files of this run that its state does not know, written before a kill

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Use the module's own monitor in place of the default of its class."""
        usual = getattr(type(pl_module), "monitor", None)
        if usual is not None and self.monitor == usual:
            self.monitor = getattr(pl_module, "monitor", usual)
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        if stage == "fit" and trainer.is_global_zero and not is_dry_run(trainer):
            remove_parts(Path(str(self.dirpath)))
        last = f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        self._overwrites = bool(self.save_last) and not Path(str(self.dirpath), last).exists()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a checkpoint; a ``monitor`` that cannot be is refused before the training."""
        prefix = str(self.monitor or "val/").partition("/")[0]
        if trainer.sanity_checking and prefix not in ("train", "val"):
            self._refuse_unknown(trainer.callback_metrics)
        super().on_validation_end(trainer, pl_module)

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.monitor is not None and trainer.fit_loop.epoch_loop.val_loop._has_run:
            self._refuse_unknown(monitor_candidates)
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _refuse_unknown(self, known: Mapping[str, Any]) -> None:
        name = str(self.monitor)
        if self.save_top_k and name not in known:
            raise ValueError(unknown_name(f"checkpoint.monitor: {name!r}", name, known))

    def file_exists(self, filepath: str | Path, trainer: L.Trainer) -> bool:
        """Whether there is a file that is to be kept, so that another name is needed."""
        known = str(filepath) in self.best_k_models or not self._overwrites
        return known and super().file_exists(filepath, trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoints so far, into this folder if the run goes on in another."""
        self._overwrites, kept = True, {}
        for path, score in state_dict["best_k_models"].items():
            own = Path(str(self.dirpath), Path(path).name)
            if own.exists() or Path(path).exists():
                kept[str(own)] = score
                _copy(Path(path), own)
            else:
                rank_zero_warn(
                    f"{path}: this checkpoint, the best so far with {float(score):.3f}, is not "
                    "there any more. The best from now on is kept."
                )
        order = sorted(kept, key=lambda path: float(kept[path]), reverse=self.mode == "max")
        best, worst = (order[0], order[-1]) if order else ("", "")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": kept,
                "best_model_path": best or self._unscored(state_dict),
                "best_model_score": kept.get(best),
                "kth_best_model_path": worst,
                "kth_value": kept.get(worst, self.kth_value),
            }
        )

    def _unscored(self, state_dict: dict[str, Any]) -> str:
        """The kept checkpoint of a callback without ``monitor``, if it is there."""
        path = state_dict["best_model_path"]
        return path if self.monitor is None and os.path.exists(path) else ""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save for going on only: what an exception leaves is not the best model."""
        told = isinstance(exception, SIGTERMException)
        saved = self._last_global_step_saved == trainer.global_step
        if (told or self.save_on_exception) and not (
            saved or is_dry_run(trainer) or trainer.sanity_checking
        ):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _should_skip_saving_checkpoint(self, trainer: L.Trainer) -> bool:
        """Save nothing by steps, time or epochs before the model is explained."""
        early = not is_explained(trainer.lightning_module)
        return early or super()._should_skip_saving_checkpoint(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save for going on at the end of every epoch; before the model is explained, only that."""
        super().on_train_epoch_end(trainer, pl_module)
        early = not is_explained(pl_module)
        self._held_back |= early
        saved = self._last_global_step_saved == trainer.global_step and (
            self._should_save_on_train_epoch_end(trainer)
        )
        linked = self.save_last == "link" and not early
        if self.save_last and not (saved or linked or is_dry_run(trainer)):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if early:
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


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        with appearing(target) as part:
            shutil.copyfile(source, part)
