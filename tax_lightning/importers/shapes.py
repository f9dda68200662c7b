"""Shapes that people drew with annotation tools, as class ids.

Coordinates are those of the image with the corner of the first pixel at (0, 0), as tools write
them: the pixel in row y and column x covers x to x + 1 and y to y + 1. It belongs to a polygon if
its centre lies inside, and a centre on the outline belongs to what is on its right, so that
neighbours with a common border neither share a pixel nor leave one out. Where an outline crosses
itself, inside is what a way from outside reaches over an odd number of lines.

A region labelled ``ignore``, or ``Ignore*`` as QuPath has it, marks what is not labelled: 255.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import Description
from tax_lightning.data.labels import IGNORE_NAME
from tax_lightning.data.layouts import nearest
from tax_lightning.data.pixels import IMAGE_SUFFIXES, read_size, size_text
from tax_lightning.exporters.outlines import Bools, Ring
from tax_lightning.importers.cases import Case, Found, Labels

Size = tuple[int, int]
"""Height and width."""

_CORNERS = 720  # of an ellipse: off by a hundred-thousandth of its radius


class Patch(NamedTuple):
    """Some pixels of an image: a rectangle of truth values, wholly inside of it."""

    top: int
    left: int
    pixels: Bools

    def paint(self, labels: npt.NDArray[Any], value: int) -> None:
        """Set the pixels of the patch in an array of the image's size."""
        height, width = self.pixels.shape
        labels[self.top : self.top + height, self.left : self.left + width][self.pixels] = value


@dataclass(frozen=True)
class Shape:
    """Something that a person drew.

    Args:
        label: Its class.
        draw: Gives the pixels that belong to it, for the image's height and width.
        order: Of shapes that overlap, the one with the larger number lies above; of equal ones the
            later one.

    Raises:
        ValueError: If the label is no text.
    """

    label: str
    draw: Callable[[Size], Patch]
    order: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.label, str):  # of a foreign file
            raise ValueError(f"The label {self.label!r} is no text, expected the name of a class.")


def placed(pixels: Bools, top: int, left: int, size: Size) -> Patch:
    """A mask of a box at its place in the image.

    Raises:
        ValueError: If the box reaches out of the image.
    """
    height, width = pixels.shape
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"a mask of {width} x {height} pixels at {left}, {top} does not lie in its image of "
            f"{size_text(size)}"
        )
    return Patch(top, left, pixels)


def inside(rings: Sequence[Ring], size: Size) -> Bools:
    """The pixels whose centre lies inside an odd number of outlines, bool ``[H, W]``.

    Args:
        rings: Outlines of objects and of holes in them.
        size: Height and width.

    Example:
        >>> square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
        >>> inside([square], (3, 3)).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    # OpenCV and scikit-image give pixels on a common border to both neighbours or to none, and
    # shapely needs half a minute for an outline of ragged pixels; so the crossings are counted here
    height, width = size
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upwards = (starts[:, 1] > ends[:, 1])[:, None]  # an edge is the same from both of its sides
    a, b = np.where(upwards, ends, starts), np.where(upwards, starts, ends)
    first = np.clip(np.ceil(a[:, 1] - 0.5), 0, height).astype(int)  # rows: a.y <= centre < b.y
    count = np.clip(np.ceil(b[:, 1] - 0.5), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(a)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (b[edge, 0] - a[edge, 0]) / (b[edge, 1] - a[edge, 1])
    crossing = a[edge, 0] + (row + 0.5 - a[edge, 1]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
    edges = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    left_of = np.cumsum(edges.reshape(height, width + 1)[:, :width], axis=1)
    odd: Bools = left_of % 2 == 1
    return odd


def polygon(rings: Iterable[object], label: str, order: int = 0) -> Shape:
    """A shape from outlines, each a list of x and y: that of the object, then those of holes.

    Raises:
        ValueError: If an outline is no list of pairs of finite numbers.
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
    if not arrays:
        raise ValueError(f"A polygon of {label!r} has no outline.")
    return Shape(label, partial(_filled, arrays), order)


