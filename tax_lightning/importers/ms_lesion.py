"""ISBI 2015: multiple sclerosis lesions that two raters outlined at several time points.

::

    training/trainingSS/preprocessed/trainingSS_TT_{flair,mprage,pd,t2}_pp.nii
    training/trainingSS/masks/trainingSS_TT_mask{1,2}.nii     SS: the patient, TT: the time point

Name the folder that holds ``training``, or that folder itself. Files may be compressed or not.

- ``rater 1`` and ``rater 2`` drew ``mask1`` and ``mask2``, each the same person throughout. A
  missing mask: this rater did not label that scan.
- A picture is an axial slice with the sequences as channels. Slices without a lesion of either
  rater are left out: figures on the others are not the challenge's, which counts whole volumes.
- All scans of a patient are one group. No splits are published: the test scans have no masks.
- Each scan and sequence is scaled by the percentiles 0.5 and 99.5.

Source: A. Carass et al., "Longitudinal multiple sclerosis lesion segmentation: Resource and
challenge", NeuroImage 148, 2017.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tax_lightning.data.description import Description
from tax_lightning.importers.cases import Found, either
from tax_lightning.importers.nifti import find_nifti, open_nifti
from tax_lightning.importers.volumes import Scan, sliced

MODALITIES = ("flair", "mprage", "pd", "t2")
_LAYOUT = """Expected this layout, plain or compressed:
    training/trainingSS/preprocessed/trainingSS_TT_{flair,mprage,pd,t2}_pp.nii
    training/trainingSS/masks/trainingSS_TT_mask{1,2}.nii   (SS: the patient, TT: the time point)"""
_IMAGE = re.compile(r"(?P<scan>training\d+_\d+)_(?P<kind>[a-z0-9]+)_pp")
_MASK = re.compile(r"(?P<scan>training\d+_\d+)_mask(?P<kind>[12])")


def find(
    root: Path,
    modalities: Sequence[str] = MODALITIES,
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The scans of the training part.

    Args:
        root: The folder that holds ``training``, or that folder itself.
        modalities: The channels of the images, in this order.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
    """
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(
            f"modalities: [{', '.join(modalities)}], expected one or more of "
            f"{', '.join(MODALITIES)}, each once."
        )
    parent = root / "training" if (root / "training").is_dir() else root
    patients = sorted(path for path in parent.glob("training*") if path.is_dir())
    scans = [scan for patient in patients for scan in _scans(patient, modalities)]
    labelled = [scan for scan in scans if scan.masks]
    if not labelled:
        raise FileNotFoundError(f"{root} holds no scans with masks. {_LAYOUT}")
    description = Description(
        "MS lesions",
        ("background", "lesion"),
        tuple(modalities),
        source="A. Carass et al., NeuroImage 148, 2017; MS lesion challenge of ISBI 2015",
        licence="The terms accepted at registration for the challenge",
    )
    left_out = [f"{scan.name} has no mask." for scan in scans if not scan.masks]
    return sliced(description, labelled, either("lesion"), left_out, **slicing)


def _scans(patient: Path, modalities: Sequence[str]) -> Iterator[Scan]:
    """The time points of a patient."""
    images = _by_scan(patient / "preprocessed", _IMAGE)
    masks = _by_scan(patient / "masks", _MASK)
    for scan, files in masks.items():
        if scan not in images:
            path = next(iter(files.values()))
            raise ValueError(
                f"{path} belongs to no scan: {patient / 'preprocessed'} has no images of {scan!r}. "
                "Add them, or move the mask away."
            )
    for scan, files in images.items():
        if missing := [name for name in modalities if name not in files]:
            raise FileNotFoundError(
                f"{patient / 'preprocessed'} lacks {scan}_{missing[0]}_pp.nii. Add the file, or "
                "leave this one out of modalities."
            )
        yield Scan(
            scan,
            tuple(open_nifti(files[name]) for name in modalities),
            {f"rater {kind}": open_nifti(path) for kind, path in masks.get(scan, {}).items()},
            group=patient.name,
        )


def _by_scan(folder: Path, pattern: re.Pattern[str]) -> dict[str, dict[str, Path]]:
    """Scan -> modality or number of the mask -> file."""
    found: dict[str, dict[str, Path]] = {}
    for name, path in find_nifti(folder).items():
        if match := pattern.fullmatch(name):
            found.setdefault(match["scan"], {})[match["kind"]] = path
    return found
