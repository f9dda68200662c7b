"""What an exporter writes: for each image, layers of class ids in the image's own pixels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Layer:
    """One segmentation of an image.

    Args:
        name: What it is: ``"result"``, the name of an annotator, or ``"dispute"``.
        classes: Names in the order of the ids; id 0 is what is not drawn.
        labels: Class ids ``[H, W]`` uint8; 255 where nothing is known, which is not drawn either.
    """

    name: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.uint8]

    def drawn(self) -> Iterator[tuple[int, str, npt.NDArray[np.bool_]]]:
        """Id, name and pixels of each class that is drawn on the image."""
        for id, name in enumerate(self.classes):
            mask = self.labels == id
            if id and mask.any():
                yield id, name, mask


@dataclass(frozen=True)
class Segmented:
    """One image with its layers, all of one size.

    Args:
        name: Of the image, as in the data set.
        file: Name of the image file, by which a tool finds it.
        layers: The result, what each annotator would draw, and where these are likely to differ.
        facts: What ``samples.csv`` says of the image beside its name, such as ``affine``.

    Example:
        >>> dots = Layer("result", ("background", "cell"), np.eye(3, dtype=np.uint8))
        >>> Segmented("a", "a.png", (dots,)).size
        (3, 3)
    """

    name: str
    file: str
    layers: tuple[Layer, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.layers[0].labels.shape
        return height, width
