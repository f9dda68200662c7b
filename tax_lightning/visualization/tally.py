"""What explanations come to over many images: who decides how much, and how everybody draws."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.maps import as_array

_ALIKE = 0.025  # relative difference of two areas that are called the same
_UNLIKE = 0.25  # and of those of a class that is worth a word of its own
_CLEAR = 0.2  # certainty of who, on average over decided pixels, from which on it says something

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Counts of pixels, which add up over images.

    Args:
        pixels: all.
        decided: those where not all annotators would say the same.
        weight: sum over the decided pixels of the largest weight, that of who decides there.
        led: ``[N, K]``, decided pixels by the annotator with the largest weight and the kernel.
        drawn: ``[N, C]``, pixels by class as each annotator would draw.
        agreed: ``[N]``, foreground of the result to which each annotator gives the same class.
        result: ``[C]``, pixels by class in the result.

    Example:
        >>> import torch
        >>> who = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
        >>> explanation = Explanation(
        ...     ids=("a",), annotators=("Ana", "Ben"), classes=("background", "cell"),
        ...     probs=torch.tensor([0.25, 0.75]).view(1, 2, 1, 1),
        ...     annotator_probs=torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1),
        ...     who=who, why=torch.zeros(1, 2, 1, 1, dtype=torch.int64), why_share=who,
        ...     unanimous=torch.zeros(1, 1, 1, dtype=torch.bool), sources=((), ()),
        ... )
        >>> tally = Tally.of(explanation) + Tally.of(explanation)
        >>> tally.usage.tolist(), tally.relative_area.tolist()
        ([1.0, 0.0], [1.0, 0.0])
    """

    pixels: int
    decided: int
    weight: float
    led: Counts
    drawn: Counts
    agreed: Counts
    result: Counts

    @classmethod
    def of(cls, explanation: Explanation) -> Tally:
        """The counts of one explanation, of any number of images."""
        n, k, c = len(explanation.annotators), explanation.kernels, len(explanation.classes)
        decided = ~explanation.unanimous
        led = explanation.leader[decided] * k + explanation.leader_kernel[decided]
        result = explanation.decision
        said = explanation.annotator_decisions
        by_class = [np.bincount(as_array(own).ravel(), minlength=c) for own in said.unbind(1)]
        agreed = (said == result.unsqueeze(1)) & (result > 0).unsqueeze(1)
        return cls(
            pixels=decided.numel(),
            decided=int(decided.sum()),
            weight=float(explanation.who.amax(dim=1)[decided].sum()),
            led=np.bincount(as_array(led), minlength=n * k).reshape(n, k),
            drawn=np.stack(by_class),
            agreed=as_array(agreed.sum(dim=(0, 2, 3))),
            result=np.bincount(as_array(result).ravel(), minlength=c),
        )

    def __add__(self, other: Tally) -> Tally:
        """The counts of both together."""
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def unanimous(self) -> float:
        """Share of the pixels where all annotators would say the same, in ``[0, 1]``."""
        return 1 - self.decided / self.pixels

    @property
    def largest_weight(self) -> float:
        """Mean of the largest weight over the decided pixels; NaN if there are none."""
        return self.weight / (self.decided or np.nan)

    @property
    def usage(self) -> NDArray[np.float64]:
        """Share of the decided pixels that each annotator leads, ``[N]``; NaN if there are none."""
        led: NDArray[np.float64] = self.kernel_usage.sum(axis=1)
        return led

    @property
    def kernel_usage(self) -> NDArray[np.float64]:
        """The same by kernel, ``[N, K]``."""
        return self.led / (self.decided or np.nan)

    @property
    def relative_area(self) -> NDArray[np.float64]:
        """Foreground of each annotator over that of the result, ``[N]``; NaN if it has none."""
        area: NDArray[np.float64] = self.drawn[:, 1:].sum(axis=1) / (
            self.result[1:].sum() or np.nan
        )
        return area

    @property
    def found(self) -> NDArray[np.float64]:
        """Share of the result's foreground that each annotator marks alike, ``[N]``; or NaN."""
        return self.agreed / (self.result[1:].sum() or np.nan)

    @property
    def beyond(self) -> NDArray[np.float64]:
        """Share of each annotator's foreground that is not the result's, ``[N]``; or NaN."""
        own = self.drawn[:, 1:].sum(axis=1)
        return 1 - self.agreed / np.where(own > 0, own, np.nan)

    def words(self, annotator: int, classes: tuple[str, ...]) -> str:
        """How an annotator draws, compared with the result.

        Args:
            annotator: position.
            classes: names.
        """
        area = self.relative_area[annotator]
        if np.isnan(area):
            return "the result marks nothing"
        parts = [_compared(area)]
        own, ours = self.drawn[annotator, 1:], self.result[1:]
        if len(ours) > 1 and ours.any():
            ratios = own / np.where(ours > 0, ours, np.nan)
            if (np.abs(ratios - 1) >= _UNLIKE).any():
                odd = int(np.nanargmax(np.abs(np.log(np.maximum(ratios, 1e-3)))))
                parts.append(f"{classes[1 + odd]}: {_times(ratios[odd])}")
        return "; ".join(parts)


def _compared(area: float) -> str:
    if abs(area - 1) < _ALIKE:
        return f"outlines as large as the result ({area - 1:+.1%})"
    return f"outlines {abs(area - 1):.0%} {'larger' if area > 1 else 'smaller'} than the result"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times as much" if ratio >= 2 else f"{ratio:.0%} of the result's area"


def caveat(largest_weight: float, annotators: int) -> str | None:
    """What must not be overlooked where who says little; None where it says something.

    Args:
        largest_weight: mean of the largest weight over the decided pixels, or NaN.
        annotators: how many share it.

    Example:
        >>> caveat(0.9, 2), caveat(float("nan"), 2)
        (None, None)
        >>> caveat(0.13, 10)  # doctest: +ELLIPSIS
        'Read next to nothing into who decides: where the annotators differ, ...'
    """
    even = 1 / annotators
    if not largest_weight < even + _CLEAR * (1 - even):
        return None
    return (
        "Read next to nothing into who decides: where the annotators differ, the largest weight is "
        f"{largest_weight:.0%} on average, an even share {even:.0%}."
    )
