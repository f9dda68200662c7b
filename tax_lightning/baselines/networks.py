"""Networks without randomness: one for the consensus, one network or one head per annotator."""

# ruff: noqa: ANN401 - options are those of Baseline

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tax_lightning.baselines.baseline import Baseline, Names, Terms
from tax_lightning.batch import Batch
from tax_lightning.metrics import WhoMetrics
from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.mixture import mix
from tax_lightning.models.output import ModelOutput


class SegmentationNetwork(DenseNetwork):
    """A :class:`DenseNetwork` and a convolution: log of probabilities ``[B, C, H, W]``."""

    def __init__(self, classes: int, **backbone: Any) -> None:
        super().__init__(**backbone)
        self.head = nn.Conv2d(self.channels, classes, 3, padding="same")  # 3 x 3, as in smp

    def forward(self, images: Tensor) -> Tensor:
        """Features, then classes."""
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """The same of features ``[B, D, H, W]``."""
        logits: Tensor = self.head(features)
        # In float32 also where the convolutions run in bf16.
        return logits.float().log_softmax(dim=1)


class Consensus(Baseline):
    """One network, trained on the reference alone; it predicts the same for every annotator.

    STAPLE: S. K. Warfield, K. H. Zou, W. M. Wells, "Simultaneous truth and performance level
    estimation (STAPLE)", IEEE TMI 2004. Pixels where a vote is a tie are left out of the loss.

    Example:
        >>> module = Consensus(["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1))
        >>> module.predict(torch.randn(1, 3, 8, 8), annotator="Ben").shape
        torch.Size([1, 2, 8, 8])
    """

    needs_reference = "learns nothing but the reference"

    def __init__(self, annotators: Names, classes: Names, **options: Any) -> None:
        super().__init__(annotators, classes, **options)
        self.network = SegmentationNetwork(len(self.classes), **self.backbone)

    def forward(self, images: Tensor) -> ModelOutput:
        """The consensus, for every annotator alike."""
        log_probs = self.network(images)
        own = log_probs.unsqueeze(1).expand(-1, len(self.annotators), -1, -1, -1)
        return ModelOutput.weighing_all_alike(own, log_probs)

    def common_terms(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> Terms:
        """``fused``: the result against the reference."""
        assert reference is not None  # refused when built
        return {"fused": self.loss.between(output.log_probs[:, None], reference[:, None])}


class SoftVote(Consensus):
    """One network, trained on the labels of all annotators alike; predicts the same for each.

    Where all labelled a pixel, the probabilities with the smallest loss are the shares of the
    votes. It needs no reference.
    """

    needs_reference = ""

    def common_terms(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> Terms:
        """``vote``: the result against every annotator's labels."""
        return {"vote": self.loss.between(output.log_annotator_probs, batch["masks"])}


class RandomRater(SoftVote):
    """:class:`SoftVote` that sees the labels of one annotator an image, drawn anew at each step.

    M. H. Jensen, D. R. Jørgensen, R. Jalaboi, M. E. Hansen, M. A. Olsen, "Improving uncertainty
    estimation in convolutional neural networks using inter-rater agreement", MICCAI 2019.
    """

    def terms(self, batch: Batch) -> Terms:
        """``vote``: the result against the labels drawn, of those who labelled the image."""
        present = batch["present"].float()
        present[present.sum(1) == 0] = 1.0  # nobody did, and there is nothing to draw
        drawn = torch.multinomial(present, 1)
        labels = batch["masks"].take_along_dim(drawn[:, :, None, None], dim=1)
        return {"vote": self.loss.between(self(batch["image"]).log_probs[:, None], labels)}


class Separate(Baseline):
    """One network for each annotator, trained on this annotator's labels; the result is their mean.

    Every network sees all images of a batch, so that batch statistics do not depend on who labelled
    what. An annotator without labels in a batch has gradients of zero. ``network`` is copied.
    """

    def __init__(self, annotators: Names, classes: Names, **options: Any) -> None:
        super().__init__(annotators, classes, **options)
        self.networks = nn.ModuleList(
            SegmentationNetwork(len(self.classes), **copy.deepcopy(self.backbone))
            for _ in self.annotators
        )

    def forward(self, images: Tensor) -> ModelOutput:
        """The prediction of each annotator's network, and their mean."""
        own = torch.stack([network(images) for network in self.networks], dim=1)
        return ModelOutput.weighing_all_alike(own)


class MultiHead(Baseline):
    """A shared network with one head for each annotator; the result is the mean of the heads.

    The heads are one stacked convolution; each learns from its annotator's labels alone. After
    M. Y. Guan, V. Gulshan, A. M. Dai, G. E. Hinton, "Who said what: modeling individual labelers
    improves classification", AAAI 2018.

    Args:
        kernel_size: side of a head, and of the gate, in pixels, odd.

    Example:
        >>> module = MultiHead(["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1))
        >>> module.heads.weight.shape  # N, 1, C, D and the sides
        torch.Size([2, 1, 2, 4, 3, 3])
    """

    def __init__(
        self, annotators: Names, classes: Names, kernel_size: int = 3, **options: Any
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.save_hyperparameters({"kernel_size": kernel_size})
        self.network = DenseNetwork(**self.backbone)
        count, channels = len(self.annotators), self.network.channels
        self.heads = KernelBank(count, 1, len(self.classes), channels, kernel_size)

    def forward(self, images: Tensor) -> ModelOutput:
        """The prediction of each head, and their mean."""
        return ModelOutput.weighing_all_alike(self._own(self.network.features(images)))

    def _own(self, features: Tensor) -> Tensor:
        """Log of what each annotator would draw ``[B, N, C, H, W]``."""
        logits: Tensor = self.heads(features)
        return logits.squeeze(2).float().log_softmax(dim=2)


class GatedMultiHead(MultiHead):
    """:class:`MultiHead` with a free gate: p = sum_n w_n p_n, w the softmax of a convolution.

    It says who decides a pixel, as TAX does, but without prototypes it cannot say why. The gate
    learns from the reference alone; a head learns from it where its annotator agrees. After
    R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, "Adaptive mixtures of local experts",
    Neural Computation 1991; here the experts are annotators with known labels.

    Args:
        explanation_metrics: whether testing also measures who, see
            :class:`~tax_lightning.metrics.explanation.WhoMetrics`.
    """

    weighs = True

    def __init__(
        self, annotators: Names, classes: Names, explanation_metrics: bool = False, **options: Any
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.save_hyperparameters({"explanation_metrics": explanation_metrics})
        channels, size = self.heads.weight.shape[-3], self.heads.weight.shape[-1]
        self.gate = nn.Conv2d(channels, len(self.annotators), size, padding="same")
        if explanation_metrics:
            self.explanation_metrics = WhoMetrics(self.annotators)

    def forward(self, images: Tensor) -> ModelOutput:
        """The predictions of the heads, mixed by the gate."""
        features = self.network.features(images)
        own = self._own(features)
        log_who = self.gate(features).float().log_softmax(dim=1)
        return ModelOutput(mix(log_who, own), own, log_who)

    def common_terms(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> Terms:
        """``annotator`` and ``fused``, as in TAXLightningModule."""
        return self.loss.segmentation_terms(output, batch["masks"], reference)
