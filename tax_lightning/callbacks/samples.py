"""The samples of a running trainer: read one at a time, explained, and as pictures."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.explanation import Explanation
from tax_lightning.visualization.annotations import Read
from tax_lightning.visualization.drawing import as_picture
from tax_lightning.visualization.palette import Picture


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
