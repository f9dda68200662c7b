"""An explanation in bytes: small enough for a page, and all that the page computes with."""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tax_lightning.explanation import Explanation
from tax_lightning.visualization.maps import UNANIMOUS_INDEX, as_array, check_single

Bytes = NDArray[np.uint8]

FINE, COARSE = 100, 25
"""The largest value of a share in bytes: whole per cents, or steps of four in large reports."""

MOST_FINE_VALUES = 50_000_000
"""Of all images together; noisy maps of so many make a page of about 15 MB."""

SMOOTH = ("leader_share", "foreground", "who", "annotator_foreground")
"""Maps that change little from pixel to pixel: stored as differences they are much smaller."""


@dataclass(frozen=True)
class CompactMaps:
    """The maps of one explained image, a byte a value.

    Args:
        rows: int32 ``[h]``, the row of the image that each row of the maps shows.
        columns: int32 ``[w]``, the same for columns.
        levels: the largest value of a share, 100 where shares are per cents.
        result: ``[h, w]``, class id of the result.
        unanimous: ``[h, w]``, 1 where all annotators would say the same.
        leader: ``[h, w]``, position of the annotator with the largest weight.
        leader_share: ``[h, w]``, share of the decision that is the leader's first kernel's; as all
            shares from 0 to ``levels``.
        foreground: ``[C - 1, h, w]``, probability of each class but the background in the result.
            The background has the rest.
        who: ``[N, h, w]``, square root of the weight of each annotator. Roots keep small weights
            apart, which count where the annotators with large ones are left out. The weights are
            ``who**2 / (who**2).sum(axis=0)``.
        annotator_foreground: ``[N, C - 1, h, w]``, as ``foreground``, of each annotator's own
            segmentation.
        why: ``[N, h, w]``, each annotator's kernel with the largest share in the decision.
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    levels: int
    result: Bytes
    unanimous: Bytes
    leader: Bytes
    leader_share: Bytes
    foreground: Bytes
    who: Bytes
    annotator_foreground: Bytes
    why: Bytes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return len(self.rows), len(self.columns)

    @classmethod
    def planes(cls) -> tuple[str, ...]:
        """The names of the maps, in their order."""
        return tuple(f.name for f in fields(cls) if f.name not in ("rows", "columns", "levels"))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, as an NPZ file holds them."""
        return {**asdict(self), "levels": np.array(self.levels)}

    def text(self) -> str:
        """The maps as one line of text: deflated bytes in base 64.

        Maps follow one another in the order of the fields, from ``result`` on. Those in ``SMOOTH``
        are differences, modulo 256, of each pixel from the one to its left, and those of each from
        the one above.
        """
        arrays = self.arrays()
        planes = [
            _differences(arrays[name]) if name in SMOOTH else arrays[name] for name in self.planes()
        ]
        deflated = zlib.compress(b"".join(plane.tobytes() for plane in planes))
        return base64.b64encode(deflated).decode()


def levels_for(values: int) -> int:
    """How fine the shares of a report may be.

    Args:
        values: number of pixels, annotators and classes, and images of their size, multiplied.

    Example:
        >>> levels_for(3 * 512 * 512 * 10 * 2), levels_for(20 * 512 * 512 * 10 * 2)
        (100, 25)
    """
    return FINE if values <= MOST_FINE_VALUES else COARSE


def compact(explanation: Explanation, most: int, levels: int = FINE) -> CompactMaps:
    """Maps of an explanation in bytes.

    Args:
        explanation: the explanation of one image.
        most: of the longer side, in pixels. Of a larger image, evenly spread rows and columns are
            kept, so that each value is what the model says of one pixel.
        levels: the largest value of a share.

    Raises:
        ValueError: if there are several images, or more annotators, classes or kernels than a byte
            can tell apart.

    Example:
        >>> import torch
        >>> who = torch.tensor([0.64, 0.36]).view(1, 2, 1, 1)
        >>> explanation = Explanation(
        ...     ids=("a",), annotators=("Ana", "Ben"), classes=("background", "cell"),
        ...     probs=torch.tensor([0.4, 0.6]).view(1, 2, 1, 1),
        ...     annotator_probs=torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1),
        ...     who=who, why=torch.zeros(1, 2, 1, 1, dtype=torch.int64), why_share=who,
        ...     unanimous=torch.zeros(1, 1, 1, dtype=torch.bool), sources=((), ()),
        ... )
        >>> compact(explanation, 512).who.ravel().tolist()
        [80, 60]
    """
    check_single(explanation)
    counts = {
        "annotators": len(explanation.annotators),
        "classes": len(explanation.classes),
        "kernels": explanation.kernels,
    }
    for name, count in counts.items():
        if count > UNANIMOUS_INDEX:
            raise ValueError(
                f"{count} {name}, but a page tells at most {UNANIMOUS_INDEX} apart; work with the "
                "tensors of the explanation instead."
            )
    height, width = explanation.probs.shape[-2:]
    scale = min(1.0, most / max(height, width))
    rows, columns = (_spread(length, max(1, round(length * scale))) for length in (height, width))
    window = (..., rows[:, None], columns) if scale < 1 else ...

    def indices(values: NDArray[np.generic]) -> Bytes:
        return values[window].astype(np.uint8)

    def shares(values: NDArray[np.floating]) -> Bytes:
        return (levels * values[window]).round().clip(0, levels).astype(np.uint8)

    return CompactMaps(
        rows=rows,
        columns=columns,
        levels=levels,
        result=indices(as_array(explanation.decision[0])),
        unanimous=indices(as_array(explanation.unanimous[0])),
        leader=indices(as_array(explanation.leader[0])),
        leader_share=shares(as_array(explanation.leader_share[0])),
        foreground=shares(as_array(explanation.probs[0, 1:])),
        who=shares(np.sqrt(as_array(explanation.who[0]))),
        annotator_foreground=shares(as_array(explanation.annotator_probs[0, :, 1:])),
        why=indices(as_array(explanation.why[0])),
    )


def _spread(length: int, count: int) -> NDArray[np.int32]:
    """So many of the places 0 to length - 1, each in the middle of its part."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int32)


def _differences(planes: Bytes) -> Bytes:
    """Of each pixel from the one to its left, then of each from the one above, modulo 256."""
    across = np.diff(planes, axis=-1, prepend=np.uint8(0))
    return np.diff(across, axis=-2, prepend=np.uint8(0))
