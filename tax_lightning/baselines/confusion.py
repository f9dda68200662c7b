"""One truth for all, and a confusion matrix for each annotator."""

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor, eye, nn

from tax_lightning.baselines.baseline import Baseline, Names, Terms
from tax_lightning.baselines.networks import SegmentationNetwork
from tax_lightning.batch import Batch
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.output import ModelOutput

DIAGONAL = 0.95  # of a confusion matrix at the start


class Confusion(Baseline):
    """p_n(j) = sum_i p(i) A_n[i, j]: annotator n confuses the classes i of the truth p.

    The rows of A_n sum to 1. The annotators' labels teach p and A. The trace of A is kept small, so
    that disagreement is attributed to the annotators and not to p. This penalty starts after a
    warm-up, in which the network learns what the annotators agree on. The result is p.

    Args:
        trace_weight: weight of the mean trace of the matrices.
        warm_up: share of the run without the penalty, in [0, 1].
    """

    def __init__(
        self,
        annotators: Names,
        classes: Names,
        trace_weight: float = 0.01,
        warm_up: float = 0.1,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.save_hyperparameters({"trace_weight": trace_weight, "warm_up": warm_up})
        if not 0 <= warm_up <= 1:
            raise ValueError(f"warm_up={warm_up}: expected a share of the run, from 0 to 1.")
        self.weights, self.warm_up = {"trace": trace_weight}, warm_up
        size = len(self.classes)
        self.network = SegmentationNetwork(size, **self.backbone)
        self._build(size, math.log(DIAGONAL * (size - 1) / (1 - DIAGONAL)) * eye(size))

    @abstractmethod
    def _build(self, size: int, start: Tensor) -> None:
        """Make what gives the matrices, which start from these logits ``[C, C]``."""

    @abstractmethod
    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[B, N, C, C, H, W]``; B, H and W are 1 where they do not vary."""

    def forward(self, images: Tensor) -> ModelOutput:
        """The truth, and what each annotator makes of it."""
        return self._with_confusion(images)[0]

    def _with_confusion(self, images: Tensor) -> tuple[ModelOutput, Tensor]:
        features = self.network.features(images)
        log_truth, log_confusion = self.network.classify(features), self.log_confusion(features)
        own = (log_truth[:, None, :, None] + log_confusion).logsumexp(dim=2)
        return ModelOutput.weighing_all_alike(own, log_truth), log_confusion

    def on_train_start(self) -> None:
        """Check that the run has an end: the warm-up is a share of it."""
        super().on_train_start()
        if self.warm_up > 0 and self._total_steps == float("inf"):
            raise ValueError(
                "trainer.max_epochs=-1: the warm-up needs to know where the run ends. Set "
                "trainer.max_epochs or trainer.max_steps, or warm_up=0."
            )

    def terms(self, batch: Batch) -> Terms:
        """``annotator``, and after the warm-up the mean ``trace``."""
        output, log_confusion = self._with_confusion(batch["image"])
        batch = self.matched(batch, output.log_annotator_probs)
        terms = self.common_terms(batch, output, None)
        if self._progress > self.warm_up:
            terms["trace"] = log_confusion.diagonal(dim1=2, dim2=3).exp().sum(dim=-1).mean()
        return terms


class ConfusionGlobal(Confusion):
    """CM global: one matrix for each annotator, the same at all pixels.

    R. Tanno and others, "Learning from noisy labels by regularized estimation of annotator
    confusion", CVPR 2019, there for whole images.

    Example:
        >>> names = ["Ana", "Ben"], ["background", "cell"]
        >>> ConfusionGlobal(*names, network=nn.Conv2d(3, 4, 1)).confusion.softmax(dim=2)[1].detach()
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
    """

    def _build(self, size: int, start: Tensor) -> None:
        self.confusion = nn.Parameter(start.repeat(len(self.annotators), 1, 1))

    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[1, N, C, C, 1, 1]``."""
        return self.confusion.float().log_softmax(dim=2)[None, ..., None, None]


class ConfusionPixel(Confusion):
    """CM pixel: matrices predicted at each pixel, by one 3 x 3 convolution for all annotators.

    L. Zhang and others, "Disentangling human error from ground truth in segmentation of medical
    images", NeurIPS 2020, there by a second network.
    """

    def _build(self, size: int, start: Tensor) -> None:
        # A kernel for each row of a matrix.
        self.confusion = KernelBank(len(self.annotators), size, size, self.network.channels)
        nn.init.zeros_(self.confusion.weight)
        self.confusion.bias.data.copy_(start)

    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[B, N, C, C, H, W]``."""
        logits: Tensor = self.confusion(features)
        return logits.float().log_softmax(dim=3)
