"""The prototype memory: what each kernel responds to, and the training pixels it was taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.models.mixture import full_precision
from tax_lightning.models.output import EVERYBODY, Panel

EXAMPLES = 3  # training pixels of each class that are noted for each prototype
CANDIDATES = 10  # training pixels that are kept for each prototype while looking for its source
LEAST_SIMILARITY = 0.5


class PrototypeMemory(nn.Module):
    """One unit-length prototype for each kernel of each annotator, and where it was taken from.

    The cosine of a pixel's embedding and prototype (n, k) is the evidence for kernel (n, k) at that
    pixel. Prototypes are learnt by gradient. :meth:`project` then moves each of them onto a real
    training pixel, so that the reason for a decision can be shown as a training patch. A memory of
    prototypes is what arXiv 2302.09561 asks for; the projection is that of ProtoPNet (1806.10574).

    A prototype selects a kernel, which labels some pixels one class and some another. So the memory
    notes for each of them the most similar training pixels of every class.

    The pixels (sample id, place, label, similarity) are part of the ``state_dict`` as plain tensors
    and strings, without any image data.

    Built of the number of annotators N, of kernels and so prototypes of each K, the length E of an
    embedding, the number of classes C, and the temperature tau, by which a cosine is divided before
    the softmax; a ValueError if it is not greater than 0.

    Example:
        >>> memory = PrototypeMemory(2, kernels=3, channels=8, classes=2)
        >>> z = F.normalize(torch.randn(1, 8, 4, 4), dim=1)
        >>> memory(z).shape
        torch.Size([1, 2, 3, 4, 4])
        >>> bool(memory.projected)
        False
    """

    active: Tensor
    projected: Tensor
    pixel_place: Tensor
    pixel_label: Tensor
    pixel_similarity: Tensor

    def __init__(
        self,
        annotators: int,
        kernels: int,
        channels: int,
        classes: int,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: expected a number greater than 0.")
        self.temperature = temperature
        self.vectors = nn.Parameter(F.normalize(torch.randn(annotators, kernels, channels), dim=-1))
        self.prior = nn.Parameter(torch.zeros(annotators))
        self.register_buffer("active", torch.empty(annotators, kernels, dtype=torch.bool))
        self.register_buffer("projected", torch.tensor(False))
        # The pixel that a prototype was taken from, then its examples of every class.
        places = (annotators, kernels, 1 + EXAMPLES * classes)
        self.register_buffer("pixel_place", torch.empty(*places, 2, dtype=torch.long))
        self.register_buffer("pixel_label", torch.empty(places, dtype=torch.long))
        self.register_buffer("pixel_similarity", torch.empty(places))
        self.pixel_ids: list[list[list[str]]] = []
        self.forget_sources()

    @property
    def unit_vectors(self) -> Tensor:
        """The prototypes at unit length ``[N, K, E]``."""
        return F.normalize(full_precision(self.vectors), dim=-1)

    @property
    def has_example(self) -> Tensor:
        """Whether a prototype has an example of a class, bool ``[N, K, C]``."""
        examples = self.pixel_label[..., 1:]
        classes = torch.arange(examples.shape[2] // EXAMPLES, device=examples.device)
        return (examples.unsqueeze(3) == classes).any(dim=2)

    def similarity(self, embedding: Tensor, panel: Panel = EVERYBODY) -> Tensor:
        """Cosine of pixels ``[B, E, H, W]`` with each prototype: ``[B, N, K, H, W]`` in [-1, 1]."""
        vectors = self.unit_vectors[panel]
        return self._respond(embedding, vectors, vectors.new_zeros(()))

    def forward(self, embedding: Tensor, panel: Panel = EVERYBODY) -> Tensor:
        """Evidence for every kernel at every pixel: cosine / tau + prior, -inf if pruned.

        Of embeddings ``[B, E, H, W]`` of unit length, ``[B, N, K, H, W]``; with a panel N is its
        length.
        """
        prior, pruned = full_precision(self.prior)[panel, None], ~self.active[panel]
        bias = prior.masked_fill(pruned, float("-inf"))
        return self._respond(embedding, self.unit_vectors[panel] / self.temperature, bias)

    def _respond(self, embedding: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
        """One product, so that scale and bias need no further pass over all pixels."""
        # In float32 also where the convolutions run in bf16, so that the shares add up.
        with torch.autocast(embedding.device.type, enabled=False):
            pixels, size = full_precision(embedding).flatten(2), embedding.shape[-2:]
            weight = vectors.flatten(0, 1).expand(pixels.shape[0], -1, -1)
            # Not a convolution: some make NaN of a bias of -inf.
            response = torch.baddbmm(bias.view(1, -1, 1), weight, pixels)
        by_prototype: Tensor = response.unflatten(1, vectors.shape[:2]).unflatten(-1, size)
        return by_prototype

    @torch.no_grad()
    def start(self, pixels: Sequence[Tensor], seed: int = 0, keep: int = 0) -> None:
        """Start the prototypes at the centres of K clusters of each annotator's pixels.

        Those are embeddings ``[M_n, E]`` of unit length. The first ``keep`` annotators, and those
        with fewer than K pixels, keep the present prototypes.
        """
        kernels = self.active.shape[1]
        for n, sample in enumerate(pixels):
            if n >= keep and len(sample) >= kernels:
                rng = np.random.default_rng(seed + n)
                if not sample.isfinite().all():
                    raise ValueError(
                        "the training diverged: the features are not finite. Lower the learning "
                        "rate (optimizer.init_args.lr)."
                    )
                points = sample.double().cpu().numpy()
                centres, _ = kmeans2(points, kernels, iter=20, minit="++", rng=rng, missing="warn")
                self.vectors[n] = F.normalize(torch.from_numpy(centres).to(self.vectors), dim=-1)

    @torch.no_grad()
    def project(self, search: SourceSearch, *, final: bool, keep: int = 0) -> None:
        """Move each prototype onto the most similar training pixel that qualified.

        No pixel is used twice: the best pair of prototype and pixel is settled first. After the
        final projection a prototype without a pixel of cosine 0.5 or more is pruned, that is never
        assigned again, unless it is the best that its annotator has; trial projections prune
        nothing. The first ``keep`` annotators keep their prototypes and pixels.
        """
        self.forget_sources(keep)
        taken = {
            (ids[0], *self.pixel_place[n, k, 0].tolist())
            for n, row in enumerate(self.pixel_ids)
            for k, ids in enumerate(row)
            if ids
        }
        for n, k, pixel in search.pairs():
            if n >= keep and not self.pixel_ids[n][k] and pixel.place not in taken:
                taken.add(pixel.place)
                self.vectors[n, k] = pixel.embedding.to(self.vectors)
                self._note(n, k, [pixel])
        self.projected.fill_(final)
        if final:
            best = self.pixel_similarity[keep:, :, 0].nan_to_num(-1.0)
            active = best >= LEAST_SIMILARITY
            self.active[keep:] = active.scatter(1, best.argmax(dim=1, keepdim=True), True)

    @torch.no_grad()
    def note_examples(self, search: ExampleSearch, keep: int = 0) -> None:
        """Note the pixels of every class that a search with projected prototypes found.

        The first ``keep`` annotators keep their examples.
        """
        for n, row in enumerate(self.pixel_ids):
            for k, ids in enumerate(row):
                if n >= keep and ids:
                    self._note(n, k, search.examples(n, k), first=1)

    def forget_sources(self, keep: int = 0) -> None:
        """Forget all pixels but those of the first ``keep`` annotators, and unprune the others."""
        none: list[list[list[str]]] = [[[] for _ in row] for row in self.active[keep:]]
        self.pixel_ids = [*self.pixel_ids[:keep], *none]
        self.pixel_place[keep:] = -1
        self.pixel_label[keep:] = -1
        self.pixel_similarity[keep:] = float("nan")
        self.active[keep:] = True

    def _note(self, n: int, k: int, pixels: Sequence[Pixel], first: int = 0) -> None:
        """Note pixels of a prototype after the ``first`` that it has."""
        self.pixel_ids[n][k] = self.pixel_ids[n][k][:first] + [p.sample_id for p in pixels]
        rows = slice(first, first + len(pixels))
        for buffer, values in (
            (self.pixel_place, [(pixel.y, pixel.x) for pixel in pixels]),
            (self.pixel_label, [pixel.label for pixel in pixels]),
            (self.pixel_similarity, [pixel.similarity for pixel in pixels]),
        ):
            buffer[n, k, rows] = torch.tensor(values).to(buffer).view_as(buffer[n, k, rows])

    def sources(
        self, annotators: Sequence[str], classes: Sequence[str]
    ) -> tuple[tuple[PrototypeSource, ...], ...]:
        """The pixels of every prototype by name, ``[N][K]``."""
        return tuple(
            tuple(self._source(n, k, name, classes) for k in range(self.active.shape[1]))
            for n, name in enumerate(annotators)
        )

    def _source(self, n: int, k: int, annotator: str, classes: Sequence[str]) -> PrototypeSource:
        columns = (self.pixel_label[n, k], self.pixel_place[n, k], self.pixel_similarity[n, k])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        pixels = [
            Example(classes[label], name, y, x, similarity)
            for name, (label, (y, x), similarity) in zip(self.pixel_ids[n][k], rows, strict=False)
        ]
        return PrototypeSource(
            annotator=annotator,
            kernel=k,
            active=bool(self.active[n, k]),
            taken_from=pixels[0] if pixels else None,
            examples=tuple(sorted(pixels[1:], key=lambda pixel: -pixel.similarity)),
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Sample ids: strings, which buffers cannot hold but ``weights_only=True`` can load."""
        return {"pixel_ids": self.pixel_ids}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.pixel_ids = state["pixel_ids"]


