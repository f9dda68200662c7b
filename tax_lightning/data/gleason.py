"""Gleason 2019: tissue cores graded by six pathologists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tax_lightning.data.layout import (
    by_name,
    choose_annotators,
    find_folder,
    join_samples,
    match_files,
)
from tax_lightning.data.samples import SampleTable
from tax_lightning.data.table import TableDataModule

CLASSES = ("background", "benign", "grade 3", "grade 4", "grade 5")
MASK_VALUES = {0: "background", 1: "benign", 6: "benign"} | {g: f"grade {g}" for g in (3, 4, 5)}
PATHOLOGISTS = tuple(f"pathologist {number}" for number in range(1, 7))

_CORE = r"slide(\d+)_core(\d+)"


class GleasonDataModule(TableDataModule):
    """Cores of prostate tissue and the Gleason grades that six pathologists gave them.

    ::

        Train_imgs/slide001_core003.jpg                       (or "Train Imgs")
        Maps1_T/slide001_core003_classimg_nonconvex.png       (to Maps6_T)

    The folders may lie at any depth below ``root``. The annotators are ``pathologist 1`` to
    ``pathologist 6``, each the same person throughout; no core has the maps of all of them as a
    rule, and a missing map is no label. All cores of a slide stay in one split. The grey values 1
    and 6 both mean benign. Cores are about 5000 x 5000 pixels: cut them up with ``patch_size``.

    Args:
        root: The folder with the folders above.
        annotators: Names of the annotators to use, in this order. None: all six.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If names do not match each other; the message names the file and the cure.

    Source:
        Nir et al., "Automatic grading of prostate cancer in digitized histopathology images:
        learning from multiple experts", Medical Image Analysis 50, 2018.
    """

    def __init__(
        self,
        root: str | Path,
        annotators: Sequence[str] | None = None,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root)
        names = choose_annotators(annotators, PATHOLOGISTS)
        images = _cores(find_folder(root, "Train_imgs", "Train Imgs"), _CORE)
        masks = {}
        for name in names:
            folder = find_folder(root, f"Maps{1 + PATHOLOGISTS.index(name)}_T")
            masks[name] = _cores(folder, _CORE + "_classimg_nonconvex")
        slides = {name: name.partition("_")[0] for name in images}
        samples = join_samples(images, masks, slides)
        super().__init__(SampleTable(samples, names, CLASSES, MASK_VALUES), **kwargs)


def _cores(folder: Path, pattern: str) -> dict[str, Path]:
    """The files of a folder by slide and core, however many zeros stand in front."""
    example = "slide001_core003" + pattern.removeprefix(_CORE)
    return by_name(
        (f"slide{int(slide):03}_core{int(core):03}", path)
        for (slide, core), path in match_files(folder, pattern, example)
    )
