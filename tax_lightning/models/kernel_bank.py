"""The kernel bank: each annotator's labelling tendency as a subset of convolution kernels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.models.output import EVERYBODY, Panel
from tax_lightning.refusals import check_memory, refusing


class KernelBank(nn.Module):
    """K convolution kernels for each annotator, applied to shared features in one convolution.

    Kernel (n, k) maps the features to class logits: it is one way in which annotator n labels what
    is seen there. The K kernels of annotator n together are this annotator's tendency (abstract of
    arXiv 2302.09561; the formulation is this project's own).

    One tensor holds the kernels of all annotators. So an annotator who is missing from a batch
    leaves no parameter without a gradient, for which DistributedDataParallel would stop.

    Args:
        annotators: number of annotators N, at least 1.
        kernels: kernels per annotator K, at least 1.
        classes: number of classes C, at least 2.
        channels: feature channels D.
        kernel_size: side s of a kernel in pixels, odd. 3 sees the neighbourhood that a habit such
            as "outlines generously" depends on; 1 sees one feature vector.

    Example:
        >>> bank = KernelBank(3, kernels=2, classes=4, channels=8)
        >>> bank(torch.randn(1, 8, 16, 16)).shape
        torch.Size([1, 3, 2, 4, 16, 16])
    """

    def __init__(
        self, annotators: int, kernels: int, classes: int, channels: int, kernel_size: int = 3
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("annotators", annotators, 1),
            ("kernels", kernels, 1),
            ("classes", classes, 2),
            ("channels", channels, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: expected at least {least}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, such as 1 or 3.")
        shape = (annotators, kernels, classes, channels, kernel_size, kernel_size)
        with refusing("kernels", {"kernels": kernels, "kernel_size": kernel_size}):
            check_memory([4 * math.prod(shape)])
        bound = 1.0 / math.sqrt(channels * kernel_size**2)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(shape[:3]))

    def forward(self, features: Tensor) -> Tensor:
        """Class logits of every kernel ``[B, N, K, C, H, W]``, of features ``[B, D, H, W]``."""
        return _convolve(features, self.weight, self.bias)

    def log_odds(self, features: Tensor, panel: Panel = EVERYBODY) -> Tensor:
        """Logits of all classes less that of the first ``[B, N, K, C - 1, H, W]``.

        They say as much as the logits. Of two classes there is one value in place of two. Only the
        kernels of the panel are computed; N is then its length.
        """
        rows = self.weight[panel], self.bias[panel]
        weight, bias = (part[:, :, 1:] - part[:, :, :1] for part in rows)
        return _convolve(features, weight, bias)


def _convolve(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All kernels ``[N, K, C, D, s, s]`` in one convolution."""
    values: Tensor = F.conv2d(features, weight.flatten(0, 2), bias.flatten(), padding="same")
    by_kernel: Tensor = values.unflatten(1, weight.shape[:3])
    return by_kernel
