"""BU-BIL: cells in microscopy pictures, outlined by the same few experts and by a crowd."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.data.files import (
    File,
    Part,
    Window,
    cut,
    find_images,
    read_image,
    read_size,
)
from tax_lightning.data.layout import by_name, choose_annotators, join_samples, match_files
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.table import TableDataModule

CLASSES = ("background", "cell")
MASK_VALUES = {0: "background", 1: "cell", 255: "ignore"}

_LAYOUT = """Expected this layout, or a folder of several such folders:
    BU-BIL_DatasetN/RawImages/NAME.png
    BU-BIL_DatasetN/ExpertsAnnotations/PersonP_TOOL/seg_NAME.png
    BU-BIL_DatasetN/CrowdsourcedAnnotations/mturk_annotationN-k/seg_NAME.png   (optional)
    BU-BIL_DatasetN/GoldStandard/seg_NAME.png                                  (optional)"""
_EXPERTS = ("ExpertsAnnotations", "ExpertAnnotations")  # the second in dataset 6
_OTHER_PERSONS = "2B"  # the part of dataset 2 that three other persons outlined
_BRIGHTEST_OF_CELL = 127  # the object is black, and some outlines are drawn in grey
_WHITE_16 = 4095  # the 16-bit pictures come from a camera with 12 bits
_UNSEEN = 255

T = TypeVar("T")


@dataclass(frozen=True)
class BUBILPictures:
    """Decodes the pictures and masks of BU-BIL: 1 is the cell, which the files draw in black.

    A mask by the crowd is a `Part` whose key is the gold standard's file of that picture: the crowd
    was shown the box around that object, enlarged by half its height and width on each side. What
    lies outside of it, they did not see: 255.

    Args:
        channels: 1 (grey) or 3 (RGB); images are converted to it.
    """

    channels: int = 3

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """See `read_image`; white is 4095 in 16-bit files."""
        path = _path(file)
        pixels = read_image(path, self.channels, window=window)
        if pixels.dtype == np.uint8:
            return pixels
        pixels = pixels * np.float32(65535 / _WHITE_16)
        if pixels.max() > 1 + 1e-4:
            raise ValueError(
                f"Image {path} holds values up to {pixels.max() * _WHITE_16:.0f}, expected 0 to "
                f"{_WHITE_16}, as in the 16-bit pictures of dataset 3."
            )
        return pixels.clip(0, 1)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """1 for the cell, 0 for the background, 255 where the crowd did not look; ``[H, W]``."""
        drawn = _cell(_path(file))
        return cut(_placed(drawn, Path(str(file.key))) if isinstance(file, Part) else drawn, window)


def _path(file: File) -> Path:
    return file.path if isinstance(file, Part) else file


def _cell(path: Path) -> npt.NDArray[np.uint8]:
    """1 where a mask file is dark, whatever its mode."""
    grey = read_image(path, channels=1)[..., 0]
    if grey.dtype != np.uint8:
        raise ValueError(f"Mask {path} has more than 8 bits a pixel, expected black on white.")
    return (grey <= _BRIGHTEST_OF_CELL).astype(np.uint8)


def _placed(drawn: npt.NDArray[np.uint8], gold: Path) -> npt.NDArray[np.uint8]:
    """A crowd's mask in the whole picture; as it is where it is not of the box around the gold."""
    truth = _cell(gold)
    if not truth.any() or drawn.shape == truth.shape:
        return drawn
    rows, columns = (_span(truth.max(axis=axis)) for axis in (1, 0))
    whole = np.full(truth.shape, _UNSEEN, np.uint8)
    if whole[rows, columns].shape != drawn.shape:
        return drawn
    whole[rows, columns] = drawn
    return whole


def _span(touched: npt.NDArray[np.uint8]) -> slice:
    """The rows or columns shown to the crowd: found to hold for all masks of datasets 1 to 3."""
    first, last = np.flatnonzero(touched)[[0, -1]]
    margin = (last - first + 2) // 2
    return slice(max(0, first - margin - 1), last + margin + 1)


