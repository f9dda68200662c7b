"""Label Studio: tasks with predictions, one for each layer, to import into a project.

The layer is the prediction's ``model_version``, by which the tool tells several apart. The project's
labels need ``<Image name="image" value="$image"/>`` and ``<BrushLabels name="label"
toName="image">`` with the classes; the images must be where the project finds them by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tax_lightning.exporters.coco import write_json
from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.importers.label_studio import encoded


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write ``tasks.json``; see :mod:`tax_lightning.exporters`."""
    tasks = [
        {
            "id": number,
            "data": {"image": image.file},
            "predictions": [
                {"model_version": layer.name, "result": list(_results(layer))}
                for layer in image.layers
            ],
        }
        for number, image in enumerate(images, 1)
    ]
    return write_json(folder, {"tasks": tasks})


def _results(layer: Layer) -> Iterable[dict[str, Any]]:
    height, width = layer.labels.shape
    for id, name in enumerate(layer.classes):
        mask = layer.labels == id
        if id and mask.any():
            value = {"format": "rle", "rle": encoded(mask), "brushlabels": [name]}
            yield {
                "id": f"{layer.name}-{id}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value,
            }
