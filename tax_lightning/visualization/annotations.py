"""Call-outs: the spots of an image to look at, with the examples for and against the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tax_lightning.explanation import Example, Explanation, PrototypeSource
from tax_lightning.visualization.drawing import as_array, check_single
from tax_lightning.visualization.palette import Picture

MOST_CALLOUTS = 6
_PATCH, _LARGEST_PATCH = 48, 128  # pixels a side of what is cut out, and of what is kept of it

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
    """A prototype that speaks for a class: its annotator and kernel by position, and its source."""

    annotator: int
    kernel: int
    label: str
    source: PrototypeSource | None  # None of a model that names no sources

    @classmethod
    def of(cls, explanation: Explanation, annotator: int, kernel: int, label: int) -> Argument:
        """The prototype of this annotator and kernel, for the class of this id."""
        row = explanation.sources[annotator]
        source = row[kernel] if kernel < len(row) else None
        return cls(annotator, kernel, explanation.classes[label], source)

    @property
    def example(self) -> Example | None:
        """The training pixel of the class that the prototype resembles, if there is one."""
        return self.source.example(self.label) if self.source else None


@dataclass(frozen=True)
class CallOut:
    """A numbered spot: well inside the largest disputed region that one prototype gives reason for.

    Args:
        number: 1 for the prototype that is the reason at most disputed pixels.
        y: row of the spot.
        x: column of the spot.
        share: mean share of the prototype in the decisions of the region.
        reason: the prototype behind the result.
        against: the one behind the strongest dissent; None where nobody is expected to dissent.
    """

    number: int
    y: int
    x: int
    share: float
    reason: Argument
    against: Argument | None

    @property
    def examples(self) -> list[Example]:
        """The training pixels to be shown."""
        arguments = [argument for argument in (self.reason, self.against) if argument]
        return [argument.example for argument in arguments if argument.example]


def find_callouts(explanation: Explanation, limit: int = MOST_CALLOUTS) -> tuple[CallOut, ...]:
    """The spots of an image to look at, those of the most frequent reasons first.

    Args:
        explanation: the explanation of one image.
        limit: the most call-outs to return.

    Returns:
        At most ``limit`` call-outs, each of another prototype; none if nothing is disputed.
    """
    check_single(explanation)
    names = ("reason", "reason_kernel", "reason_share", "undisputed")
    annotator, kernel, share, undisputed = (
        as_array(getattr(explanation, name)[0]) for name in names
    )
    kernels = explanation.kernels
    prototype = np.where(undisputed, -1, annotator * kernels + kernel)
    pixels = np.bincount(prototype[prototype >= 0])
    most = np.argsort(-pixels, kind="stable")[:limit]
    decision, dissent = explanation.decision[0], explanation.dissent[0]
    dissenter, own = explanation.dissenter[0], explanation.dissent_kernel[0]
    callouts = []
    for number, index in enumerate(most[pixels[most] > 0].tolist(), start=1):
        parts, _ = ndimage.label(prototype == index)
        region = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        y, x = _innermost(region)
        label, other = int(decision[y, x]), int(dissent[y, x])
        reason = Argument.of(explanation, index // kernels, index % kernels, label)
        against = None
        if other != label:
            against = Argument.of(explanation, int(dissenter[y, x]), int(own[y, x]), other)
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

    A patch has 48 pixels a side, or a quarter of the image's short side if that is more; of large
    ones a smaller copy is kept. At the border it is moved inside the image.

    Args:
        examples: the training pixels.
        read: reads a training image; None: none is at hand.

    Returns:
        A patch for each pixel whose image can be read.

    Example:
        >>> example = Example("cell", "a", 1, 90, 0.9)
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_patches([example], lambda id: image)[example]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    patches: dict[Example, SourcePatch] = {}
    name, picture = None, None
    for example in sorted(set(examples), key=lambda example: example.sample_id) if read else ():
        if example.sample_id != name:
            name, picture = example.sample_id, _read_if_there(read, example.sample_id)
        # An image that is cut or scaled at random may not have the pixel.
        if picture is not None and example.y < len(picture) and example.x < picture.shape[1]:
            patches[example] = _cut(picture, example.y, example.x)
    return patches


def _read_if_there(read: Read | None, sample_id: str) -> Picture | None:
    try:
        return read(sample_id) if read else None
    except (LookupError, OSError, ValueError):
        return None  # the model may have been trained on other data; the pictures say so


def _cut(picture: Picture, y: int, x: int) -> SourcePatch:
    height, width = picture.shape[:2]
    size = max(_PATCH, min(height, width) // 4)
    top = max(0, min(y - size // 2, height - size))
    left = max(0, min(x - size // 2, width - size))
    piece = picture[top : top + size, left : left + size].copy()
    scale = min(1.0, _LARGEST_PATCH / size)
    if scale < 1:
        shown = [max(1, round(scale * side)) for side in piece.shape[1::-1]]
        piece = np.asarray(Image.fromarray(piece).resize(shown, Image.Resampling.BOX))
    return SourcePatch(piece, int(scale * (y - top)), int(scale * (x - left)))
