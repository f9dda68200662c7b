"""The samples of a running trainer: read one at a time, explained, and as pictures."""

import itertools
from collections.abc import Callable, Iterator
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
from tax_lightning.visualization.drawing import as_picture
from tax_lightning.visualization.palette import Picture


class ExplainedSample(NamedTuple):
    """A validation sample without its padding, and what the model says of it."""

    explanation: Explanation
    picture: Picture
    labels: dict[str, NDArray[Any]]  # "masks" [N, H, W] and "reference" [H, W], where there are any


def explained_samples(trainer: L.Trainer, count: int) -> Iterator[ExplainedSample]:
    """The same few validation samples at every call, spread over the set if it has a length.

    They are explained with their padding, so that the model sees what it sees in validation.
    """
    for loader in _loaders(trainer.val_dataloaders)[:1]:
        for sample in _single_samples(trainer, loader, count):
            image = sample["image"][0]
            height, width = sample["size"][0].tolist() if "size" in sample else image.shape[-2:]
            labels = {key: sample[key][0] for key in ("masks", "reference") if key in sample}
            yield ExplainedSample(
                explained(trainer, image, sample["id"][0]).crop(height, width),
                picture_of(trainer, image)[:height, :width],
                {key: np.asarray(label)[..., :height, :width] for key, label in labels.items()},
            )


def explained(trainer: L.Trainer, image: Tensor, sample_id: str) -> Explanation:
    """The explanation of one image ``[ch, H, W]`` on the CPU, in the precision of the run."""
    module: Any = trainer.lightning_module
    precision = trainer.precision_plugin
    with precision.forward_context():
        images = precision.convert_input(image.unsqueeze(0).to(module.device))
        explanation: Explanation = module.explain(images, [sample_id])
    return explanation.to("cpu")


def picture_of(trainer: L.Trainer, image: Tensor) -> Picture:
    """An image ``[ch, H, W]`` as the data module shows it, else stretched from dark to light."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "to_picture"):
        picture: Picture = datamodule.to_picture(image)
        return picture
    return as_picture(image.detach().cpu().float().numpy().transpose(1, 2, 0))


def training_reader(trainer: L.Trainer, ids: set[str]) -> Callable[[str], Picture]:
    """What gives the pictures of training images, with ``LookupError`` for those not at hand.

    The data module reads them if it can, after its evaluation transform. Else those of these ids
    are taken from one pass over the training samples.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "read"):
        return lambda sample_id: picture_of(trainer, datamodule.read(sample_id)["image"])
    found: dict[str, Picture] = {}
    for loader in _loaders(trainer.train_dataloader) if ids else []:
        for sample in _single_samples(trainer, loader):
            (sample_id,) = sample["id"]
            if sample_id in ids:
                found[sample_id] = picture_of(trainer, sample["image"][0])
    return found.__getitem__


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


def _loaders(nested: Any) -> list[DataLoader[Any]]:  # noqa: ANN401 - one, or any nesting of them
    loaders = CombinedLoader([] if nested is None else nested).flattened
    return [loader for loader in loaders if isinstance(loader, DataLoader)]


def _single_samples(
    trainer: L.Trainer, loader: DataLoader[Any], count: int | None = None
) -> Iterator[Batch]:
    """Batches of one, all or so many, checked as the module checks its batches.

    The data set is asked for its samples, as a second iteration over a loader that training holds
    open would restart its workers.
    """
    samples: Any = loader.dataset
    if isinstance(samples, IterableDataset):
        samples = itertools.islice(samples, count)
    else:
        size = len(samples)
        spread = np.linspace(0, size - 1, size if count is None else min(count, size))
        samples = map(samples.__getitem__, sorted({round(i) for i in spread}))
    for sample in samples:
        batch = loader.collate_fn([sample])
        checked: Batch = trainer.lightning_module.on_before_batch_transfer(batch, 0)
        yield unpacked(checked)
