"""Tests of the explanation that need further passes of the model; floats, NaN without a case.

- ``weights_of``: a function from images ``[B, ch, H, W]`` to who and why, in evaluation mode.
  Gradients are off here.
- ``sources``: the provenance of each prototype ``[N][K]``; those that are pruned or have never been
  projected are left out.
- ``read``: gives an image ``[ch, H, W]`` by its id, after the evaluation transform.
- ``images``: ``[B, ch, H, W]``, after the same transform, best none of the sources themselves.

A ValueError says which argument does not fit, or which source lies outside its image.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.metrics.inputs import check_count, check_inputs
from tax_lightning.models.output import TAXWeights

WeightsOf = Callable[[Tensor], TAXWeights]
Sources = Sequence[Sequence[PrototypeSource]]
Read = Callable[[str], Tensor]


@torch.no_grad()
def prototype_integrity(
    weights_of: WeightsOf, sources: Sources, unit_vectors: Tensor, read: Read
) -> dict[str, float]:
    """Cosine between prototypes ``[N, K, D]`` and their source pixels, read and encoded again.

    Returns ``integrity_min`` and ``integrity_mean`` in [-1, 1]; 1 where the pictures shown as
    reasons are what the model compares with.
    """
    lengths = [len(row) for row in sources]
    if lengths != [unit_vectors.shape[1]] * len(unit_vectors):
        raise ValueError(
            f"`sources` has rows of length {lengths}, expected as many as `unit_vectors`, of shape "
            f"{list(unit_vectors.shape)}; take both from the same model."
        )
    cosines = []
    for image, places in _source_images(sources, read):
        embedding = weights_of(image.unsqueeze(0)).embedding[0].float()
        for (n, k), source in places.items():
            prototype = unit_vectors[n, k].to(embedding)
            cosines.append(F.cosine_similarity(embedding[:, source.y, source.x], prototype, dim=0))
    cosine = torch.stack(cosines) if cosines else torch.tensor([math.nan])
    return {"integrity_min": float(cosine.min()), "integrity_mean": float(cosine.mean())}


@torch.no_grad()
def patch_insertion(
    weights_of: WeightsOf,
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
    """
    check_inputs(("images", images, "BDHW"))
    check_count("sizes", min(sizes))
    generator = torch.Generator().manual_seed(seed)
    wins: dict[str, list[Tensor]] = {
        f"insertion_{size}{kind}": [] for size in sizes for kind in ("", "_random")
    }
    for image, places in _source_images(sources, lambda sample_id: read(sample_id).to(images)):
        check_inputs(("images", images, "BDHW"), ("read(...)", image, "Dhw"))
        for (n, k), source in places.items():
            for size in sizes:
                if size > min(*image.shape[-2:], *images.shape[-2:]):
                    continue
                top = max(0, min(source.y - size // 2, image.shape[-2] - size))
                left = max(0, min(source.x - size // 2, image.shape[-1] - size))
                random = _random_corner(image, size, generator)
                targets = [_random_corner(images, size, generator) for _ in images]
                y = torch.tensor([target[0] + source.y - top for target in targets])
                x = torch.tensor([target[1] + source.x - left for target in targets])
                for kind, (row, column) in {"": (top, left), "_random": random}.items():
                    patch = image[:, row : row + size, column : column + size]
                    weights = weights_of(_pasted(images, targets, patch))
                    log_a = (weights.log_who.unsqueeze(2) + weights.within.log()).flatten(1, 2)
                    top_kernel = log_a[torch.arange(len(y)), :, y, x].argmax(1)
                    won = top_kernel == n * weights.within.shape[2] + k
                    wins[f"insertion_{size}{kind}"].append(won.float())
    return {key: float(torch.cat(won).mean()) if won else math.nan for key, won in wins.items()}


def _source_images(
    sources: Sources, read: Read
) -> Iterator[tuple[Tensor, dict[tuple[int, int], Example]]]:
    """Each training image, and the pixels of the prototypes taken from it."""
    found: dict[str, dict[tuple[int, int], Example]] = defaultdict(dict)
    for n, row in enumerate(sources):
        for k, source in enumerate(row):
            if source.active and source.taken_from is not None:
                found[source.taken_from.sample_id][n, k] = source.taken_from
    for sample_id, places in found.items():
        image = read(sample_id)
        height, width = image.shape[-2:]
        for (n, k), pixel in places.items():
            if not (0 <= pixel.y < height and 0 <= pixel.x < width):
                raise ValueError(
                    f"the source of prototype {k} of {sources[n][k].annotator!r} is pixel "
                    f"({pixel.y}, {pixel.x}) of {sample_id!r}, which has {height} x {width} "
                    "pixels; `read` must apply the transform that the prototypes were projected "
                    "with."
                )
        yield image, places


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
