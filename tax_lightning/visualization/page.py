"""The base of the interactive pages: one HTML file that needs nothing else, and what is in it."""

import base64
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation
from tax_lightning.palette import Colour, css
from tax_lightning.visualization.drawing import as_array, check_single
from tax_lightning.visualization.summary import standing
from tax_lightning.windows import spread

# ------------------------------------------------------------------------------------------ HTML


def page(
    title: str,
    summary: str,
    sections: Mapping[str, str],
    style: str,
    script: str = "",
    data: str = "",
    notes: Sequence[str] = (),
) -> str:
    """A page as HTML that refers to nothing outside of itself.

    Title, summary and notes are text; sections are HTML by heading; ``style`` comes after that of
    all pages. The ``script`` is the only one that will run, and reads the HTML ``data``.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(resource("page.html")).substitute(
        title=escape(title),
        summary=escape(summary),
        style=resource("page.css") + style,
        contents="".join(f'<li><a href="#{_anchor(n)}">{escape(n)}</a></li>' for n in sections),
        notes="".join(f'<p class="warning" role="note">{escape(note)}</p>' for note in notes),
        sections="\n".join(
            f'<section id="{_anchor(name)}" aria-label="{escape(name)}"><h2>{escape(name)}</h2>\n'
            f"{content}</section>"
            for name, content in sections.items()
        ),
        version=__version__,
        scripts=f"; script-src 'sha256-{digest}'" if script else "",
        script=f"{data}<script>{script}</script>" if script else "",
    )


def resource(name: str) -> str:
    """A file of the folder ``web``."""
    return files("tax_lightning.visualization").joinpath("web", name).read_text(encoding="utf-8")


def _anchor(name: str) -> str:
    """The id of a section by its heading."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def table(
    label: str, head: Sequence[str], rows: Mapping[str, str], caption: str = "", kind: str = ""
) -> str:
    """A table that scrolls where it is too large; ``rows`` has cells by the row's name, as HTML."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(f'<tr><th scope="row">{name}</th>{row}</tr>' for name, row in rows.items())
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}, table">'
        f'<table class="{kind}">{said}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def named(name: str, colour: Colour) -> str:
    """A name behind a chip of its colour."""
    return f'<span class="chip" style="background:{css(colour)}"></span>{escape(name)}'


def bar(share: float, colour: Colour) -> str:
    """A bar as long as a share in ``[0, 1]`` of its track."""
    return f'<span class="bar" style="width:{share:.2%};background:{css(colour)}"></span>'


# ------------------------------------------------------------------------------------------ maps

LEVELS = 100
"""The largest value of a share in bytes: whole per cents."""

_LARGEST_BYTE = 254  # that stands for something; 255 is "not labelled"


def compact(
    explanation: Explanation, most: int, masks: NDArray[np.integer] | None = None
) -> dict[str, NDArray[Any]]:
    """Maps of one image by name, a byte a value; ``docs/explain.md`` says what each array is.

    Of an image whose longer side has more pixels than ``most``, evenly spread ``rows`` and
    ``columns`` are kept, so that each value is what the model says of one pixel.
    """
    check_single(explanation)
    n, c, k = len(explanation.annotators), len(explanation.classes), explanation.kernels
    for name, count in (("annotators", n), ("classes", c), ("kernels", k)):
        if count > _LARGEST_BYTE:
            raise ValueError(
                f"{count} {name}, but a page tells at most {_LARGEST_BYTE} apart; work with the "
                "tensors of the explanation instead."
            )
    height, width = explanation.probs.shape[-2:]
    scale = min(1.0, most / max(height, width))
    rows, columns = (spread(length, max(1, round(length * scale))) for length in (height, width))
    values: dict[str, Any] = {
        "result": explanation.decision,
        "undisputed": explanation.undisputed,
        "votes": LEVELS * explanation.votes / n,
        "dispute": LEVELS * explanation.dispute,
        "uncertainty": LEVELS * explanation.uncertainty,
        "annotator_foreground": LEVELS * explanation.annotator_probs[:, :, 1:],
        "reason": explanation.reason,
        "reason_kernel": explanation.reason_kernel,
        "reason_share": LEVELS * explanation.reason_share,
        "dissenter": explanation.dissenter,
        "dissent_kernel": explanation.dissent_kernel,
    }
    if explanation.trust.kind == "image":
        values |= {"leader": explanation.leader, "who": LEVELS * explanation.who}
        values["standing"] = torch.from_numpy(standing(explanation))
    if masks is not None:
        values["masks"] = torch.from_numpy(np.asarray(masks, dtype=np.uint8))[None]
    place = (..., rows[:, None], columns)
    maps = {name: np.rint(as_array(value[0])[place]) for name, value in values.items()}
    whole = {name: array.clip(0, 255).astype(np.uint8) for name, array in maps.items()}
    return {"rows": rows, "columns": columns, **whole}


def planes_of(maps: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """What `packed` holds of these maps, in order."""
    planes = {name: array for name, array in maps.items() if name not in ("rows", "columns")}
    return [{"name": n, "count": math.prod(array.shape[:-2])} for n, array in planes.items()]


def packed(maps: Mapping[str, NDArray[Any]]) -> str:
    """Maps as one line of text: deflated bytes in base 64."""
    planes = b"".join(maps[plane["name"]].tobytes() for plane in planes_of(maps))
    return base64.b64encode(zlib.compress(planes)).decode()
