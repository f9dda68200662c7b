"""The page of a report: one HTML file that needs nothing else, and its parts as text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.callouts import SourcePatch
from tax_lightning.visualization.gallery import PrototypeCard
from tax_lightning.visualization.palette import Colour, Picture, annotator_palette, kernel_shade
from tax_lightning.visualization.tally import Tally

SCRIPTS = ("maps.js", "painting.js", "spot.js", "page.js")
MOST_NAMED = 12
"""Annotators who are named one by one; the others of more are summed up."""

_RAMP = ((0, 0, 4), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def ramp() -> list[list[int]]:
    """Colours of values from 0 to 1, from dark to light: 256 of them."""
    at = np.linspace(0, len(_RAMP) - 1, 256)
    channels = [np.interp(at, range(len(_RAMP)), channel) for channel in zip(*_RAMP, strict=True)]
    colours: list[list[int]] = np.stack(channels, axis=1).round().astype(int).tolist()
    return colours


def page(
    words: Mapping[str, str], parts: Mapping[str, str], report: Mapping[str, Any]
) -> tuple[str, str]:
    """The page before and after the data of its images.

    Args:
        words: texts by their place in the page.
        parts: HTML by its place in the page.
        report: what its script knows, as JSON has it.
    """
    script = "\n" + "\n".join(_resource(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    whole = Template(_resource("page.html")).substitute(
        {name: escape(text) for name, text in words.items()},
        **parts,
        style=_resource("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        # The end of a script's element is found before its text is read.
        report=json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        maps=_HERE,
    )
    before, after = whole.split(_HERE)
    return before, after


_HERE = "<!-- images -->"


def _resource(name: str) -> str:
    return files("tax_lightning.visualization").joinpath("web", name).read_text(encoding="utf-8")


def image_block(number: int, picture: str, maps: str) -> str:
    """The data of one image, which the page reads when it shows it.

    Args:
        number: of the image, from 0.
        picture: a data URI.
        maps: see `CompactMaps.text`.
    """
    return (
        f'<script type="text/plain" id="picture-{number}">{picture}</script>\n'
        f'<script type="text/plain" id="maps-{number}">{maps}</script>\n'
    )


def data_uri(picture: Picture) -> str:
    """A picture as the address of itself: PNG or JPEG, whichever is smaller.

    Example:
        >>> data_uri(np.zeros((2, 2, 3), np.uint8))[:22]
        'data:image/png;base64,'
    """
    image = Image.fromarray(picture)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "png", optimize=True)
    image.save(jpeg, "jpeg", quality=85, subsampling=0, optimize=True)
    kind, file = min((("png", png), ("jpeg", jpeg)), key=lambda pair: pair[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def shrunk(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture with this height and width, which are not larger than its own."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))


# ------------------------------------------------------------------------------------- overview


def thumbnail(number: int, name: str, picture: Picture, tally: Tally) -> str:
    """An image in the overview: small, with who decides as a bar of shares.

    Args:
        number: of the image, from 0.
        name: its id.
        picture: the image.
        tally: of the image alone.
    """
    small = Image.fromarray(picture)
    small.thumbnail((192, 192))
    usage = np.nan_to_num(tally.usage)
    bars = "".join(
        f'<span style="width:{100 * usage[n]:.1f}%;background:{css(colour)}"></span>'
        for n, colour in enumerate(annotator_palette(len(usage)))
        if usage[n] > 0
    )
    return (
        f'<a href="#picture={number}"><img src="{data_uri(np.asarray(small))}" alt="" '
        f'loading="lazy"><b>{escape(name)}</b><span class="shares" aria-hidden="true">{bars}'
        f"</span><small>all agree on {tally.unanimous:.0%} of it</small></a>\n"
    )


def annotators_table(annotators: Sequence[str], classes: Sequence[str], tally: Tally) -> str:
    """Who decides how much and draws how, those who decide most first."""
    order = np.argsort(-np.nan_to_num(tally.usage), kind="stable")
    rows = [_annotator_row(int(n), annotators, tuple(classes), tally) for n in order]
    first, rest = rows[:MOST_NAMED], rows[MOST_NAMED:]
    if len(rest) < 2:
        first, rest = rows, []
    table = _people(first)
    if rest:
        share = np.nan_to_num(tally.usage)[order[MOST_NAMED:]].sum()
        table += (
            f'<details class="more"><summary>{len(rest)} others, who decide {share:.0%} together'
            f"</summary>{_people(rest)}</details>"
        )
    return table


_COLUMNS = {
    "words": "How they draw",
    "usage": "Decides",
    "found": "Covers of the result",
    "beyond": "Draws beyond it",
}


def _people(rows: Sequence[str]) -> str:
    head = '<th scope="col">Annotator</th>' + "".join(
        f'<th scope="col"{_NUMBER if name != "words" else ""}>{title}</th>'
        for name, title in _COLUMNS.items()
    )
    body = "".join(rows)
    return f'<table class="people"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _annotator_row(
    n: int, annotators: Sequence[str], classes: tuple[str, ...], tally: Tally
) -> str:
    colour = css(annotator_palette(len(annotators))[n])
    width = 100 * float(np.nan_to_num(tally.usage[n]))
    cells = {
        "words": escape(tally.words(n, classes)),
        "usage": f'<span class="track" aria-hidden="true"><span class="bar" style="width:'
        f'{width:.1f}%;background:{colour}"></span></span>'
        f'<span class="value">{_share(tally.usage[n])}</span>',
        "found": _share(tally.found[n]),
        "beyond": _share(tally.beyond[n]),
    }
    columns = "".join(
        f'<td data-label="{_COLUMNS[name]}"{_NUMBER if name != "words" else ""}>{cell}</td>'
        for name, cell in cells.items()
    )
    return (
        f'<tr><th scope="row">{_chip(annotator_palette(len(annotators))[n])}'
        f"{escape(annotators[n])}</th>{columns}</tr>"
    )


_NUMBER = ' class="number"'


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0%}"


def switches(annotators: Sequence[str]) -> str:
    """The table of who is outlined and who counts."""
    colours = annotator_palette(len(annotators))
    rows = "".join(
        f'<tr><th scope="row">{_chip(colour)}{name}</th>'
        f'<td><input type="checkbox" name="counts" value="{n}" checked aria-label="{name} counts">'
        f'</td><td><input type="checkbox" name="outline" value="{n}" checked '
        f'aria-label="Outline of {name}"></td><td data-share="{n}"></td></tr>'
        for n, (name, colour) in enumerate(zip(map(escape, annotators), colours, strict=True))
    )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("Annotator", "Counts", "Outline", "Decides here")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def options(names: Sequence[str]) -> str:
    """The images to choose from."""
    return "".join(
        f'<option value="{number}">{number + 1} of {len(names)}: {escape(name)}</option>'
        for number, name in enumerate(names)
    )


def notes(texts: Sequence[str]) -> str:
    """What must not be overlooked."""
    return "".join(f'<p class="warning" role="note">{escape(text)}</p>' for text in texts)


# -------------------------------------------------------------------------------------- gallery

_MOST_CARDS = 24  # that are shown at once


def card_id(annotator: int, kernel: int, shared: bool) -> str:
    """The id of a prototype's card; one that all annotators share has one card."""
    return f"prototype-{'all' if shared else annotator}-{kernel}"


