"""BU-BIL: cells in microscopy pictures, outlined by the same few experts and by a crowd.

::

    BU-BIL_DatasetN/RawImages/NAME.png
    BU-BIL_DatasetN/ExpertsAnnotations/PersonP_TOOL/seg_NAME.png
    BU-BIL_DatasetN/CrowdsourcedAnnotations/mturk_annotationN-k/seg_NAME.png   (optional)
    BU-BIL_DatasetN/GoldStandard/seg_NAME.png                                  (optional)

An annotator is a person with a tool, such as ``Person1_Amira``. Datasets 1, 2A and 3 are by five
persons with two tools each, dataset 2B by three other persons, here ``2B Person1_Amira``.

- The object is black on white. Masks are 1-bit, grey, palette or colour files, some with many grey
  values: they are cut at 127. Their names begin with ``seg_``, ``Seg_`` or neither; in dataset 6
  the names differ from those of the images in capitals, and the folder is ``ExpertAnnotations``.
- The images of dataset 3 hold 12 bits in 16-bit files.
- In datasets 4 to 6 the images are cut out around the cell and the experts' masks are not; where is
  not published. Only the crowd's masks fit these images.
- The crowd was shown the box around the gold standard's object, enlarged by half its height and
  width on each side; that holds for the sizes of all masks of datasets 1 to 3. What lies outside
  is unknown: 255. A column of the crowd is probably not one person.
- The gold standard equals Person2_ImageJ in datasets 1 to 3, and is no independent truth.
- Pictures with neighbouring numbers show much of the same dish, and no list says which.

Source: Gurari et al., "How to collect segmentations for biomedical images? A benchmark evaluating
the performance of experts, crowdsourced non-experts, and algorithms", WACV 2015.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tax_lightning.data.description import Description
from tax_lightning.data.pixels import MAX_GREY, find_images, read_size, read_whole, with_channels
from tax_lightning.importers.cases import Case, Found, Labels, Pixels
from tax_lightning.importers.layout import by_name, by_pattern, join_cases

_LAYOUT = """Expected this layout, or a folder of several such folders:
    BU-BIL_DatasetN/RawImages/NAME.png
    BU-BIL_DatasetN/ExpertsAnnotations/PersonP_TOOL/seg_NAME.png"""
_EXPERTS = ("ExpertsAnnotations", "ExpertAnnotations")
_OTHER_PERSONS = "2B"
_BRIGHTEST_OF_CELL = 127
_WHITE = 4095  # of the camera with 12 bits
_UNSEEN = 255


def find(root: Path, crowd: bool = False, reference: Literal["gold"] | None = None) -> Found:
    """The images and masks of one dataset of BU-BIL, or of several.

    Args:
        root: One folder of the form above, or a folder of several; names of images are then
            preceded by the name of their folder.
        crowd: Take the crowd's masks too, as ``crowd 1`` to ``crowd 7``.
        reference: ``"gold"`` takes the gold standard for the reference.
    """
    left_out: list[str] = []
    parts = [part for folder in _folders_of(root) if (part := _read(folder, crowd, left_out)).masks]
    if not parts:
        raise ValueError(
            f"{root} has no masks that fit their images: datasets 4 to 6 need the option crowd."
        )
    deep = {_is_deep(path) for part in parts for path in part.images.values()}
    show = partial(_image, white=_WHITE if deep == {True} else MAX_GREY)
    cases: list[Case] = []
    for part in parts:
        prefix = f"{part.folder.name}_" if len(parts) > 1 else ""
        joined, loose = join_cases(part.images, part.masks, partial(_mask, part), show=show)
        if reference == "gold":
            joined = [_with_gold(case, part) for case in joined]
        cases += [replace(case, name=prefix + part.images[case.name].stem) for case in joined]
        left_out += loose
    if crowd:
        left_out.append("A column of the crowd is probably not one person: its name says nothing.")
    if reference == "gold":
        left_out.append(
            "The gold standard equals Person2_ImageJ in datasets 1 to 3: it favours that annotator."
        )
    if len(deep) > 1:
        left_out.append("Images of 12 bits were rescaled to 16 bits, beside others of 8 bits.")
    description = Description(
        "BU-BIL",
        ("background", "cell"),
        ("grey",),
        intensity_range=(0, _WHITE) if deep == {True} else None,
        persons=not crowd,
        source="Gurari et al., How to collect segmentations for biomedical images?, WACV 2015",
        licence="BSD with an advertising clause: see README.txt of the data set",
    )
    names = sorted({name for case in cases for name in case.masks})
    return Found(description, cases, {name: _person_and_tool(name) for name in names}, left_out)


@dataclass(frozen=True)
class _Part:
    """One data set: files by the name of their image in small letters."""

    folder: Path
    images: dict[str, Path]
    masks: dict[str, dict[str, Path]]
    gold: dict[str, Path]


def _folders_of(root: Path) -> list[Path]:
    """The folders of the official layout at or below the root."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. {_LAYOUT}")
    candidates = [root, *sorted(root.iterdir())]
    folders = [folder for folder in candidates if (folder / "RawImages").is_dir()]
    if not folders:
        raise FileNotFoundError(f"{root} has no folder RawImages. {_LAYOUT}")
    return folders


