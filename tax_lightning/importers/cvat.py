"""CVAT: exports "CVAT for images 1.1", one XML file for each job, whose name is the annotator.

The format does not tell who annotated: in CVAT one job is one annotator, and the replicas of a
consensus job are exported one by one. So name each file for its annotator, ``Ann.xml``. An image
that a file lists without a shape is an empty mask. Shapes with a larger ``z_order`` lie above.

Source: the documentation of CVAT's XML format; ``rle`` holds runs of a mask in its box, row by row,
zeros first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tax_lightning.exporters.outlines import Bools
from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import json_files, lazily, of_file
from tax_lightning.importers.shapes import Drawings, Shape, from_runs, polygon
from tax_lightning.importers.xml_files import read_xml

_WHAT = 'an export "CVAT for images 1.1"'
_DRAWN = {"polygon", "mask", "box"}


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The shapes of all files, by image and annotator.

    Args:
        root: The XML file, or a folder with one for each annotator.
        images: Folder of the images; None: that of the export.
        classes: Names in the order of their ids, the background first; None: by name.

    Raises:
        FileNotFoundError: If an image or the export is missing.
        ValueError: If a file is no such export; the message names it.
    """
    drawings = Drawings()
    for path in json_files(root, ".xml"):
        with of_file(path, _WHAT):
            document = read_xml(path)
            listed = document.findall("image")
            if document.tag != "annotations" or not listed:
                raise ValueError(f"expected {_WHAT} with images, found <{document.tag}>")
            for image in listed:
                own = drawings.of(image.attrib["name"], path.stem)
                for element in image:
                    if element.tag in _DRAWN:
                        own.append(_shape(element.tag, element.attrib, path))
                    elif element.tag in ("polyline", "points", "ellipse", "cuboid", "skeleton"):
                        drawings.left_out.append(
                            f"A {element.tag} of {element.get('label')!r} on "
                            f"{image.attrib['name']} by {path.stem}: it tells no area."
                        )
    return drawings.found(root, images, classes, root.stem, "CVAT")


def _shape(tag: str, given: Mapping[str, str], path: Path) -> Shape:
    label, order = given["label"], int(given.get("z_order", 0))
    if tag == "polygon":
        corners = [[float(x) for x in point.split(",")] for point in given["points"].split(";")]
        return polygon([corners], label, order)
    if tag == "box":
        x0, y0, x1, y1 = (float(given[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return polygon([[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]], label, order)
    lengths = [int(number) for number in given["rle"].split(",")]
    top, left, height, width = (int(given[key]) for key in ("top", "left", "height", "width"))
    place = partial(_placed, lengths, top, left, height, width)
    return Shape(label, lazily(path, _WHAT, place), order)


def _placed(
    lengths: Sequence[int], top: int, left: int, height: int, width: int, size: tuple[int, int]
) -> Bools:
    """A mask in its box, in the whole image."""
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"a mask of {width} x {height} at {left}, {top} does not lie in its image of "
            f"{size[1]} x {size[0]} pixels"
        )
    whole = np.zeros(size, np.bool_)
    whole[top : top + height, left : left + width] = from_runs(lengths, (height, width))
    return whole
