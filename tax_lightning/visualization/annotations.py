"""Spots of a picture: where people differ, with the example for and the example against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tax_lightning.explanation import Example, Explanation
from tax_lightning.visualization.drawing import as_array, check_single
from tax_lightning.visualization.palette import Picture


@dataclass(frozen=True)
class SourcePatch:
    """A piece ``[h, w, 3]`` of a training image, and where the example's pixel lies in it."""

    image: Picture
    y: int
    x: int


@dataclass(frozen=True)
class Spot:
    """A numbered place in the largest disputed region that has one prototype as its reason."""

    number: int  # 1 for the prototype that is the reason of most disputed pixels
    y: int  # well inside the region
    x: int
    annotator: int  # of the reason, as the kernel
    kernel: int
    share: float  # of that kernel in the decisions of the region
    decision: int  # class
    votes: float  # expected number of annotators who say the same
    dissenter: int  # who least probably says what is decided, and their kernel and class
    dissent_kernel: int
    dissent: int


def find_spots(explanation: Explanation, limit: int = 5) -> tuple[Spot, ...]:
    """Where to look: the prototypes that are the reason of most disputed pixels of an image.

    Args:
        explanation: the explanation of one image.
        limit: the most spots to return.

    Returns:
        At most ``limit`` spots, each of another prototype, the one of most pixels first; none if
        no pixel is disputed.
    """
    check_single(explanation)
    names = ("reason", "reason_kernel", "reason_share", "undisputed")
    reason, kernel, share, undisputed = (as_array(getattr(explanation, n)[0]) for n in names)
    kernels = int(kernel.max()) + 1
    prototype = np.where(undisputed, -1, reason * kernels + kernel)
    pixels = np.bincount(prototype[prototype >= 0])
    largest = np.argsort(-pixels, kind="stable")[:limit]
    told = ("decision", "votes", "dissenter", "dissent_kernel", "dissent")
    maps = {name: as_array(getattr(explanation, name)[0]) for name in told}
    spots = []
    for number, index in enumerate(largest[pixels[largest] > 0], start=1):
        parts, _ = ndimage.label(prototype == index)
        region = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        y, x = _innermost(region)
        n, k = divmod(int(index), kernels)
        here = {name: values[y, x].item() for name, values in maps.items()}
        spots.append(Spot(number, y, x, n, k, float(share[region].mean()), **here))
    return tuple(spots)


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the region that is farthest from its edge."""
    (window,) = ndimage.find_objects(region.astype(int))
    depth = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y + window[0].start), int(x + window[1].start)


def example_for(explanation: Explanation, spot: Spot) -> Example | None:
    """The training pixel that speaks for the result: of the reason, with the label decided."""
    source = explanation.sources[spot.annotator][spot.kernel]
    return source.example(explanation.classes[spot.decision])


def example_against(explanation: Explanation, spot: Spot) -> Example | None:
    """The training pixel behind the strongest dissent; ``None`` if nobody would dissent."""
    if spot.dissent == spot.decision:
        return None
    source = explanation.sources[spot.dissenter][spot.dissent_kernel]
    return source.example(explanation.classes[spot.dissent])


def read_patches(
    read: Callable[[str], Picture], examples: Iterable[Example]
) -> dict[Example, SourcePatch]:
    """Cut the patches around training pixels from their images.

    A patch has 48 pixels a side, of large images a quarter of the short side. At the border it is
    moved inside the image.

    Args:
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, in the frame of
            the evaluation transform; may raise ``LookupError``, ``OSError`` or ``ValueError`` for
            an image that it does not have. Each image is read once.
        examples: the pixels.

    Returns:
        A patch for each pixel that can be read.

    Example:
        >>> example = Example("cell", "a", 1, 90, 1.0)
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_patches(lambda id: image, [example])[example]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    by_image: dict[str, set[Example]] = defaultdict(set)
    for example in examples:
        by_image[example.sample_id].add(example)
    patches = {}
    for sample_id, pixels in by_image.items():
        try:
            picture = read(sample_id)
        except (LookupError, OSError, ValueError):
            continue  # the model may have been trained on other data; the panel says so
        height, width = picture.shape[:2]
        size = max(48, min(height, width) // 4)
        for pixel in pixels:
            if pixel.y >= height or pixel.x >= width:
                continue  # an image that is cut at random may not have the pixel
            top = max(0, min(pixel.y - size // 2, height - size))
            left = max(0, min(pixel.x - size // 2, width - size))
            piece = picture[top : top + size, left : left + size].copy()
            patches[pixel] = SourcePatch(piece, pixel.y - top, pixel.x - left)
    return patches


def spot_patches(
    explanations: Iterable[Explanation], read: Callable[[str], Picture]
) -> dict[Example, SourcePatch]:
    """The patches that the explanations' panels will show."""
    shown = [
        choose(explanation, spot)
        for explanation in explanations
        for spot in find_spots(explanation)
        for choose in (example_for, example_against)
    ]
    return read_patches(read, [example for example in shown if example is not None])
