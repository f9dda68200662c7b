"""Predictions on disk: what ``tax predict`` leaves behind for every image."""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.blending import Parts
from tax_lightning.callbacks.stitching import Growing, Whole
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.patches import PLACE, Place
from tax_lightning.distributed import from_all_processes
from tax_lightning.explanation import AVERAGED, Explanation, Prediction
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
_PICTURES = ("decision", "own", "index", "samples")  # maps that pictures show; others are numbers
_PARTS = ".parts"  # folder of what is put together


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict`` says of every image: the segmentations, who would say so, and why.

    Predictions are of whole images in the image's own pixels: padding is cut off, resizing undone,
    and the parts of an image (``tile`` or ``patch_size`` of the data module, or ``tax import
    --tile``) are put together. Such an image may be too large for memory: all its files are tiled
    TIFF files, with the numbers, if they are asked for, in a file for each map in ``maps/``, a page
    for each of its planes ``[H, W]``.

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

    Each process writes its own images, a single one also those in parts, which must come from top
    to bottom. Of several processes the first puts parts together at the end. Then comes
    ``manifest.json``, which names all files, colours, classes and the training pixels of the
    prototypes, and last what is written for tools.

    Args:
        output_dir: the folder to write into; ``None``: ``predictions``, in the working directory.
        overwrite: whether to write into a folder that holds the predictions of an earlier run.
            Files of images that are not predicted again stay.
        samples: how many plausible segmentations to write of each annotator.
        maps: whether to write the numbers too; ``None``: of whole images only.
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
        maps: bool | None = None,
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
        self.maps = maps
        self._images: dict[str, dict[str, Any]] = {}
        self._template: Prediction | None = None  # all that is the same for all images
        self._growing: dict[str, Growing] = {}  # images of which parts have come

    @property
    def manifest(self) -> Path:
        """The file that names all others."""
        return self.output_dir / "manifest.json"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a folder in use before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._images, self._template, self._growing = {}, None, {}
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
            samples = None
            if drawn[i] is not None:
                cut = drawn[i][..., top : top + height, left : left + width]
                rows, columns = (
                    torch.arange(new) * old // new
                    for new, old in zip(original, (height, width), strict=True)
                )
                samples = cut[:, rows][:, :, columns].numpy()
            self._write_whole(own, facts, samples)

    def _keep(
        self, trainer: L.Trainer, part: Prediction, place: Place, facts: Mapping[str, str]
    ) -> None:
        """Keep a part of an image; in a single process, finish the rows above it."""
        if self.samples and not part.annotators:
            raise ValueError(
                "PredictionWriter: samples of a model that names nobody are drawn part by part and "
                f"do not fit together; {part.ids[0]!r} is a part. Set samples to 0, or predict on "
                "whole images."
            )
        alone = trainer.world_size == 1
        if alone and place.whole not in self._growing:
            self._finish_all()  # the parts of an image come one after the other
        rest = tuple((key, value) for key, value in facts.items() if key not in PLACE)
        whole = Whole(place.whole, place.height, place.width, rest)
        folder = self.output_dir / _PARTS / str(trainer.global_rank) / file_name(whole.id)
        fresh = self._grown(whole, folder, [Parts(folder / "parts")])
        growing = self._growing.setdefault(whole.id, fresh)
        growing.add(part, whole, place.top, place.left, self._kept)
        if alone:
            self._grow(growing, place.top)

    @property
    def _kept(self) -> list[str]:
        """Names of the maps that are needed of parts: not all, where only pictures are written."""
        assert self._template is not None  # of the batch that a part is in
        names = self._template.tensors()
        return [name for name in names if name in AVERAGED or self.maps]

    def _grown(self, whole: Whole, folder: Path, parts: Sequence[Parts]) -> Growing:
        def made(band: Prediction) -> dict[str, NDArray[Any]]:
            return _arrays(band, self.samples, maps=bool(self.maps))

        return Growing(whole, folder / "rows", parts, made)

    def _grow(self, growing: Growing, bottom: int) -> None:
        assert self._template is not None
        growing.grow(bottom, self._template, self._kept)

    def _finish_all(self) -> None:
        """Write the images that came in parts."""
        for growing in self._growing.values():
            self._grow(growing, growing.whole.height)
            self._write_parts(growing)
            shutil.rmtree(growing.folder.parent)
        self._growing = {}

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put parts together, and write one manifest of what all processes wrote."""
        if trainer.world_size == 1:
            self._finish_all()
        parts = [(g.whole, g.folder.parent, g.parts[0]) for g in self._growing.values()]
        mine = self._template, list(self._images.values()), parts
        theirs = from_all_processes(pl_module, mine)
        if not trainer.is_global_zero:
            return
        template = next((template for template, *_ in theirs if template is not None), None)
        images = list(itertools.chain.from_iterable(images for _, images, _ in theirs))
        self._template, self._growing, written = template, {}, len(self._images)
        for whole, folder, found in itertools.chain.from_iterable(parts for *_, parts in theirs):
            growing = self._growing.setdefault(whole.id, self._grown(whole, folder, []))
            growing.parts.append(found)
        self._finish_all()
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
        if self._growing:
            shutil.rmtree(self.output_dir / _PARTS, ignore_errors=True)

    def _write_whole(
        self, own: Prediction, facts: Mapping[str, str], drawn: NDArray[Any] | None
    ) -> None:
        """Write the files of an image that was predicted as a whole."""
        maps = _arrays(own, self.samples, maps=self.maps is not False)
        if drawn is not None:
            maps["samples"] = drawn
        files, pictures = self._files(own.ids[0], ".png", len(maps.get("samples", ())))
        for file, (name, plane, colours) in pictures.items():
            values = maps[name] if plane is None else maps[name][plane]
            write_png(self.output_dir / file, indexed_png(values.astype(np.uint8), colours))
        if self.maps is not False:
            named = {"annotators": np.array(own.annotators), "classes": np.array(own.classes)}
            numbers = {name: maps[name] for name in maps if name not in _PICTURES}
            files["maps"] = f"{Path(files['fused']).parent}/maps.npz"
            write_arrays(self.output_dir / files["maps"], {**numbers, **named})
        unknown = float((maps["decision"] == IGNORE_INDEX).mean())
        self._note(own.ids[0], own.probs.shape[-2:], facts, files, unknown)

    def _write_parts(self, growing: Growing) -> None:
        """Write the files of an image that came in parts, which may be too large for memory."""
        whole = growing.whole
        drawn, *_ = growing.shapes.get("samples", (0,))
        files, pictures = self._files(whole.id, ".tif", drawn)
        for file, (name, plane, colours) in pictures.items():
            growing.write_tiff(self.output_dir / file, name, plane, colours)
        if self.maps:
            numbers = [name for name in growing.shapes if name not in _PICTURES]
            folder = Path(files["fused"]).parent / "maps"
            (self.output_dir / folder).mkdir(exist_ok=True)
            files["maps"] = {name: f"{folder}/{name}.tif" for name in numbers}
            for name, file in files["maps"].items():
                growing.write_tiff(self.output_dir / file, name, None)
        size = (whole.height, whole.width)
        self._note(whole.id, size, dict(whole.facts), files, growing.unknown / math.prod(size))

    def _files(
        self, id: str, ending: str, drawn: int
    ) -> tuple[dict[str, Any], dict[str, tuple[str, int | None, Mapping[int, Colour]]]]:
        """The files of an image as the manifest names them, and map and plane of each picture."""
        if id in self._images:
            raise ValueError(
                f"PredictionWriter: two images have the id {id!r}, of which one would "
                "overwrite the other; give every image its own id."
            )
        assert self._template is not None  # of the batch that this image is in
        template, folder = self._template, file_name(id)
        colours = _class_colours(template.classes)
        own = {
            name: f"{folder}/{file_name(name, _RESERVED)}{ending}" for name in template.annotators
        }
        files: dict[str, Any] = {"fused": f"{folder}/fused{ending}", "annotators": own}
        pictures: dict[str, tuple[str, int | None, Mapping[int, Colour]]]
        pictures = {files["fused"]: ("decision", None, colours)}
        pictures |= {file: ("own", plane, colours) for plane, file in enumerate(own.values())}
        if isinstance(template, Explanation):
            kind, palette = _index_colours(template)
            files[kind] = f"{folder}/{kind}{ending}"
            pictures[files[kind]] = ("index", None, palette)
        (self.output_dir / folder).mkdir(parents=True, exist_ok=True)
        if drawn:
            people = template.annotators or ("set",)
            (self.output_dir / folder / "samples").mkdir(exist_ok=True)
            files["samples"] = {
                name: [
                    f"{folder}/samples/{file_name(name)}-{number}{ending}"
                    for number in range(1, 1 + drawn // len(people))
                ]
                for name in people
            }
            every = itertools.chain(*files["samples"].values())
            pictures |= {file: ("samples", plane, colours) for plane, file in enumerate(every)}
        return files, pictures

    def _note(
        self,
        id: str,
        size: Sequence[int],
        facts: Mapping[str, str],
        files: Mapping[str, Any],
        unknown: float,
    ) -> None:
        """Keep for the manifest what was written of an image."""
        if unknown:
            rank_zero_warn(
                f"Image {id!r}: {unknown:.0%} of its pixels have no result. No part that was "
                "predicted shows them, or the model gives no numbers there. They are "
                f"{IGNORE_INDEX} in pictures and NaN in maps."
            )
        height, width = size
        self._images[id] = {
            "id": id,
            "height": height,
            "width": width,
            "facts": dict(facts),
            "files": files,
        }


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


def _arrays(prediction: Prediction, samples: int, *, maps: bool) -> dict[str, NDArray[Any]]:
    """What is written of one image, ``[..., H, W]`` each: what pictures show, and ``maps``."""
    known = as_array(prediction.probs[0].isfinite().all(dim=0))

    def pictured(values: Tensor) -> NDArray[np.uint8]:
        """Values as pixels of a picture, in which some value means that nothing is known."""
        return np.where(known, as_array(values), IGNORE_INDEX).astype(np.uint8)

    arrays: dict[str, NDArray[Any]] = {
        "decision": pictured(prediction.decision[0]),
        "own": pictured(prediction.annotator_decisions[0]),
    }
    if maps:
        arrays |= {
            "probs": as_array(prediction.probs[0]).astype(np.float16),
            "annotator_probs": as_array(prediction.annotator_probs[0]).astype(np.float16),
        }
    if samples and prediction.annotators:
        drawn = coherent_samples(prediction.annotator_probs[0].log(), samples)
        arrays["samples"] = pictured(drawn.flatten(0, 1))
    if isinstance(prediction, Explanation):
        follows = prediction.trust.kind == "image"
        index = prediction.leader[0] if follows else prediction.votes[0].round()
        arrays["index"] = pictured(torch.where(prediction.undisputed[0], UNDISPUTED, index))
    if isinstance(prediction, Explanation) and maps:
        why = torch.stack([prediction.reason[0], prediction.reason_kernel[0]])
        arrays |= {
            "who": as_array(prediction.who[0]).astype(np.float16),
            "why": np.where(known, as_array(why), -1).astype(np.int16),
            "dispute": as_array(prediction.dispute[0]).astype(np.float16),
            "support": as_array(prediction.support[0]).astype(np.float16),
        }
    return arrays
