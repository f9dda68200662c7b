"""Is the explanation right? All metrics of who and why at once, each beside its control."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tax_lightning.explanation import most_likely
from tax_lightning.metrics.inputs import PooledMetric, check_count, check_inputs, disputed_pixels
from tax_lightning.metrics.probes import Read, Sources, patch_insertion, prototype_integrity
from tax_lightning.metrics.who import TrustScore, WhoAccuracy, exchanged
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import TAXOutput, TAXWeights

PROBED_IMAGES = 4  # of the first that come, for what needs passes of its own
_IDLE = 0.005  # of the disputed pixels
# Controls that say nothing: these do not depend on the who map, or not on whose weight is whose.
NO_CONTROL = {
    *("who_chance_d1", "who_chance_expert", "who_ceiling_expert", "majority_overrules_expert"),
    *("who_entropy_disputed", "who_entropy_unanimous"),
}


class WhoMetrics(nn.Module):
    """Measures who over a data set.

    Each value of :class:`.WhoAccuracy` comes also under a name that ends in ``_exchanged``, for a
    who map in which the annotators of each image are exchanged: what it is without a model.
    """

    def __init__(self, annotators: Sequence[str]) -> None:
        super().__init__()
        self.who, self.exchanged_who = WhoAccuracy(), WhoAccuracy()
        self.trust = TrustScore(len(annotators))

    def update(
        self,
        images: Tensor,
        output: Any,  # noqa: ANN401 - of any model
        disputed: Tensor,
        right: Tensor,
        **labels: Tensor,
    ) -> None:
        """Add one batch: images ``[B, ch, H, W]``, and the network's output in evaluation mode."""
        who, masks, present = output.log_who.exp(), labels["masks"], labels["present"]
        self.who.update(who=who, **labels)
        self.exchanged_who.update(who=exchanged(who), **labels)
        self.trust.update(who=who, right=right, masks=masks, present=present)

    def compute(self) -> dict[str, Tensor]:
        """All values by name; NaN without a case."""
        controls = self.exchanged_who.compute().items()
        named = {f"{name}_exchanged": v for name, v in controls if name not in NO_CONTROL}
        return self.who.compute() | named | self.trust.compute()

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (self.who, self.exchanged_who, self.trust):
            metric.reset()


class ExplanationMetrics(WhoMetrics):
    """Measures who and why over a data set; costs several times the evaluation itself.

    Adds to :class:`WhoMetrics`

    - ``why_example_fits``: share of the disputed pixels whose reason has an example of the class
      that is decided, so that the example shown has the label that it explains;
    - the probes, which pass images through the model again.
    """

    def __init__(self, network: TAXNetwork, annotators: Sequence[str]) -> None:
        super().__init__(annotators)
        # Not a submodule: it belongs to the module that is measured.
        self._network = [network]
        self.examples = MeanMetric(nan_strategy="disable")
        self.probed: list[Tensor] = []

    def update(
        self, images: Tensor, output: TAXOutput, disputed: Tensor, right: Tensor, **labels: Tensor
    ) -> None:
        """Add one batch, as in the base class."""
        (network,) = self._network
        self.trust.constant = network.trust.constant
        super().update(images, output, disputed, right, **labels)
        decision = most_likely(output.probs, dim=1)
        reason = output.reason(decision, all_alike=network.trust.kind != "image")
        fits = network.memory.has_example.flatten(0, 1)[reason, decision]
        self.examples.update(fits[disputed].float())
        alike = [image for image in images if image.shape == (*self.probed, image)[0].shape]
        self.probed += alike[: PROBED_IMAGES - len(self.probed)]

    def compute(self) -> dict[str, Tensor]:
        """All values but those of :meth:`probe`, by name; NaN without a case."""
        return super().compute() | {"why_example_fits": self.examples.compute()}

    @torch.no_grad()
    def probe(self, sources: Sources, read: Read) -> dict[str, float]:
        """The values that need passes of their own, on the first images that came.

        Arguments are those of :mod:`tax_lightning.metrics.probes`.
        """
        (network,) = self._network
        images, unit_vectors = torch.stack(self.probed), network.memory.unit_vectors

        def weights_of(images: Tensor) -> TAXWeights:
            # Without what the kernels would label: a third of the time.
            return network.gate(network.encode(images).embedding)

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
        self.examples.reset()
        self.probed = []


class PrototypesInUse(PooledMetric):
    """How many of all N K prototypes are the reason of a decision, on disputed pixels?

    Elsewhere any prototype would do. ``reason`` ``[B, H, W]`` is the index n K + k of the prototype
    with the largest share in the decision.

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
