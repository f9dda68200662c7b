"""LabelMe: a folder for each annotator, with one JSON file for each image.

A file without a shape is an empty mask; no file for an image means that the annotator did not label
it. Polygons, rectangles, also turned ones, circles and masks are read; points and lines tell no
area and are left out.

Source: the files of labelme (the Python program): ``imagePath`` and ``shapes`` with ``label``,
``points`` in pixels and ``shape_type``; a ``mask`` is a PNG file in base64, its place the first of
the points.
"""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.outlines import Ring
from tax_lightning.importers import shapes
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import lazily, read_json, reading
from tax_lightning.importers.shapes import Patch, Shape, Size

_WHAT = "a file of LabelMe with imagePath and shapes"
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The shapes of all files, by image and annotator.

    Args:
        root: A folder with one folder of JSON files for each annotator.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: as listed.
    """
    folders = [
        path for path in sorted(root.glob("*")) if path.is_dir() and any(path.rglob("*.json"))
    ]
    if not folders:
        raise FileNotFoundError(
            f"{root} holds no folders of JSON files. Expected one for each annotator, called for "
            "them, also if there is one annotator."
        )
    drawings = Drawings()
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            with reading(path, _WHAT):
                data = read_json(path)
                told = data.get("imageHeight") is not None and data.get("imageWidth") is not None
                size = (int(data["imageHeight"]), int(data["imageWidth"])) if told else None
                own = drawings.of(data["imagePath"], folder.name, path, size)
                for given in data["shapes"]:
                    shape = _shape(given, path)
                    if shape is None:
                        drawings.leave_out(given["shape_type"], folder.name)
                    else:
                        own.append(shape)
    return found(drawings, "LabelMe", Images(root, images), classes)


def _shape(given: Mapping[str, Any], path: Path) -> Shape | None:
    points, label = np.asarray(given["points"], np.float64), given["label"]
    kind = given.get("shape_type") or "polygon"
    if kind == "mask":
        return Shape(label, lazily(path, _WHAT, partial(_mask, given["mask"], points[0])))
    if kind == "rectangle":
        points = shapes.rectangle(*points[0], *points[1])
    elif kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        points = shapes.ellipse(points[0, 0], points[0, 1], radius, radius)
    elif kind in _WITHOUT_AREA:
        return None
    elif kind not in ("polygon", "oriented_rectangle"):  # of which the corners are the points
        raise ValueError(f"the shape_type {kind!r} is not read, expected polygon or mask")
    return shapes.polygon([points], label)


def _mask(data: str, corner: Ring, size: Size) -> Patch:
    left, top = corner.round().astype(int).tolist()
    mask = shapes.from_png(base64.b64decode(data, validate=True), size)
    return shapes.placed(mask, top, left, size)
