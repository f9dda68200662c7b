"""Explanations with known answers, made by hand instead of by a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tax_lightning.explain import Explanation, PrototypeSource

KERNELS = 3


def make_sources(
    annotators: Sequence[str], sample_id: str = "train-7", kernels: int = KERNELS
) -> tuple[tuple[PrototypeSource, ...], ...]:
    return tuple(
        tuple(
            PrototypeSource(name, k, sample_id, 2 + k, 3, 0.9, "cell", True, (("b", 1, 1, 0.5),))
            for k in range(kernels)
        )
        for name in annotators
    )


def make_explanation(
    leader: Tensor,
    kernel: Tensor | int = 0,
    undecided: Tensor | None = None,
    weight: float = 1.0,
    annotators: Sequence[str] = ("Ana", "Ben", "Cleo"),
    classes: Sequence[str] = ("background", "cell"),
    ids: Sequence[str] | None = None,
    sources: tuple[tuple[PrototypeSource, ...], ...] | None = None,
) -> Explanation:
    """Explanation in which ``leader`` [B, H, W] decides with ``weight``, the others share the rest.

    The leader's index modulo the number of classes is the class of a pixel.
    """
    batch, height, width = leader.shape
    n, c = len(annotators), len(classes)
    rest = (1 - weight) / max(1, n - 1)
    who = torch.full((batch, n, height, width), rest)
    who.scatter_(1, leader.unsqueeze(1), weight)
    own = torch.arange(n) % c
    decided = torch.nn.functional.one_hot(own, c).float()
    annotator_probs = decided.view(1, n, c, 1, 1).expand(batch, n, c, height, width).clone()
    why = torch.as_tensor(kernel).expand(batch, height, width).unsqueeze(1)
    return Explanation(
        ids=tuple(ids) if ids is not None else tuple(f"val-{i}" for i in range(batch)),
        annotators=tuple(annotators),
        classes=tuple(classes),
        probs=(who.unsqueeze(2) * annotator_probs).sum(dim=1),
        annotator_probs=annotator_probs,
        who=who,
        why=why.expand(batch, n, height, width).clone(),
        why_share=0.5 * who,
        undecided=torch.zeros_like(leader, dtype=torch.bool) if undecided is None else undecided,
        sources=sources if sources is not None else make_sources(annotators),
    )


def quarters(size: int = 8) -> tuple[Tensor, Tensor]:
    """Leader map [1, S, S] with 0, 1, 2, 0 in its quarters, the last of them undecided."""
    half = size // 2
    leader = torch.zeros(1, size, size, dtype=torch.int64)
    leader[:, :half, half:] = 1
    leader[:, half:, :half] = 2
    undecided = torch.zeros(1, size, size, dtype=torch.bool)
    undecided[:, half:, half:] = True
    return leader, undecided
