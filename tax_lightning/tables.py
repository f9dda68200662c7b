"""Tables of text, the same for terminals and pages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
import numpy.typing as npt

_GAP = "  "


@dataclass(frozen=True, eq=False)
class Table:
    """A table of text.

    Args:
        name: What it is about, in a few words; unique in a report.
        caption: How to read it.
        corner: What the rows are.
        columns: Head of each column.
        rows: Name of each row -> its cells.
        shades: Of a heat map, for each cell 0 (lowest) to 1 (highest), NaN for none
            ``[rows, columns]``.

    Example:
        >>> print(Table("Areas", "", "annotator", ("px",), {"Ana": ["7"], "Bo": ["12"]}))
        Areas
          annotator  px
          Ana         7
          Bo         12
    """

    name: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    shades: npt.NDArray[np.float64] | None = None

    def __str__(self) -> str:
        """Columns of text, those after the first set flush right."""
        lines = [(self.corner, *self.columns), *((name, *row) for name, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            _GAP.join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            )
            for line in lines
        ]
        return "\n".join([self.name, *(f"  {line}".rstrip() for line in text)])


def metric_table(metrics: Mapping[str, SupportsFloat], prefix: str) -> str:
    """The metrics whose keys begin with ``prefix``, as lines of text, those of a kind on one.

    Example:
        >>> metrics = {"val/ged2": 0.25, "val/dice/Ana": 0.5, "val/dice/mean": 0.5, "loss": 1.0}
        >>> print(metric_table(metrics, "val/"))
        dice  Ana 0.500  mean 0.500
        ged2  0.250
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in sorted(metrics):
        if key.startswith(prefix):
            kind, _, member = key.removeprefix(prefix).partition("/")
            kinds[kind].append(f"{member} {float(metrics[key]):.3f}".strip())
    width = max(map(len, kinds), default=0)
    return "\n".join(f"{kind:<{width}}  {'  '.join(values)}" for kind, values in kinds.items())
