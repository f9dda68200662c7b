"""Overlap of all pairs of two sets of segmentations of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tax_lightning.metrics.inputs import foreground_masks, macro_over_classes


class ClassMaps(NamedTuple):
    """A set of segmentations of each image as zeros and ones, ready for matrix products.

    Attributes:
        foreground: Pixels of each class but the background ``[B, classes - 1, N, HW]``.
        labelled: Pixels that have a label ``[B, 1, N, HW]``.
    """

    foreground: Tensor
    labelled: Tensor


def class_maps(labels: Tensor, num_classes: int, labelled: Tensor | None = None) -> ClassMaps:
    """Prepare segmentations for :func:`pair_dice` and :func:`pair_iou`.

    Args:
        labels: Class ids ``[B, N, H, W]``, 0 is the background.
        num_classes: Number of classes with the background.
        labelled: Pixels that count, boolean ``[B, N, H, W]``; all where it is left out.

    Returns:
        The segmentations, of which pixels that do not count have no class.

    Example:
        >>> import torch
        >>> class_maps(torch.tensor([[[[0, 1, 2]]]]), num_classes=3).foreground.tolist()
        [[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]]
    """
    foreground = foreground_masks(labels, num_classes)
    if labelled is None:
        labelled = torch.ones_like(labels, dtype=torch.bool)
    else:
        foreground = foreground & labelled.unsqueeze(2)

    def by_class(maps: Tensor) -> Tensor:
        return maps.transpose(1, 2).flatten(3).float()

    return ClassMaps(by_class(foreground), by_class(labelled.unsqueeze(2)))


def shared_pixels(first: Tensor, second: Tensor) -> Tensor:
    """Number of pixels in both maps, of all pairs ``[..., I, J]`` of maps ``[..., I or J, HW]``.

    One matrix product of zeros and ones, exact in float32 for images of up to 2^24 pixels (TF32
    changes nothing: its inputs hold zeros and ones exactly and its sums are float32).

    Example:
        >>> import torch
        >>> shared_pixels(torch.tensor([[1.0, 1.0, 0.0]]), torch.eye(3))
        tensor([[1., 1., 0.]])
    """
    # Mixed precision would round the counts of pixels.
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT


def _common_and_area(first: ClassMaps, second: ClassMaps) -> tuple[Tensor, Tensor]:
    """Intersection and sum of areas over the pixels that both label ``[B, I, J, classes - 1]``."""
    common = shared_pixels(first.foreground, second.foreground)
    area = shared_pixels(first.foreground, second.labelled)
    area += shared_pixels(first.labelled, second.foreground)
    return common.movedim(1, -1), area.movedim(1, -1)


# In both scores 0 / 0 is NaN for a class in neither map. An epsilon there would make such pairs
# count as far apart, and so change what is said of sets that hold empty maps.


def pair_dice(first: ClassMaps, second: ClassMaps) -> Tensor:
    """Dice coefficient of all pairs of segmentations.

    Over the pixels that both label; a macro average over the foreground classes that appear in
    either, 1 where none does.

    Args:
        first: I segmentations of each image.
        second: J segmentations of each image.

    Returns:
        Scores in [0, 1] ``[B, I, J]``.

    Example:
        >>> import torch
        >>> first = class_maps(torch.tensor([[[[0, 1, 1]], [[0, 0, 0]]]]), num_classes=2)
        >>> second = class_maps(torch.tensor([[[[0, 0, 1]], [[0, 0, 0]]]]), num_classes=2)
        >>> pair_dice(first, second)
        tensor([[[0.6667, 0.0000],
                 [0.0000, 1.0000]]])
    """
    common, area = _common_and_area(first, second)
    return macro_over_classes(2 * common / area)


def pair_iou(first: ClassMaps, second: ClassMaps) -> Tensor:
    """Intersection over union of all pairs of segmentations; the rest as in :func:`pair_dice`.

    Example:
        >>> import torch
        >>> first = class_maps(torch.tensor([[[[0, 1, 1]], [[0, 0, 0]]]]), num_classes=2)
        >>> second = class_maps(torch.tensor([[[[0, 0, 1]], [[0, 0, 0]]]]), num_classes=2)
        >>> pair_iou(first, second)
        tensor([[[0.5000, 0.0000],
                 [0.0000, 1.0000]]])
    """
    common, area = _common_and_area(first, second)
    return macro_over_classes(common / (area - common))
