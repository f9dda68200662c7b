"""What a network says of images: the result, what some of the annotators would draw, and why.

Images pass the network in evaluation mode and are read band by band, so that memory does not grow
with the numbers of annotators, kernels and classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tax_lightning.explanation import Explanation
from tax_lightning.models.mixture import mix
from tax_lightning.models.network import TAXNetwork, TAXOutput
from tax_lightning.modules.projection import evaluating


def chosen_annotators(
    annotators: Sequence[str], annotator: str | None, panel: Sequence[str] | None
) -> list[int] | None:
    """Places of those who are to count, each once; ``None`` for everybody.

    Args:
        annotators: names in the order of the N axis.
        annotator: name of the only one.
        panel: names of some.

    Raises:
        ValueError: if a name is unknown, nobody is named, or both arguments are given.

    Example:
        >>> chosen_annotators(["Ana", "Ben"], None, ["Ben", "Ana", "Ben"])
        [1, 0]
    """
    if annotator is not None and panel is not None:
        raise ValueError("predict: give annotator=... or panel=[...], not both.")
    if panel is not None and not panel:
        raise ValueError(f"predict: panel=[] names nobody, expected some of {annotators}.")
    chosen = [annotator] if annotator is not None else panel
    if chosen is None:
        return None
    for name in chosen:
        if name not in annotators:
            raise ValueError(f"annotator {name!r} is unknown: expected one of {annotators}.")
    # Whoever is named twice counts once.
    return [annotators.index(name) for name in dict.fromkeys(chosen)]


@torch.no_grad()
def segment(network: TAXNetwork, images: Tensor, chosen: list[int] | None = None) -> Tensor:
    """Probabilities ``[B, C, H, W]`` if only the chosen annotators counted.

    Args:
        network: that segments.
        images: ``[B, ch, H, W]``.
        chosen: places on the N axis; everybody counts by default.
    """
    with evaluating(network):
        bands = network.bands(network.see(images))
        return torch.cat([_probs(band, network, chosen) for band in bands], dim=2)


def _probs(output: TAXOutput, network: TAXNetwork, chosen: list[int] | None) -> Tensor:
    if chosen is None:
        return output.probs
    weights = output.log_who[:, chosen].log_softmax(dim=1)
    return mix(weights, output.log_annotator_probs[:, chosen], network.mixing).exp()


@torch.no_grad()
def explain(
    network: TAXNetwork,
    images: Tensor,
    ids: Sequence[str],
    annotators: tuple[str, ...],
    classes: tuple[str, ...],
) -> Explanation:
    """The segmentation, who decided each pixel and which prototypes are the reason.

    Args:
        network: that explains itself.
        images: ``[B, ch, H, W]``.
        ids: what to call the images.
        annotators: names in the order of the N axis.
        classes: names in the order of the C axis.
    """
    with evaluating(network):
        bands = network.bands(network.see(images))
        parts = [_explained(band, network) for band in bands]
    maps = {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}
    return Explanation(
        ids=tuple(ids),
        annotators=annotators,
        classes=classes,
        **maps,
        sources=network.memory.sources(annotators, classes),
    )


def _explained(output: TAXOutput, network: TAXNetwork) -> dict[str, Tensor]:
    """The maps of an :class:`Explanation` by name."""
    probs, annotator_probs = output.probs, output.annotator_probs
    why_share, why = network.shares(output, probs.argmax(dim=1)).max(dim=2)
    said = annotator_probs.argmax(dim=2)
    return {
        "probs": probs,
        "annotator_probs": annotator_probs,
        "who": output.who,
        "why": why,
        "why_share": why_share,
        "unanimous": (said == said[:, :1]).all(dim=1),
    }
