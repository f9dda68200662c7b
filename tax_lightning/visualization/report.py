"""A report on images: one page for a person, pictures, and the same in numbers for machines."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation
from tax_lightning.files import (
    file_name,
    remove_parts,
    write_arrays,
    write_json,
    write_png,
    write_text,
)
from tax_lightning.findings import Finding
from tax_lightning.palette import (
    Picture,
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.tendencies import Groups, agreement, not_learnt, tendency_table
from tax_lightning.visualization import page as base
from tax_lightning.visualization.annotations import Read, find_callouts
from tax_lightning.visualization.drawing import data_uri
from tax_lightning.visualization.gallery import (
    TAGLINE,
    PrototypeCard,
    read_cards,
    render_card,
    shown_examples,
    with_use,
)
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.sheet import Sheet
from tax_lightning.visualization.summary import (
    MOST_NAMED,
    Summary,
    findings,
    per_cent,
    tendencies,
    threshold_words,
    trust_words,
)
from tax_lightning.windows import spread

_TITLE = "What the model says, who would say so, and why"
_SCRIPTS = ("maps.js", "drawing.js", "spot.js", "page.js")
_MAX_SIDE, _CROP = 1024, 96  # pixels
_TRUST_LAYER = '<label><input type="radio" name="layer" value="trust">Whom it follows</label>'

Labels = NDArray[np.integer] | None
Item = tuple[Explanation, Picture, *tuple[Labels, ...]]  # masks and reference may be missing


def write_report(
    explained: Iterable[Item],
    output: str | Path,
    read: Read | None = None,
    title: str = _TITLE,
    source: str = "",
    notes: Sequence[str] = (),
    max_side: int = _MAX_SIDE,
    overwrite: bool = False,
    groups: Groups | None = None,
) -> Path:
    """Write the report on images that are explained one after the other.

    The folder then holds ``index.html``, one file that works without a network; ``panels/NAME.png``
    for each image; ``maps/NAME.npz``, exactly the values that the page shows; and ``report.json``,
    which names everything and is written last.

    Args:
        explained: explanations of one image each, on the CPU, and the images as pictures
            ``[H, W, 3]`` uint8, of any sizes; larger where an explanation is of evenly spread
            pixels, and of a detail after its image, which alone counts in figures; such as
            :class:`~tax_lightning.data.images.ExplainedImages`. A third item may hold the masks
            ``[N, H, W]`` as the annotators drew them, a fourth the reference ``[H, W]``, both 255
            where not labelled.
        output: folder; made where it is missing.
        read: gives the picture of a training image by its id, for the gallery of prototypes.
        title: heading of the page.
        source: what the explanations are of, such as the name of a checkpoint.
        notes: warnings for the page.
        max_side: of an image on the page and in its NPZ, in pixels; of larger ones evenly spread
            rows and columns are kept.
        overwrite: whether to write into a folder that holds a report. Files of images that are not
            explained again stay.
        groups: groups of annotators, by which the tables are read too.

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
    numbers.unlink(missing_ok=True)
    remove_parts(folder)
    report = _Report(max_side, groups)
    for explanation, picture, *given in explained:
        report.cards = report.cards or read_cards(explanation.sources, read)
        masks, reference = (*given, None, None)[:2]
        maps = report.add(explanation, picture, masks, reference)
        patches = report.cards[0].patches if report.cards else {}
        shown = _resized(picture, explanation.probs.shape[-2:])
        panel = render_panel(explanation, shown, masks, reference, patches, groups)
        name = file_name(explanation.ids[0])
        files = {"panel": f"panels/{name}.png", "maps": f"maps/{name}.npz"}
        write_png(folder / files["panel"], Image.fromarray(panel))
        write_arrays(folder / files["maps"], maps)
        report.images[-1]["files"] = files
    if not report.images:
        raise ValueError("there are no images to explain, expected at least one.")
    notes = [*notes, *report.notes, *(found.said for found in report.findings())]
    page = folder / "index.html"
    report.write_page(page, title, source, notes)
    content = {"tax_lightning": __version__, "source": source, "notes": notes, **report.content()}
    write_json(numbers, content)
    return page


