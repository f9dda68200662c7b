"""``tax test`` that writes its metrics to a file, with the scores of single images if asked for.

    python -m experiments.score test --config FILE --ckpt_path FILE --result FILE.json

The file holds a number for each metric and, with ``--images true``, a text for each score of single
images: numbers with six digits, separated by spaces, in the order of the images' ids.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from tax_lightning.batch import Batch
from tax_lightning.cli import TAXCLI
from tax_lightning.metrics import annotator_dice, fused_dice, generalized_energy_distance
from tax_lightning.modules.base import MultiAnnotatorModule


class ImageScores(Callback):
    """Collects scores of every test image, by name of the score and id of the image."""

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, float]] = {}

    def on_test_batch_end(self, *arguments: Any) -> None:  # noqa: ANN401, D102
        _, module, _, batch, *_ = arguments
        for name, scores in image_scores(module, batch).items():
            pairs = zip(batch["id"], scores.tolist(), strict=True)
            self.scores.setdefault(name, {}).update(pairs)


def image_scores(module: MultiAnnotatorModule, batch: Batch) -> dict[str, Tensor]:
    """Scores ``[B]`` by name, NaN without a case; Dice is the mean over annotators or classes."""
    output = module(batch["image"])
    masks, present, classes = batch["masks"], batch["present"], len(module.classes)
    samples = output.log_sample_probs.argmax(dim=2)
    scores = {"ged2": generalized_energy_distance(samples, masks, present, classes)}
    if output.log_annotator_probs.shape[1]:  # of a model that names its annotators
        scores["dice"] = annotator_dice(samples, masks, present, classes).nanmean(dim=1)
    reference = module.reference_labels(batch, output)
    if reference is not None:
        prediction = output.log_probs.argmax(dim=1)
        scores["fused_dice"] = fused_dice(prediction, reference, classes).nanmean(dim=1)
    return scores


class ScoreCLI(TAXCLI):
    """The command ``tax`` whose ``test`` leaves a file."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:  # noqa: D102
        super().add_arguments_to_parser(parser)
        parser.add_argument("--result", type=str, help="JSON file to write")
        parser.add_argument("--images", type=bool, default=False, help="score single images")

    def before_test(self) -> None:  # noqa: D102
        if self.config.test.images:
            self.trainer.callbacks.append(ImageScores())

    def after_test(self) -> None:
        """Write the file; a metric without a case is left out."""
        result: dict[str, float | str] = {
            key.removeprefix("test/"): float(value)
            for key, value in self.trainer.callback_metrics.items()
            if math.isfinite(value)
        }
        for callback in self.trainer.callbacks:
            if isinstance(callback, ImageScores):
                for name, scores in callback.scores.items():
                    values = (f"{scores[sample_id]:.6g}" for sample_id in sorted(scores))
                    result[f"images/{name}"] = " ".join(values)
        Path(self.config.test.result).write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    ScoreCLI.run(sys.argv[1:])
