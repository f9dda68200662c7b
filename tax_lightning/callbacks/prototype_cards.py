"""The prototypes of a trained module as cards: what each was taken from, and how it is used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tax_lightning.callbacks.samples import explained, picture_of, training_images
from tax_lightning.explanation import Explanation, PrototypeSource
from tax_lightning.metrics.probes import prototype_insertion
from tax_lightning.models.network import TAXNetwork, TAXOutput
from tax_lightning.visualization.annotations import (
    SourcePatch,
    find_callouts,
    patch_side,
    read_source_patches,
    region_around,
)
from tax_lightning.visualization.gallery import SHOWN_NEAREST, PrototypeCard
from tax_lightning.visualization.palette import INK, Picture, annotator_palette

EVERYBODY = "all annotators"
"""Whose a prototype is in a bank that all share."""

_PASTED_INTO = 4  # images
_KEPT = 256  # pixels a side, at most, of a whole image on a card

_Place: TypeAlias = tuple[int, int]  # annotator and kernel
_Rows: TypeAlias = Sequence[Sequence[PrototypeSource]]


def prototype_cards(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    explanations: Sequence[Explanation],
    images: Sequence[Tensor],
) -> list[PrototypeCard]:
    """A card for every prototype, with what was measured of it.

    The training images behind the prototypes are read, one at a time, and explained; patches of
    them are pasted into ``images`` if the module has a network of ours whose annotators have banks
    of their own.

    Args:
        trainer: of the run.
        pl_module: in evaluation mode, gradients off.
        explanations: of some images, in which is counted how much each prototype decides.
        images: ``[ch, H, W]`` each, best none that prototypes are taken from.

    Returns:
        The cards in the order of annotators and kernels; none while nothing has been projected.
    """
    rows = explanations[0].sources if explanations else ()
    if not any(source.projected for row in rows for source in row):
        return []
    shared = _is_shared(rows)
    colours = [INK] if shared else annotator_palette(len(rows))
    use = _use(explanations, shared)
    cards = {
        (n, k): PrototypeCard(source, colours[n], use.get((n, k), 0.0) if use else None)
        for n, row in enumerate(_of_everybody(rows) if shared else rows)
        for k, source in enumerate(row)
    }
    crops: dict[tuple[_Place, int], SourcePatch] = {}
    points = _points(cards)
    for sample_id, image in training_images(trainer, pl_module, points):
        picture = picture_of(trainer, image)
        here = {key: at for key, at in points[sample_id].items() if _is_inside(at, image)}
        side = patch_side(*image.shape[-2:])
        crops |= read_source_patches(lambda _: picture, here, side)  # noqa: B023
        places = [place for place, rank in here if rank == 0]
        if not places:
            continue
        explanation = explained(trainer, pl_module, image, sample_id)
        wins = {} if shared else _insertion(trainer, pl_module, rows, places, image, images)
        for n, k in places:
            card = replace(cards[n, k], patch=crops[(n, k), 0], insertion=wins.get((n, k)))
            cards[n, k] = _with_image(card, explanation, picture, None if shared else n)
    return [replace(card, nearest=_nearest(place, card, crops)) for place, card in cards.items()]


def callout_patches(
    trainer: L.Trainer, pl_module: L.LightningModule, explanations: Sequence[Explanation]
) -> dict[tuple[int, int], SourcePatch]:
    """The training patches that the explanations' panels will show."""
    by_image: dict[str, dict[tuple[int, int], PrototypeSource]] = defaultdict(dict)
    for explanation in explanations:
        for callout in find_callouts(explanation):
            source = explanation.sources[callout.annotator][callout.kernel]
            if source.projected:
                by_image[source.sample_id][callout.annotator, callout.kernel] = source
    patches: dict[tuple[int, int], SourcePatch] = {}
    for sample_id, image in training_images(trainer, pl_module, by_image):
        picture = picture_of(trainer, image)
        side = patch_side(*image.shape[-2:])
        patches |= read_source_patches(lambda _: picture, by_image[sample_id], side)  # noqa: B023
    return patches


