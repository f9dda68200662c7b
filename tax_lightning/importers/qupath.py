"""QuPath: GeoJSON of full resolution, a folder for each pathologist with a file for each image.

A file is called for its image, ``NAME.geojson``; the folder is the annotator. Files directly in the
root are by one annotator, called for the root. A FeatureCollection and a bare array are read, and a
bare Feature, as QuPath writes a single object; polygons may have holes and several parts. The class
is ``properties.classification.name``. What is drawn later lies above.

Source: QuPath's documentation of its GeoJSON; coordinates are pixels of the full resolution.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tax_lightning.importers.cases import Found
from tax_lightning.importers.drawings import Drawings, Images, found
from tax_lightning.importers.reading import export_files, read_json, reading
from tax_lightning.importers.shapes import Shape, polygon

_WHAT = "GeoJSON of QuPath"
_UNCLASSIFIED = "object"


def find(root: Path, images: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """The objects of all files, by image and pathologist.

    Args:
        root: A folder with one folder of ``.geojson`` files for each annotator, one such folder, or
            one file.
        images: Folder of the images, also in sub-folders; None: that of the export.
        classes: Names in the order of their ids, the background first; None: by name.
    """
    folders = [p for p in sorted(root.glob("*")) if p.is_dir() and any(p.glob("*.geojson"))]
    there = Images(root, images)
    drawings = Drawings()
    for folder in folders or [root]:
        person = folder.name if folder.is_dir() else folder.resolve().parent.name
        for path in export_files(folder, ".geojson", below=False):
            with reading(path, _WHAT):
                data = read_json(path)
                alone = isinstance(data, dict) and data.get("type") == "Feature"
                some = [data] if alone else data
                features = some["features"] if isinstance(some, dict) else some
                # "slide.ome.tif.geojson" and "slide.geojson" both name the image slide.
                own = drawings.of(there.begun(path.stem), person, path)
                for feature in features:
                    kind = feature["geometry"]["type"]
                    if kind in ("Polygon", "MultiPolygon"):
                        own.extend(_shapes(feature))
                    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
                        drawings.leave_out(kind, person)
                    else:
                        raise ValueError(f"a geometry {kind} is not read, expected polygons")
    return found(drawings, "QuPath", there, classes)


def _shapes(feature: Mapping[str, Any]) -> Iterator[Shape]:
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    told = properties.get("classification") or {}
    label = told.get("name") or ": ".join(told.get("names", [])) or _UNCLASSIFIED
    several = geometry["type"] == "MultiPolygon"
    for rings in geometry["coordinates"] if several else [geometry["coordinates"]]:
        yield polygon(rings, label)
