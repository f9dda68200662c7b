"""Predictions on disk: what ``tax predict`` leaves behind for every image."""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.distributed import from_all_processes
from tax_lightning.explanation import Explanation, Prediction
from tax_lightning.files import file_name
from tax_lightning.visualization.drawing import as_array
from tax_lightning.visualization.palette import (
    Colour,
    annotator_palette,
    class_palette,
    css,
    indexed_png,
    value_colours,
)

_UNDISPUTED = 254  # in pictures of indices, and so the most annotators that they name
_GREY: Colour = (200, 200, 200)
_RESERVED = ("fused", "who", "votes")  # files beside those that are named for annotators


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict`` says of every image: the segmentations, who would say so, and why.

    One folder an image, with ``fused.png`` (class ids), ``<annotator>.png`` (class ids as that
    annotator would draw) and ``who.npz``:

    - ``who`` float16 ``[N, H, W]``, weight of each annotator in the result;
    - ``why`` int16 ``[2, H, W]``, annotator and kernel of the prototype with the largest share;
    - ``dispute`` float16 ``[H, W]``, expected share of pairs of annotators who differ;
    - ``support`` float16 ``[N, H, W]``, how probably each annotator says the result;
    - ``annotators`` and ``classes``, the names.

    Where the weights follow the image there is ``who.png``, the position of the annotator with the
    largest weight, else ``votes.png``, the expected number of annotators who say the result,
    rounded. Both have 254 where nothing is disputed. ``samples/<annotator>-<number>.png`` are
    plausible segmentations, see :func:`tax_lightning.models.samples.coherent_samples`; ``set``
    stands for the annotator where a model names nobody.

    A model without an explanation has the segmentations only. Padding is cut off. Each process
    writes its own images; ``manifest.json`` is written last, and names all files, colours, classes
    and the training pixels of the prototypes.

    Args:
        output_dir: the folder to write into.
        overwrite: whether to write into a folder that holds the predictions of an earlier run.
            Files of images that are not predicted again stay.
        samples: how many plausible segmentations to write of each annotator; they take a second
            pass through the network.

    Raises:
        ValueError: if ``samples`` is negative, or the model gives no probabilities to draw from.
        FileExistsError: at the start of ``predict``, if the folder holds predictions already.

    Example:
        >>> PredictionWriter("predictions").manifest.as_posix()
        'predictions/manifest.json'
    """

    def __init__(
        self, output_dir: str = "predictions", overwrite: bool = False, samples: int = 0
    ) -> None:
        super().__init__(write_interval="batch")
        if samples < 0:
            raise ValueError(f"PredictionWriter: samples={samples}, expected 0 (none) or more.")
        self.output_dir = Path(output_dir)
        self.overwrite, self.samples = overwrite, samples
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
        if self.samples and not hasattr(pl_module, "predict"):
            raise ValueError(
                f"PredictionWriter: samples={self.samples}, but {type(pl_module).__name__} gives "
                "no probabilities to draw from: it has no predict(images, samples=...). Set "
                "samples to 0."
            )
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
        drawn: Any = [()] * len(prediction)
        if self.samples:
            module: Any = pl_module
            with trainer.precision_plugin.predict_step_context():
                drawn = module.predict(batch["image"], samples=self.samples).cpu()
        for i, size in enumerate(batch.get("size", [prediction.probs.shape[-2:]] * len(drawn))):
            height, width = map(int, size)
            drawn_here = [sample[:height, :width] for sample in drawn[i]]
            self._write_image(prediction[i].crop(height, width), drawn_here)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write one manifest of what all processes wrote."""
        parts = from_all_processes(pl_module, (self._names, list(self._images.values())))
        if trainer.is_global_zero:
            names: dict[str, Any] = next((names for names, _ in parts if names), {})
            images = itertools.chain.from_iterable(images for _, images in parts)
            by_id = sorted(images, key=lambda image: str(image["id"]))
            self.output_dir.mkdir(parents=True, exist_ok=True)
            # Numbers that JSON lacks become null; the file appears whole or not at all.
            text = json.dumps({**names, "images": by_id})
            plain = json.loads(text, parse_constant=lambda _: None)
            unfinished = self.manifest.with_suffix(".json.tmp")
            unfinished.write_text(json.dumps(plain, ensure_ascii=False, indent=2), "utf-8")
            os.replace(unfinished, self.manifest)

    def _write_image(self, prediction: Prediction, drawn: Sequence[Tensor]) -> None:
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
            kind, values, palette = _index_map(prediction)
            files |= {kind: f"{folder}/{kind}.png", "maps": f"{folder}/who.npz"}
            self._save(files[kind], values, palette)
            maps = self.output_dir / files["maps"]
            np.savez_compressed(maps, allow_pickle=False, **_maps(prediction))
        names = annotators or ("set",)
        numbers = range(1, len(drawn) // len(names) + 1)
        samples = {
            name: [f"{folder}/samples/{file_name(name)}-{number}.png" for number in numbers]
            for name in names
        }
        if drawn:
            (self.output_dir / folder / "samples").mkdir(exist_ok=True)
        for file, sample in zip(itertools.chain(*samples.values()), drawn, strict=True):
            self._save(file, sample, dict(enumerate(colours)))
        height, width = prediction.probs.shape[-2:]
        self._images[sample_id] = {
            "id": sample_id,
            "height": height,
            "width": width,
            "files": {**files, "annotators": own} | ({"samples": samples} if drawn else {}),
        }

    def _save(self, file: str, values: Any, palette: Mapping[int, Colour]) -> None:  # noqa: ANN401
        indexed_png(np.asarray(values).astype(np.uint8), palette).save(self.output_dir / file)


def _names(prediction: Prediction) -> dict[str, Any]:
    """The part of the manifest that is the same for all images."""
    n, c = len(prediction.annotators), len(prediction.classes)
    content: dict[str, Any] = {
        "annotators": _coloured(prediction.annotators, annotator_palette(n)),
        "classes": _coloured(prediction.classes, class_palette(c)),
    }
    if isinstance(prediction, Explanation):
        content["trust"] = dataclasses.asdict(prediction.trust)
        content["dispute_threshold"] = prediction.dispute_threshold
        sources = itertools.chain.from_iterable(prediction.sources)
        content["prototypes"] = [dataclasses.asdict(source) for source in sources]
    return content


def _coloured(names: Sequence[str], colours: Sequence[Colour]) -> list[dict[str, Any]]:
    """Names by position, with the colours that stand for them in pictures."""
    pairs = enumerate(zip(names, colours, strict=True))
    return [{"index": i, "name": name, "colour": css(colour)} for i, (name, colour) in pairs]


def _index_map(explanation: Explanation) -> tuple[str, NDArray[Any], dict[int, Colour]]:
    """Who weighs most where that follows the image, else votes: name, ``[H, W]`` and colours."""
    n = len(explanation.annotators)
    if n >= _UNDISPUTED:
        raise ValueError(
            f"PredictionWriter: {n} annotators, but a picture of indices tells at most "
            f"{_UNDISPUTED - 1} apart; read the tensors of the explanation instead."
        )
    if explanation.trust.kind == "image":
        kind, values, colours = "who", as_array(explanation.leader[0]), annotator_palette(n)
    else:
        kind, values = "votes", np.rint(as_array(explanation.votes[0]))
        shades = value_colours(2 * (1 - np.arange(n + 1) / n)).tolist()
        colours = tuple((r, g, b) for r, g, b in shades)
    values = np.where(as_array(explanation.undisputed[0]), _UNDISPUTED, values)
    return kind, values, {**dict(enumerate(colours)), _UNDISPUTED: _GREY}


def _maps(explanation: Explanation) -> dict[str, NDArray[Any]]:
    """The arrays of ``who.npz``."""
    why = (explanation.reason[0], explanation.reason_kernel[0])
    return {
        "who": as_array(explanation.who[0]).astype(np.float16),
        "why": np.stack([as_array(part) for part in why]).astype(np.int16),
        "dispute": as_array(explanation.dispute[0]).astype(np.float16),
        "support": as_array(explanation.support[0]).astype(np.float16),
        "annotators": np.array(explanation.annotators),
        "classes": np.array(explanation.classes),
    }
