"""The maps of one explained image as arrays that NumPy and Pillow can work with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tax_lightning.explanation import Explanation

UNANIMOUS_INDEX = 254
"""Value in an index map of "who" where all annotators would say the same."""


def who_index_map(explanation: Explanation) -> NDArray[np.uint8]:
    """Who decides each pixel, as one index a pixel.

    Args:
        explanation: the explanation of one image.

    Returns:
        ``[H, W]``: position of the annotator with the largest weight, ``254`` where all would say
        the same.

    Raises:
        ValueError: if there are several images, or more annotators than an index map can name.
    """
    check_single(explanation)
    if len(explanation.annotators) > UNANIMOUS_INDEX:
        raise ValueError(
            f"{len(explanation.annotators)} annotators, but a picture of indices names at most "
            f"{UNANIMOUS_INDEX}; read the array 'who' instead."
        )
    leader = as_array(explanation.leader[0]).astype(np.uint8)
    leader[as_array(explanation.unanimous[0])] = UNANIMOUS_INDEX
    return leader


def region_around(
    explanation: Explanation, kernel: int, y: int, x: int, annotator: int | None = None
) -> NDArray[np.bool_]:
    """The connected pixels around one of them at which a prototype weighs most.

    Args:
        explanation: the explanation of one image.
        kernel: index of the prototype within its annotator.
        y: row of the pixel.
        x: column of the pixel.
        annotator: index of the prototype's annotator; ``None`` for a prototype that all share.

    Returns:
        ``[H, W]``; nothing where another prototype weighs most at the pixel itself. Unanimous
        pixels count too, as prototypes weigh there though nothing hangs on them.

    Raises:
        ValueError: if there are several images.
    """
    check_single(explanation)
    weighs = explanation.leader_kernel[0] == kernel
    if annotator is not None:
        weighs &= explanation.leader[0] == annotator
    inside = as_array(weighs)
    parts, _ = ndimage.label(inside)
    region: NDArray[np.bool_] = (parts == parts[y, x]) & inside[y, x]
    return region


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values; half precision, which NumPy lacks in part, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def check_single(explanation: Explanation) -> None:
    """Refuse the explanation of several images with a ``ValueError``."""
    if len(explanation) != 1:
        raise ValueError(
            f"The explanation is of {len(explanation)} images, expected 1; "
            "take one of them: explanation[i]."
        )