class BUBILDataModule(TableDataModule):
    """BU-BIL in its official layout: cells outlined by experts with several tools.

    ::

        BU-BIL_DatasetN/RawImages/NAME.png
        BU-BIL_DatasetN/ExpertsAnnotations/PersonP_TOOL/seg_NAME.png
        BU-BIL_DatasetN/CrowdsourcedAnnotations/mturk_annotationN-k/seg_NAME.png
        BU-BIL_DatasetN/GoldStandard/seg_NAME.png

    An annotator is a person with a tool, such as ``Person1_Amira``; ``group_by`` takes ``person``
    and ``tool``. Of dataset 2, part 2A is by the five persons of datasets 1 and 3, and part 2B by
    three others, here ``2B Person1_Amira``. In datasets 4 to 6 the images are cut out around the
    cell and the experts' masks are not; where they were cut is not published, so that only the
    crowd's masks can be used with them.

    No picture says which others show the same dish: pictures with neighbouring numbers are alike
    in places, and may lie in different splits.

    Args:
        root: One folder of the form above, or a folder of several; names of images are then
            preceded by the name of their folder.
        annotators: Names of the annotators to use, in this order. None: all, sorted by name.
        exclude_annotators: Names of annotators to leave out.
        crowd: Take the crowd's masks too, as ``crowd 1`` to ``crowd 7``. A column is probably not
            one person. Outside the box that the crowd was shown, pixels count as not labelled.
        reference: ``"gold"`` takes the published "gold standard" for the truth. It equals the masks
            of ``Person2_ImageJ`` in datasets 1 to 3. None: no reference.
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If names do not match each other, or masks cannot be laid on their images; the
            message names the file and the cure.

    Source:
        Gurari et al., "How to collect segmentations for biomedical images? A benchmark evaluating
        the performance of experts, crowdsourced non-experts, and algorithms", WACV 2015.
    """

    def __init__(
        self,
        root: str | Path,
        annotators: Sequence[str] | None = None,
        exclude_annotators: Sequence[str] = (),
        crowd: bool = False,
        reference: Literal["gold"] | None = None,
        channels: int = 3,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        parts = [_read(folder, crowd) for folder in _data_sets(Path(root))]
        data = _joined([part for part in parts if part.masks])
        chosen = _chosen(annotators, exclude_annotators, sorted(data.masks))
        samples = join_samples(data.images, {name: data.masks[name] for name in chosen})
        if reference is not None:
            samples = _with_gold(samples, data.gold)
        if crowd:
            rank_zero_warn(
                "crowd: a column of the crowd's masks is probably not one person, so that figures "
                "of 'crowd 1' to 'crowd 7' say nothing about people."
            )
        samples = tuple(replace(sample, id=data.ids[sample.id]) for sample in samples)
        table = SampleTable(samples, chosen, CLASSES, MASK_VALUES, BUBILPictures(channels))
        metadata = {name: _person_and_tool(name) for name in chosen}
        super().__init__(table, metadata=metadata, **kwargs)
        self.persons = not crowd


def _person_and_tool(annotator: str) -> dict[str, str]:
    """What the name of an annotator says; of the crowd it is not known who drew what."""
    person, _, tool = annotator.partition("_")
    return {"person": person, "tool": tool or "crowd"}


class _DataSet(NamedTuple):
    """Files by the name of their image in small letters: dataset 6 differs in capitals."""

    images: dict[str, Path]
    masks: dict[str, dict[str, File]]
    gold: dict[str, Path]
    ids: dict[str, str]


def _data_sets(root: Path) -> list[Path]:
    """The folders of the official layout at or below the root."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder. {_LAYOUT}")
    candidates = [root, *sorted(root.iterdir())]
    folders = [folder for folder in candidates if (folder / "RawImages").is_dir()]
    if not folders:
        raise FileNotFoundError(f"{root} has no folder RawImages. {_LAYOUT}")
    return folders


def _read(folder: Path, crowd: bool) -> _DataSet:
    """One data set; without the experts' masks where they cannot be laid on the images."""
    files = find_images(folder / "RawImages")
    images = by_name((name.lower(), path) for name, path in files.items())
    if not images:
        raise FileNotFoundError(f"{folder / 'RawImages'} holds no image files. {_LAYOUT}")
    gold = _masks(folder / "GoldStandard") if (folder / "GoldStandard").is_dir() else {}
    masks: dict[str, dict[str, File]] = {
        name: {**_masks(column)} for name, column in _experts(folder)
    }
    if _all_cut_out(images, next(iter(masks.values()))):
        rank_zero_warn(
            f"{folder}: the images are cut out around the cell, the experts' masks are not, and "
            "where they were cut is not published. The experts' masks are left out; crowd=true "
            "reads those by the crowd."
        )
        masks = {}
    if crowd:
        masks |= {name: _shown(_masks(column), images, gold) for name, column in _crowd(folder)}
    return _DataSet(images, masks, gold, {name: path.stem for name, path in images.items()})


def _masks(folder: Path) -> dict[str, Path]:
    """The mask files of a folder by the name of their image, with the prefix seg_, Seg_ or none."""
    named = match_files(folder, r"(?:seg_)?(.+)", "seg_B01.png")
    return by_name((name.lower(), path) for (name,), path in named)


def _experts(folder: Path) -> list[tuple[str, Path]]:
    """Annotators and their folders, which in dataset 2 lie in two parts."""
    parents = [folder / name for name in _EXPERTS if (folder / name).is_dir()]
    if not parents:
        raise FileNotFoundError(f"{folder} has no folder {_EXPERTS[0]}. {_LAYOUT}")
    columns = []
    for column in _folders(parents[0]):
        prefix = f"{column.name} " if column.name == _OTHER_PERSONS else ""
        columns += [(prefix + part.name, part) for part in _folders(column)] or [
            (column.name, column)
        ]
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
    return sorted(
        path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _all_cut_out(images: Mapping[str, Path], masks: Mapping[str, File]) -> bool:
    """Whether every image is smaller than its mask, both ways."""
    both = images.keys() & masks.keys()
    sizes = [(read_size(images[name]), read_size(_path(masks[name]))) for name in sorted(both)]
    return bool(sizes) and all(i[0] < m[0] and i[1] < m[1] for i, m in sizes)


def _shown(
    masks: Mapping[str, Path], images: Mapping[str, Path], gold: Mapping[str, Path]
) -> dict[str, File]:
    """The crowd's masks, with the gold standard that tells their place in a whole image."""
    return {
        name: Part(path, str(gold[name]))
        if name in gold and name in images and read_size(gold[name]) == read_size(images[name])
        else path
        for name, path in masks.items()
    }


def _joined(parts: Sequence[_DataSet]) -> _DataSet:
    """Several data sets as one, in which the names of their folders tell images apart."""
    if not parts:
        raise ValueError(
            "There are no masks that fit their images. Expected one of the datasets 1 to 3, or set "
            "crowd=true."
        )
    if len(parts) == 1:
        return parts[0]
    data = _DataSet({}, {}, {}, {})
    for part in parts:
        prefix = f"{next(iter(part.images.values())).parents[1].name}_"
        data.images.update(_prefixed(prefix, part.images))
        data.gold.update(_prefixed(prefix, part.gold))
        data.ids.update({prefix + name: prefix + text for name, text in part.ids.items()})
        for annotator, masks in part.masks.items():
            data.masks.setdefault(annotator, {}).update(_prefixed(prefix, masks))
    return data


def _prefixed(prefix: str, files: Mapping[str, T]) -> dict[str, T]:
    return {prefix + name: file for name, file in files.items()}


def _chosen(
    wanted: Sequence[str] | None, excluded: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """The annotators to use, in the order wanted."""
    if unknown := [name for name in excluded if name not in known]:
        raise ValueError(
            f"exclude_annotators: {unknown[0]!r} is nobody of this data set, expected some of "
            f"{', '.join(known)}."
        )
    chosen = [name for name in choose_annotators(wanted, known) if name not in excluded]
    if not chosen:
        raise ValueError(
            f"annotators and exclude_annotators leave nobody of {', '.join(known)}. Expected at "
            "least one annotator: shorten exclude_annotators."
        )
    return tuple(chosen)


def _with_gold(samples: Sequence[Sample], gold: Mapping[str, Path]) -> tuple[Sample, ...]:
    """The samples with the published gold standard as reference."""
    if missing := [sample.image for sample in samples if sample.id not in gold]:
        raise ValueError(
            f"reference='gold': {missing[0]} has no mask in GoldStandard, and {len(missing) - 1} "
            "more have none. Expected one for every image: add them, or leave reference out."
        )
    rank_zero_warn(
        "reference='gold': the published gold standard equals the masks of Person2_ImageJ in "
        "datasets 1 to 3. It is no independent truth, and favours that annotator in every figure."
    )
    return tuple(replace(sample, reference=gold[sample.id]) for sample in samples)
