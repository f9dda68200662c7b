"""The prototype memory: what each kernel responds to, and the training pixels it was taken from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.explanation import PrototypeSource

NEAREST = 9  # further training pixels that are noted for each prototype
LEAST_SIMILARITY = 0.5


class PrototypeMemory(nn.Module):
    """One unit-length prototype for each kernel of each annotator, and where it was taken from.

    The cosine of a pixel's embedding and prototype (n, k) is the evidence for kernel (n, k) at that
    pixel. Prototypes are learnt by gradient. :meth:`project` then moves each of them onto a real
    training pixel, so that the reason for a decision can be shown as a training patch. A memory of
    prototypes is what arXiv 2302.09561 asks for; the projection is that of ProtoPNet (1806.10574).

    The sources (sample id, pixel, similarity, label, nearest pixels) are part of the ``state_dict``
    as plain tensors and strings, without any image data.

    Args:
        annotators: number of annotators N.
        kernels: kernels, and so prototypes, per annotator K.
        channels: length E of an embedding.
        temperature: tau, by which a cosine is divided before the softmax; greater than 0.

    Raises:
        ValueError: if ``temperature`` is not positive.

    Shape:
        - embedding: ``[B, E, H, W]``, unit length over E
        - evidence: ``[B, N, K, H, W]``; -inf for a pruned prototype

    Example:
        >>> memory = PrototypeMemory(2, kernels=3, channels=8)
        >>> z = F.normalize(torch.randn(1, 8, 4, 4), dim=1)
        >>> memory(z).shape
        torch.Size([1, 2, 3, 4, 4])
        >>> bool(memory.projected)
        False
    """

    active: Tensor
    projected: Tensor
    source_pixel: Tensor
    source_label: Tensor
    source_similarity: Tensor

    def __init__(
        self, annotators: int, kernels: int, channels: int, temperature: float = 0.1
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: expected a number greater than 0.")
        self.temperature = temperature
        self.vectors = nn.Parameter(F.normalize(torch.randn(annotators, kernels, channels), dim=-1))
        self.prior = nn.Parameter(torch.zeros(annotators))
        places = (annotators, kernels, 1 + NEAREST)  # the source, then its nearest pixels
        self.register_buffer("active", torch.ones(places[:2], dtype=torch.bool))
        self.register_buffer("projected", torch.tensor(False))
        self.register_buffer("source_pixel", torch.full((*places, 2), -1))
        self.register_buffer("source_label", torch.full(places, -1))
        self.register_buffer("source_similarity", torch.full(places, float("nan")))
        self.source_ids = _no_ids(annotators, kernels)

    @property
    def unit_vectors(self) -> Tensor:
        """The prototypes at unit length, float32 ``[N, K, E]``."""
        return F.normalize(self.vectors.float(), dim=-1)

    def similarity(self, embedding: Tensor) -> Tensor:
        """Cosine of pixels ``[B, E, H, W]`` with each prototype: ``[B, N, K, H, W]`` in [-1, 1]."""
        return self._respond(embedding, self.unit_vectors)

    def forward(self, embedding: Tensor) -> Tensor:
        """Evidence for every kernel at every pixel ``[B, N, K, H, W]``: cosine / tau + prior."""
        bias = self.prior.float().unsqueeze(1).expand_as(self.active)
        evidence = self._respond(embedding, self.unit_vectors / self.temperature, bias)
        # Not as a bias of -inf: some convolutions make NaN of it, such as PyTorch's without oneDNN.
        return evidence.masked_fill(~self.active[:, :, None, None], float("-inf"))

    def _respond(self, embedding: Tensor, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
        """One convolution, so that scale and bias need no further pass over all pixels."""
        # In float32 also where the convolutions run in bf16, so that the shares add up.
        with torch.autocast(embedding.device.type, enabled=False):
            weight = vectors.flatten(0, 1)[..., None, None]
            bias = None if bias is None else bias.flatten()
            response: Tensor = F.conv2d(embedding.float(), weight, bias)
        by_prototype: Tensor = response.unflatten(1, self.active.shape)
        return by_prototype

    @torch.no_grad()
    def start(self, pixels: Sequence[Tensor], seed: int = 0, keep: int = 0) -> None:
        """Start the prototypes at the centres of K clusters of each annotator's pixels.

        Args:
            pixels: for each annotator embeddings ``[M_n, E]`` of unit length; an annotator with
                fewer than K pixels keeps the present prototypes.
            seed: makes the clustering reproducible.
            keep: the first so many annotators keep their prototypes.
        """
        kernels = self.active.shape[1]
        for n, sample in enumerate(pixels):
            if n >= keep and len(sample) >= kernels:
                rng = np.random.default_rng(seed + n)
                points = sample.double().cpu().numpy()
                centres, _ = kmeans2(points, kernels, iter=20, minit="++", rng=rng, missing="warn")
                self.vectors[n] = F.normalize(torch.from_numpy(centres).to(self.vectors), dim=-1)

    @torch.no_grad()
    def project(self, search: SourceSearch, *, final: bool, keep: int = 0) -> None:
        """Move each prototype onto the nearest training pixel that qualified, and note its source.

        No pixel is used twice: the most similar pair of prototype and pixel is settled first. After
        the final projection a prototype without a pixel of cosine 0.5 or more is pruned, that is
        never assigned again, unless it is the best that its annotator has.

        Args:
            search: the most similar training pixels of every prototype.
            final: ``True`` for the projection that the explanation rests on. Trial projections
                during training prune nothing.
            keep: the first so many annotators keep their prototypes and sources.
        """
        self.forget_sources(keep)
        taken = {
            (ids[0], *self.source_pixel[n, k, 0].tolist())
            for n, row in enumerate(self.source_ids)
            for k, ids in enumerate(row)
            if ids
        }
        for n, k, pixel in search.pairs():
            if n >= keep and not self.source_ids[n][k] and pixel.place not in taken:
                taken.add(pixel.place)
                others = [other for other in search.best[n][k] if other is not pixel]
                self._take(n, k, [pixel, *others])
        self.projected.fill_(final)
        if final:
            best = self.source_similarity[keep:, :, 0].nan_to_num(-1.0)
            active = best >= LEAST_SIMILARITY
            self.active[keep:] = active.scatter(1, best.argmax(dim=1, keepdim=True), True)

    def forget_sources(self, keep: int = 0) -> None:
        """Forget all sources but those of the first ``keep`` annotators, and unprune the others."""
        annotators, kernels = self.active.shape
        self.source_ids = [*self.source_ids[:keep], *_no_ids(annotators - keep, kernels)]
        self.source_pixel[keep:] = -1
        self.source_label[keep:] = -1
        self.source_similarity[keep:] = float("nan")
        self.active[keep:] = True

    def _take(self, n: int, k: int, pixels: Sequence[Pixel]) -> None:
        self.vectors[n, k] = pixels[0].embedding.to(self.vectors)
        self.source_ids[n][k] = [pixel.sample_id for pixel in pixels]
        rows = slice(len(pixels))
        for buffer, values in (
            (self.source_pixel, [(pixel.y, pixel.x) for pixel in pixels]),
            (self.source_label, [pixel.label for pixel in pixels]),
            (self.source_similarity, [pixel.similarity for pixel in pixels]),
        ):
            buffer[n, k, rows] = torch.tensor(values).to(buffer)

    def sources(
        self, annotators: Sequence[str], classes: Sequence[str]
    ) -> tuple[tuple[PrototypeSource, ...], ...]:
        """The source of every prototype by name, ``[N][K]``; ids are "" before a projection."""
        return tuple(
            tuple(self._source(n, k, name, classes) for k in range(self.active.shape[1]))
            for n, name in enumerate(annotators)
        )

    def _source(self, n: int, k: int, annotator: str, classes: Sequence[str]) -> PrototypeSource:
        ids = self.source_ids[n][k]
        pixels = self.source_pixel[n, k].tolist()
        similarity = self.source_similarity[n, k].tolist()
        labels = self.source_label[n, k, : len(ids)].tolist()
        return PrototypeSource(
            annotator=annotator,
            kernel=k,
            sample_id=ids[0] if ids else "",
            y=pixels[0][0],
            x=pixels[0][1],
            similarity=similarity[0],
            label=classes[labels[0]] if ids else "",
            active=bool(self.active[n, k]),
            nearest=tuple((ids[i], *pixels[i], similarity[i]) for i in range(1, len(ids))),
            purity=max(map(labels.count, labels)) / len(labels) if labels else None,
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Sample ids: strings, which buffers cannot hold but ``weights_only=True`` can load."""
        return {"source_ids": self.source_ids}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.source_ids = state["source_ids"]


