"""Annotators who are added to a trained model, while all others stay as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from tax_lightning.batch import Batch, by_our_keys, complete_batch
from tax_lightning.consensus import right_labels
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import most_likely
from tax_lightning.losses import LossWeights
from tax_lightning.models.output import TAXOutput, of_panel
from tax_lightning.modules.checkpoints import read_checkpoint
from tax_lightning.modules.schedule import Schedule
from tax_lightning.modules.tax import TAXLightningModule

# Hyper-parameters that the base decides.
TAKEN_OVER = (
    *("architecture", "encoder", "in_channels", "backbone_options", "kernels", "kernel_size"),
    *("reference", "who_window", "segmentation_loss"),
)


class AddedAnnotators(TAXLightningModule):
    """A trained model that learns further annotators, from a few of their masks.

    Only the kernels, prototypes and priors of the new annotators are trained; the segmentations of
    the annotators known before stay as they were. Where the data have no labels of these, the
    model's own segmentations take their place. Where the data have no reference, the result of the
    annotators known before does. A checkpoint of this run is one of a plain
    :class:`~tax_lightning.modules.tax.TAXLightningModule` with all the annotators.

    Args:
        base: path of the checkpoint of the model that the annotators are added to.
        annotators: of the data; those that the base does not know are added.
        classes: of the data; they must be those of the base.
        network: the module that gives the features, if the base was trained with the user's own.
        in_channels: of the data; they must be those of the base.
        loss_weights: weight of each term.
        schedule: when the new prototypes are started, projected and frozen.
        explanation_metrics: as in the base class.
        optimizer: as in the base class.
        lr_scheduler: as in the base class.

    Raises:
        ValueError: if the base is no checkpoint of this library, or does not fit the data.

    Example:
        Trained with ``tax fit --config experiments/add_annotator.yaml``; in one's own script
        ``AddedAnnotators(base="best.ckpt", annotators=["Zoe"], classes=["background", "cell"])``
        takes the place of ``TAXLightningModule(...)``.
    """

    reference_from_output = True

    def __init__(
        self,
        base: str,
        annotators: Sequence[str],
        classes: Sequence[str],
        network: nn.Module | None = None,
        in_channels: int = 3,
        loss_weights: LossWeights | None = None,
        schedule: Schedule | None = None,
        explanation_metrics: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        checkpoint = read_checkpoint(base, "base", ("hyper_parameters", "names", "state_dict"))
        settings = checkpoint["hyper_parameters"]
        known = list(checkpoint["names"]["annotators"])
        added = [name for name in annotators if name not in known]
        _check(base, checkpoint, annotators, classes, in_channels)
        super().__init__(
            annotators=[*known, *added],
            classes=classes,
            network=settings["network"] if network is None else network,
            loss_weights=loss_weights,
            schedule=schedule,
            explanation_metrics=explanation_metrics,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            **{name: settings[name] for name in TAKEN_OVER},
        )
        self.kept = len(known)
        self.labelled_by = tuple(annotators)
        self._take_over(checkpoint["state_dict"])
        self.network.requires_grad_(False)
        for parameter in self._learnt:
            parameter.requires_grad_(True)

    @property
    def _learnt(self) -> list[nn.Parameter]:
        """The parameters with a row for each annotator."""
        bank, memory = self.network.bank, self.network.memory
        return [bank.weight, bank.bias, memory.vectors, memory.prior]

    def _take_over(self, theirs: dict[str, Any]) -> None:
        """Weights of the base; where there is a row for each annotator, the first rows."""
        mine = self.state_dict()
        for name, value in theirs.items():
            if isinstance(value, Tensor):
                mine[name][... if value.ndim == 0 else slice(len(value))] = value
            else:
                mine[name]["pixel_ids"][: len(value["pixel_ids"])] = value["pixel_ids"]
        self.load_state_dict(mine)
        self._known_rows = [parameter[: self.kept].detach().clone() for parameter in self._learnt]

    def optimizer_step(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - of Lightning
        """Put back the rows of the annotators known before, which decay and momentum changed.

        At once: a callback may save a checkpoint right after the step.
        """
        super().optimizer_step(*args, **options)
        with torch.no_grad():
            for parameter, rows in zip(self._learnt, self._known_rows, strict=True):
                parameter[: self.kept] = rows.to(parameter)

    def on_train_start(self) -> None:
        """Hold the features still from the first step on."""
        super().on_train_start()
        self.network.freeze(prototypes=self.network.frozen_prototypes)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:  # noqa: ANN401
        """Check a batch, and add empty places for the annotators whom the data lack."""
        given, names = by_our_keys(batch, self.batch_keys), self.labelled_by
        theirs = given.get("annotators", names) if isinstance(given, Mapping) else names
        if not self._needs_labels and tuple(theirs) == self.annotators:
            names = self.annotators
        completed = complete_batch(given, names, self.classes, needs_labels=self._needs_labels)
        completed["annotators"] = self.annotators
        if "masks" not in completed:
            return completed
        places = [self.annotators.index(name) for name in names]
        masks, present = completed["masks"], completed["present"]
        size = (len(masks), len(self.annotators))
        completed["masks"] = masks.new_full((*size, *masks.shape[2:]), IGNORE_INDEX)
        completed["masks"][:, places] = masks
        completed["present"] = present.new_zeros(size)
        completed["present"][:, places] = present
        if "expert" in completed:  # from places among the data's annotators to those of all
            place = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX)
            place[: len(places)] = torch.tensor(places)
            completed["expert"] = place.to(completed["expert"].device)[completed["expert"].long()]
        return completed

    def reference_labels(self, batch: Batch, output: TAXOutput) -> Tensor | None:
        """The labels given with the data, else the result of the annotators known before."""
        if self.reference == "none" or (self.reference == "given" and "reference" in batch):
            return super().reference_labels(batch, output)
        with torch.no_grad():
            return most_likely(of_panel(output, slice(self.kept)).log_probs, dim=1)

    def right_labels(self, batch: Batch) -> Tensor:
        """None are known where the data lack the reference; trust stays that of the base."""
        known = self.reference == "majority" or "reference" in batch
        return right_labels(self.reference if known else "none", batch, len(self.classes))

    def _targets(self, batch: Batch, output: TAXOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """Annotators known before count as present, with the model's own segmentation of each."""
        own = most_likely(output.log_annotator_probs.detach(), dim=2)
        known = (torch.arange(len(self.annotators)) < self.kept).to(own.device)
        unseen = known & ~batch["present"]
        masks = torch.where(unseen[:, :, None, None], own, batch["masks"])
        return masks, batch["present"] | known, self.reference_labels(batch, output)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save a plain module that knows all the annotators."""
        super().on_save_checkpoint(checkpoint)
        plain = TAXLightningModule
        checkpoint["class_path"] = f"{plain.__module__}.{plain.__qualname__}"


def _check(
    base: str,
    checkpoint: dict[str, Any],
    annotators: Sequence[str],
    classes: Sequence[str],
    in_channels: int,
) -> None:
    names, settings = checkpoint["names"], checkpoint["hyper_parameters"]
    if set(annotators) <= set(names["annotators"]):
        raise ValueError(
            f"base={base}: it knows all of {list(annotators)} already. Name at least one new "
            "annotator in the data."
        )
    if settings.get("types"):
        raise ValueError(
            f"base={base}: its annotators are types of annotation, to which no person can be "
            "added. Train the base without types."
        )
    if list(names["classes"]) != list(classes):
        raise ValueError(
            f"base={base}: its classes are {list(names['classes'])}, but the data have "
            f"{list(classes)}. Name the same classes in the same order."
        )
    if settings["in_channels"] != in_channels:
        raise ValueError(
            f"base={base}: its images have {settings['in_channels']} channels, but the data have "
            f"{in_channels}. Set data.init_args.channels={settings['in_channels']}."
        )
