"""An ordinary segmentation network, trained on the reference alone, by the same command line.

    MODULE=experiments.trust.plain_network
    python -m $MODULE fit --config FILE --model=$MODULE.PlainSegmentation

takes every option of ``tax fit``; what a configuration says of the explanation has no meaning here
and is left out.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import segmentation_models_pytorch as smp
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.batch import Batch
from tax_lightning.callbacks import ExplanationLogger
from tax_lightning.cli import TAXCLI
from tax_lightning.data.labels import IGNORE_INDEX
from tax_lightning.metrics import FusedOverlap

MONITOR = "val/fused_dice/mean"


class PlainSegmentation(L.LightningModule):
    """A network of segmentation_models_pytorch with cross-entropy on the reference given.

    Args:
        annotators: names; what they drew is not looked at.
        classes: names, in the order of class ids; the first is the background.
        architecture: of segmentation_models_pytorch.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``None`` stays offline.
        in_channels: channels of an image.
        backbone_options: further arguments of the architecture.
        optimizer: from parameters to an optimizer; the default is that of TAXLightningModule.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                "annotators": list(annotators),
                "classes": list(classes),
                "architecture": architecture,
                "encoder": encoder,
                "encoder_weights": encoder_weights,
                "in_channels": in_channels,
                "backbone_options": backbone_options,
            }
        )
        self.network = smp.create_model(
            architecture,
            encoder_name=encoder,
            encoder_weights=encoder_weights,
            in_channels=in_channels,
            classes=len(classes),
            **(backbone_options or {}),
        )
        self.val_metric = FusedOverlap(classes)
        self.test_metric = FusedOverlap(classes)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]`` of images ``[B, ch, H, W]``."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over the pixels with a reference."""
        loss = F.cross_entropy(self(batch["image"]), batch["reference"], ignore_index=IGNORE_INDEX)
        self.log("train/loss", loss, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metric."""
        self._evaluate(batch, self.val_metric)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metric."""
        self._evaluate(batch, self.test_metric)

    def on_validation_epoch_end(self) -> None:
        """Log overlap with the reference, by the names that TAXLightningModule gives it."""
        self._log_overlap(self.val_metric, "val/")

    def on_test_epoch_end(self) -> None:
        """Log overlap with the reference, by the names that TAXLightningModule gives it."""
        self._log_overlap(self.test_metric, "test/")

    def _evaluate(self, batch: Batch, metric: FusedOverlap) -> None:
        prediction = self(batch["image"]).argmax(dim=1)
        metric.update(prediction=prediction, reference=batch["reference"])

    def _log_overlap(self, metric: FusedOverlap, prefix: str) -> None:
        values = metric.compute()
        metric.reset()
        self.log_dict({prefix + name: value for name, value in values.items() if value == value})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and scheduler given, on all parameters."""
        make = self.optimizer or (lambda params: torch.optim.AdamW(params, lr=1e-3))
        optimizer = make(list(self.parameters()))
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": MONITOR},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the class, which the command line builds again for testing."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"


class PlainCLI(TAXCLI):
    """The command ``tax`` without pictures: there is nothing to explain."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401 - as the parent
        """The trainer without the callback that draws explanations."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ExplanationLogger)]
        return trainer


if __name__ == "__main__":
    import sys

    PlainCLI.run(sys.argv[1:])
