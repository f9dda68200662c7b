"""Predictions on disk: what ``tax predict`` leaves behind for every image."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.callbacks.stitching import Stitcher, Whole, together
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.patches import PLACE, Place
from tax_lightning.distributed import from_all_processes
from tax_lightning.explanation import Explanation, Prediction
from tax_lightning.exporters import FORMATS
from tax_lightning.exporters.predictions import UNDISPUTED, export
from tax_lightning.extras import needed
from tax_lightning.files import file_name, remove_parts, write_arrays, write_json, write_png
from tax_lightning.models.samples import coherent_samples
from tax_lightning.palette import (
    Colour,
    annotator_palette,
    class_palette,
    css,
    indexed_png,
    value_colours,
)
from tax_lightning.run_record import run_record
from tax_lightning.visualization.drawing import as_array

_GREY: Colour = (200, 200, 200)
_WHITE: Colour = (255, 255, 255)
_RESERVED = ("fused", "who", "votes")  # files beside those that are named for annotators
_PARTS = ".parts"  # folder of what is put together at the end


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict`` says of every image: the segmentations, who would say so, and why.

    Predictions are of whole images in the image's own pixels: padding is cut off, resizing undone,
    and the parts of an image (``patch_size``, or ``tax import --tile``) are put together.

    One folder an image, with ``fused.png`` (class ids), ``<annotator>.png`` (class ids as that
    annotator would draw) and ``maps.npz``:

    - ``probs`` float16 ``[C, H, W]`` and ``annotator_probs`` float16 ``[N, C, H, W]``, class
      probabilities of the result and of each annotator;
    - ``annotators`` and ``classes``, the names.

    Of a model that explains, also

    - ``who`` float16 ``[N, H, W]``, weight of each annotator in the result;
    - ``why`` int16 ``[2, H, W]``, annotator and kernel of the prototype with the largest share;
    - ``dispute`` float16 ``[H, W]``, expected share of pairs of annotators who differ;
    - ``support`` float16 ``[N, H, W]``, how probably each annotator says the result.

    Where the weights follow the image there is ``who.png``, the position of the annotator with the
    largest weight, else ``votes.png``, the expected number of annotators who say the result,
    rounded. Both have 254 where nothing is disputed. ``samples/<annotator>-<number>.png`` are
    plausible segmentations, see :func:`tax_lightning.models.samples.coherent_samples`; ``set``
    stands for the annotator where a model names nobody.

    Pixels without a result, such as those of parts that were not predicted, are 255 in pictures,
    NaN in shares and -1 in ``why``.

    Each process writes its own images. Then comes ``manifest.json``, which names all files,
    colours, classes and the training pixels of the prototypes, and last what is written for tools.

    Args:
        output_dir: the folder to write into; ``None``: ``predictions``, in the working directory.
        overwrite: whether to write into a folder that holds the predictions of an earlier run.
            Files of images that are not predicted again stay.
        samples: how many plausible segmentations to write of each annotator.
        format: names of formats of annotation tools, see :mod:`tax_lightning.exporters`; result,
            each annotator's segmentation and regions of dispute go to a folder of that name.

    Raises:
        ValueError: if ``samples`` is negative, a format is unknown, samples are asked of images in
            parts from a model that names nobody, or transforms of the images cannot be undone.
        FileExistsError: at the start of ``predict``, if the folder holds predictions already.
        ModuleNotFoundError: at the start of ``predict``, if a library that a format needs is not
            installed.

    Example:
        >>> PredictionWriter("predictions").manifest.as_posix()
        'predictions/manifest.json'
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overwrite: bool = False,
        samples: int = 0,
        format: Sequence[str] = (),
    ) -> None:
        super().__init__(write_interval="batch")
        if samples < 0:
            raise ValueError(f"PredictionWriter: samples={samples}, expected 0 (none) or more.")
        if unknown := [name for name in format if name not in FORMATS]:
            raise ValueError(
                f"PredictionWriter: format={unknown[0]!r} is unknown, expected some of "
                f"{', '.join(FORMATS)}."
            )
        self.output_dir = Path(output_dir or "predictions")
        self.overwrite, self.samples, self.format = overwrite, samples, tuple(format)
        self._images: dict[str, dict[str, Any]] = {}
        self._template: Prediction | None = None  # all that is the same for all images
        self._stitcher: Stitcher | None = None

    @property
    def manifest(self) -> Path:
        """The file that names all others."""
        return self.output_dir / "manifest.json"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a folder in use before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._images, self._template, self._stitcher = {}, None, None
        for name in self.format:
            if (library := FORMATS[name]) is not None:
                needed(library)
        if self.manifest.exists() and not self.overwrite:
            raise FileExistsError(
                f"PredictionWriter: output_dir={str(self.output_dir)!r} holds the predictions of "
                "an earlier run; give another folder, or set overwrite=true."
            )
        trainer.strategy.barrier()  # every process has looked
        if trainer.is_global_zero:
            self.manifest.unlink(missing_ok=True)
            shutil.rmtree(self.output_dir / _PARTS, ignore_errors=True)
            remove_parts(self.output_dir)

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
        """Write the images of one batch, or keep parts of images."""
        if not isinstance(prediction, Prediction):
            raise TypeError(
                f"PredictionWriter: predict_step returned {type(prediction).__name__}, expected an "
                "Explanation or a Prediction; leave the callback out for other models."
            )
        prediction = prediction.to("cpu")
        self._template = self._template or prediction[0].part(0, 0, 1, 1)
        if "frame" in batch and None in batch["frame"]:
            raise ValueError(_cannot_be_put_back(trainer, batch["id"][batch["frame"].index(None)]))
        drawn: Any = [None] * len(prediction)
        if self.samples and not prediction.annotators:
            module: Any = pl_module
            with trainer.precision_plugin.predict_step_context():
                drawn = module.predict(batch["image"], samples=self.samples).cpu()
        full = [tuple(prediction.probs.shape[-2:])] * len(prediction)
        for i, size in enumerate(batch.get("size", full)):
            frame = (0, 0, *map(int, size), *map(int, size))  # no transform to undo
            top, left, height, width, *original = batch["frame"][i] if "frame" in batch else frame
            own = prediction[i].part(top, left, height, width).resized(*original)
            facts = batch["facts"][i] if "facts" in batch else {}
            place = Place.of(facts, own.ids[0])
            if place is not None:
                self._keep(trainer, own, place, facts)
                continue
            whole = Whole(own.ids[0], *own.probs.shape[-2:])
            samples = None
            if drawn[i] is not None:
                cut = drawn[i][..., top : top + height, left : left + width]
                rows, columns = (
                    torch.arange(new) * old // new
                    for new, old in zip(original, (height, width), strict=True)
                )
                samples = cut[:, rows][:, :, columns].numpy()
            self._write_image(whole, [(0, own)], facts, samples)

    def _keep(
        self, trainer: L.Trainer, part: Prediction, place: Place, facts: Mapping[str, str]
    ) -> None:
        """Keep a part of an image until all others are there."""
        if self.samples and not part.annotators:
            raise ValueError(
                "PredictionWriter: samples of a model that names nobody are drawn part by part and "
                f"do not fit together; {part.ids[0]!r} is a part. Set samples to 0, or predict on "
                "whole images."
            )
        if self._stitcher is None:
            folder = self.output_dir / _PARTS / str(trainer.global_rank)
            self._stitcher = Stitcher(folder)
        rest = tuple((key, value) for key, value in facts.items() if key not in PLACE)
        whole = Whole(place.whole, place.height, place.width, rest)
        self._stitcher.add(part, whole, place.top, place.left)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put parts together, and write one manifest of what all processes wrote."""
        stitcher = self._stitcher
        parts = None if stitcher is None else (stitcher.folder, stitcher.wholes)
        mine = self._template, list(self._images.values()), parts
        theirs = from_all_processes(pl_module, mine)
        if not trainer.is_global_zero:
            return
        template = next((template for template, *_ in theirs if template is not None), None)
        images = list(itertools.chain.from_iterable(images for _, images, _ in theirs))
        self._template, written = template, len(self._images)
        in_parts = [parts for *_, parts in theirs if parts is not None]
        wholes = {whole.id: whole for _, found in in_parts for whole in found.values()}
        for whole in wholes.values():
            assert template is not None  # of a process that has parts
            folders = [folder for folder, _ in in_parts]
            self._write_image(whole, together(folders, whole, template), dict(whole.facts))
        images += list(self._images.values())[written:]
        shutil.rmtree(self.output_dir / _PARTS, ignore_errors=True)
        images.sort(key=lambda image: str(image["id"]))
        names = {} if template is None else _names(template)
        content = {**run_record(trainer.ckpt_path), **names, "images": images}
        write_json(self.manifest, content)
        export(self.output_dir, content, self.format)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the parts of images that will not be put together."""
        if self._stitcher is not None:
            shutil.rmtree(self.output_dir / _PARTS, ignore_errors=True)

    def _write_image(
        self,
        whole: Whole,
        bands: Iterable[tuple[int, Prediction]],
        facts: Mapping[str, str],
        drawn: NDArray[Any] | None = None,
    ) -> None:
        """Write the files of an image, of which bands of rows come one after the other."""
        sample_id, height, width, _ = whole
        if sample_id in self._images:
            raise ValueError(
                f"PredictionWriter: two images have the id {sample_id!r}, of which one would "
                "overwrite the other; give every image its own id."
            )
        folder = file_name(sample_id)
        maps: dict[str, NDArray[Any]] = {}
        for top, band in bands:
            for name, values in _arrays(band, self.samples).items():
                if name not in maps:
                    shape = (*values.shape[:-2], height, width)
                    maps[name] = np.empty(shape, values.dtype)
                maps[name][..., top : top + values.shape[-2], :] = values
        assert self._template is not None  # of the batch that this image is in
        annotators, classes = self._template.annotators, self._template.classes
        colours = _class_colours(classes)
        missing = float((maps["decision"] == IGNORE_INDEX).mean())
        if missing:
            rank_zero_warn(
                f"Image {sample_id!r}: {missing:.0%} of its pixels have no result. No part that "
                "was predicted shows them, or the model gives no numbers there. They are "
                f"{IGNORE_INDEX} in pictures and NaN in maps.npz."
            )
        own = {name: f"{folder}/{file_name(name, _RESERVED)}.png" for name in annotators}
        files = {"fused": f"{folder}/fused.png"}
        self._save(files["fused"], maps.pop("decision"), colours)
        for name, decision in zip(annotators, maps.pop("own"), strict=True):
            self._save(own[name], decision, colours)
        if isinstance(self._template, Explanation):
            kind, palette = _index_colours(self._template)
            files[kind] = f"{folder}/{kind}.png"
            self._save(files[kind], maps.pop("index"), palette)
        samples = maps.pop("samples", None) if drawn is None else drawn
        names = {"annotators": np.array(annotators), "classes": np.array(classes)}
        files["maps"] = f"{folder}/maps.npz"
        write_arrays(self.output_dir / files["maps"], {**maps, **names})
        self._images[sample_id] = {
            "id": sample_id,
            "height": height,
            "width": width,
            "facts": dict(facts),
            "files": {**files, "annotators": own, **self._write_samples(folder, samples)},
        }

    def _write_samples(self, folder: str, samples: NDArray[Any] | None) -> dict[str, Any]:
        """Write sampled segmentations ``[M S, H, W]``; returns their files by name."""
        if samples is None:
            return {}
        assert self._template is not None
        names = self._template.annotators or ("set",)
        numbers = range(1, len(samples) // len(names) + 1)
        files = {
            name: [f"{folder}/samples/{file_name(name)}-{number}.png" for number in numbers]
            for name in names
        }
        colours = _class_colours(self._template.classes)
        for file, sample in zip(itertools.chain(*files.values()), samples, strict=True):
            self._save(file, sample, colours)
        return {"samples": files}

    def _save(self, file: str, values: NDArray[Any], palette: Mapping[int, Colour]) -> None:
        write_png(self.output_dir / file, indexed_png(values.astype(np.uint8), palette))


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


def _class_colours(classes: Sequence[str]) -> dict[int, Colour]:
    """The colours of pictures of class ids."""
    return {**dict(enumerate(class_palette(len(classes)))), IGNORE_INDEX: _WHITE}


def _cannot_be_put_back(trainer: L.Trainer, id: str) -> str:
    """Why an image whose frame is unknown is refused."""
    transforms = getattr(getattr(trainer, "datamodule", None), "eval_transforms", ())
    names = ", ".join(type(transform).__name__ for transform in transforms)
    return (
        f"Image {id!r}: eval_transforms ({names}) turn, mirror or crop the image, or repeat it in "
        "its border: a prediction cannot be put back into its pixels. Expected transforms that "
        "resize, and pad with a constant, only: leave the others out for predict."
    )


def _index_colours(explanation: Explanation) -> tuple[str, dict[int, Colour]]:
    """The picture of indices, ``"who"`` where that follows the image, and its colours."""
    n = len(explanation.annotators)
    if n >= UNDISPUTED:
        raise ValueError(
            f"PredictionWriter: {n} annotators, but a picture of indices tells at most "
            f"{UNDISPUTED - 1} apart; read the tensors of the explanation instead."
        )
    others = {UNDISPUTED: _GREY, IGNORE_INDEX: _WHITE}
    if explanation.trust.kind == "image":
        return "who", {**dict(enumerate(annotator_palette(n))), **others}
    shades = value_colours(2 * (1 - np.arange(n + 1) / n)).tolist()
    return "votes", {i: (r, g, b) for i, (r, g, b) in enumerate(shades)} | others


def _arrays(prediction: Prediction, samples: int) -> dict[str, NDArray[Any]]:
    """All maps of one image, ``[..., H, W]`` each."""
    known = as_array(prediction.probs[0].isfinite().all(dim=0))

    def pictured(values: Tensor) -> NDArray[np.uint8]:
        """Values as pixels of a picture, in which some value means that nothing is known."""
        return np.where(known, as_array(values), IGNORE_INDEX).astype(np.uint8)

    arrays: dict[str, NDArray[Any]] = {
        "decision": pictured(prediction.decision[0]),
        "own": pictured(prediction.annotator_decisions[0]),
        "probs": as_array(prediction.probs[0]).astype(np.float16),
        "annotator_probs": as_array(prediction.annotator_probs[0]).astype(np.float16),
    }
    if samples and prediction.annotators:
        drawn = coherent_samples(prediction.annotator_probs[0].log(), samples)
        arrays["samples"] = pictured(drawn.flatten(0, 1))
    if isinstance(prediction, Explanation):
        follows = prediction.trust.kind == "image"
        index = prediction.leader[0] if follows else prediction.votes[0].round()
        why = torch.stack([prediction.reason[0], prediction.reason_kernel[0]])
        arrays |= {
            "index": pictured(torch.where(prediction.undisputed[0], UNDISPUTED, index)),
            "who": as_array(prediction.who[0]).astype(np.float16),
            "why": np.where(known, as_array(why), -1).astype(np.int16),
            "dispute": as_array(prediction.dispute[0]).astype(np.float16),
            "support": as_array(prediction.support[0]).astype(np.float16),
        }
    return arrays
