"""Do the kernels that are named as the reason really carry the decision?

A kernel's share in a decision is computed, not observed. These metrics observe: they take kernels
away, or leave only a few, and look at what becomes of the decision. Each has its control, the same
with kernels chosen by chance.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.metrics.inputs import check_inputs
from tax_lightning.models.mixture import among, mix
from typing import Literal

Mixing = Literal["prob"]

KEYS = (
    "why_deletion_area",
    "why_deletion_area_random",
    "why_sufficiency_1",
    "why_sufficiency_1_random",
    "why_sufficiency_3",
    "why_size",
)


def _spread(cases: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of at most ``limit`` cases an image, evenly spaced among its own."""
    chosen = []
    for image in cases:
        places = image.nonzero()
        if len(places) > limit:
            places = places[torch.arange(limit, device=cases.device) * len(places) // limit]
        chosen.append(places)
    number = torch.arange(len(cases), device=cases.device)
    image = number.repeat_interleave(torch.tensor([len(p) for p in chosen], device=cases.device))
    y, x = torch.cat(chosen).unbind(1)
    return image, y, x


def _gather(
    log_who: Tensor, log_within: Tensor, log_kernel_probs: Tensor, cases: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Assignment ``[M, 1, P]`` and probabilities ``[M, C, 1, P]`` of the M active kernels.

    The P pixels are laid out as an image of one row, as the rules of mixing take images.
    """
    image, y, x = _spread(cases, limit)
    log_assignment = log_who[image, :, y, x].unsqueeze(2) + log_within[image, :, :, y, x]
    log_weights = log_assignment.float().flatten(1).T.unsqueeze(1)
    log_probs = log_kernel_probs[image, :, :, :, y, x].float().flatten(1, 2).permute(1, 2, 0)
    active = (log_weights > -torch.inf).any(-1).squeeze(1)
    return log_weights[active], log_probs[active].unsqueeze(2)


def _ranks(log_weights: Tensor, log_probs: Tensor, decision: Tensor, mixing: Mixing) -> Tensor:
    """Place of each kernel by its share in the decision ``[M, 1, P]``, 0 for the largest."""
    shares = log_weights
    if mixing == "prob":
        index = decision.expand(len(log_weights), 1, *decision.shape[1:])
        shares = log_weights + log_probs.gather(1, index).squeeze(1)
    order = shares.argsort(dim=0, descending=True, stable=True)
    return order.argsort(dim=0)


def _deletion_area(
    log_weights: Tensor, log_probs: Tensor, decision: Tensor, ranks: Tensor, mixing: Mixing
) -> Tensor:
    """Mean of p(decision) ``[1, 1, P]`` with the kernels of the lowest 0, 1 .. M - 1 ranks gone."""
    area = torch.zeros_like(decision, dtype=torch.float32)
    for removed in range(len(log_weights)):
        left = mix(among(log_weights, ranks >= removed), log_probs)
        # Only kernels without any weight at this pixel may be left; they cannot decide anything.
        area += left.gather(0, decision).exp().nan_to_num(nan=0.0)
    return area / len(log_weights)


def _random_area(
    log_weights: Tensor,
    log_probs: Tensor,
    decision: Tensor,
    mixing: Mixing,
    orders: int,
    seed: int,
) -> Tensor:
    """Mean of the deletion area over random orders, the same ones at every pixel and update."""
    generator = torch.Generator().manual_seed(seed)
    area = torch.zeros_like(decision, dtype=torch.float32)
    for _ in range(orders):
        ranks = torch.randperm(len(log_weights), generator=generator).to(decision.device)
        area += _deletion_area(log_weights, log_probs, decision, ranks[:, None, None], mixing)
    return area / orders


def _why_sums(
    log_who: Tensor,
    log_within: Tensor,
    log_kernel_probs: Tensor,
    cases: Tensor,
    mixing: Mixing,
    pixels: int,
    orders: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sums of the values of ``KEYS`` over the pixels looked at, and the number of these pixels."""
    check_inputs(
        ("log_who", log_who, "BNHW"),
        ("log_within", log_within, "BNKHW"),
        ("log_kernel_probs", log_kernel_probs, "BNKCHW"),
        ("cases", cases, "BHW"),
    )
    if cases.dtype is not torch.bool:
        raise ValueError(f"`cases` has dtype {cases.dtype}, expected torch.bool; pass a mask.")
    weights, probs = _gather(log_who, log_within, log_kernel_probs, cases, pixels)
    count = torch.tensor(weights.shape[-1], device=cases.device)
    if not count:
        return torch.zeros(len(KEYS), device=cases.device), count
    decision = mix(weights, probs).argmax(0, keepdim=True)
    ranks = _ranks(weights, probs, decision, mixing)

    def same_with(top: int) -> Tensor:
        alone = mix(among(weights, ranks < top), probs)
        return alone.argmax(0, keepdim=True) == decision

    values = (
        _deletion_area(weights, probs, decision, ranks, mixing),
        _random_area(weights, probs, decision, mixing, orders, seed),
        same_with(1),
        (probs.argmax(1) == decision).float().mean(0),  # the mean over the kernels, so exact
        same_with(3),
        torch.special.entr(weights.exp()).sum(0).exp(),
    )
    return torch.stack([value.sum(dtype=torch.float32) for value in values]), count


def _why_means(sums: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Results of :func:`why_faithfulness` from its sums."""
    return dict(zip(KEYS, sums / count, strict=True))


def _check_settings(mixing: Mixing, pixels: int, orders: int) -> None:
    if mixing not in get_args(Mixing):
        raise ValueError(
            f"`mixing` is {mixing!r}, expected one of {list(get_args(Mixing))}; pass the network's."
        )
    if pixels < 1 or orders < 1:
        raise ValueError(
            f"`pixels` is {pixels} and `orders` is {orders}, expected at least 1 each; "
            "leave out the metric to save its time."
        )


def why_faithfulness(
    log_who: Tensor,
    log_within: Tensor,
    log_kernel_probs: Tensor,
    cases: Tensor,
    mixing: Mixing = "prob",
    pixels: int = 64,
    orders: int = 4,
    seed: int = 0,
) -> dict[str, Tensor]:
    """How much of each decision hangs on the kernels with the largest shares in it.

    All N * K active kernels of a pixel take part; those whose weight is 0 everywhere are pruned. The
    decision c is the class that all of them together give. The share of kernel (n, k) in it is
    a_nk p_nk(c) / p(c) where probabilities are mixed, and a_nk where logits are.

    - Deletion: kernels are removed one by one, the largest share first, the weights of the others
      made to sum to 1 again. The area under the curve of p(c) is the mean over 0, 1 .. M - 1
      removed kernels of the M; the lower it is compared with the area for random orders, the more
      the decision hangs on the kernels that were named.
    - Sufficiency: do the m kernels with the largest shares give c alone?
    - Size: exp(H(a)), the number of kernels that the assignment is spread over.

    Args:
        log_who: Logarithm of each annotator's weight ``[B, N, H, W]``.
        log_within: Logarithm of the kernels' weights within their annotator ``[B, N, K, H, W]``;
            -inf for a pruned one.
        log_kernel_probs: Logarithm of what each kernel would label ``[B, N, K, C, H, W]``.
        cases: Pixels that count, boolean ``[B, H, W]``, such as those of
            :func:`~tax_lightning.metrics.who.disagreement`.
        mixing: How the network mixes, ``"prob"`` or ``"logit"``.
        pixels: Largest number of pixels looked at in one image, evenly spaced among its cases;
            bounds the time, which grows with the square of N * K.
        orders: Number of random orders that the control averages over.
        seed: Makes the random orders the same at every call.

    Returns:
        ``why_deletion_area``, ``why_deletion_area_random``, ``why_sufficiency_1``,
        ``why_sufficiency_3``, ``why_sufficiency_1_random`` (exact: the share of kernels that give c
        alone), in [0, 1], and ``why_size`` in [1, N * K]. NaN without a case.

    Raises:
        ValueError: If the shapes do not fit one another, ``cases`` is not boolean, ``mixing`` is
            unknown, or ``pixels`` or ``orders`` is below 1.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]])  # 2 kernels, 2 classes
        >>> result = why_faithfulness(  # 1 annotator, 1 pixel
        ...     log_who=torch.zeros(1, 1, 1, 1),
        ...     log_within=torch.tensor([0.75, 0.25]).log().view(1, 1, 2, 1, 1),
        ...     log_kernel_probs=probs.log().view(1, 1, 2, 2, 1, 1),
        ...     cases=torch.ones(1, 1, 1, dtype=torch.bool),
        ... )
        >>> round(float(result["why_deletion_area"]), 3)  # (0.7 + 0.4) / 2
        0.55
        >>> float(result["why_sufficiency_1"]), float(result["why_sufficiency_1_random"])
        (1.0, 0.5)

    Source:
        Deletion curves: V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for
        Explanation of Black-box Models", arXiv 1806.07421; there pixels are removed, here kernels.
    """
    _check_settings(mixing, pixels, orders)
    return _why_means(
        *_why_sums(log_who, log_within, log_kernel_probs, cases, mixing, pixels, orders, seed)
    )


class WhyFaithfulness(Metric):
    """How much of each decision hangs on the kernels with the largest shares in it.

    Pools the pixels of all images, in each of which ``pixels`` cases at most are looked at; see
    :func:`why_faithfulness`.

    ``update`` takes ``log_who`` ``[B, N, H, W]``, ``log_within`` ``[B, N, K, H, W]``,
    ``log_kernel_probs`` ``[B, N, K, C, H, W]`` and ``cases`` (boolean ``[B, H, W]``). ``compute``
    returns ``{"why_deletion_area", "why_deletion_area_random", "why_sufficiency_1",
    "why_sufficiency_1_random", "why_sufficiency_3", "why_size"}``; NaN without a case.

    Args:
        mixing: How the network mixes, ``"prob"`` or ``"logit"``.
        pixels: Largest number of pixels looked at in one image.
        orders: Number of random orders that the control averages over.
        seed: Makes the random orders the same at every update.

    Raises:
        ValueError: If a setting is out of range or tensors do not fit.

    Example:
        >>> import torch
        >>> metric = WhyFaithfulness(mixing="prob")
        >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]])  # 2 annotators with a kernel each
        >>> metric.update(
        ...     log_who=torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1),
        ...     log_within=torch.zeros(1, 2, 1, 1, 1),
        ...     log_kernel_probs=probs.log().view(1, 2, 1, 2, 1, 1),
        ...     cases=torch.ones(1, 1, 1, dtype=torch.bool),
        ... )
        >>> round(float(metric.compute()["why_size"]), 3)
        2.0
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    count: Tensor

    def __init__(
        self, mixing: Mixing = "prob", pixels: int = 64, orders: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        _check_settings(mixing, pixels, orders)
        self.mixing = mixing
        self.pixels = pixels
        self.orders = orders
        self.seed = seed
        self.add_state("sums", torch.zeros(len(KEYS)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, *, log_who: Tensor, log_within: Tensor, log_kernel_probs: Tensor, cases: Tensor
    ) -> None:
        """Add one batch."""
        sums, count = _why_sums(
            log_who,
            log_within,
            log_kernel_probs,
            cases,
            self.mixing,
            self.pixels,
            self.orders,
            self.seed,
        )
        self.sums += sums
        self.count += count

    def compute(self) -> dict[str, Tensor]:
        """Average over the pixels looked at."""
        return _why_means(self.sums, self.count)
