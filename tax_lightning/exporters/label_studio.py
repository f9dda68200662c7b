"""Label Studio: tasks with predictions, one for each layer, to import into a project.

The layer is the prediction's ``model_version``, by which the tool tells several apart. The
project's labels need ``<Image name="image" value="$image"/>`` and ``<BrushLabels name="label"
toName="image">`` with the classes; the images must be where the project finds them by name.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.exporters.coco import write_json
from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.exporters.outlines import Bools


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
    for id, name, mask in layer.drawn():
        yield {
            "id": f"{layer.name}-{id}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encoded(mask), "brushlabels": [name]},
        }


def encoded(mask: Bools) -> list[int]:
    """The bytes of a brush stroke that draws a mask; the importer of this tool tells how.

    Example:
        >>> encoded(np.ones((1, 1)) > 0)[:4]  # the number of values: four of a pixel
        [0, 0, 0, 4]
    """
    flat = mask.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = [4 * end for end in (0, *change.tolist(), flat.size)]
    sizes = (2, 4, 8, 15)
    bits = [f"{ends[-1]:032b}", f"{7:05b}", *(f"{size:04b}" for size in sizes)]
    for start, end in itertools.pairwise(ends):
        while start < end:
            count = min(end - start, 2 ** (sizes[-1] + 1))
            which = next(i for i, size in enumerate(sizes) if count <= 2 ** (size + 1))
            bits.append(f"1{which:02b}{count - 1:0{sizes[which] + 1}b}{255 * flat[start // 4]:08b}")
            start += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
