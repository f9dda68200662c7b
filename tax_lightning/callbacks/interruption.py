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

    Example:
        >>> trainer = L.Trainer(callbacks=[Interruption()], logger=False, accelerator="cpu")
    """

    _received = 0  # number of the signal, 0 before one

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, before the first loader process is forked, which listens too then."""
        self._listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen; stop at once where a run goes on that was stopping early."""
        self._listen()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # Lightning keeps the count, but forgets that it was enough.
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
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after an epoch."""
        self._tell(trainer)

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
