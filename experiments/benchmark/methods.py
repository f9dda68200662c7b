"""The methods that are compared: how each is trained by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TAX = "TAX"


@dataclass(frozen=True)
class Method:
    """One way to learn from several annotators.

    Args:
        name: Of its row, and of the folder of its results.
        flags: Options of ``tax fit``, without dashes, and their values.
        names_annotators: Whether it says what each annotator would draw.
        says_who: Whether it says who decides.
    """

    name: str
    flags: Mapping[str, str]
    names_annotators: bool = True
    says_who: bool = False


def _baseline(name: str, model: str, **options: bool) -> Method:
    return Method(name, {"model": model}, **options)


def _explained(method: Method) -> Method:
    """The method, with its explanation measured in the test."""
    flags = {**method.flags, "model.init_args.explanation_metrics": "true"}
    return Method(method.name, flags, says_who=True)


METHODS = {
    method.name: method
    for method in (
        _explained(Method(TAX, {})),
        _baseline("multi-head", "MultiHead"),
        _explained(_baseline("gated multi-head", "GatedMultiHead")),
        _baseline("CM global", "ConfusionGlobal"),
        _baseline("CM pixel", "ConfusionPixel"),
        _baseline("Pionono", "Pionono"),
        _baseline("Probabilistic U-Net", "ProbabilisticUNet", names_annotators=False),
        Method("majority", {"model": "Consensus", "model.init_args.reference": "majority"}),
        Method("STAPLE", {"model": "Consensus", "model.init_args.reference": "staple"}),
        _baseline("separate", "Separate"),
    )
}
