"""DICOM: image series as volumes, of which CT, MR and PET have one slice a file."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.slices import Affine
from tax_lightning.extras import needed
from tax_lightning.importers.cases import Pixels
from tax_lightning.importers.reading import reading
from tax_lightning.importers.volumes import Volume

DICOM = "a whole DICOM file: export it anew"
"""What files should be, for messages."""

_USED = ("SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "ContentCreatorName")
_SAME = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
_OFF = 0.1  # of the distance of slices, by which one may lie beside its place

Files = list[tuple[Path, Any]]
"""Paths, and the headers that pydicom reads."""


def sorted_files(root: Path, kinds: Sequence[str]) -> tuple[dict[str, Files], Files, int]:
    """What the headers of all files below a folder say, whatever their names are.

    Args:
        root: The folder.
        kinds: UIDs of the class of other files that are wanted.

    Returns:
        UID of an image series -> its files; the files of those kinds; and the number of the rest.
    """
    pydicom = needed("pydicom")
    series: dict[str, Files] = defaultdict(list)
    wanted: Files = []
    others = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        with reading(path, DICOM):
            try:
                head = pydicom.dcmread(path, stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                others += 1
                continue
            kind, uid, *_ = [head.get(key) for key in ("SOPClassUID", *_USED)]  # decodes them
        if kind in kinds:
            wanted.append((path, head))
        elif uid and "ImagePositionPatient" in head and "Rows" in head:
            series[uid].append((path, head))
        else:
            others += 1
    return dict(series), wanted, others


def patient_of(files: Files) -> str:
    """The patient of a series; its folder where the files do not say."""
    return str(files[0][1].get("PatientID", "")) or files[0][0].parent.name


def series_volume(files: Files) -> Volume:
    """The slices of a series as a volume ``[columns, rows, slices]``."""
    first_path, first = files[0]
    folder = first_path.parent
    with reading(first_path, DICOM):
        plane = plane_of(first.ImageOrientationPatient, first.PixelSpacing)
        columns, rows = int(first.Columns), int(first.Rows)
        thickness = float(first.get("SliceThickness") or 1)
    places = np.zeros((len(files), 3))
    for place, (path, head) in zip(places, files, strict=True):
        with reading(path, DICOM):
            odd = [key for key in _SAME if head.get(key) != first.get(key)]
            if odd or head.get("SamplesPerPixel") != 1 or int(head.get("NumberOfFrames", 1)) != 1:
                raise ValueError(
                    f"{path} differs from {first_path} in "
                    f"{', '.join(odd) or 'its frames or colours'}, expected a series of grey "
                    "slices of one size and direction, a file each."
                )
            place[:] = head.ImagePositionPatient
    normal = np.cross(plane[:, 0], plane[:, 1])
    normal /= np.linalg.norm(normal)
    order = np.argsort(places @ normal)
    steps = np.diff(places[order], axis=0)
    step = steps.mean(axis=0) if len(steps) else normal * thickness
    size = np.linalg.norm(step)
    if len(steps) and (size == 0 or np.abs(steps - step).max() > _OFF * size):
        apart = (steps @ normal).round(2).tolist()
        raise ValueError(
            f"The slices in {folder} are {min(apart)} to {max(apart)} mm apart, expected the same "
            "everywhere. Add slices that are missing, or take away those that stand twice."
        )
    affine = affine_of(plane, step, places[order[0]])
    paths = [files[place][0] for place in order]
    return Volume(folder, (columns, rows, len(files)), affine, partial(_voxels, paths))


def plane_of(orientation: Sequence[float], spacing: Sequence[float]) -> Affine:
    """Steps in mm towards left, back and head to the next column and the next row: ``[3, 2]``."""
    along = np.array(orientation, np.float64).reshape(2, 3).T
    plane: Affine = along * [float(spacing[1]), float(spacing[0])]
    if np.linalg.norm(np.cross(plane[:, 0], plane[:, 1])) < 1e-9:  # mm^2; also where sides are 0
        raise ValueError(f"its columns and rows step by {plane.T.tolist()} mm, which span no plane")
    return plane


def affine_of(plane: Affine, step: Affine, origin: Affine) -> Affine:
    """The affine towards right, front and head, of steps and origin towards left, back and head."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([plane, step, origin])
    turned: Affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return turned


def _voxels(paths: Sequence[Path]) -> Pixels:
    """Values of a series with slope and intercept: integers where these are whole."""
    planes = []
    for path in paths:
        with reading(path, DICOM):
            head = needed("pydicom").dcmread(path)
            slope = float(head.get("RescaleSlope", 1))
            shift = float(head.get("RescaleIntercept", 0))
            plane = decoded(path, head).T
        whole = slope.is_integer() and shift.is_integer()
        planes.append(
            plane.astype(np.int32) * int(slope) + int(shift)
            if whole
            else (plane * slope + shift).astype(np.float32)
        )
    voxels: Pixels = np.stack(planes, axis=2)
    limits = np.iinfo(np.int16)
    short = voxels.dtype == np.int32 and voxels.min() >= limits.min and voxels.max() <= limits.max
    return voxels.astype(np.int16) if short else voxels


def decoded(path: Path, head: Any) -> Pixels:  # noqa: ANN401 - of pydicom
    """The pixels of a file."""
    try:
        pixels: Pixels = head.pixel_array
    except Exception as error:  # the decoders raise what they meet
        raise ValueError(
            f"Cannot decode the pixels of {path}: {error}. Replace the file, or unpack its pixels, "
            "e.g. with dcmdjpeg."
        ) from error
    return pixels