class Pixel(NamedTuple):
    """A training pixel that a prototype resembles."""

    similarity: float  # cosine with the prototype
    sample_id: str
    y: int  # row in the evaluation-transformed image
    x: int  # column
    label: int  # class id that the prototype's annotator gave there
    preferred: bool = False  # whether it comes before pixels of a larger cosine
    embedding: Tensor = torch.zeros(0)  # ``[E]``, unit length, where it is needed

    @property
    def place(self) -> tuple[str, int, int]:
        """Image, row and column: what makes two pixels the same."""
        return self.sample_id, self.y, self.x


class PixelSearch:
    """Looks through training images for the pixels that prototypes resemble most.

    Holds the few best of each kind, each from another image, so its memory does not grow with the
    number of images. Searches over parts of the data, such as one in each process, add up with
    :meth:`merge`; the order of images and of parts does not matter.
    """

    count: int  # of pixels that are kept

    def __init__(self) -> None:
        self.best: dict[tuple[int, ...], list[Pixel]] = {}

    def merge(self, other: PixelSearch) -> None:
        """Take over what a search over other images found."""
        for kind, pixels in other.best.items():
            self._add(kind, pixels)

    def _add(self, kind: tuple[int, ...], pixels: Sequence[Pixel]) -> None:
        """Keep the best pixel of each image, of the best images; ties break by name."""
        first: dict[str, Pixel] = {}
        known = [*self.best.get(kind, []), *pixels]
        for pixel in sorted(known, key=lambda p: (not p.preferred, -p.similarity, p.place)):
            first.setdefault(pixel.sample_id, pixel)
        self.best[kind] = list(first.values())[: self.count]


