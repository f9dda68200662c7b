"""Retraining test: does the result change where the annotator who is left out was said to decide?

    python experiments/trust/retraining.py --jobs 2 --seeds 0 1 2

For each seed a model is trained with all annotators, and once more without each of them: same
scenes, same reference, same seed. At the test pixels whose result then differs, the first model's
weight w_n of the annotator n who was left out should have been high. Each training leaves
``OUT/CONFIG/{all,without-NAME}/seedK.json`` and what it predicted beside it (``.pt``); a run whose
file exists is not repeated. The comparison of a seed is ``OUT/CONFIG/seedK.json``. At the end, or
at once with ``--table``, tables are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

# Python looks for imports beside a script only. One folder up is what the studies share; two up is
# this copy of the project, which the programs that are run use too, whatever copy is installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from resumable import (
    INTERRUPTED,
    Run,
    execute,
    fit_arguments,
    only,
    whole_file,
    write_json,
)
from runner import FIT_OPTIONS, HERE, OPTIONS, carry_out_tests, listed, make_test_parser, summary

from tax_lightning import TAXLightningModule
from tax_lightning.batch import unpacked
from tax_lightning.data import SyntheticDataModule
from tax_lightning.metrics import FusedOverlap, disagreement

ALL = "all"
SEED = "_seed"  # ends the keys of what another seed changes
D = "_disputed"  # ends the keys of what is measured on D only

# Title of a column -> key.
CHANGES = {
    "Changed without n": "changed",
    "Changed by seed": f"changed{SEED}",
    "AUROC of w_n": "auroc",
    "AUROC of the others": "auroc_others",
    "AUROC of w_n, by seed": f"auroc{SEED}",
}
QUALITY = {"Fused Dice, all": "fused_dice_all", "Fused Dice without n": "fused_dice"}

Outcome = Mapping[str, Tensor]
"""What a model says of the test scenes; see `outcome`."""


# ---------------------------------------------------------------------- training


def make_runs(
    config: Path, annotators: Sequence[str], left_out: Sequence[str], seed: int, out: Path
) -> dict[str, Run]:
    """The trainings of a seed, by the name of who is left out; `ALL` for nobody.

    Args:
        config: Configuration file.
        annotators: Names of all annotators.
        left_out: Those who are left out in turn.
        seed: Of everything random in training.
        out: Folder of all results.
    """
    runs = {ALL: Run(config, ALL, seed, out, options=OPTIONS)}
    for name in left_out:
        rest = ", ".join(other for other in annotators if other != name)
        flags = (("data.init_args.annotators", f"[{rest}]"),)
        runs[name] = Run(config, f"without-{name}", seed, out, flags, OPTIONS)
    return runs


def make_data(config: Path) -> SyntheticDataModule:
    """The data of a configuration, with all annotators.

    Raises:
        ValueError: If they are not those of `SyntheticDataModule`, or some labels are missing.
    """
    said = yaml.safe_load(config.read_text())["data"]
    if said["class_path"].rpartition(".")[2] != SyntheticDataModule.__name__:
        raise ValueError(
            f"{config.name}: data.class_path is {said['class_path']}, expected "
            "SyntheticDataModule, whose reference does not depend on the annotators."
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SyntheticDataModule, "data")
    data: SyntheticDataModule = parser.instantiate(parser.parse_object({"data": said})).data
    if data.missing or data.labels_per_image is not None:
        raise ValueError(
            f"{config.name}: missing={data.missing}, labels_per_image={data.labels_per_image}, "
            "expected 0 and null: who labels an image would change with who is left out."
        )
    return data


async def measure(run: Run, scratch: Path) -> dict[str, Any]:
    """Train a model, and store what it says of the test scenes."""
    fit = await execute(fit_arguments(run, scratch, FIT_OPTIONS), scratch)
    checkpoint = only(scratch, "checkpoints/*.ckpt")
    said, dice = await asyncio.to_thread(outcome, checkpoint, make_data(run.config))
    save(said if run.name == ALL else {"prediction": said["prediction"]}, _outcome_file(run))
    return {"fused_dice": dice, "seconds": {"fit": fit.seconds}, "commands": [fit.command]}


def outcome(checkpoint: Path, data: SyntheticDataModule) -> tuple[dict[str, Tensor], float]:
    """What a model says of the test scenes.

    Args:
        checkpoint: Of the model.
        data: With all annotators, whoever the model was trained with.

    Returns:
        outcome: ``prediction`` ``[I, H, W]`` uint8, ``who`` ``[I, N, H, W]``, and ``disputed``
            ``[I, H, W]`` bool: the pixels D where labels differ.
        dice: Mean fused Dice against the reference.
    """
    module = TAXLightningModule.load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=True
    ).eval()
    overlap = FusedOverlap(data.classes)
    parts: dict[str, list[Tensor]] = {"prediction": [], "who": [], "disputed": []}
    for batch in map(unpacked, data.test_dataloader()):
        explanation = module.explain(batch["image"])
        prediction = explanation.probs.argmax(dim=1)
        overlap.update(prediction=prediction, reference=batch["reference"])
        parts["prediction"].append(prediction.byte())
        parts["who"].append(explanation.who)
        parts["disputed"].append(disagreement(batch["masks"], batch["present"]))
    dice = float(overlap.compute()["fused_dice/mean"])
    return {name: torch.cat(part) for name, part in parts.items()}, dice


def _outcome_file(run: Run) -> Path:
    return run.result.with_suffix(".pt")


def save(said: Outcome, path: Path) -> None:
    """Write an outcome so that it is there whole or not at all."""
    with whole_file(path) as part:
        torch.save(dict(said), part)


def _load(path: Path) -> dict[str, Tensor]:
    said: dict[str, Tensor] = torch.load(path, weights_only=True)
    return said


# ---------------------------------------------------------------------- comparing


def auroc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive pixel has a higher score than another one; ties count half.

    Args:
        score: In [0, 1], of any shape.
        positive: Bool, of the same shape.

    Returns:
        A number in [0, 1]; NaN where all pixels, or none, are positive.

    Example:
        >>> round(auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]) > 0), 3)
        0.75
    """
    if positive.all() or not positive.any():
        return math.nan
    # Beyond 1, by rounding, torchmetrics would take all for logits, and make small ones equal.
    bounded = score.flatten().double().clamp(0, 1)
    return float(binary_auroc(bounded, positive.flatten().long(), validate_args=False))


