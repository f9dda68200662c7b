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

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.extras import needed
from tax_lightning.importers.cases import Found, Labels, Pixels
from tax_lightning.importers.dicom_series import (
    DICOM,
    Files,
    affine_of,
    decoded,
    patient_of,
    plane_of,
    series_volume,
    sorted_files,
)
from tax_lightning.importers.reading import reading
from tax_lightning.importers.segments import class_names, combined, overlap
from tax_lightning.importers.volumes import Scan, Volume, sliced

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
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
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The series below a folder and the segmentations of them.

    Args:
        root: The folder.
        annotator: Where the annotator's name stands: ``creator``, ``file``, ``folder`` or
            ``series``.
        classes: Labels of the segments in the order of the ids, without the background; others are
            refused. None: all, in the order in which they are found.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it. The stored axes are
            the columns, the rows and the slices of the series.
    """
    if annotator not in _ANNOTATOR:
        raise ValueError(f"annotator: {annotator!r}, expected one of {', '.join(_ANNOTATOR)}.")
    series, segmentations, others = sorted_files(root, _SEGMENTATIONS)
    if not segmentations:
        raise FileNotFoundError(f"{root} holds no DICOM segmentation (SEG) among its files.")
    names = class_names(
        {path: _labels(path, head).values() for path, head in segmentations}, classes
    )
    drawn: dict[str, dict[str, tuple[Path, Any]]] = defaultdict(dict)
    for path, head in segmentations:
        with reading(path, DICOM):
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
    patients = Counter(patient_of(series[of]) for of in drawn)
    scans = []
    for of, masks in drawn.items():
        image, patient = series_volume(series[of]), patient_of(series[of])
        own = {}
        for by, (path, head) in masks.items():
            with reading(path, DICOM):
                own[by] = _mask(path, head, image, names, left_out)
        name = patient if patients[patient] == 1 else f"{patient}_{of[-12:]}"
        scans.append(Scan(name, (image,), own, group=patient, whole=False))
    if loose := [files[0][0] for of, files in series.items() if of not in drawn]:
        left_out.append(f"{len(loose)} series without a segmentation, e.g. that of {loose[0]}.")
    description = Description(root.resolve().name, ("background", *names), ("grey",))
    return sliced(description, scans, None, left_out, use_affines=True, **slicing)


def _series_of(path: Path, head: Any, series: dict[str, Files]) -> str:  # noqa: ANN401
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
    plane = plane_of(turn.ImageOrientationPatient, measures.PixelSpacing)
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
    if not apart:
        left_out += overlap(path, read(labels), names)
    affine = affine_of(plane, step, origins[depth.argmin()])
    return Volume(path, shape, affine, lambda: combined(read(labels), names, shape))


def _labels(path: Path, head: Any) -> dict[int, str]:  # noqa: ANN401 - of pydicom
    """Number of a segment -> its label; 0 is the background of a label map."""
    with reading(path, DICOM):
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
    with reading(path, DICOM):
        head = needed("pydicom").dcmread(path)
        stored = decoded(path, head).reshape(-1, int(head.Rows), int(head.Columns))
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
