"""Runs that are told to stop: by SIGTERM, as schedulers do, or by Ctrl-C."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Interruption(Callback):
    """Lets a training end between two steps when it is told to, so that it can go on as it was.

    At SIGTERM or Ctrl-C the step, and a validation that follows it, is finished. Then all processes
    raise Lightning's ``SIGTERMException``, for which
    :class:`~tax_lightning.callbacks.checkpoint.ExplainedCheckpoint` writes ``last.ckpt``. The exit
    code is 143 or 130, as of a process that the signal killed. A second Ctrl-C stops at once.

    Other signals are left alone: the one by which SLURM asks for a requeue is Lightning's own.

    A run that goes on ends as it would have without a stop. Where Lightning forgets something at a
    restart, this callback notes it in the checkpoint: that an epoch was finished, that early
    stopping had its reason, and the value by which a schedule of the learning rate is steered.

    Example:
        >>> trainer = L.Trainer(callbacks=[Interruption()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._received = 0  # number of the signal, 0 before one
        self._validated = False  # since this start
        self._missed: dict[str, Any] = {}  # values that schedules have not seen yet

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, before the first loader process is forked, which listens too then."""
        self._listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen; take the steps that Lightning forgot at a restart."""
        self._listen()
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self._missed:
                config.scheduler.step(self._missed[config.monitor])
        self._missed = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # The count is kept, but not that it was enough.
            if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
                trainer.should_stop = True

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            # In place of Lightning's, whose handler waits for the other processes within a step.
            # It puts the earlier ones back when it is done.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        name = signal.Signals(number).name
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\n{name}: the run stops after this step.", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - as the parent
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Stop, unless gradients of further batches are still to be added."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._tell(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finish a validation: half of one cannot be taken up again."""
        trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after a validation."""
        if not trainer.sanity_checking:
            self._validated = True
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after an epoch; let Lightning's schedules see what was validated in it."""
        if self._validated:
            trainer.fit_loop._restarting = False
        self._tell(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what schedules are steered by."""
        known = trainer.callback_metrics
        names = {str(config.monitor) for config in trainer.lr_scheduler_configs} & known.keys()
        checkpoint["schedule_values"] = {name: float(known[name]) for name in names}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Begin the next epoch where the checkpoint is of the end of one."""
        loop = checkpoint.get("loops", {}).get("fit_loop")
        if loop is None:  # weights alone
            return
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        if epochs["current"]["ready"] == epochs["current"]["processed"]:
            if epochs["current"]["completed"] < epochs["current"]["processed"]:
                self._missed = checkpoint.get("schedule_values", {})
            for counts in (epochs["current"], epochs["total"]):
                counts["completed"] = counts["processed"]
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False

    def _tell(self, trainer: L.Trainer) -> None:
        """Let Lightning stop all processes at the end of this step if one of them was told to."""
        if trainer.world_size > 1:
            received = torch.tensor(self._received, device=trainer.strategy.root_device)
            self._received = int(trainer.strategy.reduce(received, reduce_op="max"))
        if self._received:
            trainer._signal_connector.received_sigterm = True

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the exit its code."""
        if isinstance(exception, SIGTERMException) and trainer.is_global_zero:
            exception.code = 128 + (self._received or signal.SIGTERM)