def write_page(
    explained: Iterable[Item],
    cards: Sequence[PrototypeCard],
    path: Path,
    source: str,
    groups: Groups | None = None,
) -> None:
    """The page of `write_report` alone, of at least one image, with the cards of all prototypes."""
    report = _Report(_MAX_SIDE, groups)
    report.cards = list(cards)
    for explanation, picture, *given in explained:
        report.add(explanation, picture, *given)
    report.write_page(path, _TITLE, source, [found.said for found in report.findings()])


class _Report:
    """What is known after the images so far."""

    first: Explanation  # for the names, which are those of all
    summary: Summary

    def __init__(self, max_side: int, groups: Groups | None) -> None:
        self.max_side, self.groups = max_side, groups or {}
        self.tendencies: list[dict[str, NDArray[np.float64]]] = []
        self.cards: list[PrototypeCard] = []
        self.images: list[dict[str, Any]] = []
        self.blocks: list[str] = []
        self.notes: list[str] = []

    def add(
        self,
        explanation: Explanation,
        picture: Picture,
        masks: Labels = None,
        reference: Labels = None,
    ) -> dict[str, NDArray[Any]]:
        """Take up one image, and return the maps of it that the page shows."""
        (name,) = explanation.ids
        if name in (image["id"] for image in self.images):
            raise ValueError(
                f"two images have the id {name!r}, by which the report tells them apart. Give "
                "every image its own id."
            )
        summary = Summary.of(explanation, masks, reference)
        if not self.images:
            self.first, self.summary = explanation, summary
        elif not explanation.detail_of:
            self.summary += summary
        maps = base.compact(explanation, self.max_side, masks)
        explained = explanation.probs.shape[-2:]
        if explained != picture.shape[:2]:
            self.notes.append(
                f"{name} has {picture.shape[0]} x {picture.shape[1]} pixels, of which "
                f"{explained[0]} x {explained[1]} were explained, evenly spread. Shares are of "
                "these pixels, and lengths and areas are counted in them. Details follow in full."
            )
        for axis, places in enumerate(("rows", "columns")):  # in pixels of the picture
            maps[places] = spread(picture.shape[axis], explained[axis])[maps[places]]
        size = maps["result"].shape
        shown = _resized(picture, size)
        number = len(self.images)
        self.blocks += [
            _block(f"picture-{number}", data_uri(shown)),
            _block(f"maps-{number}", base.packed(maps)),
        ]
        if not explanation.detail_of:
            self.tendencies.append(tendencies(explanation, masks))
        self.images.append(
            {
                "id": name,
                "detail_of": explanation.detail_of or None,
                "size": list(picture.shape[:2]),
                "shown": list(size),
                "planes": base.planes_of(maps),
                "disputed": summary.dispute,
                "disputed_in_masks": summary.labels.dispute,
                "votes": summary.votes,
                "spots": [[spot.y, spot.x] for spot in find_callouts(explanation)],
            }
        )
        return maps

    def findings(self) -> list[Finding]:
        """What must not be overlooked: what misleads, examples that are missing."""
        found = findings(self.first, self.summary)
        taken = [card for card in self.cards if card.source.active and card.source.projected]
        missing = sum(card.source.taken_from not in card.patches for card in taken)
        if not taken:
            title = "The prototypes of this model are no training pixels yet"
            cure = "So no example can be named. Train to the end, or take the checkpoint that "
            cure += "`tax fit` names there."
            found.append(Finding("unprojected", "warning", title, cure))
        elif missing:
            title = f"The training images of {missing} of {len(taken)} prototypes are not at hand"
            cure = "These examples are named but not shown. Give the configuration of the "
            cure += "training with --config to see them."
            found.append(Finding("examples", "hint", title, cure))
        return found

    def write_page(self, path: Path, title: str, source: str, notes: Sequence[str]) -> None:
        """Write the page, as HTML."""
        people = len(self.first.annotators)
        count = sum(image["detail_of"] is None for image in self.images)
        numbers = itertools.accumulate(int(image["detail_of"] is None) for image in self.images)
        summary = (
            f"{count} picture{'s' if count > 1 else ''}"
            f"{f', segmented by {source}' if source else ''}. For every spot: how many of {people} "
            "annotators would say the same, who would not, and which training examples speak for "
            "the result and against it."
        )
        options = "".join(
            f'<option value="{place}">'
            f"{f'{number} of {count}' if image['detail_of'] is None else 'detail'}: "
            f"{escape(image['id'])}, disputed {escape(per_cent(image['disputed']))}</option>"
            for place, (number, image) in enumerate(zip(numbers, self.images, strict=True))
        )
        sections = {
            "Overview": self._annotators_table(),
            "Tendencies": self._tendencies_table(),
            "Pictures": Template(base.resource("pictures.html")).substitute(
                options=options, trust=_TRUST_LAYER if self.first.trust.kind == "image" else ""
            ),
            "Prototypes": self._gallery(),
            "What it means, and what not": base.resource("meaning.html"),
        }
        known = json.dumps(self.content(), ensure_ascii=False, allow_nan=False)
        # The end of a script's element is found before its text is read.
        known = known.replace("<", "\\u003c")
        text = base.page(
            title,
            summary,
            sections,
            style=base.resource("report.css"),
            script="\n" + "\n".join(map(base.resource, _SCRIPTS)),
            data=f'<script type="application/json" id="report">{known}</script>\n'
            + "".join([*self.blocks, self._crops()]),
            notes=notes,
        )
        write_text(path, text)

    def content(self) -> dict[str, Any]:
        """The report in numbers, for the page's script."""
        names, kernels, summary = self.first.annotators, self.first.kernels, self.summary
        classes, of_classes = self.first.classes, class_palette(len(self.first.classes))
        support, reasons = summary.shares(summary.support), summary.shares(summary.reasons)
        image = self.first.trust.kind == "image"
        decides = summary.shares(summary.decides) if image else [None] * len(names)
        cards = with_use(self.cards, summary)
        content = {
            "annotators": [
                {
                    "name": name,
                    "colour": colour,
                    "shades": [kernel_shade(colour, k, kernels) for k in range(kernels)],
                    "support": support[n],
                    "reason": reasons[n].sum(),
                    "decides": decides[n],
                    "prototypes": [
                        {"use": card.use, **asdict(card.source)}
                        for card in cards
                        if card.source.annotator == name
                    ],
                }
                for n, (name, colour) in enumerate(
                    zip(names, annotator_palette(len(names)), strict=True)
                )
            ],
            "classes": [{"name": n, "colour": c} for n, c in zip(classes, of_classes, strict=True)],
            "levels": base.LEVELS,
            "scale": value_colours(np.linspace(0, 1, 256)).tolist(),
            "most_named": MOST_NAMED,
            "trust": {**asdict(self.first.trust), "words": trust_words(self.first.trust)},
            "dispute_threshold": self.first.dispute_threshold,
            "undisputed_words": threshold_words(self.first.dispute_threshold),
            "disputed": summary.dispute,
            "votes": summary.votes,
            "images": self.images,
        }
        # What no number is becomes null, as JSON lacks it.
        text = json.dumps(content, default=lambda value: value.tolist())
        return dict(json.loads(text, parse_constant=lambda _: None))

    # ---------------------------------------------------------------------------- parts as HTML

    def _annotators_table(self) -> str:
        """What is disputed, who says the result there, and what is known of trust."""
        summary, n = self.summary, len(self.first.annotators)
        said = "The model expects all annotators to say the same everywhere."
        if summary.disputed:
            share = escape(per_cent(summary.dispute))
            said = (
                f"The model expects the annotators to differ on {share} of the pixels. There, on "
                f"average {summary.votes:.1f} of {n} would say the result."
            )
        columns = {
            "Would say the result": np.nan_to_num(summary.shares(summary.support)),
            "Is the first reason": np.nan_to_num(summary.shares(summary.reasons)).sum(axis=1),
        }
        if self.first.trust.kind == "image":
            columns["Decides"] = np.nan_to_num(summary.shares(summary.decides))
        colours = annotator_palette(n)
        rows = {
            base.named(self.first.annotators[row], colours[row]): "".join(
                f'<td><span class="track" aria-hidden="true">{base.bar(share[row], colours[row])}'
                f'</span><span class="value">{share[row]:.0%}</span></td>'
                for share in columns.values()
            )
            for row in range(n)
        }
        for group, names in self.groups.items():
            members = [self.first.annotators.index(name) for name in names]
            votes, *others = (share[members].sum() for share in columns.values())
            cells = [f"{votes / len(names):.0%} ({votes:.1f} of {len(names)} votes)"]
            rows[escape(group)] = "".join(
                f"<td>{cell}</td>" for cell in [*cells, *(f"{share:.0%}" for share in others)]
            )
        return (
            f"<h3>The annotators, over all pictures</h3><p>{said} The table is of these pixels.</p>"
            f"{base.table('Annotators', ('Annotator', *columns), rows)}"
            f'<p class="note">{escape(trust_words(self.first.trust))}</p>'
        )

    def _tendencies_table(self) -> str:
        """How the annotators draw, by the model and by the masks of the same images."""
        compared = [sums for sums in self.tendencies if "masks" in sums] or self.tendencies
        sums = {side: np.sum([one[side] for one in compared], axis=0) for side in compared[0]}
        table = tendency_table(sums, self.first.annotators, self.first.classes, self.groups)
        said = f"What the model expects of them, over all pictures ({len(compared)})."
        if "masks" in sums:
            agree = agreement(**sums)
            said = (
                f"Each cell: masks / model, over the pictures that have masks ({len(compared)}). "
                f"The model's outlines are {agree['outline_error']:.1f} px off the drawn ones, a "
                "mean over annotators; those of a model by which all draw alike would be "
                f"{agree['outline_error_alike']:.1f} px off. "
                f"Rank correlation over annotators: {agree['outline_spearman']:.2f}."
                f"{not_learnt(self.first.annotators, **sums)}"
            )
        rows = {
            escape(name): "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            for name, cells in table.rows.items()
        }
        head = (table.corner.capitalize(), *table.columns)
        return f"<p>{said}</p>{base.table(table.name, head, rows, table.caption)}"

    def _gallery(self) -> str:
        """A card for each active prototype, those used most first."""
        active = [c for c in with_use(self.cards, self.summary) if c.source.active]
        cards = []
        for card in sorted(active, key=lambda card: -(card.use or 0)):
            name = f"{card.source.annotator}, prototype {card.source.kernel}"
            words = escape(". ".join([name, *card.facts]))
            cards.append(f'<img src="{data_uri(render_card(card))}" alt="{words}">\n')
        return f'<p class="note">{TAGLINE}.</p><div class="gallery">{"".join(cards)}</div>'

    def _crops(self) -> str:
        """The pictures of all examples at hand, by annotator, kernel and class."""
        blocks = []
        for card in self.cards:
            n, k = self.first.annotators.index(card.source.annotator), card.source.kernel
            shade = kernel_shade(card.colour, k, self.first.kernels)
            for example in shown_examples(card.source):
                if example in card.patches:
                    crop = Sheet().source(card.patches[example], shade, _CROP)
                    place = f"crop-{n}-{k}-{self.first.classes.index(example.label)}"
                    blocks.append(_block(place, data_uri(np.asarray(crop))))
        return "".join(blocks)


def _resized(picture: Picture, size: Sequence[int]) -> Picture:
    """The picture at this height and width."""
    resized = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def _block(name: str, text: str) -> str:
    """Text in a page that is read by its id, and not shown."""
    return f'<script type="text/plain" id="{name}">{text}</script>\n'
