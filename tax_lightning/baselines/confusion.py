"""Annotators who confuse the classes of one truth: a matrix for each of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tax_lightning.baselines.baseline import Baseline, SegmentationNetwork
from tax_lightning.batch import Batch
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.output import ModelOutput

RIGHT = 0.95  # probability on the diagonal of a matrix at the start


class Confusion(Baseline):
    """A network for the truth, and what each annotator makes of it; see the two subclasses.

    With p the network's probabilities and A_n annotator n's matrix, whose rows sum to 1, annotator
    n says class j with probability sum_i p_i A_n[i, j]. The annotators' labels teach both. The
    trace of the matrices is kept small, so that no less is put down to the annotators than to the
    truth; not at the start, when the network has yet to learn what they agree on.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        trace_weight: weight of the mean trace of the matrices.
        warm_up: share of the run without it, in [0, 1].
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Raises:
        ValueError: if ``warm_up`` is no share, or the end of the run is not known.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        trace_weight: float = 0.01,
        warm_up: float = 0.1,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.save_hyperparameters({"trace_weight": trace_weight, "warm_up": warm_up})
        if not 0 <= warm_up <= 1:
            raise ValueError(f"warm_up={warm_up}: expected a share of the run, from 0 to 1.")
        self.weights = {"trace": trace_weight}
        self.warm_up = warm_up
        self.network = SegmentationNetwork(len(self.classes), **self.backbone)

    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[B, N, C, C, H, W]``, true class by what is said.

        B, H and W may be 1, where the matrices are the same for all images and pixels.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> ModelOutput:
        """The truth for the result, and what the annotators make of it."""
        features = self.network.features(images)
        return self._confused(features, self.log_confusion(features))

    def _confused(self, features: Tensor, log_confusion: Tensor) -> ModelOutput:
        log_truth = self.network.decide(features)
        own = (log_truth[:, None, :, None] + log_confusion).logsumexp(dim=2)
        return ModelOutput.weighing_all_alike(own, log_truth)

    def on_train_start(self) -> None:
        """See that there is an end, a share of the way to which is the warm-up."""
        super().on_train_start()
        if self.warm_up > 0 and self._total_steps == float("inf"):
            raise ValueError(
                "trainer.max_epochs=-1: the warm-up needs to know where the run ends. Set "
                "trainer.max_epochs or trainer.max_steps, or warm_up=0."
            )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """What each would draw against what each drew; the mean trace after the warm-up."""
        features = self.network.features(batch["image"])
        log_confusion = self.log_confusion(features)
        terms = self.segmentation_terms(batch, self._confused(features, log_confusion), None)
        if self._progress > self.warm_up:
            terms["trace"] = log_confusion.diagonal(dim1=2, dim2=3).exp().sum(dim=-1).mean()
        return terms


class ConfusionGlobal(Confusion):
    """CM global: one matrix for each annotator, the same at all pixels.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        trace_weight: weight of the mean trace of the matrices.
        warm_up: share of the run without it, in [0, 1].
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> module = ConfusionGlobal(
        ...     ["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1)
        ... )
        >>> module.log_confusion(torch.zeros(1, 4, 8, 8)).exp()[0, 0, :, :, 0, 0]
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]], grad_fn=<SelectBackward0>)

    Source:
        R. Tanno and others, "Learning from noisy labels by regularized estimation of annotator
        confusion", CVPR 2019, for whole images; called CM global by L. Zhang and others (see
        :class:`ConfusionPixel`). The negative log-likelihood is taken of the probabilities.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        trace_weight: float = 0.01,
        warm_up: float = 0.1,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, trace_weight, warm_up, **options)
        start = nearly_identity(len(self.classes))
        self.confusion = nn.Parameter(start.repeat(len(self.annotators), 1, 1))

    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[1, N, C, C, 1, 1]``."""
        return self.confusion.float().log_softmax(dim=2)[None, ..., None, None]


class ConfusionPixel(Confusion):
    """CM pixel: matrices that are predicted at each pixel, by one convolution for all annotators.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        trace_weight: weight of the mean trace of the matrices.
        warm_up: share of the run without it, in [0, 1].
        kernel_size: side in pixels, odd, of the convolution.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> module = ConfusionPixel(
        ...     ["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1)
        ... )
        >>> module.log_confusion(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 2, 2, 2, 8, 8])

    Source:
        L. Zhang and others, "Disentangling human error from ground truth in segmentation of
        medical images", NeurIPS 2020. There a branch of its own predicts the matrices; here a
        convolution does, on the features that the truth is read from, as all baselines have one
        backbone. Rows are true classes and sum to 1 exactly, by a softmax in logarithms.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        trace_weight: float = 0.01,
        warm_up: float = 0.1,
        kernel_size: int = 3,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, trace_weight, warm_up, **options)
        self.save_hyperparameters({"kernel_size": kernel_size})
        size = len(self.classes)
        # A kernel for each row of a matrix.
        self.confusion = KernelBank(
            len(self.annotators), size, size, self.network.channels, kernel_size
        )
        for weight, bias in [(self.confusion.weight, self.confusion.bias)]:
            nn.init.zeros_(weight)
            bias.data.copy_(nearly_identity(size))

    def log_confusion(self, features: Tensor) -> Tensor:
        """Log of the matrices ``[B, N, C, C, H, W]``."""
        logits: Tensor = self.confusion(features)
        return logits.float().log_softmax(dim=3)


def nearly_identity(classes: int) -> Tensor:
    """Logits ``[C, C]`` of a matrix whose rows are right with probability 0.95.

    Example:
        >>> nearly_identity(3).softmax(dim=1).diagonal()
        tensor([0.9500, 0.9500, 0.9500])
    """
    return math.log(RIGHT * (classes - 1) / (1 - RIGHT)) * torch.eye(classes)
