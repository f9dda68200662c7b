"""Is the explained result as good as that of an ordinary network? Train both, with each seed.

    python -m experiments.trust.plain --jobs 2 --seeds 0 1 2

TAX and an ordinary network of the same architecture (``Consensus``) are trained with the same
configuration: data, augmentation, batch size, epochs, optimizer, schedule of the learning rate. The
ordinary one is trained on the reference alone. Of each, the checkpoint with the best fused Dice on
the validation images is tested. ``plain.csv`` gets a row for each run. At the end, or at once with
``--only_tables``, two tables are printed: both networks side by side, and every metric of who and
why beside its control.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.runs import REPO, Row, Run, carry_out, fit_and_test
from experiments.tables import Rows, by_seed, cell, commits, stored, study_parser, table, values

HERE = Path(__file__).resolve().parent
DICE = "fused_dice/mean"
OF_TAX = {
    "Who @expert": "who_accuracy_expert",
    "Label-only ceiling": "who_ceiling_expert",
    "Chance": "who_chance_expert",
    "Who ECE": "who_ece_expert",
    "Integrity, min": "integrity_min",
}
COLUMNS = {
    "Fused Dice, TAX": "tax",
    "Fused Dice, plain": "plain",
    "Difference": "difference",
    **OF_TAX,
    "Fit of TAX, min": "tax_minutes",
    "Fit of plain, min": "plain_minutes",
}
# Title of a row -> the metric, and its control where one makes sense.
CONTROLLED = {
    "who accuracy @expert": ("who_accuracy_expert", "who_accuracy_expert_exchanged"),
    "who accuracy @D1": ("who_accuracy_d1", "who_accuracy_d1_exchanged"),
    "agreement lift": ("who_agreement_lift", "who_agreement_lift_exchanged"),
    "who ECE @expert": ("who_ece_expert", "who_ece_expert_exchanged"),
    "who ECE @D1": ("who_ece_d1", "who_ece_d1_exchanged"),
    "entropy of w, disputed pixels": ("who_entropy_disputed", None),
    "integrity, smallest": ("integrity_min", None),
    "patch insertion, 16 px": ("insertion_16", "insertion_16_random"),
    "patch insertion, 32 px": ("insertion_32", "insertion_32_random"),
    "patch insertion, 64 px": ("insertion_64", "insertion_64_random"),
}


def make_runs(config: Path, seeds: Sequence[int]) -> list[Run]:
    """Both networks with each seed."""
    explained = ("--model.init_args.explanation_metrics=true",)
    return [
        run
        for seed in seeds
        for run in (
            Run(config, "tax", seed, test=explained),
            Run(config, "plain", seed, ("--model=Consensus",)),
        )
    ]


def check_config(config: Path) -> None:
    """Both networks must be trained for the same.

    Raises:
        ValueError: If TAX is to be trained for anything but the given reference by cross-entropy.
    """
    said = yaml.safe_load(config.read_text())["model"]["init_args"]
    found = said.get("reference", "majority"), said.get("segmentation_loss", "ce")
    if found != ("given", "ce"):
        raise ValueError(
            f"{config.name}: reference and segmentation_loss are {found}, expected given and ce: "
            "that is what the ordinary network is trained for."
        )


def values_of_seed(rows: Sequence[Row]) -> dict[str, float]:
    """The values of a seed, by the keys of `COLUMNS`; one of the networks may be missing."""
    found: dict[str, float] = {}
    for row in rows:
        found[row["name"]] = float(row[DICE])
        found[f"{row['name']}_minutes"] = float(row["fit_seconds"]) / 60
        if row["name"] == "tax":
            found |= {key: float(row[key]) for key in OF_TAX.values() if key in row}
    if "tax" in found and "plain" in found:
        found["difference"] = found["tax"] - found["plain"]
    return found


def tables(rows: Rows) -> str:
    """Both networks side by side, every metric beside its control, and the commits."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    found = {seed: values_of_seed([row for row in rows if row["seed"] == seed]) for seed in seeds}
    lines = [
        [title, *(cell(values(rows, "tax", key or ""), len(seeds)) for key in keys)]
        for title, keys in CONTROLLED.items()
    ]
    return "\n\n".join(
        [
            by_seed("Seed", found, COLUMNS),
            table("TAX", lines, ["test images", "control"]),
            f"Commit {commits(rows)}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test and print; returns the exit status of `carry_out`, 1 where nothing is printed."""
    parser = study_parser(__doc__, HERE / "plain.csv")
    quickstart = REPO / "experiments" / "quickstart.yaml"
    parser.add_argument("--config", type=Path, default=quickstart, help="what to train")
    options = parser.parse_args(arguments)
    config, status = options.config.resolve(), 0
    try:
        check_config(config)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not options.only_tables:
        runs = make_runs(config, options.seeds)
        status = carry_out(options.table, runs, fit_and_test, options.jobs)
    rows = stored(options.table, config.stem, options.seeds)
    if not rows:
        return status or 1
    print(tables(rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
