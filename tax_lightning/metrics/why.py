"""Why: are all prototypes used, and does each stand for one class?

Arguments are explained in :mod:`tax_lightning.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_mutual_info_score

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import PooledMetric, check_count, check_inputs, check_names

_TOP = 10  # pixels kept for a prototype, each from another image


class PrototypeUsage(PooledMetric):
    """Are all prototypes of an annotator used, over all pixels, whoever labelled them?

    ``compute`` returns, by annotator and as mean,

    - ``prototype_usage``: exp(H(m)) / K of an annotator's mean shares m; 1 where all K prototypes
      are used alike, 1/K where one does all the work;
    - ``prototype_pruned``: share of prototypes that have the largest share of their annotator's at
      no pixel, in [0, 1 - 1/K], 0 is best.

    Example:
        >>> metric = PrototypeUsage(["Ada", "Ben"], kernels=2)
        >>> metric.update(within=torch.tensor([[0.5, 0.5], [1.0, 0.0]])[None, :, :, None, None])
        >>> metric.compute()["prototype_usage/Ada"], metric.compute()["prototype_usage/Ben"]
        (tensor(1.), tensor(0.5000))

    Source:
        The exponential of the entropy as an effective number: M. O. Hill, "Diversity and
        evenness: a unifying notation and its consequences", 1973.
    """

    def __init__(self, annotators: Sequence[str], kernels: int) -> None:
        self.annotators = check_names("annotators", annotators, least=1)
        self.kernels = check_count("kernels", kernels)
        shares = torch.zeros(len(annotators), kernels)
        super().__init__(shares=shares, leads=shares.long())

    def update(self, *, within: Tensor) -> None:
        """Add one batch."""
        check_inputs(("within", within, "BNKHW"), N=len(self.annotators), K=self.kernels)
        kernels = torch.arange(self.kernels, device=within.device).view(-1, 1, 1)
        leads = within.argmax(2, keepdim=True) == kernels
        pixels = (0, 3, 4)
        self.add(shares=within.sum(pixels, dtype=torch.float32), leads=leads.sum(pixels))

    def compute(self) -> dict[str, Tensor]:
        """Both by annotator, and the means over annotators."""
        shares, leads = self.sums["shares"], self.sums["leads"]
        # Shares of half precision do not sum to 1 exactly, so divide by their own total.
        entropy = torch.special.entr(shares / shares.sum(1, keepdim=True)).sum(1)
        pruned = (leads == 0).float().mean(1).masked_fill(leads.sum(1) == 0, torch.nan)
        values: dict[str, Tensor] = {}
        for kind, value in (("usage", entropy.exp() / self.kernels), ("pruned", pruned)):
            named = zip((*self.annotators, "mean"), (*value, value.mean()), strict=True)
            values |= {f"prototype_{kind}/{name}": each for name, each in named}
        return values


class Purity(PooledMetric):
    """Does each prototype stand for one class?

    For every prototype the ten most similar pixels are kept, each from another image, and the
    classes there: memory does not grow with the data. An image must come once only. ``similarity``
    is ``[B, N, K, H, W]``, and ``eligible``, boolean of the same shape, says which pixels may stand
    for a prototype: none for a pruned one. ``compute`` returns

    - ``purity/class``: the largest share of one class among a prototype's pixels, averaged by the
      number of pixels at which the prototype is the most similar of its annotator's; in [1/10, 1].
      It rises with the number of prototypes;
    - ``purity_ami/class``: the adjusted mutual information of prototype and class, which does not:
      0 is chance, 1 is best; NaN where no prototype has two pixels;
    - both with ``_shuffled`` before the slash: the control, each pixel with another one's class.

    Example:
        >>> metric = Purity(annotators=1, kernels=2, classes=2)
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]])[None, None, :, None]
        >>> for _ in range(5):  # five images of two pixels
        ...     metric.update(similarity=similarity, reference=torch.tensor([[[0, 1]]]))
        >>> metric.compute()["purity/class"], metric.compute()["purity_ami/class"]
        (tensor(1.), tensor(1.))

    Source:
        N. X. Vinh, J. Epps, J. Bailey, "Information theoretic measures for clusterings
        comparison", 2010.
    """

    higher_is_better = True

    kept: Tensor
    usage: Tensor

    def __init__(self, annotators: int, kernels: int, classes: int) -> None:
        self.annotators = check_count("annotators", annotators)
        self.kernels = check_count("kernels", kernels)
        self.classes = check_count("classes", classes)
        super().__init__(usage=torch.zeros(annotators, kernels, dtype=torch.long))
        nothing = torch.tensor([-torch.inf, IGNORE_INDEX])  # similarity and class of a pixel
        empty = nothing.repeat(annotators, kernels, _TOP, 1)
        # What all processes kept is merged and the best ten are kept again.
        self.add_state("kept", empty, lambda parts: _best(parts.movedim(0, 2).flatten(2, 3)))

    def update(
        self, *, similarity: Tensor, reference: Tensor, eligible: Tensor | None = None
    ) -> None:
        """Add one batch."""
        eligible = torch.ones_like(similarity, dtype=torch.bool) if eligible is None else eligible
        check_inputs(
            ("similarity", similarity, "BNKHW"),
            ("eligible", eligible, "BNKHW"),
            ("reference", reference, "BHW"),
            N=self.annotators,
            K=self.kernels,
        )
        if not len(similarity):
            return
        similarity = similarity.float().masked_fill(~eligible, -torch.inf)
        highest, index = similarity.flatten(3).max(dim=3)
        found = reference.flatten(1).gather(1, index.flatten(1)).view_as(index)
        found = found.masked_fill(highest == -torch.inf, IGNORE_INDEX)
        wrong = found[(found != IGNORE_INDEX) & ((found < 0) | (found >= self.classes))]
        if wrong.numel():
            raise ValueError(
                f"`reference` has the class {int(wrong[0])}, expected 0 to {self.classes - 1}, or "
                "255 where unknown; give the metric the right number of classes."
            )
        new = torch.stack([highest, found.float()], dim=-1).movedim(0, 2)
        self.kept = _best(torch.cat([self.kept, new], dim=2))
        kernels = torch.arange(self.kernels, device=similarity.device).view(-1, 1, 1)
        leads = similarity.argmax(2, keepdim=True) == kernels
        self.usage += (leads & (similarity > -torch.inf)).sum((0, 3, 4))

    def compute(self) -> dict[str, Tensor]:
        """Purity and information, and their shuffled controls."""
        classes = self.kept[..., 1].long()
        known = classes != IGNORE_INDEX
        order = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(0))
        given = torch.empty_like(order)
        given[order] = order.roll(1)  # one cycle through all pixels, so that none keeps its own
        shuffled = classes.masked_scatter(known, classes[known][given.to(classes.device)])
        return {
            "purity/class": self._purity(classes),
            "purity_shuffled/class": self._purity(shuffled),
            "purity_ami/class": _information(classes),
            "purity_ami_shuffled/class": _information(shuffled),
        }

    def _purity(self, classes: Tensor) -> Tensor:
        known = classes != IGNORE_INDEX
        same = (classes.unsqueeze(-1) == classes.unsqueeze(-2)) & known.unsqueeze(-1)
        largest, counts = same.sum(-1).amax(-1), known.sum(-1)
        weights = self.usage.float().masked_fill(counts == 0, 0)
        return (weights * largest / counts.clamp(min=1)).sum() / weights.sum()


def _best(rows: Tensor) -> Tensor:
    """The ten rows of ``[N, K, R, 2]`` whose first field, the similarity, is largest."""
    order = rows[..., 0].argsort(dim=2, descending=True, stable=True)[..., :_TOP]
    return rows.take_along_dim(order.unsqueeze(-1), dim=2)


def _information(classes: Tensor) -> Tensor:
    """Adjusted mutual information of prototype and class, of pixels ``[N, K, T]``."""
    rows = classes.flatten(0, 1).cpu()  # a loop over single numbers, which suits no GPU
    known = rows != IGNORE_INDEX
    if known.sum() == 0 or known.sum(1).max() < 2:
        return torch.full((), torch.nan, device=classes.device)
    prototype = torch.arange(len(rows)).unsqueeze(1).expand_as(rows)
    # torchmetrics builds a sparse tensor; torch wants to be told whether to check such tensors.
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        score: Tensor = adjusted_mutual_info_score(prototype[known], rows[known])
    return score.to(classes.device)