def gallery(
    examples: Mapping[tuple[int, int], PrototypeCard],
    annotators: Sequence[str],
    usage: Mapping[tuple[int, int], float],
    shared: bool,
) -> str:
    """A card for each active prototype, those used most first.

    Args:
        examples: by annotator and kernel.
        annotators: names.
        usage: share of the decided pixels of all images that each prototype decides, or NaN.
        shared: whether all annotators have the same prototypes.
    """
    order = sorted(examples, key=lambda key: -np.nan_to_num(usage[key]))
    kernels = 1 + max((k for _, k in examples), default=0)
    active = [key for key in order if examples[key].source.active]
    cards = [_card(key, examples[key], annotators, usage[key], shared, kernels) for key in active]
    first = min(_MOST_CARDS, sum(usage[key] > 0 for key in active)) or len(cards)
    parts = [f'<div class="gallery">{"".join(cards[:first])}</div>']
    if rest := cards[first:]:
        parts.append(
            f'<details class="more"><summary>{len(rest)} more prototypes, which decide less here '
            f'or nothing</summary><div class="gallery">{"".join(rest)}</div></details>'
        )
    if pruned := len(order) - len(active):
        words = "prototype decides" if pruned == 1 else "prototypes decide"
        parts.append(
            f'<p class="note">{pruned} further {words} nothing anywhere: no training pixel is like '
            "it.</p>"
        )
    return "".join(parts)


