"""The training examples behind prototypes, read anew for a page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from tax_lightning.callbacks.source_patches import read_source_patches
from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.gallery import SHOWN_NEAREST, PrototypeCard
from tax_lightning.visualization.palette import Picture, annotator_palette

_CROP = 64  # pixels
_SCENE = 160  # pixels of the longer side of a whole image, made small


def read_examples(
    sources: Sequence[Sequence[PrototypeSource]], read: Callable[[str], Picture] | None
) -> dict[tuple[int, int], PrototypeCard]:
    """Cards of all prototypes by annotator and kernel, with the pictures that are at hand.

    Args:
        sources: ``[N][K]``.
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, and may raise
            ``LookupError``, ``OSError`` or ``ValueError``; None: no image is at hand.

    Example:
        >>> import numpy as np
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 200, 3), dtype=np.uint8)
        >>> card = read_examples([[source]], lambda id: image)[0, 0]
        >>> card.patch.image.shape, card.image.shape
        ((64, 64, 3), (80, 160, 3))
    """
    places = {
        (n, k, rank): place
        for n, row in enumerate(sources)
        for k, source in enumerate(row)
        for rank, place in enumerate([source, *_nearest(source)])
    }
    scenes: dict[str, tuple[Picture, tuple[int, int]]] = {}

    @lru_cache(maxsize=1)
    def picture_of(sample_id: str) -> Picture:
        if read is None:
            raise LookupError(sample_id)
        picture = read(sample_id)
        scenes[sample_id] = _small(picture), (picture.shape[0], picture.shape[1])
        return picture

    # In the order of the images, so that each is read once and none is kept.
    in_order = dict(sorted(places.items(), key=lambda item: item[1].sample_id))
    patches = read_source_patches(picture_of, in_order, _CROP)
    colours = annotator_palette(len(sources))
    cards = {}
    for n, row in enumerate(sources):
        for k, source in enumerate(row):
            image, size = scenes.get(source.sample_id, (None, None))
            ranks = range(1, 1 + len(_nearest(source)))
            cards[n, k] = PrototypeCard(
                source,
                colours[n],
                patch=patches.get((n, k, 0)),
                image=image,
                size=size,
                nearest=tuple(patches.get((n, k, rank)) for rank in ranks),
            )
    return cards


def _small(picture: Picture) -> Picture:
    small = Image.fromarray(picture)
    small.thumbnail((_SCENE, _SCENE))
    return np.asarray(small)


def _nearest(source: PrototypeSource) -> list[PrototypeSource]:
    return [
        replace(source, sample_id=sample_id, y=y, x=x, similarity=similarity, nearest=())
        for sample_id, y, x, similarity in source.nearest[:SHOWN_NEAREST]
    ]
