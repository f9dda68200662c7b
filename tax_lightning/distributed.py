"""What the processes of a distributed run know together: sums and objects of all of them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import lightning as L
import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

Total: TypeAlias = Callable[[Tensor], Tensor]


def alone(local: Tensor) -> Tensor:
    """The sum of the only process."""
    return local


def across_processes(local: Tensor) -> Tensor:
    """Sum over all processes; its gradient is the sum of theirs."""
    whole: Tensor = all_reduce(local.contiguous())
    return whole


def from_all_processes(module: L.LightningModule, mine: Any) -> list[Any]:  # noqa: ANN401
    """The same object of every process, in the order of their ranks."""
    if module._trainer is None or module.trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * module.trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
