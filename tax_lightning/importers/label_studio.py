"""Label Studio: an export as JSON, with polygons, brush strokes, rectangles and ellipses.

Everybody who annotated an image is told by the tool: ``completed_by`` holds a number, or a person
with an address. Annotations that were cancelled are left out and counted, and of several by one
person for one task all but the last. An annotation without a region says that there is nothing to
see; one whose regions all lack a label, or tell no area, says nothing of the image. Several strokes
of one label are one region; a pixel belongs to a stroke that covers half of it.

Source: the JSON format of Label Studio's documentation; brush strokes are run lengths of RGBA
values in bits, whose fourth channel is the mask (``label_studio_sdk.converter.brush``), and
bitmasks PNG files in base64, opaque where drawn.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from tax_lightning.data.pixels import IMAGE_SUFFIXES, size_text
from tax_lightning.exporters.outlines import Ring
from tax_lightning.importers import shapes
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import export_files, lazily, read_json, reading
from tax_lightning.importers.shapes import Patch, Shape, Size

_WHAT = "an export of Label Studio as JSON"
# A second result of this id has the label.
_BARE = {"polygon", "brush", "rectangle", "ellipse", "bitmask", "magicwand"}


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The annotations of all tasks, by image and person.

    Args:
        root: The JSON file, or a folder with JSON files.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: by name.
    """
    drawings = Drawings()
    there = Images(root, images)
    for path in export_files(root, below=False):
        with reading(path, _WHAT):
            tasks = read_json(path)
            if not isinstance(tasks, list):
                raise ValueError(f"it holds {type(tasks).__name__}, no list of tasks")
            for task in tasks:
                image = image_of(task, there)
                for person, annotation in last_of_each(task["annotations"], drawings.left_out):
                    results = annotation["result"] or []
                    before = drawings.left_out.total()
                    drawn = list(_regions(results, path, drawings.left_out))
                    if drawn or drawings.left_out.total() == before:
                        drawings.of(image, person, path, _size(results)).extend(drawn)
    return found(drawings, "Label Studio", there, classes)


def last_of_each(
    annotations: Iterable[Mapping[str, Any]], left_out: Counter[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each person with the last of their annotations that count."""
    by: dict[str, Mapping[str, Any]] = {}
    for annotation in sorted(annotations, key=lambda one: str(one.get("updated_at") or "")):
        person = _person(annotation.get("completed_by"))
        if annotation.get("was_cancelled"):
            left_out[f"An annotation by {person} that was cancelled."] += 1
            continue
        if person in by:
            left_out[f"An annotation by {person} that a later one of the same task replaces."] += 1
        by[person] = annotation
    yield from by.items()


def image_of(task: Mapping[str, Any], there: Images) -> str:
    """The name of a task's image file: the first value of its data that ends like one."""
    for value in task["data"].values():
        if not isinstance(value, str):
            continue
        address = urlparse(value)
        if address.scheme in ("", "http", "https"):
            # Local files are named by a parameter.
            name = parse_qs(address.query).get("d", [unquote(address.path)])[0]
        else:
            name = value.partition("://")[2] or value  # of a bucket, where all is meant as it is
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            # Uploads get eight hexadecimal digits before their name.
            upload = re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)
            return name if Path(name).name in there else upload
    raise ValueError(f"task {task.get('id')}: its data name no image file: {task['data']}.")


def _person(given: object) -> str:
    """Who drew it: the address where it stands, else the number."""
    if isinstance(given, dict):
        given = given.get("email") or given.get("username") or given.get("id")
    if given is None:
        raise ValueError("an annotation lacks completed_by, by which annotators are told apart")
    return f"user {given}" if isinstance(given, int) else str(given)


def _size(results: Iterable[Mapping[str, Any]]) -> Size | None:
    """Height and width of what was drawn on; None where nothing tells them."""
    sizes = {
        (int(one["original_height"]), int(one["original_width"]))
        for one in results
        if "original_width" in one
    }
    if len(sizes) > 1:
        raise ValueError(f"one annotation was drawn on images of {sorted(sizes)} pixels")
    return next(iter(sizes), None)


def _regions(
    results: Sequence[Mapping[str, Any]], path: Path, left_out: Counter[str]
) -> Iterator[Shape]:
    labelled = {one.get("id") for one in results if one["type"].endswith("labels")}
    for result in results:
        kind, value = result["type"], result.get("value", {})
        if not kind.endswith("labels"):
            if kind in _BARE and result.get("id") not in labelled:
                left_out[f"A {kind} without a label."] += 1
            continue  # choices, ratings and relations draw nothing
        labels = value.get(kind) or ()
        if not labels:
            left_out[f"A region of the kind {kind} without a label."] += 1
        for label in labels:
            shape = _shape(result, value, label, path)
            if shape is None:
                left_out[f"A region of the kind {kind}, which is not read."] += 1
            else:
                yield shape


def _shape(
    result: Mapping[str, Any], value: Mapping[str, Any], label: str, path: Path
) -> Shape | None:
    if result.get("image_rotation", 0):
        raise ValueError(
            f"region {result.get('id')} lies on an image that was turned by "
            f"{result['image_rotation']} degrees: turn the image itself, and draw anew"
        )
    if "rle" in value:
        return Shape(label, lazily(path, _WHAT, partial(_brush, value["rle"])))
    if "imageDataURL" in value:
        return Shape(label, lazily(path, _WHAT, partial(_bitmask, value["imageDataURL"])))
    outline = _outline(value, np.array([result["original_width"], result["original_height"]]) / 100)
    return None if outline is None else shapes.polygon([outline], label)


def _outline(value: Mapping[str, Any], unit: Any) -> Ring | None:  # noqa: ANN401 - an array
    """The outline of a region in pixels, from the pixels in a per cent of width and of height."""
    if "points" in value:
        points: Ring = np.asarray(value["points"], np.float64) * unit
        return points
    if "x" not in value:
        return None
    x, y = np.array([value["x"], value["y"]]) * unit
    if "radiusX" in value:
        across, down = np.array([value["radiusX"], value["radiusY"]]) * unit
        ring = shapes.ellipse(x, y, across, down)
    elif "width" in value and "height" in value:
        width, height = np.array([value["width"], value["height"]]) * unit
        ring = shapes.rectangle(x, y, x + width, y + height)
    else:
        return None
    return shapes.turned(ring, value.get("rotation", 0), (x, y))  # about the corner, or the middle


def _brush(rle: Sequence[int], size: Size) -> Patch:
    if int.from_bytes(bytes(rle[:4]), "big") != size[0] * size[1] * 4:  # before it is decoded
        raise ValueError(f"a stroke does not hold four values for each of {size_text(size)} pixels")
    return covered(decoded(rle).reshape(*size, 4)[..., 3])


def _bitmask(address: str, size: Size) -> Patch:
    mask = shapes.from_png(base64.b64decode(address.partition("base64,")[2]), size)
    if mask.shape != size:
        raise ValueError(f"a bitmask of {size_text(mask.shape)} on an image of {size_text(size)}")
    return shapes.placed(mask, 0, 0, size)


def covered(values: Any) -> Patch:  # noqa: ANN401 - an array
    """What is covered by half at least, since strokes have soft edges; some masks hold 0 and 1."""
    return Patch(0, 0, values > values.max(initial=0) / 2)


def decoded(rle: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of a brush stroke, uint8, from its bytes.

    Bits: 32 for the number of values, 5 for the length of a value less 1, four times 4 for lengths
    of run lengths less 1. Then in turn: 1 whether a run follows or single values, 2 which of the
    four lengths, the number of values less 1 in so many bits, and the value, or each value.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
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
