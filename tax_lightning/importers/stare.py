"""STARE: 20 photographs of the retina, whose vessels two persons traced.

::

    stare-images/im0001.ppm          (or .ppm.gz, here and below)
    labels-ah/im0001.ah.ppm
    labels-vk/im0001.vk.ppm

The three archives are unpacked into folders of these names, at any depth. ``ah`` and ``vk`` are the
same two persons throughout.

Source: Hoover, Kouznetsova and Goldbaum, "Locating blood vessels in retinal images by piecewise
threshold probing of a matched filter response", IEEE TMI 19(3), 2000.
"""

import gzip
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tax_lightning.data.description import Description
from tax_lightning.data.labels import labels_from_values
from tax_lightning.importers.cases import BACKGROUND, RGB, Found, Labels, either
from tax_lightning.importers.layout import by_pattern, find_folder, join_cases
from tax_lightning.importers.reading import reading

_CLASSES = (BACKGROUND, "vessel")


def find(root: Path) -> Found:
    """The photographs below a folder and the tracings of them."""
    images = by_pattern(find_folder(root, "stare-images"), r"(im\d+)", "im0001.ppm")
    masks = {
        name: by_pattern(
            find_folder(root, f"labels-{name}"), rf"(im\d+)\.{name}", f"im0001.{name}.ppm"
        )
        for name in ("ah", "vk")
    }
    cases, loose = join_cases(images, masks, _mask, show=lambda path: partial(_pixels, path))
    description = Description(
        "STARE",
        _CLASSES,
        RGB,
        source="Hoover, Kouznetsova and Goldbaum, IEEE TMI 19(3), 2000",
        licence="none stated",
    )
    return Found(description, cases, left_out=loose)


def _mask(name: str, path: Path) -> Labels:
    colours = _pixels(path)
    grey = colours[..., 0] if (colours == colours[..., :1]).all() else colours
    cure = "unpack the file anew"
    return labels_from_values(grey, _CLASSES, either("vessel"), path, cure=cure)


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Colours of a picture that may be packed by gzip, ``[H, W, 3]``."""
    with reading(path, "a whole image file: unpack it anew"):
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        with Image.open(BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
