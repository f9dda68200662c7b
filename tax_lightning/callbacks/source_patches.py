"""The training patches behind prototypes, cut anew from the training images at every call."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import lightning as L

from tax_lightning.callbacks.samples import (
    flat_loaders,
    length_by_index,
    picture_maker,
    single_samples,
    stretched,
)
from tax_lightning.explain.callouts import SourcePatch, find_callouts
from tax_lightning.explain.explanation import Explanation, PrototypeSource
from tax_lightning.explain.palette import Picture

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


def callout_patches(
    trainer: L.Trainer, pl_module: L.LightningModule, explanations: Sequence[Explanation]
) -> dict[tuple[int, int], SourcePatch]:
    """The training patches that the explanations' panels will show."""
    sources = {
        (callout.annotator, callout.kernel): explanation.sources[callout.annotator][callout.kernel]
        for explanation in explanations
        for callout in find_callouts(explanation)
    }
    ids = {source.sample_id for source in sources.values() if source.projected}
    return read_source_patches(_training_pictures(trainer, pl_module, ids), sources)


def _training_pictures(
    trainer: L.Trainer, pl_module: L.LightningModule, ids: set[str]
) -> Callable[[str], Picture]:
    """A way to the pictures of training images: the data module's, or one pass over the loader."""
    datamodule = picture_maker(trainer)
    if datamodule is not None and hasattr(datamodule, "read"):
        return lambda sample_id: datamodule.to_picture(datamodule.read(sample_id)["image"])
    found: dict[str, Picture] = {}
    for loader in flat_loaders(trainer.train_dataloader):
        for sample in single_samples(loader, pl_module, range(length_by_index(loader))):
            if ids <= found.keys():
                break
            if sample["id"][0] in ids:
                found[sample["id"][0]] = stretched(sample["image"][0])
    return found.__getitem__
