"""Passes over images, in which prototypes start and find their source pixels."""

import zlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.consensus import disagreement
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.distributed import from_all_processes
from tax_lightning.losses import TAXLoss
from tax_lightning.models.backbone import evaluating
from tax_lightning.models.mixture import full_precision
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import TAXOutput, TAXWeights
from tax_lightning.models.prototypes import SourceSearch
from tax_lightning.modules.base import MultiAnnotatorModule

UNKNOWN_NUMBER = 1000  # images of a loader that has no length
ELSEWHERE = 0.05  # weight of pixels that nobody disputes, where prototypes start
START_PIXELS = 4096  # per annotator, for the clusters at which the prototypes are started
MARGIN = 8  # pixels at the border from which sources are taken only if there are no others
LEAST_AGREEMENT = 0.5  # of an annotator around a pixel that may become a source


class ExplainingModule(MultiAnnotatorModule):
    """What the passes need of a module: a TAX network and its loss."""

    network: TAXNetwork
    loss: TAXLoss


@torch.no_grad()
def find_sources(module: ExplainingModule, loader: Iterable[Batch]) -> SourceSearch:
    """Look for the training pixels most similar to each prototype, in all processes.

    Pixels qualify where the annotator labelled, agrees with the reference around, and the prototype
    is the nearest of the annotator's own. Those that annotators dispute are preferred, so that the
    prototype decides something, and those that are not at the border of the image, where the
    network sees less than a person. The loader has those of this process.
    """
    memory = module.network.memory
    search = SourceSearch()
    for batch, weights, reference in visit(module, loader):
        agree = module.loss.agreement(batch["masks"], reference)
        qualified = (agree >= LEAST_AGREEMENT) & (batch["masks"] != IGNORE_INDEX)
        nearest = weights.within == weights.within.amax(dim=2, keepdim=True)
        disputed = disagreement(batch["masks"])
        search.update(
            similarity=memory.similarity(weights.embedding),
            eligible=nearest & qualified.unsqueeze(2),
            preferred=(disputed & _inside(disputed))[:, None, None],
            labels=batch["masks"],
            embedding=weights.embedding,
            ids=batch["id"],
        )
    found: SourceSearch
    found, *others = from_all_processes(module, search)
    for other in others:
        found.merge(other)
    return found


