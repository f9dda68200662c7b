"""Is the explanation right? All metrics of who and why at once, each with a shuffled control."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics.belief import AgreementLift, WhoCalibration, WhoEntropy
from tax_lightning.metrics.probes import patch_insertion, prototype_integrity, stability
from tax_lightning.metrics.purity import EVENTS, Purity, events
from tax_lightning.metrics.removal import Removal
from tax_lightning.metrics.usage import AssignmentUsage, prototype_max_cosine
from tax_lightning.metrics.who import ExpertAccuracy, WhoAccuracy, disagreement
from tax_lightning.metrics.why import WhyFaithfulness
from typing import Literal

Mixing = Literal["prob"]
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import TAXOutput, TAXWeights

PROBED_IMAGES = 4  # of the first that come, for what needs passes of its own
# These do not depend on the who map, or not on whose weight is whose.
NO_CONTROL = {
    f"{name}_shuffled"
    for name in (
        "who_chance_d1",
        "who_chance_expert",
        "who_ceiling_expert",
        "who_needed_expert",
        "who_entropy_disputed",
        "who_entropy_unanimous",
    )
}


class EvidenceMetrics(nn.Module):
    """Measures who, and what the evidence stands for by which annotators are weighed.

    - who: accuracy, agreement lift, calibration, entropy, and what changes when an annotator is
      removed. Each also under a name that ends in ``_shuffled``, for a who map in which the
      annotators of each image are exchanged for others: what the figure is worth without a model.
    - purity of the pixels of the largest evidence.

    Args:
        annotators: names, in the order of the N axis.
        classes: number of classes C.
        kernels: number K of pieces of evidence for each annotator.
        mixing: how the model makes one result of its annotators' segmentations.

    Example:
        >>> metrics = EvidenceMetrics(["Ana", "Ben"], classes=2)
        >>> masks, evidence = torch.randint(0, 2, (1, 2, 8, 8)), torch.randn(1, 2, 8, 8)
        >>> metrics.update_evidence(
        ...     log_who=evidence.log_softmax(1),
        ...     log_annotator_probs=torch.randn(1, 2, 2, 8, 8).log_softmax(2),
        ...     similarity=evidence.unsqueeze(2),
        ...     masks=masks, present=torch.ones(1, 2) > 0, reference=masks[:, 0],
        ... )
        >>> metrics.compute()["who_necessity"].shape
        torch.Size([])
    """

    def __init__(
        self, annotators: Sequence[str], classes: int, kernels: int = 1, mixing: Mixing = "prob"
    ) -> None:
        super().__init__()
        count = len(annotators)
        self.who = nn.ModuleList(_who_metrics(count, mixing))
        self.shuffled_who = nn.ModuleList(_who_metrics(count, mixing))
        self.purity = Purity(count, kernels, {"class": classes, "event": len(EVENTS)})

    def update_evidence(
        self,
        *,
        log_who: Tensor,
        log_annotator_probs: Tensor,
        similarity: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor,
        expert: Tensor | None = None,
        eligible: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            log_who: weights of the annotators ``[B, N, H, W]``.
            log_annotator_probs: what each would draw ``[B, N, C, H, W]``.
            similarity: the evidence ``[B, N, K, H, W]``.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            present: ``[B, N]`` bool.
            reference: ``[B, H, W]``, 255 where unknown.
            expert: ``[B, H, W]``, index of the expert, 255 where there is none.
            eligible: bool ``[B, N, K, H, W]``, where a piece of evidence counts; by default
                everywhere.
        """
        labels = {"masks": masks, "present": present, "reference": reference, "expert": expert}
        labels |= {"log_who": log_who, "log_annotator_probs": log_annotator_probs}
        who = log_who.exp()
        self._update_who(self.who, who, labels)
        self._update_who(self.shuffled_who, exchanged(who), labels)
        self.purity.update(
            similarity=similarity,
            eligible=eligible,
            attributes={"class": reference, "event": events(masks, reference)},
        )

    def _update_who(
        self, metrics: nn.ModuleList, who: Tensor, labels: Mapping[str, Tensor | None]
    ) -> None:
        for metric in metrics:
            assert isinstance(metric, Metric)
            metric.update(**metric._filter_kwargs(who=who, named=who, **labels))

    def compute(self) -> dict[str, Tensor]:
        """All values by name; NaN without a case."""
        shuffled = _values(self.shuffled_who)
        controls = {f"{name}_shuffled": value for name, value in shuffled.items()}
        return {
            **_values(self.who),
            **{name: value for name, value in controls.items() if name not in NO_CONTROL},
            **_values([self.purity]),
        }

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class ExplanationMetrics(EvidenceMetrics):
    """Measures who and why over a data set; costs several times the evaluation itself.

    - who, and purity of the pixels that the prototypes are most similar to, see
      :class:`EvidenceMetrics`.
    - why: what changes when kernels are removed, use of the prototypes.
    - probes, which pass images through the model again: integrity of the sources, insertion of
      their patches into other images, stability under noise.

    Args:
        network: the network that is measured.
        annotators: names, in the order of the N axis.
        classes: number of classes C.

    Example:
        >>> network = TAXNetwork(
        ...     2, 2, encoder="resnet18",
        ...     backbone_options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]},
        ... ).eval()
        >>> metrics = ExplanationMetrics(network, ["Ana", "Ben"], classes=2)
        >>> images, masks = torch.randn(1, 3, 32, 32), torch.randint(0, 2, (1, 2, 32, 32))
        >>> with torch.no_grad():
        ...     metrics.update(images, network(images), masks, torch.ones(1, 2) > 0, masks[:, 0])
        >>> metrics.compute()["who_necessity"].shape
        torch.Size([])
    """

    def __init__(self, network: TAXNetwork, annotators: Sequence[str], classes: int) -> None:
        super().__init__(annotators, classes, network.kernels, "prob")
        # Not a submodule: it belongs to the module that is measured.
        self._network = [network]
        self.why = WhyFaithfulness("prob")
        self.usage = AssignmentUsage(annotators, network.kernels)
        self.probed: list[Tensor] = []

    def update(
        self,
        images: Tensor,
        output: TAXOutput,
        masks: Tensor,
        present: Tensor,
        reference: Tensor,
        expert: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            images: ``[B, ch, H, W]``.
            output: what the network says of them in evaluation mode.
            masks: ``[B, N, H, W]``, 255 where not labelled.
            present: ``[B, N]`` bool.
            reference: ``[B, H, W]``, 255 where unknown.
            expert: ``[B, H, W]``, index of the expert, 255 where there is none.
        """
        (network,) = self._network
        self.update_evidence(
            log_who=output.log_who,
            log_annotator_probs=output.log_annotator_probs,
            similarity=network.memory.similarity(output.embedding).expand_as(output.log_within),
            masks=masks,
            present=present,
            reference=reference,
            expert=expert,
            eligible=output.log_within.isfinite(),
        )
        self.why.update(
            log_who=output.log_who,
            log_within=output.log_within,
            log_kernel_probs=output.log_kernel_probs,
            cases=disagreement(masks, present),
        )
        self.usage.update(log_who=output.log_who, log_within=output.log_within)
        alike = [image for image in images if image.shape == (*self.probed, image)[0].shape]
        self.probed += alike[: PROBED_IMAGES - len(self.probed)]

    def compute(self) -> dict[str, Tensor]:
        """All values but those of :meth:`probe`, by name; NaN without a case."""
        (network,) = self._network
        vectors, active = network.memory.unit_vectors.detach(), network.memory.active
        return {
            **super().compute(),
            **_values([self.why, self.usage]),
            "prototype_max_cosine": prototype_max_cosine(vectors, active),
        }

    @torch.no_grad()
    def probe(
        self,
        sources: Sequence[Sequence[PrototypeSource]],
        read: Callable[[str], Tensor] | None = None,
    ) -> dict[str, float]:
        """The values that need passes of their own, on the first images that came.

        Args:
            sources: of every prototype ``[N][K]``.
            read: gives a training image ``[ch, H, W]`` by its id; without it nothing can be said
                of the sources.
        """
        (network,) = self._network
        images = torch.stack(self.probed)
        values = stability(partial(_weights, network), images)
        if read is None:
            return values
        units = network.memory.unit_vectors.expand(len(sources), -1, -1)
        shared = network.memory.kind == "shared"  # there all rows name the same prototypes
        weights_of, own = (_weights_as_one, sources[:1]) if shared else (_weights, sources)
        output_of = partial(weights_of, network)

        def read_alike(id: str) -> Tensor:
            return read(id).to(images)

        try:
            values |= prototype_integrity(output_of, own, units[: len(own)], read_alike)
            values |= patch_insertion(output_of, own, read_alike, images)
        except (LookupError, OSError, ValueError) as error:
            rank_zero_warn(
                f"the sources of the prototypes cannot be measured: {error} Test with the data "
                "that the model was trained on, and with their evaluation transforms."
            )
        return values

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.probed = []


def exchanged(who: Tensor) -> Tensor:
    """A who map in which each annotator's weight is said to be another's, image by image.

    Args:
        who: ``[B, N, H, W]``.

    Returns:
        The same shape; annotators are exchanged in a circle, a step further in every image.

    Example:
        >>> exchanged(torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)).flatten()
        tensor([0.2000, 0.5000, 0.3000])
    """
    others = max(1, who.shape[1] - 1)
    return torch.stack([image.roll(1 + i % others, dims=0) for i, image in enumerate(who)])


def _weights(network: TAXNetwork, images: Tensor) -> TAXWeights:
    """Who and why of images, without what the kernels would label: a third of the time."""
    return network.gate(network.encode(images).embedding)


def _weights_as_one(network: TAXNetwork, images: Tensor) -> TAXWeights:
    """The same, all annotators taken for one who uses the shared kernels."""
    weights = _weights(network, images)
    assignment = weights.log_who.unsqueeze(2) + weights.log_within
    return weights._replace(
        log_who=torch.zeros_like(weights.log_who[:, :1]),
        log_within=assignment.logsumexp(dim=1, keepdim=True),
    )


def _who_metrics(annotators: int, mixing: Mixing) -> list[Metric]:
    return [
        WhoAccuracy(),
        ExpertAccuracy(),
        AgreementLift(),
        WhoCalibration(),
        WhoEntropy(),
        Removal(annotators, mixing),
    ]


def _values(metrics: Iterable[nn.Module]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for metric in metrics:
        assert isinstance(metric, Metric)
        values |= metric.compute()
    return values
