"""Tests of the explanation that need further passes of the model.

Each takes ``output_of``, a function from images ``[B, ch, H, W]`` to the network's output, which
puts the model in evaluation mode and moves the images to its device; gradients are off here. What
says who and why is enough of an output, and comes sooner. Each returns a dict of floats, NaN
without a case.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics.inputs import check_inputs

if TYPE_CHECKING:
    from tax_lightning.models.output import TAXOutput, TAXWeights

OutputOf = Callable[[Tensor], "TAXOutput | TAXWeights"]


def source_integrity(embeddings_at_sources: Tensor, prototypes: Tensor) -> dict[str, float]:
    """Cosine between prototypes and the pixels that they are said to be taken from.

    Args:
        embeddings_at_sources: Embedding of each prototype's source pixel, encoded anew ``[M, D]``.
        prototypes: The prototypes, in the same order ``[M, D]``.

    Returns:
        ``integrity_min`` and ``integrity_mean`` in [-1, 1]; 1 where the pictures shown as reasons
        are what the model compares with. NaN without a prototype.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> result = source_integrity(torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        >>> {name: round(value, 3) for name, value in result.items()}
        {'integrity_min': 0.8, 'integrity_mean': 0.9}
    """
    check_inputs(
        ("embeddings_at_sources", embeddings_at_sources, "MD"), ("prototypes", prototypes, "MD")
    )
    if not len(prototypes):
        return {"integrity_min": math.nan, "integrity_mean": math.nan}
    cosine = F.cosine_similarity(embeddings_at_sources.float(), prototypes.float(), dim=1)
    return {"integrity_min": float(cosine.min()), "integrity_mean": float(cosine.mean())}


@torch.no_grad()
def prototype_integrity(
    output_of: OutputOf,
    sources: Sequence[Sequence[PrototypeSource]],
    unit_vectors: Tensor,
    read: Callable[[str], Tensor],
) -> dict[str, float]:
    """Read the source images again, encode them, and compare with the prototypes.

    Prototypes that are pruned or have never been projected are left out. Each image is read and
    encoded once.

    Args:
        output_of: The model, images ``[1, ch, H, W]`` to its output.
        sources: Provenance of each prototype ``[N][K]``, such as ``explanation.sources``.
        unit_vectors: The prototypes ``[N, K, D]``.
        read: Gives an image ``[ch, H, W]`` by its id, after the evaluation transform.

    Returns:
        ``integrity_min`` and ``integrity_mean``; see :func:`source_integrity`.

    Raises:
        ValueError: If ``sources`` and ``unit_vectors`` do not fit, or a source lies outside its
            image.

    Example:
        >>> from types import SimpleNamespace
        >>> source = PrototypeSource("Ana", 0, "a", 0, 1, 1.0, "cell", True, ())
        >>> model = lambda images: SimpleNamespace(embedding=images)  # an image is its embedding
        >>> image = torch.tensor([[[1.0, 0.6]], [[0.0, 0.8]]])  # D = 2, one row of 2 pixels
        >>> prototype_integrity(model, [[source]], torch.tensor([[[0.6, 0.8]]]), lambda id: image)
        {'integrity_min': 1.0, 'integrity_mean': 1.0}
    """
    check_inputs(("unit_vectors", unit_vectors, "NKD"))
    _check_sources(sources, unit_vectors.shape[0], unit_vectors.shape[1])
    found, prototypes = [], []
    for sample_id, places in _by_image(sources).items():
        image = read(sample_id)
        embedding = output_of(image.unsqueeze(0)).embedding[0]
        for (n, k), source in places.items():
            _check_inside(source, image)
            found.append(embedding[:, source.y, source.x])
            prototypes.append(unit_vectors[n, k].to(embedding.device))
    empty = unit_vectors.new_zeros(0, unit_vectors.shape[2])
    return source_integrity(
        torch.stack(found) if found else empty, torch.stack(prototypes) if prototypes else empty
    )


@torch.no_grad()
def patch_insertion(
    output_of: OutputOf,
    sources: Sequence[Sequence[PrototypeSource]],
    read: Callable[[str], Tensor],
    images: Tensor,
    sizes: Sequence[int] = (16, 32, 64),
    seed: int = 0,
) -> dict[str, float]:
    """Does a prototype win where its source patch is pasted into other images?

    The patch around the source pixel, moved inside at the border of its image, is pasted at a
    random place of each image. Prototype (n, k) wins if a_nk is the largest of all N * K weights
    at the pixel where its source pixel has come to lie. In the control, a patch cut at a random
    place of the same source image is pasted at the same place. A low score at a small size says
    that so small a crop does not carry the reason by itself: the model also sees around it.

    It takes ``2 * len(sizes)`` passes of ``images`` a prototype. Prototypes that are pruned or have
    never been projected are left out.

    Args:
        output_of: The model, images ``[B, ch, H, W]`` to its output.
        sources: Provenance of each prototype ``[N][K]``, such as ``explanation.sources``.
        read: Gives an image ``[ch, H, W]`` by its id, after the evaluation transform.
        images: The images that patches are pasted into ``[B, ch, H, W]``, after the same transform;
            best none of the sources themselves.
        sizes: Sides of the patches in pixels.
        seed: Makes the places reproducible.

    Returns:
        For each size ``insertion_<size>`` and ``insertion_<size>_random`` in [0, 1]; NaN where no
        patch of that size fits both a source image and ``images``.

    Raises:
        ValueError: If a size is below 1, shapes do not fit, or a source lies outside its image.

    Example:
        >>> from types import SimpleNamespace
        >>> def model(images):  # kernel 0 for dark pixels, kernel 1 for bright ones
        ...     within = torch.cat([1 - images, images], dim=1).unsqueeze(1)
        ...     return SimpleNamespace(log_who=torch.zeros_like(images), log_within=within.log())
        >>> dark = PrototypeSource("Ana", 0, "a", 0, 0, 1.0, "background", False, ())  # pruned
        >>> bright = PrototypeSource("Ana", 1, "a", 2, 2, 1.0, "cell", True, ())
        >>> image = torch.zeros(1, 8, 8)
        >>> image[:, 1:4, 1:4] = 1
        >>> others = torch.zeros(3, 1, 8, 8)
        >>> patch_insertion(model, [[dark, bright]], lambda id: image, others, sizes=(2,))
        {'insertion_2': 1.0, 'insertion_2_random': 0.0}
    """
    wins: dict[str, list[Tensor]] = defaultdict(list)
    for _, key, won in _insertions(output_of, sources, read, images, sizes, seed, control=True):
        wins[key].append(won)
    keys = [f"insertion_{size}{kind}" for size in sizes for kind in ("", "_random")]
    return {key: _mean(wins[key]) for key in keys}


@torch.no_grad()
def prototype_insertion(
    output_of: OutputOf,
    sources: Sequence[Sequence[PrototypeSource]],
    read: Callable[[str], Tensor],
    images: Tensor,
    size: int = 48,
    seed: int = 0,
) -> dict[tuple[int, int], float]:
    """In how many images each prototype wins where its source patch is pasted.

    See :func:`patch_insertion`, whose control it goes without: one pass of ``images`` a prototype.

    Args:
        output_of: The model, images ``[B, ch, H, W]`` to its output.
        sources: Provenance of each prototype ``[N][K]``, such as ``explanation.sources``.
        read: Gives an image ``[ch, H, W]`` by its id, after the evaluation transform.
        images: The images that patches are pasted into ``[B, ch, H, W]``.
        size: Side of the patches in pixels.
        seed: Makes the places reproducible.

    Returns:
        Share of the images in [0, 1] by annotator index and kernel. Prototypes that are pruned, have
        never been projected or whose patch does not fit are left out.

    Raises:
        ValueError: If the size is below 1, shapes do not fit, or a source lies outside its image.

    Example:
        >>> from types import SimpleNamespace
        >>> def model(images):  # kernel 0 for dark pixels, kernel 1 for bright ones
        ...     within = torch.cat([1 - images, images], dim=1).unsqueeze(1)
        ...     return SimpleNamespace(log_who=torch.zeros_like(images), log_within=within.log())
        >>> places = (PrototypeSource("Ana", k, "a", 0, k, 1.0, "cell", True, ()) for k in (0, 1))
        >>> image = torch.tensor([[[0.0, 0.4], [0.0, 0.0]]])
        >>> prototype_insertion(model, [[*places]], lambda id: image, torch.ones(1, 1, 4, 4), 2)
        {(0, 0): 1.0, (0, 1): 0.0}
    """
    found = _insertions(output_of, sources, read, images, [size], seed, control=False)
    return {place: _mean([won]) for place, _, won in found}


@torch.no_grad()
def stability(
    output_of: OutputOf, images: Tensor, noise: float = 0.2, clip: float = 0.25, seed: int = 0
) -> dict[str, float]:
    """Does the explanation stay the same under noise that nobody would see?

    Seeded Gaussian noise, clipped, is added to the normalised images. In the control the noisy
    output is compared with the clean one of another image of the batch.

    Args:
        output_of: The model, images ``[B, ch, H, W]`` to its output.
        images: Normalised images ``[B, ch, H, W]``.
        noise: Standard deviation of the noise, at least 0.
        clip: Largest absolute value of the noise, at least 0.
        seed: Makes the noise reproducible.

    Returns:
        Over all pixels of the batch: ``stability_top_kernel``, the share of pixels where the kernel
        with the largest weight a_nk stays the same; ``stability_who_distance``, the mean total
        variation between the weights of annotators, half the sum of absolute differences (0 is
        best); ``stability_who_iou``, the intersection over union of the pixels that an annotator
        leads, averaged over the annotators that lead anywhere. All in [0, 1], and the same with
        ``_shuffled`` for the control, which is NaN for a batch of one image.

    Raises:
        ValueError: If ``images`` has not four dimensions, or ``noise`` or ``clip`` is below 0.

    Example:
        >>> from types import SimpleNamespace
        >>> def model(images):  # bright pixels are Ana's, dark ones Ben's
        ...     who = images.sigmoid()
        ...     log_who = torch.cat([who, 1 - who], dim=1).log()
        ...     return SimpleNamespace(log_who=log_who, log_within=torch.zeros(2, 2, 1, 4, 4))
        >>> images = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
        >>> result = stability(model, images)
        >>> result["stability_top_kernel"], result["stability_top_kernel_shuffled"]
        (1.0, 0.0)

    Source:
        The stability score of Q. Huang and others, "Evaluation and Improvement of Interpretability
        for Self-Explainable Part-Prototype Networks", arXiv 2212.05946, has the same noise.
    """
    check_inputs(("images", images, "BDHW"))
    if noise < 0 or clip < 0:
        raise ValueError(f"`noise` is {noise} and `clip` is {clip}, expected at least 0 each.")
    generator = torch.Generator().manual_seed(seed)
    added = (noise * torch.randn(images.shape, generator=generator)).clamp(-clip, clip)
    clean, noisy = output_of(images), output_of(images + added.to(images))
    who = clean.log_who.exp(), noisy.log_who.exp()
    top = _assignment(clean).argmax(1), _assignment(noisy).argmax(1)
    own = _sameness(who[0], top[0], who[1], top[1])
    if len(images) > 1:
        other = _sameness(who[0], top[0], who[1].roll(1, 0), top[1].roll(1, 0))
    else:
        other = dict.fromkeys(own, math.nan)
    return own | {f"{name}_shuffled": value for name, value in other.items()}


def _sameness(who: Tensor, top: Tensor, other_who: Tensor, other_top: Tensor) -> dict[str, float]:
    """Compare weights ``[B, N, H, W]`` and top kernels ``[B, H, W]`` of two outputs."""
    annotators = torch.arange(who.shape[1], device=who.device).view(-1, 1, 1)
    leads = who.argmax(1, keepdim=True) == annotators
    other_leads = other_who.argmax(1, keepdim=True) == annotators
    both, either = (leads & other_leads).sum((0, 2, 3)), (leads | other_leads).sum((0, 2, 3))
    return {
        "stability_top_kernel": float((top == other_top).float().mean()),
        "stability_who_distance": float((who - other_who).abs().sum(1).mean() / 2),
        "stability_who_iou": float((both / either).nanmean()),  # NaN for who leads in neither
    }


def _assignment(output: TAXOutput | TAXWeights) -> Tensor:
    """Logarithm of the weight of each kernel, log a_nk ``[B, N * K, H, W]``."""
    return (output.log_who.unsqueeze(2) + output.log_within).flatten(1, 2)


def _check_sources(
    sources: Sequence[Sequence[PrototypeSource]], annotators: int, kernels: int
) -> None:
    found = [len(row) for row in sources]
    if found != [kernels] * annotators:
        raise ValueError(
            f"`sources` has rows of length {found}, expected {annotators} rows of {kernels} for "
            "these `unit_vectors`; take both from the same model."
        )


def _check_inside(source: PrototypeSource, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if not (0 <= source.y < height and 0 <= source.x < width):
        raise ValueError(
            f"the source of prototype {source.kernel} of {source.annotator!r} is pixel "
            f"({source.y}, {source.x}) of {source.sample_id!r}, which has {height} x {width} "
            "pixels; `read` must apply the transform that the prototypes were projected with."
        )


def _by_image(
    sources: Sequence[Sequence[PrototypeSource]],
) -> Mapping[str, dict[tuple[int, int], PrototypeSource]]:
    """The prototypes that stand for a training pixel, by image, then by annotator and kernel."""
    found: dict[str, dict[tuple[int, int], PrototypeSource]] = defaultdict(dict)
    for n, row in enumerate(sources):
        for k, source in enumerate(row):
            if source.active and source.projected:
                found[source.sample_id][n, k] = source
    return found


def _insertions(
    output_of: OutputOf,
    sources: Sequence[Sequence[PrototypeSource]],
    read: Callable[[str], Tensor],
    images: Tensor,
    sizes: Sequence[int],
    seed: int,
    control: bool,
) -> Iterator[tuple[tuple[int, int], str, Tensor]]:
    """Annotator and kernel, what was pasted, and in which images (n, k) won there, bool ``[B]``."""
    check_inputs(("images", images, "BDHW"))
    if min(sizes, default=1) < 1:
        raise ValueError(f"`sizes` is {list(sizes)}, expected at least 1 each; pass pixels.")
    generator = torch.Generator().manual_seed(seed)
    for sample_id, places in _by_image(sources).items():
        image = read(sample_id).to(images)
        check_inputs(("images", images, "BDHW"), (f"read({sample_id!r})", image, "Dhw"))
        for (n, k), source in places.items():
            _check_inside(source, image)
            for size in sizes:
                if size > min(*image.shape[-2:], *images.shape[-2:]):
                    continue
                own, other = _corner(image, size, source), _random_corner(image, size, generator)
                targets = [_random_corner(images, size, generator) for _ in images]
                inside = source.y - own[0], source.x - own[1]
                cut_at = {f"insertion_{size}": own}
                if control:
                    cut_at[f"insertion_{size}_random"] = other
                for key, corner in cut_at.items():
                    pasted = _paste(images, _cut(image, corner, size), targets)
                    yield (n, k), key, _wins(output_of(pasted), n, k, targets, inside)


def _corner(image: Tensor, size: int, source: PrototypeSource) -> tuple[int, int]:
    """Top left corner of the patch around a source pixel, moved inside the image."""
    height, width = image.shape[-2:]
    top = max(0, min(source.y - size // 2, height - size))
    left = max(0, min(source.x - size // 2, width - size))
    return top, left


def _random_corner(image: Tensor, size: int, generator: torch.Generator) -> tuple[int, int]:
    """Top left corner of a patch anywhere in an image."""
    height, width = image.shape[-2:]
    top = torch.randint(height - size + 1, (), generator=generator)
    left = torch.randint(width - size + 1, (), generator=generator)
    return int(top), int(left)


def _cut(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """The patch ``[ch, size, size]`` of an image ``[ch, H, W]``."""
    top, left = corner
    return image[:, top : top + size, left : left + size]


def _paste(images: Tensor, patch: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
    """Copies of images ``[B, ch, H, W]`` with the patch at a corner of each."""
    size = patch.shape[-1]
    pasted = images.clone()
    for image, (top, left) in zip(pasted, corners, strict=True):
        image[:, top : top + size, left : left + size] = patch
    return pasted


def _wins(
    output: TAXOutput | TAXWeights,
    n: int,
    k: int,
    corners: Sequence[tuple[int, int]],
    inside: tuple[int, int],
) -> Tensor:
    """Whether kernel (n, k) has the largest weight at its place inside each patch, bool ``[B]``."""
    y = torch.tensor([top + inside[0] for top, _ in corners])
    x = torch.tensor([left + inside[1] for _, left in corners])
    weights = _assignment(output)
    top_kernel = weights[torch.arange(len(weights)), :, y, x].argmax(1)
    return (top_kernel == n * output.log_within.shape[2] + k).cpu()


def _mean(hits: Sequence[Tensor]) -> float:
    """Share of hits, NaN if there are none."""
    return float(torch.cat([*hits]).float().mean()) if hits else math.nan
