"""Mixtures of segmentations: the sum that the explanation rests on.

The same sum is used twice, over an annotator's kernels (weights g_nk) and over the annotators
(weights w_n). Probabilities are mixed, so the shares of the parts in a decision add up to 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def full_precision(values: Tensor) -> Tensor:
    """The values in float32 where they are in less, such as bf16; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mix(log_weights: Tensor, log_probs: Tensor) -> Tensor:
    """Mix M segmentations by weight: p = sum_m weight_m p_m, in logarithms.

    In logarithms a pixel that is certainly wrong still has a gradient, and float32 is exact enough
    where the convolutions ran in bf16.

    Weights are ``[..., M, H, W]`` and sum to 1 over M, -inf leaves a segmentation out;
    probabilities are ``[..., M, C, H, W]``, and the result ``[..., C, H, W]``.

    Example:
        >>> weights = torch.tensor([0.75, 0.25]).view(2, 1, 1)
        >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).view(2, 2, 1, 1)
        >>> mix(weights.log(), probs.log()).exp().flatten()
        tensor([0.7000, 0.3000])
    """
    return logsumexp(log_weights.unsqueeze(-3), dim=-4, added=log_probs)


def logsumexp(values: Tensor, dim: int, added: Tensor | None = None) -> Tensor:
    """``torch.logsumexp`` with a cheaper backward pass, since there are N K C values a pixel.

    ``added`` is added to the values first, broadcast. At least one value is greater than -inf.
    """
    summed: Tensor = _LogSumExp.apply(values, added, dim)
    return summed


class _LogSumExp(torch.autograd.Function):
    """Keeps the exponentials of the forward pass; PyTorch's own computes them twice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, added: Tensor | None, dim: int) -> Tensor:  # noqa: ANN401
        whole = values if added is None else values + added
        largest = whole.amax(dim, keepdim=True)
        # In place where the sum was made here, so that nobody else sees it.
        parts = (whole - largest if added is None else whole.sub_(largest)).exp_()
        total = parts.sum(dim, keepdim=True)
        ctx.save_for_backward(parts, total)
        ctx.dim, ctx.shapes = dim, (values.shape, None if added is None else added.shape)
        return total.log().add_(largest).squeeze(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        parts, total = ctx.saved_tensors
        share = parts * (gradient.unsqueeze(ctx.dim) / total)
        first, second = ctx.shapes
        return share.sum_to_size(first), None if second is None else share.sum_to_size(second), None
