"""The figures of a test that come first: their titles, and which direction is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import SupportsFloat

from tax_lightning.tables import Table

HIGHER, LOWER = 1, -1


@dataclass(frozen=True)
class Figure:
    """A column.

    Args:
        title: Its head.
        key: Of the figure in a test, without ``test/``.
        better: `HIGHER` or `LOWER`.
        score: Of single images, where there is one.
        control: Key of what the figure is compared with, in brackets behind it.
    """

    title: str
    key: str
    better: int
    score: str | None = None
    control: str | None = None

    @property
    def head(self) -> str:
        """The title, and which direction is better."""
        return f"{self.title} {'↑' if self.better > 0 else '↓'}"


SEGMENTATION = (
    Figure("Annotator Dice", "dice/mean", HIGHER, score="dice"),
    Figure("Fused Dice", "fused_dice/mean", HIGHER, score="fused_dice"),
    Figure("GED²", "ged2", LOWER, score="ged2"),
    Figure("GED², samples", "samples/ged2", LOWER, score="samples/ged2"),
    Figure("Dice match", "dice_match", HIGHER),
    Figure("Dice match, samples", "samples/dice_match", HIGHER),
    Figure("ECE annotators", "ece_annotators", LOWER),
)
DISAGREEMENT = (
    Figure("AUROC of dispute", "dispute_auroc", HIGHER),
    Figure("Brier of dissent (constants)", "dissent_brier", LOWER, control="dissent_brier_table"),
    Figure("Within-pixel AUC (constants)", "within_auc", HIGHER, control="within_auc_table"),
    Figure("Votes error (constant)", "votes_error", LOWER, control="votes_error_constant"),
    Figure("Who @expert (chance)", "who_accuracy_expert", HIGHER, control="who_chance_expert"),
    Figure("Who ECE", "who_ece_expert", LOWER),
)


def short_table(metrics: Mapping[str, SupportsFloat], prefix: str = "test/") -> str:
    """Those figures that are among the metrics, as lines of text; "" without any.

    Example:
        >>> metrics = {"test/ged2": 0.25, "test/within_auc": 0.7, "test/within_auc_table": 0.5}
        >>> print(short_table(metrics))
        test
          figure                          value  (control)
          GED² ↓                          0.250
          Within-pixel AUC (constants) ↑  0.700    (0.500)
    """

    def text(key: str | None, form: str) -> str:
        found = metrics.get(f"{prefix}{key}")
        return "" if found is None else form.format(float(found))

    rows = {
        figure.head: [text(figure.key, "{:.3f}"), text(figure.control, "({:.3f})")]
        for figure in SEGMENTATION + DISAGREEMENT
        if f"{prefix}{figure.key}" in metrics
    }
    name = prefix.strip("/")
    return str(Table(name, "", "figure", ("value", "(control)"), rows)) if rows else ""
