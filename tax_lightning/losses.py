"""The training objective: named terms, each weighted and each logged.

    annotator   -log p_n(y^n), mean over annotators      each annotator's tendency
    fused       -log p(y*)                               the resulting segmentation
    who         -e_n log w_n                             who agrees with the reference here
    cluster     (1 - cos(z, assigned P))^2 - 1/2 q log g  each prototype has real pixels of its own
    separation  relu(cos(P, P') - 0.5)^2                 prototypes stay apart

y^n is annotator n's label in ``masks`` ``[B, N, H, W]``, y* that of the ``reference``
``[B, H, W]``, both 255 where there is none, and e_n how well annotator n agrees with the reference
around a pixel (:func:`tax_lightning.consensus.agreement`); the other symbols are those of
:mod:`tax_lightning.models.network`. ``cluster`` and ``separation`` are the two costs of ProtoPNet
(arXiv 1806.10574), with a balanced assignment of pixels to prototypes. No term balances w:
annotators need not decide equally often.

The term ``fused`` trains the weights w_n everywhere, but annotator n's kernels only where n's label
is y*. Otherwise all kernels would learn y*, whatever their annotator drew, and the result would no
longer depend on who decides.

Every term is a function of sums over images and pixels. Under several processes these sums are
taken over all of them (:attr:`TAXLoss.total`). So the terms and gradients are those of one process
with the whole batch. Only Dice is computed over the images of each process.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.consensus import agreement, relevance
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.distributed import Total, alone
from tax_lightning.models.mixture import LEAST_PROB, mix
from tax_lightning.models.output import EVERYBODY, ModelOutput, Panel, TAXOutput
from tax_lightning.models.prototypes import PrototypeMemory

SegmentationLoss = Literal["ce", "dice", "ce+dice"]
PROTOTYPE_PIXELS = 1024  # per image, for the cluster term: neighbouring pixels teach the same


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term in the training objective; 0 switches a term off.

    Args:
        annotator: each annotator's own segmentation against their labels.
        fused: the resulting segmentation against the reference.
        who: the weights of the annotators against their agreement with the reference.
        cluster: prototypes close to pixels.
        separation: prototypes apart from each other.

    Raises:
        ValueError: if a weight is negative.

    Example:
        >>> LossWeights(separation=0.0).separation
        0.0
    """

    annotator: float = 1.0
    fused: float = 1.0
    who: float = 0.5
    cluster: float = 0.2
    separation: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"loss_weights.{name}={value}: expected 0 or more.")


