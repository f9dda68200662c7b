"""Tables of a comparison: mean and spread, paired tests over images; as Markdown, LaTeX and CSV.

A value is bold where its model has the best mean of its column, and a paired test over the test
images tells it from every other model: Wilcoxon's signed ranks on the scores of the images,
averaged over seeds, with p < 0.05 after Holm's correction.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tax_lightning.comparison.results import Selection
from tax_lightning.figures import DISAGREEMENT, SEGMENTATION, Figure
from tax_lightning.files import write_table, write_text

SIGNIFICANT = 0.05
MISSING = "-"
TESTED = (
    "Differences are tested over the test images: Wilcoxon's signed ranks on the scores averaged "
    "over seeds, corrected by Holm. Bold: best, and told from every other with p < 0.05. Columns "
    "without differences are not tested. What is found holds for further images of this kind."
)


@dataclass(frozen=True)
class Cell:
    """What a model reached.

    Args:
        mean: Over seeds or folds; NaN where it was not measured.
        spread: Sample standard deviation; NaN for a single value.
        count: Number of values.
        bold: Whether it is the best, with the support of the test.
        control: Mean of what it is compared with; NaN without.
    """

    mean: float = math.nan
    spread: float = math.nan
    count: int = 0
    bold: bool = False
    control: float = math.nan

    @classmethod
    def of(
        cls, values: Sequence[float], bold: bool = False, controls: Sequence[float] = ()
    ) -> "Cell":
        """The cell of these values, and of the values that they are compared with."""
        return cls(
            statistics.fmean(values) if values else math.nan,
            statistics.stdev(values) if len(values) > 1 else math.nan,
            len(values),
            bold,
            statistics.fmean(controls) if controls else math.nan,
        )

    def text(self, expected: int = 0) -> str:
        """The cell in Markdown, with a word where there are fewer values than expected.

        Example:
            >>> Cell.of([0.5, 0.7], controls=[0.5]).text(3)
            '0.600 ± 0.141 (0.500) [2 of 3]'
        """
        if not self.count:
            return MISSING
        found = f"{self.mean:.3f}"
        if self.count > 1:
            found += f" ± {self.spread:.3f}"
        found = f"**{found}**" if self.bold else found
        if not math.isnan(self.control):
            found += f" ({self.control:.3f})"
        return found + (f" [{self.count} of {expected}]" if self.count < expected else "")


def cells(
    found: Selection, names: Sequence[str], figures: Sequence[Figure]
) -> dict[str, dict[Figure, Cell]]:
    """Model -> figure -> cell, of the figures that some model has."""
    table: dict[str, dict[Figure, Cell]] = {name: {} for name in names}
    for figure in figures:
        every = {name: found.values(name, figure.key) for name in names}
        if not any(every.values()):
            continue
        best = best_model(found, figure, {n: v for n, v in every.items() if v})
        for name, values in every.items():
            controls = found.values(name, figure.control) if figure.control else []
            table[name][figure] = Cell.of(values, name == best, controls)
    return table


def best_model(
    found: Selection, figure: Figure, values: Mapping[str, Sequence[float]]
) -> str | None:
    """The model with the best mean, if the paired test tells it from every other."""
    if figure.score is None or len(values) < 2:
        return None
    first = max(values, key=lambda name: figure.better * statistics.fmean(values[name]))
    others = [name for name in values if name != first]
    chances = corrected([paired(found, figure.score, first, other)[1] for other in others])
    return first if max(chances) < SIGNIFICANT else None


@cache  # with up to 13 images, some of them level, the exact test takes a second
def paired(found: Selection, score: str, one: str, other: str) -> tuple[float, float]:
    """Mean difference of a score over the images that both have, and the p of the signed ranks.

    Returns:
        NaN and 1 where they have no image in common.
    """
    mine, theirs = found.scores(one, score), found.scores(other, score)
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        return math.nan, 1.0
    differences: NDArray[np.float64] = np.array([mine[image] - theirs[image] for image in common])
    from scipy.stats import wilcoxon  # takes a second

    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return float(differences.mean()), p


def corrected(chances: Sequence[float]) -> list[float]:
    """Holm's correction of several p, in their order (Holm, Scand. J. Statist. 1979).

    Example:
        >>> [round(p, 2) for p in corrected([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    largest, result = 0.0, [1.0] * len(chances)
    for rank, place in enumerate(np.argsort(chances)):
        largest = max(largest, min(1.0, chances[place] * (len(chances) - rank)))
        result[place] = largest
    return result


def from_first(
    found: Selection, names: Sequence[str], score: str
) -> dict[str, tuple[float, float]]:
    """Each other model -> its mean difference from the first, and the corrected p."""
    pairs = [paired(found, score, name, names[0]) for name in names[1:]]
    chances = corrected([p for _, p in pairs])
    means = (mean for mean, _ in pairs)
    return dict(zip(names[1:], zip(means, chances, strict=True), strict=True))


def differences(found: Selection, names: Sequence[str]) -> list[list[str]]:
    """Lines of a table: how far each other model is from the first, and the corrected p."""
    lines = [["Minus " + names[0]], *([name] for name in names[1:])]
    for figure in SEGMENTATION:
        if figure.score is None:
            continue
        pairs = from_first(found, names, figure.score).values()
        if all(math.isnan(mean) for mean, _ in pairs):
            continue
        lines[0].append(figure.head)
        for line, (mean, p) in zip(lines[1:], pairs, strict=True):
            shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            line.append(MISSING if math.isnan(mean) else f"{mean:+.3f}, {shown}")
    return lines


def caption(found: Selection, seeds: Sequence[int]) -> str:
    """How the values were made."""
    spread, folds = f"the seeds {', '.join(map(str, seeds))}", f"{found.folds} folds"
    if found.folds:
        spread = folds if len(seeds) == 1 else f"{spread}, each the mean of {folds}"
    images = len({row["image"] for row in found.image_rows})
    return (
        f"Mean ± standard deviation over {spread}; {images} test images. In brackets: the best "
        "constants, fitted to the same test masks."
    )


def made(found: Selection) -> str:
    """With how many runs, and with which code."""
    rows = found.rows
    hours = sum(float(r[f"{part}_seconds"] or 0) for r in rows for part in ("fit", "test")) / 3600
    code = ", ".join(sorted({row["code"] for row in rows}))
    return f"{len(rows)} runs, {hours:.1f} hours; code {code}."


def all_tables(
    found: Selection, names: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, list[list[str]]]]:
    """Captions and lines, the head first, of the tables of figures and of that of differences."""
    parts = []
    expected = found.folds if found.folds and len(seeds) == 1 else len(seeds)
    for figures in (SEGMENTATION, DISAGREEMENT):
        table = cells(found, names, figures)
        heads = list(dict.fromkeys(figure for row in table.values() for figure in row))
        if heads:
            lines = [["Model", *(figure.head for figure in heads)]]
            lines += [
                [name, *(row[f].text(expected) for f in heads)] for name, row in table.items()
            ]
            parts.append((caption(found, seeds), lines))
    if len(names) > 1:
        parts.append((TESTED, differences(found, names)))
    return parts


def markdown(found: Selection, names: Sequence[str], seeds: Sequence[int]) -> str:
    """All tables, and how they were made."""
    tables = all_tables(found, names, seeds)
    said = dict.fromkeys(text for text, _ in tables)
    return "\n\n".join([*(markdown_table(lines) for _, lines in tables), *said, made(found)]) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    r"""A Markdown table, its numbers to the right.

    Args:
        lines: The head, then the rows.

    Example:
        >>> print(markdown_table([["Model", "Dice"], ["a|b", "0.5"]]))
        | Model | Dice |
        |---|---:|
        | a\|b | 0.5 |
    """
    rows = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    text = [f"| {' | '.join(row)} |" for row in rows]
    text.insert(1, f"|---|{'---:|' * (len(lines[0]) - 1)}")
    return "\n".join(text)


def latex(found: Selection, names: Sequence[str], seeds: Sequence[int]) -> str:
    r"""The tables as LaTeX, each with its caption; they need ``\usepackage{booktabs}``."""
    parts = []
    for said, (head, *rows) in all_tables(found, names, seeds):
        body = [" & ".join(map(_latex, row)) for row in rows]
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex(said)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(map(_latex, head))} \\",
            r"\midrule",
            *(rf"{line} \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, f"% {made(found)}"]) + "\n"


def _latex(text: str) -> str:
    r"""Text of a table for LaTeX.

    Example:
        >>> print(_latex("**0.5 ± 0.1** of GED² ↓, 5 % of a_b"))
        \textbf{0.5 $\pm$ 0.1} of GED\textsuperscript{2} $\downarrow$, 5 \% of a\_b
    """
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    signs |= {"²": r"\textsuperscript{2}", "±": r"$\pm$", "<": "$<$"}
    signs |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    plain = re.sub("|".join(map(re.escape, signs)), lambda sign: signs[sign[0]], text)
    return re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", plain)


def write_tables(
    folder: Path, found: Selection, names: Sequence[str], seeds: Sequence[int]
) -> list[Path]:
    """Write ``table.md``, ``table.tex`` and ``table.csv``; returns the files."""
    texts = {"table.md": markdown, "table.tex": latex}
    for file, make in texts.items():
        write_text(folder / file, make(found, names, seeds))
    against = {
        (name, figure): (f"{mean:.6g}", f"{p:.4g}")
        for figure in SEGMENTATION
        if figure.score
        for name, (mean, p) in from_first(found, names, figure.score).items()
    }
    rows: list[Sequence[object]] = []
    for name, row in cells(found, names, SEGMENTATION + DISAGREEMENT).items():
        for figure, cell in row.items():
            numbers = ("" if math.isnan(v) else f"{v:.6g}" for v in (cell.mean, cell.spread))
            beside = against.get((name, figure), ("", ""))
            rows.append([name, figure.key, *numbers, cell.count, int(cell.bold), *beside])
    head = ["model", "figure", "mean", "standard_deviation", "values", "bold"]
    write_table(folder / "table.csv", [*head, f"minus {names[0]}", "p"], rows)
    return [folder / file for file in (*texts, "table.csv")]
