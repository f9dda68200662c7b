"""The writer that all importers share: cases become a folder in the one format."""

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import FILE
from tax_lightning.data.metadata import composed
from tax_lightning.data.patches import PLACE, Place
from tax_lightning.data.pixels import cut, read_size, read_whole
from tax_lightning.data.samples import check_names
from tax_lightning.files import appearing, file_of, remove_parts, write_bytes, write_text
from tax_lightning.importers.cases import Case, Found, Labels, Pixels
from tax_lightning.windows import cover

JOURNAL = "samples.csv.part"
_LONGEST = 200  # bytes of a file's name: systems take 255, and some are for its endings
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
        # names of files may hold bytes that are no text
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def write(
    found: Found,
    folder: Path,
    origin: str = "",
    tile: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write what an importer found as a folder in the one format; resumable.

    The same call goes on where the last one ended. ``dataset.yaml`` comes last: a folder without
    it is no data set yet.

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
    found = _tidy(found)
    _check(found)
    done = _Journal(folder, found, origin)
    report = Report(left_out=list(found.left_out))
    classes = len(found.description.classes)
    for number, case in enumerate(found.cases):
        if case.name not in done:
            tiles = _tiles(case, tile, classes)
            done.add(case.name, [_write_case(part, found, folder) for part in tiles])
        progress(number + 1, len(found.cases))
    for row in done.rows():
        report.images += 1
        report.masks.update(row["drawn"])
        report.empty.update(row["empty"])
    done.finish()
    _write_annotators(found, folder, report.masks)
    write_bytes(folder / "import.txt", f"{origin}\n{report}\n".encode(errors="backslashreplace"))
    found.description.write(folder)
    return report


def _tidy(found: Found) -> Found:
    """The same with names as tables give them back: without spaces at their ends, and composed."""

    def tidy(name: str) -> str:
        return composed(name.strip())

    def tidied(by_name: Mapping[str, Any], what: str) -> dict[str, Any]:
        result = {tidy(name): value for name, value in by_name.items()}
        if len(result) < len(by_name):
            raise ValueError(
                f"{what} {', '.join(map(repr, sorted(by_name)))}: two of them differ by spaces at "
                "their ends or by how accents are stored alone. Rename one."
            )
        return result

    cases = [
        replace(
            case,
            name=tidy(case.name),
            group=tidy(case.group),
            masks=tidied(case.masks, f"{case.name!r} has masks by"),
        )
        for case in found.cases
    ]
    return replace(found, cases=cases, annotators=tidied(found.annotators, "The annotators are"))


def _check(found: Found) -> None:
    """All that can be known before a pixel is read."""
    names = {name for case in found.cases for name in case.masks}
    if not names:
        raise ValueError("Nothing to import: no image has a mask of any annotator.")
    check_names(sorted(names), found.description.classes)
    said = found.description
    for text in [said.name, *said.classes, *said.channels, *(case.group for case in found.cases)]:
        _check_text(text)
    for name in [*sorted(names), *(case.name for case in found.cases)]:
        _check_text(name)
        size = len(file_of(name).encode())
        if not 0 < size <= _LONGEST:
            raise ValueError(
                f"The name {name[:50]!r} takes {size} bytes as the name of a file, expected 1 to "
                f"{_LONGEST}: give a shorter one."
            )
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


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} holds bytes that are no text in UTF-8: rename it.") from error


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
            write_text(self.path, f"{head}\n")

    def _read(self, head: str) -> None:
        remove_parts(self.folder)
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
        write_text(self.path, "\n".join([head, *whole, ""]))

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


def _tiles(case: Case, tile: int | None, classes: int) -> Iterator[Case]:
    """The case itself, or its tiles; pixels are decoded once for all of them."""
    if tile is None:
        yield case
        return
    size = read_size(case.image) if isinstance(case.image, Path) else case.image().shape[:2]
    if max(size) <= tile:
        yield case
        return
    image = _pixels(case)
    masks = {
        by: _checked(mask(), size, classes, f"{case.name!r}: the mask by {by}")
        for by, mask in case.masks.items()
    }
    reference = None if case.reference is None else case.reference()
    for window in cover(size[0], size[1], tile):
        place = Place(case.name, window.top, window.left, size[0], size[1])
        yield replace(
            case,
            name=f"{case.name}@{window.top},{window.left}",
            image=partial(cut, image, window),
            masks={by: partial(cut, mask, window) for by, mask in masks.items()},
            reference=None if reference is None else partial(cut, reference, window),
            group=case.group or case.name,
            facts={**case.facts, **place.facts()},
        )


def _pixels(case: Case) -> Pixels:
    return read_whole(case.image) if isinstance(case.image, Path) else case.image()


def _write_case(case: Case, found: Found, root: Path) -> dict[str, Any]:
    """The files of a case; returns what the journal notes."""
    classes, file = len(found.description.classes), file_of(case.name)
    if isinstance(case.image, Path) and case.image.suffix.lower() in _COPIED:
        image = read_whole(case.image)  # a file that is copied must be whole, too
        size = (image.shape[0], image.shape[1])
        with appearing(root / "images" / f"{file}{case.image.suffix.lower()}") as part:
            shutil.copyfile(case.image, part)
    else:
        image = _pixels(case)
        size = (image.shape[0], image.shape[1])
        _check_channels(case, image, found)
        suffix, data = _encoded(image)
        write_bytes(root / "images" / f"{file}{suffix}", data)
    empty = []
    for annotator, mask in case.masks.items():
        labels = _checked(mask(), size, classes, f"{case.name!r}: the mask by {annotator}")
        write_bytes(root / "masks" / file_of(annotator) / f"{file}.png", _png(labels))
        if not labels.any():
            empty.append(annotator)
    if case.reference is not None:
        labels = _checked(case.reference(), size, classes, f"{case.name!r}: the reference")
        write_bytes(root / "reference" / f"{file}.png", _png(labels))
    sample = {"name": case.name, "group": case.group, "split": case.split, **case.facts}
    return {"sample": sample, "drawn": list(case.masks), "empty": empty}


def _check_channels(case: Case, image: Pixels, found: Found) -> None:
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.ndim not in (2, 3) or channels != len(found.description.channels):
        raise ValueError(
            f"{case.name!r}: the image has the shape {image.shape}, expected the channels "
            f"{', '.join(found.description.channels)}."
        )


def _checked(labels: Labels, size: tuple[int, int], classes: int, what: str) -> Labels:
    """Class ids that fit their image."""
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
    return labels


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


def _write_table(path: Path, columns: list[str], rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


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
