"""What all metrics ask of their arguments, and how they read label maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX


def check_inputs(*arguments: tuple[str, Tensor, str], **sizes: int) -> None:
    """Check that tensors fit one another; looks at shapes and types only, never at values.

    Args:
        arguments: Name, tensor and layout of each argument. A layout is a letter a dimension, such
            as ``"BNHW"``; a letter stands for one size in all layouts.
        sizes: Sizes that are known beforehand, such as ``N=3``.

    Raises:
        ValueError: If a shape contradicts its layout, or if ``present`` is not boolean.

    Example:
        >>> import torch
        >>> masks, present = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.bool)
        >>> check_inputs(("masks", masks, "BNHW"), ("present", present, "BN"), N=3)
    """
    for name, tensor, layout in arguments:
        fits = tensor.ndim == len(layout) and all(
            sizes.setdefault(letter, size) == size
            for letter, size in zip(layout, tensor.shape, strict=True)
        )
        if not fits:
            expected = ", ".join(f"{x}={sizes[x]}" if x in sizes else x for x in layout)
            raise ValueError(
                f"`{name}` has shape {list(tensor.shape)}, expected [{expected}]; pass tensors of "
                "one batch, in the order of the names that the metric was built with."
            )
        if name == "present" and tensor.dtype is not torch.bool:
            raise ValueError(
                f"`present` has dtype {tensor.dtype}, expected torch.bool; pass `present.bool()`."
            )


def check_names(argument: str, names: Sequence[str], least: int) -> tuple[str, ...]:
    """Check names that become keys of a metric's result.

    Args:
        argument: Name of the argument, for the message.
        names: Names of annotators or classes.
        least: Smallest number of names.

    Returns:
        The names as a tuple.

    Raises:
        ValueError: If there are too few names, if two are equal, or if one is the reserved
            ``"mean"``.

    Example:
        >>> check_names("annotators", ["Ada", "Ben"], least=1)
        ('Ada', 'Ben')
    """
    if len(names) < least or len(set(names)) < len(names) or "mean" in names:
        raise ValueError(
            f"`{argument}` is {list(names)}, expected at least {least} different name(s), none of "
            'them "mean", which is the key of the average; rename them.'
        )
    return tuple(names)


def check_num_classes(num_classes: int) -> int:
    """Check that there is a foreground class.

    Args:
        num_classes: Number of classes with the background.

    Returns:
        The same number.

    Raises:
        ValueError: If there are fewer than two classes.

    Example:
        >>> check_num_classes(2)
        2
    """
    if num_classes < 2:
        raise ValueError(
            f"`num_classes` is {num_classes}, expected at least 2; count the background too."
        )
    return num_classes


def labelled_pixels(masks: Tensor, present: Tensor) -> Tensor:
    """Say where each annotator has given a label.

    Args:
        masks: Annotators' class ids ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Boolean ``[B, N, H, W]``.

    Example:
        >>> import torch
        >>> labelled_pixels(torch.tensor([[[[0, 1, 255]]]]), torch.tensor([[True]])).tolist()
        [[[[True, True, False]]]]
    """
    return (masks != IGNORE_INDEX) & present[:, :, None, None]


def named_annotator(who: Tensor, labelled: Tensor) -> Tensor:
    """Index of the annotator with the largest share among those with a label.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``.
        labelled: Where each annotator has given a label, boolean ``[B, N, H, W]``.

    Returns:
        Indices ``[B, 1, H, W]``.

    Example:
        >>> import torch
        >>> who = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
        >>> named_annotator(who, torch.tensor([False, True, True]).view(1, 3, 1, 1)).item()
        1
    """
    return who.masked_fill(~labelled, -torch.inf).argmax(1, keepdim=True)


def sum_where(values: Tensor, cases: Tensor) -> Tensor:
    """Sum of the values of the cases; the others may be anything, infinity too.

    Example:
        >>> import torch
        >>> sum_where(torch.tensor([1.0, torch.inf]), torch.tensor([True, False]))
        tensor(1.)
    """
    return torch.where(cases, values, 0).sum()


def foreground_masks(labels: Tensor, num_classes: int) -> Tensor:
    """One mask a foreground class; pixels that are not labelled are in none of them.

    Args:
        labels: Class ids ``[B, N, H, W]``, 0 is the background.
        num_classes: Number of classes with the background.

    Returns:
        Boolean ``[B, N, num_classes - 1, H, W]``: an eighth of the memory of one-hot integers.

    Example:
        >>> import torch
        >>> foreground_masks(torch.tensor([[[[0, 1, 2, 255]]]]), 3).int().tolist()
        [[[[[0, 1, 0, 0]], [[0, 0, 1, 0]]]]]
    """
    foreground = torch.arange(1, num_classes, device=labels.device)
    return labels.unsqueeze(2) == foreground[:, None, None]


def macro_over_classes(scores: Tensor) -> Tensor:
    """Average over the classes that appear; 1 where none does, for both sides then agree.

    Args:
        scores: Scores ``[..., classes]``, NaN for a class that appears on neither side.

    Returns:
        Averages ``[...]``.

    Example:
        >>> import torch
        >>> macro_over_classes(torch.tensor([[0.5, torch.nan], [torch.nan, torch.nan]])).tolist()
        [0.5, 1.0]
    """
    return scores.nanmean(-1).nan_to_num(nan=1.0)
