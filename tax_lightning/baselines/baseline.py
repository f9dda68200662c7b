"""What all baselines share: the arguments of the backbone, the loss, a plain training step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from tax_lightning.batch import Batch
from tax_lightning.consensus import Reference
from tax_lightning.explanation import Prediction
from tax_lightning.losses import SegmentationLoss, SegmentationTerms
from tax_lightning.models.backbone import DenseNetwork, evaluating
from tax_lightning.models.mixture import mix
from tax_lightning.models.output import ModelOutput
from tax_lightning.modules import checkpoints
from tax_lightning.modules.base import MultiAnnotatorModule

HEAD_SIZE = 3  # of the convolution that ends a network, as smp has it


class Baseline(MultiAnnotatorModule):
    """A model to compare :class:`~tax_lightning.modules.tax.TAXLightningModule` with.

    Takes the same batches, backbones, optimizers and metrics. A subclass builds its network of
    :attr:`backbone`, says what it makes of images (``forward``) and what it learns from
    (:meth:`segmentation_terms`, :meth:`terms`).

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        network: any module that gives dense features ``[B, D, h, w]``, instead of the arguments
            from ``architecture`` to ``backbone_options``. To load a checkpoint of such a module,
            give the network again.
        architecture: of segmentation_models_pytorch, such as ``"unet"``.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``"imagenet"`` fetches pretrained weights; ``None`` stays offline.
        in_channels: channels of an image.
        backbone_options: further arguments of the smp architecture.
        reference: the labels that the result is measured against, and trained for where the model
            is: ``"given"``, ``"majority"``, ``"staple"`` or ``"none"``.
        segmentation_loss: cross-entropy, Dice or their sum.
        optimizer: from parameters to an optimizer; the default is AdamW with a rate of 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.

    Attributes:
        backbone: arguments of :class:`~tax_lightning.models.backbone.DenseNetwork`.
        weights: of the terms of the objective by name; 1 for those that it does not name.

    Raises:
        ValueError: if names are missing or doubled, an option is unknown, or a checkpoint of one's
            own network is loaded without that network.
    """

    named = True  # says what each annotator would draw
    weighs = False  # says who decides

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
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
    ) -> None:
        super().__init__(annotators, classes, reference, optimizer, lr_scheduler)
        built_of: dict[str, Any] = {
            "architecture": architecture,
            "encoder": encoder,
            "encoder_weights": encoder_weights,
            "in_channels": in_channels,
            "backbone_options": backbone_options,
        }
        # Primitives only, so that a checkpoint loads with weights_only=True.
        self.save_hyperparameters(
            {
                "annotators": list(annotators),
                "classes": list(classes),
                "network": None if network is None else "given",
                **built_of,
                "reference": reference,
                "segmentation_loss": segmentation_loss,
            }
        )
        self.backbone = {**built_of, "backbone": checkpoints.given_network(network)}
        self.weights: Mapping[str, float] = {}
        self.loss = SegmentationTerms(segmentation_loss)
        self._measure_by(who=self.weighs, named=self.named)

    # ------------------------------------------------------------------ use

    def forward(self, images: Tensor) -> ModelOutput:
        """What the model says of images ``[B, ch, H, W]``."""
        raise NotImplementedError

    @torch.no_grad()
    def _segment(self, images: Tensor, chosen: list[int] | None) -> Tensor:
        with evaluating(self):
            output = self(images)
        if chosen is None:
            result: Tensor = output.log_probs.exp()
            return result
        weights = output.log_who[:, chosen].log_softmax(dim=1)
        return mix(weights, output.log_annotator_probs[:, chosen]).exp()

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """The segmentations of each image, on the CPU."""
        output = self(batch["image"])
        return Prediction(
            ids=tuple(batch["id"]),
            annotators=self.annotators if self.named else (),
            classes=self.classes,
            probs=output.log_probs.exp(),
            annotator_probs=output.log_annotator_probs.exp(),
        ).to("cpu")

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of all terms; each term is logged."""
        batch = self._completed(batch)
        terms = self.terms(batch)
        weighted = [self.weights.get(name, 1.0) * term for name, term in terms.items()]
        loss = torch.stack(weighted).sum()
        self._log_loss(loss, terms, images=len(batch["masks"]))
        return loss

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective in training, scalars by name."""
        output = self(batch["image"])
        return self.segmentation_terms(batch, output, self.reference_labels(batch, output))

    def segmentation_terms(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms that evaluation has too: what each would draw against what each drew."""
        return {"annotator": self.loss.between(output.log_annotator_probs, batch["masks"])}

    def _segmentation_loss(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> Tensor:
        terms = self.segmentation_terms(batch, output, reference)
        return torch.stack(list(terms.values())).sum()


class SegmentationNetwork(DenseNetwork):
    """An ordinary segmentation network: dense features, and a convolution to class logits.

    Args:
        classes: number of classes C.
        **backbone: arguments of :class:`~tax_lightning.models.backbone.DenseNetwork`.

    Example:
        >>> network = SegmentationNetwork(2, backbone=nn.Conv2d(3, 4, 1))
        >>> network(torch.randn(1, 3, 8, 8)).exp().sum(dim=1).allclose(torch.ones(1, 8, 8))
        True
    """

    def __init__(self, classes: int, **backbone: Any) -> None:  # noqa: ANN401
        super().__init__(**backbone)
        self.head = nn.Conv2d(self.channels, classes, HEAD_SIZE, padding="same")

    def forward(self, images: Tensor) -> Tensor:
        """Log of probabilities ``[B, C, H, W]``."""
        return self.decide(self.features(images))

    def decide(self, features: Tensor) -> Tensor:
        """Log of probabilities ``[B, C, H, W]`` of features ``[B, D, H, W]``."""
        logits: Tensor = self.head(features)
        # In float32 also where the convolutions run in bf16.
        return logits.float().log_softmax(dim=1)
