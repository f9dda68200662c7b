"""The training objective: named terms, each weighted and each logged.

    annotator  -log p_n(y^n), averaged over annotators      each annotator's tendency
    fused      -log p(y*), taught to w and to who says y*   the resulting segmentation
    who        -e_n log w_n                                 who is to be believed where
    balance    KL(mean g_n || uniform)                      every kernel of an annotator is used
    cluster    CE(g_n, balanced assignment)                 prototypes divide what is seen
    pull       (1 - cos(z, assigned P))^2                   prototypes stay close to real pixels
    spread     relu(cos(P, P') - 0.5)^2                     prototypes stay apart

y^n is annotator n's label, y* the reference, e_n how well n agrees with it around a pixel
(:func:`tax_lightning.consensus.agreement`); see :mod:`tax_lightning.models.network` for the rest. The
balance of w itself is never asked for: annotators need not decide equally often.

The result is made of the annotators' tendencies and nothing else: where an annotator's label is not
y*, the term ``fused`` teaches their weight w_n but not their kernels. Else the kernels of all would
learn y*, whoever had said it, and the result would not depend on those who are said to decide.

Every term is a function of sums over images and pixels. In training under several processes these
sums are taken over all of them (:attr:`TAXLoss.total`), so that the terms and their gradients are
those of one process with the whole batch. Only Dice is that of each process's own images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.assignment import assign_pixels
from tax_lightning.consensus import agreement, relevance
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.distributed import Total, alone
from tax_lightning.models.kernel_bank import BankKind
from tax_lightning.models.mixture import Mixing, mix
from tax_lightning.models.network import TAXOutput
from tax_lightning.models.prototypes import PrototypeMemory

WhoTarget = Literal["window", "agree", "expert", "none"]
SegmentationLoss = Literal["ce", "dice", "ce+dice"]
LEAST_USE = 1e-8  # of a kernel, below which the logarithm's slope has no bound


class WeighedOutput(Protocol):
    """What a network says that weighs its annotators; the fields of ``TAXOutput`` of that name."""

    @property
    def log_probs(self) -> Tensor: ...  # noqa: D102
    @property
    def log_annotator_probs(self) -> Tensor: ...  # noqa: D102
    @property
    def log_who(self) -> Tensor: ...  # noqa: D102


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


class SegmentationTerms(nn.Module):
    """The terms of the objective that teach segmentations, unweighted.

    Args:
        segmentation: cross-entropy, Dice or their sum.
        mixing: how one result is made of the annotators' segmentations.

    Raises:
        ValueError: if there is no such loss.
    """

    total: Total

    def __init__(self, segmentation: SegmentationLoss = "ce", mixing: Mixing = "prob") -> None:
        super().__init__()
        _check_known(segmentation_loss=(segmentation, SegmentationLoss))
        self.segmentation = segmentation
        self.mixing: Mixing = mixing
        # Sum over all processes, with a gradient; of one process the sum that it has.
        self.total = alone

    @property
    def _total(self) -> Total:
        """In evaluation processes may have different numbers of batches and do not meet."""
        return self.total if self.training else alone

    def segmentation_terms(
        self, output: WeighedOutput, masks: Tensor, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms ``annotator`` and ``fused``, scalars.

        Args:
            output: what the network said.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            reference: ``[B, H, W]``, 255 where unknown; ``None`` trains the result for the labels
                of all annotators.
        """
        own = output.log_annotator_probs
        if reference is None:
            fused = self.between(output.log_probs.unsqueeze(1).expand_as(own), masks)
        else:
            labels = reference.unsqueeze(1)
            said_so = (masks == labels).unsqueeze(2)
            heard = torch.where(said_so, own, own.detach())
            fused = self.between(mix(output.log_who, heard, self.mixing).unsqueeze(1), labels)
        return {"annotator": self.between(own, masks), "fused": fused}

    def between(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Loss of ``[B, N, C, H, W]`` against ``[B, N, H, W]``: over pixels first, then over N."""
        kinds = self.segmentation.split("+")
        terms = [_cross_entropy(log_probs, labels, self._total)] if "ce" in kinds else []
        if "dice" in kinds:
            terms.append(_dice(log_probs, labels))
        return torch.stack(terms).sum()


class TAXLoss(SegmentationTerms):
    """The terms of the objective, unweighted.

    Args:
        annotators: number of annotators N.
        segmentation: loss of the two segmentation terms: cross-entropy, Dice or their sum.
        who_target: what the weights w are taught. ``"window"``: agreement with the reference in a
            window around the pixel; ``"agree"``: agreement at the pixel itself; ``"expert"``: the
            known expert of synthetic data; ``"none"``: nothing, which leaves who arbitrary.
        window: side of the window in pixels, odd.
        sharpness: how quickly disagreement inside the window lowers the agreement.
        mixing: how the network makes one result of the annotators' segmentations.

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
        mixing: Mixing = "prob",
    ) -> None:
        super().__init__(segmentation, mixing)
        _check_known(who_target=(who_target, WhoTarget))
        if window < 1 or window % 2 == 0:
            raise ValueError(f"who_window={window}: expected an odd number of pixels.")
        self.who_target = who_target
        self.window = 1 if who_target == "agree" else window
        self.sharpness = sharpness
        self.neighbourhood = window
        # Share of images that each annotator labelled, counted as training goes along.
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("images_labelled", torch.zeros(annotators, dtype=torch.long))

    def observe(self, labelled: Tensor, images: Tensor) -> None:
        """Count whose labels came: ``labelled`` ``[N]`` of ``images`` ``[]``."""
        self.images_labelled += labelled.round().long()
        self.images_seen += images.round().long()

    def forget_counts(self) -> None:
        """Count from 0 again, for a new run."""
        self.images_labelled.zero_()
        self.images_seen.zero_()

    @property
    def label_rate(self) -> Tensor:
        """pi_n: share of the images that annotator n labelled, ``[N]`` in (0, 1]."""
        return (self.images_labelled + 1) / (self.images_seen + 1)

    def explanation_terms(
        self,
        output: TAXOutput,
        memory: PrototypeMemory,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None,
        expert: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms ``who``, ``balance``, ``cluster``, ``pull`` and ``spread``, scalars.

        Args:
            output: what the network said.
            memory: the prototypes that said it.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            present: ``[B, N]`` bool.
            reference: ``[B, H, W]``, 255 where unknown; ``None`` believes every annotator.
            expert: ``[B, H, W]`` index of the expert, 255 where none; for ``who_target="expert"``.
        """
        with torch.autocast(masks.device.type, enabled=False):
            weight = self.relevance(output, reference)
            agree = self.agreement(masks, present, reference)
            return {
                "who": self._who(output.log_who, agree, weight, present, expert),
                "balance": _balance(output.within, weight, memory.kind, self._total),
                **_prototype_terms(output, memory, agree * weight.unsqueeze(1), self._total),
                "spread": _spread(memory.unit_vectors),
            }

    def relevance(self, output: TAXOutput, reference: Tensor | None) -> Tensor:
        """Weight of each pixel in questions of who, ``[B, H, W]`` in [0, 1].

        Near a disagreement of the annotators as the network knows them. Taken from the labels at
        hand instead, it would depend on who happens to be present, and favour those who are
        present where others deviate.
        """
        said = output.log_annotator_probs.detach().max(dim=2).indices  # argmax is slower
        if reference is None:
            return torch.ones_like(output.log_probs[:, 0])
        return relevance(said, reference, self.neighbourhood)

    @torch.no_grad()
    def follow(
        self,
        output: TAXOutput,
        memory: PrototypeMemory,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None,
        keep: int = 0,
    ) -> None:
        """Move the prototypes to the pixels assigned to them, where no gradient teaches them.

        Those of the first ``keep`` annotators stay.
        """
        with torch.autocast(masks.device.type, enabled=False):
            agree = self.agreement(masks, present, reference)
            weight = agree * self.relevance(output, reference).unsqueeze(1)
            _, embedding, _, weight, target = assign_pixels(output, memory, weight, self._total)
            taken = target * weight.unsqueeze(2)
            if memory.kind == "shared":
                taken = taken.sum(dim=1, keepdim=True)
            sums = self._total(torch.einsum("bnkm,bdm->nkd", taken, embedding.float()))
            memory.follow(sums, self._total(taken.sum(dim=(0, 3))), keep=keep)

    def agreement(self, masks: Tensor, present: Tensor, reference: Tensor | None) -> Tensor:
        """e_n: how well annotator n agrees with the reference, ``[B, N, H, W]`` in [0, 1].

        Without a reference 1 wherever annotator n labelled.
        """
        if reference is None:
            return (masks != IGNORE_INDEX).float()
        agree = agreement(masks, reference, self.window, self.sharpness)
        return agree * present[:, :, None, None]

    def _who(
        self,
        log_who: Tensor,
        agree: Tensor,
        weight: Tensor,
        present: Tensor,
        expert: Tensor | None,
    ) -> Tensor:
        if self.who_target == "none":
            return log_who.new_zeros(())
        if self.who_target == "expert":
            return _expert_loss(log_who, expert, self._total)
        # An annotator who labels half of the images counts double where they do. Normalising the
        # target over whoever is present would instead favour those who label alone.
        rate = (present / self.label_rate)[:, :, None, None]
        loss = -(rate * agree * log_who).sum(dim=1)
        return _mean([(weight * loss).sum()], weight.sum(), self._total)[0]


def _check_known(**arguments: tuple[str, Any]) -> None:
    """Raise a ``ValueError`` at a value that is not among those of its ``Literal``."""
    for name, (value, literal) in arguments.items():
        if value not in get_args(literal):
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(get_args(literal))}.")


def _mean(sums: list[Tensor], count: Tensor, total: Total) -> Tensor:
    """Sums over a count, both over all processes; 0 where nothing was counted."""
    whole = total(torch.stack([*sums, count]))
    return whole[:-1] / whole[-1].clamp_min(1e-6)


def _cross_entropy(log_probs: Tensor, labels: Tensor, total: Total) -> Tensor:
    flat = labels.flatten(0, 1)
    pixels: Tensor = F.nll_loss(
        log_probs.flatten(0, 1), flat, ignore_index=IGNORE_INDEX, reduction="none"
    )
    over = (0, 2, 3)  # images and pixels, not annotators
    counts = (labels != IGNORE_INDEX).sum(over)
    sums, counts = total(torch.stack([pixels.view_as(labels).sum(over), counts.to(pixels)]))
    means: Tensor = sums / counts.clamp_min(1)
    mean: Tensor = means.sum() / (counts > 0).sum().clamp_min(1)
    return mean


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


def _expert_loss(log_who: Tensor, expert: Tensor | None, total: Total) -> Tensor:
    if expert is None:
        raise ValueError(
            "who_target='expert': the batch has no key 'expert'. Only synthetic data knows the "
            "expert of each pixel; use who_target='window'."
        )
    loss = F.nll_loss(log_who, expert, ignore_index=IGNORE_INDEX, reduction="sum")
    return _mean([loss], (expert != IGNORE_INDEX).sum().to(loss), total)[0]


def _balance(within: Tensor, weight: Tensor, kind: BankKind, total: Total) -> Tensor:
    """Mean over n of KL(mean use of n's kernels || uniform).

    Shared kernels are to be used evenly by all annotators together, not by each.
    """
    kernels = within.shape[1:3]
    # As a product of matrices, without a copy of all the values in between.
    columns = weight.flatten(1).unsqueeze(2).to(within.dtype)
    used = (within.flatten(3).flatten(1, 2) @ columns).sum(dim=(0, 2))
    use = _mean(list(used), weight.sum(), total).view(kernels)
    if kind == "shared":
        use = use.mean(dim=0, keepdim=True)
    divergence: Tensor = use * (use.clamp_min(LEAST_USE).log() + math.log(kernels[1]))
    return divergence.sum(dim=1).mean()


def _prototype_terms(
    output: TAXOutput, memory: PrototypeMemory, weight: Tensor, total: Total
) -> dict[str, Tensor]:
    """``cluster`` and ``pull`` on sampled pixels, weighted by ``[B, N, H, W]``."""
    log_within, _, cosine, weight, target = assign_pixels(output, memory, weight, total)
    cross_entropy = -(target * log_within).sum(dim=2)
    nearest = cosine.gather(2, target.argmax(dim=2, keepdim=True)).squeeze(2)
    sums = [(weight * cross_entropy).sum(), (weight * (1 - nearest).square()).sum()]
    cluster, pull = _mean(sums, weight.sum(), total)
    return {"cluster": cluster, "pull": pull}


def _spread(vectors: Tensor) -> Tensor:
    flat = vectors.flatten(0, 1)
    cosine = flat @ flat.T
    apart = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    return F.relu(cosine[apart] - 0.5).square().mean() if len(flat) > 1 else flat.sum() * 0.0
