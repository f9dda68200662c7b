"""The kernel bank: each annotator's labelling tendency as a subset of convolution kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BankKind = Literal["private", "shared"]


class Cohorts(nn.ParameterList):
    """One tensor with a row for each annotator, kept in a part for each cohort of annotators.

    A cohort are the annotators that were trained together: one parameter, so that one who is
    missing from a batch leaves none without a gradient. Whoever is added later is a cohort of their
    own, and neither an optimizer nor the arithmetic of another shape can touch those before.

    Args:
        parts: tensors ``[n, ...]``, one a cohort.

    Example:
        >>> rows = Cohorts([torch.zeros(2, 3), torch.ones(1, 3)])
        >>> rows.whole.shape, rows.row(2).tolist()
        (torch.Size([3, 3]), [1.0, 1.0, 1.0])
    """

    @property
    def whole(self) -> Tensor:
        """All rows, ``[N, ...]``; with one cohort the parameter itself."""
        return self[0] if len(self) == 1 else torch.cat(list(self))

    @property
    def sizes(self) -> list[int]:
        """Rows of each cohort."""
        return [len(part) for part in self]

    @torch.no_grad()
    def row(self, n: int) -> Tensor:
        """Row n as a view: what is written into it is written into the parameter."""
        first = 0
        for part in self:
            if n < first + len(part):
                view: Tensor = part.data[n - first]
                return view
            first += len(part)
        raise IndexError(f"row {n} of {first}")


class KernelBank(nn.Module):
    """K convolution kernels for each annotator, applied to shared features in one convolution.

    Kernel (n, k) maps the features to class logits: it is one way in which annotator n labels what
    is seen there. The subset of all K kernels of annotator n is this annotator's tendency (the
    abstract of arXiv 2302.09561; the formulation is this project's own). In a shared bank all
    annotators have the same K kernels, the types of annotation that there are, and differ in when
    they use which.

    Args:
        cohorts: number of annotators N, at least 1; or a number for each cohort, where annotators
            were added later: one convolution each, so that those before compute what they did.
        kernels: kernels per annotator K, at least 1.
        classes: number of classes C, at least 2.
        channels: feature channels D.
        kernel_size: side s of a kernel in pixels, odd. 3 sees the neighbourhood that a habit such
            as "draws generously" depends on; 1 sees one feature vector.
        kind: ``"private"`` or ``"shared"`` kernels.

    Raises:
        ValueError: if a number is out of its range or ``kernel_size`` is even.

    Shape:
        - features: ``[B, D, H, W]``
        - logits: ``[B, N, K, C, H, W]``; of a shared bank a view of ``[B, 1, K, C, H, W]``

    Example:
        >>> bank = KernelBank(3, kernels=2, classes=4, channels=8)
        >>> bank(torch.randn(1, 8, 16, 16)).shape
        torch.Size([1, 3, 2, 4, 16, 16])
        >>> KernelBank(3, kernels=2, classes=4, channels=8, kind="shared").weight.shape
        torch.Size([1, 2, 4, 8, 3, 3])
    """

    def __init__(
        self,
        cohorts: int | Sequence[int],
        kernels: int,
        classes: int,
        channels: int,
        kernel_size: int = 3,
        kind: BankKind = "private",
    ) -> None:
        super().__init__()
        sizes = [cohorts] if isinstance(cohorts, int) else list(cohorts)
        for name, value, least in (
            ("annotators", min(sizes, default=0), 1),
            ("kernels", kernels, 1),
            ("classes", classes, 2),
            ("channels", channels, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: expected at least {least}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, such as 1 or 3.")
        self.annotators = sum(sizes)
        self.kernels = kernels
        rows = sizes if kind == "private" else [1]
        shape = (kernels, classes, channels, kernel_size, kernel_size)
        self.weights = Cohorts([torch.empty(row, *shape) for row in rows])
        self.biases = Cohorts([torch.zeros(row, kernels, classes) for row in rows])
        bound = 1.0 / math.sqrt(channels * kernel_size**2)
        for weight in self.weights:
            nn.init.uniform_(weight, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """All kernels, ``[N, K, C, D, s, s]``; of a shared bank ``[1, K, C, D, s, s]``."""
        return self.weights.whole

    @property
    def bias(self) -> Tensor:
        """All biases, ``[N, K, C]``; of a shared bank ``[1, K, C]``."""
        return self.biases.whole

    def forward(self, features: Tensor) -> Tensor:
        """Class logits of every kernel at every pixel."""
        cohorts = zip(self.weights, self.biases, strict=True)
        logits = joined([_convolve(features, *cohort) for cohort in cohorts])
        return logits.expand(-1, self.annotators, -1, -1, -1, -1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What the cohorts gave, ``[B, n, ...]`` each, as ``[B, N, ...]``; no copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _convolve(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits: Tensor = F.conv2d(features, weight.flatten(0, 2), bias.flatten(), padding="same")
    return logits.view(features.shape[0], *weight.shape[:3], *logits.shape[-2:])
