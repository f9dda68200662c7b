"""QuPath: GeoJSON in pixels, a folder for each layer and a file for each image.

Drag a file onto the opened image. Outlines lie along the edges of pixels, so that nothing is lost;
`tax import qupath` reads the same masks again.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.exporters.outlines import Ring, outlines
from tax_lightning.files import file_name, write_text


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write ``LAYER/NAME.geojson``; see :mod:`tax_lightning.exporters`."""
    written = []
    for image in images:
        for layer in image.layers:
            path = folder / file_name(layer.name) / f"{Path(image.file).stem}.geojson"
            collection = {"type": "FeatureCollection", "features": list(_features(layer))}
            write_text(path, json.dumps(collection, ensure_ascii=False))
            written.append(path)
    return written


def _features(layer: Layer) -> Iterable[dict[str, Any]]:
    for _, name, mask in layer.drawn():
        for rings in outlines(mask):
            yield {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [_closed(ring) for ring in rings]},
                "properties": {
                    "objectType": "annotation",
                    "name": layer.name,
                    "classification": {"name": name},
                },
            }


def _closed(ring: Ring) -> list[list[float]]:
    """Corners whose last is the first, as GeoJSON wants it."""
    closed: list[list[float]] = np.vstack([ring, ring[:1]]).tolist()
    return closed