class SegmentationTerms(nn.Module):
    """The terms of the objective that train segmentations, unweighted.

    Their loss is cross-entropy, Dice or the sum of both.
    """

    total: Total

    def __init__(self, segmentation: SegmentationLoss = "ce") -> None:
        super().__init__()
        if segmentation not in get_args(SegmentationLoss):
            expected = ", ".join(get_args(SegmentationLoss))
            raise ValueError(f"segmentation_loss={segmentation!r}: expected one of {expected}.")
        self.segmentation = segmentation
        # Sum over all processes, with a gradient; with one process its own sum.
        self.total = alone

    @property
    def _total(self) -> Total:
        # In evaluation processes may have different numbers of batches, so they must not wait.
        return self.total if self.training else alone

    def segmentation_terms(
        self, output: ModelOutput | TAXOutput, masks: Tensor, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms ``annotator`` and ``fused``, scalars.

        Without a reference the result is trained on the labels of all annotators.
        """
        own = output.log_annotator_probs
        if reference is None:
            fused = self.between(output.log_probs.unsqueeze(1).expand_as(own), masks)
        else:
            labels = reference.unsqueeze(1)
            result = mix(output.log_who, own, taught=masks == labels)
            fused = self.between(result.unsqueeze(1), labels)
        return {"annotator": self.between(own, masks), "fused": fused}

    def between(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Loss of ``[B, N, C, H, W]`` against ``[B, N, H, W]``: over pixels first, then over N."""
        kinds = self.segmentation.split("+")
        terms = [_cross_entropy(log_probs, labels, self._total)] if "ce" in kinds else []
        if "dice" in kinds:
            terms.append(_dice(log_probs, labels))
        return torch.stack(terms).sum()


class TAXLoss(SegmentationTerms):
    """The terms of the objective, unweighted, of N annotators.

    Agreement with the reference counts in a ``window`` of so many pixels a side, odd.
    """

    images_seen: Tensor
    images_labelled: Tensor

    def __init__(
        self, annotators: int, segmentation: SegmentationLoss = "ce", window: int = 23
    ) -> None:
        super().__init__(segmentation)
        if window < 1 or window % 2 == 0:
            raise ValueError(f"who_window={window}: expected an odd number of pixels.")
        self.window = window
        self.sharpness = 60.0  # how quickly disagreement inside the window lowers the agreement
        # Share of images that each annotator labelled, counted while training.
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("images_labelled", torch.zeros(annotators, dtype=torch.long))

    def observe(self, labelled: Tensor, images: Tensor) -> None:
        """Count the images with labels of each annotator ``[N]``, and all images ``[]``."""
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
        panel: Panel = EVERYBODY,
    ) -> dict[str, Tensor]:
        """The terms ``who``, ``cluster`` and ``separation``, scalars; ``present`` is ``[B, N]``.

        Without a reference nobody can be said to be right, so ``who`` is left out. The output,
        masks and presence are those of the panel.
        """
        with torch.autocast(masks.device.type, enabled=False):
            # In the precision of the network: sums of it are taken over all processes.
            weight = self.relevance(output, reference).to(output.log_who.dtype)
            agree = self.agreement(masks, reference)
            rate = present / self.label_rate[panel]
            return {
                **({} if reference is None else {"who": self._who(output, agree, weight, rate)}),
                "cluster": self._cluster(output, memory, agree, weight, panel),
                "separation": _separation(memory.unit_vectors),
            }

    def relevance(self, output: TAXOutput, reference: Tensor | None) -> Tensor:
        """Weight of each pixel in who and why: high where the network expects disagreement."""
        if reference is None:
            return torch.ones_like(output.log_who[:, 0])
        # The labels at hand would not do: they depend on who is present, and would favour
        # annotators who are present where the others deviate.
        own, known = output.log_annotator_probs.detach(), reference != IGNORE_INDEX
        somebody_denies = (own < own.amax(dim=2, keepdim=True)).any(dim=1)  # of each class
        label = (reference * known).unsqueeze(1)
        differs = known & somebody_denies.gather(1, label).squeeze(1)
        return relevance(differs, self.window) * known

    def agreement(self, masks: Tensor, reference: Tensor | None) -> Tensor:
        """e_n ``[B, N, H, W]`` in [0, 1]; without a reference 1 wherever annotator n labelled."""
        if reference is None:
            return (masks != IGNORE_INDEX).float()
        return agreement(masks, reference, self.window, self.sharpness)

    def _who(self, output: TAXOutput, agree: Tensor, weight: Tensor, rate: Tensor) -> Tensor:
        # An annotator who labelled half of the images counts double where they did. Normalising the
        # target over whoever is present would instead favour annotators who label alone.
        target = agree * (rate[:, :, None, None] * weight.unsqueeze(1))
        return _mean(-(target * output.log_who).sum(), weight.sum(), self._total)

    def _cluster(
        self,
        output: TAXOutput,
        memory: PrototypeMemory,
        agree: Tensor,
        weight: Tensor,
        panel: Panel,
    ) -> Tensor:
        height, width = weight.shape[-2:]
        # The same places in all images.
        pixels = torch.randperm(height * width, device=weight.device)[:PROTOTYPE_PIXELS]
        agree, weight = agree.flatten(2)[..., pixels], weight.flatten(1)[:, None, pixels]
        # The fewer are right, the more a pixel counts: there a prototype decides something.
        rarely = agree / agree.sum(dim=1, keepdim=True).clamp_min(1e-6)
        weight = agree * rarely * weight
        embedding = output.embedding.flatten(2)[..., pixels].unsqueeze(3)
        cosine = memory.similarity(embedding, panel).squeeze(4)
        usable = cosine.detach().masked_fill(~memory.active[panel, :, None], float("-inf"))
        plan = balanced_assignment(usable, weight, total=self._total)
        nearest = cosine.gather(2, plan.argmax(dim=2, keepdim=True)).squeeze(2)
        # A pruned prototype has no share in the plan, and a logarithm of -inf.
        within = output.within.flatten(3)[..., pixels].clamp_min(LEAST_PROB)
        cross_entropy = -(plan * within.log()).sum(dim=2)
        cost = weight * ((1 - nearest).square() + 0.5 * cross_entropy)
        return _mean(cost.sum(), weight.sum(), self._total)


@torch.no_grad()
def balanced_assignment(
    cosine: Tensor,
    weight: Tensor,
    temperature: float = 0.05,
    iterations: int = 3,
    total: Total = alone,
) -> Tensor:
    """Assign pixels to the prototypes of each annotator so that all prototypes get equal weight.

    Without the balance most pixels would go to one or two prototypes, and the others would explain
    nothing. Sinkhorn-Knopp iterations as in SwAV (arXiv 2006.09882), with weighted pixels. From
    cosines ``[B, N, K, M]`` and weights of the pixels ``[B, N, M]`` to shares ``[B, N, K, M]``,
    which sum to 1 over K; a lower temperature is closer to a hard assignment. ``total`` sums over
    all processes, each of which has some of the pixels.

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


def _mean(summed: Tensor, count: Tensor, total: Total) -> Tensor:
    """Sum over count, both over all processes; 0 where nothing was counted."""
    summed, count = total(torch.stack([summed, count]))
    return summed / count.clamp_min(1e-6)


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
    dice: Any = DiceLoss("multilabel", from_logits=False, ignore_index=IGNORE_INDEX)
    loss: Tensor = dice(log_probs.exp().flatten(1, 2), one_hot.flatten(1, 2))
    # Annotators without a label count zero in that mean.
    return loss * labels.shape[1] / known.sum((0, 2, 3)).count_nonzero().clamp_min(1)


def _separation(vectors: Tensor) -> Tensor:
    flat = vectors.flatten(0, 1)
    cosine = flat @ flat.T
    apart = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    return F.relu(cosine[apart] - 0.5).square().mean() if len(flat) > 1 else flat.sum() * 0.0
