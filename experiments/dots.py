"""A dot plot: a line for each variant, a panel for each metric, a ring a seed, a bar at the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # pixels of the picture for one of the lengths below, so that letters are sharp
LINE = 20  # height of a row
LETTERS = 12
TOP = 48  # room for the titles
BOTTOM = 28  # room for the ticks
EDGE = 12
LABELS = 236  # width of the column of names
PANEL = 170
GAP = 22
DOT = 3.0
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
    canvas = _Canvas(width, TOP + LINE * len(rows) + BOTTOM)
    for line, row in enumerate(rows):
        indent, colour = (0, GREY) if row.name is None else (14, INK)
        canvas.text(EDGE + indent, _middle(line), row.label, colour, "lm", LETTERS)
    for column, panel in enumerate(panels):
        _draw_panel(canvas, EDGE + LABELS + column * (PANEL + GAP), rows, panel, baseline)
    return canvas.image


class _Canvas:
    """A picture in which lengths are those of the figure, whatever the scale."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, colour: str, anchor: str, size: int) -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        self._draw.rectangle([round(end * SCALE) for end in (x0, y0, x1, y1)], fill=colour)

    def ring(self, x: float, y: float) -> None:
        ends = [place * SCALE for place in (x - DOT, y - DOT, x + DOT, y + DOT)]
        self._draw.ellipse(ends, outline=BLUE, width=SCALE)


def _middle(line: int) -> float:
    """Height of a row's middle."""
    return TOP + LINE * (line + 0.5)


def _draw_panel(
    canvas: _Canvas, left: float, rows: Sequence[Row], panel: Panel, baseline: str
) -> None:
    low, high = limits(panel)
    bottom = TOP + LINE * len(rows)

    def place(value: float) -> float:
        return left + PANEL * (value - low) / (high - low)

    canvas.text(left + PANEL / 2, 14, panel.title, INK, "mm", LETTERS)
    canvas.text(left + PANEL / 2, 32, panel.hint, GREY, "mm", LETTERS - 2)
    for line, row in enumerate(rows):
        if row.name is not None:
            canvas.box(left, _middle(line) - 8, left + PANEL, _middle(line) + 8, PALE)
    for tick in ticks(low, high):
        canvas.box(place(tick), bottom, place(tick) + 0.5, bottom + 4, GREY)
        canvas.text(place(tick), bottom + 14, f"{tick:g}", GREY, "mm", LETTERS - 2)
    if baseline in panel.points:
        mean = place(statistics.fmean(panel.points[baseline]))
        canvas.box(mean - 0.25, TOP, mean + 0.25, bottom, GREY)
    for line, row in enumerate(rows):
        if values := panel.points.get(row.name or "", ()):
            mean = place(statistics.fmean(values))
            canvas.box(mean - 1, _middle(line) - 7, mean + 1, _middle(line) + 7, INK)
            for value in values:
                canvas.ring(place(value), _middle(line))
