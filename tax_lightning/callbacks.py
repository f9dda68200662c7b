"""Lightning callbacks: pictures of explanations, predictions on disk, checkpoints with reasons."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.explain.explanation import Explanation, PrototypeSource
from tax_lightning.explain.panels import (
    UNDECIDED_INDEX,
    Colour,
    Picture,
    SourcePatch,
    annotator_palette,
    class_palette,
    find_callouts,
    indexed_png,
    render_panel,
    who_index_map,
)

Batch = Mapping[str, Any]


class ExplanationLogger(Callback):
    """Show who decides and why, on the same few validation images throughout a training run.

    Every ``every_n_epochs`` epochs, and once more at the end, each image's panel (see
    :func:`tax_lightning.explain.panels.render_panel`) goes to every logger that takes pictures, and
    into a folder as PNG. The training patches in a panel are read again from the data each time; no
    checkpoint holds image data. Only the process of rank zero draws, and it waits for no other. A
    logger or folder that fails is reported once; training goes on.

    Args:
        samples: how many validation images to show, spread evenly over the set.
        every_n_epochs: epochs between two pictures of the same image.
        output_dir: where the folder ``explanations`` is made; by default in the run's log folder.

    Attributes:
        folder: the folder of pictures, once there is one.
        paths: the files written at the end of training.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> ExplanationLogger(samples=2, every_n_epochs=10).paths
        []
    """

    def __init__(
        self, samples: int = 4, every_n_epochs: int = 5, output_dir: str | None = None
    ) -> None:
        for name, value in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(
                    f"ExplanationLogger: {name}={value}, expected 1 or more; leave the callback "
                    "out to have no pictures."
                )
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self.output_dir = output_dir
        self.folder: Path | None = None
        self.paths: list[Path] = []
        self._drawn_step = -1
        self._finished = False
        self._complaints: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the pictures of an earlier run."""
        self.folder, self.paths, self._drawn_step, self._finished = None, [], -1, False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw after every so many epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, f"epoch={trainer.current_epoch:03d}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the model as trained, unless its prototypes are still to be projected."""
        if _is_explained(pl_module):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw a model that projected its prototypes only as training ended."""
        if not self._finished:
            self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paths = self._draw(trainer, pl_module, "final")
        self._finished = True

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> list[Path]:
        """Draw every sample and hand the pictures on; returns the files written."""
        if not trainer.is_global_zero or _is_dry_run(trainer):
            return []
        # Reading samples may draw random numbers: training goes on as if nobody had looked.
        with isolate_rng(), torch.no_grad(), _evaluating(pl_module):
            samples = list(_validation_samples(trainer, pl_module, self.samples))
            explanations = [_explain(trainer, pl_module, sample) for sample in samples]
            patches = _source_patches(trainer, pl_module, explanations)
        if not samples:
            self._complain("samples", "ExplanationLogger: no validation images, so no pictures.")
        self.folder = Path(self.output_dir or _run_folder(trainer)) / "explanations"
        new_to_loggers = trainer.global_step != self._drawn_step
        self._drawn_step = trainer.global_step
        paths = []
        for sample, explanation in zip(samples, explanations, strict=True):
            panel = _panel(trainer, sample, explanation, patches)
            if new_to_loggers:
                self._log(trainer, f"explanations/{explanation.ids[0]}", panel)
            path = self.folder / f"{stage}-{_file_name(explanation.ids[0])}.png"
            paths += self._write(path, panel)
        return paths

    def _log(self, trainer: L.Trainer, key: str, panel: Picture) -> None:
        for logger in trainer.loggers:
            try:
                send_picture(logger, key, panel, trainer.global_step)
            except Exception as error:  # a tracker may fail in any way
                name = type(logger).__name__
                self._complain(
                    name,
                    f"{name} did not take the picture {key!r}: {error!r}. Training goes on; the "
                    f"pictures are files in {self.folder}.",
                )

    def _write(self, path: Path, panel: Picture) -> list[Path]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(panel).save(path)
        except OSError as error:
            self._complain(
                "folder",
                f"ExplanationLogger: cannot write {path}: {error}. Training goes on without these "
                "files; set output_dir to a folder that can be written.",
            )
            return []
        return [path]

    def _complain(self, about: str, message: str) -> None:
        """Warn, but once only about the same thing."""
        if about not in self._complaints:
            self._complaints.add(about)
            rank_zero_warn(message)


def send_picture(logger: Logger, key: str, picture: Picture, step: int) -> None:
    """Hand a picture to a logger, if it is of a kind that takes pictures.

    Args:
        logger: one that has Lightning's ``log_image`` (Weights & Biases), or TensorBoard's.
        key: name of the picture.
        picture: ``[H, W, 3]`` uint8; never rescaled.
        step: the training step that it belongs to.
    """
    log_image = getattr(logger, "log_image", None)
    if callable(log_image):
        log_image(key=key, images=[picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")


def read_source_patches(
    read: Callable[[str], Picture],
    sources: Mapping[tuple[int, int], PrototypeSource],
    size: int = 48,
) -> dict[tuple[int, int], SourcePatch]:
    """Cut the training patches behind prototypes from their images.

    Args:
        read: gives the picture ``[H, W, 3]`` uint8 of a training image by its id, in the frame of
            the evaluation transform; may raise ``LookupError``, ``OSError`` or ``ValueError`` for
            an image that it does not have.
        sources: prototypes by any key, such as (annotator index, kernel).
        size: side of a patch in pixels; patches at the border are moved inside the image.

    Returns:
        A patch for each prototype that has been projected and whose image can be read.

    Example:
        >>> source = PrototypeSource("Ana", 0, "a", 1, 90, 1.0, "cell", True, ())
        >>> image = np.zeros((100, 100, 3), dtype=np.uint8)
        >>> patch = read_source_patches(lambda id: image, {(0, 0): source}, size=48)[0, 0]
        >>> patch.image.shape, patch.y, patch.x
        ((48, 48, 3), 1, 38)
    """
    patches = {}
    for key, source in sources.items():
        if not source.projected:
            continue
        try:
            picture = read(source.sample_id)
        except (LookupError, OSError, ValueError):
            continue  # the model may have been trained on other data; the panel says so
        height, width = picture.shape[:2]
        top = max(0, min(source.y - size // 2, height - size))
        left = max(0, min(source.x - size // 2, width - size))
        piece = picture[top : top + size, left : left + size].copy()
        patches[key] = SourcePatch(piece, source.y - top, source.x - left)
    return patches


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict`` says of every image: the segmentations, who decides, and why.

    One folder an image, with ``fused.png`` (class ids), ``<annotator>.png`` (class ids as that
    annotator would draw), ``who.png`` (position of the deciding annotator, 254 where all would say
    the same) and ``who.npz``:

    - ``who`` float16 ``[N, H, W]``, weight of each annotator;
    - ``why`` int8 or int16 ``[N, H, W]``, each annotator's kernel with the largest share;
    - ``why_share`` float16 ``[N, H, W]``, that share;
    - ``undecided`` bool ``[H, W]``; ``annotators`` and ``classes``, the names.

    Images have their size before padding. ``manifest.json`` names all files, colours, classes and
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
        if not isinstance(prediction, Explanation):
            raise TypeError(
                f"PredictionWriter: predict_step returned {type(prediction).__name__}, expected an "
                "Explanation; leave the callback out for other models."
            )
        explanation = prediction.to("cpu")
        self._names = self._names or _names(explanation)
        sizes = batch.get("size", [None] * len(explanation))
        for i, size in enumerate(sizes):
            self._write_image(_cropped(explanation[i], size))

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
        unfinished = self.manifest.with_suffix(".json.tmp")
        content = {**names, "images": sorted(images, key=lambda image: str(image["id"]))}
        text = json.dumps(content, ensure_ascii=False, indent=2)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.manifest)
        for file in files:
            file.unlink()

    def _write_image(self, explanation: Explanation) -> None:
        (sample_id,) = explanation.ids
        if sample_id in self._images:
            raise ValueError(
                f"PredictionWriter: two images have the id {sample_id!r}, of which one would "
                "overwrite the other; give every image its own id."
            )
        folder = _file_name(sample_id)
        (self.output_dir / folder).mkdir(parents=True, exist_ok=True)
        annotators, classes = explanation.annotators, explanation.classes
        class_colours = dict(enumerate(class_palette(len(classes))))
        who_colours = {**dict(enumerate(annotator_palette(len(annotators)))), **_UNDECIDED}
        own = {name: f"{folder}/{_file_name(name, _RESERVED)}.png" for name in annotators}
        files = {"fused": f"{folder}/fused.png", "who": f"{folder}/who.png"}
        self._save(files["fused"], explanation.decision[0], class_colours)
        self._save(files["who"], who_index_map(explanation), who_colours)
        for name, decision in zip(annotators, explanation.annotator_decisions[0], strict=True):
            self._save(own[name], decision, class_colours)
        maps = f"{folder}/who.npz"
        np.savez_compressed(self.output_dir / maps, allow_pickle=False, **_maps(explanation))
        height, width = explanation.probs.shape[-2:]
        self._images[sample_id] = {
            "id": sample_id,
            "height": height,
            "width": width,
            "files": {**files, "maps": maps, "annotators": own},
        }

    def _save(
        self, file: str, values: Tensor | NDArray[np.uint8], palette: Mapping[int, Colour]
    ) -> None:
        array = np.asarray(values).astype(np.uint8)
        indexed_png(array, palette).save(self.output_dir / file)


class ExplainedCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that keeps only models whose prototypes are final.

    A model before its final prototype projection can be better in numbers, yet cannot name the
    training pixels behind its decisions. So the best model is sought among the epochs after it:
    while the module's property ``explained`` is false, nothing is kept but the file of
    ``save_last``, written every epoch for resuming. If the run ends before any such epoch could be
    stored, the model is stored as it is then. With modules that have no such property it is a
    ``ModelCheckpoint``.

    All arguments are those of ``lightning.pytorch.callbacks.ModelCheckpoint``.

    Example:
        >>> ExplainedCheckpoint(monitor="val/dice", mode="max", save_last=True).best_model_path
        ''
    """

    _held_back = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - as the parent
        batch: Any,  # noqa: ANN401 - as the parent
        batch_idx: int,
    ) -> None:
        """Save by steps or time, once the model is explained."""
        if _is_explained(pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save by epochs after validation, once the model is explained."""
        if _is_explained(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save by epochs, once the model is explained; before that, for resuming only."""
        if _is_explained(pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            return
        self._held_back = True
        if self.save_last and not _is_dry_run(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_checkpoint_saved = ""  # none of the best, to which save_last="link" links

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that ``save_last`` has its file; a dry run leaves none."""
        if _is_explained(pl_module) and not _is_dry_run(trainer):
            super().on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the model where no explained epoch could be stored."""
        if not self._held_back or self.best_model_path or _is_dry_run(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)


# ------------------------------------------------------------------ the samples that are explained


def _is_explained(pl_module: L.LightningModule) -> bool:
    """Whether the prototypes are final; modules without prototypes have nothing to wait for."""
    return bool(getattr(pl_module, "explained", True))


def _is_dry_run(trainer: L.Trainer) -> bool:
    """Whether this is Lightning's ``fast_dev_run``, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode in which it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _validation_samples(
    trainer: L.Trainer, pl_module: L.LightningModule, count: int
) -> Iterator[Batch]:
    """The same few validation samples at every call, spread over the set where it has a length."""
    loaders = _flat(trainer.val_dataloaders)
    if not loaders:
        return iter(())
    size = _length(loaders[0])
    spread = sorted({round(i) for i in np.linspace(0, size - 1, min(count, size))})
    return itertools.islice(_single_samples(loaders[0], pl_module, spread), count)


def _flat(loaders: Any) -> list[Any]:  # noqa: ANN401 - a loader, or any nesting of loaders
    """The loaders as a list; none where the trainer has none."""
    return [] if loaders is None else CombinedLoader(loaders).flattened


def _length(loader: Any) -> int:  # noqa: ANN401 - any iterable may serve as a loader
    """How many samples can be read by index; 0 where they can only be iterated over."""
    by_index = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return len(loader.dataset) if by_index else 0


def _single_samples(
    loader: Any,  # noqa: ANN401 - any iterable may serve as a loader
    pl_module: L.LightningModule,
    indices: Iterable[int],
) -> Iterator[Batch]:
    """Batches of one, checked as the module checks its batches.

    Samples are read by index where possible, as a second iteration over a loader that training
    holds open would restart its workers.
    """
    if _length(loader):
        batches = (loader.collate_fn([loader.dataset[i]]) for i in indices)
    else:
        batches = (_row(batch, i) for batch in loader for i in range(len(batch["image"])))
    for batch in batches:
        yield pl_module.on_before_batch_transfer(batch, 0)


def _row(batch: Batch, i: int) -> Batch:
    """One sample of a batch, as a batch of one."""
    keys = ("id", "image", "masks", "reference", "size")
    return {key: batch[key][i : i + 1] for key in keys if key in batch}


def _explain(trainer: L.Trainer, pl_module: Any, sample: Batch) -> Explanation:  # noqa: ANN401
    """The explanation of one sample, in the precision of the run."""
    precision = trainer.precision_plugin
    with precision.forward_context():
        images = precision.convert_input(sample["image"].to(pl_module.device))
        explanation: Explanation = pl_module.explain(images, sample["id"])
    return _cropped(explanation.to("cpu"), _size(sample))


def _size(sample: Batch) -> Tensor | None:
    """Height and width of the only sample before padding, where the batch has them."""
    return sample["size"][0] if "size" in sample else None


def _cropped(explanation: Explanation, size: Tensor | None) -> Explanation:
    """The explanation without the image's padding."""
    return explanation if size is None else explanation.crop(int(size[0]), int(size[1]))


# --------------------------------------------------------------------------------- their pictures


def _source_patches(
    trainer: L.Trainer, pl_module: L.LightningModule, explanations: Sequence[Explanation]
) -> dict[tuple[int, int], SourcePatch]:
    """The training patches that the explanations' panels will show."""
    sources = {
        (callout.annotator, callout.kernel): explanation.sources[callout.annotator][callout.kernel]
        for explanation in explanations
        for callout in find_callouts(explanation)
    }
    ids = {source.sample_id for source in sources.values() if source.projected}
    return read_source_patches(_training_pictures(trainer, pl_module, ids), sources)


def _training_pictures(
    trainer: L.Trainer, pl_module: L.LightningModule, ids: set[str]
) -> Callable[[str], Picture]:
    """A way to the pictures of training images: the data module's, or one pass over the loader."""
    datamodule = _picture_maker(trainer)
    if datamodule is not None and hasattr(datamodule, "read"):
        return lambda sample_id: datamodule.to_picture(datamodule.read(sample_id)["image"])
    found: dict[str, Picture] = {}
    for loader in _flat(trainer.train_dataloader):
        for sample in _single_samples(loader, pl_module, range(_length(loader))):
            if ids <= found.keys():
                break
            if sample["id"][0] in ids:
                found[sample["id"][0]] = _stretched(sample["image"][0])
    return found.__getitem__


def _picture_maker(trainer: L.Trainer) -> Any:  # noqa: ANN401 - any data module with to_picture
    """The data module, if it can undo its normalisation."""
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule if hasattr(datamodule, "to_picture") else None


def _panel(
    trainer: L.Trainer,
    sample: Batch,
    explanation: Explanation,
    patches: Mapping[tuple[int, int], SourcePatch],
) -> Picture:
    """The panel of one sample, without its padding."""
    height, width = explanation.probs.shape[-2:]
    maker = _picture_maker(trainer)
    image = sample["image"][0]
    picture = maker.to_picture(image) if maker is not None else _stretched(image)
    labels = {
        key: np.asarray(sample[key][0])[..., :height, :width]
        for key in ("masks", "reference")
        if key in sample
    }
    return render_panel(explanation, picture[:height, :width], patches=patches, **labels)


def _stretched(image: Tensor) -> Picture:
    """An image of unknown scaling [ch, H, W] as RGB: its least value black, its largest white."""
    values = image.detach().cpu().float().numpy().transpose(1, 2, 0)
    if values.shape[2] != 3:
        values = values[..., :1].repeat(3, axis=2)
    low, high = values.min(), values.max()
    shown: Picture = ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    return shown


def _run_folder(trainer: L.Trainer) -> Path:
    """Where the run keeps its files; unlike ``trainer.log_dir`` it needs no other process."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    log_dir = getattr(logger, "log_dir", None)
    if log_dir is not None:
        return Path(log_dir)
    parts = [part for part in (logger.name, logger.version) if part not in (None, "")]
    return Path(logger.save_dir or trainer.default_root_dir, *map(str, parts))


# ------------------------------------------------------------------------------- predictions' files

_UNDECIDED: dict[int, Colour] = {UNDECIDED_INDEX: (200, 200, 200)}
_RESERVED = ("fused", "who")  # files beside those that are named for annotators


def _names(explanation: Explanation) -> dict[str, Any]:
    """The part of the manifest that is the same for all images."""
    annotators, classes = explanation.annotators, explanation.classes
    prototypes = itertools.chain.from_iterable(explanation.sources)
    return {
        "annotators": _coloured(annotators, annotator_palette(len(annotators))),
        "classes": _coloured(classes, class_palette(len(classes))),
        "values": {
            "fused": "index in classes",
            "annotators": "index in classes",
            "who": f"index in annotators; {UNDECIDED_INDEX}: all would say the same",
            "maps": "arrays who, why, why_share [annotator, row, column]; undecided [row, column]",
        },
        "prototypes": [_plain(dataclasses.asdict(prototype)) for prototype in prototypes],
    }


def _coloured(names: Sequence[str], colours: Sequence[Colour]) -> list[dict[str, Any]]:
    return [
        {"index": index, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for index, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """The value with null for numbers that JSON has not (a similarity that was never measured)."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _maps(explanation: Explanation) -> dict[str, NDArray[Any]]:
    """The arrays of ``who.npz``."""
    why = explanation.why[0].numpy()
    return {
        "who": explanation.who[0].float().numpy().astype(np.float16),
        "why": why.astype(np.int8 if why.max(initial=0) < 128 else np.int16),
        "why_share": explanation.why_share[0].float().numpy().astype(np.float16),
        "undecided": explanation.undecided[0].numpy(),
        "annotators": np.array(explanation.annotators),
        "classes": np.array(explanation.classes),
    }


def _file_name(name: str, reserved: Sequence[str] = ()) -> str:
    """A name that every file system takes; names that differ stay different."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only).strip("._")[:80]
    if clean == name != "" and name.lower() not in reserved:
        return name
    return f"{clean or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
