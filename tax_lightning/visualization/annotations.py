"""Call-outs: the spots of an image to look at, with the examples for and against the result."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tax_lightning.explanation import Example, Explanation, PrototypeSource
from tax_lightning.palette import Picture
from tax_lightning.visualization.drawing import as_array, check_single

MOST_CALLOUTS = 6
_PATCH = 48  # pixels a side, at least
_APART = 0.1  # of the longer side: numbers on spots nearer to each other would cover one another

Read = Callable[[str], Picture]
"""Gives the picture ``[H, W, 3]`` uint8 of a training image by its id, in the frame of the
evaluation transform; may raise ``LookupError``, ``OSError`` or ``ValueError``."""


@dataclass(frozen=True)
class SourcePatch:
    """A piece ``[h, w, 3]`` of a training image, and where the pixel that counts lies in it."""

    image: Picture
    y: int
    x: int


@dataclass(frozen=True)
class Argument:
    """A prototype that speaks for a class, and the position of its annotator."""

    annotator: int
    label: str
    source: PrototypeSource

    @property
    def example(self) -> Example | None:
        """The training pixel of the class that the prototype resembles, if there is one."""
        return self.source.example(self.label)


@dataclass(frozen=True)
class CallOut:
    """A numbered spot of one prototype, well inside the largest region that is most disputed.

    Spots keep apart from each other if they can.
    """

    number: int  # 1 for the prototype that is the reason at most disputed pixels
    y: int
    x: int
    share: float  # mean share of the prototype in the decisions of the region
    reason: Argument  # the prototype behind the result
    against: Argument | None  # that of the strongest dissent, if anybody is expected to dissent


def find_callouts(explanation: Explanation, limit: int = MOST_CALLOUTS) -> tuple[CallOut, ...]:
    """The spots of one image to look at, each of another prototype, frequent reasons first."""
    check_single(explanation)
    kernels, share = explanation.kernels, as_array(explanation.reason_share[0])
    dispute = as_array(explanation.dispute[0])
    index = explanation.reason * kernels + explanation.reason_kernel
    prototype = as_array(index.masked_fill(explanation.undisputed, -1)[0])
    pixels = np.bincount(prototype[prototype >= 0])
    most = np.argsort(-pixels, kind="stable")[:limit]

    def argument(annotator: int, kernel: int, label: int) -> Argument:
        source = explanation.sources[annotator][kernel]
        return Argument(annotator, explanation.classes[label], source)

    callouts, free = [], np.ones(dispute.shape, np.bool_)
    rows, columns = np.indices(dispute.shape)
    for number, index in enumerate(most[pixels[most] > 0].tolist(), start=1):
        own = prototype == index
        # Where most would say the same there is nobody to hear against it.
        heard = own & (dispute >= dispute[own].max() / 2)
        parts, _ = ndimage.label(next(m for m in (heard & free, own & free, heard) if m.any()))
        region = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        y, x = _innermost(region)
        free &= np.hypot(rows - y, columns - x) > _APART * max(dispute.shape)
        names = ("decision", "dissent", "dissenter", "dissent_kernel")
        label, other, dissenter, own = (int(getattr(explanation, n)[0, y, x]) for n in names)
        reason = argument(index // kernels, index % kernels, label)
        against = None if other == label else argument(dissenter, own, other)
        callouts.append(CallOut(number, y, x, float(share[region].mean()), reason, against))
    return tuple(callouts)


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the region that is farthest from its edge."""
    (window,) = ndimage.find_objects(region.astype(int))
    depth = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y + window[0].start), int(x + window[1].start)


def read_patches(examples: Iterable[Example], read: Read | None) -> dict[Example, SourcePatch]:
    """Cut the surroundings of training pixels from their images, each of which is read once.

    A patch has 48 pixels a side, or a quarter of the image's short side if that is more. At the
    border it is moved inside the image. Pixels whose image cannot be read have none; ``read`` is
    None where no image is at hand.

    Example:
        >>> example = Example("cell", "a", 1, 90, 0.9)
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_patches([example], lambda id: image)[example]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    patches: dict[Example, SourcePatch] = {}
    name, picture = None, None
    if read is None:
        return patches
    for example in sorted(set(examples), key=lambda example: example.sample_id):
        if example.sample_id != name:
            name, picture = example.sample_id, None
            # The model may have been trained on other data; the pictures say so.
            with suppress(LookupError, OSError, ValueError):
                picture = read(name)
        # An image that is cut or scaled at random may not have the pixel.
        if picture is not None and example.y < len(picture) and example.x < picture.shape[1]:
            patches[example] = _cut(picture, example.y, example.x)
    return patches


def _cut(picture: Picture, y: int, x: int) -> SourcePatch:
    height, width = picture.shape[:2]
    size = max(_PATCH, min(height, width) // 4)
    top = max(0, min(y - size // 2, height - size))
    left = max(0, min(x - size // 2, width - size))
    piece = picture[top : top + size, left : left + size].copy()
    return SourcePatch(piece, y - top, x - left)
