"""Call-outs: the prototypes that decide most of an image, each with a spot and a training patch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tax_lightning.explanation import Explanation, PrototypeSource
from tax_lightning.visualization.drawing import as_array, check_single
from tax_lightning.visualization.palette import Picture

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class SourcePatch:
    """A piece ``[h, w, 3]`` of a training image, and where its prototype's pixel lies in it."""

    image: Picture
    y: int
    x: int


@dataclass(frozen=True)
class CallOut:
    """A numbered spot of the picture: the largest region that one prototype decides."""

    number: int  # 1 for the prototype that decides most pixels
    annotator: int
    kernel: int
    y: int  # well inside the region
    x: int
    share: float  # mean share of the kernel in the decisions of the region


def find_callouts(explanation: Explanation, limit: int = 5) -> tuple[CallOut, ...]:
    """The prototypes that decide most pixels of an image, each with the spot to point at.

    Args:
        explanation: the explanation of one image.
        limit: the most call-outs to return.

    Returns:
        At most ``limit`` call-outs, each of another prototype, the one that decides most pixels
        first; none if all annotators would say the same everywhere.
    """
    check_single(explanation)
    names = ("leader", "leader_kernel", "leader_share", "unanimous")
    leader, kernel, share, unanimous = (as_array(getattr(explanation, name)[0]) for name in names)
    kernels = int(kernel.max()) + 1
    prototype = np.where(unanimous, -1, leader * kernels + kernel)
    pixels = np.bincount(prototype[prototype >= 0])
    largest = np.argsort(-pixels, kind="stable")[:limit]
    callouts = []
    for number, index in enumerate(largest[pixels[largest] > 0], start=1):
        parts, _ = ndimage.label(prototype == index)
        region = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        y, x = _innermost(region)
        n, k = divmod(int(index), kernels)
        callouts.append(CallOut(number, n, k, y, x, float(share[region].mean())))
    return tuple(callouts)


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the region that is farthest from its edge."""
    (window,) = ndimage.find_objects(region.astype(int))
    depth = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y + window[0].start), int(x + window[1].start)


def read_source_patches(
    read: Callable[[str], Picture], sources: Mapping[Key, PrototypeSource]
) -> dict[Key, SourcePatch]:
    """Cut the training patches behind prototypes from their images.

    A patch has 48 pixels a side, of large images a quarter of the short side. At the border it is
    moved inside the image.

    Args:
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, in the frame of
            the evaluation transform; may raise ``LookupError``, ``OSError`` or ``ValueError`` for
            an image that it does not have. Each image is read once.
        sources: prototypes by any key, such as (annotator index, kernel).

    Returns:
        A patch for each prototype that has been projected and whose pixel can be read.

    Example:
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_source_patches(lambda id: image, {(0, 0): source})[0, 0]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    by_image = defaultdict(list)
    for key, source in sources.items():
        if source.projected:
            by_image[source.sample_id].append(key)
    patches = {}
    for sample_id, keys in by_image.items():
        try:
            picture = read(sample_id)
        except (LookupError, OSError, ValueError):
            continue  # the model may have been trained on other data; the panel says so
        height, width = picture.shape[:2]
        size = max(48, min(height, width) // 4)
        for key in keys:
            y, x = sources[key].y, sources[key].x
            if y >= height or x >= width:
                continue  # an image that is cut at random may not have the pixel
            top = max(0, min(y - size // 2, height - size))
            left = max(0, min(x - size // 2, width - size))
            piece = picture[top : top + size, left : left + size].copy()
            patches[key] = SourcePatch(piece, y - top, x - left)
    return patches


def callout_patches(
    explanations: Iterable[Explanation], read: Callable[[str], Picture]
) -> dict[tuple[int, int], SourcePatch]:
    """The training patches that the explanations' panels will show, by annotator and kernel."""
    sources = {
        (callout.annotator, callout.kernel): explanation.sources[callout.annotator][callout.kernel]
        for explanation in explanations
        for callout in find_callouts(explanation)
    }
    return read_source_patches(read, sources)
