"""The training examples behind prototypes, read anew for a page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from tax_lightning.callbacks.source_patches import read_source_patches
from tax_lightning.explain.callouts import SourcePatch
from tax_lightning.explain.explanation import PrototypeSource
from tax_lightning.explain.palette import Picture

RUNNERS_UP = 3
"""Of the places next nearest to a prototype, how many are shown."""

_CROP = 64  # pixels
_SCENE = 160  # pixels of the longer side of a whole image, made small


@dataclass(frozen=True)
class Scene:
    """A whole training image, made small.

    Args:
        picture: ``[h, w, 3]`` uint8.
        size: height and width of the image itself.
    """

    picture: Picture
    size: tuple[int, int]


@dataclass(frozen=True)
class Example:
    """What can be shown of one prototype.

    Args:
        source: where it was taken from.
        patch: the image round its pixel; None where the image is not at hand.
        scene: the whole image; None where it is not at hand.
        runners_up: the same of the next nearest places.
    """

    source: PrototypeSource
    patch: SourcePatch | None
    scene: Scene | None
    runners_up: tuple[tuple[PrototypeSource, SourcePatch | None], ...]


def read_examples(
    sources: Sequence[Sequence[PrototypeSource]], read: Callable[[str], Picture] | None
) -> dict[tuple[int, int], Example]:
    """The examples behind all prototypes, by annotator and kernel.

    Args:
        sources: ``[N][K]``.
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, and may raise
            ``LookupError``, ``OSError`` or ``ValueError``; None: no image is at hand.

    Example:
        >>> import numpy as np
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 200, 3), dtype=np.uint8)
        >>> example = read_examples([[source]], lambda id: image)[0, 0]
        >>> example.patch.image.shape, example.scene.picture.shape
        ((64, 64, 3), (80, 160, 3))
    """
    places = {
        (n, k, rank): place
        for n, row in enumerate(sources)
        for k, source in enumerate(row)
        for rank, place in enumerate([source, *_runners_up(source)])
    }
    scenes: dict[str, Scene] = {}

    @lru_cache(maxsize=1)
    def picture_of(sample_id: str) -> Picture:
        if read is None:
            raise LookupError(sample_id)
        picture = read(sample_id)
        scenes[sample_id] = _scene(picture)
        return picture

    # In the order of the images, so that each is read once and none is kept.
    in_order = dict(sorted(places.items(), key=lambda item: item[1].sample_id))
    patches = read_source_patches(picture_of, in_order, _CROP)
    return {
        (n, k): Example(
            source,
            patches.get((n, k, 0)),
            scenes.get(source.sample_id),
            tuple(
                (place, patches.get((n, k, rank)))
                for rank, place in enumerate(_runners_up(source), start=1)
            ),
        )
        for n, row in enumerate(sources)
        for k, source in enumerate(row)
    }


def _scene(picture: Picture) -> Scene:
    small = Image.fromarray(picture)
    small.thumbnail((_SCENE, _SCENE))
    return Scene(np.asarray(small), (picture.shape[0], picture.shape[1]))


def _runners_up(source: PrototypeSource) -> list[PrototypeSource]:
    return [
        replace(source, sample_id=sample_id, y=y, x=x, similarity=similarity, runners_up=())
        for sample_id, y, x, similarity in source.runners_up[:RUNNERS_UP]
    ]
