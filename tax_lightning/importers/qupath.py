"""QuPath: GeoJSON of full resolution, a folder for each pathologist with a file for each image.

A file is called for its image, ``NAME.geojson``; the folder is the annotator. Files directly in the
root are by one annotator, called for the root. A FeatureCollection and a bare array are read, and a
bare Feature, as QuPath writes a single object; polygons may have holes and several parts. The class
is ``properties.classification.name``. What is drawn later lies above.

Source: QuPath's documentation of its GeoJSON; coordinates are pixels of the full resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tax_lightning.importers.cases import Found
from tax_lightning.importers.json_files import json_files, of_file, read_json
from tax_lightning.importers.shapes import Drawings, Shape, folder_of, images_below, polygon

_WHAT = "GeoJSON of QuPath"
_UNCLASSIFIED = "object"


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The objects of all files, by image and pathologist.

    Args:
        root: A folder with one folder of ``.geojson`` files for each annotator, one such folder, or
            one file.
        images: Folder of the images; None: the root.
        classes: Names in the order of their ids, the background first; None: by name.

    Raises:
        FileNotFoundError: If an image or the files are missing.
        ValueError: If a file is no such GeoJSON; the message names it.
    """
    folders = [p for p in sorted(root.glob("*")) if p.is_dir() and any(p.glob("*.geojson"))]
    there = {p.name for p in images_below(folder_of(root, images))}
    by_stem = {Path(name).stem: name for name in there}
    drawings = Drawings()
    for folder in folders or [root]:
        person = folder.name if folder.is_dir() else folder.resolve().parent.name
        for path in json_files(folder, ".geojson"):
            with of_file(path, _WHAT):
                data = read_json(path)
                alone = isinstance(data, dict) and data.get("type") == "Feature"
                some = [data] if alone else data
                features = some["features"] if isinstance(some, dict) else some
                # "slide.svs.geojson" and "slide.geojson" both name the image slide.
                name = path.stem if path.stem in there else by_stem.get(path.stem, path.stem)
                own = drawings.of(name, person, path)
                for feature in features:
                    kind = feature["geometry"]["type"]
                    if kind in ("Polygon", "MultiPolygon"):
                        own.extend(_shapes(feature))
                    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
                        drawings.left_out[f"A {kind} by {person}: it tells no area."] += 1
                    else:
                        raise ValueError(f"a geometry {kind} is not read, expected polygons")
    return drawings.found(root, images, classes, root.name, "QuPath")


def _shapes(feature: Mapping[str, Any]) -> Iterator[Shape]:
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    told = properties.get("classification") or {}
    label = told.get("name") or ": ".join(told.get("names", [])) or _UNCLASSIFIED
    several = geometry["type"] == "MultiPolygon"
    for rings in geometry["coordinates"] if several else [geometry["coordinates"]]:
        yield polygon(rings, label)
