"""After training: the kernels are fitted to the end, then annotators and trust are calibrated.

All of it works on a sample of pixels whose features are computed once, since everything but the
kernels is frozen by then.
"""

import copy
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.batch import Batch
from tax_lightning.consensus import disagreement
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.distributed import from_all_processes
from tax_lightning.explanation import TRUST_KINDS, expected_disagreement
from tax_lightning.models.backbone import evaluating
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.mixture import full_precision
from tax_lightning.models.network import DISPUTE_THRESHOLD
from tax_lightning.models.prototypes import ExampleSearch
from tax_lightning.models.trust import TrustCases, bounded_scale
from tax_lightning.modules.projection import ExplainingModule, number_of_images, on_device

MOST_VALUES = 2**26  # float32 numbers of a sample of pixels, 256 MB
MOST_PIXELS = 2**17  # of all images: more teach a linear fit nothing, and take their time
LEAST_PER_IMAGE = 64  # pixels
FIT_STEPS = 300
FIT_CHECK = 20  # steps between two looks at the held-out images
FIT_PIXELS = 4096  # of a step
FIT_RATE = 1e-2
PENALTY = 1e-4
HATCHED = 0.07  # of the pixels that two annotators dispute


Draw = Literal["disputed", "even"]


class PixelSample(NamedTuple):
    """Pixels of many images, with what the kernels need of each."""

    patches: Tensor  # the features that a kernel sees, ``[M, D s s]``
    within: Tensor  # g_nk, ``[M, N, K]``
    log_who: Tensor  # log w_n, ``[M, N]``
    masks: Tensor  # the annotators' labels, ``[M, N]``, 255 where not labelled
    right: Tensor  # labels that are right, bool ``[M, C]``: several at a tie, none where unknown
    image: Tensor  # a number for each image, ``[M]``

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """The pixels of several samples."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def at(self, chosen: Tensor | slice) -> Self:
        """Some of the pixels, by a mask or by their places."""
        return type(self)(*(column[chosen] for column in self))

    def without_labels_of(self, first: int) -> Self:
        """The same as if the first so many annotators had labelled nothing."""
        masks = self.masks.clone()
        masks[:, :first] = IGNORE_INDEX
        return self._replace(masks=masks)

    @property
    def labelled(self) -> Tensor:
        """Who labelled each pixel, bool ``[M, N]``."""
        return self.masks != IGNORE_INDEX


def kernel_logits(bank: KernelBank, pixels: PixelSample) -> Tensor:
    """What the kernels say of M pixels, ``[M, N, K, C]``."""
    flat = F.linear(pixels.patches, bank.weight.flatten(3).flatten(0, 2), bank.bias.flatten())
    return flat.view(-1, *bank.bias.shape)


def log_annotator_probs(logits: Tensor, pixels: PixelSample) -> Tensor:
    """Log of each annotator's own segmentation ``[M, N, C]``, of logits ``[M, N, K, C]``."""
    return (logits.log_softmax(dim=3) + pixels.within.log().unsqueeze(3)).logsumexp(dim=2)


def finish(
    module: ExplainingModule,
    loader: Iterable[Batch],
    validation: Iterable[Batch],
    keep: int = 0,
) -> str | None:
    """Fit the kernels to the end; calibrate annotators, dispute and trust.

    Arguments are those of :meth:`tax_lightning.modules.tax.TAXLightningModule.project`. The first
    ``keep`` annotators stay as they are, and so does trust. Returns what a person should know of
    the result; ``None`` without validation images.
    """
    network = module.network
    bank, trust = network.bank, network.trust
    if not keep:
        trust.reset()
    examples = ExampleSearch(len(module.classes))
    (training,) = sample_pixels(module, loader, ["disputed"], examples)
    network.memory.note_examples(examples, keep)
    none = training.at(slice(0))
    held_out, evenly = sample_pixels(module, validation, ["disputed", "even"]) or (none, none)
    learnt, chosen_by, measured = (
        pixels.without_labels_of(keep) for pixels in (training, held_out, evenly)
    )
    with torch.inference_mode(False), torch.enable_grad():
        # On copies in the processor's memory, where the pixels are.
        fitted = copy.deepcopy(bank).cpu().requires_grad_()
        fitted.to(full_precision(fitted.bias).dtype)
        losses = [_held_out_loss(fitted, measured)]
        fit_kernels(fitted, learnt, chosen_by)
        losses.append(_held_out_loss(fitted, measured))
        if len(evenly.image):
            scale, offset = calibrate_annotators(fitted, measured)
            losses.append(_held_out_loss(fitted, measured))
            network.dispute_threshold.fill_(dispute_threshold(fitted, evenly))
        if module.reference == "none":
            trust.scale.zero_()  # nobody is known to be right
        elif not keep:
            trust.fit(trust_cases(held_out if len(held_out.image) else training))
    bank.load_state_dict(fitted.state_dict())
    if not len(held_out.image):
        return None
    before, after, calibrated = losses
    changes = "".join(
        f"\n  {name}: scale {factor:.2f}, offset "
        + ", ".join(f"{c} {by:+.2f}" for c, by in zip(module.classes, shift, strict=True))
        for name, factor, shift in zip(
            module.annotators, scale.tolist(), offset.tolist(), strict=True
        )
    )
    told = "not measured"
    if not trust.scores.isnan().any():
        pairs = zip(TRUST_KINDS, trust.scores.tolist(), strict=True)
        told = ", ".join(f"{kind} {score:.3f}" for kind, score in pairs)
    return (
        "Annotators' own segmentations on validation images, mean -log p of their labels: "
        f"{before:.3f} as trained, {after:.3f} with the kernels fitted to the end, "
        f"{calibrated:.3f} calibrated by{changes}\n"
        f"Whom to trust, log score on validation images (smaller is better): {told}. "
        f"Kept: {trust.kind}, as a later one must be better by more than the standard error."
    )


