"""One network trained on one label a pixel: what most people do."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tax_lightning.baselines.baseline import Baseline, SegmentationNetwork
from tax_lightning.batch import Batch
from tax_lightning.models.output import ModelOutput


class Consensus(Baseline):
    """An ordinary segmentation network, trained on the reference alone.

    The reference is made of the annotators' labels (``reference="majority"`` or ``"staple"``) or
    comes with the data (``"given"``). Whoever is asked for, the network draws the same.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Raises:
        ValueError: for ``reference="none"``.

    Example:
        >>> import torch
        >>> module = Consensus(
        ...     ["Ana", "Ben"], ["background", "cell"], network=torch.nn.Conv2d(3, 4, 1)
        ... )
        >>> module.predict(torch.randn(1, 3, 8, 8), annotator="Ben").shape
        torch.Size([1, 2, 8, 8])

    Source:
        STAPLE: S. K. Warfield, K. H. Zou, W. M. Wells, "Simultaneous truth and performance level
        estimation (STAPLE)", IEEE TMI 2004. Unanimous pixels (ties) are left out of the loss.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        if self.reference == "none":
            raise ValueError(
                "reference='none': Consensus learns nothing but the reference. Set "
                "reference='majority', 'staple' or 'given'."
            )
        self.network = SegmentationNetwork(len(self.classes), **self.backbone)

    def forward(self, images: Tensor) -> ModelOutput:
        """The consensus, which is also what each annotator would draw."""
        log_probs = self.network(images)
        own = log_probs.unsqueeze(1).expand(-1, len(self.annotators), -1, -1, -1)
        return ModelOutput.weighing_all_alike(own, log_probs)

    def segmentation_terms(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """The result against the reference."""
        assert reference is not None  # refused when built
        log_probs = output.log_probs.unsqueeze(1)
        return {"fused": self.loss.between(log_probs, reference.unsqueeze(1))}
