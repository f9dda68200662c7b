"""What every model of several annotators does alike: batches, optimizers, metrics, checkpoints."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from tax_lightning.batch import Batch, complete_batch, unpacked
from tax_lightning.consensus import Reference, check_reference, reference_labels
from tax_lightning.data.preparation import Preparation
from tax_lightning.distributed import across_processes, alone
from tax_lightning.losses import SegmentationTerms
from tax_lightning.metrics import segmentation_metrics, set_metrics
from tax_lightning.models.mixture import mix
from tax_lightning.modules import checkpoints, evaluation, inference


class ModelOutput(NamedTuple):
    """What a model says about a batch.

    Attributes:
        log_probs: log of the resulting segmentation, ``[B, C, H, W]``.
        log_annotator_probs: log of what each annotator would draw, ``[B, N, C, H, W]``; N is 0 of a
            model that names nobody.
        log_who: log of the weight of each annotator, ``[B, N, H, W]``; equal ones where the model
            does not say who decides.
        log_samples: log of the segmentations that a model draws of whom it does not name,
            ``[B, S, C, H, W]``; ``None`` where the annotators are named.
        evidence: of which the weights are the softmax over N, ``[B, N, H, W]``, where the model
            learns them.
    """

    log_probs: Tensor
    log_annotator_probs: Tensor
    log_who: Tensor
    log_samples: Tensor | None = None
    evidence: Tensor | None = None

    @property
    def log_sample_probs(self) -> Tensor:
        """Log of the set of segmentations that the model expects, ``[B, S or N, C, H, W]``."""
        return self.log_annotator_probs if self.log_samples is None else self.log_samples

    @classmethod
    def weighing_all_alike(
        cls, log_annotator_probs: Tensor, log_probs: Tensor | None = None
    ) -> "ModelOutput":
        """Those of annotators who all weigh the same.

        Args:
            log_annotator_probs: ``[B, N, C, H, W]``.
            log_probs: the result, ``[B, C, H, W]``; by default the mean of the annotators.

        Example:
            >>> said = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log().view(1, 2, 2, 1, 1)
            >>> ModelOutput.weighing_all_alike(said).log_probs.exp().flatten()
            tensor([0.7500, 0.2500])
        """
        log_who = torch.zeros_like(log_annotator_probs[:, :, 0]).log_softmax(dim=1)
        result = mix(log_who, log_annotator_probs, "prob") if log_probs is None else log_probs
        return cls(result, log_annotator_probs, log_who)


class MultiAnnotatorModule(L.LightningModule):
    """A model of several annotators under any ``Trainer``, without a network.

    A subclass builds its network, sets ``loss``, and says what the network makes of images
    (``forward``), of whom (``_segment``) and what it learns from (``training_step``,
    ``_segmentation_loss``). The batches are those of
    :class:`~tax_lightning.modules.tax.TAXLightningModule`.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        reference: the labels that the result is measured against, and trained for where the model
            is, see :func:`tax_lightning.consensus.reference_labels`.
        optimizer: from parameters to an optimizer; the default is AdamW with a rate of 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.

    Raises:
        ValueError: if names are missing or doubled, or there is no such reference.
    """

    monitor = "val/fused_dice/mean"
    mode = "max"
    preparation: Preparation | None = None  # of its training images, where that is known
    refers_to_output = False  # whether the reference is taken from what the network says
    loss: SegmentationTerms

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        reference: Reference = "majority",
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.annotators = _names("annotators", annotators, least=1)
        self.classes = _names("classes", classes, least=2)
        check_reference(reference)
        self.reference: Reference = reference
        if reference == "none":
            self.monitor = "val/dice/mean"  # there is nothing to compare the result with
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def _measure_by(self, kernels: int | None = None, who: bool = True, named: bool = True) -> None:
        """Take the metrics of the segmentation, and in testing those of sets of them too."""
        names = self.annotators, self.classes
        self.val_metrics = segmentation_metrics(*names, kernels, who, named)
        in_test: dict[str, Metric | MetricCollection] = {}
        for collection in (self.val_metrics.clone(), set_metrics(*names, paired=named)):
            in_test |= dict(collection.items())
        self.test_metrics = MetricCollection(in_test, compute_groups=False)

    # ------------------------------------------------------------------ use

    def predict(
        self,
        images: Tensor,
        annotator: str | None = None,
        panel: Sequence[str] | None = None,
    ) -> Tensor:
        """Segment images: the result, or as one annotator would, or as some of them together would.

        Args:
            images: ``[B, ch, H, W]``.
            annotator: name; the segmentation that this annotator would draw.
            panel: names; the result if only these annotators counted.

        Returns:
            Probabilities ``[B, C, H, W]``.

        Raises:
            ValueError: if a name is unknown, nobody is named, or both arguments are given.
        """
        chosen = inference.chosen_annotators(self.annotators, annotator, panel)
        return self._segment(images, chosen)

    def _segment(self, images: Tensor, chosen: list[int] | None) -> Tensor:
        """Probabilities ``[B, C, H, W]`` if only those at these places counted; else all."""
        raise NotImplementedError

    # ------------------------------------------------------------------ batches

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check a batch while it is still in the CPU's memory, and fill in the optional keys."""
        return complete_batch(batch, self.annotators, self.classes, needs_labels=self._needs_labels)

    def _completed(self, batch: Batch) -> Batch:
        """The batch, where a data module's own hooks kept ours from being called."""
        checked = batch if "present" in batch else self.on_before_batch_transfer(batch, 0)
        return unpacked(checked)

    @property
    def _needs_labels(self) -> bool:
        return not (self._trainer is not None and self.trainer.predicting)

    def reference_labels(self, batch: Batch, output: Any) -> Tensor | None:  # noqa: ANN401
        """The labels that the result is trained for, ``[B, H, W]``; 255 where unknown.

        Args:
            batch: as it came.
            output: what the network said of it; ``None`` unless :attr:`refers_to_output`.

        Returns:
            Class ids, or ``None`` for ``reference="none"``.
        """
        return reference_labels(self.reference, batch, len(self.classes))

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Note how long the run is; take the losses over all of its processes."""
        self._total_steps = self.trainer.estimated_stepping_batches
        self.loss.total = across_processes if self.trainer.world_size > 1 else alone

    def on_train_end(self) -> None:
        """Take losses over this process again."""
        self.loss.total = alone

    @property
    def _progress(self) -> float:
        """Share of the run that is over with the coming step: also the shortest run ends at 1."""
        return (self.trainer.global_step + 1) / self._total_steps

    def _log_loss(self, loss: Tensor, terms: dict[str, Tensor], images: int) -> None:
        """Log the loss of a training step and, by name, the terms that it is the sum of."""
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        self.log_dict(
            {f"train/loss_{name}": term.detach() for name, term in terms.items()},
            batch_size=images,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and scheduler given, on all parameters."""
        make = self.optimizer or (lambda params: torch.optim.AdamW(params, lr=1e-3))
        optimizer = make(self._optimized())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor},
        }

    def _optimized(self) -> list[Any]:
        """The parameters that are trained, or groups of them as an optimizer takes them."""
        return [p for p in self.parameters() if p.requires_grad]

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics, see :func:`tax_lightning.metrics.segmentation_metrics`."""
        loss = self._evaluate(batch, self.val_metrics)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["masks"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics, those of :func:`tax_lightning.metrics.set_metrics` among them."""
        loss = self._evaluate(batch, self.test_metrics)
        self.log("test/loss", loss, sync_dist=True, batch_size=len(batch["masks"]))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation split by name."""
        self._log_metrics(self.val_metrics, "val/")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test split by name."""
        self._log_metrics(self.test_metrics, "test/")
        values = self._values_of_test()
        if values:
            self.log_dict(evaluation.with_a_case(values, "test/"))

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> Tensor:
        """Update the metrics; returns the loss of the segmentations."""
        batch = self._completed(batch)
        output = self(batch["image"])
        reference = self.reference_labels(batch, output)
        evaluation.measure(batch, output, reference, metrics)
        if metrics is self.test_metrics:
            self._measure_in_test(batch, output, reference)
        return self._segmentation_loss(batch, output, reference)

    def _segmentation_loss(
        self,
        batch: Batch,
        output: Any,  # noqa: ANN401 - of the subclass's `forward`
        reference: Tensor | None,
    ) -> Tensor:
        """The part of the objective that a validation or test has."""
        raise NotImplementedError

    def _measure_in_test(
        self,
        batch: Batch,
        output: Any,  # noqa: ANN401 - of the subclass's `forward`
        reference: Tensor | None,
    ) -> None:
        """Update what is measured in testing alone, because it takes long."""

    def _values_of_test(self) -> dict[str, Tensor]:
        """The values of what is measured in testing alone, which then forgets the batches."""
        return {}

    def _log_metrics(self, metrics: MetricCollection, prefix: str) -> None:
        known = evaluation.with_a_case(metrics.compute(), prefix)
        metrics.reset()
        self.log_dict(known)
        if self.monitor in known:
            self.log("dice", known[self.monitor], prog_bar=True, logger=False)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the class, the names, and how images are prepared."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["names"] = {"annotators": self.annotators, "classes": self.classes}
        prepared = getattr(getattr(self._trainer, "datamodule", None), "preparation", None)
        if isinstance(prepared, Preparation):
            self.preparation = prepared
        if self.preparation is not None:
            checkpoint["preparation"] = self.preparation.to_primitives()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other annotators or classes; take up how images are prepared."""
        checkpoints.check_same_names(checkpoint, annotators=self.annotators, classes=self.classes)
        if "preparation" in checkpoint:
            self.preparation = Preparation.from_primitives(checkpoint["preparation"])


def _names(argument: str, names: Sequence[str], least: int) -> tuple[str, ...]:
    if isinstance(names, str) or len(names) < least or len(set(names)) < len(names):
        hint = " Name the background first, then at least one class." if least == 2 else ""
        raise ValueError(
            f"{argument}={names!r}: expected a list of at least {least} different names.{hint}"
        )
    return tuple(names)
