"""Reference labels from several annotators, and who agrees with the reference where.

Arguments mean the same everywhere: ``masks`` are the annotators' class ids ``[B, N, H, W]`` and
``reference`` those that count as right ``[B, H, W]``, both 255 where there is no label;
``num_classes`` is C; ``window`` is the side in pixels, odd, of a square around each pixel.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.constants import IGNORE_INDEX

Reference = Literal["given", "majority", "staple", "none"]

STAPLE_ITERATIONS = 100  # at most; a few images never meet the criterion


def check_reference(reference: str) -> None:
    """Raise a ``ValueError`` if there is no such reference."""
    if reference not in get_args(Reference):
        expected = ", ".join(get_args(Reference))
        raise ValueError(f"reference={reference!r}: expected one of {expected}.")


def reference_labels(
    reference: Reference, batch: Mapping[str, Any], num_classes: int
) -> Tensor | None:
    """The labels that the result is trained for and measured against.

    Class ids ``[B, H, W]``, 255 where unknown; ``None`` for ``"none"``. The ``"majority"`` is taken
    of the batch's ``"masks"``; labels ``"given"`` with the data, and those of ``"staple"``, which
    our data modules estimate once before training, are its ``"reference"``.

    Raises:
        ValueError: if they should come with the data and do not.

    Example:
        >>> masks = torch.tensor([1, 1, 0]).view(1, 3, 1, 1)
        >>> reference_labels("majority", {"masks": masks}, num_classes=2)
        tensor([[[1]]])
    """
    if reference == "none":
        return None
    if reference == "majority":
        return majority(batch["masks"], num_classes)
    if "reference" not in batch:
        cure = (
            "Our data modules add it before training; with loaders of your own, add what "
            "tax_lightning.consensus.staple(masks, num_classes) gives for each image"
            if reference == "staple"
            else "Supply reference labels with the data"
        )
        raise ValueError(
            f"reference={reference!r}: the batch has no key 'reference'. {cure}, or set "
            "reference='majority'."
        )
    given: Tensor = batch["reference"]
    return given


def right_labels(reference: Reference, batch: Mapping[str, Any], num_classes: int) -> Tensor:
    """The labels that count as right, bool ``[B, C, H, W]``, arguments as of `reference_labels`.

    At a tie of the majority several are right, each in part; none where the reference is unknown.

    Example:
        >>> masks = torch.tensor([1, 0]).view(1, 2, 1, 1)
        >>> right_labels("majority", {"masks": masks}, num_classes=3).flatten()
        tensor([ True,  True, False])
    """
    if reference == "majority":
        return most_frequent(batch["masks"], num_classes)
    labels = reference_labels(reference, batch, num_classes)
    if labels is None:
        labels = torch.full_like(batch["masks"][:, 0], IGNORE_INDEX)
    classes = torch.arange(num_classes, device=labels.device).view(-1, 1, 1)
    return labels.unsqueeze(1) == classes


def disagreement(masks: Tensor) -> Tensor:
    """Where at least two annotators gave different labels: of ``[B, N, ...]`` bool ``[B, ...]``.

    Example:
        >>> disagreement(torch.tensor([[[[0, 1, 1]], [[0, 0, 255]]]])).tolist()
        [[[False, True, False]]]
    """
    highest = masks.masked_fill(masks == IGNORE_INDEX, -1).amax(1)
    # 255 is above every class. On a CPU `amin` of integers takes ten times as long.
    return highest > masks.min(1).values


def majority(masks: Tensor, num_classes: int) -> Tensor:
    """Reference labels by majority vote over the annotators who labelled a pixel, ``[B, H, W]``.

    255 at a tie for the first place and where nobody labelled.

    Example:
        >>> votes = torch.tensor([[0, 1], [1, 1], [1, 0], [255, 255]]).view(1, 4, 1, 2)
        >>> majority(votes, num_classes=2)
        tensor([[[1, 1]]])
        >>> majority(votes[:, :2], num_classes=2)  # one against one at the first pixel
        tensor([[[255,   1]]])
    """
    best = most_frequent(masks, num_classes)
    return best.int().argmax(dim=1).masked_fill(best.sum(1) != 1, IGNORE_INDEX)


def most_frequent(masks: Tensor, num_classes: int) -> Tensor:
    """The classes that most annotators gave to a pixel, several at a tie, bool ``[B, C, H, W]``."""
    votes = class_votes(masks, num_classes)
    best = votes.amax(dim=1, keepdim=True)
    return (votes == best) & (best > 0)


def class_votes(masks: Tensor, num_classes: int) -> Tensor:
    """How many annotators gave each class, the background too, ``[B, C, H, W]``."""
    return torch.stack([(masks == c).sum(1) for c in range(num_classes)], dim=1)


def staple(masks: Tensor, num_classes: int) -> Tensor:
    """Reference labels ``[B, H, W]`` by STAPLE: annotators weigh as much as they are right.

    Estimates the labels and each annotator's confusion matrix in turns. An annotator who often
    differs from the others counts less (Warfield, Zou, Wells, "Simultaneous truth and performance
    level estimation", IEEE TMI 2004; for several classes Rohlfing, Russakoff, Maurer, IEEE TMI
    2004). Runs on the CPU, image by image, in tens of milliseconds for a few hundred pixels a side.
    255 where STAPLE has a tie and where nobody labelled. Where an annotator labelled only a part of
    an image, the majority decides the rest.

    Raises:
        ModuleNotFoundError: if SimpleITK is not installed, which comes with the extra ``staple``.

    Example:
        >>> import pytest; _ = pytest.importorskip("SimpleITK")
        >>> masks = torch.zeros(1, 3, 4, 4).long()
        >>> masks[:, :2, :2], masks[:, 2, 3] = 1, 1  # two agree; the third says the opposite
        >>> staple(masks, num_classes=2)[0]
        tensor([[1, 1, 1, 1],
                [1, 1, 1, 1],
                [0, 0, 0, 0],
                [0, 0, 0, 0]])
    """
    labelled = masks != IGNORE_INDEX
    here = labelled.flatten(2).any(dim=2)  # [B, N]
    everywhere = (labelled | ~here[:, :, None, None]).all(dim=1)
    reference = majority(masks, num_classes)
    for image, drawn, who, pixels in zip(reference, masks, here, everywhere, strict=True):
        if who.any() and pixels.any():
            image[pixels] = _staple(drawn[who][:, pixels].cpu()).to(image.device)
    return reference


def _staple(labels: Tensor) -> Tensor:
    """Estimate of the pixels' labels ``[P]`` from those of n annotators ``[n, P]``."""
    try:
        import SimpleITK as sitk  # noqa: N813 - its own abbreviation
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reference='staple' needs SimpleITK, which is not installed: "
            "pip install 'tax-lightning[staple]', or set reference='majority'."
        ) from error
    lines = [sitk.GetImageFromArray(line.numpy().astype(np.uint8)[None]) for line in labels]
    estimate: Any = sitk.MultiLabelSTAPLE  # without types
    label = estimate(lines, IGNORE_INDEX, 1e-5, STAPLE_ITERATIONS)
    return torch.from_numpy(sitk.GetArrayFromImage(label)[0]).long()


