"""DICOM: segmentations (SEG) of image series, a file of each annotator.

All DICOM files below a folder are sorted by what their headers say, whatever their names are. Of
image series, those with one slice a file are read, as of CT, MR and PET.

- The annotator is the content creator that a segmentation names, or with ``annotator`` the file,
  its folder, or the description of its series.
- The labels of the segments are the classes; segments of one label are one class in all files.
- Where segments overlap, a pixel can have one class: that which stands later in ``classes``. How
  many voxels that concerns is said. Fractional segments are cut at one half.
- A case is called by its patient, and by the end of its series' UID where a patient has several.
- Each volume is scaled by the percentiles 0.5 and 99.5 of its voxels, or with ``intensity_range``
  kept with its slope and intercept, as in Hounsfield units.

Source: DICOM PS3.3, A.51 Segmentation IOD and C.8.20 Segmentation Modules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.exporters.slices import Affine
from tax_lightning.importers.cases import Found, Labels, Pixels
from tax_lightning.importers.seg_nrrd import class_names, combined, overlap
from tax_lightning.importers.volumes import Scan, Volume, slices

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_USED = ("SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "ContentCreatorName")
_OFF = 0.1  # of the distance of slices, by which one may lie beside its place
_ANNOTATOR: dict[str, Callable[[Path, Any], str]] = {
    "creator": lambda path, head: " ".join(
        str(head.get("ContentCreatorName", "")).split("^")
    ).strip(),
    "file": lambda path, head: path.stem,
    "folder": lambda path, head: path.parent.name,
    "series": lambda path, head: str(head.get("SeriesDescription", "")),
}


def find(
    root: Path,
    annotator: str = "creator",
    classes: Sequence[str] | None = None,
    axis: int = 2,
    intensity_range: tuple[float, float] | None = None,
    empty_slices: bool = False,
) -> Found:
    """The series below a folder and the segmentations of them.

    Args:
        root: The folder.
        annotator: Where the annotator's name stands: ``creator``, ``file``, ``folder`` or
            ``series``.
        classes: Labels of the segments in the order of the ids, without the background; others are
            refused. None: all, in the order in which they are found.
        axis: The axis to slice along: 2 for the slices of the series, 1 for rows, 0 for columns.
        intensity_range: Values that mean black and white, such as -1000 and 400 for the lung. None:
            percentiles of each volume.
        empty_slices: Keep slices on which nobody drew anything.

    Raises:
        FileNotFoundError: If there are no segmentations.
        ValueError: If files do not fit each other; the message names them.
        ModuleNotFoundError: If pydicom is not installed.
    """
    if annotator not in _ANNOTATOR:
        raise ValueError(f"annotator: {annotator!r}, expected one of {', '.join(_ANNOTATOR)}.")
    series, segmentations, others = _sorted_files(root)
    if not segmentations:
        raise FileNotFoundError(f"{root} holds no DICOM segmentation (SEG) among its files.")
    names = class_names(
        {path: _labels(path, head).values() for path, head in segmentations}, classes
    )
    drawn: dict[str, dict[str, tuple[Path, Any]]] = defaultdict(dict)
    for path, head in segmentations:
        with _named(path):
            by, of = _ANNOTATOR[annotator](path, head), _series_of(path, head, series)
        if not by:
            raise ValueError(
                f"{path} says nothing of its {annotator}. Name another place of the annotators' "
                f"names, --annotator {' or '.join(key for key in _ANNOTATOR if key != annotator)}."
            )
        if by in drawn[of]:
            raise ValueError(
                f"{path} and {drawn[of][by][0]} are both by {by!r} and of one series. Expected one "
                "file: put their segments into one, or move one away."
            )
        drawn[of][by] = path, head
    left_out = [f"{others} files that are no DICOM images."] if others else []
    patients = Counter(_patient(series[of]) for of in drawn)
    scans = []
    for of, masks in drawn.items():
        image, patient = _volume(series[of]), _patient(series[of])
        own = {}
        for by, (path, head) in masks.items():
            with _named(path):
                own[by] = _mask(path, head, image, names, left_out)
        name = patient if patients[patient] == 1 else f"{patient}_{of[-12:]}"
        scans.append(Scan(name, (image,), own, group=patient, whole=False))
    if loose := [files[0][0] for of, files in series.items() if of not in drawn]:
        left_out.append(f"{len(loose)} series without a segmentation, e.g. that of {loose[0]}.")
    description = Description(
        root.resolve().name, ("background", *names), ("grey",), intensity_range
    )
    ids = {place: place for place in range(len(names) + 1)}
    cases = slices(scans, ids, axis, intensity_range, empty_slices)
    return Found(description, cases, left_out=left_out)


_Files = list[tuple[Path, Any]]


def _sorted_files(root: Path) -> tuple[dict[str, _Files], _Files, int]:
    """UID of a series -> its files and headers; segmentations; and the number of other files."""
    pydicom = _pydicom()
    series: dict[str, _Files] = defaultdict(list)
    segmentations: _Files = []
    others = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        with _named(path):
            try:
                head = pydicom.dcmread(path, stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                others += 1
                continue
            kind, uid, *_ = [head.get(key) for key in ("SOPClassUID", *_USED)]  # decodes them
        if kind in _SEGMENTATIONS:
            segmentations.append((path, head))
        elif uid and "ImagePositionPatient" in head and "Rows" in head:
            series[uid].append((path, head))
        else:
            others += 1
    return dict(series), segmentations, others


def _series_of(path: Path, head: Any, series: dict[str, _Files]) -> str:  # noqa: ANN401
    """UID of the series that a segmentation is of."""
    named = [str(item.SeriesInstanceUID) for item in head.get("ReferencedSeriesSequence", ())]
    frame = head.get("FrameOfReferenceUID")
    near = [of for of, files in series.items() if files[0][1].get("FrameOfReferenceUID") == frame]
    found = [of for of in named if of in series] or ([] if named else near)
    if len(found) != 1:
        raise ValueError(
            f"{path} belongs to {' or '.join(named) or 'no series that it names'}, of which "
            f"{len(found)} are there, expected one. Add the images of that series."
        )
    return found[0]


def _patient(files: _Files) -> str:
    return str(files[0][1].get("PatientID", "")) or files[0][0].parent.name


def _volume(files: _Files) -> Volume:
    """The slices of a series as a volume ``[columns, rows, slices]``."""
    first_path, first = files[0]
    folder = first_path.parent
    with _named(first_path):
        plane = _plane(first.ImageOrientationPatient, first.PixelSpacing)
        columns, rows = int(first.Columns), int(first.Rows)
        thickness = float(first.get("SliceThickness") or 1)
    places = np.zeros((len(files), 3))
    for place, (path, head) in zip(places, files, strict=True):
        with _named(path):
            keys = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
            odd = [key for key in keys if head.get(key) != first.get(key)]
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
    affine = _affine(plane, step, places[order[0]])
    paths = [files[place][0] for place in order]
    return Volume(folder, (columns, rows, len(files)), affine, partial(_voxels, paths))


def _plane(orientation: Sequence[float], spacing: Sequence[float]) -> Affine:
    """Steps in mm towards left, back and head to the next column and the next row: ``[3, 2]``."""
    along = np.array(orientation, np.float64).reshape(2, 3).T
    plane: Affine = along * [float(spacing[1]), float(spacing[0])]
    if np.linalg.norm(np.cross(plane[:, 0], plane[:, 1])) < 1e-9:  # mm^2; also where sides are 0
        raise ValueError(f"its columns and rows step by {plane.T.tolist()} mm, which span no plane")
    return plane


def _affine(plane: Affine, step: Affine, origin: Affine) -> Affine:
    """Towards right, front and head."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([plane, step, origin])
    turned: Affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return turned


