"""Make tables, a tidy file and figures of what ``compare.py`` has stored.

    python experiments/benchmark/report.py --csv comparison.csv --figures . > comparison.md

A value is bold where its method is the best of its column and a paired test over the test images
says so: Wilcoxon's signed ranks against each other method, on the scores of the images averaged
over seeds, with p < 0.05 after Holm's correction.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scipy.stats import wilcoxon

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from compare import FOLDERS
from dots import Panel, Row, draw
from methods import METHODS, TAX
from resumable import (
    MISSING,
    Results,
    add_seeds,
    cell,
    make_parser,
    read_results,
    table,
    values,
    whole_file,
)

HERE = Path(__file__).resolve().parent
SIGNIFICANT = 0.05
HIGHER, LOWER = 1, -1

# Title of a column -> key of the metric, and which direction is better.
COLUMNS = {
    "Annotator Dice": ("test/dice/mean", HIGHER),
    "Fused Dice": ("test/fused_dice/mean", HIGHER),
    "GED²": ("test/ged2", LOWER),
    "Dice soft": ("test/dice_soft/mean", HIGHER),
    "Dice max": ("test/dice_max/mean", HIGHER),
    "Dice match": ("test/dice_match", HIGHER),
    "NCC": ("test/ncc", HIGHER),
    "Consistency error": ("test/consistency_error", LOWER),
    "ECE annotators": ("test/ece_annotators", LOWER),
}
# Key of the metric -> name of the score of single images, where there is one.
OF_IMAGES = {
    "test/dice/mean": "dice",
    "test/fused_dice/mean": "fused_dice",
    "test/ged2": "ged2",
}
EXPLANATION = {
    "Who @expert": "test/who_accuracy_expert",
    "Label-only ceiling": "test/who_ceiling_expert",
    "Who ECE": "test/who_ece_expert",
    "Agreement lift": "test/who_agreement_lift",
    "Necessity": "test/who_necessity",
    "Its control": "test/who_necessity_shuffled",
    "Expert outvoted": "test/who_needed_expert",
    "Purity": "test/purity/class",
    "AMI": "test/purity_ami/class",
}


def image_scores(results: Results, method: str, score: str) -> dict[str, float]:
    """The score of each image that every seed has, averaged over seeds."""
    by_seed = [run["images"] for run in results.get(method, {}).values()]
    every = [
        {name: scores[score] for name, scores in images.items() if score in scores}
        for images in by_seed
    ]
    common = set.intersection(*map(set, every)) if every else set()
    return {name: statistics.fmean(images[name] for images in every) for name in sorted(common)}


def is_supported(best: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> bool:
    """Whether a paired test over images tells one method from each of the others.

    Args:
        best: Score of each image.
        others: The same of the other methods; none of them is no support.

    Example:
        >>> ones, halves = ({str(i): value for i in range(9)} for value in (1.0, 0.5))
        >>> is_supported(ones, [halves]), is_supported(ones, [ones])
        (True, False)
    """
    chances = sorted(_chance(best, other) for other in others)
    return bool(chances) and all(
        chance * (len(chances) - rank) < SIGNIFICANT for rank, chance in enumerate(chances)
    )


def _chance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The p of Wilcoxon's signed-rank test; 1 where no image differs."""
    differences = [one[name] - other[name] for name in one.keys() & other.keys()]
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def best_method(results: Results, key: str, direction: int) -> str | None:
    """The method with the best mean, where the paired test supports it."""
    means = {
        name: direction * statistics.fmean(found)
        for name in results
        if (found := values(results, name, key))
    }
    score = OF_IMAGES.get(key)
    if score is None or len(means) < 2:
        return None
    first = max(means, key=lambda name: means[name])
    own, *others = (
        image_scores(results, name, score) for name in (first, *(means.keys() - {first}))
    )
    return first if is_supported(own, others) else None


def comparison(results: Results, seeds: Sequence[int]) -> str:
    """The table of a data set: a row a method."""
    best = {key: best_method(results, key, way) for key, way in COLUMNS.values()}

    def text(method: str, key: str) -> str:
        found = cell(values(results, method, key), len(seeds))
        return f"**{found}**" if best[key] == method and found != MISSING else found

    rows = [[name, *(text(name, key) for key, _ in COLUMNS.values())] for name in results]
    return table("Method", rows, list(COLUMNS))


def explanation(results: Results, seeds: Sequence[int]) -> str:
    """The table of who: the methods that say it, and what there is of it."""
    columns = {
        title: key
        for title, key in EXPLANATION.items()
        if any(values(results, name, key) for name in results)
    }
    rows = [
        [name, *(cell(values(results, name, key), len(seeds)) for key in columns.values())]
        for name in results
        if METHODS[name].says_who
    ]
    return table("Method", rows, list(columns)) if rows and columns else ""


def tidy(everything: Mapping[str, Results]) -> Iterator[tuple[str, str, int, str, float]]:
    """Every metric of every run: data set, method, seed, metric, value."""
    for data, results in everything.items():
        for method, runs in results.items():
            for seed, run in runs.items():
                for metric, value in run["metrics"].items():
                    yield data, method, seed, metric, value


def draw_figure(path: Path, everything: Mapping[str, Results], key: str, hint: str) -> None:
    """A dot plot: a row a method, a panel a data set; none where nothing was measured."""
    panels = []
    for data, results in everything.items():
        points = {name: found for name in results if (found := values(results, name, key))}
        if points:
            panels.append(Panel(data, hint, points))
    if panels:
        draw([Row(name, name) for name in METHODS], panels, baseline=TAX).save(path)


def text_of(everything: Mapping[str, Results], seeds: Sequence[int]) -> str:
    """All tables, and what they were made with."""
    parts = []
    for data, results in everything.items():
        parts += [f"### {data}", comparison(results, seeds), explanation(results, seeds)]
    runs = [
        run for results in everything.values() for by in results.values() for run in by.values()
    ]
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    minutes = sum(run["seconds"] for run in runs) / 60
    parts.append(
        f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; {len(runs)} runs, "
        f"{minutes:.0f} minutes of one thread each; commit {commits}."
    )
    return "\n\n".join(part for part in parts if part)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_seeds(parser)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="of compare.py")
    parser.add_argument("--csv", type=Path, help="tidy file to write")
    parser.add_argument("--figures", type=Path, help="folder for annotator_dice.png and ged2.png")
    return parser


def _write_csv(path: Path, everything: Mapping[str, Results]) -> None:
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "method", "seed", "metric", "value"])
        writer.writerows(tidy(everything))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; write the file and the figures.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0, or 1 where there are no results.
    """
    options = _parser().parse_args(arguments)
    seeds = list(dict.fromkeys(options.seeds))
    found = {data: read_results(options.results / data, METHODS, seeds) for data in FOLDERS}
    everything = {data: results for data, results in found.items() if results}
    if not everything:
        print(f"no results in {options.results}: run compare.py first", file=sys.stderr)
        return 1
    print(text_of(everything, seeds))
    if options.csv is not None:
        _write_csv(options.csv, everything)
    if options.figures is not None:
        for name, key, hint in (
            ("annotator_dice", "test/dice/mean", "higher is better"),
            ("ged2", "test/ged2", "lower is better"),
        ):
            draw_figure(options.figures / f"{name}.png", everything, key, hint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
