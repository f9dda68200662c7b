"""Retinal vessels traced by two observers: STARE, CHASE_DB1 and DRIVE."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from tax_lightning.data.files import File, Part, Window, cut
from tax_lightning.data.layout import by_name, find_folder, join_samples, match_files
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.table import TableDataModule

CLASSES = ("background", "vessel")
MASK_VALUES = {0: "background", 255: "vessel"}

_OUTSIDE = 256  # no grey value of an 8-bit file: pixels out of the field of view


class StareDataModule(TableDataModule):
    """STARE: 20 photographs of the retina, whose vessels two persons traced.

    ::

        stare-images/im0001.ppm          (or .ppm.gz, here and below)
        labels-ah/im0001.ah.ppm
        labels-vk/im0001.vk.ppm

    Unpack each archive into a folder of the name above, if it does not make one. The annotators
    are ``ah`` and ``vk``, the same two persons throughout.

    Args:
        root: The folder with the folders above.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If names do not match each other; the message names the file and the cure.

    Source:
        Hoover, Kouznetsova and Goldbaum, "Locating blood vessels in retinal images by piecewise
        threshold probing of a matched filter response", IEEE TMI 19(3), 2000.
    """

    def __init__(
        self,
        root: str | Path,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root)
        folders = {name: find_folder(root, f"labels-{name}") for name in ("ah", "vk")}
        images = _files(find_folder(root, "stare-images"), r"(im\d+)", "im0001.ppm")
        masks: dict[str, dict[str, File]] = {
            name: {**_files(folder, rf"(im\d+)\.{name}", f"im0001.{name}.ppm")}
            for name, folder in folders.items()
        }
        super().__init__(_table(join_samples(images, masks), tuple(masks)), **kwargs)


class ChaseDataModule(TableDataModule):
    """CHASE_DB1: both eyes of 14 children, whose vessels two persons traced.

    ::

        Image_01L.jpg
        Image_01L_1stHO.png
        Image_01L_2ndHO.png

    The annotators are ``1stHO`` and ``2ndHO``, the first and second human observer, the same two
    throughout. The eyes of one child stay in one split.

    Args:
        root: The folder with these files.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If names do not match each other; the message names the file and the cure.

    Source:
        Fraz et al., "An ensemble classification-based approach applied to retinal blood vessel
        segmentation", IEEE TBME 59(9), 2012.
    """

    def __init__(
        self,
        root: str | Path,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        found = match_files(
            Path(root), r"(image_(\d+)[lr])(?:_(1stHO|2ndHO))?", "Image_01L.jpg or Image_01L_1stHO"
        )
        children = {eye: child for (eye, child, _), _ in found}
        images, first, second = (
            by_name((eye, path) for (eye, _, by), path in found if by.lower() == suffix)
            for suffix in ("", "1stho", "2ndho")
        )
        samples = join_samples(images, {"1stHO": first, "2ndHO": second}, children)
        super().__init__(_table(samples, ("1stHO", "2ndHO")), **kwargs)


class DriveDataModule(TableDataModule):
    """DRIVE: photographs of the retina with vessels traced once or twice.

    ::

        test/images/01_test.tif              training/images/21_training.tif
        test/1st_manual/01_manual1.gif       training/1st_manual/21_manual1.gif
        test/2nd_manual/01_manual2.gif
        test/mask/01_test_mask.gif           training/mask/21_training_mask.gif

    Only the part ``test`` has two annotators, ``1st`` and ``2nd``. The published split would train
    on the first alone, about the second nothing could be learnt; therefore the splits are drawn
    among the 20 images of that part, and results are not comparable with those for the published
    split. With ``use_training`` the 20 images of the other part are drawn too, without a label of
    the second annotator.

    The annotators are not persons: three observers traced the data, and ``1st`` is the work of two
    of them, who shared the images. A warning says so.

    Args:
        root: The folder with the folders above.
        use_training: Use the part ``training`` too, which the first annotator alone labelled.
        field_of_view: Ignore pixels outside of the round field of view, by the files in ``mask``.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder or the field of view of an image is missing.
        ValueError: If names do not match each other; the message names the file and the cure.

    Source:
        Staal et al., "Ridge-based vessel segmentation in color images of the retina", IEEE TMI
        23(4), 2004.
    """

    persons = False  # one of the annotators is two persons

    def __init__(
        self,
        root: str | Path,
        use_training: bool = False,
        field_of_view: bool = False,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        rank_zero_warn(
            "DRIVE: the annotator '1st' is two persons who shared the images, so what is learnt "
            "about '1st' is a mixture of both; '2nd' is one person."
        )
        root = Path(root)
        if not (root / "test" / "2nd_manual").is_dir():
            raise FileNotFoundError(
                f"{root / 'test' / '2nd_manual'} is missing. Expected the part test with both "
                "1st_manual and 2nd_manual: newer editions leave them out, take an older one."
            )
        samples = _drive_part(root / "test", ("1st", "2nd"), field_of_view)
        if use_training:
            samples += _drive_part(root / "training", ("1st",), field_of_view)
        values = MASK_VALUES | ({_OUTSIDE: "ignore"} if field_of_view else {})
        super().__init__(_table(samples, ("1st", "2nd"), values), **kwargs)


def _drive_part(
    folder: Path, annotators: tuple[str, ...], field_of_view: bool
) -> tuple[Sample, ...]:
    """The samples of the part that is named as its folder."""
    part = folder.name
    images = _files(folder / "images", rf"(\d+)_{part}", f"01_{part}.tif")
    traced = {
        name: _files(
            folder / f"{name}_manual", rf"(\d+)_manual{name[0]}", f"01_manual{name[0]}.gif"
        )
        for name in annotators
    }
    masks: dict[str, dict[str, File]] = {name: {**files} for name, files in traced.items()}
    if field_of_view:
        views = _files(folder / "mask", rf"(\d+)_{part}_mask", f"01_{part}_mask.gif")
        if lacking := [number for number in images if number not in views]:
            raise FileNotFoundError(
                f"{folder / 'mask'} has no field of view of {images[lacking[0]].name}. Add it, or "
                "set field_of_view to false."
            )
        masks = {
            name: {n: Part(path, str(views[n])) for n, path in files.items() if n in views}
            for name, files in traced.items()
        }
    return join_samples(images, masks)


def _files(folder: Path, pattern: str, example: str) -> dict[str, Path]:
    """The files of a folder by the one group of the pattern."""
    return by_name((groups[0], path) for groups, path in match_files(folder, pattern, example))


def _table(
    samples: tuple[Sample, ...],
    annotators: tuple[str, ...],
    mask_values: dict[int, str] = MASK_VALUES,
) -> SampleTable:
    return SampleTable(samples, annotators, CLASSES, mask_values, GreyMasks())


@dataclass(frozen=True)
class GreyMasks:
    """Decodes 8-bit pictures, packed by gzip or not; masks as grey, whatever their file type.

    GIF files store an index into colours, so that white may be 1 in one file and 255 in another;
    some masks are 1-bit files. As grey pictures white is 255 in all of them. A mask may be a
    `Part` whose key is the path of its field of view.
    """

    @property
    def channels(self) -> int:
        """Channels of every image: colour."""
        return 3

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """The photograph, uint8 ``[H, W, 3]``.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        return np.asarray(cut(_pixels(_path(file), "RGB"), window))

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """Grey values of a mask, ``[H, W]``; 256 out of the field of view, where there is one.

        Raises:
            ValueError: If a file cannot be decoded, or the two differ in size.
        """
        values = _pixels(_path(file), "L")
        if isinstance(file, Part):
            view = _pixels(Path(str(file.key)), "L")
            if view.shape != values.shape:
                raise ValueError(
                    f"{file.key} is {view.shape[1]} x {view.shape[0]} pixels, but {file.path} is "
                    f"{values.shape[1]} x {values.shape[0]}. Replace the one that was resized."
                )
            values = np.where(view > 0, values.astype(np.uint16), np.uint16(_OUTSIDE))
        return cut(values, window)

    def size(self, file: File) -> tuple[int, int]:
        """Height and width, without decoding the pixels."""
        with _opened(_path(file)) as image:
            return image.height, image.width


def _path(file: File) -> Path:
    return file.path if isinstance(file, Part) else file


def _pixels(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    with _opened(path) as image:
        return np.asarray(image.convert(mode))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read; errors of reading it, now or later, name it."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        with Image.open(BytesIO(content)) as image:
            yield image
    except (OSError, EOFError, SyntaxError, ValueError, zlib.error) as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole image file: unpack it anew."
        ) from error
