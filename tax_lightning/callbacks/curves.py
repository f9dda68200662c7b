"""The course of each annotator's metrics over a run, kept together by metric."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PREFIX = "val/"


class Curves:
    """What validation said of each annotator, by metric and name.

    Attributes:
        by_metric: for each metric and annotator the epochs and values, ``{"dice": {"Ana": [(0,
            0.5), ...]}}``.

    Example:
        >>> curves = Curves()
        >>> curves.add(0, {"val/dice/Ana": 0.5, "val/dice/mean": 0.5, "val/loss": 1.0}, ["Ana"])
        >>> curves.by_metric
        {'dice': {'Ana': [(0, 0.5)]}}
    """

    def __init__(self) -> None:
        self.by_metric: dict[str, dict[str, list[tuple[int, float]]]] = {}

    def add(self, epoch: int, metrics: Mapping[str, Any], annotators: Sequence[str]) -> None:
        """Take from all metrics those of single annotators.

        Args:
            epoch: that they belong to; an epoch that is there already is replaced.
            metrics: values by key, such as ``"val/dice/Ana"``.
            annotators: names.
        """
        for key, value in metrics.items():
            metric, _, name = key.removeprefix(_PREFIX).partition("/")
            if key.startswith(_PREFIX) and name in annotators:
                line = self.by_metric.setdefault(metric, {}).setdefault(name, [])
                line[:] = [*(point for point in line if point[0] != epoch), (epoch, float(value))]

    def layout(self) -> dict[str, dict[str, list[Any]]]:
        """Which of the scalars logged alone belong in one chart, in TensorBoard's form."""
        charts = {
            metric: ["Multiline", [f"^{re.escape(f'{_PREFIX}{metric}/{name}')}$" for name in lines]]
            for metric, lines in self.by_metric.items()
        }
        return {"by annotator": charts}

    def write(self, path: Path) -> None:
        """Write all of it as a table of comma-separated values, a line for each value.

        Args:
            path: of the file.

        Raises:
            OSError: if it cannot be written.
        """
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("metric", "annotator", "epoch", "value"))
            for metric, lines in self.by_metric.items():
                for name, line in lines.items():
                    table.writerows((metric, name, epoch, value) for epoch, value in line)
