"""Explanations while a model is trained, as pictures and tables, for loggers and as files."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.batch import Batch
from tax_lightning.callbacks.curves import Curves
from tax_lightning.callbacks.manifest import run_content, write_manifest
from tax_lightning.callbacks.prototype_cards import callout_patches, prototype_cards
from tax_lightning.callbacks.run import is_dry_run, is_explained, run_folder
from tax_lightning.callbacks.samples import explained, picture_of, validation_samples
from tax_lightning.callbacks.trackers import (
    send_cards,
    send_curves,
    send_files,
    send_overlays,
    send_picture,
)
from tax_lightning.explanation import Explanation
from tax_lightning.files import file_name
from tax_lightning.models.network import TAXNetwork
from tax_lightning.visualization.drawing import UNANIMOUS_INDEX, who_index_map
from tax_lightning.visualization.gallery import PrototypeCard, render_gallery
from tax_lightning.visualization.palette import Picture
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.report import write_page

_CARDS_A_PAGE = 24


class _Seen(NamedTuple):
    """A validation sample without its padding, and what the model says of it."""

    picture: Picture
    labels: dict[str, NDArray[Any]]  # "masks" [N, H, W] and "reference" [H, W], where there are any
    image: torch.Tensor  # [ch, H, W], normalised
    explanation: Explanation

    @property
    def id(self) -> str:
        """Name of the sample."""
        return self.explanation.ids[0]


class ExplanationLogger(Callback):
    """Show who decides and why, on the same few validation images throughout a training run.

    Every ``every_n_epochs`` epochs, and once more at the end, each image's panel (see
    :func:`tax_lightning.visualization.panel.render_panel`) goes to every logger that takes
    pictures, and into a folder as PNG; each metric's curves of all annotators go to W&B and
    TensorBoard as one chart. At the end the prototypes follow (see
    :func:`tax_lightning.visualization.gallery.render_gallery`): ``gallery.png``, or a page for each
    annotator where there are many, in W&B also a table with a row a prototype. The files of the
    end, with ``curves.csv`` and ``manifest.json``, which names them, are one artifact there.

    The training images in the pictures are read again from the data each time; no checkpoint holds
    image data. Only the process of rank zero draws, and it waits for no other. A logger or folder
    that fails is reported once; training goes on. A module that does not explain itself has no
    pictures, which is said once.

    Args:
        samples: how many validation images to show, spread evenly over the set.
        every_n_epochs: epochs between two pictures of the same image.
        output_dir: where the folder ``explanations`` is made; by default in the run's log folder.
        overlays: whether W&B also gets the images with maps that can be switched on and off there:
            the result, the reference, who decides, and every annotator's labels.

    Attributes:
        folder: the folder of pictures, once there is one.
        paths: the panels written at the end of training.
        report: all files written at the end of training.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> ExplanationLogger(samples=2, every_n_epochs=10).paths
        []
    """

    def __init__(
        self,
        samples: int = 8,
        every_n_epochs: int = 5,
        output_dir: str | None = None,
        overlays: bool = False,
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
        self.overlays = overlays
        self._complaints: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.folder: Path | None = None
        self.paths: list[Path] = []
        self.report: list[Path] = []
        self._curves = Curves()
        self._drawn_step, self._finished = -1, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget what belongs to an earlier run."""
        if stage == "fit":
            self._forget()

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the curves so far."""
        return self._generate_state_key(output_dir=self.output_dir)

    def state_dict(self) -> dict[str, Any]:
        """The curves so far, so that those of a resumed run are whole."""
        return {"curves": self._curves.by_metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the curves of the run that is resumed."""
        self._curves.by_metric = state_dict["curves"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what was measured of each annotator."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            annotators = getattr(pl_module, "annotators", ())
            self._curves.add(trainer.current_epoch, trainer.callback_metrics, annotators)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw after every so many epochs; after the last, the end of training is about to draw."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and self._draws(trainer, pl_module) and not _is_last_epoch(trainer):
            seen = self._look(trainer, pl_module)
            self._show_panels(trainer, pl_module, seen, f"epoch={trainer.current_epoch:03d}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the model as trained, unless its prototypes are still to be projected."""
        if is_explained(pl_module):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a model that projected its prototypes only as training ended."""
        if not self._finished:
            self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finished = True
        if not self._draws(trainer, pl_module):
            return
        seen = self._look(trainer, pl_module)
        self.paths = self._show_panels(trainer, pl_module, seen, "final")
        cards, gallery = self._show_prototypes(trainer, pl_module, seen)
        curves = self._write("curves.csv", self._curves.write)
        page = self._write_page(pl_module, seen, cards)
        content = run_content(
            trainer, [one.explanation for one in seen], cards, self.paths, gallery, page
        )
        manifest = self._write("manifest.json", lambda path: write_manifest(path, content))
        self.report = [*page, *self.paths, *gallery, *curves, *manifest]
        if self.report:
            self._send(trainer, "the report", send_files, "explanation", self.report)

    # ------------------------------------------------------------------ what is shown

    def _draws(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether this process has anything to draw."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return False
        if not hasattr(pl_module, "explain"):
            name = type(pl_module).__name__
            self._complain(name, f"ExplanationLogger: {name} explains nothing, so no pictures.")
            return False
        return True

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[_Seen]:
        """The samples, explained by the model as it is."""
        self.folder = Path(self.output_dir or run_folder(trainer)) / "explanations"
        with _undisturbed(pl_module):
            samples = validation_samples(trainer, pl_module, self.samples)
            seen = [_seen(trainer, pl_module, sample) for sample in samples]
        if not seen:
            self._complain("samples", "ExplanationLogger: no validation images, so no pictures.")
        return seen

    def _show_panels(
        self, trainer: L.Trainer, pl_module: L.LightningModule, seen: Sequence[_Seen], stage: str
    ) -> list[Path]:
        """Hand the panels on; returns the files written."""
        with _undisturbed(pl_module):
            patches = callout_patches(trainer, pl_module, [one.explanation for one in seen])
        new_to_loggers = trainer.global_step != self._drawn_step
        self._drawn_step = trainer.global_step
        paths = []
        for one in seen:
            panel = render_panel(one.explanation, one.picture, patches=patches, **one.labels)
            written = self._write_picture(f"{stage}-{file_name(one.id)}.png", panel)
            paths += written
            if new_to_loggers:
                self._send_picture(trainer, f"explanations/{one.id}", panel, written)
                self._send_overlays(trainer, one)
        if new_to_loggers and self._curves.by_metric:
            self._send(trainer, "the curves", send_curves, self._curves)
        return paths

    def _show_prototypes(
        self, trainer: L.Trainer, pl_module: L.LightningModule, seen: Sequence[_Seen]
    ) -> tuple[list[PrototypeCard], list[Path]]:
        """Hand the prototypes on; returns their cards and the files written."""
        explanations = [one.explanation for one in seen]
        with _undisturbed(pl_module):
            cards = prototype_cards(trainer, pl_module, explanations, [one.image for one in seen])
        paths = []
        for name, page in _pages(cards).items():
            gallery = render_gallery(page)
            written = self._write_picture(f"{file_name(name)}.png", gallery)
            paths += written
            self._send_picture(trainer, f"explanations/{name}", gallery, written)
        if cards:
            key = "explanations/prototypes"
            self._send(trainer, f"the table {key!r}", send_cards, key, cards)
        return cards, paths

    def _write_page(
        self, pl_module: L.LightningModule, seen: Sequence[_Seen], cards: Sequence[PrototypeCard]
    ) -> list[Path]:
        """The samples as one page to look into, if the model is of our kind; returns its path."""
        network = getattr(pl_module, "network", None)
        if not seen or not isinstance(network, TAXNetwork):
            return []
        explained = [(one.explanation, one.picture) for one in seen]
        source = "the model at the end of its training"
        try:
            return self._write(
                "report.html", lambda path: write_page(explained, cards, path, source)
            )
        except ValueError as error:  # what a page cannot show is no reason to lose a run
            self._complain("page", f"ExplanationLogger: no page of the samples: {error}")
            return []

    # ------------------------------------------------------------------ where it goes

    def _send_picture(
        self, trainer: L.Trainer, key: str, picture: Picture, written: Sequence[Path]
    ) -> None:
        file = written[0] if written else None
        self._send(trainer, f"the picture {key!r}", send_picture, key, picture, file=file)

    def _send_overlays(self, trainer: L.Trainer, one: _Seen) -> None:
        if self.overlays:
            key = f"overlays/{one.id}"
            what = f"the picture {key!r}"
            self._send(trainer, what, send_overlays, key, one.picture, _overlays(one))

    def _send(
        self,
        trainer: L.Trainer,
        what: str,
        send: Callable[..., None],
        *content: Any,  # noqa: ANN401 - whatever is sent
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Hand something to every logger, and go on where one does not take it."""
        for logger in trainer.loggers:
            try:
                send(logger, *content, trainer.global_step, **options)
            except Exception as error:  # a tracker may fail in any way
                name = type(logger).__name__
                self._complain(
                    name,
                    f"{name} did not take {what}: {error!r}. Training goes on; the pictures are "
                    f"files in {self.folder}.",
                )

    def _write_picture(self, name: str, picture: Picture) -> list[Path]:
        image = Image.fromarray(picture)
        # Twice as fast as with the usual level, for files that are a tenth larger.
        return self._write(name, lambda path: image.save(path, compress_level=3))

    def _write(self, name: str, write: Callable[[Path], None]) -> list[Path]:
        """Write a file; returns its path if that worked."""
        assert self.folder is not None  # since somebody looked
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
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


def _is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether the run has reached its end."""
    steps = trainer.max_steps
    return trainer.current_epoch + 1 == trainer.max_epochs or 0 < steps <= trainer.global_step


@contextmanager
def _undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """A look at the model that leaves no trace: training goes on as if nobody had looked.

    Reading samples may draw random numbers; every part returns to the mode in which it was.
    """
    modes = {part: part.training for part in module.modules()}
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes.items():
                part.training = training


def _seen(trainer: L.Trainer, pl_module: L.LightningModule, sample: Batch) -> _Seen:
    """One sample, explained with its padding and shown without."""
    image = sample["image"][0]
    height, width = sample["size"][0].tolist() if "size" in sample else image.shape[-2:]
    explanation = explained(trainer, pl_module, image, sample["id"][0])
    return _Seen(
        picture=picture_of(trainer, image)[:height, :width],
        labels={
            key: np.asarray(sample[key][0])[..., :height, :width]
            for key in ("masks", "reference")
            if key in sample
        },
        image=image[..., :height, :width],
        explanation=explanation.crop(height, width),
    )


def _pages(cards: Sequence[PrototypeCard]) -> dict[str, list[PrototypeCard]]:
    """The cards by the names of the pages that they go on."""
    if len(cards) <= _CARDS_A_PAGE:
        return {"gallery": list(cards)} if cards else {}
    experts = itertools.groupby(cards, key=lambda card: card.source.annotator)
    return {f"gallery-{name}": list(page) for name, page in experts}


def _overlays(one: _Seen) -> dict[str, tuple[NDArray[Any], dict[int, str]]]:
    """The maps of one sample by name, with what their values stand for."""
    explanation = one.explanation
    classes = dict(enumerate(explanation.classes))
    maps = {"result": (explanation.decision[0].numpy(), classes)}
    if len(explanation.annotators) <= UNANIMOUS_INDEX:
        whose = {**dict(enumerate(explanation.annotators)), UNANIMOUS_INDEX: "unanimous"}
        maps["who decides"] = (who_index_map(explanation), whose)
    if "reference" in one.labels:
        maps["reference"] = (one.labels["reference"], classes)
    if "masks" in one.labels:
        drawn = zip(explanation.annotators, one.labels["masks"], strict=True)
        maps |= {name: (mask, classes) for name, mask in drawn}
    return maps
