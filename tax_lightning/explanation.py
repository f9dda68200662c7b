"""What a model says of images: the result, what each annotator would draw, who decides, and why."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import torch
from torch import Tensor

TrustKind = Literal["uniform", "constant", "image"]
TRUST_KINDS: tuple[TrustKind, ...] = get_args(TrustKind)
"""Forms of the annotators' weights, the simplest first: see ``models.trust.Trust``."""


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


@dataclass(frozen=True)
class PrototypeSource:
    """Where one prototype was taken from: a pixel of a training image.

    Args:
        annotator: name of the annotator that the prototype belongs to.
        kernel: index of the kernel within the annotator, ``0 .. K - 1``.
        sample_id: the training image; ``""`` while the prototype has not been projected.
        y: row of the pixel in the image after the evaluation transform.
        x: column of the pixel in the image after the evaluation transform.
        similarity: cosine between the prototype and the pixel's feature, in ``[-1, 1]``.
        label: name of the class that the annotator gave to the pixel; ``""`` before a projection.
        active: whether the prototype takes part in the decisions.
        nearest: the next nearest pixels, each ``(sample_id, y, x, similarity)`` and each from
            another image.
        purity: share of the most frequent label among the pixel and its nearest pixels, as the
            annotator labelled them, in ``[0, 1]``; ``None`` if that is not known.

    Example:
        >>> source = PrototypeSource("Ana", 2, "train-0012", 31, 40, 0.97, "cell", True, ())
        >>> source.projected
        True
    """

    annotator: str
    kernel: int
    sample_id: str
    y: int
    x: int
    similarity: float
    label: str
    active: bool
    nearest: tuple[tuple[str, int, int, float], ...]
    purity: float | None = None

    @property
    def projected(self) -> bool:
        """Whether the prototype is a training pixel already."""
        return self.sample_id != ""


@dataclass(frozen=True)
class Explanation(Prediction):
    """The segmentation of a batch of images together with who decides it and why.

    Args:
        ids: the images, length B.
        annotators: names in the order of the N axis.
        classes: names in the order of the C axis; ``classes[0]`` is the background.
        probs: ``[B, C, H, W]``, the resulting segmentation, in ``[0, 1]``.
        annotator_probs: ``[B, N, C, H, W]``, each annotator's own segmentation, in ``[0, 1]``.
        who: ``[B, N, H, W]``, weight of each annotator in the result; sums to 1 over N.
        why: ``[B, N, H, W]`` int64, annotator n's kernel with the largest share in the decision.
        why_share: ``[B, N, H, W]``, the share of that kernel in the decision, in ``[0, 1]``.
        unanimous: ``[B, H, W]`` bool, pixels where all annotators would say the same, so that
            ``who`` carries no information.
        sources: ``[N][K]``, the training pixel behind each kernel's prototype.

    Raises:
        ValueError: if the shape of a tensor does not follow from the names and the other tensors.

    Example:
        >>> who = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
        >>> explanation = Explanation(
        ...     ids=("a",),
        ...     annotators=("Ana", "Ben"),
        ...     classes=("background", "cell"),
        ...     probs=torch.tensor([0.25, 0.75]).view(1, 2, 1, 1),
        ...     annotator_probs=torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1),
        ...     who=who,
        ...     why=torch.zeros(1, 2, 1, 1, dtype=torch.int64),
        ...     why_share=who,
        ...     unanimous=torch.zeros(1, 1, 1, dtype=torch.bool),
        ...     sources=((), ()),
        ... )
        >>> explanation.classes[explanation.decision.item()]
        'cell'
        >>> explanation.annotators[explanation.leader.item()]
        'Ana'
        >>> explanation.certainty.item()
        0.5
    """

    who: Tensor
    why: Tensor
    why_share: Tensor
    unanimous: Tensor
    sources: tuple[tuple[PrototypeSource, ...], ...]

    def __post_init__(self) -> None:
        """Check that there is a row of sources for each annotator too."""
        super().__post_init__()
        n = len(self.annotators)
        if len(self.sources) != n:
            raise ValueError(
                f"Explanation: sources names {len(self.sources)} annotators, expected {n}; "
                "give one row of prototype sources for each annotator."
            )

    def _axes(self) -> dict[str, str]:
        own = dict.fromkeys(("who", "why", "why_share"), "BNHW")
        return {**super()._axes(), **own, "unanimous": "BHW"}

    @property
    def kernels(self) -> int:
        """The largest number of kernels that an annotator has, at least 1."""
        return max([1, *map(len, self.sources)])

    @cached_property
    def leader(self) -> Tensor:
        """Index of the annotator with the largest weight, ``[B, H, W]`` int64."""
        return self.who.max(dim=1).indices

    @property
    def leader_kernel(self) -> Tensor:
        """The leader's kernel with the largest share in the decision, ``[B, H, W]`` int64."""
        return self._of_leader(self.why)

    @property
    def leader_share(self) -> Tensor:
        """The share of ``leader_kernel`` in the decision, ``[B, H, W]`` in ``[0, 1]``."""
        return self._of_leader(self.why_share)

    @property
    def entropy(self) -> Tensor:
        """Entropy of ``who`` over log N, ``[B, H, W]``: 0 one decides, 1 all weigh the same."""
        if len(self.annotators) == 1:
            return torch.zeros_like(self.who[:, 0])
        nats: Tensor = torch.special.entr(self.who).sum(dim=1)
        return nats / math.log(len(self.annotators))

    @property
    def certainty(self) -> Tensor:
        """The largest weight rescaled, ``[B, H, W]``: 0 all weigh the same, 1 one decides."""
        chance = 1 / len(self.annotators)
        if chance == 1:
            return torch.ones_like(self.who[:, 0])
        return ((self.who.amax(dim=1) - chance) / (1 - chance)).clamp(0, 1)

    @property
    def uncertainty(self) -> Tensor:
        """Entropy of the result over log C, ``[B, H, W]``: 0 sure, 1 every class is as likely."""
        nats: Tensor = torch.special.entr(self.probs.float()).sum(dim=1)
        return (nats / math.log(len(self.classes))).clamp(0, 1)

    def _of_leader(self, values: Tensor) -> Tensor:
        """From [B, N, H, W], the values of each pixel's leader, [B, H, W]."""
        return values.gather(1, self.leader.unsqueeze(1)).squeeze(1)


def expected_disagreement(annotator_probs: Tensor) -> Tensor:
    """d: how often two different annotators would give a pixel different labels.

    Their labels are taken to be independent, given what the model expects of each.

    Args:
        annotator_probs: each annotator's own segmentation, ``[B, N, C, H, W]`` in [0, 1].

    Returns:
        ``[B, H, W]`` in [0, 1]; 0 for a single annotator.

    Example:
        >>> opposite = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1)
        >>> expected_disagreement(opposite).item()
        1.0
    """
    n = annotator_probs.shape[1]
    if n == 1:
        return torch.zeros_like(annotator_probs[:, 0, 0])
    same = annotator_probs.sum(dim=1).square() - annotator_probs.square().sum(dim=1)
    disagreement: Tensor = 1 - same.sum(dim=1) / (n * (n - 1))
    return disagreement
