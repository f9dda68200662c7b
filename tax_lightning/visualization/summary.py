"""What can be said of some images in words and numbers, what cannot, and who is named in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Explanation, TrustBasis
from tax_lightning.tendencies import tendency_sums
from tax_lightning.visualization.drawing import as_array
from tax_lightning.visualization.palette import Colour, annotator_palette

MOST_NAMED = 12
"""Colours that can be told apart, and so the most entries of a legend of annotators."""

SHARED, DECIDES, OUTVOTED = range(3)
"""How the annotator with the largest weight stands to the result; see `standing`."""

_OTHERS: Colour = (150, 150, 150)
_ALIKE = 0.02  # mean distance of probabilities below which two annotators are not told apart

Shares = NDArray[np.float64]


def standing(explanation: Explanation) -> NDArray[np.uint8]:
    """``[B, H, W]``: whether who has the largest weight decides, is outvoted, or neither.

    Outvoted is a leader who would not say the result. Where nobody has half of the weight, the
    decision is shared.
    """
    own = explanation.annotator_decisions.gather(1, explanation.leader.unsqueeze(1)).squeeze(1)
    stands = np.where(as_array(own != explanation.decision), OUTVOTED, SHARED)
    stands[as_array(explanation.decides)] = DECIDES
    return stands.astype(np.uint8)


@dataclass(frozen=True)
class Summary:
    """Counts of pixels, which add up over images.

    Args:
        pixels: all.
        foreground: those whose class in the result is not the background.
        disputed: those where the model expects annotators to disagree.
        support: ``[N]``, sum over the disputed pixels of how probably each says the result.
        reasons: ``[N, K]``, disputed pixels by the prototype with the largest share.
        decides: ``[N]``, disputed pixels that each decides.
        apart: ``[N, N]``, sum over the disputed pixels of the distance, in ``[0, 1]``, of what the
            model expects of two annotators.
    """

    pixels: int
    foreground: int
    disputed: int
    support: Shares
    reasons: NDArray[np.int64]
    decides: NDArray[np.int64]
    apart: Shares

    @classmethod
    def of(cls, explanation: Explanation) -> Summary:
        """The counts of one explanation, of any number of images."""
        n, k = len(explanation.annotators), explanation.kernels
        disputed = ~explanation.undisputed
        reasons = (explanation.reason * k + explanation.reason_kernel)[disputed]
        leading = explanation.leader[disputed & explanation.decides]
        said = explanation.annotator_probs.movedim(1, 0).movedim(2, -1)[:, disputed].double()
        return cls(
            pixels=disputed.numel(),
            foreground=int((explanation.decision > 0).sum()),
            disputed=int(disputed.sum()),
            support=as_array(explanation.support.movedim(1, 0)[:, disputed].double().sum(dim=1)),
            reasons=np.bincount(as_array(reasons), minlength=n * k).reshape(n, k),
            decides=np.bincount(as_array(leading), minlength=n),
            apart=as_array(torch.cdist(said.flatten(1), said.flatten(1), p=1) / 2),
        )

    def __add__(self, other: Summary) -> Summary:
        """The counts of both together."""
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def shares(self, counts: NDArray[np.int64] | Shares) -> Shares:
        """Counts of disputed pixels as shares of them; NaN where nothing is disputed."""
        return counts / (self.disputed or np.nan)

    @property
    def dispute(self) -> float:
        """Share of the pixels that is disputed, in ``[0, 1]``."""
        return self.disputed / self.pixels

    @property
    def votes(self) -> float:
        """Mean number of annotators who say the result at a disputed pixel, in ``[0, N]``."""
        return float(self.shares(self.support).sum())

    def caveats(self, annotators: Sequence[str], background: str) -> list[str]:
        """What would mislead who overlooks it: nothing found, or annotators not told apart."""
        found = []
        if not self.foreground:
            found.append(
                f"The result is {background} everywhere: the model found nothing here. If there is "
                "something to be seen, train longer, or look whether the images are prepared as "
                "those of the training."
            )
        near = self.shares(self.apart) < _ALIKE
        if len(near) > 1 and near.all():
            found.append(
                f"The model expects the same of all {len(near)} annotators: it cannot tell them "
                "apart, so that names mean nothing here."
            )
        elif near[~np.eye(len(near), dtype=bool)].any():
            pairs = [
                f"{annotators[n]} and {annotators[m]}" for n, m in np.argwhere(np.triu(near, 1))
            ]
            more = f", and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
            found.append(
                f"The model expects nearly the same of {', '.join(pairs[:3])}{more}: which of the "
                "two is named is chance, and together they count twice."
            )
        return found


def real_dispute(masks: NDArray[np.integer]) -> float | None:
    """Share of the pixels at which masks ``[N, H, W]`` differ, of those that two or more label.

    Example:
        >>> real_dispute(np.array([[[0, 1, 255]], [[0, 0, 1]]]))
        0.5
    """
    known = masks != IGNORE_INDEX
    least = np.where(known, masks, IGNORE_INDEX).min(axis=0)
    most = np.where(known, masks, -1).max(axis=0)
    compared = known.sum(axis=0) > 1
    return float((least < most)[compared].mean()) if compared.any() else None


def tendencies(
    explanation: Explanation, masks: NDArray[np.integer] | None
) -> dict[str, NDArray[np.float64]]:
    """Sums of `tendency_sums` of one image: of the masks ``[N, H, W]``, if any, and the model."""
    classes, model = len(explanation.classes), as_array(explanation.annotator_decisions[0])
    if masks is None:
        return {"model": tendency_sums(model, classes)}
    model = np.where(masks == IGNORE_INDEX, IGNORE_INDEX, model)
    return {"masks": tendency_sums(masks, classes), "model": tendency_sums(model, classes)}


# ------------------------------------------------------------------------------------------ words


def threshold_words(threshold: float) -> str:
    """What is hatched, in words.

    Example:
        >>> threshold_words(0.1)
        'fewer than 1 pair of annotators in 10 is expected to differ'
    """
    pairs = round(1 / max(threshold, 0.001))
    if abs(threshold * pairs - 1) < 0.01:
        return f"fewer than 1 pair of annotators in {pairs} is expected to differ"
    return f"fewer than {100 * threshold:.2g} of 100 pairs of annotators are expected to differ"


_TAUGHT = {
    "given": "the reference that came with the data",
    "majority": "the majority of the annotators themselves",
    "staple": "STAPLE, a weighted vote of the annotators themselves",
    "none": "no reference",
}
_FORM = {
    "uniform": "All annotators weigh the same.",
    "constant": "The weights are one constant for each annotator.",
    "image": "The weights follow the image.",
}
_MEANING = {
    "uniform": "Nothing told whom to believe.",
    "constant": "The images did not tell more about whom to believe.",
    "image": "That was better than one constant for each annotator.",
}


def trust_words(trust: TrustBasis) -> str:
    """What the weights of the annotators were taught with, which form was kept, what it means."""
    taught = (
        f"Trust in the annotators was taught with {_TAUGHT.get(trust.reference, trust.reference)}"
    )
    if not trust.measured:
        form = _FORM[trust.kind]
        return f"{taught}. {form} It was not measured whether that is right: do not rely on them."
    scores = "uniform {:.2f}, constant {:.2f}, image {:.2f}".format(*trust.scores)
    kept = f"{_FORM[trust.kind]} {_MEANING[trust.kind]}"
    return f"{taught} (log score, smaller is better: {scores}). {kept}"


# ------------------------------------------------------------------------------------------- cast


def cast_of(summary: Summary) -> tuple[tuple[int, ...], tuple[Colour, ...]]:
    """Positions of those who are named in a picture, and the colours of all annotators.

    Named are all of up to twelve annotators, else the eleven who are the first reason most often;
    the others share one grey.
    """
    n = len(summary.support)
    if n <= MOST_NAMED:
        return tuple(range(n)), annotator_palette(n)
    often = np.argsort(-summary.reasons.sum(axis=1), kind="stable")[: MOST_NAMED - 1]
    named = tuple(sorted(often.tolist()))
    colours = [_OTHERS] * n
    for position, colour in zip(named, annotator_palette(len(named)), strict=True):
        colours[position] = colour
    return named, tuple(colours)
