"""Label Studio: an export of brush strokes as PNG, with the list of its tasks.

::

    task-7-annotation-5-by-1-TAG-LABEL-0.png

The names of the pictures tell annotation and label, but neither the image nor everybody who found
nothing. These stand in the export of the same tasks as JSON, JSON-MIN or CSV, ``--tasks FILE``. An
annotation that is listed without a picture says that there is nothing to see. The pictures hold
strokes alone: of polygons take the export as JSON, by ``tax import label_studio``.

Source: the names that ``label_studio_sdk.converter`` gives to the files.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tax_lightning.data.pixels import read_mask, size_text
from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.label_studio import covered, image_of, last_of_each
from tax_lightning.importers.reading import export_files, read_json, reading
from tax_lightning.importers.shapes import Patch, Shape, Size

_WHAT = "a list of Label Studio's tasks as JSON, JSON-MIN or CSV"
_NAME = re.compile(r"task-(\d+)-annotation-(\d+)-by-[^-]*-(.+)-\d+")


def find(
    root: Path,
    tasks: str,
    images: str | None = None,
    classes: Sequence[str] | None = None,
    tag: str | None = None,
) -> Found:
    """The strokes of all annotations, by image and person.

    Args:
        root: Folder of the PNG files.
        tasks: The export of the same tasks as JSON, JSON-MIN or CSV.
        images: Folder of the images, also in sub-folders; None: that of the list of tasks.
        classes: Names in the order of their ids, the background first; None: by name.
        tag: Name of the labelling control, if it holds a hyphen; None: up to the first hyphen.
    """
    listing = Path(tasks)
    drawings, there, strokes = Drawings(), Images(listing, images), _strokes(root, tag)
    with reading(listing, _WHAT):
        for task in _tasks(listing):
            image = image_of(task, there)
            for person, annotation in last_of_each(task["annotations"], drawings.left_out):
                drawn = strokes.pop((int(task["id"]), int(annotation["id"])), [])
                drawings.of(image, person, listing).extend(drawn)
    if strokes:
        drawings.left_out["An annotation in pictures that was not taken or listed."] += len(strokes)
    return found(drawings, "Label Studio", there, classes)


def _strokes(root: Path, tag: str | None) -> dict[tuple[int, int], list[Shape]]:
    """By task and annotation the strokes in the pictures."""
    strokes: dict[tuple[int, int], list[Shape]] = defaultdict(list)
    for path in export_files(root, ".png", below=False):
        match = _NAME.fullmatch(path.stem)
        rest = "" if match is None else match[3]
        label = rest.partition("-")[2] if tag is None else rest.removeprefix(f"{tag}-")
        if match is None or not label or label == rest:
            raise ValueError(
                f"{path} is named otherwise, expected task-ID-annotation-ID-by-PERSON-"
                f"{tag or 'TAG'}-LABEL-I.png, as Label Studio names them."
            )
        strokes[int(match[1]), int(match[2])].append(Shape(label, partial(_stroke, path)))
    return strokes


def _stroke(path: Path, size: Size) -> Patch:
    mask = read_mask(path)
    if mask.shape != size:
        raise ValueError(
            f"{path} has {size_text(mask.shape)} pixels, its image {size_text(size)}: expected the "
            "same."
        )
    return covered(mask)


def _tasks(path: Path) -> Iterator[Mapping[str, Any]]:
    """The tasks as the export as JSON has them, where JSON-MIN and CSV list annotations."""
    rows: Any
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"it holds {type(rows).__name__}, no list of tasks")
    for row in rows:
        if "annotations" in row:
            yield row
        else:
            person = row["annotator"]
            person = int(person) if str(person).isdigit() else person
            one = {"id": row["annotation_id"], "completed_by": person}
            yield {"id": row["id"], "data": row, "annotations": [one]}
