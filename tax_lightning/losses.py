"""The training objective: named terms, each weighted and each logged.

    annotator  -log p_n(y^n), averaged over annotators      each annotator's tendency
    fused      -log p(y*)                                   the resulting segmentation
    who        -e_n log w_n                                 who is to be believed where
    balance    KL(mean g_n || uniform)                      every kernel of an annotator is used
    cluster    CE(g_n, balanced assignment)                 prototypes divide what is seen
    pull       (1 - cos(z, assigned P))^2                   prototypes stay close to real pixels
    spread     relu(cos(P, P') - 0.5)^2                     prototypes stay apart

y^n is annotator n's label, y* the reference, e_n how well n agrees with it around a pixel
(:func:`tax_lightning.consensus.agreement`); see :mod:`tax_lightning.network` for the rest. The
balance of w itself is never asked for: annotators need not decide equally often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.consensus import agreement, relevance
from tax_lightning.data.samples import IGNORE_INDEX
from tax_lightning.network import TAXOutput
from tax_lightning.prototypes import PrototypeMemory

WhoTarget = Literal["window", "agree", "owner", "none"]
SegmentationLoss = Literal["ce", "dice", "ce+dice"]

MAX_PIXELS = 1024  # per image, for the prototype terms: neighbouring pixels teach the same
LEAST_USE = 1e-8  # of a kernel, below which the logarithm's slope has no bound


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term in the training objective; 0 switches a term off.

    Args:
        annotator: each annotator's own segmentation against their labels.
        fused: the resulting segmentation against the reference.
        who: the weights of the annotators against their agreement with the reference.
        balance: even use of the kernels within an annotator.
        cluster: prototypes as the centres of clusters of pixels.
        pull: prototypes close to pixels.
        spread: prototypes apart from each other.

    Raises:
        ValueError: if a weight is negative.

    Example:
        >>> LossWeights(spread=0.0).spread
        0.0
    """

    annotator: float = 1.0
    fused: float = 1.0
    who: float = 0.5
    balance: float = 0.1
    cluster: float = 0.1
    pull: float = 0.2
    spread: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"loss_weights.{name}={value}: expected 0 or more.")


