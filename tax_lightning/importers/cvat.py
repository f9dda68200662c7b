"""CVAT: exports "CVAT for images 1.1", one XML file for each job, whose name is the annotator.

The format does not tell who annotated: in CVAT one job is one annotator, and the replicas of a
consensus job are exported one by one. So name each file for its annotator, ``Ann.xml``, or unpack
each archive into a folder of that name. An image that a file lists without a shape is an empty
mask. Shapes with a larger ``z_order`` lie above.

Source: the documentation of CVAT's XML format; ``rle`` holds runs of a mask in its box, row by row,
zeros first.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tax_lightning.importers import shapes
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import files_by_annotator, lazily, reading
from tax_lightning.importers.shapes import Patch, Shape, Size

_WHAT = 'an export "CVAT for images 1.1"'
_NO_AREA = {"polyline", "points", "cuboid", "skeleton"}


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The shapes of all files, by image and annotator.

    Args:
        root: The XML file, or a folder with one for each annotator.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: as listed.
    """
    drawings = Drawings()
    for path, person in files_by_annotator(root, ".xml"):
        with reading(path, _WHAT):
            document = _document(path)
            listed = document.findall("image")
            if document.tag != "annotations" or not listed:
                raise ValueError(f"expected {_WHAT} with images, found <{document.tag}>")
            drawings.declared |= dict.fromkeys(
                str(name.text) for name in document.findall("meta//label/name")
            )
            for image in listed:
                size = int(image.attrib["height"]), int(image.attrib["width"])
                own = drawings.of(image.attrib["name"], person, path, size)
                for element in image:
                    if element.tag in _NO_AREA:
                        drawings.leave_out(element.tag, person)
                    elif element.tag != "tag":  # of the whole image
                        own.append(_shape(element.tag, element.attrib, path))
    return found(drawings, "CVAT", Images(root, images), classes)


def _document(path: Path) -> ElementTree.Element:
    """The root element, if the file declares no entities, by which a small one can become huge."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # in other encodings they would be overlooked
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8, in which tools write XML: {error}.") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type or entities, which are not read.")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as XML: {error}.") from error


def _shape(tag: str, given: Mapping[str, str], path: Path) -> Shape:
    label, order = given["label"], int(given.get("z_order", 0))

    def numbers(*keys: str) -> list[float]:
        return [float(given[key]) for key in keys]

    turn = float(given.get("rotation", 0))
    if tag == "polygon":
        corners = [[float(x) for x in point.split(",")] for point in given["points"].split(";")]
        return shapes.polygon([corners], label, order)
    if tag == "box":
        x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
        ring, middle = shapes.rectangle(x0, y0, x1, y1), ((x0 + x1) / 2, (y0 + y1) / 2)
        return shapes.polygon([shapes.turned(ring, turn, middle)], label, order)
    if tag == "ellipse":
        x, y, across, down = numbers("cx", "cy", "rx", "ry")
        ring = shapes.ellipse(x, y, across, down)
        return shapes.polygon([shapes.turned(ring, turn, (x, y))], label, order)
    if tag != "mask":
        raise ValueError(f"<{tag}> in an image is unknown, expected {_WHAT}")
    lengths = [int(number) for number in given["rle"].split(",")]
    top, left, height, width = (int(given[key]) for key in ("top", "left", "height", "width"))
    place = partial(_placed, lengths, top, left, (height, width))
    return Shape(label, lazily(path, _WHAT, place), order)


def _placed(lengths: Sequence[int], top: int, left: int, box: Size, size: Size) -> Patch:
    return shapes.placed(shapes.from_runs(lengths, box), top, left, size)
