"""The samples of a running trainer, one at a time: read, explained, and as pictures."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.explanation import Explanation
from tax_lightning.visualization.drawing import as_picture
from tax_lightning.visualization.palette import Picture


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


def picture_of(trainer: L.Trainer, image: Tensor) -> Picture:
    """An image ``[ch, H, W]`` as a person would see it.

    The data module undoes its normalisation if it can; else the image is stretched from dark to
    light.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "to_picture"):
        picture: Picture = datamodule.to_picture(image)
        return picture
    return as_picture(image.detach().cpu().float().numpy().transpose(1, 2, 0))


def training_images(
    trainer: L.Trainer, pl_module: L.LightningModule, ids: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Some of the training images, each once with its id, so that only one is held in memory.

    They are read by the data module if it can, as its evaluation transform leaves them; else in one
    pass over the training samples. Those that cannot be found are left out: the model may have been
    trained on other data.
    """
    wanted = set(ids)
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "read"):
        for sample_id in sorted(wanted):
            with suppress(LookupError, OSError, ValueError):
                yield sample_id, datamodule.read(sample_id)["image"]
        return
    for loader in flat_loaders(trainer.train_dataloader):
        for sample in single_samples(loader, pl_module, range(length_by_index(loader))):
            if not wanted:
                return
            (sample_id,) = sample["id"]
            if sample_id in wanted:
                wanted.remove(sample_id)
                yield sample_id, sample["image"][0]


def explained(
    trainer: L.Trainer,
    pl_module: Any,  # noqa: ANN401 - any module that explains
    image: Tensor,
    sample_id: str,
) -> Explanation:
    """The explanation of one image ``[ch, H, W]`` on the CPU, in the precision of the run."""
    precision = trainer.precision_plugin
    with precision.forward_context():
        images = precision.convert_input(image.unsqueeze(0).to(pl_module.device))
        explanation: Explanation = pl_module.explain(images, [sample_id])
    return explanation.to("cpu")
