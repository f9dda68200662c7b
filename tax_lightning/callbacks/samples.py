"""The samples of a running trainer, one at a time, and their images as pictures."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.explain.palette import Picture


def validation_samples(
    trainer: L.Trainer, pl_module: L.LightningModule, count: int
) -> Iterator[Batch]:
    """The same few validation samples at every call, spread over the set where it has a length."""
    loaders = flat_loaders(trainer.val_dataloaders)
    if not loaders:
        return iter(())
    size = length_by_index(loaders[0])
    spread = sorted({round(i) for i in np.linspace(0, size - 1, min(count, size))})
    return itertools.islice(single_samples(loaders[0], pl_module, spread), count)


def single_samples(
    loader: Any,  # noqa: ANN401 - any iterable may serve as a loader
    pl_module: L.LightningModule,
    indices: Iterable[int],
) -> Iterator[Batch]:
    """Batches of one, checked as the module checks its batches.

    Samples are read by index where possible, as a second iteration over a loader that training
    holds open would restart its workers.
    """
    if length_by_index(loader):
        batches = (loader.collate_fn([loader.dataset[i]]) for i in indices)
    else:
        batches = (
            _row(batch, i) for batch in map(unpacked, loader) for i in range(len(batch["image"]))
        )
    for batch in batches:
        checked: Batch = pl_module.on_before_batch_transfer(batch, 0)
        yield unpacked(checked)


def _row(batch: Batch, i: int) -> Batch:
    """One sample of a batch, as a batch of one."""
    keys = ("id", "image", "masks", "reference", "size")
    return {key: batch[key][i : i + 1] for key in keys if key in batch}


def flat_loaders(loaders: Any) -> list[Any]:  # noqa: ANN401 - a loader, or any nesting of loaders
    """The loaders as a list; none where the trainer has none."""
    return [] if loaders is None else CombinedLoader(loaders).flattened


def length_by_index(loader: Any) -> int:  # noqa: ANN401 - any iterable may serve as a loader
    """How many samples can be read by index; 0 where they can only be iterated over."""
    by_index = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return len(loader.dataset) if by_index else 0


def picture_maker(trainer: L.Trainer) -> Any:  # noqa: ANN401 - any data module with to_picture
    """The data module, if it can undo its normalisation."""
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule if hasattr(datamodule, "to_picture") else None


def stretched(image: Tensor) -> Picture:
    """An image of unknown scaling [ch, H, W] as RGB: its least value black, its largest white."""
    values = image.detach().cpu().float().numpy().transpose(1, 2, 0)
    if values.shape[2] != 3:
        values = values[..., :1].repeat(3, axis=2)
    low, high = values.min(), values.max()
    shown: Picture = ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    return shown
