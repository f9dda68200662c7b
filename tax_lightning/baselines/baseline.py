"""What all baselines share: their arguments, a training step, predictions."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tax_lightning.batch import Batch
from tax_lightning.explanation import Prediction
from tax_lightning.losses import SegmentationTerms
from tax_lightning.models.output import ModelOutput
from tax_lightning.modules.base import MultiAnnotatorModule

Names = Sequence[str]
Terms = dict[str, Tensor]  # of the loss: scalars by name


class Baseline(MultiAnnotatorModule):
    """A model to compare :class:`~tax_lightning.modules.tax.TAXLightningModule` with.

    It takes the same batches, backbones, optimizers and metrics, and the same arguments, which are
    those of :class:`~tax_lightning.modules.base.MultiAnnotatorModule`. A subclass builds a
    :class:`~tax_lightning.models.backbone.DenseNetwork` with the arguments ``self.backbone``, and
    defines what it predicts (:meth:`forward`) and what it learns from
    (:meth:`common_terms`, :meth:`terms`).

    Raises:
        ValueError: as in the base class, or if the method needs a reference.
    """

    needs_reference = ""  # the reason, where a method cannot do without

    def __init__(
        self,
        annotators: Names,
        classes: Names,
        **options: Any,  # noqa: ANN401 - of the base class
    ) -> None:
        super().__init__(annotators, classes, **options)
        if self.reference == "none" and self.needs_reference:
            raise ValueError(
                f"reference='none': {type(self).__name__} {self.needs_reference}. Set "
                "reference='majority', 'staple' or 'given'."
            )
        self.weights: Mapping[str, float] = {}  # of the terms of the loss; 1 where none is given
        self.loss = SegmentationTerms(self.hparams["segmentation_loss"])
        self._measure_by(who=self.weighs, named=self.named)

    @abstractmethod
    def forward(self, images: Tensor) -> ModelOutput:
        """Predictions for images ``[B, ch, H, W]``."""

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
