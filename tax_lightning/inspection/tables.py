"""The counts as tables, by annotator and by group of annotators."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tax_lightning.data.pixels import size_text
from tax_lightning.data.splits import SPLITS
from tax_lightning.inspection.audit import ABSENT, DRAWN, EMPTY, Array, Audit, Counts
from tax_lightning.tables import Table
from tax_lightning.tendencies import tendency_table


def tables(audit: Audit) -> list[Table]:
    """All tables of a report.

    Args:
        audit: The counts.

    Example:
        >>> from tax_lightning.simulation import SyntheticDataModule
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
        yield tendency_table(
            {"masks": audit.tendencies}, audit.annotators, audit.classes, audit.groups
        )
    for of in (audit.annotators, audit.groups) if audit.groups else (audit.annotators,):
        who = "annotators" if of is audit.annotators else "groups of annotators"
        if len(of) > 1:
            yield _matrix(
                _of_pairs(audit, audit.dice, of),
                _together(audit, of),
                of,
                f"Dice of each two {who}",
                "Dice averaged over the foreground classes present in either mask, then over "
                "images. Images that both left empty do not count.",
            )
            yield _matrix(
                _of_pairs(audit, audit.kappa, of),
                _together(audit, of),
                of,
                f"Cohen's kappa of each two {who}",
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
        _rows(audit, [[f"{value}" for value in _and_sums(audit, c)] for c in columns]),
    )


def _drawing(audit: Audit) -> Table:
    columns = {
        "relative area": _numbers(_and_means(audit, audit.relative_area)),
        "objects": _numbers(_and_means(audit, audit.objects), 1),
        "object size": _numbers(_and_means(audit, audit.object_size), 0),
        "Dice with others": _numbers(_and_means(audit, audit.mean_with_others(audit.dice))),
        "kappa with others": _numbers(_and_means(audit, audit.mean_with_others(audit.kappa))),
    }
    if audit.has_reference:
        columns["Dice with reference"] = _numbers(_and_means(audit, audit.reference_dice))
    return Table(
        "How annotators draw",
        "Relative area: foreground over the mean of the image's annotators, mean over images with "
        "foreground. Objects: connected pieces in a mask that is not empty, mean. Object size: "
        "their mean area in pixels. Dice and kappa: mean over the other annotators.",
        "annotator",
        tuple(columns),
        _rows(audit, list(columns.values())),
    )


def _shares(audit: Audit) -> Table:
    shares = audit.class_shares
    columns = {
        name: [_percent(value) for value in _and_means(audit, shares[:, index])]
        for index, name in enumerate(audit.classes)
    }
    if audit.ignored.any():
        total = audit.ignored + audit.class_pixels.sum(1)
        ignored = audit.ignored / np.maximum(total, 1)
        columns["not labelled"] = [_percent(value) for value in _and_means(audit, ignored)]
    return Table(
        "Class shares",
        "Share of each class in the pixels that an annotator labelled.",
        "annotator",
        tuple(columns),
        _rows(audit, list(columns.values())),
    )


def _of_pairs(audit: Audit, values: Array, of: Collection[str]) -> Array:
    """Values of pairs of different annotators, or their means over pairs of groups."""
    others = np.where(np.eye(len(values), dtype=np.bool_), np.nan, values)
    if of is audit.annotators:
        return others
    member = np.array([[a in group for a in audit.annotators] for group in audit.groups.values()])
    sums, counts = (
        member @ pairs @ member.T for pairs in (np.nan_to_num(others), 1.0 * ~np.isnan(others))
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _together(audit: Audit, of: Collection[str]) -> Counts:
    """How many images two annotators, or somebody of two groups, labelled both."""
    if of is audit.annotators:
        return audit.together
    labelled = np.array([list(row.status) for row in audit.images]) != ABSENT
    there = np.stack([labelled[:, members].any(1) for members in _members(audit)]).astype(np.int64)
    return np.asarray(there @ there.T)


def _matrix(
    others: Array, together: Counts, names: Collection[str], name: str, caption: str
) -> Table:
    """Values of pairs; behind them the number of images, where it is not the same for all."""
    counts = set(together[~np.isnan(others)].tolist())
    varied = len(counts) > 1
    if varied:
        caption += " In brackets: the number of images that both labelled."
    elif counts:
        caption += f" Both labelled {counts.pop()} images."
    cells = [
        [
            "·" if row == column and np.isnan(value) else _number(value) + f" ({n})" * varied
            for column, (value, n) in enumerate(zip(line, together[row], strict=True))
        ]
        for row, line in enumerate(others)
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
        tuple(names),
        dict(zip(names, cells, strict=True)),
        shades,
    )


def _rows(audit: Audit, columns: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Cells by annotator, and then by group."""
    return dict(zip([*audit.annotators, *audit.groups], zip(*columns, strict=True), strict=True))


def _and_sums(audit: Audit, values: npt.NDArray[Any]) -> list[Any]:
    """Values of annotators ``[N]``, and their sums over groups."""
    return [*values, *(values[members].sum() for members in _members(audit))]


def _and_means(audit: Audit, values: Array) -> list[float]:
    """Values of annotators ``[N]``, and their means over groups, without what is not known."""
    known = [values[members][~np.isnan(values[members])] for members in _members(audit)]
    return [*values, *(float(one.mean()) if one.size else np.nan for one in known)]


def _members(audit: Audit) -> list[list[int]]:
    return [[audit.annotators.index(name) for name in names] for names in audit.groups.values()]


def _numbers(values: npt.ArrayLike, digits: int = 2) -> list[str]:
    return [_number(value, digits) for value in np.asarray(values).tolist()]


def _number(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1%}"
