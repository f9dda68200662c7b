"""RIGA: optic disc and cup, drawn by six ophthalmologists as lines on photographs.

::

    BinRushed/BinRushed1-Corrected/image1prime.jpg        the photograph
    BinRushed/BinRushed1-Corrected/image1-1.jpg           with the lines of rater 1 (to -6)
    BinRushed/BinRushed2, BinRushed3, BinRushed4
    Magrabia/MagrabiaMale, Magrabia/MagrabiFemale
    MESSIDOR

The folders may lie at any depth; files are ``.jpg`` or ``.tif``, and rater 1's begin with a capital
in ``MagrabiaMale``. ``rater 1`` to ``rater 6`` are each the same person throughout.

- A pixel counts as drawn upon if a colour differs by more than 20 from the photograph. Class
  ``cup`` is what lies inside of the inner line, class ``disc`` the rim between the two lines.
- A drawing without an inner line becomes a disc without a cup, aloud. One without any closed line
  is an error, which ``exclude_drawings`` passes over.
- ``MagrabiFemale/image26-3`` is reported to be too faint and is always left out.
  ``MagrabiFemale/image48`` lacks its photograph. An uncorrected ``BinRushed1`` is not read.
- Nothing says which images come from one patient.

Finding the lines takes about half a second a drawing of 1500 x 2000 pixels.

Source: Almazroa et al., "Retinal fundus images for glaucoma analysis: the RIGA dataset", SPIE
Medical Imaging 2018.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import expand_labels

from tax_lightning.data.description import Description
from tax_lightning.data.pixels import read_whole, size_text, with_channels
from tax_lightning.importers.cases import RGB, Found, Labels
from tax_lightning.importers.layout import by_name, find_folder, join_cases, match_files

PARTS = {
    "BinRushed": ("BinRushed1-Corrected", "BinRushed2", "BinRushed3", "BinRushed4"),
    "Magrabia": ("MagrabiaMale", "MagrabiFemale"),
    "MESSIDOR": ("MESSIDOR",),
}
_TOO_FAINT = "MagrabiFemale/image26-3"
_DISC, _CUP = 1, 2
_CHANGED = 20  # of 255
_GAP = 6  # pixels
_MOST_CHANGED = 0.5  # of the pixels, in a photograph with a drawing on it
_SMALLEST_CUP = 0.01  # of the largest region; what is smaller lies between two strokes of one line
_SPECK = 8  # pixels; smaller pieces are noise of the compression
_MUCH_LARGER = 1.2
_EIGHT = np.ones((3, 3))  # pixels that touch at a corner are neighbours, as lines need it
_EXAMPLE = "image12prime.jpg or image12-3.jpg"


def find(
    root: Path, sources: Sequence[str] | None = None, exclude_drawings: Sequence[str] = ()
) -> Found:
    """The photographs below a folder and the drawings on copies of them.

    Args:
        root: The folder of the data set.
        sources: Which of ``BinRushed``, ``Magrabia`` and ``MESSIDOR`` to take. None: all three.
        exclude_drawings: Drawings to leave out, by folder and name: ``"BinRushed2/image20-3"``.
    """
    if unknown := [name for name in sources or () if name not in PARTS]:
        raise ValueError(
            f"sources: {unknown[0]!r} is no part of this data set, expected some of "
            f"{', '.join(PARTS)}."
        )
    images: dict[str, Path] = {}
    drawings: dict[str, Path] = {}
    left_out: list[str] = []
    for name in (folder for source in sources or PARTS for folder in PARTS[source]):
        found = match_files(find_folder(root, name), r"image(\d+)(.*)", _EXAMPLE)
        photographs = by_name(
            (f"{name}/image{number}", path)
            for (number, rest), path in found
            if rest.lower() == "prime"
        )
        images |= photographs
        drawings |= _drawings(name, found, photographs, left_out)
    if unknown := [name for name in exclude_drawings if name not in drawings]:
        raise ValueError(
            f"exclude_drawings: there is no drawing {unknown[0]!r}, expected names like "
            f"{next(iter(drawings), 'BinRushed2/image20-3')!r}."
        )
    for name in (*exclude_drawings, _TOO_FAINT):
        if drawings.pop(name, None):
            left_out.append(f"The drawing {name}.")
    masks = {
        f"rater {rater}": {
            image: drawings[f"{image}-{rater}"]
            for image in images
            if f"{image}-{rater}" in drawings
        }
        for rater in range(1, 7)
    }
    cases, loose = join_cases(images, masks, partial(_mask, images))
    description = Description(
        "RIGA",
        ("background", "disc", "cup"),
        RGB,
        source="Almazroa et al., SPIE Medical Imaging 2018; Deep Blue Data, University of Michigan",
        licence="The terms on the data set's page at Deep Blue Data",
    )
    return Found(description, cases, left_out=left_out + loose)


def _drawings(
    folder: str,
    found: Iterable[tuple[tuple[str, ...], Path]],
    photographs: Iterable[str],
    left_out: list[str],
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
                f"{path} is named as no file of this data set, expected a name like {_EXAMPLE}, "
                "with a rater of 1 to 6. Rename the file or move it away."
            )
    left_out += [
        f"{folder}/image{number}: {path} is there, but image{number}prime, the photograph without "
        "lines, is missing."
        for number, path in alone.items()
    ]
    return by_name(drawn)


def _mask(images: dict[str, Path], name: str, path: Path) -> Labels:
    """Class ids of the drawing at a path, on a copy of this image."""
    labels = fill_contours(_lines(path, images[name]))
    if not labels.any():
        raise ValueError(
            f"{path}: no closed line is found where the drawing differs from the photograph by "
            f"more than {_CHANGED}, expected the outline of the optic disc. Leave it out with "
            f"exclude_drawings: {name}-{path.stem.rpartition('-')[2]}."
        )
    if not (labels == _CUP).any():
        warnings.warn(f"{path}: no closed line within the disc; its mask has no cup.", stacklevel=2)
    return labels


def _lines(path: Path, photograph: Path) -> npt.NDArray[np.bool_]:
    """Where a drawing differs from its photograph, ``[H, W]``."""
    drawing, clean = (with_channels(read_whole(file), 3, file) for file in (path, photograph))
    if drawing.shape != clean.shape:
        raise ValueError(
            f"{path} is {size_text(drawing.shape)} pixels, but its photograph {photograph} is "
            f"{size_text(clean.shape)}. Replace the one that was resized."
        )
    lines: npt.NDArray[np.bool_] = cv2.absdiff(drawing, clean).max(axis=2) > _CHANGED
    if lines.mean() > _MOST_CHANGED:
        raise ValueError(
            f"{path} differs from its photograph {photograph} in {lines.mean():.0%} of the pixels, "
            "expected a copy with two lines on it. Check that the two belong together."
        )
    return lines


def fill_contours(lines: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Disc and cup from the outlines of both.

    The outline that encloses most is that of the disc. Of what it encloses, the region along most
    of the disc's border is the rim, and the largest other one the cup. Lines may touch each other,
    and may have a width, the middle of which is the border. Specks and strokes that enclose
    nothing do not matter.

    Args:
        lines: Pixels drawn upon, ``[H, W]``. Breaks of up to 6 pixels are bridged where no cup is
            found without; then two and four times as wide ones.

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
    for radius in (0, _GAP // 2, _GAP, 2 * _GAP):
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
    regions = expand_labels(seeds, np.inf)  # pixels of a line belong to the region that is next
    disc = regions != outside
    border = regions[disc & ~ndimage.binary_erosion(disc)]
    rim = int(np.bincount(border).argmax())
    sizes[[rim, *np.flatnonzero(small)]] = 0
    labels = np.where(disc, _DISC, 0).astype(np.uint8)
    if sizes.any():
        labels[regions == sizes.argmax()] = _CUP
    return labels