def _card(
    key: tuple[int, int],
    example: PrototypeCard,
    annotators: Sequence[str],
    usage: float,
    shared: bool,
    kernels: int,
) -> str:
    n, k = key
    expert = "all annotators" if shared else annotators[n]
    colour = kernel_shade(annotator_palette(len(annotators))[n], k, kernels)
    chip = "" if shared else _chip(colour)
    share = (
        f"decides {usage:.1%} of the decided pixels" if usage >= 5e-4 else "decides next to nothing"
    )
    origin = source_words(example.source, expert) or "not yet moved onto a training pixel"
    runners = "".join(
        f"<li>{crop(patch, f'Row {y}, column {x} of {sample_id}')}</li>"
        for (sample_id, y, x, _), patch in zip(
            example.source.nearest, example.nearest, strict=False
        )
        if patch is not None
    )
    if runners:
        runners = (
            f'<p>Nearest to it in other training images:</p><ul class="runners">{runners}</ul>'
        )
    return (
        f'<article class="card" id="{card_id(n, k, shared)}" tabindex="-1"><h3>{chip}'
        f"{escape(expert)}, prototype {k}</h3>"
        f'<div class="sights">{_sights(example)}</div>'
        f"<p>{escape(origin[0].upper() + origin[1:])}. In these pictures it {share}.</p>{runners}"
        "</article>\n"
    )


def source_words(source: PrototypeSource, expert: str) -> str:
    """Where a prototype was taken from, in words; nothing before it was taken from anywhere."""
    if not source.projected:
        return ""
    labelled = f", which {expert} labelled {source.label}" if source.label else ""
    return f"training image {source.sample_id}, row {source.y}, column {source.x}{labelled}"


def _sights(example: PrototypeCard) -> str:
    if example.patch is None:
        return '<span class="missing">The training image is not at hand</span>'
    side = f"{example.patch.image.shape[1]} by {example.patch.image.shape[0]} pixels"
    return crop(example.patch, f"Training example, {side}, its pixel ringed") + _scene(example)


def crop(patch: SourcePatch, words: str) -> str:
    """A crop with a ring round its pixel."""
    height, width = patch.image.shape[:2]
    side = max(height, width)
    left, top = (side - width) / 2, (side - height) / 2
    y, x = top + patch.y + 0.5, left + patch.x + 0.5
    ring = f'cx="{x:g}" cy="{y:g}" r="{side / 12:g}" fill="none"'
    return (
        f'<span class="crop" role="img" aria-label="{escape(words)}">'
        f'<img src="{data_uri(patch.image)}" alt="">'
        f'<svg viewBox="0 0 {side} {side}" aria-hidden="true">'
        f'<circle {ring} stroke="#000" stroke-width="{side / 24:g}"/>'
        f'<circle {ring} stroke="#fff" stroke-width="{side / 50:g}"/></svg></span>'
    )


def _scene(example: PrototypeCard) -> str:
    """The whole image with the crop's box."""
    source, patch = example.source, example.patch
    assert patch is not None and example.image is not None and example.size is not None  # noqa: PT018
    height, width = example.size
    box = (
        f'x="{source.x - patch.x}" y="{source.y - patch.y}" width="{patch.image.shape[1]}" '
        f'height="{patch.image.shape[0]}" fill="none" vector-effect="non-scaling-stroke"'
    )
    return (
        '<span class="scene" role="img" aria-label="The whole training image, with a box round the '
        f'crop"><img src="{data_uri(example.image)}" alt="">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<rect {box} stroke="#000" stroke-width="4"/><rect {box} stroke="#fff" stroke-width="2"/>'
        "</svg></span>"
    )


def _chip(colour: Colour) -> str:
    return f'<span class="chip" style="background:{css(colour)}"></span>'


def css(colour: Colour) -> str:
    """A colour as style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
