"""How weighted segmentations become one: the rule that the whole explanation rests on.

The same rule is used twice, for an annotator's kernels (weights g_nk) and for the annotators of the
result (weights w_n):

    prob    p = sum_m weight_m p_m                        shares of the decision add up exactly
    logit   p = softmax over classes of sum_m weight_m l_m   as if one kernel had been mixed first
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Mixing = Literal["prob", "logit"]


def mix(log_weights: Tensor, log_probs: Tensor, mixing: Mixing) -> Tensor:
    """Mix M segmentations by weight, in logarithms.

    In logarithms a pixel that is certainly wrong still has a slope to learn from, and in float32
    the mixture is exact also where the convolutions ran in bf16.

    Args:
        log_weights: ``[..., M, H, W]``, logarithms of weights that sum to 1 over M; -inf leaves
            one out.
        log_probs: ``[..., M, C, H, W]``, logarithms of probabilities over C.
        mixing: ``"prob"`` or ``"logit"``.

    Returns:
        ``[..., C, H, W]``, logarithms of probabilities that sum to 1 over C.

    Example:
        >>> weights = torch.tensor([0.75, 0.25]).view(2, 1, 1)
        >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).view(2, 2, 1, 1)
        >>> mix(weights.log(), probs.log(), "prob").exp().flatten()
        tensor([0.7000, 0.3000])
        >>> mix(weights.log(), probs.log(), "logit").exp().flatten()
        tensor([0.7188, 0.2812])
    """
    if mixing == "prob":
        return logsumexp(log_weights.unsqueeze(-3), dim=-4, added=log_probs)
    # Logarithms of probabilities are the logits up to a number that is the same for all classes.
    return (log_weights.exp().unsqueeze(-3) * log_probs).sum(dim=-4).log_softmax(dim=-3)


def among(log_weights: Tensor, chosen: Tensor) -> Tensor:
    """Weights if only some of the M took part: the others get none, the rest sum to 1 again.

    Args:
        log_weights: ``[..., M, H, W]``.
        chosen: bool, broadcastable to that shape; at least one of M at every pixel.

    Returns:
        ``[..., M, H, W]``; -inf for who does not take part.

    Example:
        >>> log_weights = torch.tensor([0.5, 0.3, 0.2]).log().view(3, 1, 1)
        >>> among(log_weights, torch.tensor([False, True, True]).view(3, 1, 1)).exp().flatten()
        tensor([0.0000, 0.6000, 0.4000])
    """
    left: Tensor = log_weights.masked_fill(~chosen, -torch.inf).log_softmax(dim=-3)
    return left


def logsumexp(values: Tensor, dim: int, added: Tensor | None = None) -> Tensor:
    """``torch.logsumexp`` with a cheaper backward pass: there are N K C values a pixel.

    Args:
        values: any shape; along ``dim`` at least one is greater than -inf.
        dim: the dimension to sum over; it is left out of the result.
        added: to the values first; broadcast.

    Example:
        >>> logsumexp(torch.tensor([[0.25, 0.75], [0.5, 0.0]]).log(), dim=1).exp()
        tensor([1.0000, 0.5000])
    """
    summed: Tensor = _LogSumExp.apply(values, added, dim)
    return summed


class _LogSumExp(torch.autograd.Function):
    """Keeps the exponentials of the forward pass, where PyTorch's own computes them again.

    In place where the values are a sum of two that nobody else sees.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, added: Tensor | None, dim: int) -> Tensor:  # noqa: ANN401
        whole = values if added is None else values + added
        largest = whole.amax(dim, keepdim=True)
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
