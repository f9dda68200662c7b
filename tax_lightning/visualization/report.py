"""A report on images: one page for a person, pictures, and the same in numbers for machines."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from tax_lightning.batch import unpacked
from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation
from tax_lightning.files import file_name
from tax_lightning.visualization import page
from tax_lightning.visualization.callouts import find_callouts
from tax_lightning.visualization.compact import FINE, SMOOTH, CompactMaps, compact, levels_for
from tax_lightning.visualization.examples import read_examples
from tax_lightning.visualization.gallery import PrototypeCard
from tax_lightning.visualization.palette import (
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
)
from tax_lightning.visualization.panels import render_panel
from tax_lightning.visualization.tally import Tally, caveat

if TYPE_CHECKING:
    from tax_lightning.models.network import TAXNetwork

LOGARITHM_UNIT = 1000
"""What a logarithm is multiplied by, so that whole numbers tell the probabilities apart."""
_TITLE = "Who decided, and why"
_MAX_SIDE = 1024  # pixels
_MOST_VOICES = 5


class Images(Protocol):
    """Images by number: dictionaries with ``"image"`` ``[ch, H, W]``, normalised, and ``"id"``."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """One of them."""


class Model(Protocol):
    """What explains images, such as a `TAXLightningModule`."""

    network: Any
    device: Any

    def explain(self, images: Tensor, ids: Sequence[str]) -> Explanation:
        """The explanation of images ``[B, ch, H, W]``."""


def write_report(
    model: Model,
    images: Images,
    to_picture: Callable[[Tensor], Picture],
    output: str | Path,
    read: Callable[[str], Picture] | None = None,
    title: str = _TITLE,
    source: str = "",
    notes: Sequence[str] = (),
    max_side: int = _MAX_SIDE,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Explain images one after the other, and write the report.

    The folder then holds ``index.html``, one file that works without a network; ``panels/NAME.png``
    for each image; ``maps/NAME.npz``, exactly the values that the page shows (see `CompactMaps`);
    and ``report.json``, which names everything and is written last. Of an image no more than a
    thumbnail stays in memory.

    Args:
        model: what explains, on its own device.
        images: of any sizes.
        to_picture: from an image ``[ch, H, W]`` to a picture ``[H, W, 3]`` uint8.
        output: folder; made where it is missing.
        read: gives the picture of a training image by its id, for the gallery of prototypes; it may
            raise ``LookupError``, ``OSError`` or ``ValueError``.
        title: heading of the page.
        source: what the explanations are of, such as the name of a checkpoint.
        notes: warnings for the page.
        max_side: of an image on the page and in its NPZ, in pixels; of larger ones evenly spread
            rows and columns are kept.
        overwrite: whether to write into a folder that holds a report. Files of images that are not
            explained again stay.
        progress: called with the number of images explained, and of all images.

    Returns:
        The page.

    Raises:
        FileExistsError: if the folder holds a report already.
        NotADirectoryError: if ``output`` is a file.
        ValueError: if there are no images, or two have the same id.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output {folder} is a file, expected a folder to write into.")
    if max_side < 16:
        raise ValueError(f"--max_side={max_side}: expected a number of pixels from 16 up, as 1024.")
    if not len(images):
        raise ValueError("there are no images to explain, expected at least one.")
    if (folder / "report.json").exists() and not overwrite:
        raise FileExistsError(
            f"--output {folder} holds a report already. Give another folder, or --overwrite=true."
        )
    for name in ("panels", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    with _part_file(folder / "images.part") as blocks:
        report = _Report(model.network, len(images), max_side)
        for number in range(len(images)):
            explanation, picture = _looked_at(model, images[number], to_picture)
            if not report.examples:
                report.examples = read_examples(explanation.sources, read)
            maps = report.add(explanation, picture, blocks)
            report.images[-1]["files"] = _write_files(folder, report, explanation, picture, maps)
            progress(number + 1, len(images))
        notes = [*notes, *report.notes(read is not None)]
        path = _write_page(report, blocks, folder / "index.html", title, source, notes)
    numbers = folder / "report.json"
    with _part_file(numbers.with_suffix(".json.part"), numbers) as file:
        content = _plain(report.as_json(source, notes))
        json.dump(content, file, ensure_ascii=False, indent=2, allow_nan=False)
    return path


def write_page(
    explained: Sequence[tuple[Explanation, Picture]],
    cards: Sequence[PrototypeCard],
    network: TAXNetwork,
    path: Path,
    source: str,
) -> None:
    """The page of `write_report` alone, of images that have been explained already.

    Args:
        explained: explanations of one image each, on the CPU, and the images as pictures
            ``[H, W, 3]`` uint8; at least one.
        cards: of all prototypes in the order of annotators and kernels; of a bank that all share,
            once; none while nothing has been projected.
        network: that said so.
        path: of the page; no other file is written.
        source: as in `write_report`.

    Raises:
        OSError: if the page cannot be written.
        ValueError: if two images have the same id, or there are more annotators, classes or kernels
            than a page tells apart.
    """
    with _part_file(path.with_suffix(".part")) as blocks:
        report = _Report(network, len(explained), _MAX_SIDE)
        first, _ = explained[0]
        places = np.ndindex(len(first.annotators), first.kernels)
        # Of a shared bank, each card is that of a kernel of everybody.
        of_all = dict(zip(places, itertools.cycle(cards), strict=False)) if cards else None
        report.examples = of_all or read_examples(first.sources, None)
        for explanation, picture in explained:
            report.add(explanation, picture, blocks)
        _write_page(report, blocks, path, _TITLE, source, [*report.notes(at_hand=True)])


def _looked_at(
    model: Model, sample: Mapping[str, Any], to_picture: Callable[[Tensor], Picture]
) -> tuple[Explanation, Picture]:
    pixels = unpacked(dict(sample))["image"]
    explanation = model.explain(pixels[None].to(model.device), [str(sample["id"])])
    return explanation.to("cpu"), to_picture(pixels)


def _write_files(
    folder: Path, report: _Report, explanation: Explanation, picture: Picture, maps: CompactMaps
) -> dict[str, str]:
    """Write the files of one image; returns their places in the folder by kind."""
    name = file_name(explanation.ids[0])
    files = {"panel": f"panels/{name}.png", "maps": f"maps/{name}.npz"}
    patches = {key: e.patch for key, e in report.examples.items() if e.patch is not None}
    panel = render_panel(explanation, picture, patches=patches)
    Image.fromarray(panel).save(folder / files["panel"])
    np.savez_compressed(folder / files["maps"], allow_pickle=False, **maps.arrays())
    return files


class _Report:
    """What is known after the images so far."""

    def __init__(self, network: TAXNetwork, expected: int, max_side: int) -> None:
        self.expected, self.max_side = expected, max_side
        self.mixing: str = network.mixing
        self.shared: bool = network.memory.kind == "shared"
        self.images: list[dict[str, Any]] = []
        self.thumbnails: list[str] = []
        self.examples: dict[tuple[int, int], PrototypeCard] = {}

    def add(self, explanation: Explanation, picture: Picture, blocks: IO[str]) -> CompactMaps:
        """Take up one image; write its part of the page, and return what that holds."""
        (name,) = explanation.ids
        if name in (image["id"] for image in self.images):
            raise ValueError(
                f"two images have the id {name!r}, by which the report tells them apart. Give "
                "every image its own id."
            )
        tally = Tally.of(explanation)
        if not self.images:
            self.annotators, self.classes = explanation.annotators, explanation.classes
            self.kernels = explanation.kernels
            self.tally = tally
            self.levels = self._levels(explanation)
        else:
            self.tally = self.tally + tally
        maps = compact(explanation, self.max_side, self.levels)
        number = len(self.images)
        shown = page.shrunk(picture, maps.size)
        blocks.write(page.image_block(number, page.data_uri(shown), maps.text()))
        self.thumbnails.append(page.thumbnail(number, name, shown, tally))
        self.images.append(self._entry(explanation, maps, tally))
        return maps

    def _levels(self, explanation: Explanation) -> int:
        """The same for all images, so that the page can compare them; taken to be of one size."""
        pixels = math.prod(min(side, self.max_side) for side in explanation.probs.shape[-2:])
        of_pixel = len(self.annotators) * len(self.classes)
        return levels_for(self.expected * pixels * of_pixel)

    def _entry(self, explanation: Explanation, maps: CompactMaps, tally: Tally) -> dict[str, Any]:
        return {
            "id": explanation.ids[0],
            "size": list(explanation.probs.shape[-2:]),
            "shown": list(maps.size),
            "unanimous": tally.unanimous,
            "decides": dict(zip(explanation.annotators, tally.usage.tolist(), strict=True)),
            "spots": [
                {"at": [spot.y, spot.x], "annotator": spot.annotator, "kernel": spot.kernel}
                for spot in find_callouts(explanation)
            ],
        }

    def notes(self, at_hand: bool) -> Iterator[str]:
        """What must not be overlooked: who that says little, examples that are missing.

        Args:
            at_hand: whether there are training images to show.
        """
        warning = caveat(self.tally.largest_weight, len(self.annotators))
        if warning is not None:
            yield warning
        active = [example for example in self.cards.values() if example.source.active]
        taken = [example for example in active if example.source.projected]
        missing = sum(example.patch is None for example in taken)
        if not taken:
            yield (
                "The prototypes of this model are no training pixels yet, so that no example can "
                "be named. Train to the end, or take the checkpoint that `tax fit` names there."
            )
        elif not at_hand:
            yield (
                "The training images are not at hand: examples are named but not shown. Give the "
                "configuration of the training with --config to see them."
            )
        elif missing:
            yield (
                f"The training images of {missing} of {len(taken)} prototypes are not in the data "
                "that were given: these examples are named but not shown."
            )

    @property
    def usage(self) -> dict[tuple[int, int], float]:
        """Share of the decided pixels of each prototype; one that all share counts for all."""
        by_kernel = self.tally.kernel_usage
        if self.shared:
            by_kernel = by_kernel.sum(axis=0, keepdims=True)
        return {(n, k): float(share) for (n, k), share in np.ndenumerate(by_kernel)}

    @property
    def cards(self) -> dict[tuple[int, int], PrototypeCard]:
        """The prototypes that have a card; those that all share have one each."""
        return {(n, k): e for (n, k), e in self.examples.items() if n == 0 or not self.shared}

    def for_page(self) -> dict[str, Any]:
        """What the page's script has to know."""
        n, c = len(self.annotators), len(self.classes)
        counts = {"foreground": c - 1, "who": n, "annotator_foreground": n * (c - 1), "why": n}
        return {
            "annotators": [self._annotator(i) for i in range(n)],
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(self.classes, class_palette(c), strict=True)
            ],
            "planes": [
                {"name": name, "count": counts.get(name, 1), "differences": name in SMOOTH}
                for name in CompactMaps.planes()
            ],
            "levels": self.levels,
            "logarithms": logarithms(self.levels) if self.mixing == "logit" else None,
            "logarithm_unit": LOGARITHM_UNIT,
            "ramp": page.ramp(),
            "most_named": page.MOST_NAMED,
            "most_voices": _MOST_VOICES,
            "images": [
                {key: image[key] for key in ("id", "size", "shown", "spots")}
                for image in self.images
            ],
        }

    def _annotator(self, n: int) -> dict[str, Any]:
        colour = annotator_palette(len(self.annotators))[n]
        sources = [example.source for (m, _), example in self.examples.items() if m == n]
        return {
            "name": self.annotators[n],
            "colour": colour,
            "shades": [kernel_shade(colour, k, self.kernels) for k in range(self.kernels)],
            "prototypes": [
                {
                    "card": page.card_id(n, s.kernel, self.shared) if s.active else None,
                    "origin": page.source_words(s, self.annotators[n]),
                }
                for s in sources
            ],
        }

    def as_json(self, source: str, notes: Sequence[str]) -> dict[str, Any]:
        """The report in numbers, for machines."""
        tally, usage = self.tally, self.usage
        return {
            "tax_lightning": __version__,
            "source": source,
            "notes": list(notes),
            "page": "index.html",
            "mixing": self.mixing,
            "classes": list(self.classes),
            "annotators": [
                {
                    "name": name,
                    "colour": page.css(annotator_palette(len(self.annotators))[n]),
                    "decides": tally.usage[n],
                    "relative_area": tally.relative_area[n],
                    "found": tally.found[n],
                    "beyond": tally.beyond[n],
                    "words": tally.words(n, self.classes),
                }
                for n, name in enumerate(self.annotators)
            ],
            "unanimous": tally.unanimous,
            "largest_weight": tally.largest_weight,
            "images": self.images,
            "prototypes": [
                {
                    "annotator": None if self.shared else self.annotators[n],
                    "decides": usage[n, k],
                    **_place(example),
                }
                for (n, k), example in self.cards.items()
            ],
        }


