"""COCO: one JSON file an annotator, or the annotator in each annotation.

Where ``annotations[].annotator`` stands, it tells who drew; else the name of the file does. A file
labels all images that it lists, also those without an annotation, which are empty; where the field
tells the annotator, those who drew nothing on an image did not label it. Crowds and run lengths of
both kinds are read as well as polygons, of which all belong to one object.

Source: the format of data of COCO (cocodataset.org). Read with pycocotools, whose rule decides
which pixels of run lengths belong to an object; polygons follow that of
:mod:`tax_lightning.importers.shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.coco import pycocotools
from tax_lightning.exporters.outlines import Bools
from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import json_files, lazily, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Shape, polygon, union

_WHAT = "a COCO file with images, categories and annotations"


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The annotations of all files, by image and annotator.

    Args:
        root: The JSON file, or a folder with one for each annotator.
        images: Folder of the images; None: that of the export.
        classes: Names in the order of their ids, the background first; None: by name.

    Raises:
        FileNotFoundError: If an image or the export is missing.
        ModuleNotFoundError: If there are run lengths and pycocotools is not installed.
        ValueError: If a file is no such export; the message names it.
    """
    drawings = Drawings()
    for path in json_files(root):
        with of_file(path, _WHAT):
            data = read_json(path)
            files = {image["id"]: image["file_name"] for image in data["images"]}
            labels = {category["id"]: category["name"] for category in data["categories"]}
            told = any("annotator" in annotation for annotation in data["annotations"])
            for name in () if told else files.values():
                drawings.of(name, path.stem)
            for annotation in data["annotations"]:
                person = str(annotation["annotator"]) if told else path.stem
                own = drawings.of(files[annotation["image_id"]], person)
                own.append(_shape(annotation, labels[annotation["category_id"]], path))
    return drawings.found(root, images, classes, root.stem, "COCO")


def _shape(annotation: Mapping[str, Any], label: str, path: Path) -> Shape:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        # None of several polygons is a hole.
        rings = [np.reshape(ring, (-1, 2)) for ring in segmentation]
        return union([polygon([ring], label) for ring in rings], label)
    return Shape(label, lazily(path, _WHAT, partial(_decoded, segmentation)))


def _decoded(segmentation: Mapping[str, Any], size: tuple[int, int]) -> Bools:
    coco, given = pycocotools(), tuple(segmentation["size"])
    if given != size:
        raise ValueError(f"run lengths of {given} pixels, but the image has {size}")
    rle: Any = dict(segmentation)
    if isinstance(rle["counts"], list):
        rle = coco.frPyObjects(rle, *size)
    return np.asarray(coco.decode(rle)) > 0
