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

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import from_patterns
from tax_lightning.extras import needed
from tax_lightning.importers.cases import Found, Labels, Pixels, channel_names
from tax_lightning.importers.nifti import SUFFIXES, open_nifti
from tax_lightning.importers.reading import reading
from tax_lightning.importers.segments import class_names, combined, overlap
from tax_lightning.importers.volumes import Scan, Shape, Volume, channels_of, sliced

_WHAT = (
    "a whole NRRD file in left-posterior-superior or right-anterior-superior space: save it anew"
)
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
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The volumes and segmentations below a folder whose paths follow patterns.

    Args:
        root: The folder.
        images: Pattern of the images, .nrrd or NIfTI.
        masks: Pattern of the segmentations.
        classes: Names of the segments in the order of the ids, without the background; others are
            refused. None: all, in the order in which they are found.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
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
            mask = _volume(path)
            drawn[by] = replace(mask, read=partial(_labels, path, names))
            if mask.channels > 1:
                left_out += overlap(path, _masks(path)[1], names)
        nifti = sample.image.name.endswith(SUFFIXES)
        image = open_nifti(sample.image, None) if nifti else _volume(sample.image)
        scans.append(Scan(sample.id, (image,), drawn, group=sample.group, whole=False))
    channels = channel_names(channels_of(scans), "modality")
    description = Description(root.resolve().name, ("background", *names), channels)
    return sliced(description, scans, None, left_out, use_affines=True, **slicing)


def _segmentation(path: Path, voxels: bool = False) -> dict[str, Any]:
    """The header of a segmentation, and its voxels."""
    with reading(path, _WHAT):
        found: dict[str, Any] = needed("slicerio").read_segmentation(
            str(path), skip_voxels=not voxels
        )
    found.setdefault("segments", [])
    if lacking := [s for s in found["segments"] if not {"name", "labelValue"} <= s.keys()]:
        raise ValueError(
            f"{path} has the segment {dict(lacking[0])}, expected a name and a label value. Save "
            "it anew from 3D Slicer as a segmentation (.seg.nrrd)."
        )
    return found


def _volume(path: Path) -> Volume:
    """A NRRD file, of which the header is read; layers, or channels, are its first axis."""
    import nrrd  # comes with slicerio

    with reading(path, _WHAT):
        header = nrrd.read_header(str(path))
        sizes = [int(size) for size in header["sizes"]]
        along = np.asarray(header["space directions"], np.float64)
        turn = np.diag(_TO_RIGHT_AND_FRONT[header["space"]])
        origin = np.asarray(header["space origin"], np.float64)
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
        with reading(path, _WHAT):
            voxels: Pixels = nrrd.read(str(path))[0]
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
