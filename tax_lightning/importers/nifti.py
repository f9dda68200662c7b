"""NIfTI: a volume a case, with a mask of each annotator in a file of its own.

::

    CASE/image.nii.gz
    CASE/label_annot_1.nii.gz
    CASE/label_annot_3.nii.gz     2 did not label this case

CURVAS and MBH-Seg lie like this. Other names are given as patterns, in which ``{name}`` is the
case, ``{annotator}`` the annotator, ``{group}`` perhaps a patient, and ``*`` any text. The folders
that ``tax`` writes in the format nifti are read with ``--masks "{name}/{annotator}.nii*"``.

- Masks are turned by their affine to lie on the image. Other grids, origins or spacings are
  refused.
- Pictures are slices along a stored axis. They stand upright, by the affine.
- An image of several modalities has them behind its third axis.
- Each volume is scaled by the percentiles 0.5 and 99.5 of its voxels, or with ``intensity_range``
  kept as it is.

Source: Cox et al., "A (sort of) new image data format standard: NIfTI-1", NeuroImage 22, 2004.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import from_patterns
from tax_lightning.extras import needed
from tax_lightning.importers.cases import Found, Pixels, channel_names
from tax_lightning.importers.layout import by_name
from tax_lightning.importers.reading import reading
from tax_lightning.importers.volumes import (
    Scan,
    Shape,
    Volume,
    channels_of,
    names_and_values,
    sliced,
)

SUFFIXES = (".nii", ".nii.gz")
_WHAT = f"a whole NIfTI file ({', '.join(SUFFIXES)}): replace it or remove it"


def find(
    root: Path,
    images: str = "{name}/image.nii*",
    masks: str = "{name}/label_annot_{annotator}.nii*",
    classes: Sequence[str] | None = None,
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The volumes below a folder whose paths follow patterns.

    Args:
        root: The folder.
        images: Pattern of the images.
        masks: Pattern of the masks.
        classes: Names of the values 0, 1, 2 and so on; 255 then means not labelled. None: a class
            for each value that any mask holds, to find which all masks are read.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
    """
    samples, _ = from_patterns(root, images, masks, suffixes={".nii", ".gz"})
    scans = [
        Scan(
            sample.id,
            (open_nifti(sample.image, channels=None),),
            {by: open_nifti(path) for by, path in sample.masks.items()},
            group=sample.group,
        )
        for sample in samples
        if sample.masks
    ]
    channels = channel_names(channels_of(scans), "modality")
    names, values = names_and_values(scans, classes)
    left_out = [f"{s.id}: {s.image} has no mask." for s in samples if not s.masks]
    description = Description(root.resolve().name, names, channels)
    return sliced(description, scans, values, left_out, **slicing)


def find_nifti(folder: Path) -> dict[str, Path]:
    """NIfTI files of a folder by name without extension, sorted; hidden ones are passed over."""
    return by_name(
        (path.name.removesuffix(".gz").removesuffix(".nii"), path)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    )


def open_nifti(path: Path, channels: int | None = 1) -> Volume:
    """A NIfTI file, of which the header is read.

    Args:
        path: The file. Axes of length 1 behind the third count for nothing. An affine that the
            header does not claim to know, or that is singular, counts as unknown.
        channels: Length of the last axis that is longer than 1, if that holds modalities. None:
            what lies behind the third axis does.
    """
    with reading(path, _WHAT):
        image = needed("nibabel").load(path)
        kind = image.get_data_dtype()
        if kind.kind not in "iuf":
            raise ValueError(f"its voxels are of type {kind}, expected numbers")
        stored = tuple(int(length) for length in image.shape)
        known = any(int(image.header[key]) > 0 for key in ("qform_code", "sform_code"))
        affine = np.asarray(image.affine, np.float64)
    shape, last = _arranged(path, stored, channels)
    known = known and bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine)) > 1e-12

    def read() -> Pixels:
        with reading(path, _WHAT):
            voxels: Pixels = np.asanyarray(needed("nibabel").load(path).dataobj)
        return voxels.reshape(shape if last == 1 else (*shape, last))

    return Volume(path, shape, affine if known else None, read, last)


def _arranged(path: Path, stored: tuple[int, ...], channels: int | None) -> tuple[Shape, int]:
    """Lengths of the three axes, and of that of the channels."""
    rest = list(stored)
    while rest and rest[-1] == 1:
        rest.pop()
    last = 1
    if channels is None and len(rest) > 3:
        last = rest.pop()
    elif channels is not None and channels > 1:
        last = rest.pop() if rest else 0
    one, two, three, *more = (*rest, 1, 1, 1)
    if last != (channels or last) or any(length != 1 for length in more):
        also = f" and, as the last axis, {channels} modalities" if (channels or 1) > 1 else ""
        raise ValueError(
            f"{path} holds an array of {' x '.join(map(str, stored))}, expected a picture (two "
            f"axes) or a volume (three){also}. Take the file out, or correct it."
        )
    return (one, two, three), last
