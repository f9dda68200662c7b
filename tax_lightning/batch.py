"""What a batch must hold, checked while it is still in the CPU's memory."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tax_lightning.constants import IGNORE_INDEX, LABEL_KEYS

Batch: TypeAlias = dict[str, Any]

_ORDER = ("image", "masks", "reference")  # of a batch that is a tuple
_SMALLER = (torch.bool, torch.int8, torch.int16, torch.int32)


def by_our_keys(batch: Any, keys: Mapping[str, str]) -> Any:  # noqa: ANN401 - as a loader gives it
    """A batch by the names of this library: of a tuple or a dictionary that has other names.

    A tuple or list of tensors holds the image, the masks and, if there is a third, the reference.
    ``keys`` says what another library calls them: our name -> theirs.

    Raises:
        ValueError: If a name of theirs is not in the batch.

    Example:
        >>> by_our_keys((1, 2), {})
        {'image': 1, 'masks': 2}
        >>> by_our_keys({"image": 1, "label": 2}, {"masks": "label"})
        {'image': 1, 'masks': 2}
    """
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= len(_ORDER):
        return dict(zip(_ORDER, batch, strict=False))
    if not keys or not isinstance(batch, Mapping):
        return batch
    if missing := [name for key, name in keys.items() if name not in batch and key not in batch]:
        raise ValueError(
            f"batch_keys names {missing[0]!r}, but the batch holds {', '.join(map(str, batch))}."
        )
    there = {key: name for key, name in keys.items() if name in batch}
    others = {key: value for key, value in batch.items() if key not in there.values()}
    return others | {key: batch[name] for key, name in there.items()}


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
            "[B, ch, H, W] and 'masks' [B, N, H, W], or a tuple of these. Other keys can be told "
            "by batch_keys={'image': ..., 'masks': ...}."
        )
    batch = dict(batch)
    images = batch["image"]
    packed = images.dtype == torch.uint8 and "normalisation" in batch
    if images.ndim != 4 or not (images.is_floating_point() or packed):
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
    for key in LABEL_KEYS:  # whole numbers of any size are as good as int64
        labels = batch.get(key)
        if isinstance(labels, torch.Tensor) and labels.dtype in _SMALLER:
            batch[key] = labels.long()
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


def unpacked(batch: Batch) -> Batch:
    """A batch of numbers to compute with, where a loader gave bytes to save memory and time.

    Done on the model's device: four times as fast to move there, and nothing that a loader's
    process would have to wait for.

    Args:
        batch: see :class:`TAXLightningModule`; or one sample of it. An ``"image"`` in uint8 comes
            with ``"normalisation"`` ``[2, ch]``: mean and standard deviation of each channel for
            pixels in [0, 1].

    Returns:
        A new dictionary: normalised images in the precision of ``"normalisation"``, int64 labels.
        What is so already is the same tensor.

    Example:
        >>> labels = torch.tensor([[[255]]], dtype=torch.uint8)
        >>> normalisation = torch.tensor([[0.5], [0.25]])
        >>> unpacked({"image": labels, "masks": labels, "normalisation": normalisation})
        {'image': tensor([[[2.]]]), 'masks': tensor([[[255]]])}
    """
    numbers = {key: value.long() if key in LABEL_KEYS else value for key, value in batch.items()}
    normalisation = numbers.pop("normalisation", None)
    if normalisation is not None and batch["image"].dtype == torch.uint8:
        mean, std = normalisation[..., None, None]
        pixels = batch["image"].to(normalisation.dtype, memory_format=torch.contiguous_format)
        numbers["image"] = pixels.div_(255).sub_(mean).div_(std)
    return numbers


def _check_masks(batch: Batch, annotators: Sequence[str], classes: Sequence[str]) -> None:
    images = batch["image"]
    expected = (len(images), len(annotators), *images.shape[-2:])
    if "masks" not in batch:
        raise ValueError(f"batch: no key 'masks'; expected int64 class ids {list(expected)}.")
    masks = batch["masks"]
    if not isinstance(masks, torch.Tensor):
        raise ValueError(
            f"batch['masks'] is a {type(masks).__name__}, expected a tensor {list(expected)}. "
            "Stack the masks of the annotators, as by torch.stack(masks, dim=1)."
        )
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
