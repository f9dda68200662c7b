"""Pictures of the inspection page: strips and bars drawn by the browser, images with outlines."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.samples import RawSample
from tax_lightning.inspection.audit import Array
from tax_lightning.palette import (
    Colour,
    Picture,
    annotator_palette,
    class_palette,
    css,
)
from tax_lightning.visualization.drawing import as_picture, contours
from tax_lightning.visualization.page import bar, named

SIDE = 480
"""Pixels of the longer side of a picture, about."""
_MARGIN = 0.25  # of the shown part's longer side, kept round the foreground
_LINE = 2  # pixels
_BOX = (255, 255, 0)


def outlined(
    sample: RawSample, marked: int | None, box: tuple[int, int, int, int] | None = None
) -> Picture:
    """An image with everybody's outlines in the annotators' colours, cut to where there are any.

    Args:
        sample: The sample.
        marked: Index of the annotator whose outline lies on top, with a white rim; None: nobody.
        box: Top, left, height and width of a rectangle to draw, in pixels.

    Returns:
        uint8 ``[h, w, 3]``, the longer side about `SIDE` pixels.

    Example:
        >>> masks = np.zeros((1, 8, 8), np.uint8)
        >>> masks[0, 2:6, 2:6] = 1
        >>> sample = RawSample("a", np.zeros((8, 8, 1), np.uint8), masks, np.array([True]))
        >>> outlined(sample, 0).shape
        (480, 480, 3)
    """
    masks = np.where(sample.present[:, None, None], sample.masks, IGNORE_INDEX)
    shown = ((masks > 0) & (masks != IGNORE_INDEX)).any(0)
    top, left, height, width = box or (0, 0, 0, 0)
    shown[top : top + height, left : left + width] = True
    rows, columns = _shown_part(shown)
    picture = as_picture(sample.image)[rows, columns]
    factor = SIDE / max(picture.shape)
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    smooth = Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST
    canvas = np.array(Image.fromarray(picture).resize(size, smooth))
    colours = annotator_palette(len(masks))
    last = [] if marked is None else [marked]
    for index in (*np.delete(range(len(masks)), last), *last):
        mask = Image.fromarray(masks[index, rows, columns]).resize(size, Image.Resampling.NEAREST)
        labels = np.asarray(mask)
        if index == marked:
            canvas[contours(labels, 2 * _LINE)] = 255
        canvas[contours(labels, _LINE)] = colours[index]
    if box is not None:
        y, x = (
            (np.array(side) * factor).round().astype(int).tolist()
            for side in (
                (top - (rows.start or 0), top + height - (rows.start or 0)),
                (left - (columns.start or 0), left + width - (columns.start or 0)),
            )
        )
        drawing = Image.fromarray(canvas)
        ImageDraw.Draw(drawing).rectangle((x[0], y[0], x[1] - 1, y[1] - 1), outline=_BOX, width=1)
        canvas = np.array(drawing)
    return canvas


def _shown_part(foreground: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns that hold the foreground and a margin; all where there is none."""
    if not foreground.any():
        return slice(None), slice(None)
    spans = [np.flatnonzero(foreground.any(axis))[[0, -1]] for axis in (1, 0)]
    margin = 4 + round(_MARGIN * max(int(last - first) for first, last in spans))
    rows, columns = (slice(max(0, int(a) - margin), int(b) + margin + 1) for a, b in spans)
    return rows, columns


def area_strips(annotators: Sequence[str], areas: Array) -> str:
    """Relative areas as dots on strips with a line at 1, as HTML; no strip for NaN.

    Args:
        annotators: Names.
        areas: Relative areas ``[N]``.
    """
    known = areas[~np.isnan(areas)]
    reach = max(0.1, float(np.abs(known - 1).max(initial=0))) * 1.1
    strips = {}
    for name, area, colour in zip(
        annotators, areas, annotator_palette(len(annotators)), strict=True
    ):
        if not np.isnan(area):
            dot = f"left:{50 + 50 * (area - 1) / reach:.1f}%;background:{css(colour)}"
            marks = f'<span class="one"></span><span class="dot" style="{dot}"></span>'
            strips[name] = f"{area:.2f}", marks
    return _strips(strips)


def share_bars(classes: Mapping[str, Array], annotators: Sequence[str]) -> str:
    """Shares of the foreground classes as bars beside each other, as HTML.

    Args:
        classes: Class name -> its share for each annotator ``[N]``, the background first.
        annotators: Names.
    """
    colours = class_palette(len(classes))[1:]
    table = np.nan_to_num(np.stack(list(classes.values())))[1:]
    longest = max(float(table.sum(0).max(initial=0)), 1e-9)
    strips = {
        name: (f"{table[:, n].sum():.1%}", "".join(map(bar, table[:, n] / longest, colours)))
        for n, name in enumerate(annotators)
    }
    return legend(list(classes)[1:], colours) + _strips(strips)


def _strips(rows: Mapping[str, tuple[str, str]]) -> str:
    """Marks on a track for each name, with a value behind."""
    strips = "".join(
        f'<span class="name">{escape(name)}</span><span class="track">{marks}</span>'
        f'<span class="value">{value}</span>'
        for name, (value, marks) in rows.items()
    )
    return f'<div class="strips" aria-hidden="true">{strips}</div>'


def legend(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """Names behind their colours, as HTML."""
    items = "".join(f"<li>{named(*entry)}</li>" for entry in zip(names, colours, strict=True))
    return f'<ul class="entries">{items}</ul>'
