"""Mixtures of segmentations: the sum that the explanation rests on.

The same sum is used twice, over an annotator's kernels (weights g_nk) and over the annotators
(weights w_n). Probabilities are mixed, so the shares of the parts in a decision add up to 1.

There are N K C values a pixel, and most of the time goes into reading them, writing them and taking
logarithms. So the gradients stand here by hand: PyTorch's own would keep more of the values and go
through them more often.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_PROB = 1e-35  # of a kernel, so that a pixel that is certainly wrong still has a gradient


def full_precision(values: Tensor) -> Tensor:
    """The values in float32 where they are in less, such as bf16; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mix(log_weights: Tensor, log_probs: Tensor, taught: Tensor | None = None) -> Tensor:
    """Mix M segmentations by weight: p = sum_m weight_m p_m, in logarithms.

    Weights are ``[..., M, H, W]`` and sum to 1 over M, -inf leaves a segmentation out;
    probabilities are ``[..., M, C, H, W]``, and the result ``[..., C, H, W]``. Where ``taught``,
    bool ``[..., M, H, W]``, is false, a segmentation gets no gradient; its weight does.

    Example:
        >>> weights = torch.tensor([0.75, 0.25]).view(2, 1, 1)
        >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).view(2, 2, 1, 1)
        >>> mix(weights.log(), probs.log()).exp().flatten()
        tensor([0.7000, 0.3000])
    """
    mixed: Tensor = _Mix.apply(log_weights, log_probs, taught)
    return mixed


def mix_kernels(within: Tensor, log_odds: Tensor) -> Tensor:
    """Mix the segmentations of each annotator's kernels: p_n = sum_k g_nk p_nk, log of it.

    Weights g_nk are ``[B, N, K, H, W]`` and sum to 1 over K. Log-odds log p_nk(c) / p_nk(0), of all
    classes but the first, are ``[B, N, K, C - 1, H, W]``. The result is ``[B, N, C, H, W]``.

    Example:
        >>> log_odds = torch.tensor([3.0, 1.0]).log().view(1, 1, 2, 1, 1, 1)  # p(1) = 3/4 and 1/2
        >>> within = torch.tensor([0.4, 0.6]).view(1, 1, 2, 1, 1)
        >>> mix_kernels(within, log_odds).exp().flatten()
        tensor([0.4000, 0.6000])
    """
    mixed: Tensor = _MixKernels.apply(within, log_odds)
    return mixed


def split(log_values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Shares of values along a dimension, which sum to 1, and the log of the values' sum.

    At least one value is greater than -inf.

    Example:
        >>> split(torch.tensor([1.0, 3.0]).log(), dim=0)
        (tensor([0.2500, 0.7500]), tensor(1.3863))
    """
    shares, total = _Split.apply(log_values, dim)
    return shares, total


def probs_of(log_odds: Tensor) -> Tensor:
    """Probabilities of all classes ``[..., C, H, W]``, of log-odds ``[..., C - 1, H, W]``.

    Example:
        >>> probs_of(torch.tensor([3.0]).log().view(1, 1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    if log_odds.shape[-3] == 1:
        probs = torch.cat([-log_odds, log_odds], dim=-3).sigmoid_()
    else:
        probs = F.pad(log_odds, (0, 0, 0, 0, 1, 0)).softmax(dim=-3)
    return probs.clamp_min_(LEAST_PROB)


def probs_at(log_odds: Tensor, labels: Tensor) -> Tensor:
    """What kernels give to one class at each pixel: ``[B, N, K, H, W]`` in [0, 1].

    Of log-odds ``[B, N, K, C - 1, H, W]``, and class ids ``[B, N, H, W]`` or, the same for all
    annotators, ``[B, 1, H, W]``.

    Example:
        >>> log_odds = torch.tensor([3.0]).log().view(1, 1, 1, 1, 1, 1)
        >>> probs_at(log_odds, torch.zeros(1, 1, 1, 1, dtype=torch.long)).item()
        0.25
    """
    if log_odds.shape[3] == 1:
        odds, second = log_odds.squeeze(3), (labels == 1).unsqueeze(2)
        return torch.where(second, odds, -odds).sigmoid_().clamp_min_(LEAST_PROB)
    index = labels[:, :, None, None].expand(*log_odds.shape[:3], 1, -1, -1)
    return probs_of(log_odds).gather(3, index).squeeze(3)


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors ``[B, E, H, W]`` divided by their length along E.

    Example:
        >>> unit_length(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    unit: Tensor = _UnitLength.apply(vectors)
    return unit


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        log_weights: Tensor,
        log_probs: Tensor,
        taught: Tensor | None,
    ) -> Tensor:
        parts = log_weights.unsqueeze(-3) + log_probs
        largest = parts.amax(-4, keepdim=True)
        mixed = parts.sub_(largest).exp_().sum(-4).log_().add_(largest.squeeze(-4))
        ctx.save_for_backward(log_weights, log_probs, mixed, taught)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        log_weights, log_probs, mixed, taught = ctx.saved_tensors
        share = (log_probs - mixed.unsqueeze(-4)).add_(log_weights.unsqueeze(-3)).exp_()
        share.mul_(gradient.unsqueeze(-4))
        by_weight = share.sum(-3)
        return by_weight, share if taught is None else share.mul_(taught.unsqueeze(-3)), None


class _MixKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, within: Tensor, log_odds: Tensor) -> Tensor:  # noqa: ANN401
        mixed = probs_of(log_odds).mul_(within.unsqueeze(3)).sum(2)
        ctx.save_for_backward(within, log_odds, mixed)
        return mixed.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        within, log_odds, mixed = ctx.saved_tensors
        probs = probs_of(log_odds)
        each = probs * (gradient / mixed).unsqueeze(2)
        by_weight = each.sum(3)
        by_odds = each[:, :, :, 1:].addcmul_(probs[:, :, :, 1:], by_weight.unsqueeze(3), value=-1)
        return by_weight, by_odds.mul_(within.unsqueeze(3))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_values: Tensor, dim: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        largest = log_values.amax(dim, keepdim=True)
        shares = (log_values - largest).exp_()
        total = shares.sum(dim, keepdim=True)
        shares.div_(total)
        ctx.save_for_backward(shares)
        ctx.dim = dim
        return shares, total.log_().add_(largest).squeeze(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_shares: Tensor, of_total: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (shares,) = ctx.saved_tensors
        change = of_shares - (of_shares * shares).sum(ctx.dim, keepdim=True)
        return change.add_(of_total.unsqueeze(ctx.dim)).mul_(shares), None


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:  # noqa: ANN401
        # PyTorch's own norm along this dimension takes ten times as long on a CPU.
        inverse = vectors.square().sum(1, keepdim=True).clamp_min_(1e-24).rsqrt_()
        unit = vectors * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        unit, inverse = ctx.saved_tensors
        along = (gradient * unit).sum(1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse)
