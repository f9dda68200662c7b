"""The methods that are compared: how each is trained by the command line."""

from __future__ import annotations

from dataclasses import dataclass

TAX = "TAX"


@dataclass(frozen=True)
class Method:
    """One way to learn from several annotators.

    Args:
        model: Class of a baseline; ``None`` for the model of the configuration.
        reference: What it is trained for, in place of the reference of the configuration. It is
            measured against that of the configuration all the same.
        says_who: Whether it says who decides.
    """

    model: str | None = None
    reference: str | None = None
    says_who: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``tax fit`` and ``tax test``."""
        return () if self.model is None else (f"--model={self.model}",)

    @property
    def fit(self) -> tuple[str, ...]:
        """Options of ``tax fit`` alone."""
        return () if self.reference is None else (f"--model.init_args.reference={self.reference}",)

    @property
    def test(self) -> tuple[str, ...]:
        """Options of ``tax test`` alone."""
        return ("--model.init_args.explanation_metrics=true",) if self.says_who else ()


METHODS = {
    TAX: Method(says_who=True),
    "multi-head": Method("MultiHead"),
    "gated multi-head": Method("GatedMultiHead", says_who=True),
    "CM global": Method("ConfusionGlobal"),
    "CM pixel": Method("ConfusionPixel"),
    "Pionono": Method("Pionono"),
    "Probabilistic U-Net": Method("ProbabilisticUNet"),
    "majority": Method("Consensus", reference="majority"),
    "STAPLE": Method("Consensus", reference="staple"),
    "soft vote": Method("SoftVote"),
    "random rater": Method("RandomRater"),
    "separate": Method("Separate"),
}