@torch.no_grad()
def sample_pixels(
    module: ExplainingModule,
    loader: Iterable[Batch],
    draws: Sequence[Draw],
    examples: ExampleSearch | None = None,
) -> list[PixelSample]:
    """Pixels of the images of all processes, in one pass.

    The draw ``"disputed"`` takes up to half of each image's pixels among the disputed ones. These
    are few, but it is there that annotators differ: fitted to an even draw, the kernels of all
    annotators come out too alike. To calibrate takes the draw ``"even"``. A pixel is disputed
    because somebody labelled it so: where disputed ones count more, rare labels come out too
    probable. A draw depends on the image alone, not on its batch or process.

    ``examples`` takes up the pixels of every class that the prototypes resemble most. Returns the
    pixels of each draw; nothing without images.
    """
    network = module.network
    size = network.bank.weight.shape[-1]
    values = network.channels * size**2
    most = min(MOST_PIXELS, MOST_VALUES // values)
    count = max(LEAST_PER_IMAGE, most // max(1, number_of_images(module, loader)))
    drawn: dict[str, list[PixelSample]] = {}
    search = ExampleSearch(len(module.classes))
    for batch, images in on_device(module, loader):
        with evaluating(network):
            encoded = network.encode(images)
            weights = network.gate(encoded.embedding)
        if examples is not None:
            nearest = weights.within == weights.within.amax(dim=2, keepdim=True)
            similarity = network.memory.similarity(encoded.embedding)
            search.update(similarity, nearest, batch["masks"], batch["id"])
        right = module.right_labels(batch)
        for i, name in enumerate(batch["id"]):
            # What a kernel sees at each place. A view, of which only what is drawn is copied.
            padded = F.pad(encoded.features[i], (size // 2,) * 4)
            patches = padded.unfold(1, size, 1).unfold(2, size, 1)
            columns = (
                weights.within[i].flatten(2),
                weights.log_who[i].flatten(1),
                batch["masks"][i].flatten(1),
                right[i].flatten(1),
            )
            drawn[name] = []
            for draw in draws:
                places = _drawn(columns[2], count, name, draw)
                rows, across = places // patches.shape[2], places % patches.shape[2]
                seen = full_precision(patches[:, rows, across].movedim(1, 0).flatten(1))
                taken = [seen.cpu(), *(col[..., places].movedim(-1, 0).cpu() for col in columns)]
                taken.append(torch.full((len(places),), zlib.crc32(name.encode())))
                drawn[name].append(PixelSample(*taken))
    everywhere: dict[str, list[PixelSample]] = {}
    for part, others in from_all_processes(module, (drawn, search)):
        everywhere |= part
        if examples is not None:
            examples.merge(others)
    by_draw = zip(*(everywhere[name] for name in sorted(everywhere)), strict=True)
    return [PixelSample.together(parts) for parts in by_draw]


def _drawn(masks: Tensor, count: int, name: str, draw: Draw) -> Tensor:
    """Places ``[M]`` in an image's masks ``[N, P]``, evenly or half of them where disputed."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    labelled = (masks != IGNORE_INDEX).any(0).cpu()
    disputed = disagreement(masks.T).cpu()
    kinds = [labelled] if draw == "even" else [disputed, labelled & ~disputed]
    taken = []
    for kind in kinds:
        places = kind.nonzero().flatten()
        order = torch.randperm(len(places), generator=generator)
        taken.append(places[order[: count // len(kinds)]])
    return torch.cat(taken).to(masks.device)


def fit_kernels(bank: KernelBank, training: PixelSample, held_out: PixelSample) -> None:
    """Fit the kernels to the end, each annotator's own labels being what they are fitted to.

    The fit that predicts the labels of the held-out pixels best is kept; with none the last.
    """
    if not len(training.image):  # nobody labelled anything
        return
    optimizer = torch.optim.Adam(bank.parameters(), lr=FIT_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    generator = torch.Generator().manual_seed(0)
    pixels = min(FIT_PIXELS, len(training.image))
    best, kept = float("inf"), bank.state_dict()
    for step in range(FIT_STEPS + 1):
        if step % FIT_CHECK == 0 and len(held_out.image):
            loss = _held_out_loss(bank, held_out)
            if loss < best:
                best, kept = loss, copy.deepcopy(bank.state_dict())
        rows = torch.randint(len(training.image), (pixels,), generator=generator)
        optimizer.zero_grad()
        drawn = training.at(rows)
        _label_loss(kernel_logits(bank, drawn), drawn).backward()
        optimizer.step()
        scheduler.step()
    if len(held_out.image):
        bank.load_state_dict(kept)


def _label_loss(logits: Tensor, pixels: PixelSample) -> Tensor:
    """Mean over annotators who labelled of the mean -log p_n of their labels."""
    log_probs = log_annotator_probs(logits, pixels)
    labels = pixels.masks.clamp(max=log_probs.shape[2] - 1).long().unsqueeze(2)
    each = -log_probs.gather(2, labels).squeeze(2)
    labelled = pixels.labelled
    counts = labelled.sum(0)
    of_each = (each * labelled).sum(0) / counts.clamp_min(1)
    return of_each.sum() / (counts > 0).sum().clamp_min(1)


def calibrate_annotators(bank: KernelBank, pixels: PixelSample) -> tuple[Tensor, Tensor]:
    """Scale the kernels of each annotator and shift their classes, so that p_n is as often right.

    One scale and one offset a class for each annotator, of the logits of all their kernels, with
    the smallest -log p_n of the labels (Platt scaling; for networks Guo, Pleiss, Sun, Weinberger,
    "On calibration of modern neural networks", 2017). The pixels are of images that were not
    trained on. Returns scales ``[N]`` and offsets ``[N, C]``.
    """
    annotators, _, classes = bank.bias.shape
    logits = kernel_logits(bank, pixels).detach()  # once: they are only scaled and shifted
    log_scale = torch.zeros(annotators).double().requires_grad_()
    offset = torch.zeros(annotators, classes).double().requires_grad_()
    optimizer = torch.optim.LBFGS([log_scale, offset], max_iter=60, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        scale = bounded_scale(log_scale).view(-1, 1, 1)
        loss = _label_loss(scale * logits + offset.unsqueeze(1), pixels)
        loss = loss + PENALTY * (offset.square().mean() + log_scale.square().mean())
        loss.backward()
        return loss

    optimizer.step(objective)
    scale = bounded_scale(log_scale).detach().to(bank.bias)
    offset = (offset - offset.mean(1, keepdim=True)).detach().to(bank.bias)
    with torch.no_grad():
        bank.weight.mul_(scale.view(-1, 1, 1, 1, 1, 1))
        bank.bias.mul_(scale.view(-1, 1, 1)).add_(offset.unsqueeze(1))
    return scale, offset


@torch.no_grad()
def dispute_threshold(bank: KernelBank, pixels: PixelSample) -> float:
    """The expected disagreement below which pictures are hatched as undisputed.

    So that of the pixels that two annotators or more dispute only a share of ``HATCHED`` is
    hatched. With three annotators or fewer one is enough. ``DISPUTE_THRESHOLD`` without such a
    pixel.
    """
    probs = log_annotator_probs(kernel_logits(bank, pixels), pixels).exp()
    d = expected_disagreement(probs[..., None, None])[:, 0, 0]
    said = pixels.masks.unsqueeze(2) == torch.arange(probs.shape[2])
    against = pixels.labelled.sum(1) - said.sum(1).amax(1)
    clear = against >= (2 if probs.shape[1] > 3 else 1)
    if not clear.any():
        return DISPUTE_THRESHOLD
    return float(np.quantile(d[clear].numpy(), HATCHED))  # torch's has a limit of values


@torch.no_grad()
def _held_out_loss(bank: KernelBank, pixels: PixelSample) -> float:
    return float(_label_loss(kernel_logits(bank, pixels), pixels))


def trust_cases(pixels: PixelSample) -> TrustCases:
    """The disputed pixels at which the reference says who is right; a case for each tied label."""
    rows = pixels.at(disagreement(pixels.masks))
    said = rows.masks.unsqueeze(2) == torch.arange(rows.right.shape[1])  # [M, N, C]
    case, label = rows.right.nonzero(as_tuple=True)
    right = said[case, :, label]
    tie = rows.right.sum(1)[case]
    divided = right.any(1) & (rows.labelled[case] & ~right).any(1)
    evidence = rows.log_who.masked_fill(~rows.labelled, -torch.inf)[case]
    cases = TrustCases(evidence, right, 1 / tie, rows.image[case])
    return TrustCases(*(column[divided] for column in cases))
