"""How evenly each annotator's prototypes are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.metrics.inputs import check_inputs, check_names


def _evenness(totals: Tensor) -> Tensor:
    """exp(entropy) / K of summed shares ``[N, K]``; NaN where nothing was summed."""
    # Shares of half precision do not sum to 1 exactly, so divide by their own total.
    mean = totals / totals.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(mean).sum(-1)
    return entropy.exp() / totals.shape[-1]


def _totals(within: Tensor) -> Tensor:
    """Shares summed over images and pixels, in single precision ``[N, K]``."""
    return within.sum((0, 3, 4), dtype=torch.float32)


def prototype_usage(within: Tensor) -> Tensor:
    """Effective share of each annotator's prototypes that are in use.

    exp(H(m_n)) / K, where m_n is annotator n's mean share of each kernel over all pixels and H the
    entropy in nats: 1 where all K prototypes are used alike, 1/K where one does all the work.

    Args:
        within: Share of each kernel within its annotator ``[B, N, K, H, W]``, sums to 1 over K.

    Returns:
        Usage in (0, 1] ``[N]``; NaN where there is no pixel.

    Raises:
        ValueError: If ``within`` has not five dimensions.

    Example:
        >>> import torch
        >>> shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])  # 2 annotators, 2 kernels
        >>> prototype_usage(shares[None, :, :, None, None])
        tensor([1.0000, 0.5000])

    Source:
        The exponential of the entropy as an effective number: M. O. Hill, "Diversity and
        evenness: a unifying notation and its consequences", 1973.
    """
    check_inputs(("within", within, "BNKHW"))
    return _evenness(_totals(within))


class PrototypeUsage(Metric):
    """Effective share of each annotator's prototypes that are in use; see :func:`prototype_usage`.

    The mean share of each kernel is over the pixels of all images, whoever labelled them.

    ``update`` takes ``within`` ``[B, N, K, H, W]``. ``compute`` returns
    ``{"prototype_usage/<annotator>": ..., "prototype_usage/mean": ...}``, in (0, 1]; NaN without a
    case.

    Args:
        annotators: Names, in the order of the N axis.
        kernels: Number K of kernels of an annotator.

    Raises:
        ValueError: If names repeat, ``kernels`` is below 1 or ``within`` does not fit.

    Example:
        >>> import torch
        >>> metric = PrototypeUsage(["Ada", "Ben"], kernels=2)
        >>> shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        >>> metric.update(within=shares[None, :, :, None, None])
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'prototype_usage/Ada': 1.0, 'prototype_usage/Ben': 0.5, 'prototype_usage/mean': 0.75}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    totals: Tensor

    def __init__(self, annotators: Sequence[str], kernels: int) -> None:
        super().__init__()
        if kernels < 1:
            raise ValueError(f"`kernels` is {kernels}, expected at least 1; pass the number K.")
        self.annotators = check_names("annotators", annotators, least=1)
        self.kernels = kernels
        empty = torch.zeros(len(self.annotators), kernels)
        self.add_state("totals", empty, dist_reduce_fx="sum")

    def update(self, *, within: Tensor) -> None:
        """Add one batch."""
        check_inputs(("within", within, "BNKHW"), N=len(self.annotators), K=self.kernels)
        self.totals += _totals(within)

    def compute(self) -> dict[str, Tensor]:
        """Usage by annotator, and the mean over annotators."""
        usage = _evenness(self.totals)
        by_name = {f"prototype_usage/{name}": usage[n] for n, name in enumerate(self.annotators)}
        return by_name | {"prototype_usage/mean": usage.mean()}
