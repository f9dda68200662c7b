"""The maps of one explained image as arrays that NumPy and Pillow can work with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.explain.explanation import Explanation

UNDECIDED_INDEX = 254
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
    if len(explanation.annotators) > UNDECIDED_INDEX:
        raise ValueError(
            f"{len(explanation.annotators)} annotators, but a picture of indices names at most "
            f"{UNDECIDED_INDEX}; read the array 'who' instead."
        )
    leader = as_array(explanation.leader[0]).astype(np.uint8)
    leader[as_array(explanation.undecided[0])] = UNDECIDED_INDEX
    return leader


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
