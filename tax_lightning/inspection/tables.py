"""The counts as tables of text, the same for the terminal and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tax_lightning.data.files import size_text
from tax_lightning.data.splits import SPLITS
from tax_lightning.inspection.audit import ABSENT, DRAWN, EMPTY, Array, Audit

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
    """

    name: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    shades: Array | None = None

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


def tables(audit: Audit) -> list[Table]:
    """All tables of a report.

    Args:
        audit: The counts.

    Example:
        >>> from tax_lightning.data import SyntheticDataModule
        >>> from tax_lightning.inspection.audit import audit
        >>> data = SyntheticDataModule(train_samples=2, val_samples=1, test_samples=0)
        >>> print(tables(audit(data))[0])
        Splits
          split  images  groups  masks  empty masks
          train       2       –     10            0
          val         1       –      5            0
          test        0       –      0            0
    """
    return list(_all_tables(audit))


def _all_tables(audit: Audit) -> Iterator[Table]:
    yield _splits(audit)
    yield _coverage(audit)
    yield _drawing(audit)
    yield _shares(audit)
    if len(audit.annotators) > 1:
        yield _matrix(
            audit,
            audit.dice,
            "Dice of each two annotators",
            "Dice averaged over the foreground classes present in either mask, then over images. "
            "Images that both left empty do not count.",
        )
        yield _matrix(
            audit,
            audit.kappa,
            "Cohen's kappa of each two annotators",
            "Agreement beyond chance over all classes and all pixels that both labelled.",
        )


def _splits(audit: Audit) -> Table:
    rows = {}
    for split in SPLITS:
        images = audit.rows(split)
        groups = {row.place.group for row in images if row.place.group}
        drawn, empty = audit.masks(DRAWN, split).sum(), audit.masks(EMPTY, split).sum()
        masks = (f"{drawn + empty}", f"{empty}")
        rows[split] = (f"{len(images)}", f"{len(groups) or '–'}", *masks)
    sizes = Counter(row.size for row in audit.images)
    shown = ", ".join(f"{size_text(size)} ({count})" for size, count in sizes.most_common(3))
    more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    return Table(
        "Splits",
        f"Size of the images in pixels, and how many have it: {shown}{more}. A group is a patient, "
        "slide or scan that stays whole; – where none is set.",
        "split",
        ("images", "groups", "masks", "empty masks"),
        rows,
    )


def _coverage(audit: Audit) -> Table:
    shown = [split for split in SPLITS if audit.rows(split)]
    columns = [len(audit.rows(split)) - audit.masks(ABSENT, split) for split in shown]
    columns += [audit.masks(DRAWN), audit.masks(EMPTY), audit.masks(ABSENT)]
    return Table(
        "Coverage",
        "Images that each annotator labelled, by split; then, of all images, those with "
        "foreground, with an empty mask, and without a mask.",
        "annotator",
        (*shown, "with foreground", "empty", "missing"),
        _by_annotator(audit, [[f"{value}" for value in column] for column in columns]),
    )


def _drawing(audit: Audit) -> Table:
    columns = {
        "relative area": _numbers(audit.relative_area),
        "objects": _numbers(audit.objects, 1),
        "object size": _numbers(audit.object_size, 0),
        "Dice with others": _numbers(audit.mean_with_others(audit.dice)),
        "kappa with others": _numbers(audit.mean_with_others(audit.kappa)),
    }
    if audit.has_reference:
        columns["Dice with reference"] = _numbers(audit.reference_dice)
    return Table(
        "How annotators draw",
        "Relative area: foreground over the mean of the image's annotators, mean over images with "
        "foreground. Objects: connected pieces in a mask that is not empty, mean. Object size: "
        "their mean area in pixels. Dice and kappa: mean over the other annotators.",
        "annotator",
        tuple(columns),
        _by_annotator(audit, list(columns.values())),
    )


def _shares(audit: Audit) -> Table:
    shares = audit.class_shares
    columns = {
        name: [_percent(value) for value in shares[:, index]]
        for index, name in enumerate(audit.classes)
    }
    if audit.ignored.any():
        total = audit.ignored + audit.class_pixels.sum(1)
        columns["not labelled"] = [_percent(v) for v in audit.ignored / np.maximum(total, 1)]
    return Table(
        "Class shares",
        "Share of each class in the pixels that an annotator labelled.",
        "annotator",
        tuple(columns),
        _by_annotator(audit, list(columns.values())),
    )


def _matrix(audit: Audit, values: Array, name: str, caption: str) -> Table:
    others = np.where(np.eye(len(values), dtype=np.bool_), np.nan, values)
    cells = [
        ["·" if row == column else _number(value) for column, value in enumerate(line)]
        for row, line in enumerate(values)
    ]
    defined = others[~np.isnan(others)]
    shades = None
    if defined.size:
        low, high = defined.min(), defined.max()
        shades = (others - low) / (high - low) if high > low else others * 0 + 0.5
        caption += f" From {low:.2f} (faint) to {high:.2f} (strong)."
    return Table(
        name,
        caption,
        "annotator",
        audit.annotators,
        dict(zip(audit.annotators, cells, strict=True)),
        shades,
    )


def _by_annotator(audit: Audit, columns: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return dict(zip(audit.annotators, zip(*columns, strict=True), strict=True))


def _numbers(values: npt.ArrayLike, digits: int = 2) -> list[str]:
    return [_number(value, digits) for value in np.asarray(values).tolist()]


def _number(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1%}"
