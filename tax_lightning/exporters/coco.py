"""COCO: one JSON file for each layer, with run lengths; what `tax import coco` reads.

Each class of an image is one annotation, whatever number of objects it has: nothing tells touching
objects apart.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.layers import Segmented
from tax_lightning.extras import needed
from tax_lightning.files import file_name, write_text


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write ``LAYER.json`` for each layer; see :mod:`tax_lightning.exporters`."""
    coco = needed("pycocotools.mask")
    documents: dict[str, dict[str, list[Any]]] = defaultdict(
        lambda: {"images": [], "categories": [], "annotations": []}
    )
    for number, image in enumerate(images, 1):
        height, width = image.size
        for layer in image.layers:
            document = documents[layer.name]
            document["categories"] = [
                {"id": id, "name": name} for id, name in enumerate(layer.classes) if id
            ]
            document["images"].append(
                {"id": number, "file_name": image.file, "height": height, "width": width}
            )
            for id, _, mask in layer.drawn():
                rle = coco.encode(np.asfortranarray(mask, np.uint8))
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": number,
                        "category_id": id,
                        "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                        "area": int(mask.sum()),
                        "bbox": coco.toBbox(rle).tolist(),
                        "iscrowd": 1,  # by the format, what has run lengths
                    }
                )
    return write_json(folder, documents)


def write_json(folder: Path, documents: dict[str, Any]) -> list[Path]:
    """Write a JSON file for each document by name; returns the files."""
    written = []
    for name, document in documents.items():
        path = folder / f"{file_name(name)}.json"
        write_text(path, json.dumps(document, ensure_ascii=False))
        written.append(path)
    return written
