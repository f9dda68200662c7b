"""What is to be said of some images as a whole: how much is disputed, which prototypes are used."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tax_lightning.explanation import Explanation, TrustBasis
from tax_lightning.visualization.drawing import as_array

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Counts of pixels, which add up over images.

    Args:
        pixels: all.
        disputed: those where the expected disagreement is at or above the threshold.
        votes: sum over the disputed pixels of the expected votes for the result.
        reasons: ``[N, K]``, disputed pixels by the prototype that is their reason.
    """

    pixels: int
    disputed: int
    votes: float
    reasons: NDArray[np.int64]

    @classmethod
    def of(cls, explanation: Explanation) -> Summary:
        """The counts of one explanation, of any number of images."""
        n, k = len(explanation.annotators), explanation.kernels
        disputed = ~explanation.undisputed
        reasons = explanation.reason[disputed] * k + explanation.reason_kernel[disputed]
        return cls(
            pixels=disputed.numel(),
            disputed=int(disputed.sum()),
            votes=float(explanation.votes[disputed].sum()),
            reasons=np.bincount(as_array(reasons), minlength=n * k).reshape(n, k),
        )

    def __add__(self, other: Summary) -> Summary:
        """The counts of both together."""
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def share_disputed(self) -> float:
        """Share of the pixels that are disputed, in ``[0, 1]``."""
        return self.disputed / self.pixels

    @property
    def mean_votes(self) -> float:
        """Mean expected votes for the result at disputed pixels; NaN if there are none."""
        return self.votes / (self.disputed or np.nan)

    @property
    def kernel_usage(self) -> Shares:
        """Share of the disputed pixels whose reason each prototype is, ``[N, K]``; or NaN."""
        return self.reasons / (self.disputed or np.nan)

    @property
    def usage(self) -> Shares:
        """Share of the disputed pixels whose reason is an annotator's prototype, ``[N]``."""
        used: Shares = self.kernel_usage.sum(axis=1)
        return used


_TAUGHT = {
    "given": "the reference labels given with the data",
    "majority": "what most annotators say",
    "staple": "the consensus that STAPLE estimates from the annotators",
    "none": "nothing: there is no reference",
}
_MEANS = {
    "image": "the weights follow the image",
    "constant": "each annotator has one weight everywhere, as the images did not tell more",
    "uniform": "all annotators have the same weight, as nothing better was found",
}


def trust_words(trust: TrustBasis) -> str:
    """What the weights of the annotators were taught with, and how far they can be trusted.

    Example:
        >>> trust_words(TrustBasis("constant", "majority", (0.28, 0.24, 0.25)))[:65]
        'Whom the result trusts: each annotator has one weight everywhere,'
    """
    words = (
        f"Whom the result trusts: {_MEANS[trust.kind]}. Taught with "
        f"{_TAUGHT.get(trust.reference, trust.reference)}."
    )
    if not trust.measured:
        return f"{words} How good the weights are was not measured on validation images."
    uniform, constant, image = trust.scores
    return (
        f"{words} Log score on validation images, smaller is better: equal weights {uniform:.2f}, "
        f"one weight an annotator {constant:.2f}, weights from the image {image:.2f}."
    )


def cautions(explanation: Explanation) -> list[str]:
    """What would mislead a reader of these images, by name.

    Annotators whom the model cannot tell apart, a model that predicts nothing, and weights of which
    nothing is known.
    """
    said: list[str] = []
    probs = explanation.annotator_probs
    names = explanation.annotators
    twins = [
        (names[i], names[j])
        for i in range(len(names))
        for j in range(i)
        if float((probs[:, i] - probs[:, j]).abs().max()) < _ALIKE
    ]
    if len(names) > 1 and len(twins) == len(names) * (len(names) - 1) // 2:
        said.append("The model expects the same of all annotators: nobody can be told apart here.")
    elif twins:
        pairs = "; ".join(f"{first} and {second}" for second, first in twins[:3])
        said.append(f"The model expects the same of {pairs}: they cannot be told apart here.")
    if not explanation.decision.any():
        said.append(f"The result is {explanation.classes[0]} everywhere: nothing was found.")
    if explanation.trust.kind == "image" and not explanation.trust.measured:
        said.append("Whom to trust was not measured: the weights may be arbitrary.")
    return said


_ALIKE = 0.01  # largest difference of probabilities of two annotators who count as alike
