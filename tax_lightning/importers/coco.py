"""COCO: one JSON file an annotator, or the annotator in each annotation.

Where ``annotations[].annotator`` stands, it tells who drew; else the name of the file does, or that
of the folder that it was unpacked into. A file labels all images that it lists, also those without
an annotation, which are empty; where the field tells the annotator, those who drew nothing on an
image did not label it, and images that nobody drew on are left out and counted. Crowds and run
lengths of both kinds are read as well as polygons, of which all belong to one object. The classes
are the categories in the order in which they are listed.

Source: the format of data of COCO (cocodataset.org). Read with pycocotools, whose rule decides
which pixels of run lengths belong to an object; polygons follow that of
:mod:`tax_lightning.importers.shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.pixels import size_text
from tax_lightning.exporters.coco import pycocotools
from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import files_by_annotator, lazily, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Patch, Shape, Size, polygon

_WHAT = "a COCO file with images, categories and annotations"


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The annotations of all files, by image and annotator.

    Args:
        root: The JSON file, or a folder with one for each annotator.
        images: Folder of the images; None: that of the export.
        classes: Names in the order of their ids, the background first; None: as listed.

    Raises:
        FileNotFoundError: If an image or the export is missing.
        ModuleNotFoundError: If there are run lengths and pycocotools is not installed.
        ValueError: If a file is no such export; the message names it.
    """
    drawings = Drawings()
    for path, owner in files_by_annotator(root):
        with of_file(path, _WHAT):
            data = read_json(path)
            listed = {image["id"]: image for image in data["images"]}
            labels = {category["id"]: category["name"] for category in data["categories"]}
            drawings.declared |= dict.fromkeys(labels.values())
            told = any("annotator" in annotation for annotation in data["annotations"])
            for image in () if told else listed.values():
                drawings.of(image["file_name"], owner, path, _size(image))
            for annotation in data["annotations"]:
                image = listed[annotation["image_id"]]
                person = str(annotation["annotator"]) if told else owner
                shapes = list(_shapes(annotation, labels[annotation["category_id"]], path))
                if not shapes:
                    drawings.left_out["An annotation without a segmentation."] += 1
                    continue
                drawings.of(image["file_name"], person, path, _size(image)).extend(shapes)
            if told and (rest := listed.keys() - {one["image_id"] for one in data["annotations"]}):
                drawings.left_out[f"An image of {path} that nobody drew on."] += len(rest)
    return drawings.found(root, images, classes, root.stem, "COCO")


def _size(image: Mapping[str, Any]) -> Size | None:
    """Height and width, which a file need not tell."""
    if image.get("height") is None or image.get("width") is None:
        return None
    return int(image["height"]), int(image["width"])


def _shapes(annotation: Mapping[str, Any], label: str, path: Path) -> Iterator[Shape]:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        for ring in segmentation:  # none of several is a hole
            yield polygon([np.reshape(ring, (-1, 2))], label)
    elif segmentation:
        yield Shape(label, lazily(path, _WHAT, partial(_decoded, segmentation)))


def _decoded(segmentation: Mapping[str, Any], size: Size) -> Patch:
    coco, given = pycocotools(), tuple(segmentation["size"])
    if given != size:
        raise ValueError(
            f"run lengths of {size_text(given)} pixels, but the image has {size_text(size)}"
        )
    rle: Any = dict(segmentation)
    if isinstance(rle["counts"], list):
        rle = coco.frPyObjects(rle, *size)
    return Patch(0, 0, np.asarray(coco.decode(rle)) > 0)