class TAXLoss(nn.Module):
    """The terms of the objective, unweighted.

    Args:
        annotators: number of annotators N.
        segmentation: loss of the two segmentation terms: cross-entropy, Dice or their sum.
        who_target: what the weights w are taught. ``"window"``: agreement with the reference in a
            window around the pixel; ``"agree"``: agreement at the pixel itself; ``"owner"``: the
            known expert of synthetic data; ``"none"``: nothing, which leaves who arbitrary.
        window: side of the window in pixels, odd.
        sharpness: how quickly disagreement inside the window lowers the agreement.

    Raises:
        ValueError: if an argument is none of the values named.
    """

    images_seen: Tensor
    images_labelled: Tensor

    def __init__(
        self,
        annotators: int,
        segmentation: SegmentationLoss = "ce",
        who_target: WhoTarget = "window",
        window: int = 23,
        sharpness: float = 60.0,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("segmentation_loss", segmentation, get_args(SegmentationLoss)),
            ("who_target", who_target, get_args(WhoTarget)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"who_window={window}: expected an odd number of pixels.")
        self.segmentation = segmentation
        self.who_target = who_target
        self.window = 1 if who_target == "agree" else window
        self.sharpness = sharpness
        self.neighbourhood = window
        # Share of images that each annotator labelled, counted as training goes along.
        self.register_buffer("images_seen", torch.zeros(()))
        self.register_buffer("images_labelled", torch.zeros(annotators))

    def observe(self, labelled: Tensor, images: Tensor) -> None:
        """Count whose labels came: ``labelled`` ``[N]`` of ``images`` ``[]``."""
        self.images_labelled += labelled
        self.images_seen += images

    @property
    def label_rate(self) -> Tensor:
        """pi_n: share of the images that annotator n labelled, ``[N]`` in (0, 1]."""
        return (self.images_labelled + 1) / (self.images_seen + 1)

    def segmentation_terms(
        self, output: TAXOutput, masks: Tensor, reference: Tensor
    ) -> dict[str, Tensor]:
        """The terms ``annotator`` and ``fused``, scalars.

        Args:
            output: what the network said.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            reference: ``[B, H, W]``, 255 where unknown.
        """
        return {
            "annotator": self._segmentation(output.log_annotator_probs, masks),
            "fused": self._segmentation(output.log_probs.unsqueeze(1), reference.unsqueeze(1)),
        }

    def _segmentation(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Loss of ``[B, N, C, H, W]`` against ``[B, N, H, W]``: over pixels first, then over N."""
        kinds = {"ce": _cross_entropy, "dice": _dice}
        return torch.stack(
            [kinds[k](log_probs, labels) for k in self.segmentation.split("+")]
        ).sum()

    def explanation_terms(
        self,
        output: TAXOutput,
        memory: PrototypeMemory,
        masks: Tensor,
        present: Tensor,
        reference: Tensor,
        owner: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms ``who``, ``balance``, ``cluster``, ``pull`` and ``spread``, scalars.

        Args:
            output: what the network said.
            memory: the prototypes that said it.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            present: ``[B, N]`` bool.
            reference: ``[B, H, W]``, 255 where unknown.
            owner: ``[B, H, W]`` index of the expert, 255 where none; for ``who_target="owner"``.
        """
        with torch.autocast(masks.device.type, enabled=False):
            weight = relevance(masks, reference, self.neighbourhood)
            agree = self.agreement(masks, present, reference)
            return {
                "who": self._who(output.log_who, agree, weight, present, owner),
                "balance": _balance(output.within, weight),
                **_prototype_terms(output, memory, agree * weight.unsqueeze(1)),
                "spread": _spread(memory.unit_vectors),
            }

    def agreement(self, masks: Tensor, present: Tensor, reference: Tensor) -> Tensor:
        """e_n: how well annotator n agrees with the reference, ``[B, N, H, W]`` in [0, 1]."""
        agree = agreement(masks, reference, self.window, self.sharpness)
        return agree * present[:, :, None, None]

    def _who(
        self,
        log_who: Tensor,
        agree: Tensor,
        weight: Tensor,
        present: Tensor,
        owner: Tensor | None,
    ) -> Tensor:
        if self.who_target == "none":
            return log_who.new_zeros(())
        if self.who_target == "owner":
            return _owner_loss(log_who, owner)
        # An annotator who labels half of the images counts double where they do. Normalising the
        # target over whoever is present would instead favour those who label alone.
        rate = (present / self.label_rate)[:, :, None, None]
        loss = -(rate * agree * log_who).sum(dim=1)
        return (weight * loss).sum() / weight.sum().clamp_min(1e-6)


def _cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    flat = labels.flatten(0, 1)
    pixels: Tensor = F.nll_loss(
        log_probs.flatten(0, 1), flat, ignore_index=IGNORE_INDEX, reduction="none"
    )
    over = (0, 2, 3)  # images and pixels, not annotators
    counts = (labels != IGNORE_INDEX).sum(over)
    sums = pixels.view_as(labels).sum(over)
    means: Tensor = sums / counts.clamp_min(1)
    return means.sum() / (counts > 0).sum().clamp_min(1)


def _dice(log_probs: Tensor, labels: Tensor) -> Tensor:
    known = labels != IGNORE_INDEX
    classes = torch.arange(log_probs.shape[2], device=labels.device).view(-1, 1, 1)
    one_hot = (labels.unsqueeze(2) == classes).long()
    one_hot = one_hot.masked_fill(~known.unsqueeze(2), IGNORE_INDEX)
    # Each class of each annotator is a channel of its own, over all images and pixels.
    dice = DiceLoss("multilabel", from_logits=False, ignore_index=IGNORE_INDEX)
    loss: Tensor = dice(log_probs.exp().flatten(1, 2), one_hot.flatten(1, 2))
    # Annotators without a label count zero in that mean.
    return loss * labels.shape[1] / known.sum((0, 2, 3)).count_nonzero().clamp_min(1)


def _owner_loss(log_who: Tensor, owner: Tensor | None) -> Tensor:
    if owner is None:
        raise ValueError(
            "who_target='owner': the batch has no key 'owner'. Only synthetic data knows the "
            "expert of each pixel; use who_target='window'."
        )
    if (owner == IGNORE_INDEX).all():
        return log_who.sum() * 0.0
    return F.nll_loss(log_who, owner, ignore_index=IGNORE_INDEX)


def _balance(within: Tensor, weight: Tensor) -> Tensor:
    """Mean over n of KL(mean use of n's kernels || uniform)."""
    use = (within * weight[:, None, None]).sum(dim=(0, 3, 4)) / weight.sum().clamp_min(1e-6)
    divergence: Tensor = use * (use.clamp_min(LEAST_USE).log() + math.log(within.shape[2]))
    return divergence.sum(dim=1).mean()


def _prototype_terms(
    output: TAXOutput, memory: PrototypeMemory, weight: Tensor
) -> dict[str, Tensor]:
    """``cluster`` and ``pull`` on sampled pixels, weighted by ``[B, N, H, W]``."""
    height, width = weight.shape[-2:]
    pixels = torch.randperm(height * width, device=weight.device)[:MAX_PIXELS]
    log_within = output.log_within.flatten(3)[..., pixels]  # [B, N, K, M]
    embedding = output.embedding.flatten(2)[..., pixels].unsqueeze(3)  # [B, D, M, 1]
    cosine = memory.similarity(embedding).squeeze(4)  # [B, N, K, M]
    weight = weight.flatten(2)[..., pixels]  # [B, N, M]
    total = weight.sum().clamp_min(1e-6)

    dead = ~memory.alive[:, :, None]
    target = balanced_assignment(cosine.detach().masked_fill(dead, float("-inf")), weight)
    # What is never assigned has a target of 0, which times its -inf would be undefined.
    cross_entropy = -(target * log_within.masked_fill(dead, 0.0)).sum(dim=2)
    nearest = cosine.gather(2, target.argmax(dim=2, keepdim=True)).squeeze(2)
    return {
        "cluster": (weight * cross_entropy).sum() / total,
        "pull": (weight * (1 - nearest).square()).sum() / total,
    }


@torch.no_grad()
def balanced_assignment(
    cosine: Tensor, weight: Tensor, temperature: float = 0.05, iterations: int = 3
) -> Tensor:
    """Assign pixels to the prototypes of each annotator so that all prototypes get the same weight.

    Sinkhorn-Knopp iterations as in SwAV (arXiv 2006.09882), with weighted pixels.

    Args:
        cosine: ``[B, N, K, M]`` of pixels and prototypes.
        weight: ``[B, N, M]`` of the pixels, 0 or more.
        temperature: lower is closer to a hard assignment.
        iterations: of normalising over prototypes and over pixels.

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
        plan = plan / plan.sum(dim=(0, 3), keepdim=True).clamp_min(1e-12)
        plan = plan / plan.sum(dim=2, keepdim=True).clamp_min(1e-12) * weight
    return plan / plan.sum(dim=2, keepdim=True).clamp_min(1e-12)


def _spread(vectors: Tensor) -> Tensor:
    flat = vectors.flatten(0, 1)
    cosine = flat @ flat.T
    apart = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    return F.relu(cosine[apart] - 0.5).square().mean() if len(flat) > 1 else flat.sum() * 0.0
