"""Parts of an image: the patches it is cut into, and where each of them lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PLACE = ("whole", "top", "left", "whole_height", "whole_width")
"""Columns of ``samples.csv`` that say of which image a tile is a part, and where it lies there."""


class Place(NamedTuple):
    """Where a part of an image lies in the whole of it.

    Args:
        whole: Name of the whole image.
        top: First row, in pixels of the whole.
        left: First column.
        height: Of the whole.
        width: Of the whole.
    """

    whole: str
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, facts: Mapping[str, str], id: str) -> Place | None:
        """The place that the columns of ``samples.csv`` tell, None for an image that is whole.

        Args:
            facts: Column -> text; the columns of a place are those of `PLACE`.
            id: Name of the sample, for the message.

        Raises:
            ValueError: If some of the columns are missing, or hold no whole numbers from 0 up.

        Example:
            >>> Place.of({"whole": "a", "top": "0", "left": "8", "whole_height": "9",
            ...     "whole_width": "16"}, "a@0,8")
            Place(whole='a', top=0, left=8, height=9, width=16)
        """
        if "whole" not in facts:
            return None
        numbers = [facts.get(column, "") for column in PLACE[1:]]
        if not all(text.isdecimal() for text in numbers):
            found = ", ".join(f"{column}={facts.get(column, '')!r}" for column in PLACE)
            raise ValueError(
                f"Sample {id!r} is a part of an image by the column whole of samples.csv, but the "
                f"columns of its place are {found}. Expected whole numbers from 0 up, as `tax "
                "import --tile` writes them: complete them, or call the column whole otherwise."
            )
        return cls(facts["whole"], *map(int, numbers))

    def facts(self) -> dict[str, str]:
        """All of this as columns of ``samples.csv``."""
        return dict(zip(PLACE, map(str, self), strict=True))


def check_patches(size: int, stride: int | None) -> None:
    """Check the size of patches and how far they lie apart.

    Args:
        size: Side of a patch, in pixels.
        stride: Pixels from one patch to the next; None: the size.

    Raises:
        ValueError: If a patch is empty, or pixels would be left between patches.
    """
    if size < 1:
        raise ValueError(f"patch size {size}: expected a number of pixels from 1 up, e.g. 512.")
    if stride is not None and not 1 <= stride <= size:
        raise ValueError(
            f"patch stride {stride}: expected 1..{size}, the patch size, so that no pixel is left "
            "out between patches."
        )