class SourceSearch(PixelSearch):
    """Looks for the pixels that each prototype (n, k) may be moved onto."""

    count = CANDIDATES

    def update(
        self,
        similarity: Tensor,
        eligible: Tensor,
        preferred: Tensor,
        labels: Tensor,
        embedding: Tensor,
        ids: Sequence[str],
    ) -> None:
        """Consider the images of one batch, with cosines ``[B, N, K, H, W]``.

        ``eligible``, of the same shape, are the pixels that may become the source of (n, k), and
        ``preferred``, broadcastable to it, those that come before any other.
        """
        rank = similarity + 4.0 * preferred  # cosines differ by 2 at most
        for b, n, k, _, y, x in _largest(rank, eligible):
            value, label = float(similarity[b, n, k, y, x]), int(labels[b, n, y, x])
            first = bool(preferred.expand_as(rank)[b, n, k, y, x])
            # A copy: a view would keep the whole batch in memory, and send it to other processes.
            vector = full_precision(embedding[b, :, y, x]).cpu().clone()
            self._add((n, k), [Pixel(value, ids[b], y, x, label, first, vector)])

    def pairs(self) -> list[tuple[int, int, Pixel]]:
        """Annotator, kernel and a pixel found for it: all of them, the best pair first."""
        found = [(n, k, pixel) for (n, k), pixels in self.best.items() for pixel in pixels]
        return sorted(found, key=lambda p: (not p[2].preferred, -p[2].similarity, p[0], p[1]))


class ExampleSearch(PixelSearch):
    """Looks for the pixels of every class c that each prototype (n, k) resembles most."""

    count = EXAMPLES

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def update(
        self, similarity: Tensor, eligible: Tensor, labels: Tensor, ids: Sequence[str]
    ) -> None:
        """Consider the images of one batch; arguments as of :meth:`SourceSearch.update`."""
        for c in range(self.classes):
            of_class = eligible & (labels == c).unsqueeze(2)
            for b, n, k, value, y, x in _largest(similarity, of_class):
                self._add((n, k, c), [Pixel(value, ids[b], y, x, c)])

    def examples(self, n: int, k: int) -> list[Pixel]:
        """The pixels that prototype (n, k) resembles most, class by class."""
        return [pixel for c in range(self.classes) for pixel in self.best.get((n, k, c), [])]


def _largest(values: Tensor, eligible: Tensor) -> Iterator[tuple[int, int, int, float, int, int]]:
    """Of each image, annotator and kernel the largest eligible value, and its row and column."""
    largest = values.masked_fill(~eligible, -torch.inf).flatten(3).max(dim=3)
    highest, index = (part.cpu() for part in largest)
    for b, n, k in highest.isfinite().nonzero().tolist():
        y, x = divmod(int(index[b, n, k]), values.shape[-1])
        yield b, n, k, float(highest[b, n, k]), y, x
