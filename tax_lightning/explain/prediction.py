"""What a model says of images: the result, and what each annotator would draw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """The segmentation of a batch of images, and what each annotator would draw.

    Args:
        ids: the images, length B.
        annotators: names in the order of the N axis; none of a model that names nobody.
        classes: names in the order of the C axis; ``classes[0]`` is the background.
        probs: ``[B, C, H, W]``, the resulting segmentation, in ``[0, 1]``.
        annotator_probs: ``[B, N, C, H, W]``, each annotator's own segmentation, in ``[0, 1]``.

    Raises:
        ValueError: if the shape of a tensor does not follow from the names and the other tensors.

    Example:
        >>> prediction = Prediction(
        ...     ids=("a",),
        ...     annotators=("Ana", "Ben"),
        ...     classes=("background", "cell"),
        ...     probs=torch.tensor([0.25, 0.75]).view(1, 2, 1, 1),
        ...     annotator_probs=torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1),
        ... )
        >>> prediction.classes[prediction.decision.item()]
        'cell'
    """

    ids: tuple[str, ...]
    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    probs: Tensor
    annotator_probs: Tensor

    def __post_init__(self) -> None:
        """Check the shapes, so that a wrong order of axes is named here and not in a picture."""
        batch, n, c = len(self.ids), len(self.annotators), len(self.classes)
        size = tuple(self.probs.shape[-2:])
        for name, axes in self._axes().items():
            lengths = {"B": batch, "N": n, "C": c, "H": size[0], "W": size[1]}
            shape = tuple(lengths[axis] for axis in axes)
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {found}, expected {shape} for "
                    f"{batch} ids, {n} annotators, {c} classes and {size} pixels; give all tensors "
                    "batch first."
                )

    def _axes(self) -> dict[str, str]:
        """The axes of each tensor by its name."""
        return {"probs": "BCHW", "annotator_probs": "BNCHW"}

    @property
    def decision(self) -> Tensor:
        """The class of each pixel in the result, ``[B, H, W]`` int64."""
        return self.probs.max(dim=1).indices  # argmax would take several times as long

    @property
    def annotator_decisions(self) -> Tensor:
        """The class of each pixel as each annotator would say, ``[B, N, H, W]`` int64."""
        return self.annotator_probs.max(dim=2).indices

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, i: int) -> Self:
        """What is said of image ``i`` alone, with B = 1."""
        position = range(len(self.ids))[i]
        tensors = {
            name: tensor[position : position + 1] for name, tensor in self._tensors().items()
        }
        return dataclasses.replace(self, ids=(self.ids[position],), **tensors)  # type: ignore[arg-type]

    def crop(self, height: int, width: int) -> Self:
        """The top left part of every image, such as an image without its padding."""
        tensors = {name: tensor[..., :height, :width] for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]

    def sampled(self, rows: Tensor, columns: Tensor) -> Self:
        """The pixels at these rows and columns, such as to show an image smaller or larger."""
        rows, columns = rows.to(self.probs.device), columns.to(self.probs.device)
        tensors = {
            name: tensor.index_select(-2, rows).index_select(-1, columns)
            for name, tensor in self._tensors().items()
        }
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on ``device``."""
        tensors = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        """The tensor fields by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
