"""Batches that depend on seed, epoch and place alone, so that a run goes on from any batch.

Neither the order of the images nor their augmentation draws from a global generator, so neither the
number of loader processes nor an interruption changes them.
"""

import os
from collections.abc import Iterator
from typing import Any, Self, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


def seed_of(*numbers: int) -> int:
    """One seed, in 0..2^63-1, for numbers such as seed, epoch and place.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def fixed_seed() -> int | None:
    """The seed of the whole run, which ``lightning.seed_everything`` notes; None without one."""
    known = os.environ.get("PL_GLOBAL_SEED")
    return int(known) if known else None


class Draw(int):
    """The place of a sample that brings the ``seed`` of its augmentation.

    Example:
        >>> draw = Draw(3, seed=17)
        >>> ["a", "b", "c", "d"][draw], draw.seed
        ('d', 17)
    """

    seed: int

    def __new__(cls, place: int, seed: int = 0) -> Self:
        """A place with a seed."""
        draw = super().__new__(cls, place)
        draw.seed = seed
        return draw


class EpochSampler(DistributedSampler[Any]):
    """The places of one process in one epoch, in an order of their own for each epoch.

    Seed and epoch alone say the order and, with the place, the seed of each :class:`Draw`.
    Lightning tells the epoch; without it each full pass is one. Where processes cannot share the
    samples evenly some come twice.

    Args:
        dataset: what is drawn from; its length is that at the start.
        seed: of the run.
        rank: number of this process.
        processes: how many there are.

    Example:
        >>> sampler = EpochSampler(range(6), seed=0)
        >>> epochs = [sampler.set_epoch(epoch) or list(sampler) for epoch in (0, 1, 0)]
        >>> sorted(epochs[0]), epochs[0] == epochs[1], epochs[0] == epochs[2]
        ([0, 1, 2, 3, 4, 5], False, True)
    """

    def __init__(self, dataset: Dataset[Any], seed: int, rank: int = 0, processes: int = 1) -> None:
        super().__init__(dataset, num_replicas=processes, rank=rank, seed=seed)
        self.first = 0  # place in this process's order at which the next pass begins

    def __iter__(self) -> Iterator[Draw]:
        """The draws of this epoch, from the first that is left."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(len(cast(Any, self.dataset)), generator=generator).tolist()
        places = [
            order[i % len(order)] for i in range(self.rank, self.total_size, self.num_replicas)
        ]
        left, self.first = places[self.first :], 0
        yield from (Draw(place, seed_of(self.seed, self.epoch, place)) for place in left)


class ResumableLoader(DataLoader[Any]):
    """``DataLoader`` over an :class:`EpochSampler` that can go on in the middle of an epoch.

    Lightning keeps its state in checkpoints. The images of the batches that were trained on are not
    read again.

    Example:
        >>> samples = range(6)
        >>> def loader():
        ...     return ResumableLoader(samples, 2, sampler=EpochSampler(samples, seed=0))
        >>> before, again = loader(), loader()
        >>> batches = iter(before)
        >>> _ = next(batches)
        >>> again.load_state_dict(before.state_dict())
        >>> [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]
        True
    """

    _given = 0  # batches of this epoch
    _start: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of this epoch that are left."""
        # A generator: its first line runs when the first batch is asked for, and by then Lightning
        # has told the epoch.
        start, self._start, self._given = self._start, None, 0
        sampler = cast(EpochSampler, self.sampler)
        if start is not None and start["epoch"] == sampler.epoch:
            self._given = start["batches"]
            sampler.first = self._given * (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch
        sampler.set_epoch(sampler.epoch + 1)  # for loops that do not tell the epoch
        self._given = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, and number of batches that were given out."""
        return {"epoch": cast(EpochSampler, self.sampler).epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after these batches, if the next pass is one through the same epoch."""
        self._start = state
