"""What all baselines share: their arguments, a training step, predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from tax_lightning.batch import Batch
from tax_lightning.consensus import Reference
from tax_lightning.explanation import Prediction
from tax_lightning.losses import SegmentationLoss, SegmentationTerms
from tax_lightning.models.output import ModelOutput
from tax_lightning.modules import checkpoints
from tax_lightning.modules.base import MultiAnnotatorModule

Names = Sequence[str]
Terms = dict[str, Tensor]  # of the loss: scalars by name


class Baseline(MultiAnnotatorModule):
    """A model to compare :class:`~tax_lightning.modules.tax.TAXLightningModule` with.

    It takes the same batches, backbones, optimizers and metrics. A subclass builds a
    :class:`~tax_lightning.models.backbone.DenseNetwork` with the arguments ``self.backbone``, and
    defines what it predicts (:meth:`forward`) and what it learns from
    (:meth:`common_terms`, :meth:`terms`). All subclasses take these arguments:

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        network: module that gives dense features ``[B, D, h, w]``, in place of the five arguments
            below. A checkpoint does not hold it: give it again to load one.
        architecture: of segmentation_models_pytorch, such as ``"unet"``.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``"imagenet"``, the path of a file, or ``None`` for random weights, see
            :class:`~tax_lightning.models.backbone.DenseNetwork`.
        in_channels: channels of an image.
        backbone_options: further arguments of the smp architecture.
        reference: labels that the result is compared with, and trained on where the method does so:
            ``"given"``, ``"majority"``, ``"staple"`` or ``"none"``.
        segmentation_loss: ``"ce"``, ``"dice"`` or ``"ce+dice"``.
        optimizer: from parameters to an optimizer; the default is AdamW with a rate of 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.
        encoder_rate: share of the learning rate for the encoder, as in the base class.
        types: learn types of annotation in place of annotators, as in the base class.

    Raises:
        ValueError: if names are missing or repeated, an option is unknown or out of its range, the
            method needs a reference, or the network of a checkpoint was not given again.
    """

    weighs = False  # learns a weight for each annotator at each pixel
    needs_reference = ""  # the reason, where a method cannot do without

    def __init__(
        self,
        annotators: Names,
        classes: Names,
        network: nn.Module | None = None,
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        reference: Reference = "majority",
        segmentation_loss: SegmentationLoss = "ce",
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        encoder_rate: float = 1.0,
        types: bool = False,
    ) -> None:
        given_names = annotators, classes
        super().__init__(*given_names, reference, optimizer, lr_scheduler, encoder_rate, types)
        if reference == "none" and self.needs_reference:
            raise ValueError(
                f"reference='none': {type(self).__name__} {self.needs_reference}. Set "
                "reference='majority', 'staple' or 'given'."
            )
        built_of: dict[str, Any] = {
            "architecture": architecture,
            "encoder": encoder,
            "encoder_weights": encoder_weights,
            "in_channels": in_channels,
            "backbone_options": backbone_options,
        }
        names = {"annotators": list(annotators), "classes": list(classes)}
        given = {"network": None if network is None else "given"}
        rest = {
            "reference": reference,
            "segmentation_loss": segmentation_loss,
            "encoder_rate": encoder_rate,
            "types": types,
        }
        # Primitives only, so that a checkpoint loads with weights_only=True. Subclasses add theirs.
        self.save_hyperparameters(names | given | built_of | rest)
        self.backbone = {**built_of, "backbone": checkpoints.given_network(network)}
        self.weights: Mapping[str, float] = {}  # of the terms of the loss; 1 where none is given
        self.loss = SegmentationTerms(segmentation_loss)
        self._measure_by(who=self.weighs, named=self.named)

    def forward(self, images: Tensor) -> ModelOutput:
        """Predictions for images ``[B, ch, H, W]``."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> Terms:
        """The terms of the loss in training."""
        output = self(batch["image"])
        batch = self.matched(batch, output.log_annotator_probs)
        return self.common_terms(batch, output, self.reference_labels(batch, output))

    def common_terms(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> Terms:
        """Those that evaluation has too; here ``annotator``: each prediction against its mask."""
        return {"annotator": self.loss.between(output.log_annotator_probs, batch["masks"])}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of all terms; each term is logged."""
        batch = self._completed(batch)
        terms = self.terms(batch)
        loss = torch.stack([self.weights.get(name, 1.0) * terms[name] for name in terms]).sum()
        self._log_loss(loss, terms, images=len(batch["masks"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """The segmentations of each image, on the CPU."""
        output = self(batch["image"])
        return Prediction(
            ids=tuple(batch["id"]),
            annotators=self.shown_names if self.named else (),
            classes=self.classes,
            probs=output.log_probs.exp(),
            annotator_probs=output.log_annotator_probs.exp(),
        ).to("cpu")

    def _segmentation_loss(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> Tensor:
        return torch.stack([*self.common_terms(batch, output, reference).values()]).sum()
