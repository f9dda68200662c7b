"""Retraining test: does the result change where the annotator who is left out was said to decide?

    python -m experiments.trust.retraining runs/compare/specialists

The folder is that of a `tax compare` with the models ``all`` and ``without-NAME``, whose data leave
out that annotator: same scenes, same reference, same seeds (the command stands in the README
beside). At the test pixels whose result then differs, the first model's weight w_n of the annotator
n who was left out should have been high. Tables are printed; ``--table`` keeps every value.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from tax_lightning import TAXLightningModule
from tax_lightning.batch import unpacked
from tax_lightning.comparison.report import Cell, markdown_table
from tax_lightning.consensus import disagreement
from tax_lightning.data import MultiAnnotatorDataModule
from tax_lightning.metrics import FusedOverlap

ALL = "all"
WITHOUT = "without-"  # begins the name of a model without an annotator
D = "_disputed"  # ends the keys of what is measured on D only
SEED = "_seed"  # ends the keys of what another seed changes
COLUMNS = {
    "Changed without n": "changed",
    "Changed by seed": f"changed{SEED}",
    "AUROC of w_n": "auroc",
    "AUROC of the others": "auroc_others",
    "AUROC of w_n, by seed": f"auroc{SEED}",
}
QUALITY = {"Fused Dice, all": "fused_dice_all", "Fused Dice without n": "fused_dice"}


def outcome(checkpoint: Path, data: MultiAnnotatorDataModule) -> dict[str, Tensor | float]:
    """What a model says of the test scenes, and its mean fused Dice against the reference.

    Returns:
        ``prediction`` ``[I, H, W]`` uint8, ``who`` ``[I, N, H, W]``, ``disputed`` ``[I, H, W]``
        bool: the pixels D where the labels of all annotators of ``data`` differ; and ``dice``.
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
    return {"dice": dice, **{name: torch.cat(part) for name, part in parts.items()}}


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


def measure(folder: Path) -> list[dict[str, float | str]]:
    """A row for each model without an annotator and each seed.

    The control of a seed is the model of all annotators of the next seed; of the last, the first.

    Raises:
        ValueError: If the folder has no model of all annotators.
    """
    config = folder / "configs" / f"{ALL}.yaml"
    if not config.is_file():
        raise ValueError(f"{folder}: expected the folder of a tax compare with the model {ALL!r}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data")
    said = {"data": yaml.safe_load(config.read_text())["data"]}
    data: MultiAnnotatorDataModule = parser.instantiate(parser.parse_object(said)).data
    data.setup("test")
    seeds = sorted(path.name for path in (folder / ALL).iterdir())
    whole = {seed: outcome(_checkpoint(folder / ALL / seed), data) for seed in seeds}
    rows: list[dict[str, float | str]] = []
    for place in sorted(folder.glob(f"{WITHOUT}*/seed*")):
        name, seed = place.parent.name.removeprefix(WITHOUT), place.name
        index, other = data.annotators.index(name), seeds[(seeds.index(seed) + 1) % len(seeds)]
        left = outcome(_checkpoint(place), data)
        found = compare(whole[seed], left["prediction"], index)
        if other != seed:
            noise = compare(whole[seed], whole[other]["prediction"], index)
            for key, value in noise.items():  # auroc_disputed -> auroc_seed_disputed
                found[f"{key.removesuffix(D)}{SEED}{D if key.endswith(D) else ''}"] = value
        dice = {"fused_dice_all": whole[seed]["dice"], "fused_dice": left["dice"]}
        rows.append({"without": name, "seed": seed.removeprefix("seed"), **dice, **found})
        print(f"without {name}, {seed}", file=sys.stderr)
    return rows


def _checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def tables(rows: Sequence[Mapping[str, float | str]]) -> str:
    """Markdown tables over seeds, on all pixels and on D; values are means over the annotators."""
    parts = []
    for title, end in (("all test pixels", ""), ("disputed pixels D", D)):
        columns = {head: f"{key}{end}" for head, key in COLUMNS.items()} | ({} if end else QUALITY)
        lines = [[f"Seed, {title}", *columns]]
        means: dict[str, list[float]] = {head: [] for head in columns}
        for seed in dict.fromkeys(row["seed"] for row in rows):
            line = [str(seed)]
            for head, key in columns.items():
                own = [float(r[key]) for r in rows if r["seed"] == seed and key in r]
                means[head] += [statistics.fmean(own)] if own else []
                line.append(Cell.of(means[head][-1:] if own else []).text())
            lines.append(line)
        lines.append(["mean ± sd", *(Cell.of(found).text() for found in means.values())])
        parts.append(markdown_table(lines))
    return "\n\n".join(parts)


def write(path: Path, rows: Iterable[Mapping[str, float | str]]) -> None:
    """Keep every value as CSV."""
    kept = list(rows)
    columns = list(dict.fromkeys(name for row in kept for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the models and print."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("folder", type=Path, help="folder of tax compare")
    parser.add_argument("--table", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.folder)
    except ValueError as error:
        parser.error(str(error))
    if options.table:
        write(options.table, rows)
    print(tables(rows))


if __name__ == "__main__":
    main()
