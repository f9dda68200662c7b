"""The sources that ``tax import`` knows."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "arrays": "arrays",
    "bubil": "bubil",
    "chase": "chase",
    "coco": "coco",
    "cvat": "cvat",
    "dicom_seg": "dicom_seg",
    "drive": "drive",
    "gleason": "gleason",
    "imapp": "imapp",
    "label_studio": "label_studio",
    "labelme": "labelme",
    "lidc": "lidc",
    "ms_lesion": "ms_lesion",
    "nifti": "nifti",
    "npc170": "npc170",
    "qubiq": "qubiq",
    "qupath": "qupath",
    "riga": "riga",
    "seg_nrrd": "seg_nrrd",
    "stare": "stare",
    "supervisely": "supervisely",
}
"""Name of a source on the command line -> name of its module here."""
