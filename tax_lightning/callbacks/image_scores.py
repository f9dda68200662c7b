"""The scores of single test images, as a table beside the checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.distributed import from_all_processes
from tax_lightning.files import write_table
from tax_lightning.run_record import TEST_IMAGES


class ImageScores(Callback):
    """Writes what a test found for each image, so that one sees which images are segmented badly.

    The table ``test_images.csv`` lies beside the checkpoint that was tested. It has a row for each
    image, in the order of the ids, and a column for each score of
    :func:`tax_lightning.modules.base.image_scores`. A score without a case is empty. ``tax test``
    has this callback. Without a checkpoint (``ckpt_path``) nothing is written.

    Example:
        >>> trainer = L.Trainer(callbacks=[ImageScores()], logger=False, accelerator="cpu")
        >>> # trainer.test(module, data, ckpt_path="best.ckpt") writes test_images.csv beside it
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the images of an earlier test."""
        self.rows = {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - what the test step returns
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of the batch's images; a module of one's own may give none."""
        if not isinstance(outputs, Mapping) or "scores" not in outputs:
            return
        scores = {name: values.tolist() for name, values in outputs["scores"].items()}
        for place, image in enumerate(outputs["id"]):
            self.rows[str(image)] = {name: values[place] for name, values in scores.items()}

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the table of all processes' images."""
        rows: dict[str, dict[str, float]] = {}
        for part in from_all_processes(module, self.rows):
            rows |= part  # an image that fills up a batch is in two of them
        if trainer.is_global_zero and trainer.ckpt_path and rows:
            path = Path(trainer.ckpt_path).with_name(TEST_IMAGES)
            try:
                write_scores(path, rows)
                print(f"\nimages      {path}")
            except OSError as error:  # the test itself did not fail
                rank_zero_warn(f"{path}: {error}.")


def write_scores(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Write a row for each image: its id and its scores."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    values = {
        image: [rows[image].get(name, math.nan) for name in columns] for image in sorted(rows)
    }
    lines = ([i, *("" if math.isnan(v) else f"{v:.6g}" for v in values[i])] for i in values)
    write_table(path, ["image", *columns], lines)
