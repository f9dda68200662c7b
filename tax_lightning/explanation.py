"""What a model says of images: the result, what each annotator would draw, who decides, and why."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

TrustKind = Literal["uniform", "constant", "image"]
TRUST_KINDS: tuple[TrustKind, ...] = get_args(TrustKind)
"""Forms of the annotators' weights, the simplest first: see ``models.trust.Trust``."""

AVERAGED = ("probs", "annotator_probs", "who")
"""Maps that are averaged where windows of an image overlap. The others tell of one kernel: they are
those of one window, so that a share is of the kernel that is shown."""


def most_likely(scores: Tensor, dim: int) -> Tensor:
    """Index of the largest score along a dimension, int64.

    On a CPU ``argmax`` along another than the last dimension takes up to 17 times as long.
    """
    return scores.max(dim=dim).indices


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
        return most_likely(self.probs, dim=1)

    @property
    def annotator_decisions(self) -> Tensor:
        """The class of each pixel as each annotator would say, ``[B, N, H, W]`` int64."""
        return most_likely(self.annotator_probs, dim=2)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, i: int) -> Self:
        """What is said of image ``i`` alone, with B = 1."""
        position = range(len(self.ids))[i]
        ids = (self.ids[position],)
        return self._mapped(lambda tensor: tensor[position : position + 1], ids=ids)

    def part(self, top: int, left: int, height: int, width: int) -> Self:
        """A rectangle of every image, in pixels."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return self._mapped(lambda tensor: tensor[..., rows, columns])

    def resized(self, height: int, width: int) -> Self:
        """The same at another size: shares between neighbours by distance, indices the nearest."""
        if tuple(self.probs.shape[-2:]) == (height, width):
            return self
        return self._mapped(lambda tensor: _resized(tensor, (height, width)))

    def sampled(self, rows: Tensor, columns: Tensor) -> Self:
        """The pixels at these rows and columns, such as to show an image smaller or larger."""
        rows, columns = rows.to(self.probs.device), columns.to(self.probs.device)
        return self._mapped(lambda tensor: tensor.index_select(-2, rows).index_select(-1, columns))

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on ``device``."""
        return self._mapped(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names of their fields, each ``[B, ..., H, W]``."""
        return {name: getattr(self, name) for name in self._axes()}

    def _mapped(self, change: Callable[[Tensor], Tensor], **fields: Any) -> Self:  # noqa: ANN401
        """The same with every tensor changed, and with these other fields."""
        tensors = {name: change(value) for name, value in self.tensors().items()}
        return dataclasses.replace(self, **fields, **tensors)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Example:
    """A training pixel that a prototype resembles.

    Args:
        label: name of the class that the prototype's annotator gave to the pixel.
        sample_id: the training image.
        y: row of the pixel in the image after the evaluation transform.
        x: column of the pixel in the image after the evaluation transform.
        similarity: cosine between the prototype and the pixel's feature, in ``[-1, 1]``.
    """

    label: str
    sample_id: str
    y: int
    x: int
    similarity: float


@dataclass(frozen=True)
class PrototypeSource:
    """Where one prototype was taken from: a pixel of a training image, and what it resembles.

    A prototype selects a kernel, which is a rule of labelling and not a class. So it has examples
    of every class that its annotator gave to pixels like it.

    Args:
        annotator: name of the annotator that the prototype belongs to.
        kernel: index of the kernel within the annotator, ``0 .. K - 1``.
        active: whether the prototype takes part in the decisions.
        taken_from: the training pixel that the prototype was moved onto; ``None`` before that.
        examples: the most similar training pixels of every class, the most similar first, those of
            one class each from another image.

    Example:
        >>> cell = Example("cell", "train-0012", 31, 40, 0.97)
        >>> source = PrototypeSource("Ana", 2, True, cell, (cell,))
        >>> source.projected, source.example("cell").y, source.example("background")
        (True, 31, None)
    """

    annotator: str
    kernel: int
    active: bool
    taken_from: Example | None
    examples: tuple[Example, ...]

    @property
    def projected(self) -> bool:
        """Whether the prototype is a training pixel already."""
        return self.taken_from is not None

    def example(self, label: str) -> Example | None:
        """The most similar training pixel that the annotator gave this class, if there is one."""
        return next((example for example in self.examples if example.label == label), None)


@dataclass(frozen=True)
class TrustBasis:
    """What is known of the weights "who": what they were taught with, and how good they are.

    Args:
        kind: ``"image"`` where the weights follow the image; ``"constant"`` where each annotator
            has one weight; ``"uniform"`` where all weigh the same. The simplest that is not worse
            on validation images.
        reference: the labels that say who is right: ``"given"``, ``"majority"``, ``"staple"`` or
            ``"none"``.
        scores: log scores on validation images of weights that are uniform, constant, and from the
            image, in nats, smaller is better; NaN where nothing was measured.

    Example:
        >>> TrustBasis("constant", "majority", (0.28, 0.24, 0.25)).measured
        True
    """

    kind: TrustKind = "image"
    reference: str = "given"
    scores: tuple[float, float, float] = (math.nan, math.nan, math.nan)

    @property
    def measured(self) -> bool:
        """Whether the scores are known."""
        return not any(map(math.isnan, self.scores))


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
        why_own: ``[B, N, H, W]`` int64, annotator n's kernel with the largest share in what n would
            say.
        sources: ``[N][K]``, the training pixel behind each kernel's prototype.
        trust: what ``who`` was taught with, and how good it is.
        dispute_threshold: expected disagreement below which a pixel is undisputed, in ``[0, 1]``.
        persons: whether an annotator is the same person throughout the training images.
        types: whether these are types of annotation in place of annotators.
        detail_of: the image of which this is a small part that is shown beside it; ``""``: this is
            an image itself.

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
        ...     why_own=torch.zeros(1, 2, 1, 1, dtype=torch.int64),
        ...     sources=((), ()),
        ... )
        >>> explanation.classes[explanation.decision.item()], explanation.votes.item()
        ('cell', 1.0)
        >>> explanation.annotators[explanation.leader.item()], explanation.decides.item()
        ('Ana', True)
        >>> explanation.annotators[explanation.dissenter.item()], explanation.dispute.item()
        ('Ben', 1.0)
    """

    who: Tensor
    why: Tensor
    why_share: Tensor
    why_own: Tensor
    sources: tuple[tuple[PrototypeSource, ...], ...]
    trust: TrustBasis = TrustBasis()
    dispute_threshold: float = 0.1
    persons: bool = True
    types: bool = False
    detail_of: str = ""

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
        return {
            **super()._axes(),
            **dict.fromkeys(("who", "why", "why_share", "why_own"), "BNHW"),
        }

    @property
    def kernels(self) -> int:
        """The largest number of kernels that an annotator has, at least 1."""
        return max([1, *map(len, self.sources)])

    # ---------------------------------------------------------------- where annotators disagree

    @cached_property
    def dispute(self) -> Tensor:
        """Expected share of pairs of annotators who disagree, ``[B, H, W]`` in ``[0, 1]``."""
        return expected_disagreement(self.annotator_probs)

    @property
    def undisputed(self) -> Tensor:
        """Where the expected disagreement is below the threshold, bool ``[B, H, W]``."""
        return self.dispute < self.dispute_threshold

    # ---------------------------------------------------------------- support: who says the result

    @cached_property
    def support(self) -> Tensor:
        """How probably each annotator says what is decided, ``[B, N, H, W]`` in ``[0, 1]``."""
        place = self.decision[:, None, None].expand(-1, len(self.annotators), 1, -1, -1)
        return self.annotator_probs.gather(2, place).squeeze(2)

    @property
    def votes(self) -> Tensor:
        """Expected number of annotators who say what is decided, ``[B, H, W]`` in ``[0, N]``."""
        return self.support.sum(dim=1)

    @property
    def dissenter(self) -> Tensor:
        """Index of the annotator who least probably says what is decided, ``[B, H, W]``."""
        return self.support.min(dim=1).indices

    @property
    def dissent(self) -> Tensor:
        """The class that the dissenter would give, which may be the result, ``[B, H, W]``."""
        return self._of(self.annotator_decisions, self.dissenter)

    @property
    def dissent_kernel(self) -> Tensor:
        """The dissenter's kernel with the largest share in what they would say, ``[B, H, W]``."""
        return self._of(self.why_own, self.dissenter)

    # ---------------------------------------------------------------- trust: whom to believe

    @cached_property
    def leader(self) -> Tensor:
        """Index of the annotator with the largest weight, ``[B, H, W]`` int64."""
        return self.who.max(dim=1).indices

    @property
    def decides(self) -> Tensor:
        """Where the leader may be said to decide the result, bool ``[B, H, W]``.

        The weights follow the image, the leader has at least half of the weight, and would say what
        is decided.
        """
        if self.trust.kind != "image":
            return torch.zeros_like(self.leader, dtype=torch.bool)
        agrees = self._of(self.annotator_decisions, self.leader) == self.decision
        return agrees & (self.who.amax(dim=1) >= 0.5)

    @property
    def certainty(self) -> Tensor:
        """The largest weight rescaled, ``[B, H, W]``: 0 all weigh the same, 1 one decides."""
        chance = 1 / len(self.annotators)
        if chance == 1:
            return torch.ones_like(self.who[:, 0])
        return ((self.who.amax(dim=1) - chance) / (1 - chance)).clamp(0, 1)

    # ---------------------------------------------------------------- why

    @cached_property
    def reason(self) -> Tensor:
        """Annotator of the prototype with the largest share in the decision, ``[B, H, W]``.

        Where the weights are the same at every pixel, the annotators count the same for this: else
        the one with the largest constant would be the reason everywhere.
        """
        constant = self.trust.kind != "image"
        shares = self.why_share / self.who if constant else self.why_share
        return shares.max(dim=1).indices

    @property
    def reason_kernel(self) -> Tensor:
        """Kernel of the prototype with the largest share in the decision, ``[B, H, W]``."""
        return self._of(self.why, self.reason)

    @property
    def reason_share(self) -> Tensor:
        """The share of that prototype in the decision, ``[B, H, W]`` in ``[0, 1]``."""
        return self._of(self.why_share, self.reason)

    @property
    def uncertainty(self) -> Tensor:
        """Entropy of the result over log C, ``[B, H, W]``: 0 sure, 1 every class is as likely."""
        nats: Tensor = torch.special.entr(self.probs.float()).sum(dim=1)
        return (nats / math.log(len(self.classes))).clamp(0, 1)

    @staticmethod
    def _of(values: Tensor, annotator: Tensor) -> Tensor:
        """From [B, N, H, W], the values of one annotator a pixel, [B, H, W]."""
        return values.gather(1, annotator.unsqueeze(1)).squeeze(1)


def _resized(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """A map ``[B, ..., H, W]`` at another size."""
    flat = tensor.flatten(1, -3) if tensor.ndim > 3 else tensor.unsqueeze(1)
    if tensor.is_floating_point():
        smaller = size[0] < tensor.shape[-2] or size[1] < tensor.shape[-1]
        new = F.interpolate(flat.float(), size, mode="bilinear", antialias=smaller)
    else:
        new = F.interpolate(flat.double(), size, mode="nearest-exact").to(tensor.dtype)
    return new.reshape(*tensor.shape[:-2], *size)


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
