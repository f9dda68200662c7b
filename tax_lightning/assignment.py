"""Which prototype each pixel belongs to, so that all prototypes of an annotator are used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tax_lightning.distributed import Total, alone
from tax_lightning.models.network import TAXOutput
from tax_lightning.models.prototypes import PrototypeMemory

MAX_PIXELS = 1024  # per image, for the prototype terms: neighbouring pixels teach the same


class Assigned(NamedTuple):
    """Sampled pixels, and which prototype of each annotator they are assigned to."""

    log_within: Tensor  # [B, N, K, M], of the pruned 0
    embedding: Tensor  # [B, D, M]
    cosine: Tensor  # [B, N, K, M]
    weight: Tensor  # [B, N, M]
    target: Tensor  # [B, N, K, M], sums to 1 over K


def assign_pixels(
    output: TAXOutput, memory: PrototypeMemory, weight: Tensor, total: Total
) -> Assigned:
    """Sample pixels, the same places in all images, and assign each to a prototype of everyone.

    Args:
        output: what the network said.
        memory: the prototypes that said it.
        weight: of each pixel for each annotator, ``[B, N, H, W]``, 0 or more.
        total: sum over all processes.
    """
    height, width = weight.shape[-2:]
    pixels = torch.randperm(height * width, device=weight.device)[:MAX_PIXELS]
    embedding = output.embedding.flatten(2)[..., pixels]
    # Computed again for the few: of all pixels the gradient would have to be filled with zeros.
    log_within = memory(embedding.unsqueeze(3)).squeeze(4).log_softmax(dim=2)
    cosine = memory.similarity(embedding.unsqueeze(3)).squeeze(4)
    cosine = cosine.expand_as(log_within)  # shared prototypes have one row for all
    weight = weight.flatten(2)[..., pixels]
    pruned = ~memory.active[:, :, None]
    fixed = cosine.detach().masked_fill(pruned, float("-inf"))
    if memory.kind == "shared":  # balanced over the pixels of all annotators together
        one_for_all = fixed.transpose(1, 2).flatten(2).unsqueeze(1), weight.flatten(1).unsqueeze(1)
        target = balanced_assignment(*one_for_all, total=total)
        target = target.squeeze(1).unflatten(2, fixed.shape[1::2]).transpose(1, 2)
    else:
        target = balanced_assignment(fixed, weight, total=total)
    # What is never assigned has a target of 0, which times its -inf would be undefined.
    return Assigned(log_within.masked_fill(pruned, 0.0), embedding, cosine, weight, target)


@torch.no_grad()
def balanced_assignment(
    cosine: Tensor,
    weight: Tensor,
    temperature: float = 0.05,
    iterations: int = 3,
    total: Total = alone,
) -> Tensor:
    """Assign pixels to the prototypes of each annotator so that all prototypes get the same weight.

    Sinkhorn-Knopp iterations as in SwAV (arXiv 2006.09882), with weighted pixels.

    Args:
        cosine: ``[B, N, K, M]`` of pixels and prototypes.
        weight: ``[B, N, M]`` of the pixels, 0 or more.
        temperature: lower is closer to a hard assignment.
        iterations: of normalising over prototypes and over pixels.
        total: sum over all processes, each of which has some of the pixels.

    Returns:
        ``[B, N, K, M]``, sums to 1 over K.

    Example:
        >>> cosine = torch.tensor([[0.9, 0.8], [0.1, 0.3]]).view(1, 1, 2, 2)  # K = 2, M = 2
        >>> balanced_assignment(cosine, torch.ones(1, 1, 2)).argmax(dim=2)
        tensor([[[0, 1]]])
    """
    weight = weight.unsqueeze(2)
    plan = ((cosine - cosine.amax(dim=2, keepdim=True)) / temperature).exp() * weight
    for _ in range(iterations):
        plan = plan / total(plan.sum(dim=(0, 3), keepdim=True)).clamp_min(1e-12)
        plan = plan / plan.sum(dim=2, keepdim=True).clamp_min(1e-12) * weight
    return plan / plan.sum(dim=2, keepdim=True).clamp_min(1e-12)
