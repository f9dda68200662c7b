"""RIGA: optic disc and cup, drawn by six ophthalmologists as lines on photographs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from scipy import ndimage

from tax_lightning.data.files import (
    File,
    Part,
    Window,
    cut,
    read_image,
    read_size,
    size_text,
)
from tax_lightning.data.layout import (
    by_name,
    choose_annotators,
    find_folder,
    join_samples,
    match_files,
)
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.table import TableDataModule

CLASSES = ("background", "disc", "cup")
RATERS = tuple(f"rater {number}" for number in range(1, 7))
SOURCES = {
    "BinRushed": ("BinRushed1-Corrected", "BinRushed2", "BinRushed3", "BinRushed4"),
    "Magrabia": ("MagrabiaMale", "MagrabiFemale"),
    "MESSIDOR": ("MESSIDOR",),
}
TOO_FAINT = ("MagrabiFemale/image26-3",)
"""Drawings that are reported to differ too little from their photograph to be found."""

_DISC, _CUP = 1, 2
_MOST_CHANGED = 0.5  # of the pixels, in a photograph with a drawing on it
_SMALLEST_CUP = 0.01  # of the largest region; what is smaller lies between two strokes of one line
_SPECK = 8  # pixels; smaller pieces are noise of the compression
_MUCH_LARGER = 1.2
_EIGHT = np.ones((3, 3))  # pixels that touch at a corner are neighbours, as lines need it
_LAYOUT = "image12prime.jpg or image12-3.jpg"


class RIGADataModule(TableDataModule):
    """Photographs of the retina with the optic disc and cup as six ophthalmologists saw them.

    ::

        BinRushed/BinRushed1-Corrected/image1prime.jpg        the photograph
        BinRushed/BinRushed1-Corrected/image1-1.jpg           with the lines of rater 1 (to -6)
        BinRushed/BinRushed2, BinRushed3, BinRushed4
        Magrabia/MagrabiaMale, Magrabia/MagrabiFemale
        MESSIDOR

    These folders may lie at any depth below ``root``; files are ``.jpg`` or ``.tif``. The
    annotators are ``rater 1`` to ``rater 6``, each the same person throughout. Their labels are
    found by `ContourDrawings`: class ``cup`` inside of the inner line, class ``disc`` between the
    two. A drawing without an inner line becomes a disc without a cup, aloud; one without any
    closed line is an error, and can be left out by ``exclude_drawings``. An image whose photograph
    is missing (``MagrabiFemale/image48``) is passed over aloud.

    Args:
        root: The folder with the folders above.
        sources: Which of ``BinRushed``, ``Magrabia`` and ``MESSIDOR`` to use. None: all three.
        annotators: Names of the raters to use, in this order. None: all six.
        exclude_drawings: Drawings to leave out, by folder and name, e.g.
            ``"BinRushed2/image20-3"``; those in `TOO_FAINT` always are.
        kwargs: The options of `TableDataModule` and of `MultiAnnotatorDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If a name is unknown; the message names the file and the cure.

    Source:
        Almazroa et al., "Retinal fundus images for glaucoma analysis: the RIGA dataset", SPIE
        Medical Imaging 2018.
    """

    def __init__(
        self,
        root: str | Path,
        sources: Sequence[str] | None = None,
        annotators: Sequence[str] | None = None,
        exclude_drawings: Sequence[str] = (),
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root)
        names = choose_annotators(annotators, RATERS)
        images: dict[str, Path] = {}
        drawings: dict[str, Path] = {}
        for name in _folders(sources):
            folder = find_folder(root, name)
            found = match_files(folder, r"image(\d+)(.*)", _LAYOUT)
            photographs = by_name(
                (f"{name}/image{number}", path)
                for (number, rest), path in found
                if rest.lower() == "prime"
            )
            images |= photographs
            drawings |= _drawings(name, found, photographs)
        _leave_out(drawings, exclude_drawings)
        samples = _samples(images, drawings, names)
        super().__init__(SampleTable(samples, names, CLASSES, None, ContourDrawings()), **kwargs)


def _folders(sources: Sequence[str] | None) -> list[str]:
    if unknown := [name for name in sources or () if name not in SOURCES]:
        raise ValueError(
            f"sources: {unknown[0]!r} is no part of this data set, expected some of "
            f"{', '.join(SOURCES)}."
        )
    return [name for source in sources or SOURCES for name in SOURCES[source]]


def _drawings(
    folder: str, found: Iterable[tuple[tuple[str, ...], Path]], photographs: Iterable[str]
) -> dict[str, Path]:
    """The drawings on photographs that are there, ``FOLDER/imageN-R`` -> file."""
    known = set(photographs)
    drawn = []
    alone: dict[str, Path] = {}
    for (number, rest), path in found:
        image = f"{folder}/image{number}"
        if image not in known:
            alone[number] = path
        elif re.fullmatch("-[1-6]", rest):
            drawn.append((f"{image}{rest}", path))
        elif rest.lower() != "prime":
            raise ValueError(
                f"{path} is named as no file of this data set, expected a name like {_LAYOUT}, "
                "with a rater of 1 to 6. Rename the file or move it away."
            )
    for number, path in alone.items():
        rank_zero_warn(
            f"{folder}/image{number} is passed over: {path} is there, but image{number}prime, the "
            "photograph without lines, is missing."
        )
    return by_name(drawn)


def _leave_out(drawings: dict[str, Path], excluded: Sequence[str]) -> None:
    if unknown := [name for name in excluded if name not in drawings]:
        example = next(iter(drawings), "BinRushed2/image20-3")
        raise ValueError(
            f"exclude_drawings: there is no drawing {unknown[0]!r}, expected names like "
            f"{example!r}."
        )
    for name in (*excluded, *TOO_FAINT):
        drawings.pop(name, None)


def _samples(
    images: dict[str, Path], drawings: dict[str, Path], names: Sequence[str]
) -> tuple[Sample, ...]:
    """The samples, each drawing beside the photograph that it is to be compared with."""
    masks: dict[str, dict[str, File]] = {
        name: {
            image: Part(drawings[drawing], str(photograph))
            for image, photograph in images.items()
            if (drawing := f"{image}-{1 + RATERS.index(name)}") in drawings
        }
        for name in names
    }
    return join_samples(images, masks)


@dataclass(frozen=True)
class ContourDrawings:
    """Decodes photographs, and the lines drawn on copies of them as masks.

    A mask is the copy as a `Part` whose key is the path of the photograph. Its values are the
    indices of `CLASSES`: see `fill_contours`.

    Args:
        threshold: A pixel is drawn upon if any of its colours differs by more than this, in 0..255.
        gap: See `fill_contours`.
    """

    threshold: int = 20
    gap: int = 6

    @property
    def channels(self) -> int:
        """Channels of every image: colour."""
        return 3

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """The photograph, uint8 ``[H, W, 3]``."""
        return read_image(_path(file), window=window)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """Class ids of a drawing, uint8 ``[H, W]``.

        Raises:
            ValueError: If the two pictures do not belong together, or no line is closed.
        """
        labels = fill_contours(self._lines(file), self.gap)
        if not labels.any():
            raise ValueError(
                f"{file}: no closed line is found where the drawing differs from the photograph by "
                f"more than {self.threshold}, expected the outline of the optic disc. Leave it out "
                "with exclude_drawings."
            )
        if not (labels == _CUP).any():
            rank_zero_warn(f"{file}: no closed line within the disc; its mask has no cup.")
        return np.asarray(cut(labels, window))

    def size(self, file: File) -> tuple[int, int]:
        """Height and width, without decoding."""
        return read_size(_path(file))

    def _lines(self, file: File) -> npt.NDArray[np.bool_]:
        """Where the drawing differs from the photograph, ``[H, W]``."""
        if not isinstance(file, Part):
            raise ValueError(f"{file}: expected a Part, the drawing with its photograph as key.")
        drawing, photograph = read_image(file.path), read_image(Path(str(file.key)))
        if drawing.shape != photograph.shape:
            raise ValueError(
                f"{file.path} is {size_text(drawing.shape)} pixels, but its photograph {file.key} "
                f"is {size_text(photograph.shape)}. Replace the one that was resized."
            )
        lines: npt.NDArray[np.bool_] = cv2.absdiff(drawing, photograph).max(axis=2) > self.threshold
        if lines.mean() > _MOST_CHANGED:
            raise ValueError(
                f"{file.path} differs from its photograph {file.key} in {lines.mean():.0%} of the "
                "pixels, expected a copy with two lines on it. Check that the two belong together."
            )
        return lines


def _path(file: File) -> Path:
    return file.path if isinstance(file, Part) else file


def fill_contours(lines: npt.NDArray[np.bool_], gap: int = 6) -> npt.NDArray[np.uint8]:
    """Disc and cup from the outlines of both.

    The outline that encloses most is that of the disc. Of what it encloses, the region along most
    of the disc's border is the rim, and the largest other one the cup. Lines may touch each other,
    and may have a width, the middle of which is the border. Specks and strokes that enclose
    nothing do not matter.

    Args:
        lines: Pixels drawn upon, ``[H, W]``.
        gap: Width in pixels of the breaks that are bridged where no cup is found without; then
            two and four times as wide ones.

    Returns:
        0 background, 1 disc without cup, 2 cup, ``[H, W]``; 0 everywhere if no line is closed.

    Example:
        >>> lines = np.zeros((60, 60), bool)
        >>> for size in (40, 20):
        ...     border = slice(30 - size // 2, 31 + size // 2)
        ...     box = lines[border, border]
        ...     box[[0, -1]] = box[:, [0, -1]] = True
        >>> labels = fill_contours(lines)
        >>> labels[30, [5, 15, 30, 45, 55]].tolist()
        [0, 1, 2, 1, 0]
    """
    pieces, _ = ndimage.label(lines, _EIGHT)
    lines = lines & (np.bincount(pieces.flat) >= _SPECK)[pieces]
    best = np.zeros(lines.shape, np.uint8)
    for radius in (0, -(-gap // 2), gap, 2 * gap):
        labels = _regions(lines, radius)
        if (labels == _CUP).any():
            return labels
        if np.count_nonzero(labels) > _MUCH_LARGER * np.count_nonzero(best):
            best = labels  # what was found before is no disc, but a loop elsewhere
    return best


def _regions(lines: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.uint8]:
    """Disc and cup with the lines thickened by a radius; their middle remains where it is."""
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    thick = cv2.dilate(np.pad(lines, 1).astype(np.uint8), brush) > 0
    thick[[0, -1]] = thick[:, [0, -1]] = False  # a line that leaves the picture encloses nothing
    rest, _ = ndimage.label(~thick)
    filled, count = ndimage.label(rest != rest[0, 0], _EIGHT)
    enclosed = np.bincount(filled[(filled > 0) & ~thick], minlength=count + 1)
    labels = np.zeros(thick.shape, np.uint8)
    if enclosed.any():
        disc = int(enclosed.argmax())
        box = tuple(slice(s.start - 1, s.stop + 1) for s in ndimage.find_objects(filled)[disc - 1])
        labels[box] = _disc_and_cup(filled[box] == disc, ~thick[box])
    return labels[1:-1, 1:-1]


def _disc_and_cup(
    filled: npt.NDArray[np.bool_], unmarked: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Labels of the filled outline of a disc, given the pixels that no line covers."""
    regions, _ = ndimage.label(unmarked & filled)
    sizes = np.bincount(regions.flat)
    sizes[0] = 0
    small = sizes < _SMALLEST_CUP * sizes.max()
    outside = len(sizes)
    seeds = np.where(small[regions], 0, regions)
    seeds[~filled] = outside
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    regions = seeds[tuple(nearest)]  # pixels of a line belong to the region that is next
    disc = regions != outside
    border = regions[disc & ~ndimage.binary_erosion(disc)]
    rim = int(np.bincount(border).argmax())
    sizes[[rim, *np.flatnonzero(small)]] = 0
    labels = np.where(disc, _DISC, 0).astype(np.uint8)
    if sizes.any():
        labels[regions == sizes.argmax()] = _CUP
    return labels
