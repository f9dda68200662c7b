"""TAXLightningModule: trains, evaluates and explains a TAXNetwork under any Lightning Trainer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from tax_lightning.batch import Batch
from tax_lightning.consensus import Reference, check_reference
from tax_lightning.explanation import Explanation
from tax_lightning.losses import LossWeights, SegmentationLoss, TAXLoss, WhoTarget
from tax_lightning.metrics import ExplanationMetrics
from tax_lightning.models.kernel_bank import BankKind
from tax_lightning.models.mixture import Mixing
from tax_lightning.models.network import TAXNetwork, TAXOutput
from tax_lightning.modules import checkpoints, evaluation, inference
from tax_lightning.modules.base import MultiAnnotatorModule
from tax_lightning.modules.projection import (
    calibrate,
    find_sources,
    projection_loader,
    starting_pixels,
    validation_loader,
    warn_of_dead_prototypes,
)
from tax_lightning.modules.schedule import Event, Schedule

PrototypeUpdate = Literal["gradient", "ema"]


class TAXLightningModule(MultiAnnotatorModule):
    """Multi-annotator segmentation that says who decides each pixel and why.

    Works with any ``Trainer`` and any loader whose batches are dictionaries with

    - ``"image"``: float ``[B, ch, H, W]``
    - ``"masks"``: int64 or uint8 ``[B, N, H, W]`` class ids, 255 where annotator n did not label
    - ``"present"``: bool ``[B, N]``, optional: whose labels are there. An empty mask is present;
      without this key an annotator is absent where all of the mask is 255.
    - ``"reference"``: int64 ``[B, H, W]``, only for ``reference="given"``; 255 where unknown
    - ``"expert"``: int64 ``[B, H, W]``, optional: index of the expert of synthetic data
    - ``"id"``: list of str, optional: what to call the images when one is shown as a reason
    - ``"annotators"``: names in the order of N, optional: checked against ``annotators``

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        network: a :class:`~tax_lightning.models.network.TAXNetwork`, or any module that gives dense
            features ``[B, D, h, w]``, or a pair of these and of a context, instead of the arguments
            from ``architecture`` to ``backbone_options``. To load a checkpoint of such a module,
            give the network again.
        architecture: of segmentation_models_pytorch, such as ``"unet"``.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``"imagenet"`` fetches pretrained weights; ``None`` stays offline.
        in_channels: channels of an image.
        backbone_options: further arguments of the smp architecture.
        kernels: kernels, and prototypes, per annotator.
        kernel_size: side of a kernel in pixels, odd.
        embedding_channels: length of the embedding that prototypes are compared with.
        temperature: of the assignment.
        context: whether who and why are read off the encoder's deepest features too, see
            :class:`~tax_lightning.models.network.TAXNetwork`.
        explanation_gradient: share, in [0, 1], of the gradient of who and why that reaches the
            last features, see :class:`~tax_lightning.models.network.TAXNetwork`.
        bank: ``"private"`` kernels and prototypes for each annotator, or a bank ``"shared"`` by
            all.
        mixing: ``"prob"`` or ``"logit"``, see :mod:`tax_lightning.models.mixture`.
        prototype_update: prototypes are learnt by ``"gradient"``, or follow the mean of the pixels
            assigned to them (``"ema"``).
        cohorts: number of annotators in each cohort, where some were added later; by default all
            are one, see :class:`~tax_lightning.modules.add_annotators.AddedAnnotators`.
        reference: the labels that the result is trained for and measured against: ``"given"`` with
            the data, the ``"majority"`` of the annotators, ties ignored, ``"staple"``, which
            weighs them (:func:`tax_lightning.consensus.staple`), or ``"none"``: the result is
            trained for the labels of all annotators, and nobody is taught to be believed.
        who_target: what the weights of the annotators are taught, see
            :class:`~tax_lightning.losses.TAXLoss`.
        who_window: side in pixels, odd, of the window in which agreement with the reference counts.
        who_sharpness: how quickly disagreement inside the window lowers the agreement.
        segmentation_loss: cross-entropy, Dice or their sum.
        loss_weights: weight of each term.
        schedule: when prototypes are started, projected and frozen.
        explanation_metrics: whether testing measures who and why too, see
            :class:`~tax_lightning.metrics.explanation.ExplanationMetrics`; it then takes several
            times as long.
        optimizer: from parameters to an optimizer; the default is AdamW with a rate of 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.

    Raises:
        ValueError: if names are missing or doubled, an option is unknown, or a checkpoint of one's
            own network is loaded without that network.

    Example:
        >>> module = TAXLightningModule(
        ...     annotators=["Ana", "Ben"], classes=["background", "cell"], encoder="resnet18",
        ...     backbone_options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]},
        ... )
        >>> explanation = module.explain(torch.randn(1, 3, 32, 32), ids=["new"])
        >>> explanation.who.shape
        torch.Size([1, 2, 32, 32])
        >>> module.predict(torch.randn(1, 3, 32, 32), annotator="Ben").shape
        torch.Size([1, 2, 32, 32])
    """

    loss: TAXLoss
    kept = 0  # annotators, from the first, that training leaves as they are

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        network: nn.Module | None = None,
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        kernels: int = 4,
        kernel_size: int = 3,
        embedding_channels: int = 32,
        temperature: float = 0.1,
        context: bool = True,
        explanation_gradient: float = 0.3,
        bank: BankKind = "private",
        mixing: Mixing = "prob",
        prototype_update: PrototypeUpdate = "gradient",
        cohorts: Sequence[int] | None = None,
        reference: Reference = "majority",
        who_target: WhoTarget = "window",
        who_window: int = 23,
        who_sharpness: float = 60.0,
        segmentation_loss: SegmentationLoss = "ce",
        loss_weights: LossWeights | None = None,
        schedule: Schedule | None = None,
        explanation_metrics: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(annotators, classes, reference, optimizer, lr_scheduler)
        loss_weights = checkpoints.from_primitives(LossWeights, loss_weights)
        schedule = checkpoints.from_primitives(Schedule, schedule)
        built_of: dict[str, Any] = {
            "architecture": architecture,
            "encoder": encoder,
            "encoder_weights": encoder_weights,
            "in_channels": in_channels,
            "backbone_options": backbone_options,
            "kernels": kernels,
            "kernel_size": kernel_size,
            "embedding_channels": embedding_channels,
            "temperature": temperature,
            "context": context,
            "explanation_gradient": explanation_gradient,
            "bank": bank,
            "mixing": mixing,
        }
        # Primitives only, so that a checkpoint loads with weights_only=True.
        self.save_hyperparameters(
            {
                "annotators": list(annotators),
                "classes": list(classes),
                "network": None if network is None else "given",
                **built_of,
                "prototype_update": prototype_update,
                "cohorts": None if cohorts is None else list(cohorts),
                "reference": reference,
                "who_target": who_target,
                "who_window": who_window,
                "who_sharpness": who_sharpness,
                "segmentation_loss": segmentation_loss,
                "loss_weights": checkpoints.to_primitives(loss_weights),
                "schedule": checkpoints.to_primitives(schedule),
                "explanation_metrics": explanation_metrics,
            }
        )
        check_reference(reference, who_target)
        if prototype_update not in get_args(PrototypeUpdate):
            expected = ", ".join(get_args(PrototypeUpdate))
            raise ValueError(f"prototype_update={prototype_update!r}: expected one of {expected}.")
        if who_target == "none":
            L.pytorch.utilities.rank_zero_warn(
                "who_target='none': the weights of the annotators are taught nothing. The "
                "result can be good all the same, but who decides is arbitrary and means nothing."
            )
        if isinstance(network, TAXNetwork):
            self.network = network
        else:
            self.network = TAXNetwork(
                cohorts or len(self.annotators),
                len(self.classes),
                backbone=checkpoints.given_network(network),
                **built_of,
            )
        self.prototype_update: PrototypeUpdate = prototype_update
        if prototype_update == "ema":
            self.network.memory.prototypes.requires_grad_(False)
        self.network.check_names(self.annotators, self.classes)
        self.loss = TAXLoss(
            len(self.annotators),
            segmentation_loss,
            who_target,
            who_window,
            who_sharpness,
            self.network.mixing,
        )
        self.loss_weights = asdict(loss_weights)
        self.schedule = schedule
        self.schedule_done: list[str] = []
        self._measure_by(kernels=self.network.kernels)
        self.explanation_metrics = (
            ExplanationMetrics(self.network, self.annotators, len(self.classes))
            if explanation_metrics
            else None
        )

    # ------------------------------------------------------------------ use

    def forward(self, images: Tensor) -> TAXOutput:
        """See :class:`~tax_lightning.models.network.TAXNetwork`."""
        output: TAXOutput = self.network(images)
        return output

    def _segment(self, images: Tensor, chosen: list[int] | None) -> Tensor:
        return inference.segment(self.network, images, chosen)

    def explain(self, images: Tensor, ids: Sequence[str] | None = None) -> Explanation:
        """Segment images and say who decided each pixel and which prototypes are the reason.

        Args:
            images: ``[B, ch, H, W]``.
            ids: what to call the images.
        """
        names = [f"image {i}" for i in range(len(images))] if ids is None else ids
        return inference.explain(self.network, images, names, self.annotators, self.classes)

    @property
    def explained(self) -> bool:
        """Whether the prototypes are what they will stay, so that reasons can be named."""
        return not self.schedule.enabled or bool(self.network.memory.projected)

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Pick up the schedule where a resumed run left it."""
        super().on_train_start()
        if self.schedule.enabled and self._total_steps == float("inf"):
            raise ValueError(
                "trainer.max_epochs=-1: the schedule needs to know where the run ends. Set "
                "trainer.max_epochs or trainer.max_steps, or schedule.enabled=false."
            )
        if self.trainer.global_step == 0:
            self._start_anew()
        self.network.freeze(bool(self.network.memory.projected))

    def _start_anew(self) -> None:
        """Forget what belongs to an earlier run of this module.

        With the schedule off, prototypes that were projected by hand stay where they are.
        """
        self.loss.forget_counts()
        self.schedule_done = []
        if self.schedule.enabled or self.kept > 0:
            self.network.memory.projected.fill_(False)
            self.network.memory.forget_sources(self.kept)
            if self.kept == 0:
                self.network.who_scale.fill_(1.0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start, project and freeze the prototypes when their time has come."""
        for name, kind in self.schedule.due(self._progress, self.schedule_done):
            self._carry_out(kind)
            self.schedule_done.append(name)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of all terms; each term is logged."""
        batch = self._completed(batch)
        output = self(batch["image"])
        masks, present, reference = self._targets(batch, output)
        self._observe(present)
        terms = self.loss.segmentation_terms(output, batch["masks"], reference)
        ramp = 0.0 if self.network.fixed_prototypes else self.schedule.ramp(self._progress)
        if ramp > 0:
            terms |= self.loss.explanation_terms(
                output, self.network.memory, masks, present, reference, batch.get("expert")
            )
            if self.prototype_update == "ema":
                self.loss.follow(
                    output, self.network.memory, masks, present, reference, keep=self.kept
                )
        loss = self._weighted(terms, ramp)
        self._log_loss(loss, terms, images=len(masks))
        # Frozen parameters keep a (zero) gradient, for which DistributedDataParallel waits.
        return loss + sum(0.0 * fixed.sum() for fixed in self.network.frozen_parameters())

    def _targets(self, batch: Batch, output: TAXOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the explanation is taught with: masks, who is present, and the reference."""
        return batch["masks"], batch["present"], self.reference_labels(batch, output)

    def _weighted(self, terms: Mapping[str, Tensor], ramp: float = 1.0) -> Tensor:
        """Sum of the terms by their weights; ``ramp`` is for all but the segmentation terms."""
        factors = {"annotator": 1.0, "fused": 1.0}
        weighted = [
            self.loss_weights[name] * factors.get(name, ramp) * term for name, term in terms.items()
        ]
        return torch.stack(weighted).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep weight decay and momentum away from what is frozen."""
        for parameter in self.network.frozen_parameters():
            parameter.grad = None

    def on_train_end(self) -> None:
        """Project also when a run ended before its time, so that the module can explain."""
        super().on_train_end()
        if self.schedule.enabled and "final" not in self.schedule_done:
            self._carry_out("final")
            self.schedule_done.append("final")
            L.pytorch.utilities.rank_zero_warn(
                f"training stopped after {self.trainer.global_step} of {self._total_steps} steps, "
                f"before the final projection at {self.schedule.final:.0%}: the prototypes were "
                "projected now, but checkpoints saved earlier cannot name their sources. Let the "
                "run end, or lower schedule.final."
            )

    def _observe(self, present: Tensor) -> None:
        images = torch.ones_like(present[:, :1])
        counts = torch.cat([present, images], dim=1).sum(dim=0).float()
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self.loss.observe(counts[:-1], counts[-1])

    # ------------------------------------------------------------------ evaluation

    def predict_step(self, batch: Batch, batch_idx: int) -> Explanation:
        """The explanation of each image, on the CPU."""
        return self.explain(batch["image"], batch["id"]).to("cpu")

    def _segmentation_loss(
        self, batch: Batch, output: TAXOutput, reference: Tensor | None
    ) -> Tensor:
        return self._weighted(self.loss.segmentation_terms(output, batch["masks"], reference))

    def _measure_in_test(self, batch: Batch, output: TAXOutput, reference: Tensor | None) -> None:
        super()._measure_in_test(batch, output, reference)
        if self.explanation_metrics is not None:
            evaluation.measure_explanation(batch, output, reference, self.explanation_metrics)

    def _values_of_test(self) -> dict[str, Tensor]:
        values = super()._values_of_test()
        if self.explanation_metrics is not None:
            sources = self.network.memory.sources(self.annotators, self.classes)
            values |= evaluation.explanation_values(self.explanation_metrics, sources, self.trainer)
        return values

    # ------------------------------------------------------------------ prototypes

    def _carry_out(self, kind: Event) -> None:
        loader = projection_loader(self.trainer)
        if kind == "start":
            self.network.memory.start(starting_pixels(self, loader), keep=self.kept)
        elif kind == "trial":
            self.project(loader, final=False)
        else:
            self.project(loader, validation=validation_loader(self.trainer))

    def project(
        self, loader: Iterable[Batch], final: bool = True, validation: Iterable[Batch] = ()
    ) -> None:
        """Move every prototype onto its nearest training pixel and note where that is.

        Pixels qualify where the annotator labelled, agrees with the reference around, and the
        prototype is the nearest of the annotator's own. Called by the schedule; call it yourself
        after training with ``schedule.enabled=false``.

        Args:
            loader: batches of training images, not augmented. Under several processes each gives
                its own part of the images.
            final: see :meth:`tax_lightning.models.prototypes.PrototypeMemory.project`. The certainty of
                who is then calibrated (:func:`tax_lightning.modules.projection.calibrate`), and everything but
                the kernels is frozen.
            validation: batches of images that were not trained on, by which who is calibrated; by
                the training images where they do not tell who is right.
        """
        self.network.memory.project(find_sources(self, loader), final=final, keep=self.kept)
        if final:
            if self.kept == 0:  # to annotators who stay as they are belongs a scale already
                calibrate(self, [validation, loader])
            self.network.freeze()
            warn_of_dead_prototypes(self.annotators, self.network.memory.active)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the class and the names, and how far the schedule has come."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["schedule_done"] = list(self.schedule_done)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other annotators or classes; take up its schedule."""
        super().on_load_checkpoint(checkpoint)
        self.schedule_done = list(checkpoint.get("schedule_done", []))
