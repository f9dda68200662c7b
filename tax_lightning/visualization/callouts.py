"""Call-outs: the prototypes that decide most of an image, each with a spot, a patch and words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.lettering import shorten
from tax_lightning.visualization.maps import as_array, check_single
from tax_lightning.visualization.palette import Picture

_LOOKED_AT = 512  # pixels a side, at most: a spot need not be found to the pixel


@dataclass(frozen=True)
class SourcePatch:
    """A piece of a training image round the pixel that a prototype was taken from.

    Args:
        image: ``[h, w, 3]`` uint8, cut from the image.
        y: row of the pixel within the piece.
        x: column of the pixel within the piece.
    """

    image: Picture
    y: int
    x: int


@dataclass(frozen=True)
class CallOut:
    """A numbered spot of the picture: the largest region that one prototype decides.

    Args:
        number: 1 for the prototype that decides most pixels, then 2, and so on.
        annotator: index of the deciding annotator.
        kernel: index of the deciding kernel within the annotator.
        y: row of the spot, well inside the region.
        x: column of the spot.
        share: mean share of the kernel in the decisions of the region, in ``[0, 1]``.
    """

    number: int
    annotator: int
    kernel: int
    y: int
    x: int
    share: float


def find_callouts(explanation: Explanation, limit: int = 5) -> tuple[CallOut, ...]:
    """The prototypes that decide most pixels of an image, each with the spot to point at.

    Of an image of more than 512 pixels a side, every second, third, ... row and column is looked
    at.

    Args:
        explanation: the explanation of one image.
        limit: the most call-outs to return.

    Returns:
        At most ``limit`` call-outs, each of another prototype, the one that decides most pixels
        first; none if all annotators would say the same everywhere.

    Raises:
        ValueError: if the explanation is of several images.
    """
    check_single(explanation)
    step = -(-max(explanation.probs.shape[-2:]) // _LOOKED_AT)
    leader, kernel, share, unanimous = (
        as_array(tensor[0, ::step, ::step])
        for tensor in (
            explanation.leader,
            explanation.leader_kernel,
            explanation.leader_share,
            explanation.unanimous,
        )
    )
    kernels = int(kernel.max()) + 1
    prototype = np.where(unanimous, -1, leader * kernels + kernel)
    pixels = np.bincount(prototype[prototype >= 0])
    largest = np.argsort(-pixels, kind="stable")[:limit]
    callouts = []
    for number, index in enumerate(largest[pixels[largest] > 0], start=1):
        region = _largest_component(prototype == index)
        y, x = _innermost(region)
        n, k = divmod(int(index), kernels)
        decided = float(share[region].mean())
        callouts.append(CallOut(number, n, k, step * y, step * x, decided))
    return tuple(callouts)


def callout_caption(
    explanation: Explanation, callout: CallOut, has_patch: bool = True
) -> tuple[str, ...]:
    """The lines that stand beside a call-out's training patch.

    Args:
        explanation: the explanation that the call-out is of.
        callout: the call-out.
        has_patch: whether the training patch is at hand.

    Returns:
        The annotator and prototype, where it was taken from, and its share in the decision.
    """
    source = explanation.sources[callout.annotator][callout.kernel]
    origin: tuple[str, ...] = ("not yet projected",)
    if source.projected:
        origin = (
            f"from {shorten(source.sample_id)}",
            f"at y {source.y}, x {source.x}",
            f"labelled: {source.label}",
        )
        origin += () if has_patch else ("(image not found)",)
    name = shorten(explanation.annotators[callout.annotator])
    return (
        f"{name} · prototype {callout.kernel}",
        *origin,
        f"{callout.share:.0%} of the decision",
    )


def _largest_component(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected part with the most pixels."""
    labels, _ = ndimage.label(region)
    sizes = np.bincount(labels.ravel())
    largest: NDArray[np.bool_] = labels == sizes[1:].argmax() + 1
    return largest


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the region that is farthest from its edge."""
    (window,) = ndimage.find_objects(region.astype(int))
    depth = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y + window[0].start), int(x + window[1].start)
