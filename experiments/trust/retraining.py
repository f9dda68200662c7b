"""Retraining test: does the result change where the annotator who is left out was said to decide?

    python -m experiments.trust.retraining --jobs 2 --seeds 0 1 2

For each seed a model is trained with all annotators, and once more without each of them: same
scenes, same reference, same seed. At the test pixels whose result then differs, the first model's
weight w_n of the annotator n who was left out should have been high. ``retraining.csv`` gets a row
for each training, with the comparison to the model of all annotators. What the models of all
annotators predicted stays beside it (``.pt``) until everything is compared. At the end, or at once
with ``--only_tables``, tables are printed.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jsonargparse
import torch
import yaml
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from experiments.runs import INTERRUPTED, Run, RunFailedError, carry_out, fit
from experiments.tables import Rows, by_seed, commits, stored, study_parser, values
from tax_lightning import TAXLightningModule
from tax_lightning.batch import unpacked
from tax_lightning.consensus import disagreement
from tax_lightning.metrics import FusedOverlap
from tax_lightning.simulation import SyntheticDataModule

HERE = Path(__file__).resolve().parent
ALL = "all"
WITHOUT = "without-"  # begins the name of a training without an annotator
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


def without(config: Path, annotators: Sequence[str], left_out: str, seed: int) -> Run:
    """The training without an annotator."""
    rest = ", ".join(name for name in annotators if name != left_out)
    return Run(config, f"{WITHOUT}{left_out}", seed, fit=(f"--data.init_args.annotators=[{rest}]",))


def outcome(checkpoint: Path, data: SyntheticDataModule) -> tuple[dict[str, Tensor], float]:
    """What a model says of the test scenes, and its mean fused Dice against the reference.

    Returns:
        ``prediction`` ``[I, H, W]`` uint8, ``who`` ``[I, N, H, W]``, and ``disputed`` ``[I, H, W]``
        bool: the pixels D where the labels of all annotators of ``data`` differ; and Dice.
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
        parts["disputed"].append(disagreement(batch["masks"]))
    dice = float(overlap.compute()["fused_dice/mean"])
    return {name: torch.cat(part) for name, part in parts.items()}, dice


def outcome_file(table: Path, config: Path, seed: int) -> Path:
    """Where the outcome of the model of all annotators stays."""
    return table.with_name(f"{table.stem}-{config.stem}-seed{seed}.pt")


async def measure(
    run: Run, scratch: Path, table: Path, control: Mapping[int, int]
) -> Mapping[str, float]:
    """Train a model; keep what it says if it has all annotators, else compare it to that one."""
    whole = outcome_file(table, run.config, run.seed)
    other = outcome_file(table, run.config, control.get(run.seed, run.seed))
    for file in (whole, other) if run.name != ALL else ():
        if not file.is_file():
            raise RunFailedError(f"{file} is gone: delete the row of that model to train it again.")
    seconds, data = await fit(run, scratch), make_data(run.config)
    said, dice = await asyncio.to_thread(outcome, scratch / "best.ckpt", data)
    found = {"fit_seconds": seconds, "fused_dice": dice}
    if run.name == ALL:
        part = whole.with_suffix(".part")
        torch.save(said, part)
        part.replace(whole)
        return found
    index = data.annotators.index(run.name.removeprefix(WITHOUT))
    found |= compare(torch.load(whole), said["prediction"], index)
    if other != whole:
        noise = compare(torch.load(whole), torch.load(other)["prediction"], index)
        for key, value in noise.items():  # auroc_disputed -> auroc_seed_disputed
            found[f"{key.removesuffix(D)}{SEED}{D if key.endswith(D) else ''}"] = value
    return found


def auroc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive pixel has a higher score than another one; NaN without both kinds.

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
        index: The annotator. ``auroc_others`` is the mean over all others.
    """
    scores = [auroc(weight, changed) for weight in who]
    own = scores.pop(index)
    found = {"changed": float(changed.double().mean()), "auroc": own}
    found["auroc_others"] = statistics.fmean(scores) if scores else math.nan
    return {key: value for key, value in found.items() if math.isfinite(value)}


def compare(whole: Mapping[str, Tensor], other: Tensor, index: int) -> dict[str, float]:
    """`changes` from a model to the prediction of another, on all pixels and on D."""
    changed, who = whole["prediction"] != other, whole["who"].movedim(1, 0)
    on_d = changes(who[:, whole["disputed"]], changed[whole["disputed"]], index)
    return {
        **changes(who.flatten(1), changed.flatten(), index),
        **{f"{key}{D}": value for key, value in on_d.items()},
    }


def tables(rows: Rows) -> str:
    """Tables over seeds on all pixels and on D, means over the annotators; and the commits."""
    on_d = {title: f"{key}{D}" for title, key in CHANGES.items()}
    means: dict[str, dict[str, float]] = {}
    for seed in dict.fromkeys(row["seed"] for row in rows):
        of_seed = [row for row in rows if row["seed"] == seed]
        found = {
            key: [float(row[key]) for row in of_seed if row["name"] != ALL and key in row]
            for key in (*CHANGES.values(), *on_d.values(), "fused_dice")
        }
        found["fused_dice_all"] = values(of_seed, ALL, "fused_dice")
        means[seed] = {key: statistics.fmean(them) for key, them in found.items() if them}
    return "\n\n".join(
        [
            by_seed("Seed, all test pixels", means, CHANGES | QUALITY),
            by_seed("Seed, disputed pixels D", means, on_d),
            f"Commit {commits(rows)}.",
        ]
    )


def train(
    table: Path, config: Path, left_out: Sequence[str] | None, seeds: Sequence[int], jobs: int
) -> int:
    """Train what has no row yet: with all annotators first, as the others are compared to those.

    The control of a seed is the model of all annotators of the next seed; of the last, the first.

    Raises:
        ValueError: If the data do not suit, or nobody has a name that was asked for.
    """
    annotators = make_data(config).annotators
    for name in left_out or ():
        if name not in annotators:
            raise ValueError(f"--without {name}: expected some of {', '.join(annotators)}.")
    control = dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True)) if len(seeds) > 1 else {}
    step = partial(measure, table=table, control=control)
    whole = [Run(config, ALL, seed) for seed in seeds]
    names = left_out or annotators
    others = [without(config, annotators, name, seed) for seed in seeds for name in names]
    status = carry_out(table, whole, step, jobs)
    return status if status == INTERRUPTED else carry_out(table, others, step, jobs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare and print; returns the exit status, 1 where nothing is printed."""
    parser = study_parser(__doc__, HERE / "retraining.csv")
    parser.add_argument("--config", type=Path, default=HERE / "specialists.yaml")
    parser.add_argument("--without", nargs="+", metavar="NAME", help="default: each in turn")
    options = parser.parse_args(arguments)
    config, status = options.config.resolve(), 0
    torch.set_num_threads(1)
    if not options.only_tables:
        try:
            status = train(options.table, config, options.without, options.seeds, options.jobs)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    rows = stored(options.table, config.stem, options.seeds)
    if not rows:
        return status or 1
    print(tables(rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
