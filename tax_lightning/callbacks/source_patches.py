"""The training patches behind prototypes, cut anew from the training images at every call."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.callouts import SourcePatch
from tax_lightning.visualization.palette import Picture

Key = TypeVar("Key", bound=Hashable)


def read_source_patches(
    read: Callable[[str], Picture],
    sources: Mapping[Key, PrototypeSource],
    size: int = 48,
) -> dict[Key, SourcePatch]:
    """Cut the training patches behind prototypes from their images.

    Args:
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, in the frame of
            the evaluation transform; may raise ``LookupError``, ``OSError`` or ``ValueError`` for
            an image that it does not have.
        sources: prototypes by any key, such as (annotator index, kernel).
        size: side of a patch in pixels; patches at the border are moved inside the image.

    Returns:
        A patch for each prototype that has been projected and whose image can be read.

    Example:
        >>> import numpy as np
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_source_patches(lambda id: image, {(0, 0): source}, size=48)[0, 0]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    patches = {}
    for key, source in sources.items():
        if not source.projected:
            continue
        try:
            picture = read(source.sample_id)
        except (LookupError, OSError, ValueError):
            continue  # the model may have been trained on other data; the panel says so
        height, width = picture.shape[:2]
        top = max(0, min(source.y - size // 2, height - size))
        left = max(0, min(source.x - size // 2, width - size))
        piece = picture[top : top + size, left : left + size].copy()
        patches[key] = SourcePatch(piece, source.y - top, source.x - left)
    return patches


def patch_side(height: int, width: int) -> int:
    """Side of the patches of an image: 48 pixels, of large images a quarter of the short side."""
    return max(48, min(height, width) // 4)
