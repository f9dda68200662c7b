"""COCO: one JSON file an annotator, or the annotator in each annotation.

Where ``annotations[].annotator`` stands, it tells who drew; else the name of the file does, or that
of the folder that it was unpacked into. A file labels all images that it lists, also those without
an annotation, which are empty; where the field tells the annotator, those who drew nothing on an
image did not label it, and images that nobody drew on are left out and counted. Crowds and run
lengths of both kinds are read as well as polygons, of which all belong to one object. The classes
are the categories in the order in which they are listed.

An annotation may have a box alone, which tells no area: it is left out and counted, and an image
on which a file has nothing else is not labelled rather than empty.

Source: the format of data of COCO (cocodataset.org). Run lengths go column by column, zeros first.
They are read here, since pycocotools fills up those that are too short with whatever lies in the
memory. Polygons follow the rule of :mod:`tax_lightning.importers.shapes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.pixels import size_text
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import files_by_annotator, lazily, read_json, reading
from tax_lightning.importers.shapes import Patch, Shape, Size, from_runs, polygon

_WHAT = "a COCO file with images, categories and annotations"


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The annotations of all files, by image and annotator.

    Args:
        root: The JSON file, or a folder with one for each annotator.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: as listed.
    """
    drawings = Drawings()
    for path, owner in files_by_annotator(root):
        with reading(path, _WHAT):
            data = read_json(path)
            listed = {image["id"]: image for image in data["images"]}
            labels = {category["id"]: category["name"] for category in data["categories"]}
            drawings.declared |= dict.fromkeys(labels.values())
            told = any("annotator" in annotation for annotation in data["annotations"])
            drawn = [
                (one, list(_shapes(one, labels[one["category_id"]], path)))
                for one in data["annotations"]
            ]
            boxed = {annotation["image_id"] for annotation, shapes in drawn if not shapes}
            for id, image in () if told else listed.items():
                if id not in boxed:
                    drawings.of(image["file_name"], owner, path, _size(image))
            for annotation, shapes in drawn:
                image = listed[annotation["image_id"]]
                person = _person(annotation) if told else owner
                if shapes:
                    drawings.of(image["file_name"], person, path, _size(image)).extend(shapes)
                else:
                    drawings.left_out["An annotation without a segmentation."] += 1
            if told and (rest := listed.keys() - {one["image_id"] for one in data["annotations"]}):
                drawings.left_out[f"An image of {path} that nobody drew on."] += len(rest)
    return found(drawings, "COCO", Images(root, images), classes)


def _person(annotation: Mapping[str, Any]) -> str:
    if annotation.get("annotator") is None:
        raise ValueError(
            f"the annotation {annotation.get('id')} on image {annotation['image_id']} names no "
            "annotator, as others do. Name one in each, or in none"
        )
    return str(annotation["annotator"])


def _size(image: Mapping[str, Any]) -> Size | None:
    """Height and width, which a file need not tell."""
    if image.get("height") is None or image.get("width") is None:
        return None
    return int(image["height"]), int(image["width"])


def _shapes(annotation: Mapping[str, Any], label: str, path: Path) -> Iterator[Shape]:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        for ring in segmentation:  # none of several is a hole
            if len(ring) % 2:
                raise ValueError(f"an outline has {len(ring)} numbers, expected x and y in turn")
            if len(ring) >= 6:
                yield polygon([np.reshape(ring, (-1, 2))], label)
    elif segmentation:
        yield Shape(label, lazily(path, _WHAT, partial(_decoded, segmentation)))


def _decoded(segmentation: Mapping[str, Any], size: Size) -> Patch:
    given = tuple(segmentation["size"])
    if given != size:
        raise ValueError(
            f"run lengths of {size_text(given)} pixels, but the image has {size_text(size)}"
        )
    counts = segmentation["counts"]
    runs = unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels for an image of {size_text(size)}")
    return Patch(0, 0, from_runs(runs, size[::-1]).T)


def unpacked(counts: str) -> list[int]:
    """Run lengths from their compressed form.

    A character is 48 and six bits more: five of a number, the lowest first, and 32 if more follow.
    A number whose highest bit is set is negative. From the fourth on, numbers are differences from
    the run length two before.

    Example:
        >>> unpacked("124")
        [1, 2, 4]
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"compressed run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) >> 4 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end early")
    return runs
