"""Predictions on disk: what ``tax predict`` leaves behind for every image."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from tax_lightning.distributed import from_all_processes
from tax_lightning.explanation import Explanation, Prediction
from tax_lightning.files import file_name, write_json
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

    A model without an explanation has the segmentations only. Padding is cut off. Each process
    writes its own images; ``manifest.json`` is written last, and names all files, colours, classes
    and the training pixels of the prototypes.

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
        for i, size in enumerate(batch.get("size", [None] * len(prediction))):
            image = prediction[i]
            self._write_image(image if size is None else image.crop(*map(int, size)))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write one manifest of what all processes wrote."""
        parts = from_all_processes(pl_module, (self._names, list(self._images.values())))
        if trainer.is_global_zero:
            names: dict[str, Any] = next((names for names, _ in parts if names), {})
            images = itertools.chain.from_iterable(images for _, images in parts)
            by_id = sorted(images, key=lambda image: str(image["id"]))
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.manifest, {**names, "images": by_id})

    def _write_image(self, prediction: Prediction) -> None:
        (sample_id,) = prediction.ids
        if sample_id in self._images:
            raise ValueError(
                f"PredictionWriter: two images have the id {sample_id!r}, of which one would "
                "overwrite the other; give every image its own id."
            )
        folder = file_name(sample_id)
        (self.output_dir / folder).mkdir(parents=True, exist_ok=True)
        annotators, colours = prediction.annotators, class_palette(len(prediction.classes))
        own = {name: f"{folder}/{file_name(name, _RESERVED)}.png" for name in annotators}
        files = {"fused": f"{folder}/fused.png"}
        self._save(files["fused"], prediction.decision[0], dict(enumerate(colours)))
        for name, decision in zip(annotators, prediction.annotator_decisions[0], strict=True):
            self._save(own[name], decision, dict(enumerate(colours)))
        if isinstance(prediction, Explanation):
            files |= {"who": f"{folder}/who.png", "maps": f"{folder}/who.npz"}
            who_colours = {**dict(enumerate(annotator_palette(len(annotators)))), **_UNANIMOUS}
            self._save(files["who"], who_index_map(prediction), who_colours)
            maps = self.output_dir / files["maps"]
            np.savez_compressed(maps, allow_pickle=False, **_maps(prediction))
        height, width = prediction.probs.shape[-2:]
        self._images[sample_id] = {
            "id": sample_id,
            "height": height,
            "width": width,
            "files": {**files, "annotators": own},
        }

    def _save(self, file: str, values: Any, palette: Mapping[int, Colour]) -> None:  # noqa: ANN401
        indexed_png(np.asarray(values).astype(np.uint8), palette).save(self.output_dir / file)


def coloured_names(prediction: Prediction) -> dict[str, list[dict[str, Any]]]:
    """Annotators and classes by position, with the colours that stand for them in pictures."""
    palettes = {
        "annotators": (prediction.annotators, annotator_palette),
        "classes": (prediction.classes, class_palette),
    }
    return {
        kind: [
            {"index": index, "name": name, "colour": f"#{bytes(colour).hex()}"}
            for index, (name, colour) in enumerate(zip(names, palette(len(names)), strict=True))
        ]
        for kind, (names, palette) in palettes.items()
    }


def _names(prediction: Prediction) -> dict[str, Any]:
    """The part of the manifest that is the same for all images."""
    values = {"fused": "index in classes", "annotators": "index in classes"}
    content: dict[str, Any] = {**coloured_names(prediction), "values": values}
    if isinstance(prediction, Explanation):
        values["who"] = f"index in annotators; {UNANIMOUS_INDEX}: all would say the same"
        by_annotator = "who, why, why_share [annotator, row, column]"
        values["maps"] = f"arrays {by_annotator}; unanimous [row, column]"
        sources = itertools.chain.from_iterable(prediction.sources)
        content["prototypes"] = [dataclasses.asdict(source) for source in sources]
    return content


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
