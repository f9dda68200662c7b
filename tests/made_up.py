"""Explanations with known answers, made by hand instead of by a model."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from tax_lightning.explanation import Example, Explanation, PrototypeSource, TrustBasis

KERNELS = 3


TRUSTED = TrustBasis("image", "given", (0.7, 0.5, 0.1))


def make_source(annotator="Ana", kernel=0, sample_id="train-7", active=True) -> PrototypeSource:
    """A prototype at row 2 + kernel of a training image, the next class in the image "b"."""
    if not sample_id:
        return PrototypeSource(annotator, kernel, active, None, ())
    cell = Example("cell", sample_id, 2 + kernel, 3, 0.9)
    other = Example("background", "b", 1, 1, 0.5)
    return PrototypeSource(annotator, kernel, active, cell, (cell, other))


def make_sources(
    annotators: Sequence[str], sample_id: str = "train-7", kernels: int = KERNELS
) -> tuple[tuple[PrototypeSource, ...], ...]:
    return tuple(
        tuple(make_source(name, k, sample_id) for k in range(kernels)) for name in annotators
    )


def make_explanation(
    leader: Tensor,
    kernel: Tensor | int = 0,
    undisputed: Tensor | None = None,
    weight: float = 1.0,
    annotators: Sequence[str] = ("Ana", "Ben", "Cleo"),
    classes: Sequence[str] = ("background", "cell"),
    ids: Sequence[str] | None = None,
    sources: tuple[tuple[PrototypeSource, ...], ...] | None = None,
    trust: TrustBasis = TRUSTED,
) -> Explanation:
    """Explanation in which ``leader`` [B, H, W] decides with ``weight``, the others share the rest.

    Annotator n says class n modulo the number of classes, but where nothing is disputed all say the
    class of the leader. The leader's prototype has half of the leader's weight as its share.
    """
    batch, height, width = leader.shape
    n, c = len(annotators), len(classes)
    rest = (1 - weight) / max(1, n - 1)
    who = torch.full((batch, n, height, width), rest)
    who.scatter_(1, leader.unsqueeze(1), weight)
    said = (torch.arange(n) % c).view(1, n, 1, 1).expand(batch, n, height, width)
    if undisputed is not None:
        said = torch.where(undisputed.unsqueeze(1), (leader % c).unsqueeze(1), said)
    annotator_probs = torch.nn.functional.one_hot(said, c).movedim(-1, 2).float()
    why = torch.as_tensor(kernel).expand(batch, height, width).unsqueeze(1)
    why = why.expand(batch, n, height, width).clone()
    return Explanation(
        ids=tuple(ids) if ids is not None else tuple(f"val-{i}" for i in range(batch)),
        annotators=tuple(annotators),
        classes=tuple(classes),
        probs=(who.unsqueeze(2) * annotator_probs).sum(dim=1),
        annotator_probs=annotator_probs,
        who=who,
        why=why,
        why_share=0.5 * who,
        why_own=why,
        sources=sources if sources is not None else make_sources(annotators),
        trust=trust,
    )


def quarters(size: int = 8) -> tuple[Tensor, Tensor]:
    """Leader map [1, S, S] with 0, 1, 2, 0 in its quarters, the last of them undisputed."""
    half = size // 2
    leader = torch.zeros(1, size, size, dtype=torch.int64)
    leader[:, :half, half:] = 1
    leader[:, half:, :half] = 2
    undisputed = torch.zeros(1, size, size, dtype=torch.bool)
    undisputed[:, half:, half:] = True
    return leader, undisputed


class MadeUpModel:
    """Explains every image by smooth random fields, which the image's name and size decide."""

    device = "cpu"

    def __init__(
        self,
        annotators: Sequence[str] = ("Ana", "Ben", "Cleo", "Dan"),
        classes: Sequence[str] = ("background", "cell", "fibre"),
        kernels: int = KERNELS,
        projected: bool = True,
        trust: TrustBasis = TRUSTED,
    ) -> None:
        self.annotators, self.classes = tuple(annotators), tuple(classes)
        self.kernels, self.projected, self.trust = kernels, projected, trust

    def explain(self, images: Tensor, ids: Sequence[str]) -> Explanation:
        n, c, k = len(self.annotators), len(self.classes), self.kernels
        size = tuple(images.shape[-2:])
        rng = np.random.default_rng(zlib.crc32(ids[0].encode()))

        def fields(*shape: int) -> Tensor:
            coarse = torch.from_numpy(rng.normal(size=(1, math.prod(shape), 8, 8))).float()
            return interpolate(coarse, size, mode="bicubic").view(*shape, *size)

        log_annotators = (6 * fields(c) + 2 * fields(n, c)).log_softmax(dim=1)
        log_who = (4 * fields(n)).log_softmax(dim=0)
        probs = (log_who.exp().unsqueeze(1) * log_annotators.exp()).sum(dim=0)
        return Explanation(
            ids=tuple(ids),
            annotators=self.annotators,
            classes=self.classes,
            probs=probs.unsqueeze(0),
            annotator_probs=log_annotators.exp().unsqueeze(0),
            who=log_who.exp().unsqueeze(0),
            why=fields(n, k).argmax(dim=1).unsqueeze(0),
            why_share=0.7 * log_who.exp().unsqueeze(0),
            why_own=fields(n, k).argmax(dim=1).unsqueeze(0),
            sources=make_sources(self.annotators, "train-7" if self.projected else "", k),
            trust=self.trust,
        )


class MadeUpImages:
    """Grey images in [0, 1] of these sizes by name, as a data set gives them."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        self.sizes = list(sizes.items())

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, object]:
        name, (height, width) = self.sizes[index]
        shade = torch.linspace(0, 1, width).expand(1, height, width)
        return {"image": shade.clone(), "id": name}


def grey_picture(image: Tensor) -> NDArray[np.uint8]:
    """An image in [0, 1] as an RGB picture."""
    return (255 * image.expand(3, -1, -1)).round().byte().permute(1, 2, 0).numpy()
