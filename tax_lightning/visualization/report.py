"""A report on images: one page for a person, pictures, and the same in numbers for machines."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from string import Template
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation, PrototypeSource
from tax_lightning.files import file_name
from tax_lightning.visualization import page as base
from tax_lightning.visualization.annotations import find_callouts
from tax_lightning.visualization.drawing import data_uri, shrunk, thumbnail
from tax_lightning.visualization.gallery import PrototypeCard, read_cards
from tax_lightning.visualization.palette import (
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.summary import MOST_NAMED, Summary

_TITLE = "Who decided, and why"
_SCRIPTS = ("maps.js", "drawing.js", "spot.js", "page.js")
_MAX_SIDE = 1024  # pixels
_MOST_VOICES = 5
_MOST_CARDS = 24  # that are shown at once
_IMAGES = "<!-- images -->"  # where their data go


class Explained(Protocol):
    """Explanations of one image each, on the CPU, and the images as pictures."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Explanation, Picture]]: ...


def write_report(
    explained: Explained,
    output: str | Path,
    read: Callable[[str], Picture] | None = None,
    title: str = _TITLE,
    source: str = "",
    notes: Sequence[str] = (),
    max_side: int = _MAX_SIDE,
    overwrite: bool = False,
) -> Path:
    """Write the report on images that are explained one after the other.

    The folder then holds ``index.html``, one file that works without a network; ``panels/NAME.png``
    for each image; ``maps/NAME.npz``, exactly the values that the page shows; and ``report.json``,
    which names everything and is written last. Of an image no more than a thumbnail stays in
    memory.

    Args:
        explained: explanations of one image each, on the CPU, and the images as pictures
            ``[H, W, 3]`` uint8, of any sizes; such as
            :class:`~tax_lightning.data.images.ExplainedImages`.
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

    Returns:
        The page.

    Raises:
        FileExistsError: if the folder holds a report already, or is a file (NotADirectoryError).
        ValueError: if there are no images, or two have the same id.
    """
    folder = Path(output)
    numbers = folder / "report.json"
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output {folder} is a file, expected a folder to write into.")
    if max_side < 16:
        raise ValueError(f"--max_side={max_side}: expected a number of pixels from 16 up, as 1024.")
    if not len(explained):
        raise ValueError("there are no images to explain, expected at least one.")
    if numbers.exists() and not overwrite:
        raise FileExistsError(
            f"--output {folder} holds a report already. Give another folder, or --overwrite=true."
        )
    for name in ("panels", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers.unlink(missing_ok=True)
    report = _Report(len(explained), max_side)
    path = folder / "index.html"
    with _part_file(path.with_suffix(".part")) as blocks:
        for explanation, picture in explained:
            if not report.cards:
                report.cards = read_cards(explanation.sources, read)
            maps = report.add(explanation, picture, blocks)
            patches = {report.key(c): c.patch for c in report.cards if c.patch is not None}
            panel = render_panel(explanation, picture, patches=patches)
            name = file_name(explanation.ids[0])
            files = {"panel": f"panels/{name}.png", "maps": f"maps/{name}.npz"}
            Image.fromarray(panel).save(folder / files["panel"])
            np.savez_compressed(folder / files["maps"], allow_pickle=False, **maps)
            report.images[-1]["files"] = files
        notes = [*notes, *report.notes(read is not None)]
        report.write_page(blocks, path, title, source, notes)
    with _part_file(numbers.with_suffix(".json.part"), numbers) as file:
        content = {"tax_lightning": __version__, "source": source, "notes": notes}
        json.dump(content | report.content(), file, ensure_ascii=False, indent=2, allow_nan=False)
    return path


def write_page(
    explained: Explained, cards: Sequence[PrototypeCard], path: Path, source: str
) -> None:
    """The page of `write_report` alone.

    Args:
        explained: as in `write_report`; at least one.
        cards: of all prototypes in the order of annotators and kernels; none while nothing has been
            projected.
        path: of the page; no other file is written.
        source: as in `write_report`.

    Raises:
        ValueError: if two images have the same id, or there are more annotators, classes or kernels
            than a page tells apart.
    """
    report = _Report(len(explained), _MAX_SIDE)
    with _part_file(path.with_suffix(".part")) as blocks:
        for explanation, picture in explained:
            report.cards = report.cards or list(cards) or read_cards(explanation.sources, None)
            report.add(explanation, picture, blocks)
        report.write_page(blocks, path, _TITLE, source, report.notes(at_hand=True))


class _Report:
    """What is known after the images so far."""

    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    kernels: int
    levels: int
    summary: Summary

    def __init__(self, expected: int, max_side: int) -> None:
        self.expected, self.max_side = expected, max_side
        self.cards: list[PrototypeCard] = []
        self.images: list[dict[str, Any]] = []
        self.thumbnails: list[str] = []

    def add(
        self, explanation: Explanation, picture: Picture, blocks: IO[str]
    ) -> dict[str, NDArray[Any]]:
        """Take up one image; write its part of the page, and return the maps in it."""
        (name,) = explanation.ids
        if name in (image["id"] for image in self.images):
            raise ValueError(
                f"two images have the id {name!r}, by which the report tells them apart. Give "
                "every image its own id."
            )
        summary = Summary.of(explanation)
        if not self.images:
            self.annotators, self.classes = explanation.annotators, explanation.classes
            self.kernels, self.summary = explanation.kernels, summary
            pixels = math.prod(min(side, self.max_side) for side in picture.shape[:2])
            # The same for all images, so that they can be compared; taken to be of one size.
            values = self.expected * pixels * len(self.annotators) * len(self.classes)
            self.levels = base.FINE if values <= base.MOST_FINE_VALUES else base.COARSE
        else:
            self.summary += summary
        maps = base.compact(explanation, self.max_side, self.levels)
        shown = shrunk(picture, maps["result"].shape)
        number = len(self.images)
        for kind, text in (("picture", data_uri(shown)), ("maps", base.packed(maps))):
            blocks.write(f'<script type="text/plain" id="{kind}-{number}">{text}</script>\n')
        self.thumbnails.append(_thumbnail(number, name, shown, summary))
        self.images.append(
            {
                "id": name,
                "size": list(picture.shape[:2]),
                "shown": list(shown.shape[:2]),
                "unanimous": summary.unanimous,
                "decides": dict(zip(self.annotators, summary.usage, strict=True)),
                "spots": [
                    {"at": [spot.y, spot.x], "annotator": spot.annotator, "kernel": spot.kernel}
                    for spot in find_callouts(explanation)
                ],
            }
        )
        return maps

    def key(self, card: PrototypeCard) -> tuple[int, int]:
        """Annotator and kernel of a prototype."""
        return self.annotators.index(card.source.annotator), card.source.kernel

    def usage(self, card: PrototypeCard) -> float:
        """Share of the decided pixels that a prototype decides."""
        return float(self.summary.kernel_usage[self.key(card)])

    def notes(self, at_hand: bool) -> list[str]:
        """What must not be overlooked: who that says little, examples that are missing."""
        notes = [self.summary.caveat] if self.summary.caveat else []
        taken = [card for card in self.cards if card.source.active and card.source.projected]
        missing = sum(card.patch is None for card in taken)
        if not taken:
            notes.append(
                "The prototypes of this model are no training pixels yet, so that no example can "
                "be named. Train to the end, or take the checkpoint that `tax fit` names there."
            )
        elif not at_hand:
            notes.append(
                "The training images are not at hand: examples are named but not shown. Give the "
                "configuration of the training with --config to see them."
            )
        elif missing:
            notes.append(
                f"The training images of {missing} of {len(taken)} prototypes are not in the data "
                "that were given: these examples are named but not shown."
            )
        return notes

    def write_page(
        self, blocks: IO[str], path: Path, title: str, source: str, notes: Sequence[str]
    ) -> None:
        """The page, the images' data in its middle copied from the file that they are in."""
        people, count = len(self.annotators), len(self.images)
        summary = (
            f"{count} picture{'s' if count > 1 else ''}"
            f"{f', segmented by {source}' if source else ''}. For every spot: which of {people} "
            "annotators decides there, and which training example is the reason."
        )
        options = "".join(
            f'<option value="{number}">{number + 1} of {count}: {escape(image["id"])}</option>'
            for number, image in enumerate(self.images)
        )
        sections = {
            "Overview": f'<div class="thumbnails">{"".join(self.thumbnails)}</div>'
            f"{self._annotators_table()}",
            "Pictures": Template(base.resource("pictures.html")).substitute(
                options=options, switches=self._switches()
            ),
            "Prototypes": self._gallery(),
            "What it means, and what not": base.resource("meaning.html"),
        }
        # The end of a script's element is found before its text is read.
        known = json.dumps(self.content(), ensure_ascii=False, allow_nan=False).replace(
            "<", "\\u003c"
        )
        whole = base.page(
            title,
            summary,
            sections,
            style=base.resource("report.css"),
            script="\n" + "\n".join(map(base.resource, _SCRIPTS)),
            data=f'<script type="application/json" id="report">{known}</script>\n{_IMAGES}',
            notes=notes,
        )
        before, after = whole.split(_IMAGES)
        with _part_file(path.with_suffix(".html.part"), path) as file:
            file.write(before)
            blocks.seek(0)
            shutil.copyfileobj(blocks, file)
            file.write(after)

    def content(self) -> dict[str, Any]:
        """The report in numbers, for the page's script and for machines."""
        n, c = len(self.annotators), len(self.classes)
        counts = {"foreground": c - 1, "who": n, "annotator_foreground": n * (c - 1), "why": n}
        usage = dict(zip(self.annotators, self.summary.usage, strict=True))
        content = {
            "annotators": [
                {
                    "name": name,
                    "colour": colour,
                    "shades": [kernel_shade(colour, k, self.kernels) for k in range(self.kernels)],
                    "decides": usage[name],
                    "prototypes": [
                        {
                            "card": self._card_id(card),
                            "origin": _origin(card.source),
                            "decides": self.usage(card),
                            **asdict(card.source),
                        }
                        for card in self.cards
                        if card.source.annotator == name
                    ],
                }
                for name, colour in zip(self.annotators, annotator_palette(n), strict=True)
            ],
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(self.classes, class_palette(c), strict=True)
            ],
            "planes": [
                {"name": name, "count": counts.get(name, 1), "differences": smooth}
                for name, smooth in base.PLANES.items()
            ],
            "levels": self.levels,
            "scale": value_colours(np.linspace(0, 1, 256)).tolist(),
            "most_named": MOST_NAMED,
            "most_voices": _MOST_VOICES,
            "unanimous": self.summary.unanimous,
            "largest_weight": self.summary.largest_weight,
            "images": self.images,
        }
        return dict(_plain(content))

    # ---------------------------------------------------------------------------- parts as HTML

    def _annotators_table(self) -> str:
        """Who decides how much, those who decide most first."""
        summary, colours = self.summary, annotator_palette(len(self.annotators))
        usage = np.nan_to_num(summary.usage)
        rows = {
            base.named(
                self.annotators[n], colours[n]
            ): '<td><span class="track" aria-hidden="true">'
            f'{base.bar(usage[n], colours[n])}</span><span class="value">{usage[n]:.0%}</span></td>'
            for n in np.argsort(-usage, kind="stable")
        }
        decided = "They would say the same everywhere: nobody in particular decides."
        if summary.decided:
            decided = (
                f"All would say the same on {summary.unanimous:.0%} of the pixels. On the others, "
                f"the largest weight is {summary.largest_weight:.0%} on average; an even share is "
                f"{1 / len(self.annotators):.0%}. The annotator with the largest weight at a pixel "
                "decides there."
            )
        head = f"<h3>The annotators, over all pictures</h3><p>{decided}</p>"
        return head + base.table("Annotators", ("Annotator", "Decides"), rows)

    def _switches(self) -> str:
        """The table of who is outlined and who counts."""
        rows = {
            base.named(name, colour): "".join(
                f'<td><input type="checkbox" name="{kind}" value="{n}" checked '
                f'aria-label="{escape(name)}: {kind}"></td>'
                for kind in ("counts", "outline")
            )
            for n, (name, colour) in enumerate(
                zip(self.annotators, annotator_palette(len(self.annotators)), strict=True)
            )
        }
        return base.table("Who counts", ("Annotator", "Counts", "Outline"), rows)

    def _card_id(self, card: PrototypeCard) -> str | None:
        """The id of a prototype's card; pruned ones have none."""
        return "prototype-{}-{}".format(*self.key(card)) if card.source.active else None

    def _gallery(self) -> str:
        """A card for each active prototype, those used most first."""
        active = [card for card in self.cards if card.source.active]
        order = sorted(active, key=lambda card: -np.nan_to_num(self.usage(card)))
        cards = [
            base.prototype_card(
                replace(card, use=self.usage(card)),
                str(self._card_id(card)),
                kernel_shade(card.colour, card.source.kernel, self.kernels),
            )
            for card in order
        ]
        more, pruned = len(cards) - _MOST_CARDS, len(self.cards) - len(active)
        parts = [
            '<p class="note">A prototype is one pixel of one training image, ringed here. Where a '
            "picture resembles it more than any other, it has the largest share in the decision. "
            "Those used most come first."
            f"{f' Pruned, as no training pixel is like them: {pruned}.' if pruned else ''}</p>"
            f'<div class="gallery">{"".join(cards[:_MOST_CARDS])}</div>'
        ]
        if more > 0:
            parts.append(
                f"<details><summary>{more} more prototypes, which decide less here or nothing"
                f'</summary><div class="gallery">{"".join(cards[_MOST_CARDS:])}</div></details>'
            )
        return "".join(parts)


def _thumbnail(number: int, name: str, picture: Picture, summary: Summary) -> str:
    """An image in the overview: small, with who decides as a bar of shares."""
    usage = np.nan_to_num(summary.usage)
    bars = "".join(map(base.bar, usage, annotator_palette(len(usage))))
    return (
        f'<a href="#picture={number}"><img src="{data_uri(thumbnail(picture, 192))}" alt="" '
        f'loading="lazy"><b>{escape(name)}</b><span class="track" aria-hidden="true">{bars}</span>'
        f"<small>all agree on {summary.unanimous:.0%} of it</small></a>\n"
    )


def _origin(source: PrototypeSource) -> str:
    """Where a prototype was taken from, in words; nothing before it was taken from anywhere."""
    if not source.projected:
        return ""
    labelled = f", which {source.annotator} labelled {source.label}" if source.label else ""
    return f"training image {source.sample_id}, row {source.y}, column {source.x}{labelled}"


# ------------------------------------------------------------------------------------------ files


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
