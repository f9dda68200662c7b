"""Segments with names, as classes: those of 3D Slicer and of DICOM."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tax_lightning.importers.cases import Labels, Pixels


def class_names(
    segments: Mapping[Path, Iterable[str]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of all segments, or those that are expected, in the order of the class ids from 1.

    Example:
        >>> class_names({Path("a"): ["liver"], Path("b"): ["cyst", "liver"]}, None)
        ('liver', 'cyst')
    """
    if classes is None:
        names = tuple(dict.fromkeys(name for found in segments.values() for name in found))
        if not names:
            raise ValueError(
                f"None of {len(segments)} segmentations holds a segment. Name the classes."
            )
        return names
    for path, found in segments.items():
        if unknown := [name for name in found if name not in classes]:
            raise ValueError(
                f"{path} has the segment {unknown[0]!r}, expected some of {', '.join(classes)}. "
                "Add it to classes, or rename the segment."
            )
    return tuple(classes)


def combined(
    masks: Iterable[tuple[str, Pixels]], names: tuple[str, ...], shape: tuple[int, ...]
) -> Labels:
    """Class ids of masks by name; where they overlap, the highest one.

    Example:
        >>> masks = [("cyst", np.array([True, True])), ("liver", np.array([False, True]))]
        >>> combined(masks, ("liver", "cyst"), (2,)).tolist()
        [2, 2]
    """
    labels: Labels = np.zeros(shape, np.uint8)
    for name, mask in masks:
        np.maximum(labels, np.uint8(1 + names.index(name)), out=labels, where=mask)
    return labels


def overlap(path: Path, masks: Iterable[tuple[str, Pixels]], names: Sequence[str]) -> list[str]:
    """What is to be said of voxels in several segments, if there are any."""
    twice = int((sum(mask.astype(np.int32) for _, mask in masks) > np.int32(1)).sum())
    said = f"{path}: {twice} voxels lie in several segments, and have the class that stands last in"
    return [f"{said} {', '.join(names)}."] if twice else []
