"""``tax fit``, then the test of its checkpoint in the same process, image by image too.

    python -m experiments.benchmark.fit_and_test fit --config FILE --result result.json

takes every option of ``tax fit``. The file holds the metrics of ``tax test`` by name, and for each
image of the test split the scores that methods are compared by. ``--samples FILE.npz`` also keeps
what it says that the annotators would draw there, and what they drew, for ``spread.py``.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.batch import Batch
from tax_lightning.cli import TAXCLI
from tax_lightning.metrics import annotator_dice, fused_dice, generalized_energy_distance
from tax_lightning.modules.base import MultiAnnotatorModule


class ImageScores(Callback):
    """Collects scores of every test image.

    Attributes:
        scores: by id of the image, then by name: ``"dice"``, the mean over the annotators of
            :func:`~tax_lightning.metrics.annotator_dice`; ``"fused_dice"``, the mean over the
            classes that appear; ``"ged2"``. What has no case is left out.
        samples: by ``drawn/ID`` and ``masks/ID`` class ids ``[N, H, W]``, those predicted and those
            given; by ``classes`` their number. Empty unless asked for.
    """

    def __init__(self, keeps_samples: bool = False) -> None:
        self.keeps_samples = keeps_samples
        self.scores: dict[str, dict[str, float]] = {}
        self.samples: dict[str, NDArray[np.uint8]] = {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - as the parent
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the images of one batch."""
        assert isinstance(pl_module, MultiAnnotatorModule)
        output = pl_module(batch["image"])
        drawn = output.log_sample_probs.argmax(dim=2)
        found = _scores(pl_module, batch, output, drawn)
        if self.keeps_samples:
            self._keep(batch, drawn, len(pl_module.classes))
        for row, sample_id in enumerate(batch["id"]):
            values = {name: float(scores[row]) for name, scores in found.items()}
            self.scores[sample_id] = {k: v for k, v in values.items() if math.isfinite(v)}

    def _keep(self, batch: Batch, drawn: Tensor, classes: int) -> None:
        self.samples["classes"] = np.uint8(classes)
        for kind, masks in (("drawn", drawn), ("masks", batch["masks"])):
            for sample_id, image in zip(batch["id"], masks.to(torch.uint8).cpu(), strict=True):
                self.samples[f"{kind}/{sample_id}"] = image.numpy()


def _scores(
    module: MultiAnnotatorModule,
    batch: Batch,
    output: Any,  # noqa: ANN401 - of any of the networks
    samples: Tensor,
) -> dict[str, Tensor]:
    """Scores ``[B]`` by name; NaN without a case."""
    masks, present, classes = batch["masks"], batch["present"], len(module.classes)
    scores = {"ged2": generalized_energy_distance(samples, masks, present, classes)}
    if output.log_annotator_probs.shape[1]:  # of a model that names its annotators
        scores["dice"] = annotator_dice(samples, masks, present, classes).nanmean(dim=1)
    reference = module.reference_labels(batch, output)
    if reference is not None:
        prediction = output.log_probs.argmax(dim=1)
        scores["fused_dice"] = fused_dice(prediction, reference, classes).nanmean(dim=1)
    return scores


class FitAndTestCLI(TAXCLI):
    """The command ``tax`` whose ``fit`` ends with a test; without pictures."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """An option for the file."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--result", type=str, required=True, help="JSON file to write")
        parser.add_argument("--samples", type=str, help="NPZ file to write")

    def after_fit(self) -> None:
        """Test the checkpoint that was kept."""
        scores = ImageScores(keeps_samples=self.config.fit.samples is not None)
        self.trainer.callbacks.append(scores)
        (metrics,) = self.trainer.test(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=self.trainer.checkpoint_callback.best_model_path,
            verbose=False,
        )
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        result = {
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "images": scores.scores,
            "parameters": parameters,
        }
        Path(self.config.fit.result).write_text(json.dumps(result))
        if scores.keeps_samples:
            np.savez_compressed(self.config.fit.samples, **scores.samples)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FitAndTestCLI.run(sys.argv[1:])
