"""The writer that all importers share: cases become a folder in the one format."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import FILE, file_of
from tax_lightning.data.patches import PLACE, Place, patch_windows
from tax_lightning.data.pixels import IMAGE_SUFFIXES, read_size, read_whole
from tax_lightning.data.samples import check_names
from tax_lightning.importers.cases import Case, Found, Labels, Pixels

JOURNAL = "samples.csv.part"
_COPIED = frozenset({".png", ".tif", ".tiff", ".jpg", ".jpeg"})


@dataclass
class Report:
    """What an import did.

    Args:
        images: Number of images written.
        masks: Annotator -> number of masks.
        empty: Annotator -> number of masks in which nothing is drawn.
        left_out: What was left out and why, a sentence each.
    """

    images: int = 0
    masks: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Lines of text for a terminal."""
        lines = [f"{self.images} images"]
        for name, count in sorted(self.masks.items()):
            empty = f", of which {self.empty[name]} empty" if self.empty[name] else ""
            lines.append(f"  {name}: {count} masks{empty}")
        reasons = [f"  {reason}" for reason in self.left_out]
        lines += ["left out, and to know:", *reasons] if reasons else []
        return "\n".join(lines)


def write(
    found: Found,
    folder: Path,
    origin: str = "",
    tile: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write what an importer found as a folder in the one format; resumable.

    Every file is written beside its place and then moved there, so that an interrupted import
    leaves no half file. The same call goes on where the last one ended. ``dataset.yaml`` comes
    last: a folder without it is no data set yet.

    Args:
        found: Description, cases and annotators.
        folder: Where to; made if it is missing.
        origin: What the cases were made of and how; an unfinished import of another origin is
            refused.
        tile: Side in pixels of the squares that larger images are cut into; None: whole images.
        progress: Called with the number of cases done and of all.

    Raises:
        ValueError: If the folder holds something else, or a case does not hold what it must: masks
            of its image's size, class ids only, a name of its own, one split for a group.
    """
    _check(found)
    done = _Journal(folder, found, origin)
    report = Report(left_out=list(found.left_out))
    for number, case in enumerate(found.cases):
        if case.name not in done:
            done.add(case.name, [_write_case(*part, found, folder) for part in _parts(case, tile)])
        progress(number + 1, len(found.cases))
    for row in done.rows():
        report.images += 1
        report.masks.update(row["drawn"])
        report.empty.update(row["empty"])
    done.finish()
    _write_annotators(found, folder, report.masks)
    _replace(folder / "import.txt", f"{origin}\n{report}\n".encode())
    found.description.write(folder)
    return report


def _check(found: Found) -> None:
    """All that can be known before a pixel is read."""
    names = {name for case in found.cases for name in case.masks}
    if not names:
        raise ValueError("Nothing to import: no image has a mask of any annotator.")
    check_names(sorted(names), found.description.classes)
    seen: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for case in found.cases:
        file = file_of(case.name).casefold()  # some file systems tell no capitals
        if file in seen:
            raise ValueError(f"Two images are called {case.name!r} and {seen[file]!r}: rename one.")
        seen[file] = case.name
        if split_of.setdefault(case.group or f"\0{case.name}", case.split) != case.split:
            raise ValueError(
                f"Group {case.group!r} lies in two splits. Its images would leak from training "
                "into testing: put all of them into one."
            )


class _Journal:
    """A row for each case that is done: one line of JSON each, the origin in the first."""

    def __init__(self, folder: Path, found: Found, origin: str) -> None:
        if (folder / FILE).exists():
            raise ValueError(
                f"{folder} holds a data set already: name another folder, or remove it."
            )
        self.folder, self.path = folder, folder / JOURNAL
        self._facts = list(dict.fromkeys(key for case in found.cases for key in case.facts))
        self._done: dict[str, list[dict[str, Any]]] = {}
        head = json.dumps({"origin": origin, "classes": found.description.classes})
        if self.path.exists():
            self._read(head)
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: name a new folder, or remove what it holds.")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(head + "\n", encoding="utf-8")

    def _read(self, head: str) -> None:
        first, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if first != head:
            raise ValueError(
                f"{self.folder} holds an unfinished import of another kind ({first}). Name another "
                "folder, or remove it."
            )
        whole = lines[:-1]  # what follows the last line break was interrupted
        for line in whole:
            name, rows = json.loads(line)
            self._done[name] = rows
        self.path.write_text("\n".join([head, *whole, ""]), encoding="utf-8")

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Note that a case is done."""
        self._done[name] = rows
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, rows]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all cases."""
        for rows in self._done.values():
            yield from rows

    def finish(self) -> None:
        """Turn the journal into the table of samples."""
        samples = [row["sample"] for row in self.rows()]
        known = {key for row in samples for key, value in row.items() if value}
        columns = [key for key in ("name", "group", "split", *self._facts, *PLACE) if key in known]
        _write_table(self.folder / "samples.csv", columns, samples)
        self.path.unlink()


@dataclass(frozen=True)
class _Window:
    """A rectangle of a case; the whole of it where ``size`` is None."""

    top: int = 0
    left: int = 0
    size: tuple[int, int] | None = None
    whole: tuple[int, int] | None = None

    def cut(self, pixels: Pixels) -> Pixels:
        if self.size is None:
            return pixels
        return pixels[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


def _parts(case: Case, tile: int | None) -> Iterator[tuple[Case, str, _Window]]:
    """The case itself, or its tiles; pixels are decoded once for all of them."""
    if tile is None or not _is_larger(case, tile):
        yield case, case.name, _Window()
        return
    image = _pixels(case)
    masks = {name: mask() for name, mask in case.masks.items()}
    reference = None if case.reference is None else case.reference()
    whole = Case(
        case.name,
        lambda: image,
        {name: (lambda mask=mask: mask) for name, mask in masks.items()},  # type: ignore[misc]
        None if reference is None else lambda: reference,
        case.group or case.name,
        case.split,
        case.facts,
    )
    height, width = image.shape[:2]
    for top, left, rows, columns in patch_windows(height, width, tile):
        name = f"{case.name}@{top},{left}"
        yield whole, name, _Window(top, left, (rows, columns), (height, width))


def _is_larger(case: Case, tile: int) -> bool:
    size = read_size(case.image) if isinstance(case.image, Path) else _pixels(case).shape[:2]
    return bool(max(size) > tile)


def _pixels(case: Case) -> Pixels:
    return read_whole(case.image) if isinstance(case.image, Path) else case.image()


def _write_case(case: Case, name: str, window: _Window, found: Found, root: Path) -> dict[str, Any]:
    """The files of a case or of a tile of it; returns what the journal notes."""
    classes, file = found.description.classes, file_of(name)
    copied = window.size is None and _fits(case.image)
    if copied and isinstance(case.image, Path):
        size = read_size(case.image)
    else:
        image = window.cut(_pixels(case))
        size = (image.shape[0], image.shape[1])
        _check_channels(case, image, found)
    empty = []
    for annotator, mask in case.masks.items():
        labels = window.cut(mask())
        _check_labels(labels, size, len(classes), f"{case.name!r}: the mask by {annotator}")
        _replace(root / "masks" / file_of(annotator) / f"{file}.png", _png(labels))
        if not labels.any():
            empty.append(annotator)
    if case.reference is not None:
        labels = window.cut(case.reference())
        _check_labels(labels, size, len(classes), f"{case.name!r}: the reference")
        _replace(root / "reference" / f"{file}.png", _png(labels))
    if copied and isinstance(case.image, Path):
        _copy(case.image, root / "images" / f"{file}{case.image.suffix.lower()}")
    else:
        suffix, data = _encoded(image)
        _replace(root / "images" / f"{file}{suffix}", data)
    sample = {"name": name, "group": case.group, "split": case.split, **case.facts}
    if window.whole is not None:
        sample |= Place(case.name, window.top, window.left, *window.whole).facts()
    return {"sample": sample, "drawn": list(case.masks), "empty": empty}


def _fits(image: object) -> bool:
    return isinstance(image, Path) and image.suffix.lower() in _COPIED & IMAGE_SUFFIXES


def _check_channels(case: Case, image: Pixels, found: Found) -> None:
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.ndim not in (2, 3) or channels != len(found.description.channels):
        raise ValueError(
            f"{case.name!r}: the image has the shape {image.shape}, expected the channels "
            f"{', '.join(found.description.channels)}."
        )


def _check_labels(labels: Labels, size: tuple[int, int], classes: int, what: str) -> None:
    if labels.shape != tuple(size):
        raise ValueError(
            f"{what} has the shape {labels.shape}, its image {tuple(size)}: expected the same "
            "height and width."
        )
    values = np.unique(labels)
    odd = values[(values >= classes) & (values != IGNORE_INDEX)]
    if labels.dtype != np.uint8 or odd.size:
        raise ValueError(
            f"{what} holds {labels.dtype} values {values[:8].tolist()}, expected class ids below "
            f"{classes} and {IGNORE_INDEX} for unknown."
        )


def _encoded(image: Pixels) -> tuple[str, bytes]:
    """Ending and bytes of an image file without loss: PNG where it can be, else TIFF."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype in (np.uint8, np.uint16) and channels in (1, 3):
        return ".png", _png(image)
    import tifffile  # takes a while

    file = io.BytesIO()
    tifffile.imwrite(
        file,
        np.ascontiguousarray(image),
        photometric="minisblack",
        planarconfig=None if channels == 1 else "contig",
        compression="zlib",
    )
    return ".tif", file.getvalue()


def _png(pixels: Pixels) -> bytes:
    """The bytes of a PNG file, checked by reading them again."""
    stored = np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels)  # BGR
    done, data = cv2.imencode(".png", stored)
    again = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if done else None
    if again is None or not np.array_equal(again.reshape(stored.shape), stored):
        raise ValueError(f"An image of shape {pixels.shape} and {pixels.dtype} is no PNG file.")
    return data.tobytes()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _write_table(path: Path, columns: list[str], rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(path, text.getvalue().encode("utf-8"))


def _write_annotators(found: Found, folder: Path, drawn: Mapping[str, int]) -> None:
    """The table of those who drew something, if anything is known of them."""
    rows = [
        {"annotator": name, **found.annotators.get(name, {})}
        for name in sorted(drawn)
        if found.annotators
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(columns) > 1:
        _write_table(folder / "annotators.csv", columns, rows)
