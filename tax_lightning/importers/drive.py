"""DRIVE: photographs of the retina, whose vessels were traced once or twice.

::

    test/images/01_test.tif              training/images/21_training.tif
    test/1st_manual/01_manual1.gif       training/1st_manual/21_manual1.gif
    test/2nd_manual/01_manual2.gif
    test/mask/01_test_mask.gif           training/mask/21_training_mask.gif

- Only the part ``test`` has two annotators. With the published split nothing could be learnt about
  the second, so that the import names no splits: results are not comparable with published ones.
- The annotators are not persons. Three observers traced the data; ``1st`` is two of them, who
  shared the images, and ``2nd`` is one.
- The GIF files of the second observer have a palette of nearly black and nearly white, (4, 2, 4)
  and (252, 254, 252), which are the greys 3 and 253: masks are cut at 127.
- Newer editions have no annotations of the part ``test``.

Source: Staal et al., "Ridge-based vessel segmentation in color images of the retina", IEEE TMI
23(4), 2004.
"""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import Description
from tax_lightning.data.pixels import read_whole, size_text, with_channels
from tax_lightning.importers.cases import RGB, Case, Found, Labels
from tax_lightning.importers.layout import by_pattern, join_cases

_MIDDLE = 127


def find(root: Path, use_training: bool = False, field_of_view: bool = False) -> Found:
    """The photographs of a folder and the tracings of them.

    Args:
        root: The folder that holds ``test``, and ``training``.
        use_training: Take the part ``training`` too, which the first annotator alone labelled.
        field_of_view: What lies outside of the round field of view is unknown, by the files in
            ``mask``; otherwise it is background.
    """
    if not (root / "test" / "2nd_manual").is_dir():
        raise FileNotFoundError(
            f"{root / 'test' / '2nd_manual'} is missing. Expected the part test with both "
            "1st_manual and 2nd_manual: newer editions leave them out, take an older one."
        )
    cases, left_out = _part(root / "test", ("1st", "2nd"), field_of_view)
    if use_training:
        more, loose = _part(root / "training", ("1st",), field_of_view)
        cases, left_out = cases + more, left_out + loose
    else:
        left_out.append("The part training, which has one annotator; use_training takes it.")
    left_out += [
        "The published split, since its training part has one annotator.",
        "The annotator '1st' is two persons who shared the images; '2nd' is one person.",
    ]
    description = Description(
        "DRIVE",
        ("background", "vessel"),
        RGB,
        persons=False,
        source="Staal et al., IEEE TMI 23(4), 2004; drive.grand-challenge.org",
        licence="Research and education only, not to be passed on",
    )
    return Found(description, cases, left_out=left_out)


def _part(
    folder: Path, annotators: tuple[str, ...], field_of_view: bool
) -> tuple[list[Case], list[str]]:
    """The cases of the part that is named as its folder."""
    part = folder.name
    images = by_pattern(folder / "images", rf"(\d+)_{part}", f"01_{part}.tif")
    masks = {
        name: by_pattern(
            folder / f"{name}_manual", rf"(\d+)_manual{name[0]}", f"01_manual{name[0]}.gif"
        )
        for name in annotators
    }
    views: dict[str, Path] = {}
    if field_of_view:
        views = by_pattern(folder / "mask", rf"(\d+)_{part}_mask", f"01_{part}_mask.gif")
        if lacking := [number for number in images if number not in views]:
            raise FileNotFoundError(
                f"{folder / 'mask'} has no field of view of {images[lacking[0]].name}. Add it, or "
                "leave field_of_view out."
            )
    return join_cases(images, masks, partial(_mask, views))


def _mask(views: dict[str, Path], name: str, path: Path) -> Labels:
    """Class ids of a tracing, unknown outside of the field of view if there is one."""
    labels = _is_white(path).astype(np.uint8)
    if name in views:
        view = _is_white(views[name])
        if view.shape != labels.shape:
            raise ValueError(
                f"{views[name]} is {size_text(view.shape)} pixels, but {path} is "
                f"{size_text(labels.shape)}. Replace the one that was resized."
            )
        labels[~view] = IGNORE_INDEX
    return labels


def _is_white(path: Path) -> npt.NDArray[np.bool_]:
    white: npt.NDArray[np.bool_] = with_channels(read_whole(path), 1, path)[..., 0] > _MIDDLE
    return white
