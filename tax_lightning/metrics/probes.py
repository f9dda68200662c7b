"""Tests of the explanation that need further passes of the model; floats, NaN without a case.

- ``output_of``: a function from images ``[B, ch, H, W]`` to the network's output, in evaluation
  mode; what says who and why is enough of an output, and comes sooner. Gradients are off here.
- ``sources``: the provenance of each prototype ``[N][K]``; those that are pruned or have never been
  projected are left out.
- ``read``: gives an image ``[ch, H, W]`` by its id, after the evaluation transform.
- ``images``: ``[B, ch, H, W]``, after the same transform, best none of the sources themselves.

A ValueError says which argument does not fit, or which source lies outside its image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics.inputs import check_count, check_inputs

if TYPE_CHECKING:
    from tax_lightning.models.output import TAXOutput, TAXWeights

OutputOf = Callable[[Tensor], "TAXOutput | TAXWeights"]
Sources = Sequence[Sequence[PrototypeSource]]
Read = Callable[[str], Tensor]

_NOISE, _CLIP = 0.2, 0.25  # standard deviation and largest absolute value, in normalised images


@torch.no_grad()
def prototype_integrity(
    output_of: OutputOf, sources: Sources, unit_vectors: Tensor, read: Read
) -> dict[str, float]:
    """Cosine between prototypes ``[N, K, D]`` and their source pixels, read and encoded again.

    Returns ``integrity_min`` and ``integrity_mean`` in [-1, 1]; 1 where the pictures shown as
    reasons are what the model compares with.

    Example:
        >>> from types import SimpleNamespace
        >>> source = PrototypeSource("Ana", 0, "a", 0, 1, 1.0, "cell", True, ())
        >>> model = lambda images: SimpleNamespace(embedding=images)  # an image is its embedding
        >>> image = torch.tensor([[[1.0, 0.6]], [[0.0, 0.8]]])  # D = 2, one row of 2 pixels
        >>> prototype_integrity(model, [[source]], torch.tensor([[[0.6, 0.8]]]), lambda id: image)
        {'integrity_min': 1.0, 'integrity_mean': 1.0}
    """
    lengths = [len(row) for row in sources]
    if lengths != [unit_vectors.shape[1]] * len(unit_vectors):
        raise ValueError(
            f"`sources` has rows of length {lengths}, expected as many as `unit_vectors`, of shape "
            f"{list(unit_vectors.shape)}; take both from the same model."
        )
    cosines = []
    for sample_id, places in _by_image(sources).items():
        image = read(sample_id)
        embedding = output_of(image.unsqueeze(0)).embedding[0].float()
        for (n, k), source in places.items():
            _check_inside(source, image)
            prototype = unit_vectors[n, k].to(embedding)
            cosines.append(F.cosine_similarity(embedding[:, source.y, source.x], prototype, dim=0))
    cosine = torch.stack(cosines) if cosines else torch.tensor([math.nan])
    return {"integrity_min": float(cosine.min()), "integrity_mean": float(cosine.mean())}


@torch.no_grad()
def patch_insertion(
    output_of: OutputOf,
    sources: Sources,
    read: Read,
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

    Returns for each size in pixels ``insertion_<size>`` and its control ``insertion_<size>_random``
    in [0, 1]; NaN where no patch of that size fits both a source image and ``images``. It takes
    ``2 * len(sizes)`` passes of ``images`` a prototype.

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
    return {key: float(torch.cat(wins[key]).mean()) if wins[key] else math.nan for key in keys}


@torch.no_grad()
def prototype_insertion(
    output_of: OutputOf, sources: Sources, read: Read, images: Tensor, size: int = 48
) -> dict[tuple[int, int], float]:
    """In which share of the images each prototype wins, by annotator index and kernel.

    As :func:`patch_insertion` of one size, without its control: one pass of ``images`` a prototype.
    Prototypes whose patch does not fit are left out.
    """
    found = _insertions(output_of, sources, read, images, [size], seed=0, control=False)
    return {place: float(won.mean()) for place, _, won in found}


@torch.no_grad()
def stability(output_of: OutputOf, images: Tensor, seed: int = 0) -> dict[str, float]:
    """Does the explanation stay the same under noise that nobody would see?

    Gaussian noise of standard deviation 0.2, clipped at 0.25, is added to the normalised images. In
    the control the noisy output is compared with the clean one of another image of the batch.

    Returns over all pixels, in [0, 1]: ``stability_top_kernel``, the share of pixels where the
    kernel with the largest weight a_nk stays the same; ``stability_who_distance``, the mean total
    variation between the weights of annotators (0 is best); ``stability_who_iou``, the IoU of the
    pixels where an annotator has the largest weight, averaged over the annotators who have any. The
    same with ``_shuffled`` for the control, NaN for a batch of one image.

    Source:
        Q. Huang et al., "Evaluation and Improvement of Interpretability for Self-Explainable
        Part-Prototype Networks", 2023, has the same noise.
    """
    check_inputs(("images", images, "BDHW"))
    generator = torch.Generator().manual_seed(seed)
    added = (_NOISE * torch.randn(images.shape, generator=generator)).clamp(-_CLIP, _CLIP)
    clean, noisy = output_of(images), output_of(images + added.to(images))
    who, noisy_who = clean.log_who.exp(), noisy.log_who.exp()
    top, noisy_top = _assignment(clean).argmax(1), _assignment(noisy).argmax(1)
    own = _sameness(who, top, noisy_who, noisy_top)
    other = dict.fromkeys(own, math.nan)
    if len(images) > 1:
        other = _sameness(who, top, noisy_who.roll(1, 0), noisy_top.roll(1, 0))
    return own | {f"{name}_shuffled": value for name, value in other.items()}


def _sameness(who: Tensor, top: Tensor, other_who: Tensor, other_top: Tensor) -> dict[str, float]:
    """Compare weights ``[B, N, H, W]`` and top kernels ``[B, H, W]`` of two outputs."""
    annotators = torch.arange(who.shape[1], device=who.device).view(-1, 1, 1)
    leads, other_leads = (w.argmax(1, keepdim=True) == annotators for w in (who, other_who))
    both, either = (leads & other_leads).sum((0, 2, 3)), (leads | other_leads).sum((0, 2, 3))
    return {
        "stability_top_kernel": float((top == other_top).float().mean()),
        "stability_who_distance": float((who - other_who).abs().sum(1).mean() / 2),
        "stability_who_iou": float((both / either).nanmean()),  # NaN: has the largest in neither
    }


def _assignment(output: TAXOutput | TAXWeights) -> Tensor:
    """Logarithm of the weight of each kernel, log a_nk ``[B, N * K, H, W]``."""
    return (output.log_who.unsqueeze(2) + output.log_within).flatten(1, 2)


def _check_inside(source: PrototypeSource, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if not (0 <= source.y < height and 0 <= source.x < width):
        raise ValueError(
            f"the source of prototype {source.kernel} of {source.annotator!r} is pixel "
            f"({source.y}, {source.x}) of {source.sample_id!r}, which has {height} x {width} "
            "pixels; `read` must apply the transform that the prototypes were projected with."
        )


def _by_image(sources: Sources) -> dict[str, dict[tuple[int, int], PrototypeSource]]:
    """The prototypes that stand for a training pixel, by image, then by annotator and kernel."""
    found: dict[str, dict[tuple[int, int], PrototypeSource]] = defaultdict(dict)
    for n, row in enumerate(sources):
        for k, source in enumerate(row):
            if source.active and source.projected:
                found[source.sample_id][n, k] = source
    return found


def _insertions(
    output_of: OutputOf,
    sources: Sources,
    read: Read,
    images: Tensor,
    sizes: Sequence[int],
    seed: int,
    control: bool,
) -> Iterator[tuple[tuple[int, int], str, Tensor]]:
    """Annotator and kernel, what was pasted, and in which images (n, k) won there ``[B]``."""
    check_inputs(("images", images, "BDHW"))
    check_count("sizes", min(sizes))
    generator = torch.Generator().manual_seed(seed)
    for sample_id, places in _by_image(sources).items():
        image = read(sample_id).to(images)
        check_inputs(("images", images, "BDHW"), (f"read({sample_id!r})", image, "Dhw"))
        for (n, k), source in places.items():
            _check_inside(source, image)
            for size in sizes:
                if size > min(*image.shape[-2:], *images.shape[-2:]):
                    continue
                top = max(0, min(source.y - size // 2, image.shape[-2] - size))
                left = max(0, min(source.x - size // 2, image.shape[-1] - size))
                corners = {f"insertion_{size}": (top, left)}
                random = _random_corner(image, size, generator)
                if control:
                    corners[f"insertion_{size}_random"] = random
                targets = [_random_corner(images, size, generator) for _ in images]
                y = torch.tensor([target[0] + source.y - top for target in targets])
                x = torch.tensor([target[1] + source.x - left for target in targets])
                for key, (row, column) in corners.items():
                    patch = image[:, row : row + size, column : column + size]
                    output = output_of(_pasted(images, targets, patch))
                    top_kernel = _assignment(output)[torch.arange(len(y)), :, y, x].argmax(1)
                    won = top_kernel == n * output.log_within.shape[2] + k
                    yield (n, k), key, won.float().cpu()


def _random_corner(image: Tensor, size: int, generator: torch.Generator) -> tuple[int, int]:
    """Top left corner of a patch anywhere in an image."""
    height, width = image.shape[-2:]
    top = torch.randint(height - size + 1, (), generator=generator)
    left = torch.randint(width - size + 1, (), generator=generator)
    return int(top), int(left)


def _pasted(images: Tensor, targets: Sequence[tuple[int, int]], patch: Tensor) -> Tensor:
    """Copies of images ``[B, ch, H, W]`` with the patch at a target in each."""
    pasted, size = images.clone(), patch.shape[-1]
    for image, (y, x) in zip(pasted, targets, strict=True):
        image[:, y : y + size, x : x + size] = patch
    return pasted
