"""Passes over images: prototypes start, find their source pixels, and w is calibrated."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset

from tax_lightning.batch import Batch, unpacked
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.distributed import from_all_processes
from tax_lightning.losses import TAXLoss
from tax_lightning.models.backbone import evaluating
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import TAXOutput, TAXWeights
from tax_lightning.models.prototypes import SourceSearch
from tax_lightning.modules.base import MultiAnnotatorModule

START_PIXELS = 4096  # per annotator, for the clusters at which the prototypes are started
SCALES = torch.logspace(-1, 1, 61)  # of the evidence, among which w is calibrated
LEAST_PIXELS = 100  # for the calibration; from fewer pixels the scale would be a guess
NEAR = 0.005  # largest gap between mean weight and share of right pixels that counts as equal
LEAST_AGREEMENT = 0.5  # of an annotator around a pixel that may become a source


class ExplainingModule(MultiAnnotatorModule):
    """What the passes need of a module: a TAX network and its loss."""

    network: TAXNetwork
    loss: TAXLoss


@torch.no_grad()
def find_sources(module: ExplainingModule, loader: Iterable[Batch]) -> SourceSearch:
    """Look for the training pixels most similar to each prototype, in all processes.

    Pixels qualify where the annotator labelled, agrees with the reference around, and the prototype
    is the nearest of the annotator's own.

    Args:
        module: whose prototypes.
        loader: batches of training images, not augmented; of this process.
    """
    memory = module.network.memory
    search = SourceSearch(*memory.active.shape)
    for batch, weights, reference in visit(module, loader):
        agree = module.loss.agreement(batch["masks"], reference)
        qualified = (agree >= LEAST_AGREEMENT) & (batch["masks"] != IGNORE_INDEX)
        nearest = weights.log_within == weights.log_within.amax(dim=2, keepdim=True)
        search.update(
            similarity=memory.similarity(weights.embedding),
            eligible=nearest & qualified.unsqueeze(2),
            labels=batch["masks"],
            embedding=weights.embedding,
            ids=batch["id"],
        )
    found: SourceSearch
    found, *others = from_all_processes(module, search)
    for other in others:
        found.merge(other)
    return found


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

    The draw depends on the image alone, not on its batch or process.
    """
    per_image = max(1, START_PIXELS // _number_of_images(module, loader))
    drawn: dict[str, list[Tensor]] = {}
    for batch, output, reference in visit(module, loader, whole=True):
        assert isinstance(output, TAXOutput)
        agree = module.loss.agreement(batch["masks"], reference)
        weight = agree * module.loss.relevance(output, reference).unsqueeze(1)
        for i, name in enumerate(batch["id"]):
            drawn[name] = _draw(output.embedding[i], weight[i], per_image, name)
    everywhere: dict[str, list[Tensor]] = {}
    for part in from_all_processes(module, drawn):
        everywhere |= part  # in one order, so that all processes keep the same of two alike
    columns = zip(*(everywhere[name] for name in sorted(everywhere)), strict=True)
    return [torch.cat(column) for column in columns]


def _number_of_images(module: ExplainingModule, loader: Iterable[Batch]) -> int:
    """Images that all processes together see, at least 1."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if sampler is None or not hasattr(sampler, "__len__"):
        return max(1, int(module.trainer.num_training_batches))
    return max(1, len(sampler) * module.trainer.world_size)


def calibrate(module: ExplainingModule, loaders: Iterable[Iterable[Batch]]) -> None:
    """Set the scale of w by the first loader whose images tell which annotator is right.

    Args:
        module: whose scale is set; to 1 where no images tell.
        loaders: as of :func:`fit_who_scale`, in order of preference.
    """
    scale = module.network.who_scale.fill_(1.0)
    for loader in loaders if module.reference != "none" else ():
        fitted = fit_who_scale(module, loader)
        if fitted is not None:
            scale.fill_(fitted)
            return


@torch.no_grad()
def fit_who_scale(module: ExplainingModule, loader: Iterable[Batch]) -> float | None:
    """The scale of the evidence at which w is calibrated.

    Only pixels count where annotators disagree and exactly one of them agrees with the reference.
    There the mean of the largest w should equal the share of pixels at which it names the right
    annotator. Of the scales that come close to this, the one nearest to 1 is taken. (The scale of
    largest likelihood, as in Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural
    networks", 2017, has no bound where all pixels are named rightly. It would also make w certain
    where several annotators are right.) The annotator with the largest weight never changes.

    Args:
        module: whose w; its present scale is 1, and it has a reference.
        loader: batches of images, not augmented; of this process. Better not of training images,
            where a model is more certain than on others.

    Returns:
        The scale, one of ``SCALES``; ``None`` with too few such pixels. With the majority of three
        or more annotators as the reference there is none.
    """
    scales = SCALES.to(module.device)
    # The sum of the largest w at each scale, then the pixels named rightly, then all pixels.
    sums = torch.zeros(len(scales) + 2, dtype=torch.float64)
    for batch, weights, reference in visit(module, loader):
        assert reference is not None
        agree = module.loss.agreement(batch["masks"], reference)
        right = (batch["masks"] == reference.unsqueeze(1)) & (batch["masks"] != IGNORE_INDEX)
        log_who, right = _single_right(weights.log_who, batch["masks"], right, agree)
        for i, scale in enumerate(scales):
            sums[i] += (log_who * scale).softmax(dim=1).amax(dim=1).sum().cpu()
        named = log_who.argmax(dim=1, keepdim=True) if len(log_who) else right[:, :1].long()
        sums[-2] += right.gather(1, named).sum().cpu()
        sums[-1] += len(right)
    sums = torch.stack(from_all_processes(module, sums)).sum(dim=0)
    if sums[-1] < LEAST_PIXELS:
        return None
    gap = ((sums[:-2] - sums[-2]) / sums[-1]).abs()
    near = gap <= gap.min().clamp_min(NEAR)
    return float(SCALES[torch.where(near, SCALES.log().abs(), torch.inf).argmin()])


def _single_right(
    log_who: Tensor, masks: Tensor, right: Tensor, agree: Tensor
) -> tuple[Tensor, Tensor]:
    """Log w ``[M, N]`` and who is right, at the pixels where one of several annotators is right.

    Where the expert is absent, another may be right by accident. So pixels are skipped whose only
    correct annotator disagrees with the reference in the surrounding window. Weights are those
    among the annotators who labelled the pixel.
    """
    labelled = masks != IGNORE_INDEX
    believed = (right & (agree >= LEAST_AGREEMENT)).any(dim=1)
    cases = (right.sum(dim=1) == 1) & (labelled.sum(dim=1) > 1) & believed
    among_them = log_who.float().masked_fill(~labelled, -torch.inf)
    return among_them.movedim(1, -1)[cases], right.movedim(1, -1)[cases]


def _draw(embedding: Tensor, weight: Tensor, count: int, name: str) -> list[Tensor]:
    """For each annotator ``count`` pixels of one image drawn by weight: N tensors ``[M, D]``."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    pixels = embedding.flatten(1).T.float().cpu()
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
    for batch in loader:
        checked = module.on_before_batch_transfer(batch, 0)
        ready = unpacked(module.transfer_batch_to_device(checked, module.device, 0))
        images = ready["image"].to(next(network.parameters()).dtype)
        with evaluating(network):
            output = (
                module(images)
                if whole or module.reference_from_output
                else network.gate(network.encode(images).embedding)
            )
        yield ready, output, module.reference_labels(ready, output)


def projection_loader(trainer: L.Trainer) -> Iterable[Batch]:
    """This process's part of the training images, not augmented if the data module can."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    offered = hasattr(datamodule, "projection_dataloader")
    whole: Any = datamodule.projection_dataloader() if offered else trainer.train_dataloader
    batches = getattr(whole, "batch_sampler", None)
    if batches is None or isinstance(whole.dataset, IterableDataset):
        return cast(Iterable[Batch], whole)
    dataset = whole.dataset
    if offered and trainer.world_size > 1:  # the trainer's loader is divided already
        dataset = Subset(dataset, range(trainer.global_rank, len(dataset), trainer.world_size))
        batches = BatchSampler(SequentialSampler(dataset), whole.batch_size or 1, False)
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
    loaders: Any = trainer.val_dataloaders
    if loaders is None or not trainer.num_val_batches:
        return []
    several = loaders.values() if isinstance(loaders, dict) else loaders
    first = next(iter(several)) if isinstance(loaders, dict | list | tuple) else loaders
    most = trainer.num_val_batches[0]
    return islice(first, None if most == float("inf") else int(most))
