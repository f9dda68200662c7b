"""Predictions that ``tax predict`` wrote, read back one image at a time for the tools' formats."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.exporters.layers import Layer, Segmented

UNDISPUTED = 254
"""Where nothing is disputed in pictures of indices, which therefore name fewer annotators."""


def export(folder: Path, manifest: Mapping[str, Any], formats: Sequence[str]) -> None:
    """Write predictions in further formats, each to a folder of its name."""
    for name in formats:
        writer = import_module(f"tax_lightning.exporters.{name}")
        writer.write(_segmented(folder, manifest), folder / name)


def _segmented(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Segmented]:
    def read(file: str) -> npt.NDArray[np.uint8]:
        if file.endswith(".tif"):  # of an image in parts, which Pillow may refuse for its size
            import tifffile  # takes a while

            return np.asarray(tifffile.imread(folder / file))
        with Image.open(folder / file) as picture:
            return np.asarray(picture)

    for image in manifest["images"]:
        classes = tuple(entry["name"] for entry in manifest["classes"])
        files, facts, name = image["files"], dict(image["facts"]), str(image["id"])
        drawn = [("result", files["fused"]), *files["annotators"].items()]
        layers = [Layer(layer, classes, read(file)) for layer, file in drawn]
        if (index := files.get("who", files.get("votes"))) is not None:
            values = read(index)
            disputed = np.where(values == IGNORE_INDEX, values, values != UNDISPUTED)
            layers.append(Layer("dispute", ("agreed", "disputed"), disputed.astype(np.uint8)))
        yield Segmented(name, facts.pop("file", f"{name}.png"), tuple(layers), facts)