def _inside(maps: Tensor) -> Tensor:
    """True but at the border, of maps ``[B, H, W]``."""
    inside = torch.zeros_like(maps, dtype=torch.bool)
    down, right = (min(MARGIN, side // 4) for side in maps.shape[-2:])
    inside[:, down : maps.shape[-2] - down, right : maps.shape[-1] - right] = True
    return inside


def warn_of_pruned_prototypes(annotators: Sequence[str], active: Tensor) -> None:
    """Say of which annotators the final projection pruned prototypes; ``active`` is ``[N, K]``."""
    pruned = [
        f"{int((~row).sum())} of {name}"
        for name, row in zip(annotators, active, strict=True)
        if not row.all()
    ]
    if pruned:
        L.pytorch.utilities.rank_zero_warn(
            f"of {active.shape[1]} prototypes an annotator these were pruned, because no training "
            f"pixel resembles them: {', '.join(pruned)}. They decide nothing. Use fewer kernels "
            "(kernels=...) or train longer."
        )


@torch.no_grad()
def starting_pixels(module: ExplainingModule, loader: Iterable[Batch]) -> list[Tensor]:
    """For each annotator the embeddings ``[M, E]`` of pixels where they agree with the reference.

    Most of them are pixels that annotators dispute, if there are any.

    The draw depends on the image alone, not on its batch or process.
    """
    per_image = max(1, START_PIXELS // max(1, number_of_images(module, loader)))
    drawn: dict[str, list[Tensor]] = {}
    for batch, output, reference in visit(module, loader, whole=True):
        assert isinstance(output, TAXOutput)
        agree = module.loss.agreement(batch["masks"], reference)
        disputed = disagreement(batch["masks"])
        relevance = torch.where(disputed, 1.0, ELSEWHERE * module.loss.relevance(output, reference))
        weight = agree * relevance.unsqueeze(1)
        for i, name in enumerate(batch["id"]):
            drawn[name] = _draw(output.embedding[i], weight[i], per_image, name)
    everywhere: dict[str, list[Tensor]] = {}
    for part in from_all_processes(module, drawn):
        everywhere |= part  # in one order, so that all processes keep the same of two alike
    columns = zip(*(everywhere[name] for name in sorted(everywhere)), strict=True)
    return [torch.cat(column) for column in columns]


def number_of_images(module: ExplainingModule, loader: Iterable[Batch]) -> int:
    """Images that all processes together see; a guess where the loader does not tell."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    processes = 1 if module._trainer is None else module.trainer.world_size
    return len(sampler) * processes if isinstance(sampler, Sized) else UNKNOWN_NUMBER


def _draw(embedding: Tensor, weight: Tensor, count: int, name: str) -> list[Tensor]:
    """For each annotator ``count`` pixels of one image drawn by weight: N tensors ``[M, D]``."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    pixels = full_precision(embedding).flatten(1).T.cpu()
    drawn = []
    for weights in weight.flatten(1).float().cpu():
        if weights.sum() > 0:
            index = torch.multinomial(weights, count, replacement=True, generator=generator)
            drawn.append(pixels[index])
        else:
            drawn.append(pixels.new_zeros(0, pixels.shape[1]))
    return drawn


@torch.no_grad()
def visit(
    module: ExplainingModule, loader: Iterable[Batch], whole: bool = False
) -> Iterator[tuple[Batch, TAXOutput | TAXWeights, Tensor | None]]:
    """Every batch on the module's device, what the network says of it, and the reference labels.

    The network is in evaluation mode. It says who and why only, in a third of the time, where
    neither the ``whole`` output is asked for nor the reference made of it.
    """
    network = module.network
    for batch, images in on_device(module, loader):
        with evaluating(network):
            output = (
                module(images)
                if whole or module.reference_from_output
                else network.gate(network.encode(images).embedding)
            )
        yield batch, output, module.reference_labels(batch, output)


def on_device(module: ExplainingModule, loader: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Batches as in training, each with its images in the precision of the network."""
    for batch in loader:
        checked = module.on_before_batch_transfer(batch, 0)
        ready = unpacked(module.transfer_batch_to_device(checked, module.device, 0))
        images = ready["image"].to(next(module.network.parameters()).dtype)
        if module.types:
            with evaluating(module.network):
                ready = module.matched(ready, module(images).log_annotator_probs)
        yield ready, images


def projection_loader(trainer: L.Trainer) -> Iterable[Batch]:
    """This process's part of the training images, not augmented if the data module can."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    offered = hasattr(datamodule, "projection_dataloader")
    whole: Any = datamodule.projection_dataloader() if offered else trainer.train_dataloader
    batches = getattr(whole, "batch_sampler", None)
    if batches is None or isinstance(whole.dataset, IterableDataset):
        return cast(Iterable[Batch], whole)
    dataset, size = whole.dataset, whole.batch_size or 1
    divided = offered and trainer.world_size > 1  # the trainer's own loader is divided already
    trial: int = getattr(trainer, "fast_dev_run", 0)  # a few batches of everything
    if divided or trial:
        places = range(len(dataset))
        places = places[trainer.global_rank :: trainer.world_size] if divided else places
        places = places[: trial * size] if trial else places
        dataset = Subset(dataset, places)
        batches = BatchSampler(SequentialSampler(dataset), size, False)
    # A loader of its own: to iterate again over the one in use would disturb its epoch.
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=whole.num_workers,
        collate_fn=whole.collate_fn,
        worker_init_fn=whole.worker_init_fn,
    )


def validation_loader(trainer: L.Trainer) -> Iterable[Batch]:
    """This process's part of the images that the trainer validates with; empty without any."""
    if trainer.val_dataloaders is None and trainer.enable_validation:
        # As Lightning does before an epoch that ends with a validation: without the check before
        # training, or in a run that goes on within an epoch, nothing is loaded yet.
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    if trainer.val_dataloaders is None or not trainer.num_val_batches:
        return []
    first: Any = CombinedLoader(trainer.val_dataloaders).flattened[0]
    most = trainer.num_val_batches[0]
    return islice(first, None if most == float("inf") else int(most))
