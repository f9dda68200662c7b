"""What a model says about a batch of images, in logarithms of probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tax_lightning.explanation import most_likely
from tax_lightning.models.mixture import LEAST_PROB, mix, probs_at

Panel = Tensor | slice
"""Places of the annotators who count, such as ``torch.tensor([0, 2])``."""
EVERYBODY = slice(None)


class ModelOutput(NamedTuple):
    """What a model without prototypes says about a batch.

    A model that names no annotators, N = 0, gives segmentations sampled from it instead.
    """

    log_probs: Tensor  #: of the resulting segmentation, ``[B, C, H, W]``
    log_annotator_probs: Tensor  #: of each annotator's own segmentation, ``[B, N, C, H, W]``
    log_who: Tensor  #: weights ``[B, N, H, W]``; equal where the model does not learn them
    log_samples: Tensor | None = None  #: ``[B, S, C, H, W]``

    @property
    def log_sample_probs(self) -> Tensor:
        """Log of the set of segmentations that the model expects, ``[B, S or N, C, H, W]``."""
        return self.log_annotator_probs if self.log_samples is None else self.log_samples

    @classmethod
    def weighing_all_alike(
        cls, log_annotator_probs: Tensor, log_probs: Tensor | None = None
    ) -> ModelOutput:
        """The output of a model whose annotators weigh the same; by default with their mean."""
        log_who = torch.zeros_like(log_annotator_probs[:, :, 0]).log_softmax(dim=1)
        result = mix(log_who, log_annotator_probs) if log_probs is None else log_probs
        return cls(result, log_annotator_probs, log_who)


def of_panel(output: ModelOutput | TAXOutput, panel: Panel | list[int]) -> ModelOutput:
    """The output if only a panel of annotators counted: the result is theirs.

    Example:
        >>> own = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.4, 0.6]]).log().view(1, 3, 2, 1, 1)
        >>> output = ModelOutput.weighing_all_alike(own)
        >>> of_panel(output, [0, 1]).log_probs.exp().flatten()
        tensor([0.4000, 0.6000])
    """
    own, log_who = output.log_annotator_probs[:, panel], output.log_who[:, panel]
    log_who = log_who.log_softmax(dim=1)
    return ModelOutput(mix(log_who, own), own, log_who)


class TAXWeights(NamedTuple):
    """Who and why, before anything is segmented; as of :class:`TAXOutput`."""

    log_who: Tensor
    within: Tensor
    embedding: Tensor


class TAXOutput(NamedTuple):
    """What a :class:`~tax_lightning.models.network.TAXNetwork` says about a batch."""

    log_annotator_probs: Tensor  #: log p_n, of each annotator's own, ``[B, N, C, H, W]``
    log_who: Tensor  #: log w_n, ``[B, N, H, W]``
    within: Tensor  #: g_nk in [0, 1], ``[B, N, K, H, W]``; 0 for pruned prototypes
    log_odds: (
        Tensor  #: log p_nk(c) / p_nk(0) of all classes but the first, ``[B, N, K, C-1, H, W]``
    )
    embedding: Tensor  #: z at unit length, ``[B, E, H, W]``

    @property
    def log_probs(self) -> Tensor:
        """Log of the resulting segmentation p, ``[B, C, H, W]``; computed when asked for."""
        return mix(self.log_who, self.log_annotator_probs)

    @property
    def log_sample_probs(self) -> Tensor:
        """Log of the set of segmentations that the network expects: the annotators' own."""
        return self.log_annotator_probs

    @property
    def probs(self) -> Tensor:
        """The result in [0, 1], ``[B, C, H, W]``; sums to 1 over classes."""
        return self.log_probs.exp()

    @property
    def annotator_probs(self) -> Tensor:
        """Each annotator's own segmentation in [0, 1], ``[B, N, C, H, W]``."""
        return self.log_annotator_probs.exp()

    @property
    def who(self) -> Tensor:
        """w_n in [0, 1], ``[B, N, H, W]``; sums to 1 over annotators."""
        return self.log_who.exp()

    def shares(self, decision: Tensor) -> Tensor:
        """s_nk: share of every kernel in the decision, class ids ``[B, H, W]``.

        ``[B, N, K, H, W]`` in [0, 1]; sums to 1 over N and K.
        """
        joint = probs_at(self.log_odds, decision.unsqueeze(1)) * self.within
        joint *= self.who.unsqueeze(2)
        return joint / joint.sum(dim=(1, 2), keepdim=True).clamp_min(LEAST_PROB)

    def reason(self, decision: Tensor, *, all_alike: bool = False) -> Tensor:
        """Index n K + k of the kernel with the largest share in the decision ``[B, H, W]``.

        ``all_alike`` is for weights that are the same everywhere: the annotators count the same
        then, else the one with the largest constant would be the reason at every pixel.
        """
        shares = self.shares(decision)
        if all_alike:
            shares = shares / self.who.unsqueeze(2)
        return most_likely(shares.flatten(1, 2), dim=1)
