"""CVAT: "CVAT for images 1.1", one XML file for each layer; what `tax import cvat` reads.

Upload a file to a job of the same images as annotations. Each class of an image is one mask.
"""

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.exporters.outlines import Bools, runs
from tax_lightning.files import file_name


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write ``LAYER.xml`` for each layer; see :mod:`tax_lightning.exporters`."""
    documents: dict[str, ElementTree.Element] = {}
    for number, image in enumerate(images):
        height, width = map(str, image.size)
        for layer in image.layers:
            root = documents.setdefault(layer.name, _document(layer))
            attributes = {"id": str(number), "name": image.file, "width": width, "height": height}
            element = ElementTree.SubElement(root, "image", attributes)
            for _, name, mask in layer.drawn():
                _add_mask(element, name, mask)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, root in documents.items():
        path = folder / f"{file_name(name)}.xml"
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
        written.append(path)
    return written


def _document(layer: Layer) -> ElementTree.Element:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    job = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "job")
    labels = ElementTree.SubElement(job, "labels")
    for name in layer.classes[1:]:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    return root


def _add_mask(image: ElementTree.Element, name: str, mask: Bools) -> None:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    box = mask[top : top + height, left : left + width]
    attributes = {
        "label": name,
        "source": "auto",
        "occluded": "0",
        "rle": ", ".join(map(str, runs(box))),
        "left": str(left),
        "top": str(top),
        "width": str(width),
        "height": str(height),
        "z_order": "0",
    }
    ElementTree.SubElement(image, "mask", attributes)
