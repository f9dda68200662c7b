"""What the export of an annotation tool holds: shapes by image and annotator, which become cases.

A region labelled ``ignore``, or ``Ignore*`` as QuPath has it, marks what is not labelled: 255.
"""

import filecmp
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import Description
from tax_lightning.data.labels import IGNORE_NAME
from tax_lightning.data.layouts import nearest
from tax_lightning.data.pixels import IMAGE_SUFFIXES, read_size, size_text
from tax_lightning.importers.cases import BACKGROUND, Case, Found, Labels, channel_names
from tax_lightning.importers.shapes import Shape, Size


class Images:
    """The image files at any depth below a folder, by name.

    Args:
        root: An export.
        images: Folder of its images; None: the export's own.
    """

    def __init__(self, root: Path, images: str | None) -> None:
        self.export = root.stem if root.is_file() else Path(os.path.realpath(root)).name
        own = root if root.is_dir() else root.parent
        self.folder = own if images is None else Path(images)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"images: {self.folder} is no folder, expected that of the images."
            )
        self._files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                self._files[path.name].append(path)
        self._by_start: dict[str, list[str]] = defaultdict(list)
        for name in self._files:
            *starts, _ = name.split(".")
            for count in range(1, len(starts) + 1):
                self._by_start[".".join(starts[:count])].append(name)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def begun(self, start: str) -> str:
        """The name that is this, or this and some suffixes, of which the fewest; else as given."""
        names = [start] if start in self else self._by_start.get(start, [])
        fewest = min((name.count(".") for name in names), default=0)
        first, *others = [name for name in names if name.count(".") == fewest] or [start]
        if others:
            raise ValueError(
                f"{start!r} may be the image {first} or {others[0]}. Expected one: call the "
                f"annotation {first}.geojson or {others[0]}.geojson."
            )
        return first

    def named(self, name: str) -> Path:
        """The file that an export names, perhaps with folders before it; of equal copies one."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        last = parts[-1] if parts else name
        found = self._files.get(last, [])
        if not found:
            raise FileNotFoundError(
                f"The image {last!r} is not below {self.folder}.{nearest(last, self._files)} "
                "Name the folder of the images by --images."
            )
        found = [path for path in found if list(path.parts[-len(parts) :]) == parts] or found
        for other in found[1:]:
            if not filecmp.cmp(found[0], other, shallow=False):
                raise ValueError(
                    f"The image {name!r} may be {found[0]} or {other}, which differ: expected one "
                    "of that name, or copies. Rename it, or name its folder by --images."
                )
        return found[0]


@dataclass(frozen=True)
class _Drawing:
    """What one annotator drew on one image, and in which file it stands."""

    file: Path
    size: Size | None
    shapes: list[Shape] = field(default_factory=list)


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

        The size is the height and width of what was drawn on, if the file tells them.
        """
        for what, name in (("image", image), ("annotator", annotator)):
            if not isinstance(name, str):
                raise ValueError(f"{name!r} as the name of an {what} is no text.")
        drawing = self._drawn[image].setdefault(annotator, _Drawing(file, size))
        if drawing.file != file:
            raise ValueError(_twice(annotator, image, drawing.file, file))
        return drawing.shapes

    def leave_out(self, kind: str, annotator: str, why: str = "it tells no area") -> None:
        """Count a shape of this kind that is not taken."""
        self.left_out[f"A {kind} by {annotator}: {why}."] += 1

    def by_file(self, images: Images) -> dict[Path, dict[str, _Drawing]]:
        """The same by image file, which an export may name by several paths."""
        drawn: dict[Path, dict[str, _Drawing]] = defaultdict(dict)
        for image, by in self._drawn.items():
            path = images.named(image)
            size = read_size(path)
            for person, drawing in by.items():
                before = drawn[path].setdefault(person, drawing)
                if before is not drawing:
                    raise ValueError(_twice(person, str(path), before.file, drawing.file))
                if drawing.size is not None and drawing.size != size:
                    raise ValueError(
                        f"{path} is {size_text(size)}, but by {drawing.file} it was drawn on "
                        f"{size_text(drawing.size)} pixels. Name the folder of the right "
                        "images by --images."
                    )
        return drawn

    def classes(self, given: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
        """Names in the order of the ids, and what is to be said of them."""
        labels = {
            shape.label
            for by in self._drawn.values()
            for drawing in by.values()
            for shape in drawing.shapes
            if not _is_unknown(shape.label)
        }
        if given is not None:
            if unknown := sorted(labels.difference(given)):
                raise ValueError(
                    f"classes: the label {unknown[0]!r} is not among {', '.join(given)}. Add it."
                )
            return tuple(given), []
        listed = [label for label in self.declared if not _is_unknown(label)]
        names = [*listed, *sorted(labels.difference(listed))]
        # LabelMe has a class _background_
        first = next((n for n in names if n.strip("_").casefold() == BACKGROUND), BACKGROUND)
        names = [first, *(label for label in names if label != first)]
        order = "as the export lists them" if listed else "in the order of their names"
        said = f"The classes are {', '.join(names)}, {order}; --classes gives another order."
        return tuple(names), [said]


def found(drawings: Drawings, tool: str, images: Images, classes: Sequence[str] | None) -> Found:
    """All that was drawn as cases."""
    drawn = drawings.by_file(images)
    if not drawn:
        raise ValueError(f"{images.export} holds no annotation, expected an export with some.")
    names, said = drawings.classes(classes)
    stems = Counter(path.stem for path in drawn)
    cases = []
    for path, by in drawn.items():
        alone = stems[path.stem] == 1
        called = path.stem if alone else path.relative_to(images.folder).with_suffix("").as_posix()
        masks = {who: partial(_painted, path, one.shapes, names) for who, one in by.items()}
        cases.append(Case(called, path, masks))
    said += [f"{what} ({count})" for what, count in drawings.left_out.items()]
    description = Description(images.export, names, _channels(drawn), source=tool)
    return Found(description, cases, left_out=said)


def _twice(annotator: str, image: str, file: Path, other: Path) -> str:
    where = f"twice in {file}" if file == other else f"in {file} and in {other}"
    return f"{annotator!r} drew {image!r} {where}. Expected it once: remove one of them."


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
    return channel_names(most)


def _count_channels(path: Path) -> int:
    """Channels of an image without transparency, by the header of its file."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile  # takes a while

        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return 3 if page.colormap is not None else page.samplesperpixel * len(file.pages)
    with Image.open(path) as image:
        if image.mode in ("P", "PA", "CMYK"):
            return 3
        return sum(band != "A" for band in image.getbands())
