"""How image files become what a model sees: decoded, transformed, normalised.

A model that gets its images prepared in another way than in training fails without a word. So its
checkpoint notes how they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preparation:
    """What a data module does to an image before a model sees it, in primitives.

    Args:
        channels: Channels of an image.
        mean: Mean of each channel of the image in [0, 1].
        std: Standard deviation of each channel.
        intensity_range: Values of an image that mean black and white; None: by the kind of file.
        transforms: Names of the evaluation transforms. What they do in full, only the data module
            knows.

    Example:
        >>> preparation = Preparation(1, (0.5,), (0.25,))
        >>> Preparation.from_primitives(preparation.to_primitives()) == preparation
        True
        >>> preparation.difference(Preparation(1, (0.4,), (0.25,)))
        'mean=(0.5,) in place of (0.4,)'
    """

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    intensity_range: tuple[float, float] | None = None
    transforms: tuple[str, ...] = ()

    @classmethod
    def usual(cls, channels: int) -> Preparation:
        """That of a data module of which nothing else is said."""
        return cls(channels, *usual_normalisation(channels))

    @classmethod
    def from_primitives(cls, noted: Mapping[str, Any]) -> Preparation:
        """What `to_primitives` noted."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in noted.items()
        }
        return cls(**values)

    def to_primitives(self) -> dict[str, Any]:
        """Fields by name, tuples as lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def difference(self, other: Preparation) -> str:
        """In words, what is not as in the other; nothing where all is."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ", ".join(f"{name}={a!r} in place of {b!r}" for name, a, b in pairs if a != b)

    @property
    def known_in_full(self) -> bool:
        """Whether an image can be prepared by what is noted here alone."""
        return not self.transforms


def usual_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that are taken where none are given: ImageNet's for RGB.

    Args:
        channels: Channels of an image.

    Example:
        >>> usual_normalisation(1)
        ((0.5,), (0.25,))
    """
    return IMAGENET if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
