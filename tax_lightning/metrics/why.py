"""Why: are many prototypes the reason of something, and is the example shown one of the decision?

Only pixels that annotators dispute are counted: elsewhere any prototype would do. Arguments are
explained in :mod:`tax_lightning.metrics`; ``reason`` ``[B, H, W]`` is the index n K + k of the
prototype with the largest share in the decision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tax_lightning.metrics.inputs import PooledMetric, check_count, check_inputs, disputed_pixels

_IDLE = 0.005  # of the disputed pixels


class PrototypesInUse(PooledMetric):
    """How many of all N K prototypes are the reason of a decision, on disputed pixels?

    ``compute`` returns

    - ``prototypes_in_use``: exp(H(m)) / (N K) of the shares m of pixels whose reason each is: 1
      where all are the reason equally often, 1 / (N K) where one is everywhere;
    - ``prototypes_idle``: share of prototypes that are the reason of less than 0.5 % of the pixels,
      0 is best.

    Example:
        >>> metric = PrototypesInUse(annotators=1, kernels=2)
        >>> masks = torch.tensor([[0, 0, 0], [1, 1, 0]]).view(1, 2, 1, 3)
        >>> present = torch.ones(1, 2, dtype=torch.bool)
        >>> metric.update(reason=torch.tensor([[[0, 1, 1]]]), masks=masks, present=present)
        >>> metric.compute()
        {'prototypes_in_use': tensor(1.), 'prototypes_idle': tensor(0.)}

    Source:
        The exponential of the entropy as an effective number: M. O. Hill, "Diversity and
        evenness: a unifying notation and its consequences", 1973.
    """

    def __init__(self, annotators: int, kernels: int) -> None:
        number = check_count("annotators", annotators) * check_count("kernels", kernels)
        super().__init__(counts=torch.zeros(number, dtype=torch.long))

    def update(self, *, reason: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        check_inputs(("reason", reason, "BHW"), ("masks", masks, "BNHW"))
        disputed = disputed_pixels(masks, present)
        self.add(counts=reason[disputed].bincount(minlength=len(self.sums["counts"])))

    def compute(self) -> dict[str, Tensor]:
        """Both over all disputed pixels; NaN without any."""
        shares = self.sums["counts"] / self.sums["counts"].sum()
        effective = torch.special.entr(shares).sum().exp()
        idle = (shares < _IDLE).float().mean()
        return {
            "prototypes_in_use": effective / len(shares),
            "prototypes_idle": torch.where(shares.isnan().any(), torch.nan, idle),
        }