def _filled(rings: Sequence[Ring], size: Size) -> Patch:
    """The pixels of a polygon, in the box around its outline."""
    (left, top), (right, bottom) = (
        np.clip(edge, 0, size[::-1]).astype(int).tolist()
        for edge in (np.floor(rings[0].min(0)), np.ceil(rings[0].max(0)))
    )
    moved, box = [ring - (left, top) for ring in rings], (bottom - top, right - left)
    pixels = inside(moved[:1], box)
    for hole in moved[1:]:
        _filled([hole], box).paint(pixels, False)
    return Patch(top, left, pixels)


def ellipse(x: float, y: float, across: float, down: float) -> Ring:
    """The outline of an upright ellipse.

    Args:
        x: Of the centre, in pixels.
        y: Of the centre, in pixels.
        across: Half of the width, in pixels.
        down: Half of the height, in pixels.
    """
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Ring:
    """The outline of an upright rectangle from two opposite corners, in pixels."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def turned(ring: Ring, degrees: float, about: tuple[float, float]) -> Ring:
    """An outline turned clockwise about a point."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    there: Ring = (ring - about) @ np.array([[cos, sin], [-sin, cos]]) + about
    return there


def from_runs(lengths: Sequence[int], size: Size) -> Bools:
    """The mask of :func:`tax_lightning.exporters.outlines.runs`.

    Raises:
        ValueError: If the lengths do not add up to the number of pixels.
    """
    if sum(lengths) != size[0] * size[1] or min(lengths, default=0) < 0:
        raise ValueError(
            f"Runs of {sum(lengths)} pixels in a box of {size_text(size)}: expected as many as "
            "the box has."
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size)