def _read(folder: Path, crowd: bool, left_out: list[str]) -> _Part:
    """One data set; without the experts' masks where they cannot be laid on the images."""
    files = find_images(folder / "RawImages")
    images = by_name((name.lower(), path) for name, path in files.items())
    if not images:
        raise FileNotFoundError(f"{folder / 'RawImages'} holds no image files. {_LAYOUT}")
    gold = _masks(folder / "GoldStandard") if (folder / "GoldStandard").is_dir() else {}
    masks = {name: _masks(column) for name, column in _experts(folder)}
    if _all_cut_out(images, next(iter(masks.values()))):
        left_out.append(
            f"The experts' masks of {folder}: the images are cut out around the cell, the masks "
            "are not, and where is not published. The option crowd takes those by the crowd."
        )
        masks = {}
    if crowd:
        masks |= {name: _masks(column) for name, column in _crowd(folder)}
    return _Part(folder, images, masks, gold)


def _masks(folder: Path) -> dict[str, Path]:
    named = by_pattern(folder, r"(?:seg_)?(.+)", "seg_B01.png").items()
    return by_name((name.lower(), path) for name, path in named)


def _experts(folder: Path) -> list[tuple[str, Path]]:
    """Annotators and their folders, which in dataset 2 lie in two parts."""
    parents = [folder / name for name in _EXPERTS if (folder / name).is_dir()]
    if not parents:
        raise FileNotFoundError(f"{folder} has no folder {_EXPERTS[0]}. {_LAYOUT}")
    columns = []
    for column in _folders(parents[0]):
        prefix = f"{column.name} " if column.name == _OTHER_PERSONS else ""
        inner = [(prefix + part.name, part) for part in _folders(column)]
        columns += inner or [(column.name, column)]
    if not columns:
        raise FileNotFoundError(f"{parents[0]} holds no annotators' folders. {_LAYOUT}")
    return columns


def _crowd(folder: Path) -> list[tuple[str, Path]]:
    """The crowd's columns and their folders."""
    parent = folder / "CrowdsourcedAnnotations"
    if not parent.is_dir():
        raise FileNotFoundError(
            f"crowd: {parent} is no folder. Unpack the crowd's masks there, or leave crowd out."
        )
    return [(f"crowd {column.name.rpartition('-')[2]}", column) for column in _folders(parent)]


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _all_cut_out(images: Mapping[str, Path], masks: Mapping[str, Path]) -> bool:
    """Whether every image is smaller than its mask, both ways."""
    both = images.keys() & masks.keys()
    sizes = [(read_size(images[name]), read_size(masks[name])) for name in sorted(both)]
    return bool(sizes) and all(i[0] < m[0] and i[1] < m[1] for i, m in sizes)


def _mask(part: _Part, name: str, path: Path) -> Labels:
    """Class ids of a mask, which is laid where the crowd looked if it is smaller than the image."""
    drawn, gold = _cell(path), part.gold.get(name)
    size = read_size(part.images[name])
    return drawn if gold is None or drawn.shape == size else _placed(drawn, _cell(gold), size)


def _cell(path: Path) -> Labels:
    """1 where a mask file is dark, whatever its mode."""
    grey = with_channels(read_whole(path), 1, path)[..., 0]
    if grey.dtype != np.uint8:
        raise ValueError(f"Mask {path} has more than 8 bits a pixel, expected black on white.")
    return (grey <= _BRIGHTEST_OF_CELL).astype(np.uint8)


def _placed(drawn: Labels, gold: Labels, size: tuple[int, int]) -> Labels:
    """A mask in the whole picture; as it is where it is not of the box around the gold."""
    if not gold.any() or gold.shape != size:
        return drawn
    rows, columns = (_span(gold.max(axis=axis)) for axis in (1, 0))
    whole = np.full(size, _UNSEEN, np.uint8)
    if whole[rows, columns].shape != drawn.shape:
        return drawn
    whole[rows, columns] = drawn
    return whole


def _span(touched: Labels) -> slice:
    """The rows or columns that were shown to the crowd."""
    first, last = np.flatnonzero(touched)[[0, -1]]
    margin = (last - first + 2) // 2
    return slice(max(0, first - margin - 1), last + margin + 1)


def _is_deep(path: Path) -> bool:
    """Whether an image file has 16 bits a pixel."""
    read_size(path)  # names a file that is broken
    with Image.open(path) as image:
        return image.mode.startswith("I")


def _image(path: Path, white: int) -> Path | Callable[[], Pixels]:
    """A grey picture of 8 bits as its file; others as a function."""
    with Image.open(path) as image:
        return path if image.mode == "L" else partial(_grey, path, white)


def _grey(path: Path, white: int) -> Pixels:
    """Grey values; those of 12 bits with white at this value."""
    pixels = with_channels(read_whole(path), 1, path)[..., 0]
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.max() > _WHITE:
        raise ValueError(
            f"Image {path} holds values up to {pixels.max()}, expected 0 to {_WHITE}, as in the "
            "16-bit pictures of dataset 3."
        )
    return np.round(pixels * (white / _WHITE)).astype(np.uint16)


def _with_gold(case: Case, part: _Part) -> Case:
    gold = part.gold.get(case.name)
    if gold is None:
        raise ValueError(
            f"reference='gold': {part.images[case.name]} has no mask in GoldStandard. Add it, or "
            "leave reference out."
        )
    return replace(case, reference=partial(_cell, gold))


def _person_and_tool(annotator: str) -> dict[str, str]:
    """What the name of an annotator says; of the crowd it is not known who drew what."""
    person, _, tool = annotator.partition("_")
    return {"person": person, "tool": tool or "crowd"}
