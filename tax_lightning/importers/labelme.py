"""LabelMe: a folder for each annotator, with one JSON file for each image.

A file without a shape is an empty mask; no file for an image means that the annotator did not label
it. Polygons, rectangles and circles are read; points and lines tell no area and are left out.

Source: the files of labelme (the Python program): ``imagePath`` and ``shapes`` with ``label``,
``points`` in pixels and ``shape_type``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import json_files, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Shape, polygon

_WHAT = "a file of LabelMe with imagePath and shapes"
_CORNERS = 90  # of a circle


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The shapes of all files, by image and annotator.

    Args:
        root: A folder with one folder of JSON files for each annotator.
        images: Folder of the images; None: the root.
        classes: Names in the order of their ids, the background first; None: by name.

    Raises:
        FileNotFoundError: If an image or the annotators' folders are missing.
        ValueError: If a file is none of LabelMe; the message names it.
    """
    folders = [path for path in sorted(root.iterdir()) if any(path.glob("*.json"))]
    if not folders:
        raise FileNotFoundError(f"{root} holds no folders of JSON files, one an annotator.")
    drawings = Drawings()
    for folder in folders:
        for path in json_files(folder):
            with of_file(path, _WHAT):
                data = read_json(path)
                own = drawings.of(data["imagePath"], folder.name)
                for given in data["shapes"]:
                    shape = _shape(given)
                    if shape is None:
                        drawings.left_out.append(
                            f"A {given['shape_type']} of {given['label']!r} in {path}: no area."
                        )
                    else:
                        own.append(shape)
    return drawings.found(root, images, classes, root.name, "LabelMe")


def _shape(given: Mapping[str, Any]) -> Shape | None:
    points, label = np.asarray(given["points"], np.float64), given["label"]
    kind = given.get("shape_type", "polygon")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind == "circle":
        angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        radius = np.hypot(*(points[1] - points[0]))
        points = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    elif kind != "polygon":
        return None
    return polygon([points], label)
