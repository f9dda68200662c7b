"""What a batch must hold, checked while it is still in the CPU's memory."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tax_lightning.data.labels import IGNORE_INDEX

Batch: TypeAlias = dict[str, Any]

LABELS = ("masks", "reference", "owner", "deviation")
"""Keys of the planes of labels."""


def complete_batch(
    batch: Batch, annotators: Sequence[str], classes: Sequence[str], needs_labels: bool = True
) -> Batch:
    """Check a batch and fill in the optional keys ``"present"`` and ``"id"``.

    Args:
        batch: see :class:`TAXLightningModule`.
        annotators: names that the masks must be of.
        classes: names of the class ids that masks may hold.
        needs_labels: whether ``"masks"`` must be there.

    Returns:
        A new dictionary.

    Raises:
        ValueError: naming the key, what was found and what was expected.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 4, 4), "masks": torch.zeros(1, 2, 4, 4).long()}
        >>> complete_batch(batch, ["Ana", "Ben"], ["background", "cell"])["present"]
        tensor([[True, True]])
    """
    if not isinstance(batch, Mapping) or "image" not in batch:
        raise ValueError(
            f"batch: found {type(batch).__name__}, expected a dictionary with 'image' "
            "[B, ch, H, W] and 'masks' [B, N, H, W]."
        )
    batch = dict(batch)
    images = batch["image"]
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"batch['image'] is {images.dtype} {list(images.shape)}, expected normalised floats "
            "[B, ch, H, W]. Scale the pixels to about -2 to 2."
        )
    if "id" not in batch:
        # Named by their content, images keep their names under shuffling and across processes.
        batch["id"] = [
            f"image-{zlib.crc32(image.float().numpy().tobytes()):08x}" for image in images.cpu()
        ]
    if tuple(batch.get("annotators", annotators)) != tuple(annotators):
        raise ValueError(
            f"batch['annotators'] is {tuple(batch['annotators'])}, but the model's annotators are "
            f"{tuple(annotators)}. Name the same annotators in the same order."
        )
    if needs_labels:
        _check_masks(batch, annotators, classes)
    if "masks" in batch:
        labelled = (batch["masks"] != IGNORE_INDEX).flatten(2).any(dim=2)
        present = batch.setdefault("present", labelled)
        if (labelled & ~present).any():
            raise ValueError(
                "batch['present'] says of an annotator with labels in batch['masks'] that they are "
                f"absent. Set the masks of absent annotators to {IGNORE_INDEX}."
            )
    return batch


def with_class_ids(batch: Batch) -> Batch:
    """A batch whose labels are int64, where a loader gave bytes to save memory and time.

    Args:
        batch: see :class:`TAXLightningModule`; or one sample of it.

    Returns:
        A new dictionary; what is int64 already is the same tensor.

    Example:
        >>> with_class_ids({"masks": torch.tensor([[255]], dtype=torch.uint8)})["masks"].dtype
        torch.int64
    """
    return {key: value.long() if key in LABELS else value for key, value in batch.items()}


def _check_masks(batch: Batch, annotators: Sequence[str], classes: Sequence[str]) -> None:
    images = batch["image"]
    expected = (len(images), len(annotators), *images.shape[-2:])
    if "masks" not in batch:
        raise ValueError(f"batch: no key 'masks'; expected int64 class ids {list(expected)}.")
    masks = batch["masks"]
    if tuple(masks.shape) != expected or masks.dtype not in (torch.long, torch.uint8):
        raise ValueError(
            f"batch['masks'] is {masks.dtype} {list(masks.shape)}, expected torch.int64 "
            f"{list(expected)}: {len(annotators)} annotators ({', '.join(annotators)}), one class "
            "id a pixel, of the same height and width as the image."
        )
    reference = batch.get("reference")
    if reference is not None and reference.shape != masks[:, 0].shape:
        raise ValueError(
            f"batch['reference'] has the shape {list(reference.shape)}, expected "
            f"{list(masks[:, 0].shape)}: one class id a pixel."
        )
    for key in ("masks", "reference"):
        labels = batch.get(key)
        if labels is None:
            continue
        wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= len(classes)))
        if wrong.any():
            raise ValueError(
                f"batch[{key!r}] holds the class id {int(labels[wrong][0])}, expected 0 to "
                f"{len(classes) - 1} ({', '.join(classes)}) or {IGNORE_INDEX} for not labelled."
            )
