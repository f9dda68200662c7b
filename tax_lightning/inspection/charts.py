"""Pictures of a report: strips and bars drawn by the browser, images with outlines as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.segmentation import find_boundaries

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.samples import RawSample
from tax_lightning.inspection.audit import Array
from tax_lightning.visualization.palette import Colour, Picture, annotator_palette, class_palette

SIDE = 480
"""Pixels of the longer side of a picture, about."""
_MARGIN = 0.25  # of the shown part's longer side, kept round the foreground


def outlined(sample: RawSample, marked: int) -> Picture:
    """An image with everybody's outlines in the annotators' colours, cut to where there are any.

    Args:
        sample: The sample.
        marked: Index of the annotator whose outline lies on top, with a white rim.

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
    rows, columns = _shown_part(((masks > 0) & (masks != IGNORE_INDEX)).any(0))
    picture = _as_rgb(sample.image[rows, columns])
    factor = SIDE / max(picture.shape)
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    smooth = Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST
    canvas = np.array(Image.fromarray(picture).resize(size, smooth))
    colours = annotator_palette(len(masks))
    order = [index for index in range(len(masks)) if index != marked] + [marked]
    for index in order:
        mask = Image.fromarray(masks[index, rows, columns]).resize(size, Image.Resampling.NEAREST)
        labels = np.asarray(mask)
        if index == marked:
            canvas[_edge(labels, 2)] = 255
        canvas[_edge(labels, 1)] = colours[index]
    return canvas


def _edge(labels: npt.NDArray[np.uint8], steps: int) -> npt.NDArray[np.bool_]:
    """The outline, some steps thick on both sides; what is not labelled counts as background."""
    drawn = np.where(labels == IGNORE_INDEX, 0, labels)
    edge = np.asarray(find_boundaries(drawn, mode="thick"))
    for _ in range(steps - 1):
        edge = edge | np.asarray(find_boundaries(edge, mode="thick"))
    return edge


def _shown_part(foreground: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns that hold the foreground and a margin; all where there is none."""
    if not foreground.any():
        return slice(None), slice(None)
    spans = [np.flatnonzero(foreground.any(axis))[[0, -1]] for axis in (1, 0)]
    margin = 4 + round(_MARGIN * max(int(last - first) for first, last in spans))
    rows, columns = (slice(max(0, int(a) - margin), int(b) + margin + 1) for a, b in spans)
    return rows, columns


def _as_rgb(image: npt.NDArray[np.generic]) -> Picture:
    """Pixels of 0..255 or [0, 1] as a picture; of other than 3 channels the first is shown."""
    pixels = np.asarray(image)
    if pixels.ndim == 2 or pixels.shape[2] != 3:
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :1].repeat(3, axis=2)
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)


def data_uri(picture: Picture) -> str:
    """A picture as the address of itself: PNG in base 64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def area_strips(annotators: Sequence[str], areas: Array) -> str:
    """Relative areas as dots on strips with a line at 1, as HTML; no strip for NaN.

    Args:
        annotators: Names.
        areas: Relative areas ``[N]``.
    """
    known = areas[~np.isnan(areas)]
    reach = max(0.1, float(np.abs(known - 1).max(initial=0))) * 1.1
    strips = [
        _strip(
            name,
            f"{area:.2f}",
            f'<span class="one"></span><span class="dot" style="left:{_place(area, reach)}%;'
            f'background:{_css(colour)}"></span>',
        )
        for name, area, colour in zip(
            annotators, areas, annotator_palette(len(annotators)), strict=True
        )
        if not np.isnan(area)
    ]
    return f'<div class="strips" aria-hidden="true">{"".join(strips)}</div>'


def _place(area: float, reach: float) -> str:
    return f"{50 + 50 * (area - 1) / reach:.1f}"


def share_bars(classes: Mapping[str, Array], annotators: Sequence[str]) -> str:
    """Shares of the foreground classes as bars beside each other, as HTML.

    Args:
        classes: Class name -> its share for each annotator ``[N]``, the background first.
        annotators: Names.
    """
    colours = class_palette(len(classes))
    names = list(classes)
    table = np.nan_to_num(np.stack(list(classes.values())))
    longest = max(float(table[1:].sum(0).max(initial=0)), 1e-9)
    strips = []
    for index, annotator in enumerate(annotators):
        bars = "".join(
            f'<span class="bar" style="width:{100 * share / longest:.2f}%;'
            f'background:{_css(colour)}"></span>'
            for share, colour in zip(table[1:, index], colours[1:], strict=True)
        )
        strips.append(_strip(annotator, f"{table[1:, index].sum():.1%}", bars))
    key = legend(names[1:], colours[1:])
    return f'{key}<div class="strips" aria-hidden="true">{"".join(strips)}</div>'


def _strip(name: str, value: str, marks: str) -> str:
    return (
        f'<span class="name">{escape(name)}</span><span class="track">{marks}</span>'
        f'<span class="value">{value}</span>'
    )


def legend(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """Names behind their colours, as HTML."""
    items = "".join(
        f'<li><span class="swatch" style="background:{_css(colour)}"></span>{escape(name)}</li>'
        for name, colour in zip(names, colours, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
