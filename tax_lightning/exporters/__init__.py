"""Exporters: what a model says of images, in the files of the tools that people draw in.

A format is a module of this folder with a function ``write(images, folder)``. It takes images as
:class:`~tax_lightning.exporters.layers.Segmented`, one at a time, and returns the files written.
The folder is made if it is missing. A ValueError tells of slices that do not fit together.
"""

FORMATS: dict[str, str | None] = {
    "coco": "pycocotools.mask",
    "cvat": None,
    "label_studio": None,
    "nifti": "nibabel",
    "qupath": None,
    "seg_nrrd": None,
}
"""Name of a format, which is that of its module here -> the library of an extra that it needs."""
