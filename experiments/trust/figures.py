"""How far who and why can be trusted: every figure beside its control, over runs of several seeds.

    python experiments/trust/figures.py \
        --of synthetic experiments/trust/results/plain/quickstart/tax/seed*.json \
        --of cells runs/bubil_mini/seed*/metrics.csv

Each file is what ``plain.py`` leaves of a run of TAX, or what a ``CSVLogger`` wrote in a
``tax test`` with ``--model.init_args.explanation_metrics=true``. Prints a Markdown table, two
columns for each ``--of``: mean and sample deviation of the figure, and of its control.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from resumable import RunFailedError, make_parser, read_metrics
from runner import listed

# Title of a row -> the figure, and its control where one makes sense.
FIGURES = {
    "who accuracy @expert": ("who_accuracy_expert", "who_accuracy_expert_shuffled"),
    "who accuracy @D1": ("who_accuracy_d1", "who_accuracy_d1_shuffled"),
    "agreement lift": ("who_agreement_lift", "who_agreement_lift_shuffled"),
    "who ECE @expert": ("who_ece_expert", "who_ece_expert_shuffled"),
    "who ECE @D1": ("who_ece_d1", "who_ece_d1_shuffled"),
    "Brier score of w": ("who_brier", "who_brier_shuffled"),
    "entropy of w, disputed pixels": ("who_entropy_disputed", None),
    "necessity": ("who_necessity", "who_necessity_shuffled"),
    "sufficiency": ("who_sufficiency", "who_sufficiency_shuffled"),
    "deletion AUROC": ("who_deletion_auroc", "who_deletion_auroc_shuffled"),
    "locality": ("who_locality", "who_locality_shuffled"),
    "kernel deletion area": ("why_deletion_area", "why_deletion_area_random"),
    "sufficiency of the first kernel": ("why_sufficiency_1", "why_sufficiency_1_random"),
    "explanation size, kernels": ("why_size", None),
    "integrity, smallest": ("integrity_min", None),
    "purity, class": ("purity/class", "purity_shuffled/class"),
    "AMI, class": ("purity_ami/class", "purity_ami_shuffled/class"),
    "purity, event": ("purity/event", "purity_shuffled/event"),
    "AMI, event": ("purity_ami/event", "purity_ami_shuffled/event"),
    "patch insertion, 16 px": ("insertion_16", "insertion_16_random"),
    "patch insertion, 32 px": ("insertion_32", "insertion_32_random"),
    "patch insertion, 64 px": ("insertion_64", "insertion_64_random"),
    "stability, first kernel": ("stability_top_kernel", "stability_top_kernel_shuffled"),
    "stability, change of w": ("stability_who_distance", "stability_who_distance_shuffled"),
    "stability, IoU of who maps": ("stability_who_iou", "stability_who_iou_shuffled"),
    "usage": ("prototype_usage/mean", None),
    "pruned prototypes": ("prototype_pruned/mean", None),
    "assignment information, nats": ("assignment_information", None),
    "largest cosine of two prototypes": ("prototype_max_cosine", None),
}


def read(path: Path) -> dict[str, float]:
    """Test metrics of a run, by key.

    Raises:
        ValueError: If the file holds none of the figures.
    """
    found = (
        json.loads(path.read_text())["metrics"] if path.suffix == ".json" else read_metrics(path)
    )
    if not any(f"test/{figure}" in found for figure, _ in FIGURES.values()):
        raise ValueError(
            f"{path} holds no figure of who and why, expected the metrics of a tax test with "
            "--model.init_args.explanation_metrics=true."
        )
    return dict(found)


def make_table(columns: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The table.

    Args:
        columns: What it is about -> metrics of each run.

    Example:
        >>> runs = [{"test/who_necessity": 0.5, "test/who_necessity_shuffled": 0.0}] * 2
        >>> print(make_table({"scenes": runs}).splitlines()[9])
        | necessity | 0.500 ± 0.000 | 0.000 ± 0.000 |
    """
    titles = [title for name in columns for title in (name, "its control")]
    rows = {
        title: [_values(runs, key) for runs in columns.values() for key in keys]
        for title, keys in FIGURES.items()
    }
    return listed("figure", rows, titles, max(len(runs) for runs in columns.values()))


def _values(runs: Sequence[Mapping[str, float]], key: str | None) -> list[float]:
    return [run[f"test/{key}"] for run in runs if f"test/{key}" in run]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status.
    """
    parser = make_parser(__doc__)
    parser.add_argument(
        "--of", nargs="+", action="append", required=True, metavar="X", help="a name, then files"
    )
    columns: dict[str, list[dict[str, float]]] = {}
    for name, *files in parser.parse_args(arguments).of:
        try:
            columns[name] = [read(Path(file)) for file in files]
        except (OSError, ValueError, RunFailedError) as error:
            parser.error(str(error))
        if not files:
            parser.error(f"--of {name}: expected a name and at least one file.")
    print(make_table(columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
