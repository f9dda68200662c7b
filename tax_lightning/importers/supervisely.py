"""Supervisely: JSON files of annotations, ``ann/NAME.EXT.json`` beside ``img/NAME.EXT``.

Everybody who drew is told by the tool: ``objects[].labelerLogin``. Who labelled an image and found
nothing is not, so whoever drew nothing on an image counts as not having labelled it; an image that
nobody drew on is left out and said.

Corners of polygons and rectangles are pixels here, and belong to the object, as the tool's own
library draws them. Two data sets of a project may have images of one name.

Source: Supervisely's annotation format and the package ``supervisely``: polygons as
``points.exterior`` and ``points.interior``, bitmaps as a PNG, compressed by zlib and written as
base64, whose place is ``bitmap.origin``.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tax_lightning.importers import shapes
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import lazily, read_json, reading
from tax_lightning.importers.shapes import Patch, Shape, Size

_WHAT = "an annotation of Supervisely with objects"
_MOST_BYTES = 2**28  # of a bitmap as PNG
_FAR = 2**24  # no image is as wide


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The objects of all files, by image and annotator.

    Args:
        root: The folder of the project or data set.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: as listed.
    """
    paths = [path for path in sorted(root.rglob("*.json")) if path.parent.name == "ann"]
    if not paths:
        raise FileNotFoundError(f"{root} holds no folder ann with JSON files.")
    drawings = Drawings()
    for meta in sorted(root.glob("meta.json")):
        with reading(meta, "a list of Supervisely's classes"):
            drawings.declared |= dict.fromkeys(one["title"] for one in read_json(meta)["classes"])
    for path in paths:
        image = (path.parent.parent.relative_to(root) / "img" / path.stem).as_posix()
        with reading(path, _WHAT):
            data = read_json(path)
            told = data.get("size")
            size = (int(told["height"]), int(told["width"])) if told else None
            if not data["objects"]:
                drawings.left_out["An image that nobody drew on."] += 1
            for given in data["objects"]:
                shape = _shape(given, path)
                if shape is None:
                    drawings.leave_out(
                        given["geometryType"], given["labelerLogin"], "it is not read"
                    )
                else:
                    drawings.of(image, given["labelerLogin"], path, size).append(shape)
    return found(drawings, "Supervisely", Images(root, images), classes)


def _shape(given: Mapping[str, Any], path: Path) -> Shape | None:
    kind, label = given["geometryType"], given["classTitle"]
    if kind == "bitmap":
        bitmap = given["bitmap"]
        draw = partial(_bitmap, bitmap["data"], tuple(bitmap["origin"]))
        return Shape(label, lazily(path, _WHAT, draw))
    if kind not in ("polygon", "rectangle"):
        return None
    exterior, interior = given["points"]["exterior"], given["points"]["interior"]
    if kind == "rectangle":
        exterior = shapes.rectangle(*exterior[0], *exterior[1])
    return Shape(label, lazily(path, _WHAT, partial(_filled, exterior, interior)))


def _filled(exterior: object, interior: Sequence[object], size: Size) -> Patch:
    """A polygon with its corners, without its holes and theirs."""
    whole = np.zeros(size, np.uint8)
    for ring, value in ((exterior, 1), *((hole, 0) for hole in interior)):
        corners = np.asarray(ring, np.float64)
        if corners.ndim != 2 or not (np.abs(corners) < _FAR).all():
            raise ValueError(f"an outline is no list of points x, y: {str(ring)[:80]}")
        cv2.fillPoly(whole, [np.floor(corners).astype(np.int32)], value)
    return Patch(0, 0, whole > 0)


def _bitmap(data: str, origin: Sequence[int], size: Size) -> Patch:
    png = base64.b64decode(data, validate=True)
    if not png.startswith(b"\x89PNG"):  # of old versions, which did not compress it
        try:
            png = zlib.decompressobj().decompress(png, _MOST_BYTES)
        except zlib.error as error:
            raise ValueError(f"a bitmap cannot be unpacked: {error}") from error
    left, top = origin
    return shapes.placed(shapes.from_png(png, size), int(top), int(left), size)