def _place(example: PrototypeCard) -> dict[str, Any]:
    source = example.source
    return {
        "kernel": source.kernel,
        "active": source.active,
        "image": source.sample_id,
        "y": source.y,
        "x": source.x,
        "similarity": source.similarity,
        "label": source.label,
        "nearest": [
            {"image": image, "y": y, "x": x, "similarity": similarity}
            for image, y, x, similarity in source.nearest
        ],
    }


def logarithms(levels: int = FINE) -> list[int]:
    """Logarithms of the shares 0 to ``levels``, times `LOGARITHM_UNIT`, of 0 as of half a level.

    Example:
        >>> logarithms()[100], logarithms()[50], logarithms()[0]
        (0, -693, -5298)
    """
    return [round(LOGARITHM_UNIT * math.log(max(p, 0.5) / levels)) for p in range(levels + 1)]


def _write_page(
    report: _Report, blocks: IO[str], path: Path, title: str, source: str, notes: Sequence[str]
) -> Path:
    """The page, the images' data in its middle copied from the file that they are in."""
    names = [image["id"] for image in report.images]
    words = {
        "title": title,
        "summary": f"{len(names)} picture{'s' if len(names) > 1 else ''}"
        f"{f', segmented by {source}' if source else ''}. For every spot: which of "
        f"{len(report.annotators)} annotators decides there, and which training example is the "
        "reason.",
        "decided": _decided(report.tally, len(report.annotators)),
        "footer": f"tax-lightning {__version__}. One file, which needs no network.",
    }
    parts = {
        "notes": page.notes(notes),
        "thumbnails": "".join(report.thumbnails),
        "annotators": page.annotators_table(report.annotators, report.classes, report.tally),
        "options": page.options(names),
        "switches": page.switches(report.annotators),
        "gallery": page.gallery(report.cards, report.annotators, report.usage, report.shared),
    }
    before, after = page.page(words, parts, report.for_page())
    with _part_file(path.with_suffix(".html.part"), path) as file:
        file.write(before)
        blocks.seek(0)
        shutil.copyfileobj(blocks, file)
        file.write(after)
    return path


def _decided(tally: Tally, annotators: int) -> str:
    if not tally.decided:
        return "They would say the same everywhere: nobody in particular decides."
    return (
        f"All would say the same on {tally.unanimous:.0%} of the pixels. On the others, whoever "
        f"decides has a weight of {tally.largest_weight:.0%} on average; an even share is "
        f"{1 / annotators:.0%}."
    )


@contextlib.contextmanager
def _part_file(path: Path, whole: Path | None = None) -> Iterator[IO[str]]:
    """A file to write to and read from; in the end it is moved to ``whole``, or removed."""
    try:
        with path.open("w+", encoding="utf-8", newline="\n") as file:
            yield file
        if whole is not None:
            os.replace(path, whole)
    finally:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """The value with null for what is no number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    number = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
