"""Explanations while a model is trained, as pictures and a page, for loggers and as files."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.callbacks.checkpoint import is_dry_run, is_explained
from tax_lightning.callbacks.loggers import Destinations
from tax_lightning.explanation import Explanation
from tax_lightning.files import file_name, remove_parts
from tax_lightning.findings import Finding
from tax_lightning.palette import Picture
from tax_lightning.visualization.annotations import Read
from tax_lightning.visualization.drawing import as_picture
from tax_lightning.visualization.gallery import read_cards, render_gallery, with_use
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.report import write_page
from tax_lightning.visualization.summary import Summary, findings


class ExplanationLogger(Callback):
    """Show what is decided and why, on the same few validation images throughout a training run.

    Every ``every_n_epochs`` epochs and at the end, a panel of each image goes to the loggers and
    into the folder ``explanations``. At the end the prototypes follow, ``gallery.png``,
    and ``report.html``, the page of `tax explain`; the files of the end are one W&B artifact.

    Training images are read again by the data module each time; no checkpoint holds image data.
    Only the process of rank zero draws, and it waits for no other. A logger or folder that fails is
    reported once, and training goes on; so is a module that cannot explain itself.

    Args:
        samples: how many validation images to show, spread evenly over the set.
        every_n_epochs: epochs between two pictures of the same image.
        output_dir: folder of the pictures; ``None``: ``explanations`` beside the logger's files.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self, samples: int = 8, every_n_epochs: int = 5, output_dir: str | None = None
    ) -> None:
        for name, value in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(
                    f"ExplanationLogger: {name}={value}, expected 1 or more; leave the callback "
                    "out to have no pictures."
                )
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self.output_dir = output_dir
        self._warned: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        self.folder: Path | None = None  # of pictures, once there is one
        self.report: list[Path] = []  # the files written at the end of training
        self.findings: list[Finding] = []  # what misleads in the images of the end
        self._finished = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget what belongs to an earlier run."""
        if stage == "fit":
            self._begin()
            if self.output_dir is not None and trainer.is_global_zero:
                remove_parts(Path(self.output_dir))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw after every so many epochs, but not the last, as the end of training draws too."""
        epochs, steps = trainer.current_epoch + 1, trainer.global_step
        last = epochs == trainer.max_epochs or 0 < trainer.max_steps <= steps
        if epochs % self.every_n_epochs == 0 and not last:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the model as trained, unless its prototypes are still to be projected."""
        if is_explained(pl_module):
            self._finished = True
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a model that projected its prototypes only as training ended."""
        if not self._finished:
            self._finished = True
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        to = Destinations(trainer, self._warned, self.output_dir)
        if not hasattr(pl_module, "explain"):
            name = type(pl_module).__name__
            to.warn_once(name, f"ExplanationLogger: {name} explains nothing, so no pictures.")
            return
        self.folder = to.folder
        stage = "final" if self._finished else f"epoch={trainer.current_epoch:03d}"
        with undisturbed(pl_module):
            seen = list(explained_samples(trainer, self.samples))
            if not seen:
                to.warn_once("samples", "ExplanationLogger: no validation images, so no pictures.")
            sources = seen[0].explanation.sources if seen else ()
            cards, panels = read_cards(sources, training_reader(trainer)), []
            patches = cards[0].patches if cards else {}
            groups = getattr(getattr(trainer, "datamodule", None), "groups", None)
            for one in seen:
                name = one.explanation.ids[0]
                panel = render_panel(*one, patches, groups)
                file = f"{stage}-{file_name(name)}.png"
                panels += to.picture(f"explanations/{name}", panel, file)
            if self._finished and seen:
                first, *others = (Summary.of(one.explanation, *one[2:]) for one in seen)
                summary = sum(others, start=first)
                self.findings = findings(seen[0].explanation, summary)
                cards = with_use(cards, summary)
                if any(card.source.projected for card in cards):
                    gallery = render_gallery(cards)
                    panels += to.picture("explanations/gallery", gallery, "gallery.png")
                source = "the model at the end of its training"
                page = to.file(
                    "report.html", lambda path: write_page(seen, cards, path, source, groups)
                )
                self.report = panels + page
                if self.report:
                    to.artifact("explanation", self.report)


# ---------------------------------------------------------------------------- the samples shown


class ExplainedSample(NamedTuple):
    """A validation sample without its padding, and what the model says of it."""

    explanation: Explanation
    picture: Picture
    masks: NDArray[Any] | None  # [N, H, W]
    reference: NDArray[Any] | None  # [H, W]


def explained_samples(trainer: L.Trainer, count: int) -> Iterator[ExplainedSample]:
    """The same few validation samples at every call, spread over the set if it has a length.

    They are explained with their padding, so that the model sees what it sees in validation.
    """
    nested = trainer.val_dataloaders  # one, any nesting of them, or none
    module: Any = trainer.lightning_module
    loaders = CombinedLoader([] if nested is None else nested).flattened
    for loader in [one for one in loaders if isinstance(one, DataLoader)][:1]:
        for sample in _single_samples(trainer, loader, count):
            image = sample["image"][0]
            height, width = sample["size"][0].tolist() if "size" in sample else image.shape[-2:]
            precision = trainer.precision_plugin  # that of the run
            with precision.forward_context():
                images = precision.convert_input(image.unsqueeze(0).to(module.device))
                explanation = module.explain(images, sample["id"]).to("cpu")
            if getattr(module, "types", False):
                sample = module.matched(sample, explanation.annotator_probs.log())
            masks, reference = (
                np.asarray(sample[key][0])[..., :height, :width] if key in sample else None
                for key in ("masks", "reference")
            )
            picture = picture_of(trainer, image)[:height, :width]
            yield ExplainedSample(explanation.part(0, 0, height, width), picture, masks, reference)


def picture_of(trainer: L.Trainer, image: Tensor) -> Picture:
    """An image ``[ch, H, W]`` as the data module shows it, else stretched from dark to light."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "to_picture"):
        picture: Picture = datamodule.to_picture(image)
        return picture
    return as_picture(image.detach().cpu().float().numpy().transpose(1, 2, 0))


def training_reader(trainer: L.Trainer) -> Read | None:
    """Reads pictures of training images, if there is a data module that can."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "read"):
        return None
    return lambda sample_id: picture_of(trainer, datamodule.read(sample_id)["image"])


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Look at a model without a trace: modes of its parts and random states are restored."""
    modes = {part: part.training for part in module.modules()}
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes.items():
                part.training = training


def _single_samples(trainer: L.Trainer, loader: DataLoader[Any], count: int) -> Iterator[Batch]:
    """So many batches of one, checked as the module checks its batches.

    The data set is asked for its samples, as a second iteration over a loader that training holds
    open would restart its workers.
    """
    samples: Any = loader.dataset
    if isinstance(samples, IterableDataset):
        samples = itertools.islice(samples, count)
    else:
        spread = np.linspace(0, len(samples) - 1, min(count, len(samples)))
        samples = map(samples.__getitem__, sorted({round(i) for i in spread}))
    for sample in samples:
        batch: Batch = trainer.lightning_module.on_before_batch_transfer(
            loader.collate_fn([sample]), 0
        )
        yield unpacked(batch)
