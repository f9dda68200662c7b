"""3D Slicer: segmentations (.seg.nrrd) of a volume, a file of each annotator.

::

    CASE/image.nrrd       or image.nii.gz
    CASE/Ann.seg.nrrd
    CASE/Bob.seg.nrrd

Other names are given as patterns, in which ``{name}`` is the case, ``{annotator}`` the annotator,
``{group}`` perhaps a patient, and ``*`` any text.

- The names of the segments are the classes; segments of one name are one class in all files.
- Where segments overlap, a pixel can have one class: that which stands later in ``classes``. How
  many voxels that concerns is said.
- Slicer may save a part of the volume only. The rest is background.
- Each volume is scaled by the percentiles 0.5 and 99.5 of its voxels, or with ``intensity_range``
  kept as it is.

Source: the NRRD format (teem.sourceforge.net/nrrd/format.html), and the fields ``SegmentN_...`` in
Slicer's developer guide (MRML overview, segmentations).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import from_patterns
from tax_lightning.importers.cases import Found, Labels, Pixels
from tax_lightning.importers.nifti import SUFFIXES, open_nifti
from tax_lightning.importers.volumes import Scan, Shape, Volume, slices

_TO_RIGHT_AND_FRONT = {
    "left-posterior-superior": (-1.0, -1.0, 1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0, 1.0),
}


def find(
    root: Path,
    images: str = "{name}/image.n*",
    masks: str = "{name}/{annotator}.seg.nrrd",
    classes: Sequence[str] | None = None,
    axis: int = 2,
    intensity_range: tuple[float, float] | None = None,
    empty_slices: bool = False,
) -> Found:
    """The volumes and segmentations below a folder whose paths follow patterns.

    Args:
        root: The folder.
        images: Pattern of the images, .nrrd or NIfTI.
        masks: Pattern of the segmentations.
        classes: Names of the segments in the order of the ids, without the background; others are
            refused. None: all, in the order in which they are found.
        axis: The stored axis to slice along, 0 to 2.
        intensity_range: Values that mean black and white, such as -1000 and 400 for the lung. None:
            percentiles of each volume.
        empty_slices: Keep slices on which nobody drew anything.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If files do not fit each other; the message names them.
        ModuleNotFoundError: If slicerio is not installed.
    """
    samples, _ = from_patterns(root, images, masks, suffixes={".nrrd", ".nii", ".gz"})
    used = [sample for sample in samples if sample.masks]
    heads = {path: _segmentation(path) for s in used for path in s.masks.values()}
    names = class_names(
        {path: [segment["name"] for segment in head["segments"]] for path, head in heads.items()},
        classes,
    )
    scans = []
    left_out = [f"{s.id}: {s.image} has no segmentation." for s in samples if not s.masks]
    for sample in used:
        drawn = {}
        for by, path in sample.masks.items():
            place = _place(path)
            read = partial(_labels, path, names)
            drawn[by] = Volume(path, place.shape, place.affine, read)
            if place.channels > 1 and (twice := overlap([m for _, m in _masks(path)[1]])):
                left_out.append(
                    f"{path}: {twice} voxels lie in several segments, and have the class that "
                    f"stands last in {', '.join(names)}."
                )
        nifti = sample.image.name.endswith(SUFFIXES)
        image = open_nifti(sample.image, None) if nifti else _place(sample.image)
        scans.append(Scan(sample.id, (image,), drawn, group=sample.group, whole=False))
    channels = scans[0].images[0].channels
    description = Description(
        root.resolve().name,
        ("background", *names),
        ("grey",) if channels == 1 else tuple(f"modality {i + 1}" for i in range(channels)),
        intensity_range,
    )
    ids = {place: place for place in range(len(names) + 1)}
    cases = slices(scans, ids, axis, intensity_range, empty_slices)
    return Found(description, cases, left_out=left_out)


def class_names(
    segments: Mapping[Path, Iterable[str]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the segments in the order of the class ids, from 1.

    Args:
        segments: File -> names of its segments.
        classes: The names that are expected; None: all.

    Raises:
        ValueError: If a segment is not among them, or there is none at all.

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


def _segmentation(path: Path, voxels: bool = False) -> dict[str, Any]:
    """The header of a segmentation, and its voxels."""
    try:
        import slicerio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Segmentations of 3D Slicer need slicerio, which is not installed: "
            'pip install "tax-lightning[slicer]".'
        ) from error
    try:
        found: dict[str, Any] = slicerio.read_segmentation(str(path), skip_voxels=not voxels)
    except Exception as error:  # the library raises what it meets in the header
        raise _unreadable(path, error) from error
    found.setdefault("segments", [])
    if lacking := [s for s in found["segments"] if not {"name", "labelValue"} <= s.keys()]:
        raise ValueError(
            f"{path} has the segment {dict(lacking[0])}, expected a name and a label value. Save "
            "it anew from 3D Slicer as a segmentation (.seg.nrrd)."
        )
    return found


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"Cannot read {path}: {error}. Expected a whole NRRD file in left-posterior-superior or "
        "right-anterior-superior space: save it anew."
    )


def _place(path: Path) -> Volume:
    """A NRRD file, of which the header is read; layers, or channels, are its first axis."""
    import nrrd  # comes with slicerio

    try:
        header = nrrd.read_header(str(path))
        sizes = [int(size) for size in header["sizes"]]
        along = np.asarray(header["space directions"], np.float64)
        turn = np.diag(_TO_RIGHT_AND_FRONT[header["space"]])
        origin = header["space origin"]
    except Exception as error:  # the library raises what it meets in the header
        raise _unreadable(path, error) from error
    lists = [axis for axis, row in enumerate(along) if not np.isfinite(row).all()]
    if len(sizes) - len(lists) != 3 or lists not in ([], [0]):
        raise ValueError(
            f"{path} holds an array of {' x '.join(map(str, sizes))}, expected three axes in "
            "space, perhaps with layers before them. Save it anew from 3D Slicer."
        )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = along[len(lists) :].T, origin
    shape: Shape = (sizes[-3], sizes[-2], sizes[-1])

    def read() -> Pixels:
        try:
            voxels: Pixels = nrrd.read(str(path))[0]
        except Exception as error:  # of a broken file the library raises anything
            raise _unreadable(path, error) from error
        return np.moveaxis(voxels, 0, -1) if lists else voxels

    return Volume(path, shape, turn @ affine, read, sizes[0] if lists else 1)


def _masks(path: Path) -> tuple[Shape, list[tuple[str, Pixels]]]:
    """Shape, and name and voxels ``[first, second, third]`` of each segment."""
    found = _segmentation(path, voxels=True)
    voxels = found["voxels"]
    layers = voxels[None] if voxels.ndim == 3 else voxels
    return layers.shape[1:], [
        (segment["name"], layers[int(segment.get("layer", 0))] == int(segment["labelValue"]))
        for segment in found["segments"]
    ]


def _labels(path: Path, names: tuple[str, ...]) -> Labels:
    shape, masks = _masks(path)
    return combined(masks, names, shape)


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


def overlap(masks: Sequence[Pixels]) -> int:
    """Number of voxels in several masks."""
    count = np.zeros(masks[0].shape if masks else 0, np.int32)
    for mask in masks:
        count += mask
    return int((count > 1).sum())
