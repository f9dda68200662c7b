"""ISBI 2015: multiple sclerosis lesions that two raters outlined at several time points."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.data.samples import SampleTable
from tax_lightning.data.table import TableDataModule
from tax_lightning.data.volumes import Volumes, find_volumes, slice_scan

MODALITIES = ("flair", "mprage", "pd", "t2")
"""The MR sequences of every time point."""
RATERS = ("rater 1", "rater 2")
"""Those who drew ``mask1`` and ``mask2``."""
_CLASSES = ("background", "lesion")
_LAYOUT = """Expected this layout, plain or compressed:
    training/trainingSS/preprocessed/trainingSS_TT_{flair,mprage,pd,t2}_pp.nii
    training/trainingSS/masks/trainingSS_TT_mask{1,2}.nii   (SS: the patient, TT: the time point)"""
_IMAGE = re.compile(r"(?P<scan>training\d+_\d+)_(?P<kind>[a-z0-9]+)_pp")
_MASK = re.compile(r"(?P<scan>training\d+_\d+)_mask(?P<kind>[12])")


class MSLesionDataModule(TableDataModule):
    """Slices of the training scans of the longitudinal MS lesion challenge.

    ::

        training/trainingSS/preprocessed/trainingSS_TT_{flair,mprage,pd,t2}_pp.nii
        training/trainingSS/masks/trainingSS_TT_mask{1,2}.nii

    The annotators are ``"rater 1"`` and ``"rater 2"``; a missing mask means that this rater did not
    label that scan. All scans of a patient stay in one split. Files may be compressed or not; see
    `Volumes` for how intensities and slices are read.

    The constructor reads headers, and all masks once to leave out empty slices: a second for the 42
    masks of the training set, some seconds if they are compressed.

    Args:
        root: The folder that holds ``training``, or that folder itself.
        modalities: The channels of the images, in this order.
        empty_slices: Keep slices on which no rater drew a lesion.
        axis: The stored axis that scans are sliced along; 2 gives axial slices.
        kwargs: The options of `TableDataModule`, from ``predict_images`` on, and the loading
            options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        FileNotFoundError: If the folder, its patients or a modality are missing.
        ValueError: If files do not match each other; the message names them.
        ModuleNotFoundError: If nibabel, the extra ``volumes``, is not installed.

    Source: A. Carass et al., "Longitudinal multiple sclerosis lesion segmentation: Resource and
    challenge", NeuroImage 148, 2017.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: Sequence[str] = MODALITIES,
        empty_slices: bool = False,
        axis: int = 2,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        _check_modalities(modalities)
        root = Path(root)
        endings = tuple(f"_{name}_pp" for name in modalities)
        decoder = Volumes(len(modalities), axis, endings=endings)
        samples = tuple(
            sample
            for scan in _read_scans(root, modalities)
            for sample in slice_scan(
                scan.name, scan.image, scan.masks, scan.patient, decoder, empty_slices
            )
        )
        if not samples:
            raise ValueError(
                f"All masks in {root} are empty, expected some lesions. Set empty_slices=True to "
                "keep empty slices."
            )
        values = dict(enumerate(_CLASSES)) | {255: _CLASSES[1]}
        super().__init__(SampleTable(samples, RATERS, _CLASSES, values, decoder), **kwargs)


def _check_modalities(modalities: Sequence[str]) -> None:
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(
            f"modalities: [{', '.join(modalities)}], expected one or more of "
            f"{', '.join(MODALITIES)}, each once."
        )


class _Scan(NamedTuple):
    """One patient at one time."""

    name: str
    patient: str
    image: Path
    masks: Mapping[str, Path]


def _read_scans(root: Path, modalities: Sequence[str]) -> list[_Scan]:
    """The scans that somebody labelled."""
    parent = root / "training" if (root / "training").is_dir() else root
    patients = sorted(path for path in parent.glob("training*") if path.is_dir())
    scans = [scan for patient in patients for scan in _scans_of(patient, modalities)]
    if not scans:
        raise FileNotFoundError(f"root: {root} holds no scans. {_LAYOUT}")
    if bare := [scan for scan in scans if not scan.masks]:
        rank_zero_warn(f"{len(bare)} scan(s) without a mask are left out, e.g. {bare[0].name}.")
    labelled = [scan for scan in scans if scan.masks]
    if not labelled:
        raise FileNotFoundError(f"None of the scans in {root} has a mask. {_LAYOUT}")
    return labelled


def _scans_of(patient: Path, modalities: Sequence[str]) -> Iterator[_Scan]:
    """The time points of a patient."""
    images = _by_scan(patient / "preprocessed", _IMAGE)
    masks = _by_scan(patient / "masks", _MASK)
    for scan, files in masks.items():
        if scan not in images:
            path = next(iter(files.values()))
            raise ValueError(
                f"{path} belongs to no scan: {patient / 'preprocessed'} has no images of {scan!r}. "
                "Add them, or remove the mask."
            )
    for scan, files in images.items():
        if missing := [name for name in modalities if name not in files]:
            raise FileNotFoundError(
                f"{patient / 'preprocessed'} lacks {scan}_{missing[0]}_pp.nii. Add the file, "
                f"remove the scan, or leave {missing[0]} out of modalities."
            )
        drawn = {RATERS[int(kind) - 1]: path for kind, path in masks.get(scan, {}).items()}
        yield _Scan(scan, patient.name, files[modalities[0]], drawn)


def _by_scan(folder: Path, pattern: re.Pattern[str]) -> dict[str, dict[str, Path]]:
    """Scan -> modality or number of the mask -> file."""
    found: dict[str, dict[str, Path]] = {}
    for name, path in find_volumes(folder).items():
        if match := pattern.fullmatch(name):
            found.setdefault(match["scan"], {})[match["kind"]] = path
    return found
