"""What people draw with annotation tools, polygons and masks, as class ids and back.

Coordinates are those of the image with the corner of the first pixel at (0, 0), as tools write
them: the pixel in row y and column x covers x to x + 1 and y to y + 1. It belongs to a polygon if
its centre does. So the outline of a mask along the edges of its pixels gives the same mask again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from skimage.draw import polygon2mask

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import nearest
from tax_lightning.data.pixels import IMAGE_SUFFIXES, read_size, read_whole
from tax_lightning.exporters.outlines import Bools, Ring
from tax_lightning.importers.cases import Case, Found, Labels


@dataclass(frozen=True)
class Shape:
    """Something that a person drew.

    Args:
        label: Its class.
        mask: Gives the pixels that belong to it, bool ``[H, W]``, for the image's height and width.
        order: Of shapes that overlap, the one with the larger number lies above; of equal ones the
            later one.
    """

    label: str
    mask: Callable[[tuple[int, int]], Bools]
    order: int = 0


def inside(rings: Sequence[Ring], size: tuple[int, int]) -> Bools:
    """The pixels whose centre lies inside an odd number of outlines, bool ``[H, W]``.

    Args:
        rings: Outlines of objects and of holes in them.
        size: Height and width.

    Example:
        >>> square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
        >>> inside([square], (3, 3)).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    total = np.zeros(size, np.bool_)
    for ring in rings:
        if len(ring) >= 3:
            total ^= polygon2mask(size, ring[:, ::-1] - 0.5)
    return total


def polygon(rings: Iterable[object], label: str, order: int = 0) -> Shape:
    """A shape from outlines, each a list of x and y.

    Raises:
        ValueError: If an outline is no list of pairs of numbers.
    """
    arrays = []
    for ring in rings:
        try:
            array = np.asarray(ring, np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 2 or array.shape[1] < 2 or not np.isfinite(array).all():
            raise ValueError(
                f"An outline of {label!r} is no list of points x, y: {str(ring)[:80]}."
            )
        arrays.append(array[:, :2])
    return Shape(label, partial(inside, arrays), order)


def union(parts: Sequence[Shape], label: str) -> Shape:
    """One object of several parts."""
    return Shape(label, partial(_any_of, parts))


def _any_of(parts: Sequence[Shape], size: tuple[int, int]) -> Bools:
    whole = np.zeros(size, np.bool_)
    for part in parts:
        whole |= part.mask(size)
    return whole


def from_runs(lengths: Sequence[int], size: tuple[int, int]) -> Bools:
    """The mask of :func:`tax_lightning.exporters.outlines.runs`.

    Raises:
        ValueError: If the lengths do not add up to the number of pixels.
    """
    if sum(lengths) != size[0] * size[1] or min(lengths, default=0) < 0:
        raise ValueError(
            f"Runs of {sum(lengths)} pixels in a box of {size[1]} x {size[0]}: expected as many as "
            "the box has."
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size)


class Drawings:
    """What an export holds: shapes by image and annotator, in the order of their drawing."""

    def __init__(self) -> None:
        self._drawn: dict[str, dict[str, list[Shape]]] = defaultdict(dict)
        self.left_out: list[str] = []

    def of(self, image: str, annotator: str) -> list[Shape]:
        """The shapes of an annotator on an image, to be added to.

        Whoever is asked for here has labelled the image, also if nothing is added.
        """
        return self._drawn[image].setdefault(annotator, [])

    def found(
        self,
        root: Path,
        images: str | None,
        classes: Sequence[str] | None,
        name: str,
        source: str,
    ) -> Found:
        """All of it as cases.

        Args:
            root: The export.
            images: Folder of the images; None: the export's own folder. Sub-folders are searched.
            classes: Names in the order of their ids, the background first; None: the background,
                then the labels found by name.
            name: Of the data set.
            source: The tool.

        Raises:
            FileNotFoundError: If an image is missing.
            ValueError: If a label is no class, or nothing was drawn.
        """
        drawn = (shape for by in self._drawn.values() for own in by.values() for shape in own)
        labels = sorted({shape.label for shape in drawn})
        left_out = list(self.left_out)
        if classes is None:
            classes = ["background", *labels]
            left_out.append(
                f"The classes are {', '.join(classes)}, in the order of their names; --classes "
                "gives another order."
            )
        if unknown := [label for label in labels if label not in classes]:
            raise ValueError(
                f"classes: the label {unknown[0]!r} is not among {', '.join(classes)}. Add it."
            )
        folder = Path(images) if images is not None else root if root.is_dir() else root.parent
        files = images_below(folder)
        ids = {label: number for number, label in enumerate(classes)}
        drawn_on: dict[Path, dict[str, list[Shape]]] = defaultdict(lambda: defaultdict(list))
        for image, by in self._drawn.items():  # which files may name by other paths
            for person, own in by.items():
                drawn_on[image_named(image, files, folder)][person].extend(own)
        cases = [
            Case(
                path.stem, path, {who: partial(_painted, path, own, ids) for who, own in by.items()}
            )
            for path, by in drawn_on.items()
        ]
        if not cases:
            raise ValueError(f"{root} holds no annotation, expected an export with some.")
        first = read_whole(cases[0].image) if isinstance(cases[0].image, Path) else np.zeros((1, 1))
        channels = 1 if first.ndim == 2 else first.shape[2]
        names = {1: ("grey",), 3: ("red", "green", "blue")}
        described = names.get(channels, tuple(f"channel {i}" for i in range(channels)))
        said = Description(name, tuple(classes), described, source=source)
        return Found(said, cases, left_out=left_out)


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth below a folder, sorted.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"images: {folder} is no folder, expected that of the images.")
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def image_named(name: str, files: Sequence[Path], folder: Path) -> Path:
    """The image file that an export names, perhaps with folders before it.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If there are several, and the folders do not tell which is meant.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    found = [path for path in files if path.name == parts[-1]] if parts else []
    named = [path for path in found if list(path.parts[-len(parts) :]) == parts]
    if not found:
        last = parts[-1] if parts else name
        raise FileNotFoundError(
            f"The image {last!r} is not below {folder}.{nearest(last, [p.name for p in files])} "
            "Name the folder of the images by --images."
        )
    if len(named or found) > 1:
        one, other, *_ = named or found
        raise ValueError(
            f"The image {name!r} may be {one} or {other}: expected one of that name. Rename it, or "
            "name its folder by --images."
        )
    return (named or found)[0]


def _painted(path: Path, shapes: Sequence[Shape], ids: Mapping[str, int]) -> Labels:
    """The class ids of an image, the shapes laid over each other in their order."""
    size = read_size(path)
    labels = np.zeros(size, np.uint8)
    for shape in sorted(shapes, key=lambda shape: shape.order):  # stable: equal ones stay in order
        labels[shape.mask(size)] = ids[shape.label]
    return labels
