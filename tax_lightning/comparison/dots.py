"""A dot plot: a line for each variant, a panel for each metric, a ring for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

# In pixels; twice what a screen needs, so that letters are sharp.
LINE, TOP, BOTTOM, EDGE = 40, 96, 56, 24  # height of a row; room around the rows
LABELS, PANEL, GAP = 472, 340, 44  # widths
LARGE, SMALL = 24, 20  # letters
PAPER, INK, GREY, PALE, BLUE = "#ffffff", "#1f2328", "#6e7781", "#eef1f4", "#0969da"


@dataclass(frozen=True)
class Row:
    """A line of the figure: its text, and the key of its values; ``None`` for a heading."""

    label: str
    name: str | None = None


@dataclass(frozen=True)
class Panel:
    """A metric: title, a smaller second line, and by name of the row one value a seed."""

    title: str
    hint: str
    points: Mapping[str, Sequence[float]]


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers between two limits.

    Example:
        >>> ticks(0.11, 0.93)
        [0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    # Rounded, as 3 * 0.1 is not 0.3 in floating point.
    return [round(number * step, 10) for number in range(first, last + 1)]


def limits(panel: Panel) -> tuple[float, float]:
    """Ends of a panel's axis: the values and a little room on both sides."""
    every = [value for values in panel.points.values() for value in values]
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or 0.05
    return low - room, high + room


def draw(rows: Sequence[Row], panels: Sequence[Panel], baseline: str) -> Image.Image:
    """Draw the figure as an RGB picture.

    Args:
        rows: From top to bottom.
        panels: From left to right, at least one.
        baseline: Name of the row whose mean is a vertical line through every panel.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("panels is empty, expected at least one metric that has a value.")
    width = EDGE + LABELS + len(panels) * (PANEL + GAP) - GAP + EDGE
    image = Image.new("RGB", (width, TOP + LINE * len(rows) + BOTTOM), PAPER)
    canvas = ImageDraw.Draw(image)
    for line, row in enumerate(rows):
        indent, colour = (0, GREY) if row.name is None else (28, INK)
        _text(canvas, EDGE + indent, _middle(line), row.label, colour, "lm")
    for column, panel in enumerate(panels):
        _draw_panel(canvas, EDGE + LABELS + column * (PANEL + GAP), rows, panel, baseline)
    return image


def _draw_panel(
    canvas: ImageDraw.ImageDraw, left: int, rows: Sequence[Row], panel: Panel, baseline: str
) -> None:
    low, high = limits(panel)
    bottom = TOP + LINE * len(rows)

    def place(value: float) -> float:
        return left + PANEL * (value - low) / (high - low)

    def box(x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        canvas.rectangle([round(end) for end in (x0, y0, x1, y1)], fill=colour)

    _text(canvas, left + PANEL / 2, 28, panel.title, INK, "mm")
    _text(canvas, left + PANEL / 2, 64, panel.hint, GREY, "mm", SMALL)
    for line, row in enumerate(rows):
        if row.name is not None:
            box(left, _middle(line) - 16, left + PANEL, _middle(line) + 16, PALE)
    for tick in ticks(low, high):
        box(place(tick), bottom, place(tick) + 1, bottom + 8, GREY)
        _text(canvas, place(tick), bottom + 28, f"{tick:g}", GREY, "mm", SMALL)
    if baseline in panel.points:
        mean = place(statistics.fmean(panel.points[baseline]))
        box(mean - 0.5, TOP, mean + 0.5, bottom, GREY)
    for line, row in enumerate(rows):
        if values := panel.points.get(row.name or "", ()):
            mean, y = place(statistics.fmean(values)), _middle(line)
            box(mean - 2, y - 14, mean + 2, y + 14, INK)
            for x in map(place, values):
                canvas.ellipse((x - 6, y - 6, x + 6, y + 6), outline=BLUE, width=2)


def _middle(line: int) -> float:
    """Height of a row's middle."""
    return TOP + LINE * (line + 0.5)


def _text(
    canvas: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    colour: str,
    anchor: str,
    size: int = LARGE,
) -> None:
    canvas.text((x, y), text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
