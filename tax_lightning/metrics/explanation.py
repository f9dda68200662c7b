"""Is the explanation right? All metrics of who and why at once, each with its shuffled control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics.probes import patch_insertion, prototype_integrity
from tax_lightning.metrics.who import WhoAccuracy
from tax_lightning.metrics.why import Purity
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import TAXOutput, TAXWeights

PROBED_IMAGES = 4  # of the first that come, for what needs passes of its own
# Controls that say nothing: these do not depend on the who map, or not on whose weight is whose.
NO_CONTROL = {
    *("who_chance_d1", "who_chance_expert", "who_ceiling_expert", "majority_overrules_expert"),
    *("who_entropy_disputed", "who_entropy_unanimous"),
}


class EvidenceMetrics(nn.Module):
    """Measures who, and the purity of the pixels of the largest evidence.

    Each value of who comes also under a name that ends in ``_shuffled``, for a who map in which the
    annotators of each image are exchanged for others: what the value is without a model.

    Args:
        annotators: Names, in the order of the N axis.
        classes: Number of classes C.
        kernels: Number K of pieces of evidence for each annotator.
    """

    def __init__(self, annotators: Sequence[str], classes: int, kernels: int = 1) -> None:
        super().__init__()
        self.who, self.shuffled_who = WhoAccuracy(), WhoAccuracy()
        self.purity = Purity(len(annotators), kernels, classes)

    def update_evidence(
        self,
        *,
        who: Tensor,
        similarity: Tensor,
        reference: Tensor,
        eligible: Tensor | None = None,
        **labels: Tensor,
    ) -> None:
        """Add one batch; ``similarity`` and ``eligible`` as in :class:`.Purity`."""
        self.who.update(who=who, reference=reference, **labels)
        self.shuffled_who.update(who=exchanged(who), reference=reference, **labels)
        self.purity.update(similarity=similarity, eligible=eligible, reference=reference)

    def compute(self) -> dict[str, Tensor]:
        """All values by name; NaN without a case."""
        shuffled = self.shuffled_who.compute()
        controls = {f"{k}_shuffled": v for k, v in shuffled.items() if k not in NO_CONTROL}
        return self.who.compute() | controls | self.purity.compute()

    def reset(self) -> None:
        """Forget all batches."""
        for metrics in (self.who, self.shuffled_who, self.purity):
            metrics.reset()


class ExplanationMetrics(EvidenceMetrics):
    """Measures who and why over a data set; costs several times the evaluation itself.

    Adds to :class:`EvidenceMetrics` the probes, which pass images through the model again.

    Args:
        network: The network that is measured.
        annotators: Names, in the order of the N axis.
        classes: Number of classes C.
    """

    def __init__(self, network: TAXNetwork, annotators: Sequence[str], classes: int) -> None:
        super().__init__(annotators, classes, network.kernels)
        # Not a submodule: it belongs to the module that is measured.
        self._network = [network]
        self.probed: list[Tensor] = []

    def update(self, images: Tensor, output: TAXOutput, **labels: Tensor) -> None:
        """Add one batch: images ``[B, ch, H, W]``, and the network's output in evaluation mode."""
        (network,) = self._network
        self.update_evidence(
            who=output.who,
            similarity=network.memory.similarity(output.embedding),
            eligible=output.log_within.isfinite(),
            **labels,
        )
        alike = [image for image in images if image.shape == (*self.probed, image)[0].shape]
        self.probed += alike[: PROBED_IMAGES - len(self.probed)]

    def compute(self) -> dict[str, Tensor]:
        """All values but those of :meth:`probe`, by name; NaN without a case."""
        (network,) = self._network
        active = network.memory.unit_vectors.detach()[network.memory.active]
        return super().compute() | {"prototype_max_cosine": _max_cosine(active)}

    @torch.no_grad()
    def probe(
        self,
        sources: Sequence[Sequence[PrototypeSource]],
        read: Callable[[str], Tensor],
    ) -> dict[str, float]:
        """The values that need passes of their own, on the first images that came.

        ``sources`` are those of every prototype ``[N][K]``; ``read`` gives a training image
        ``[ch, H, W]`` by its id.
        """
        (network,) = self._network
        images = torch.stack(self.probed)

        def weights_of(images: Tensor) -> TAXWeights:
            # Without what the kernels would label: a third of the time.
            return network.gate(network.encode(images).embedding)

        unit_vectors = network.memory.unit_vectors

        def read_alike(id: str) -> Tensor:
            return read(id).to(images)

        try:
            integrity = prototype_integrity(weights_of, sources, unit_vectors, read_alike)
            return integrity | patch_insertion(weights_of, sources, read_alike, images)
        except (LookupError, OSError, ValueError) as error:
            rank_zero_warn(
                f"the sources of the prototypes cannot be measured: {error} Test with the data "
                "that the model was trained on, and with their evaluation transforms."
            )
            return {}

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.probed = []


def exchanged(who: Tensor) -> Tensor:
    """A who map ``[B, N, H, W]`` in which each annotator's weight is said to be another's.

    Annotators are exchanged in a circle, a step further in every image.

    Example:
        >>> exchanged(torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)).flatten()
        tensor([0.2000, 0.5000, 0.3000])
    """
    others = max(1, who.shape[1] - 1)
    return torch.stack([image.roll(1 + i % others, dims=0) for i, image in enumerate(who)])


def _max_cosine(vectors: Tensor) -> Tensor:
    """Largest cosine between two of the prototypes ``[M, D]``; NaN for fewer than two."""
    if len(vectors) < 2:
        return torch.full((), torch.nan, device=vectors.device)
    units = F.normalize(vectors.float(), dim=-1)
    return (units @ units.T).fill_diagonal_(-torch.inf).max().clamp(-1, 1)