def changes(who: Tensor, changed: Tensor, index: int) -> dict[str, float]:
    """How well the weight of an annotator foretells which pixels change.

    Args:
        who: Weights ``[N, P]`` of the annotators at the pixels.
        changed: Bool ``[P]``.
        index: The annotator.

    Returns:
        ``changed``, share of the pixels; ``auroc`` of this annotator's weight; ``auroc_others``,
        mean over the other annotators of the same for theirs. What has no case is left out.
    """
    scores = [auroc(weight, changed) for weight in who]
    others = [score for m, score in enumerate(scores) if m != index]
    values = {
        "changed": float(changed.double().mean()),
        "auroc": scores[index],
        "auroc_others": statistics.fmean(others) if others else math.nan,
    }
    return {key: value for key, value in values.items() if math.isfinite(value)}


def compare(whole: Outcome, other: Tensor, index: int) -> dict[str, float]:
    """`changes` on all test pixels, and on D under keys that end in `D`.

    Args:
        whole: Outcome of the model with all annotators.
        other: Prediction of the other model, ``[I, H, W]``.
        index: The annotator whose weight is looked at.
    """
    changed, who = whole["prediction"] != other, whole["who"].movedim(1, 0)
    on_d = changes(who[:, whole["disputed"]], changed[whole["disputed"]], index)
    return {
        **changes(who.flatten(1), changed.flatten(), index),
        **{f"{key}{D}": value for key, value in on_d.items()},
    }


def compare_seed(
    runs: Mapping[str, Run], annotators: Sequence[str], control: Run | None
) -> dict[str, Any]:
    """Compare the models of a seed.

    Args:
        runs: Those of this seed, as `make_runs` gives them.
        annotators: Names of all annotators, in the order of the weights.
        control: The run with all annotators and another seed; ``None`` if there is none.

    Returns:
        What ``OUT/CONFIG/seedK.json`` holds.

    Raises:
        FileNotFoundError: If a run has left no result.
    """
    stored = {name: json.loads(run.result.read_text()) for name, run in runs.items()}
    whole = _load(_outcome_file(runs[ALL]))
    other_seed = None if control is None else _load(_outcome_file(control))["prediction"]
    found: dict[str, dict[str, float]] = {}
    for name in (name for name in runs if name != ALL):
        index = annotators.index(name)
        found[name] = compare(whole, _load(_outcome_file(runs[name]))["prediction"], index)
        if other_seed is not None:
            noise = compare(whole, other_seed, index)
            found[name] |= {_of_seed(key): value for key, value in noise.items()}
        found[name]["fused_dice"] = stored[name]["fused_dice"]
        found[name]["fused_dice_all"] = stored[ALL]["fused_dice"]
    return {
        "config": runs[ALL].config.stem,
        "seed": runs[ALL].seed,
        "control_seed": None if control is None else control.seed,
        "annotators": found,
        "mean": mean_over(found.values()),
        "commits": sorted({one["commit"] for one in stored.values()}),
    }


