"""Gleason 2019: tissue cores of the prostate, graded by six pathologists.

::

    Train_imgs/slide001_core003.jpg                       (or "Train Imgs")
    Maps1_T/slide001_core003_classimg_nonconvex.png       (to Maps6_T)

The folders may lie at any depth. ``pathologist 1`` to ``pathologist 6`` are each the same person
throughout. Most cores lack the maps of some of them: these are no labels. The grey values 1 and 6
both mean benign. All cores of a slide are one group. Cores have about 5000 x 5000 pixels: cut them
with ``--tile``. The challenge's own test maps are not public.

Source: Nir et al., "Automatic grading of prostate cancer in digitized histopathology images:
learning from multiple experts", Medical Image Analysis 50, 2018.
"""

from pathlib import Path

from tax_lightning.data.description import Description
from tax_lightning.data.labels import MaskValues
from tax_lightning.importers.cases import BACKGROUND, RGB, Found
from tax_lightning.importers.layout import (
    by_name,
    find_folder,
    join_cases,
    match_files,
    read_labels,
)

_CORE = r"slide(\d+)_core(\d+)"
_CLASSES = (BACKGROUND, "benign", "grade 3", "grade 4", "grade 5")
_VALUES: MaskValues = {
    0: BACKGROUND,
    1: "benign",
    6: "benign",
    3: "grade 3",
    4: "grade 4",
    5: "grade 5",
}


def find(root: Path) -> Found:
    """The cores below a folder and the maps of them."""
    images = _cores(find_folder(root, "Train_imgs", "Train Imgs"), _CORE)
    masks = {
        f"pathologist {number}": _cores(
            find_folder(root, f"Maps{number}_T"), f"{_CORE}_classimg_nonconvex"
        )
        for number in range(1, 7)
    }
    slides = {name: name.partition("_")[0] for name in images}
    cases, loose = join_cases(
        images, masks, lambda _, path: read_labels(path, _CLASSES, _VALUES), slides
    )
    description = Description(
        "Gleason 2019",
        _CLASSES,
        RGB,
        source="Nir et al., Medical Image Analysis 50, 2018; gleason2019.grand-challenge.org",
        licence="The terms on gleason2019.grand-challenge.org",
    )
    return Found(description, cases, left_out=loose)


def _cores(folder: Path, pattern: str) -> dict[str, Path]:
    """The files of a folder by slide and core, however many zeros stand in front."""
    example = "slide001_core003" + pattern.removeprefix(_CORE)
    return by_name(
        (f"slide{int(slide):03}_core{int(core):03}", path)
        for (slide, core), path in match_files(folder, pattern, example)
    )
