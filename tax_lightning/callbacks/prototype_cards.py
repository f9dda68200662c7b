"""The training pixels behind the prototypes of a running trainer: patches and cards."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tax_lightning.callbacks.samples import explained, picture_of, training_images
from tax_lightning.explanation import Explanation, PrototypeSource
from tax_lightning.visualization.annotations import (
    SourcePatch,
    find_callouts,
    patch_side,
    read_source_patches,
    region_around,
)
from tax_lightning.visualization.gallery import SHOWN_NEAREST, PrototypeCard
from tax_lightning.visualization.palette import Picture, annotator_palette

_KEPT = 256  # pixels a side, at most, of a whole image on a card

_Place: TypeAlias = tuple[int, int]  # annotator and kernel
_Key = TypeVar("_Key", bound=Hashable)


def callout_patches(
    trainer: L.Trainer, explanations: Sequence[Explanation]
) -> dict[_Place, SourcePatch]:
    """The training patches that the explanations' panels will show."""
    sources = {
        (callout.annotator, callout.kernel): explanation.sources[callout.annotator][callout.kernel]
        for explanation in explanations
        for callout in find_callouts(explanation)
    }
    found = _training_patches(trainer, sources)
    return {place: patch for *_, patches in found for place, patch in patches.items()}


def prototype_cards(
    trainer: L.Trainer, explanations: Sequence[Explanation], images: Sequence[Tensor]
) -> list[PrototypeCard]:
    """A card for every prototype, with what was measured of it.

    Args:
        trainer: of the run, with its module in evaluation mode and gradients off.
        explanations: of some images, in which the pixels that each prototype decides are counted.
        images: ``[ch, H, W]`` each, into which patches are pasted; best not of the training set.

    Returns:
        The cards in the order of annotators and kernels; none before a projection.
    """
    rows = explanations[0].sources if explanations else ()
    if not any(source.projected for row in rows for source in row):
        return []
    use = _use(explanations)
    cards = {
        (n, k): PrototypeCard(source, colour, None if use is None else float(use[n, k]))
        for n, (row, colour) in enumerate(zip(rows, annotator_palette(len(rows)), strict=True))
        for k, source in enumerate(row)
    }
    pixels = {
        (place, rank): pixel
        for place, card in cards.items()
        for rank, pixel in enumerate(_source_and_nearest(card.source))
    }
    patches: dict[tuple[_Place, int], SourcePatch] = {}
    for sample_id, image, picture, found in _training_patches(trainer, pixels):
        patches |= found
        places = [place for place, rank in found if rank == 0]
        if not places:
            continue
        explanation = explained(trainer, image, sample_id)
        for place in places:
            card, patch = cards[place], found[place, 0]
            source, (height, width) = card.source, patch.image.shape[:2]
            region = region_around(explanation, source.kernel, source.y, source.x, place[0])
            top, left = source.y - patch.y, source.x - patch.x
            cards[place] = replace(
                card,
                patch=patch,
                region=region[top : top + height, left : left + width],
                image=_small(picture),
                size=picture.shape[:2],
            )
    ranks = range(1, 1 + SHOWN_NEAREST)
    return [
        replace(card, nearest=tuple(patches.get((p, r)) for r in ranks if (p, r) in pixels))
        for p, card in cards.items()
    ]


def _use(explanations: Sequence[Explanation]) -> Tensor | None:
    """Share of the decided pixels ``[N, K]`` that each prototype decides; none without any."""
    n, k = len(explanations[0].annotators), explanations[0].kernels
    places = [(e.leader * k + e.leader_kernel)[~e.unanimous] for e in explanations]
    pixels = torch.cat(places).bincount(minlength=n * k).view(n, k)
    return pixels / pixels.sum() if pixels.any() else None


def _source_and_nearest(source: PrototypeSource) -> list[PrototypeSource]:
    """The pixels that a card shows; none before a projection."""
    if not source.projected:
        return []
    nearest = source.nearest[:SHOWN_NEAREST]
    return [source, *(replace(source, sample_id=name, y=y, x=x) for name, y, x, _ in nearest)]


def _training_patches(
    trainer: L.Trainer, pixels: Mapping[_Key, PrototypeSource]
) -> Iterator[tuple[str, Tensor, Picture, dict[_Key, SourcePatch]]]:
    """Training images one at a time, each with the patches around some of its pixels."""
    by_image: dict[str, dict[_Key, PrototypeSource]] = defaultdict(dict)
    for key, pixel in pixels.items():
        if pixel.projected:
            by_image[pixel.sample_id][key] = pixel
    for sample_id, image in training_images(trainer, by_image):
        picture, (height, width) = picture_of(trainer, image), image.shape[-2:]
        # An image that is cut or scaled at random may not have the pixel.
        here = {k: p for k, p in by_image[sample_id].items() if p.y < height and p.x < width}
        side = patch_side(height, width)
        yield sample_id, image, picture, read_source_patches(lambda _: picture, here, side)  # noqa: B023


def _small(picture: Picture) -> Picture:
    """A copy no larger than a card needs, so that the cards do not hold many large images."""
    image = Image.fromarray(picture)
    image.thumbnail((_KEPT, _KEPT), Image.Resampling.BOX)
    return np.asarray(image)