def _of_seed(key: str) -> str:
    """``auroc_disputed`` -> ``auroc_seed_disputed``."""
    return f"{key.removesuffix(D)}{SEED}{D if key.endswith(D) else ''}"


def mean_over(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every key over those that have it.

    Example:
        >>> mean_over([{"auroc": 0.5, "changed": 0.25}, {"auroc": 1.0}])
        {'auroc': 0.75, 'changed': 0.25}
    """
    rows = list(found)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: statistics.fmean(row[key] for row in rows if key in row) for key in keys}


# ---------------------------------------------------------------------- tables


def make_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables over seeds, on all pixels and on D, and over annotators; and the code they are of."""
    rows = {str(result["seed"]): result["mean"] for result in results}
    on_d = {title: f"{key}{D}" for title, key in CHANGES.items()}
    names = dict.fromkeys(name for result in results for name in result["annotators"])
    columns = {**{f"{title}, D": key for title, key in on_d.items()}, **QUALITY}
    by_name = {name: [_values(results, name, key) for key in columns.values()] for name in names}
    commits = sorted({commit for result in results for commit in result["commits"]})
    return "\n\n".join(
        [
            summary("Seed, all test pixels", rows, CHANGES | QUALITY),
            summary("Seed, disputed pixels D", rows, on_d),
            listed("n", by_name, list(columns), len(results)),
            f"Commit {', '.join(commits)}.",
        ]
    )


def _values(results: Sequence[Mapping[str, Any]], name: str, key: str) -> list[float]:
    """The values of an annotator over seeds."""
    rows = [result["annotators"].get(name, {}) for result in results]
    return [row[key] for row in rows if key in row]


# ---------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare and print the tables.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.

    Returns:
        Exit status: 0, 1 if a run failed or there is nothing to print, 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    seeds, folder = list(dict.fromkeys(options.seeds)), options.out.resolve()
    torch.set_num_threads(1)
    status = 0
    if not options.table:
        try:
            names = make_data(options.config).annotators
            left_out = _left_out(names, options.without)
        except ValueError as error:
            parser.error(str(error))
        by_seed = {s: make_runs(options.config, names, left_out, s, folder) for s in seeds}
        status = _train_and_compare(by_seed, names, options.jobs)
    files = [folder / options.config.stem / f"seed{seed}.json" for seed in seeds]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    if not results:
        print(f"no results of these seeds in {options.out}", file=sys.stderr)
        return status or 1
    print(make_tables(results))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = make_test_parser(__doc__, HERE / "specialists.yaml", HERE / "results" / "retraining")
    parser.add_argument(
        "--without", nargs="+", metavar="NAME", help="who to leave out in turn; default: everyone"
    )
    return parser


def _left_out(annotators: Sequence[str], asked: Sequence[str] | None) -> Sequence[str]:
    """Who is left out in turn.

    Raises:
        ValueError: If there is nobody of a name that was asked for.
    """
    for name in asked or ():
        if name not in annotators:
            raise ValueError(f"--without {name}: expected some of {', '.join(annotators)}.")
    return asked or annotators


def _train_and_compare(
    by_seed: Mapping[int, Mapping[str, Run]], annotators: Sequence[str], jobs: int
) -> int:
    """Carry out what is due, and compare unless that was interrupted; returns the exit status."""
    runs = [run for of_seed in by_seed.values() for run in of_seed.values()]
    status = carry_out_tests(runs, measure, jobs)
    if status != INTERRUPTED:
        compare_all(by_seed, annotators)
    return status


def compare_all(by_seed: Mapping[int, Mapping[str, Run]], annotators: Sequence[str]) -> None:
    """Compare the models of each seed; the control of each is the next seed, of the last the first.

    What was compared before stays where its models' predictions are gone.
    """
    seeds = list(by_seed)
    for seed, following in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
        control = by_seed[following][ALL] if following != seed else None
        path = by_seed[seed][ALL].folder / f"seed{seed}.json"
        try:
            result = compare_seed(by_seed[seed], annotators, control)
        except FileNotFoundError as error:
            print(
                f"seed {seed} is not compared: {error.filename} is not there. Run again; where "
                "only the .pt is gone, delete the .json beside it first.",
                file=sys.stderr,
            )
            continue
        write_json(path, result)


if __name__ == "__main__":
    sys.exit(main())
