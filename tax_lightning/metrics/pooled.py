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


class ImageAverage(PooledMetric):
    """Scores of single images, each averaged over the images that have it.

    A subclass says what the scores of a batch are (``update``). ``compute`` returns them by name; a
    score that no image has is NaN.

    Args:
        keys: Name of each score.

    Example:
        >>> class Brightness(ImageAverage):
        ...     def __init__(self):
        ...         super().__init__("brightness")
        ...
        ...     def update(self, images):
        ...         self.add_images(images.nanmean((1, 2)))
        >>> brightness = Brightness()
        >>> brightness.update(torch.tensor([[[0.2, 0.4]], [[0.5, torch.nan]], [[torch.nan] * 2]]))
        >>> brightness.compute()
        {'brightness': tensor(0.4000)}
    """

    def __init__(self, *keys: str) -> None:
        super().__init__(
            scores=torch.zeros(len(keys)), images=torch.zeros(len(keys), dtype=torch.long)
        )
        self.keys = keys

    def add_images(self, *scores: Tensor) -> None:
        """Add the scores of a batch of images ``[B]``, NaN where an image has none."""
        stacked = torch.stack(scores)
        self.add(scores=stacked.nansum(1), images=(~stacked.isnan()).sum(1))

    def compute(self) -> dict[str, Tensor]:
        """Average over images."""
        averages = self.sums["scores"] / self.sums["images"]
        return dict(zip(self.keys, averages.unbind(), strict=True))
