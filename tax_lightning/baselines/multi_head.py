"""A shared network with one head an annotator, without and with weights of the annotators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tax_lightning.baselines.baseline import Baseline
from tax_lightning.batch import Batch
from tax_lightning.metrics import EvidenceMetrics
from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.mixture import mix
from tax_lightning.models.output import ModelOutput


class MultiHead(Baseline):
    """A shared network with one convolution to class logits for each annotator.

    All heads are one convolution. They learn from their annotators' labels alone; the result is the
    mean of their probabilities.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        kernel_size: side of a head in pixels, odd.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> import torch
        >>> module = MultiHead(["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1))
        >>> module.predict(torch.randn(1, 3, 8, 8), annotator="Ben").shape
        torch.Size([1, 2, 8, 8])

    Source:
        M. Y. Guan, V. Gulshan, A. M. Dai, G. E. Hinton, "Who said what: modeling individual
        labelers improves classification", AAAI 2018, for whole images; here a head sees a
        neighbourhood, and averages are not learnt.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        kernel_size: int = 3,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.save_hyperparameters({"kernel_size": kernel_size})
        self.network = DenseNetwork(**self.backbone)
        self.heads = KernelBank(
            len(self.annotators), 1, len(self.classes), self.network.channels, kernel_size
        )

    def forward(self, images: Tensor) -> ModelOutput:
        """What each head says, and their mean."""
        return ModelOutput.weighing_all_alike(self._own(self.network.features(images)))

    def _own(self, features: Tensor) -> Tensor:
        """Log of what each annotator would draw ``[B, N, C, H, W]``."""
        logits: Tensor = self.heads(features)
        return logits.squeeze(2).float().log_softmax(dim=2)


class GatedMultiHead(MultiHead):
    """:class:`MultiHead` whose result is weighed by a free gate: who without prototypes.

    A convolution on the features gives each annotator's evidence at each pixel, and the softmax of
    that the weights. The heads learn from their annotators' labels, gate and heads from the
    reference, as :class:`~tax_lightning.modules.tax.TAXLightningModule` does: where an annotator's label
    is not the reference's, the gate is taught, but not their head. Nothing says why.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        kernel_size: side of a head and of the gate in pixels, odd.
        explanation_metrics: whether testing measures who too, and the purity of the pixels of the
            largest evidence, see :class:`~tax_lightning.metrics.explanation.EvidenceMetrics`.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> import torch
        >>> names = ["Ana", "Ben"], ["background", "cell"]
        >>> module = GatedMultiHead(*names, network=nn.Conv2d(3, 4, 1))
        >>> module(torch.randn(1, 3, 8, 8)).log_who.exp().sum(1).allclose(torch.ones(1, 8, 8))
        True

    Source:
        R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, "Adaptive mixtures of local
        experts", Neural Computation 1991, with annotators for experts, whose labels are known.
    """

    weighs = True

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        kernel_size: int = 3,
        explanation_metrics: bool = False,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, kernel_size, **options)
        self.save_hyperparameters({"explanation_metrics": explanation_metrics})
        self.gate = nn.Conv2d(
            self.network.channels, len(self.annotators), kernel_size, padding="same"
        )
        self.explanation_metrics = (
            EvidenceMetrics(self.annotators, len(self.classes)) if explanation_metrics else None
        )

    def forward(self, images: Tensor) -> ModelOutput:
        """What each head says, mixed by the gate."""
        features = self.network.features(images)
        own, evidence = self._own(features), self.gate(features).float()
        log_who = evidence.log_softmax(dim=1)
        return ModelOutput(mix(log_who, own), own, log_who, evidence=evidence)

    def segmentation_terms(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """Each annotator's own, and the result: those of TAXLightningModule."""
        return self.loss.segmentation_terms(output, batch["masks"], reference)

    def _measure_in_test(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> None:
        super()._measure_in_test(batch, output, reference)
        if self.explanation_metrics is not None:
            assert output.evidence is not None
            unknown = torch.full_like(batch["masks"][:, 0], 255)
            self.explanation_metrics.update_evidence(
                log_who=output.log_who,
                log_annotator_probs=output.log_annotator_probs,
                similarity=output.evidence.unsqueeze(2),
                masks=batch["masks"],
                present=batch["present"],
                reference=unknown if reference is None else reference,
                expert=batch.get("expert"),
            )

    def _values_of_test(self) -> dict[str, Tensor]:
        values = super()._values_of_test()
        if self.explanation_metrics is not None:
            values |= self.explanation_metrics.compute()
            self.explanation_metrics.reset()
        return values
