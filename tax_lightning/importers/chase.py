"""CHASE_DB1: photographs of both retinas of 14 children, whose vessels two persons traced.

::

    Image_01L.jpg
    Image_01L_1stHO.png
    Image_01L_2ndHO.png

All files lie in one folder; masks have 1 bit a pixel. ``1stHO`` and ``2ndHO`` are the first and the
second human observer, the same two throughout. The eyes of a child are one group.

Source: Fraz et al., "An ensemble classification-based approach applied to retinal blood vessel
segmentation", IEEE TBME 59(9), 2012.
"""

from pathlib import Path

from tax_lightning.data.description import Description
from tax_lightning.importers.cases import BACKGROUND, RGB, Found, either
from tax_lightning.importers.layout import by_name, join_cases, match_files, read_labels

_CLASSES = (BACKGROUND, "vessel")


def find(root: Path) -> Found:
    """The photographs in a folder and the tracings of them."""
    found = match_files(
        root, r"(image_(\d+)[lr])(?:_(1stHO|2ndHO))?", "Image_01L.jpg or Image_01L_1stHO.png"
    )
    children = {eye: child for (eye, child, _), _ in found}
    images, first, second = (
        by_name((eye, path) for (eye, _, by), path in found if by.lower() == suffix)
        for suffix in ("", "1stho", "2ndho")
    )
    masks = {"1stHO": first, "2ndHO": second}
    cases, loose = join_cases(
        images, masks, lambda _, path: read_labels(path, _CLASSES, either("vessel")), children
    )
    source, licence = (
        "Fraz et al., IEEE TBME 59(9), 2012",
        "The terms on the data set's page at Kingston University London",
    )
    description = Description("CHASE_DB1", _CLASSES, RGB, source=source, licence=licence)
    return Found(description, cases, left_out=loose)