def box_mean(values: Tensor, window: int) -> Tensor:
    """Mean over the window, of ``[B, N, H, W]`` floats; at the border of what lies inside."""
    sums = _window_sums(_window_sums(values, window, dim=2), window, dim=3)
    ones = values.new_ones(1, 1, *values.shape[2:])
    return sums / _window_sums(_window_sums(ones, window, dim=2), window, dim=3)


def _window_sums(values: Tensor, window: int, dim: int) -> Tensor:
    """Sums along one dimension."""
    # From running sums, so that a large window costs as little as a small one. Those of whole
    # numbers are exact: a window of zeros has the sum 0.
    size, half = values.shape[dim], window // 2
    padding = [0, 0] * (values.ndim - 1 - dim) + [half + 1, half]
    running = F.pad(values, padding).cumsum(dim)
    return running.narrow(dim, window, size) - running.narrow(dim, 0, size)


def agreement(
    masks: Tensor, reference: Tensor, window: int = 23, sharpness: float = 60.0
) -> Tensor:
    """How well each annotator agrees with the reference around a pixel: ``[B, N, H, W]`` in [0, 1].

    ``exp(-sharpness * share of the window where annotator n's label differs)`` is 1 where an
    annotator agrees all around, and near 0 where they deviate on a visible part of the window. A
    single pixel says little, since many annotators agree there by chance. A habit shows in the
    neighbourhood. With a sharpness of 60, ten wrong pixels of a 23 x 23 window count as 0.32. It is
    0 where annotator n labelled nothing in the window.

    Example:
        >>> reference = torch.ones(1, 1, 3, dtype=torch.long)
        >>> masks = torch.tensor([1, 1, 1, 1, 1, 0]).view(1, 2, 1, 3)
        >>> agreement(masks, reference, window=1, sharpness=10.0)[0, :, 0]
        tensor([[1.0000e+00, 1.0000e+00, 1.0000e+00],
                [1.0000e+00, 1.0000e+00, 4.5400e-05]])
    """
    known = (reference != IGNORE_INDEX).unsqueeze(1)
    all_of_it = masks != IGNORE_INDEX
    if not all_of_it.all():  # else all annotators have the same known pixels, to be summed once
        known = known & all_of_it
    wrong = known & (masks != reference.unsqueeze(1))
    labelled = box_mean(known.float(), window)
    share = box_mean(wrong.float(), window) / labelled.clamp_min(1e-6)
    return torch.where(labelled > 0, torch.exp(-sharpness * share), 0.0)


def relevance(differs: Tensor, window: int = 23, elsewhere: float = 0.05) -> Tensor:
    """Weight of a pixel in who and why: 1 near one where somebody differs, else ``elsewhere``.

    ``differs`` says where somebody differs from the reference, bool ``[B, H, W]`` as the result.
    Where nobody within the window does, all say the same, and who decides carries no information.
    Most pixels are such; at full weight they would hide the others.

    Example:
        >>> relevance(torch.tensor([[[True, False, False, False]]]), window=3)
        tensor([[[1.0000, 1.0000, 0.0500, 0.0500]]])
    """
    near = box_mean(differs.unsqueeze(1).float(), window).squeeze(1) > 0
    return torch.where(near, 1.0, elsewhere)
