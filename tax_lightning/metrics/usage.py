"""How evenly prototypes are used, whether what is seen moves them, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.metrics.inputs import check_inputs, check_names
from tax_lightning.metrics.pooled import PooledMetric, count, total


def _evenness(totals: Tensor) -> Tensor:
    """exp(entropy) / K of summed shares ``[N, K]``; NaN where nothing was summed."""
    # Shares of half precision do not sum to 1 exactly, so divide by their own total.
    mean = totals / totals.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(mean).sum(-1)
    return entropy.exp() / totals.shape[-1]


def _totals(within: Tensor) -> Tensor:
    """Shares summed over images and pixels, in single precision ``[N, K]``."""
    return within.sum((0, 3, 4), dtype=torch.float32)


def _check_kernels(kernels: int) -> int:
    if kernels < 1:
        raise ValueError(f"`kernels` is {kernels}, expected at least 1; pass the number K.")
    return kernels


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


class PrototypeUsage(PooledMetric):
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

    higher_is_better = True

    def __init__(self, annotators: Sequence[str], kernels: int) -> None:
        names = check_names("annotators", annotators, least=1)
        super().__init__(totals=torch.zeros(len(names), _check_kernels(kernels)))
        self.annotators, self.kernels = names, kernels

    def update(self, *, within: Tensor) -> None:
        """Add one batch."""
        check_inputs(("within", within, "BNKHW"), N=len(self.annotators), K=self.kernels)
        self.add(totals=_totals(within))

    def compute(self) -> dict[str, Tensor]:
        """Usage by annotator, and the mean over annotators."""
        usage = _evenness(self.sums["totals"])
        by_name = {f"prototype_usage/{name}": usage[n] for n, name in enumerate(self.annotators)}
        return by_name | {"prototype_usage/mean": usage.mean()}


def _pixels(log_within: Tensor) -> int:
    """Number of pixels of a batch ``[B, N, K, H, W]``."""
    return log_within.shape[0] * log_within.shape[-2] * log_within.shape[-1]


def _tops(log_within: Tensor) -> Tensor:
    """At how many pixels each prototype is the top of its annotator ``[N, K]``."""
    kernels = torch.arange(log_within.shape[2], device=log_within.device)
    top = log_within.argmax(2, keepdim=True)
    return (top == kernels[:, None, None]).sum((0, 3, 4))


def _pruned(tops: Tensor) -> Tensor:
    """Share of prototypes without a pixel ``[N]``; NaN where no pixel was seen."""
    share = (tops == 0).float().mean(1)
    return share.masked_fill(tops.sum(1) == 0, torch.nan)


def pruned_share(log_within: Tensor) -> Tensor:
    """Share of each annotator's prototypes that lead their annotator at no pixel.

    A prototype leads where its weight is the largest of its annotator's K (the first of equals). A
    prototype that the memory has declared pruned, whose logarithm is -inf, leads nowhere.

    Args:
        log_within: Logarithm of each kernel's weight within its annotator ``[B, N, K, H, W]``.

    Returns:
        Shares in [0, 1 - 1/K] ``[N]``, 0 is best; NaN where there is no pixel.

    Raises:
        ValueError: If ``log_within`` has not five dimensions.

    Example:
        >>> import torch
        >>> shares = torch.tensor([[0.6, 0.4], [0.3, 0.7]])  # 2 annotators, 2 kernels
        >>> pruned_share(shares.log()[None, :, :, None, None])
        tensor([0.5000, 0.5000])
    """
    check_inputs(("log_within", log_within, "BNKHW"))
    return _pruned(_tops(log_within))


def _information_sums(log_who: Tensor, log_within: Tensor) -> tuple[Tensor, Tensor]:
    """Assignment summed over pixels ``[N, K]``, and the sum of its entropies."""
    assignment = (log_who.float().unsqueeze(2) + log_within.float()).exp()
    return assignment.sum((0, 3, 4)), torch.special.entr(assignment).sum()


def _information(totals: Tensor, entropy: Tensor, pixels: Tensor) -> Tensor:
    """H(mean a) - mean H(a); NaN where there is no pixel."""
    of_mean: Tensor = torch.special.entr(totals / totals.sum()).sum()
    return (of_mean - entropy / pixels).clamp(min=0)  # rounding may leave it just below 0


def assignment_information(log_who: Tensor, log_within: Tensor) -> Tensor:
    """How much the pixel says about which of all N * K kernels is assigned to it, in nats.

    The mutual information of pixel and kernel, H(mean a) - mean H(a): 0 where every pixel is
    assigned alike, whatever it shows (collapsed), and log(N * K) where each pixel has one kernel
    and all kernels have as many pixels.

    Args:
        log_who: Logarithm of each annotator's weight ``[B, N, H, W]``.
        log_within: Logarithm of each kernel's weight within its annotator ``[B, N, K, H, W]``.

    Returns:
        A scalar in [0, log(N * K)]; NaN where there is no pixel.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> who = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 2 annotators, 2 pixels
        >>> within = torch.zeros(1, 2, 1, 1, 2)
        >>> assignment_information(who.log()[None, :, None], within)
        tensor(0.6931)

    Source:
        J. S. Bridle, A. J. R. Heading, D. J. C. MacKay, "Unsupervised classifiers, mutual
        information and 'phantom targets'", 1991.
    """
    check_inputs(("log_who", log_who, "BNHW"), ("log_within", log_within, "BNKHW"))
    pixels = torch.tensor(_pixels(log_within), device=log_within.device)
    return _information(*_information_sums(log_who, log_within), pixels)


def prototype_max_cosine(vectors: Tensor, active: Tensor | None = None) -> Tensor:
    """Largest cosine between two different prototypes; above 0.95 they are duplicates.

    Prototypes of one annotator and of different annotators count alike.

    Args:
        vectors: Prototypes ``[N, K, D]``, of any length but 0.
        active: Prototypes that take part, boolean ``[N, K]``; all of them if not given.

    Returns:
        A scalar in [-1, 1]; NaN for fewer than two prototypes.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> prototype_max_cosine(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-1, 0]]]))
        tensor(0.8000)
    """
    check_inputs(("vectors", vectors, "NKD"))
    rows = vectors.flatten(0, 1)
    if active is not None:
        check_inputs(("vectors", vectors, "NKD"), ("active", active, "NK"))
        rows = rows[active.flatten()]
    if len(rows) < 2:
        return torch.full((), torch.nan, device=vectors.device)
    rows = F.normalize(rows.float(), dim=-1)
    cosine: Tensor = (rows @ rows.T).fill_diagonal_(-torch.inf)
    return cosine.max().clamp(-1, 1)


class AssignmentUsage(PooledMetric):
    """Which prototypes are never used, and whether the assignment follows what is seen.

    Pools the pixels of all images; see :func:`pruned_share` and :func:`assignment_information`.

    ``update`` takes ``log_who`` ``[B, N, H, W]`` and ``log_within`` ``[B, N, K, H, W]``.
    ``compute`` returns ``{"prototype_pruned/<annotator>": ..., "prototype_pruned/mean": ...,
    "assignment_information": ...}``: shares in [0, 1] and nats in [0, log(N * K)]; NaN without a
    case.

    Args:
        annotators: Names, in the order of the N axis.
        kernels: Number K of kernels of an annotator.

    Raises:
        ValueError: If names repeat, ``kernels`` is below 1 or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = AssignmentUsage(["Ada", "Ben"], kernels=1)
        >>> who = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 2 annotators, 2 pixels
        >>> metric.update(log_who=who.log()[None, :, None], log_within=torch.zeros(1, 2, 1, 1, 2))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'prototype_pruned/Ada': 0.0, 'prototype_pruned/Ben': 0.0, 'prototype_pruned/mean': 0.0,
         'assignment_information': 0.693}
    """

    def __init__(self, annotators: Sequence[str], kernels: int) -> None:
        names = check_names("annotators", annotators, least=1)
        shape = len(names), _check_kernels(kernels)
        super().__init__(
            tops=torch.zeros(shape, dtype=torch.long),
            totals=torch.zeros(shape),
            entropy=total(),
            pixels=count(),
        )
        self.annotators, self.kernels = names, kernels

    def update(self, *, log_who: Tensor, log_within: Tensor) -> None:
        """Add one batch."""
        check_inputs(
            ("log_who", log_who, "BNHW"),
            ("log_within", log_within, "BNKHW"),
            N=len(self.annotators),
            K=self.kernels,
        )
        totals, entropy = _information_sums(log_who, log_within)
        self.add(tops=_tops(log_within), totals=totals, entropy=entropy, pixels=_pixels(log_within))

    def compute(self) -> dict[str, Tensor]:
        """Dead share by annotator and its mean, and the information over all pixels."""
        sums = self.sums
        pruned = _pruned(sums["tops"])
        by_name = {f"prototype_pruned/{name}": pruned[n] for n, name in enumerate(self.annotators)}
        information = _information(sums["totals"], sums["entropy"], sums["pixels"])
        return by_name | {
            "prototype_pruned/mean": pruned.mean(),
            "assignment_information": information,
        }
