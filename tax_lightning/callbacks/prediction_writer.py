"""Predictions on disk: what ``tax predict`` leaves behind for every image."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.callbacks.manifest import coloured_names, write_manifest
from tax_lightning.explanation import Explanation, Prediction
from tax_lightning.files import file_name
from tax_lightning.visualization.drawing import UNANIMOUS_INDEX, who_index_map
from tax_lightning.visualization.palette import (
    Colour,
    annotator_palette,
    class_palette,
    indexed_png,
)

_UNANIMOUS: dict[int, Colour] = {UNANIMOUS_INDEX: (200, 200, 200)}
_RESERVED = ("fused", "who")  # files beside those that are named for annotators


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict`` says of every image: the segmentations, who decides, and why.

    One folder an image, with ``fused.png`` (class ids), ``<annotator>.png`` (class ids as that
    annotator would draw), ``who.png`` (position of the deciding annotator, 254 where all would say
    the same) and ``who.npz``:

    - ``who`` float16 ``[N, H, W]``, weight of each annotator;
    - ``why`` int8 or int16 ``[N, H, W]``, each annotator's kernel with the largest share;
    - ``why_share`` float16 ``[N, H, W]``, that share;
    - ``unanimous`` bool ``[H, W]``; ``annotators`` and ``classes``, the names.

    Of a model without an explanation there are the segmentations only. Images have their size
    before padding. ``manifest.json`` names all files, colours, classes and
    the prototypes' training pixels; it is there only when everything else is. Under several
    processes each writes its own images.

    Args:
        output_dir: the folder to write into.
        overwrite: whether to write into a folder that holds the predictions of an earlier run.
            Files of images that are not predicted again stay.

    Raises:
        FileExistsError: at the start of ``predict``, if the folder holds predictions already.

    Example:
        >>> PredictionWriter("predictions").manifest.as_posix()
        'predictions/manifest.json'
    """

    def __init__(self, output_dir: str = "predictions", overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._images: dict[str, dict[str, Any]] = {}
        self._names: dict[str, Any] = {}

    @property
    def manifest(self) -> Path:
        """The file that names all others."""
        return self.output_dir / "manifest.json"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a folder in use before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._images, self._names = {}, {}
        if self.manifest.exists() and not self.overwrite:
            raise FileExistsError(
                f"PredictionWriter: output_dir={str(self.output_dir)!r} holds the predictions of "
                "an earlier run; give another folder, or set overwrite=true."
            )
        trainer.strategy.barrier()  # every process has looked
        if trainer.is_global_zero:
            self.manifest.unlink(missing_ok=True)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,  # noqa: ANN401 - whatever predict_step returned
        batch_indices: Sequence[int] | None,
        batch: Any,  # noqa: ANN401 - as the parent
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the images of one batch."""
        if not isinstance(prediction, Prediction):
            raise TypeError(
                f"PredictionWriter: predict_step returned {type(prediction).__name__}, expected an "
                "Explanation or a Prediction; leave the callback out for other models."
            )
        prediction = prediction.to("cpu")
        self._names = self._names or _names(prediction)
        sizes = batch.get("size", [None] * len(prediction))
        for i, size in enumerate(sizes):
            image = prediction[i]
            self._write_image(image if size is None else image.crop(*map(int, size)))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather what every process wrote into one manifest."""
        part = {**self._names, "images": list(self._images.values())}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text(json.dumps(part), encoding="utf-8")
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._merge([self._part(rank) for rank in range(trainer.world_size)])

    def _part(self, rank: int) -> Path:
        return self.output_dir / f"manifest.rank-{rank}.json"

    def _merge(self, files: Sequence[Path]) -> None:
        """Put the processes' parts together: the manifest appears whole or not at all."""
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        images = list(itertools.chain.from_iterable(part.pop("images") for part in parts))
        names: dict[str, Any] = next((part for part in parts if part), {})
        content = {**names, "images": sorted(images, key=lambda image: str(image["id"]))}
        write_manifest(self.manifest, content)
        for file in files:
            file.unlink()

    def _write_image(self, prediction: Prediction) -> None:
        (sample_id,) = prediction.ids
        if sample_id in self._images:
            raise ValueError(
                f"PredictionWriter: two images have the id {sample_id!r}, of which one would "
                "overwrite the other; give every image its own id."
            )
        folder = file_name(sample_id)
        (self.output_dir / folder).mkdir(parents=True, exist_ok=True)
        annotators, classes = prediction.annotators, prediction.classes
        class_colours = dict(enumerate(class_palette(len(classes))))
        own = {name: f"{folder}/{file_name(name, _RESERVED)}.png" for name in annotators}
        files = {"fused": f"{folder}/fused.png"}
        self._save(files["fused"], prediction.decision[0], class_colours)
        for name, decision in zip(annotators, prediction.annotator_decisions[0], strict=True):
            self._save(own[name], decision, class_colours)
        if isinstance(prediction, Explanation):
            files |= self._write_explanation(folder, prediction)
        height, width = prediction.probs.shape[-2:]
        self._images[sample_id] = {
            "id": sample_id,
            "height": height,
            "width": width,
            "files": {**files, "annotators": own},
        }

    def _write_explanation(self, folder: str, explanation: Explanation) -> dict[str, str]:
        """Who decides and why; returns the files by what they hold."""
        files = {"who": f"{folder}/who.png", "maps": f"{folder}/who.npz"}
        names = annotator_palette(len(explanation.annotators))
        self._save(
            files["who"], who_index_map(explanation), {**dict(enumerate(names)), **_UNANIMOUS}
        )
        arrays = _maps(explanation)
        np.savez_compressed(self.output_dir / files["maps"], allow_pickle=False, **arrays)
        return files

    def _save(
        self, file: str, values: Tensor | NDArray[np.uint8], palette: Mapping[int, Colour]
    ) -> None:
        array = np.asarray(values).astype(np.uint8)
        indexed_png(array, palette).save(self.output_dir / file)


def _names(prediction: Prediction) -> dict[str, Any]:
    """The part of the manifest that is the same for all images."""
    annotators, classes = prediction.annotators, prediction.classes
    names = {
        "annotators": coloured_names(annotators, annotator_palette(len(annotators))),
        "classes": coloured_names(classes, class_palette(len(classes))),
    }
    values = {"fused": "index in classes", "annotators": "index in classes"}
    if not isinstance(prediction, Explanation):
        return {**names, "values": values}
    prototypes = itertools.chain.from_iterable(prediction.sources)
    return {
        **names,
        "values": {
            **values,
            "who": f"index in annotators; {UNANIMOUS_INDEX}: all would say the same",
            "maps": "arrays who, why, why_share [annotator, row, column]; unanimous [row, column]",
        },
        "prototypes": [dataclasses.asdict(prototype) for prototype in prototypes],
    }


def _maps(explanation: Explanation) -> dict[str, NDArray[Any]]:
    """The arrays of ``who.npz``."""
    why = explanation.why[0].numpy()
    return {
        "who": explanation.who[0].float().numpy().astype(np.float16),
        "why": why.astype(np.int8 if why.max(initial=0) < 128 else np.int16),
        "why_share": explanation.why_share[0].float().numpy().astype(np.float16),
        "unanimous": explanation.unanimous[0].numpy(),
        "annotators": np.array(explanation.annotators),
        "classes": np.array(explanation.classes),
    }