class Pixel(NamedTuple):
    """A training pixel that a prototype could be taken from.

    Attributes:
        similarity: cosine with the prototype.
        sample_id: the image.
        y: row in the evaluation-transformed image.
        x: column in the evaluation-transformed image.
        label: class id that the prototype's annotator gave there.
        embedding: the pixel's embedding ``[E]``, unit length.
    """

    similarity: float
    sample_id: str
    y: int
    x: int
    label: int
    embedding: Tensor

    @property
    def place(self) -> tuple[str, int, int]:
        """Image, row and column: what makes two pixels the same."""
        return self.sample_id, self.y, self.x


class SourceSearch:
    """Looks through training images for the pixels most similar to each prototype.

    Holds the best ten of each prototype, each from another image, so its memory does not grow with
    the number of images. Searches over parts of the data, such as one in each process, add up with
    :meth:`merge`; the order of images and of parts does not matter.

    Args:
        annotators: number of annotators N.
        kernels: prototypes per annotator K.

    Example:
        >>> search = SourceSearch(annotators=1, kernels=1)
        >>> z = torch.tensor([[0.6, 1.0], [0.8, 0.0]]).view(1, 2, 1, 2)  # two pixels, E = 2
        >>> search.update(
        ...     similarity=z[:, None, :1],  # the prototype is (1, 0)
        ...     eligible=torch.ones(1, 1, 1, 1, 2, dtype=torch.bool),
        ...     labels=torch.tensor([0, 1]).view(1, 1, 1, 2),
        ...     embedding=z,
        ...     ids=["a"],
        ... )
        >>> search.best[0][0][0].place
        ('a', 0, 1)
    """

    def __init__(self, annotators: int, kernels: int) -> None:
        self.best: list[list[list[Pixel]]] = [
            [[] for _ in range(kernels)] for _ in range(annotators)
        ]

    def update(
        self,
        similarity: Tensor,
        eligible: Tensor,
        labels: Tensor,
        embedding: Tensor,
        ids: Sequence[str],
    ) -> None:
        """Consider the images of one batch.

        Args:
            similarity: ``[B, N, K, H, W]`` cosines.
            eligible: ``[B, N, K, H, W]`` bool, pixels that may become the source of (n, k).
            labels: class ids ``[B, N, H, W]``.
            embedding: ``[B, E, H, W]``.
            ids: the B sample ids.
        """
        width = similarity.shape[-1]
        values, index = similarity.masked_fill(~eligible, -2.0).flatten(3).max(dim=3)
        label = labels.flatten(2).gather(2, index)
        values, index, label = values.cpu(), index.cpu(), label.cpu()
        for b, n, k in (values > -2.0).nonzero().tolist():
            row = self.best[n][k]
            value = float(values[b, n, k])
            if len(row) > NEAREST and value < row[-1].similarity:
                continue
            y, x = divmod(int(index[b, n, k]), width)
            # A copy: a view would keep the whole batch in memory, and send it to other processes.
            vector = embedding[b, :, y, x].float().cpu().clone()
            pixel = Pixel(value, ids[b], y, x, int(label[b, n, k]), vector)
            self.best[n][k] = _best_pixels([*row, pixel])

    def merge(self, other: SourceSearch) -> None:
        """Take over what a search over other images found."""
        self.best = [
            [_best_pixels(mine + theirs) for mine, theirs in zip(*rows, strict=True)]
            for rows in zip(self.best, other.best, strict=True)
        ]

    def pairs(self) -> list[tuple[int, int, Pixel]]:
        """Annotator, kernel and a pixel found for it: all of them, the most similar pair first."""
        found = [
            (n, k, pixel)
            for n, row in enumerate(self.best)
            for k, pixels in enumerate(row)
            for pixel in pixels
        ]
        return sorted(found, key=lambda pair: (-pair[2].similarity, pair[0], pair[1]))


def _best_pixels(pixels: Sequence[Pixel]) -> list[Pixel]:
    """The best pixel of each image, the best images first; ties break by name, not by order."""
    first: dict[str, Pixel] = {}
    for pixel in sorted(pixels, key=lambda p: (-p.similarity, p.place)):
        first.setdefault(pixel.sample_id, pixel)
    return list(first.values())[: 1 + NEAREST]


def _no_ids(annotators: int, kernels: int) -> list[list[list[str]]]:
    return [[[] for _ in range(kernels)] for _ in range(annotators)]