def from_png(png: bytes, size: Size) -> Bools:
    """The mask of a PNG file inside of an image: what is opaque, or not black.

    Args:
        png: The bytes of the file.
        size: Of the image, than which the mask is no larger.

    Raises:
        ValueError: If it is no such file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise ValueError("a mask is no PNG file")
    declared = int.from_bytes(png[20:24], "big"), int.from_bytes(png[16:20], "big")
    if declared[0] > size[0] or declared[1] > size[1]:  # before it is decoded
        raise ValueError(f"a mask of {size_text(declared)} in an image of {size_text(size)} pixels")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("a mask is no whole PNG file")
    colours = np.asarray(pixels).reshape(*declared, -1)
    return np.asarray((colours[..., 3:] if colours.shape[2] == 4 else colours).any(2), np.bool_)


@dataclass(frozen=True)
class _Drawing:
    """What one annotator drew on one image, and in which file it stands."""

    file: Path
    size: Size | None
    shapes: list[Shape]


class Drawings:
    """What an export holds: shapes by image and annotator, in the order of their drawing."""

    def __init__(self) -> None:
        self._drawn: dict[str, dict[str, _Drawing]] = defaultdict(dict)
        self.declared: dict[str, None] = {}
        """Classes that the export lists, in its order, whether or not somebody drew them."""
        self.left_out: Counter[str] = Counter()
        """What was left out and why -> how often."""

    def of(self, image: str, annotator: str, file: Path, size: Size | None = None) -> list[Shape]:
        """The shapes of an annotator on an image, to be added to.

        Whoever is asked for here has labelled the image, also if nothing is added.

        Args:
            image: Its name in the export, perhaps with folders before it.
            annotator: Who drew.
            file: In which it stands.
            size: Height and width of what was drawn on, if the file tells them.

        Raises:
            ValueError: If another file tells what this annotator drew on this image, or a name is
                no text.
        """
        for what, name in (("image", image), ("annotator", annotator)):
            if not isinstance(name, str):
                raise ValueError(f"{name!r} as the name of an {what} is no text.")
        drawing = self._drawn[image].setdefault(annotator, _Drawing(file, size, []))
        if drawing.file != file:
            raise ValueError(_twice(annotator, image, drawing.file, file))
        return drawing.shapes

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
                then the classes that the export lists, then further labels by name.
            name: Of the data set.
            source: The tool.

        Raises:
            FileNotFoundError: If an image is missing.
            ValueError: If a label is no class, an image has another size than what was drawn on,
                two files tell the same, or nothing was drawn.
        """
        folder = folder_of(root, images)
        files = images_below(folder)
        drawn: dict[Path, dict[str, _Drawing]] = defaultdict(dict)
        for image, by in self._drawn.items():  # which files may name by other paths
            path = image_named(image, files, folder)
            for person, drawing in by.items():
                if drawn[path].setdefault(person, drawing) is not drawing:
                    raise ValueError(
                        _twice(person, str(path), drawn[path][person].file, drawing.file)
                    )
                _check_size(path, drawing)
        if not drawn:
            raise ValueError(f"{root} holds no annotation, expected an export with some.")
        names, said = self._classes(classes)
        stems = Counter(path.stem for path in drawn)
        cases = []
        for path, by in drawn.items():
            alone = stems[path.stem] == 1
            called = path.stem if alone else path.relative_to(folder).with_suffix("").as_posix()
            masks = {who: partial(_painted, path, one.shapes, names) for who, one in by.items()}
            cases.append(Case(called, path, masks))
        left_out = [*said, *(f"{what} ({count})" for what, count in self.left_out.items())]
        return Found(Description(name, names, _channels(drawn), source=source), cases, {}, left_out)

    def _classes(self, classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
        """Names in the order of the ids, and what is to be said of them."""
        labels = {
            shape.label
            for by in self._drawn.values()
            for drawing in by.values()
            for shape in drawing.shapes
            if not _is_unknown(shape.label)
        }
        if classes is not None:
            if unknown := sorted(labels.difference(classes)):
                raise ValueError(
                    f"classes: the label {unknown[0]!r} is not among {', '.join(classes)}. Add it."
                )
            return tuple(classes), []
        listed = [label for label in self.declared if not _is_unknown(label)]
        names = [*listed, *sorted(labels.difference(listed))]
        # LabelMe has a class _background_
        first = next((n for n in names if n.strip("_").casefold() == "background"), "background")
        names = [first, *(label for label in names if label != first)]
        order = "as the export lists them" if listed else "in the order of their names"
        said = f"The classes are {', '.join(names)}, {order}; --classes gives another order."
        return tuple(names), [said]


def folder_of(root: Path, images: str | None) -> Path:
    """The folder of the images: the one given, else that of the export."""
    return Path(images) if images is not None else root if root.is_dir() else root.parent


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


def _twice(annotator: str, image: str, file: Path, other: Path) -> str:
    where = f"twice in {file}" if file == other else f"in {file} and in {other}"
    return f"{annotator!r} drew {image!r} {where}. Expected it once: remove one of them."


def _check_size(path: Path, drawing: _Drawing) -> None:
    size = read_size(path)
    if drawing.size is not None and drawing.size != size:
        raise ValueError(
            f"{path} is {size_text(size)}, but by {drawing.file} it was drawn on "
            f"{size_text(drawing.size)} pixels. Name the folder of the right images by --images."
        )


def _painted(path: Path, shapes: Sequence[Shape], classes: Sequence[str]) -> Labels:
    """The class ids of an image, the shapes laid over each other in their order."""
    size = read_size(path)
    labels = np.zeros(size, np.uint8)
    for shape in sorted(shapes, key=lambda shape: shape.order):  # stable: equal ones stay in order
        value = IGNORE_INDEX if _is_unknown(shape.label) else classes.index(shape.label)
        shape.draw(size).paint(labels, value)
    return labels


def _is_unknown(label: str) -> bool:
    return label.rstrip("*").casefold() == IGNORE_NAME


def _channels(paths: Iterable[Path]) -> tuple[str, ...]:
    """Names of the channels of images, among which grey ones may stand beside colours."""
    found = {_count_channels(path): path for path in paths}
    most = max(found)
    if odd := found.keys() - ({1, 3} if most <= 3 else {most}):
        raise ValueError(
            f"{found[min(odd)]} has {min(odd)} channels, and {found[most]} has {most}. Expected "
            "the same number: save one of them otherwise."
        )
    known: Mapping[int, tuple[str, ...]] = {1: ("grey",), 3: ("red", "green", "blue")}
    return known.get(most) or tuple(f"channel {number + 1}" for number in range(most))


def _count_channels(path: Path) -> int:
    """Channels of an image without transparency, by the header of its file."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile  # takes a while

        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return 3 if page.colormap is not None else page.samplesperpixel * len(file.pages)
    with Image.open(path) as image:
        if image.mode in ("P", "PA"):
            return 3
        return sum(band != "A" for band in image.getbands()) if image.mode != "CMYK" else 3
