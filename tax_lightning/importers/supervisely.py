"""Supervisely: JSON files of annotations, ``ann/NAME.EXT.json`` beside ``img/NAME.EXT``.

Everybody who drew is told by the tool: ``objects[].labelerLogin``. Who labelled an image and found
nothing is not, so whoever drew nothing on an image counts as not having labelled it; an image that
nobody drew on is left out and said.

Source: Supervisely's annotation format: polygons as ``points.exterior`` and ``points.interior``,
bitmaps as a PNG, compressed by zlib and written as base64, whose place is ``bitmap.origin``.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tax_lightning.exporters.outlines import Bools
from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import lazily, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Shape, polygon

_WHAT = "an annotation of Supervisely with objects"
_MOST_BYTES = 2**28  # of a bitmap as PNG


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The objects of all files, by image and annotator.

    Args:
        root: The folder of the project or data set.
        images: Folder of the images; None: the root.
        classes: Names in the order of their ids, the background first; None: by name.

    Raises:
        FileNotFoundError: If an image or the annotations are missing.
        ValueError: If a file is none of Supervisely; the message names it.
    """
    paths = [path for path in sorted(root.rglob("*.json")) if path.parent.name == "ann"]
    if not paths:
        raise FileNotFoundError(f"{root} holds no folder ann with JSON files.")
    drawings = Drawings()
    for path in paths:
        with of_file(path, _WHAT):
            objects = read_json(path)["objects"]
            if not objects:
                drawings.left_out.append(f"{path.stem}: nobody drew anything on it.")
            for given in objects:
                shape = _shape(given, path)
                if shape is None:
                    drawings.left_out.append(
                        f"A {given['geometryType']} of {given['classTitle']!r} in {path}: no area."
                    )
                else:
                    drawings.of(path.stem, given["labelerLogin"]).append(shape)
    return drawings.found(root, images, classes, root.name, "Supervisely")


def _shape(given: Mapping[str, Any], path: Path) -> Shape | None:
    kind, label = given["geometryType"], given["classTitle"]
    if kind == "bitmap":
        bitmap = given["bitmap"]
        placed = partial(_bitmap, bitmap["data"], tuple(bitmap["origin"]))
        return Shape(label, lazily(path, _WHAT, placed))
    if kind not in ("polygon", "rectangle"):
        return None
    exterior, interior = given["points"]["exterior"], given["points"]["interior"]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = exterior
        exterior = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    return polygon([exterior, *interior], label)


def _bitmap(data: str, origin: tuple[int, int], size: tuple[int, int]) -> Bools:
    unpack = zlib.decompressobj()
    try:
        png = unpack.decompress(base64.b64decode(data, validate=True), _MOST_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"a bitmap cannot be unpacked: {error}") from error
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("a bitmap is no PNG file")
    # Drawn is what is opaque, or not black where there is no transparency.
    drawn = (picture[..., -1] if picture.ndim == 3 else picture) > 0
    (left, top), (height, width) = origin, drawn.shape
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"a bitmap at {left}, {top} does not lie in its image of {size} pixels")
    whole = np.zeros(size, np.bool_)
    whole[top : top + height, left : left + width] = drawn
    return whole
