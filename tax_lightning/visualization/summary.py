"""Who decides how much of some images."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.drawing import as_array

_CLEAR = 0.2  # certainty of who, on average over decided pixels, from which on it says something

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Counts of pixels, which add up over images.

    Args:
        pixels: all.
        decided: those where not all annotators would say the same.
        weight: sum over the decided pixels of the largest weight, that of who decides there.
        led: ``[N, K]``, decided pixels by the annotator with the largest weight and the kernel.
    """

    pixels: int
    decided: int
    weight: float
    led: NDArray[np.int64]

    @classmethod
    def of(cls, explanation: Explanation) -> Summary:
        """The counts of one explanation, of any number of images."""
        n, k = len(explanation.annotators), explanation.kernels
        decided = ~explanation.unanimous
        led = explanation.leader[decided] * k + explanation.leader_kernel[decided]
        return cls(
            pixels=decided.numel(),
            decided=int(decided.sum()),
            weight=float(explanation.who.amax(dim=1)[decided].sum()),
            led=np.bincount(as_array(led), minlength=n * k).reshape(n, k),
        )

    def __add__(self, other: Summary) -> Summary:
        """The counts of both together."""
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def unanimous(self) -> float:
        """Share of the pixels where all annotators would say the same, in ``[0, 1]``."""
        return 1 - self.decided / self.pixels

    @property
    def largest_weight(self) -> float:
        """Mean of the largest weight over the decided pixels; NaN if there are none."""
        return self.weight / (self.decided or np.nan)

    @property
    def kernel_usage(self) -> Shares:
        """Share of the decided pixels that each prototype leads, ``[N, K]``; NaN without any."""
        return self.led / (self.decided or np.nan)

    @property
    def usage(self) -> Shares:
        """Share of the decided pixels that each annotator leads, ``[N]``; NaN without any."""
        led: Shares = self.kernel_usage.sum(axis=1)
        return led

    @property
    def caveat(self) -> str | None:
        """A warning where the weights are nearly even, so that who decides says little."""
        even = 1 / len(self.led)
        if not self.largest_weight < even + _CLEAR * (1 - even):
            return None
        return (
            "Who decides means next to nothing here: where the annotators differ, the largest "
            f"weight is {self.largest_weight:.0%} on average, an even share {even:.0%}."
        )
