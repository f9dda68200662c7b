"""Exporters: what a model says of images, in the files of the tools that people draw in.

A format is a module of this folder with a function ``write(images, folder)``. It takes images as
:class:`~tax_lightning.exporters.layers.Segmented`, one at a time, and returns the files written.
"""

from __future__ import annotations

FORMATS: dict[str, str] = {
    "coco": "coco",
    "cvat": "cvat",
    "label_studio": "label_studio",
    "nifti": "nifti",
    "qupath": "qupath",
    "seg_nrrd": "seg_nrrd",
}
"""Name of a format on the command line -> name of its module here."""
