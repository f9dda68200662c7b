"""Metrics made of sums over the pixels of all images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def count() -> Tensor:
    """Start of a sum of whole numbers."""
    return torch.zeros((), dtype=torch.long)


def total() -> Tensor:
    """Start of a sum of any numbers."""
    return torch.zeros(())


class PooledMetric(Metric):
    """A metric that is a function of sums, so that any parts of the data merge to the whole.

    A subclass says how a batch is added (``update``) and what comes of the sums (``compute``).

    Args:
        starts: What each sum starts from, by name.

    Example:
        >>> class Share(PooledMetric):
        ...     def __init__(self):
        ...         super().__init__(hits=count(), pixels=count())
        ...
        ...     def update(self, right):
        ...         self.add(hits=right.sum(), pixels=right.numel())
        ...
        ...     def compute(self):
        ...         return self.sums["hits"] / self.sums["pixels"]
        >>> share = Share()
        >>> share.update(torch.tensor([True, False]))
        >>> share.update(torch.tensor([True, True]))
        >>> share.compute()
        tensor(0.7500)
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **starts: Tensor) -> None:
        super().__init__()
        self._names = tuple(starts)
        for name, start in starts.items():
            self.add_state(name, start, dist_reduce_fx="sum")

    def add(self, **values: Tensor | int) -> None:
        """Add a batch's part to each sum."""
        for name in self._names:
            getattr(self, name).add_(values[name])

    @property
    def sums(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {name: getattr(self, name) for name in self._names}
