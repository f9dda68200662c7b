"""Label Studio: an export as JSON, with polygons, brush strokes, rectangles and ellipses.

Everybody who annotated an image is told by the tool: ``completed_by`` holds a number, or a person
with an address. Annotations that were cancelled are left out and counted. An annotation without a
region says that there is nothing to see. Several strokes of one label are one region.

The export as PNG names person and label in its files, but not the image. With the option
``pictures`` masks are read from its files and the images' names from the export as JSON.

Source: the JSON format of Label Studio's documentation; brush strokes are run lengths of RGBA
values in bits, whose fourth channel is the mask (``label_studio_sdk.converter.brush``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from tax_lightning.data.pixels import read_mask
from tax_lightning.exporters.outlines import Bools
from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import json_files, lazily, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Shape, polygon

_WHAT = "an export of Label Studio as JSON"
_LABELS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
_CORNERS = 90  # of an ellipse
_PICTURE = re.compile(r"task-(\d+)-annotation-(\d+)-by-(.+)-tag-(.+)-(\d+)", re.IGNORECASE)


def find(
    root: Path,
    images: str | None = None,
    classes: Sequence[str] | None = None,
    pictures: str | None = None,
) -> Found:
    """The annotations of all tasks, by image and person.

    Args:
        root: The JSON file, or a folder with JSON files.
        images: Folder of the images; None: that of the export.
        classes: Names in the order of their ids, the background first; None: by name.
        pictures: Folder of the export as PNG, whose masks are taken in place of the regions.

    Raises:
        FileNotFoundError: If an image or the export is missing.
        ValueError: If a file is no such export; the message names it.
    """
    drawings, cancelled = Drawings(), Counter[str]()
    masks = _pictures(Path(pictures)) if pictures is not None else None
    for path in json_files(root):
        with of_file(path, _WHAT):
            tasks = read_json(path)
            if not isinstance(tasks, list):
                raise ValueError(f"expected {_WHAT}, a list of tasks")
            for task in tasks:
                image = _image(task)
                for annotation in task["annotations"]:
                    person = _person(annotation.get("completed_by"))
                    if annotation.get("was_cancelled"):
                        cancelled[person] += 1
                        continue
                    own = drawings.of(image, person)
                    if masks is None:
                        own += _regions(annotation["result"], path)
                    else:
                        own += masks.get((int(task["id"]), int(annotation["id"])), [])
    for person, count in sorted(cancelled.items()):
        drawings.left_out.append(f"{count} annotation(s) by {person} that were cancelled.")
    return drawings.found(root, images, classes, root.stem, "Label Studio")


def _image(task: Mapping[str, Any]) -> str:
    """The name of a task's image file: the first value of its data that ends like one."""
    for value in task["data"].values():
        if isinstance(value, str) and re.search(r"\.\w{3,4}$", urlparse(value).path or value):
            # Uploads get eight hexadecimal digits before their name.
            name = unquote(urlparse(value).query.partition("d=")[2] or urlparse(value).path)
            return re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name).rpartition("/")[2]
    raise ValueError(f"task {task.get('id')}: its data name no image file: {task['data']}.")


def _person(given: object) -> str:
    """Who drew it: the address where it stands, else the number."""
    if isinstance(given, dict):
        given = given.get("email") or given.get("username") or given.get("id")
    if given is None:
        raise ValueError("an annotation lacks completed_by, by which annotators are told apart")
    return f"user {given}" if isinstance(given, int) else str(given)


def _regions(results: Sequence[Mapping[str, Any]], path: Path) -> Iterator[Shape]:
    for result in results:
        kind = result["type"]
        if kind not in _LABELS:
            continue  # choices, ratings and relations draw nothing
        value = result["value"]
        for label in value[kind]:
            if kind == "brushlabels":
                width, height = result["original_width"], result["original_height"]
                decode = partial(_brush, value["rle"], (height, width))
                yield Shape(label, lazily(path, _WHAT, decode))
            else:
                size = np.array([result["original_width"], result["original_height"]])
                if result.get("image_rotation", 0):
                    raise ValueError(
                        f"region {result.get('id')} lies on an image that was turned by "
                        f"{result['image_rotation']} degrees: turn the image itself, and draw anew"
                    )
                yield polygon([_corners(kind, value) * size / 100], label)


def _corners(kind: str, value: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an array
    """The outline of a region in per cent of width and height."""
    if kind == "polygonlabels":
        return np.asarray(value["points"], np.float64)
    turn = np.deg2rad(value.get("rotation", 0))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    start = np.array([value["x"], value["y"]], np.float64)
    if kind == "rectanglelabels":
        w, h = value["width"], value["height"]
        return start + np.array([[0, 0], [w, 0], [w, h], [0, h]]) @ rotation
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    circle = np.stack([value["radiusX"] * np.cos(angle), value["radiusY"] * np.sin(angle)], 1)
    return start + circle @ rotation


def _brush(rle: Sequence[int], drawn_on: tuple[int, int], size: tuple[int, int]) -> Bools:
    if drawn_on != size:
        raise ValueError(f"a stroke was drawn on {drawn_on}, but its image has {size} pixels")
    return decoded(rle).reshape(*size, 4)[..., 3] > 0


def decoded(rle: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of a brush stroke, uint8, from its bytes.

    Bits: 32 for the number of values, 5 for the length of a value less 1, four times 4 for lengths
    of run lengths less 1. Then in turn: 1 whether a run follows or single values, 2 which of the
    four lengths, the number of values less 1 in so many bits, and the value, or each value.

    Raises:
        ValueError: If the bytes end early.
    """
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise ValueError("a brush stroke ends early")
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total > 2**31:
        raise ValueError(f"a brush stroke of {total} values")
    values = np.zeros(total, np.uint8)
    filled = 0
    while filled < total:
        is_run, size = take(1), lengths[take(2)]
        count = take(size) + 1
        if is_run:
            values[filled : filled + count] = take(word)
        else:
            for place in range(filled, min(filled + count, total)):
                values[place] = take(word)
        filled += count
    return values


def _pictures(folder: Path) -> dict[tuple[int, int], list[Shape]]:
    """Shapes by task and annotation, from the files of the export as PNG."""
    found: dict[tuple[int, int], list[Shape]] = {}
    for path in sorted(folder.glob("*.png")):
        match = _PICTURE.fullmatch(path.stem)
        if match is None:
            raise ValueError(
                f"{path} is named otherwise, expected task-ID-annotation-ID-by-PERSON-tag-LABEL-I."
            )
        shape = Shape(match[4], partial(_picture, path))
        found.setdefault((int(match[1]), int(match[2])), []).append(shape)
    return found


def _picture(path: Path, size: tuple[int, int]) -> Bools:
    mask = read_mask(path) > 0
    if mask.shape != size:
        raise ValueError(f"{path} has {mask.shape} pixels, its image {size}: expected the same.")
    return mask