def _voxels(paths: Sequence[Path]) -> Pixels:
    """Values of a series with slope and intercept: integers where these are whole."""
    planes = []
    for path in paths:
        with _named(path):
            head = _pydicom().dcmread(path)
            slope = float(head.get("RescaleSlope", 1))
            shift = float(head.get("RescaleIntercept", 0))
            plane = _pixels(path, head).T
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


def _mask(
    path: Path,
    head: Any,  # noqa: ANN401 - of pydicom
    image: Volume,
    names: tuple[str, ...],
    left_out: list[str],
) -> Volume:
    """A segmentation as a volume whose slices lie as far apart as those of its image."""
    frames = head.PerFrameFunctionalGroupsSequence
    turn = _group(path, head, frames[0], "PlaneOrientationSequence")
    measures = _group(path, head, frames[0], "PixelMeasuresSequence")
    places = [_group(path, head, f, "PlanePositionSequence").ImagePositionPatient for f in frames]
    plane = _plane(turn.ImageOrientationPatient, measures.PixelSpacing)
    normal = np.cross(plane[:, 0], plane[:, 1])
    image_affine = image.affine if image.affine is not None else np.eye(4)
    step = normal / np.linalg.norm(normal) * np.linalg.norm(image_affine[:3, 2])
    origins = np.array(places, np.float64)
    depth = (origins - origins[0]) @ step / (step @ step)
    numbers = np.rint(depth - depth.min()).astype(int)
    if np.abs(depth - depth.min() - numbers).max() > _OFF:
        raise ValueError(
            f"{path} has frames {np.ptp(depth):.2f} slices of its image apart, expected them on "
            "its slices. Resample the segmentation, without interpolation."
        )
    shape = (int(head.Columns), int(head.Rows), int(numbers.max()) + 1)
    read = partial(_segments, path, numbers, shape)
    labels = _labels(path, head)
    apart = len(labels) < 2 or head.get("SegmentsOverlap") == "NO"
    if twice := 0 if apart else overlap([mask for _, mask in read(labels)]):
        left_out.append(
            f"{path}: {twice} voxels lie in several segments, and have the class that stands last "
            f"in {', '.join(names)}."
        )
    affine = _affine(plane, step, origins[depth.argmin()])
    return Volume(path, shape, affine, lambda: combined(read(labels), names, shape))