def _is_shared(rows: _Rows) -> bool:
    """Whether all annotators have the same prototypes: nobody's label is said then."""
    return any(source.projected and not source.label for row in rows for source in row)


def _of_everybody(rows: _Rows) -> _Rows:
    """The prototypes of a shared bank, once."""
    return [[replace(source, annotator=EVERYBODY) for source in rows[0]]]


def _use(explanations: Sequence[Explanation], shared: bool) -> dict[_Place, float]:
    """Share of the decided pixels that each prototype decides; nothing where none is decided."""
    pixels: Counter[_Place] = Counter()
    for explanation in explanations:
        decided = ~explanation.unanimous
        leader, kernel = explanation.leader[decided], explanation.leader_kernel[decided]
        pairs = torch.stack([leader * (not shared), kernel], dim=1)
        found, counts = pairs.unique(dim=0, return_counts=True)
        for (n, k), count in zip(found.tolist(), counts.tolist(), strict=True):
            pixels[n, k] += count
    return {place: count / pixels.total() for place, count in pixels.items()}


def _points(
    cards: dict[_Place, PrototypeCard],
) -> dict[str, dict[tuple[_Place, int], PrototypeSource]]:
    """By image the pixels to cut patches around: of rank 0 the source, then its nearest pixels."""
    points: dict[str, dict[tuple[_Place, int], PrototypeSource]] = defaultdict(dict)
    for place, card in cards.items():
        source = card.source
        if not source.projected:
            continue
        points[source.sample_id][place, 0] = source
        for rank, (sample_id, y, x, _) in enumerate(source.nearest[:SHOWN_NEAREST], start=1):
            moved = replace(source, sample_id=sample_id, y=y, x=x)
            points[sample_id][place, rank] = moved
    return points


def _with_image(
    card: PrototypeCard, explanation: Explanation, picture: Picture, annotator: int | None
) -> PrototypeCard:
    """The card with the image that its patch is cut from, and the region in the patch."""
    source, patch = card.source, card.patch
    assert patch is not None
    region = region_around(explanation, source.kernel, source.y, source.x, annotator)
    top, left = source.y - patch.y, source.x - patch.x
    height, width = patch.image.shape[:2]
    cut = region[top : top + height, left : left + width]
    return replace(card, region=cut, image=_small(picture), size=picture.shape[:2])


def _is_inside(source: PrototypeSource, image: Tensor) -> bool:
    """Whether an image has the pixel; one that is cut or scaled at random may not."""
    height, width = image.shape[-2:]
    return source.y < height and source.x < width


def _nearest(
    place: _Place, card: PrototypeCard, crops: dict[tuple[_Place, int], SourcePatch]
) -> tuple[SourcePatch | None, ...]:
    shown = range(1, 1 + len(card.source.nearest[:SHOWN_NEAREST]))
    return tuple(crops.get((place, rank)) for rank in shown)


def _insertion(
    trainer: L.Trainer,
    pl_module: Any,  # noqa: ANN401 - any module
    rows: _Rows,
    places: Sequence[_Place],
    image: Tensor,
    images: Sequence[Tensor],
) -> dict[_Place, float]:
    """How often some prototypes win where patches of the image that they are from are pasted."""
    network = getattr(pl_module, "network", None)
    alike = [other for other in images if other.shape == images[0].shape][:_PASTED_INTO]
    if not isinstance(network, TAXNetwork) or not alike:
        return {}
    precision = trainer.precision_plugin

    def output_of(pasted: Tensor) -> TAXOutput:
        with precision.forward_context():
            output: TAXOutput = network(precision.convert_input(pasted))
        return output

    here = [
        [replace(s, active=s.active and (n, k) in places) for k, s in enumerate(row)]
        for n, row in enumerate(rows)
    ]
    into = torch.stack(alike).to(pl_module.device)
    side = patch_side(*image.shape[-2:])  # what the cards show
    return prototype_insertion(output_of, here, lambda _: image, into, side)


def _small(picture: Picture) -> Picture:
    """A picture no larger than a card needs, so that the cards do not hold many large images."""
    if max(picture.shape) <= _KEPT:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((_KEPT, _KEPT), Image.Resampling.BOX)
    return np.asarray(image)
