"""What an importer finds: images with their masks, whose pixels are read when needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tax_lightning.data.description import Description
from tax_lightning.data.labels import MaskValues

Pixels: TypeAlias = npt.NDArray[Any]
Labels: TypeAlias = npt.NDArray[np.uint8]

BACKGROUND = "background"
RGB = ("red", "green", "blue")


def either(name: str) -> MaskValues:
    """The meaning of masks of one class, in which 1 or the white of pictures is drawn upon.

    Example:
        >>> either("vessel")
        {0: 'background', 1: 'vessel', 255: 'vessel'}
    """
    return {0: BACKGROUND, 1: name, 255: name}


def channel_names(count: int, kind: str = "channel") -> tuple[str, ...]:
    """What the channels of an image are, of which a file tells the number alone.

    Example:
        >>> channel_names(1), channel_names(3), channel_names(2, "modality")
        (('grey',), ('red', 'green', 'blue'), ('modality 1', 'modality 2'))
    """
    if count == 1:
        return ("grey",)
    if count == len(RGB) and kind == "channel":
        return RGB
    return tuple(f"{kind} {number + 1}" for number in range(count))


@dataclass(frozen=True)
class Case:
    """One image and the masks that people drew on it.

    Args:
        name: Of the image; unique in the data set. It may hold any characters.
        image: The file, which is copied as it is where the format holds such files, or a function
            that gives pixels ``[H, W]`` or ``[H, W, channels]``.
        masks: Name of an annotator -> function that gives class ids ``[H, W]``, 255 where nothing
            is known. Somebody who is missing here did not label the image; a mask of zeros says
            that there is nothing to see.
        reference: Function that gives the class ids of a reference, if there is one.
        group: Patient, slide or scan; "" where the image stands alone.
        split: ``"train"``, ``"val"``, ``"test"``, or "" where the source does not say.
        facts: Further columns of ``samples.csv`` -> text, such as ``spacing`` or ``slice``.

    Example:
        >>> case = Case("a", lambda: np.zeros((4, 4)), {"Ann": lambda: np.zeros((4, 4), np.uint8)})
        >>> case.masks["Ann"]().shape
        (4, 4)
    """

    name: str
    image: Path | Callable[[], Pixels]
    masks: Mapping[str, Callable[[], Labels]]
    reference: Callable[[], Labels] | None = None
    group: str = ""
    split: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """All that an importer found under a folder.

    Args:
        description: What ``dataset.yaml`` is to say.
        cases: The images and their masks, in the order in which they are written.
        annotators: Name of an annotator -> what is known of them, such as ``tool`` -> value; the
            columns are the same for all. May be empty.
        left_out: What was left out and why, a sentence each; also what a reader must know.
    """

    description: Description
    cases: Sequence[Case]
    annotators: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    left_out: Sequence[str] = ()
