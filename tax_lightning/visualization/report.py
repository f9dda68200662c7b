"""A report on images: one page for a person, pictures, and the same in numbers for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation, PrototypeSource
from tax_lightning.files import file_name, plain, write_json, write_whole
from tax_lightning.visualization import page as base
from tax_lightning.visualization.annotations import SourcePatch, find_callouts
from tax_lightning.visualization.drawing import data_uri, shrunk, thumbnail
from tax_lightning.visualization.gallery import (
    PrototypeCard,
    card_facts,
    read_cards,
    render_card,
    with_use,
)
from tax_lightning.visualization.palette import (
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.summary import Summary

_TITLE = "Who decided, and why"
_SCRIPTS = ("maps.js", "drawing.js", "spot.js", "page.js")
_MAX_SIDE = 1024  # pixels


def write_report(
    explained: Iterable[tuple[Explanation, Picture]],
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
    which names everything and is written last.

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
    if numbers.exists() and not overwrite:
        raise FileExistsError(
            f"--output {folder} holds a report already. Give another folder, or --overwrite=true."
        )
    for name in ("panels", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers.unlink(missing_ok=True)
    report = _Report(max_side)
    for explanation, picture in explained:
        if not report.cards:
            report.cards = read_cards(explanation.sources, read)
        maps = report.add(explanation, picture)
        name = file_name(explanation.ids[0])
        files = {"panel": f"panels/{name}.png", "maps": f"maps/{name}.npz"}
        panel = render_panel(explanation, picture, patches=report.patches)
        Image.fromarray(panel).save(folder / files["panel"])
        np.savez_compressed(folder / files["maps"], allow_pickle=False, **maps)
        report.images[-1]["files"] = files
    if not report.images:
        raise ValueError("there are no images to explain, expected at least one.")
    notes = [*notes, *report.notes(read is not None)]
    page = folder / "index.html"
    write_whole(page, report.page(title, source, notes))
    content = {"tax_lightning": __version__, "source": source, "notes": notes}
    write_json(numbers, content | report.content())
    return page


def write_page(
    explained: Iterable[tuple[Explanation, Picture]],
    cards: Sequence[PrototypeCard],
    path: Path,
    source: str,
) -> None:
    """The page of `write_report` alone.

    Args:
        explained: as in `write_report`; at least one.
        cards: of all prototypes in the order of annotators and kernels.
        path: of the page; no other file is written.
        source: as in `write_report`.

    Raises:
        ValueError: if two images have the same id, or there are more annotators, classes or kernels
            than a page tells apart.
    """
    report = _Report(_MAX_SIDE, cards)
    for explanation, picture in explained:
        report.add(explanation, picture)
    write_whole(path, report.page(_TITLE, source, report.notes(at_hand=True)))


class _Report:
    """What is known after the images so far."""

    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    kernels: int
    summary: Summary

    def __init__(self, max_side: int, cards: Sequence[PrototypeCard] = ()) -> None:
        self.max_side, self.cards = max_side, cards
        self.images: list[dict[str, Any]] = []
        self.thumbnails: list[str] = []
        self.blocks: list[str] = []  # what the page's script reads of each image

    def add(self, explanation: Explanation, picture: Picture) -> dict[str, NDArray[Any]]:
        """Take up one image, and return the maps that the page shows."""
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
        else:
            self.summary += summary
        maps = base.compact(explanation, self.max_side)
        shown = shrunk(picture, maps["result"].shape)
        number = len(self.images)
        for kind, text in (("picture", data_uri(shown)), ("maps", base.packed(maps))):
            self.blocks.append(f'<script type="text/plain" id="{kind}-{number}">{text}</script>\n')
        self.thumbnails.append(_thumbnail(number, name, shown, summary))
        self.images.append(
            {
                "id": name,
                "size": picture.shape[:2],
                "shown": shown.shape[:2],
                "unanimous": summary.unanimous,
                "decides": dict(zip(self.annotators, summary.usage, strict=True)),
                "spot": next(((c.y, c.x) for c in find_callouts(explanation, limit=1)), None),
            }
        )
        return maps

    @property
    def patches(self) -> dict[tuple[int, int], SourcePatch]:
        """The training patches at hand, by annotator and kernel."""
        places = np.ndindex(len(self.annotators), self.kernels)
        cards = zip(places, self.cards, strict=True)
        return {(n, k): card.patch for (n, k), card in cards if card.patch is not None}

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

    def page(self, title: str, source: str, notes: Sequence[str]) -> str:
        """The page."""
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
            "Pictures": Template(base.resource("pictures.html")).substitute(options=options),
            "Prototypes": self._gallery(),
            "What it means, and what not": base.resource("meaning.html"),
        }
        # The end of a script's element is found before its text is read.
        known = json.dumps(plain(self.content()), ensure_ascii=False).replace("<", "\\u003c")
        return base.page(
            title,
            summary,
            sections,
            style=base.resource("report.css"),
            script="\n" + "\n".join(map(base.resource, _SCRIPTS)),
            data=f'<script type="application/json" id="report">{known}</script>\n'
            f"{''.join(self.blocks)}",
            notes=notes,
        )

    def content(self) -> dict[str, Any]:
        """The report in numbers, for the page's script and for machines."""
        cards = with_use(self.cards, self.summary)
        usage = dict(zip(self.annotators, self.summary.usage, strict=True))
        return {
            "annotators": [
                {
                    "name": name,
                    "colour": colour,
                    "shades": [kernel_shade(colour, k, self.kernels) for k in range(self.kernels)],
                    "decides": usage[name],
                    "prototypes": [
                        {
                            "card": _card_id(card.source) if card.source.active else None,
                            "decides": card.use,
                            **asdict(card.source),
                        }
                        for card in cards
                        if card.source.annotator == name
                    ],
                }
                for name, colour in zip(
                    self.annotators, annotator_palette(len(self.annotators)), strict=True
                )
            ],
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(self.classes, class_palette(len(self.classes)), strict=True)
            ],
            "planes": base.PLANES,
            "annotator_planes": base.ANNOTATOR_PLANES,
            "scale": value_colours(np.linspace(0, 1, 101)),  # by per cent
            "unanimous": self.summary.unanimous,
            "largest_weight": self.summary.largest_weight,
            "images": self.images,
        }

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

    def _gallery(self) -> str:
        """A card for each active prototype, those used most first."""
        cards = with_use(self.cards, self.summary)
        active = sorted(
            (card for card in cards if card.source.active),
            key=lambda card: -np.nan_to_num(card.use or 0),
        )
        drawn = "".join(map(_card, active))
        pruned = len(cards) - len(active)
        return (
            '<p class="note">A prototype is one pixel of one training image, ringed here. Where a '
            "picture resembles it more than any other, it has the largest share in the decision. "
            "Those used most come first."
            f"{f' Pruned, as no training pixel is like them: {pruned}.' if pruned else ''}</p>"
            f'<div class="gallery">{drawn}</div>'
        )


def _thumbnail(number: int, name: str, picture: Picture, summary: Summary) -> str:
    """An image in the overview: small, with who decides as a bar of shares."""
    usage = np.nan_to_num(summary.usage)
    bars = "".join(map(base.bar, usage, annotator_palette(len(usage))))
    return (
        f'<a href="#picture={number}"><img src="{data_uri(thumbnail(picture, 192))}" alt="" '
        f'loading="lazy"><b>{escape(name)}</b><span class="track" aria-hidden="true">{bars}</span>'
        f"<small>all agree on {summary.unanimous:.0%} of it</small></a>\n"
    )


def _card(card: PrototypeCard) -> str:
    """A prototype's card as a picture, with what stands on it as its text."""
    source = card.source
    words = ". ".join((f"{source.annotator}, prototype {source.kernel}", *card_facts(card)))
    return (
        f'<img class="card" id="{_card_id(source)}" src="{data_uri(render_card(card))}" '
        f'alt="{escape(words)}" loading="lazy">\n'
    )


def _card_id(source: PrototypeSource) -> str:
    """The id of a prototype's card."""
    return f"prototype-{file_name(source.annotator)}-{source.kernel}"
