"""Is the explained result as good as that of an ordinary network? Train both, with each seed.

    python experiments/trust/plain.py --jobs 2 --seeds 0 1 2

TAX and an ordinary network of the same architecture (``Consensus``) are trained with the
same configuration: data, augmentation, batch size, epochs, optimizer, schedule of the learning
rate. The ordinary one is trained on the reference alone. Of each, the checkpoint with the best
fused Dice on the validation images is tested. Each run leaves one file,
``OUT/CONFIG/{tax,plain}/seedK.json``; a run whose file exists is not repeated. At the end, or at
once with ``--table``, the table is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from resumable import REPO, Run, fit_and_test
from runner import FIT_OPTIONS, HERE, OPTIONS, carry_out_tests, make_test_parser, summary

NETWORKS = ("tax", "plain")
PLAIN = ("model", "Consensus")
DICE = "test/fused_dice/mean"
OF_TAX = {
    "Who @expert": "test/who_accuracy_expert",
    "Label-only ceiling": "test/who_ceiling_expert",
    "Chance": "test/who_chance_expert",
    "Who ECE": "test/who_ece_expert",
    "Integrity, min": "test/integrity_min",
    "Dead prototypes": "test/prototype_pruned/mean",
}
COLUMNS = {
    "Fused Dice, TAX": "tax",
    "Fused Dice, plain": "plain",
    "Difference": "difference",
    **OF_TAX,
    "Fit of TAX, min": "tax_minutes",
    "Fit of plain, min": "plain_minutes",
}

Results = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""What is stored of each run, by seed and network."""


def make_runs(config: Path, seeds: Sequence[int], out: Path) -> list[Run]:
    """Both networks with each seed."""
    flags = {"tax": (), "plain": (PLAIN,)}
    return [
        Run(config, name, seed, out, flags[name], OPTIONS) for seed in seeds for name in NETWORKS
    ]


def check_config(config: Path) -> None:
    """Both networks must be trained for the same.

    Raises:
        ValueError: If TAX is to be trained for anything but the given reference by cross-entropy.
    """
    said = yaml.safe_load(config.read_text())["model"]["init_args"]
    for option, value, default in (
        ("reference", "given", "majority"),
        ("segmentation_loss", "ce", "ce"),
    ):
        found = said.get(option, default)
        if found != value:
            raise ValueError(
                f"{config.name}: model.init_args.{option} is {found}, expected {value}, for which "
                "the ordinary network is trained."
            )


async def measure(run: Run, scratch: Path) -> dict[str, Any]:
    """Train and test a network."""
    # The configuration beats the checkpoint: its model must be said again.
    test_options = [f"--{flag}={value}" for flag, value in run.flags]
    if run.name == "tax":
        test_options.append("--model.init_args.explanation_metrics=true")
    return await fit_and_test(
        run,
        scratch,
        fit_options=FIT_OPTIONS,
        test_options=test_options,
    )


def read_results(runs: Sequence[Run]) -> Results:
    """The results there are."""
    results: dict[int, dict[str, Any]] = {}
    for run in runs:
        if run.result.exists():
            results.setdefault(run.seed, {})[run.name] = json.loads(run.result.read_text())
    return results


def row(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The values of a seed, by the keys of `COLUMNS`.

    Args:
        results: What is stored, by network; one may be missing.
    """
    values: dict[str, float] = {}
    for name, stored in results.items():
        values[name] = stored["metrics"][DICE]
        values[f"{name}_minutes"] = stored["seconds"]["fit"] / 60
    if all(name in values for name in NETWORKS):
        values["difference"] = values["tax"] - values["plain"]
    metrics = results.get("tax", {}).get("metrics", {})
    return values | {key: metrics[key] for key in OF_TAX.values() if key in metrics}


def make_table(results: Results) -> str:
    """The table of all seeds, and the code it was made with."""
    rows = {str(seed): row(found) for seed, found in results.items()}
    commits = {run["commit"] for found in results.values() for run in found.values()}
    return f"{summary('Seed', rows, COLUMNS)}\n\nCommit {', '.join(sorted(commits))}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test and print the table.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0, 1 if a run failed or there is nothing to print, 130 if interrupted.
    """
    config = REPO / "experiments" / "quickstart.yaml"
    parser = make_test_parser(__doc__, config, HERE / "results" / "plain")
    options = parser.parse_args(arguments)
    try:
        check_config(options.config)
    except ValueError as error:
        parser.error(str(error))
    runs = make_runs(options.config, list(dict.fromkeys(options.seeds)), options.out.resolve())
    status = 0 if options.table else carry_out_tests(runs, measure, options.jobs)
    results = read_results(runs)
    if not results:
        print(f"no results of these seeds in {options.out}", file=sys.stderr)
        return status or 1
    print(make_table(results))
    return status


if __name__ == "__main__":
    sys.exit(main())