def _labels(path: Path, head: Any) -> dict[int, str]:  # noqa: ANN401 - of pydicom
    """Number of a segment -> its label; 0 is the background of a label map."""
    with _named(path):
        segments = {int(s.SegmentNumber): str(s.SegmentLabel) for s in head.SegmentSequence}
    return {number: label for number, label in segments.items() if number}


def _group(path: Path, head: Any, frame: Any, key: str) -> Any:  # noqa: ANN401 - of pydicom
    """What is said of a frame, or of all frames at once."""
    shared = head.SharedFunctionalGroupsSequence[0]
    found = frame.get(key) or shared.get(key)
    if not found:
        raise ValueError(f"{path} lacks the {key} of a frame, expected one. Export it anew.")
    return found[0]


def _segments(
    path: Path, numbers: Labels, shape: tuple[int, int, int], labels: dict[int, str]
) -> list[tuple[str, Pixels]]:
    """Label and voxels ``[columns, rows, slices]`` of each segment."""
    with _named(path):
        head = _pydicom().dcmread(path)
        stored = _pixels(path, head).reshape(-1, int(head.Rows), int(head.Columns))
        half = int(head.get("MaximumFractionalValue", 1)) / 2
        kinds = head.get("SegmentationType")
        masks = {number: np.zeros(shape, np.bool_) for number in labels}
        groups = head.PerFrameFunctionalGroupsSequence
        for place, frame, group in zip(numbers, stored, groups, strict=True):
            if kinds == "LABELMAP":
                for segment, mask in masks.items():
                    mask[..., place] |= (frame == segment).T
            else:
                of = _group(path, head, group, "SegmentIdentificationSequence")
                segment = int(of.ReferencedSegmentNumber)
                masks[segment][..., place] |= (
                    frame > half if kinds == "FRACTIONAL" else frame > 0
                ).T
    return [(labels[number], mask) for number, mask in masks.items()]


def _pixels(path: Path, head: Any) -> Pixels:  # noqa: ANN401 - of pydicom
    try:
        pixels: Pixels = head.pixel_array
    except Exception as error:  # the decoders raise what they meet
        raise ValueError(
            f"Cannot decode the pixels of {path}: {error}. Replace the file, or unpack its pixels, "
            "e.g. with dcmdjpeg."
        ) from error
    return pixels


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give every failure to read a file the file's name."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a damaged header is decoded when it is asked, and raises anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise  # says already what is wrong
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole DICOM file: export it anew."
        ) from error


def _pydicom() -> Any:  # noqa: ANN401 - a module
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'DICOM files need pydicom, which is not installed: pip install "tax-lightning[dicom]".'
        ) from error
    return pydicom
