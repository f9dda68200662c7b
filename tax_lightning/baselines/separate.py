"""A network for each annotator: the ceiling that costs N times."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tax_lightning.baselines.baseline import Baseline, SegmentationNetwork
from tax_lightning.models.output import ModelOutput


class Separate(Baseline):
    """An ordinary segmentation network for each annotator, trained on that one's labels.

    The result is the mean of the annotators' probabilities. All networks see all images of a batch,
    so that batch statistics do not depend on who labelled what; who labelled nothing in a batch
    learns nothing from it. A network of one's own is copied for each annotator.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> module = Separate(["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1))
        >>> module.predict(torch.randn(1, 3, 8, 8), panel=["Ben", "Ana"]).shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        self.networks = nn.ModuleList(
            SegmentationNetwork(len(self.classes), **copy.deepcopy(self.backbone))
            for _ in self.annotators
        )

    def forward(self, images: Tensor) -> ModelOutput:
        """What each annotator's network says, and their mean."""
        own = torch.stack([network(images) for network in self.networks], dim=1)
        return ModelOutput.weighing_all_alike(own)
