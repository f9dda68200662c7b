"""TAXLightningModule: trains, evaluates and explains a TAXNetwork under any Lightning Trainer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from tax_lightning.batch import Batch
from tax_lightning.explanation import Explanation, most_likely
from tax_lightning.losses import LossWeights, TAXLoss
from tax_lightning.metrics import ExplanationMetrics
from tax_lightning.models.backbone import evaluating
from tax_lightning.models.mixture import probs_at
from tax_lightning.models.network import DISPUTE_THRESHOLD, TAXNetwork
from tax_lightning.models.output import EVERYBODY, Panel, TAXOutput
from tax_lightning.modules.calibration import finish
from tax_lightning.modules.checkpoints import settings_from
from tax_lightning.modules.projection import (
    ExplainingModule,
    find_sources,
    projection_loader,
    starting_pixels,
    validation_loader,
    warn_of_pruned_prototypes,
)
from tax_lightning.modules.schedule import Event, Schedule
from tax_lightning.windows import Places


class TAXLightningModule(ExplainingModule):
    """Multi-annotator segmentation that says who decides each pixel and why.

    Works with any ``Trainer`` and any loader whose batches are tuples of image, masks and, where
    there is one, reference, or dictionaries with

    - ``"image"``: float ``[B, ch, H, W]``
    - ``"masks"``: int64 or uint8 ``[B, N, H, W]`` class ids, 255 where annotator n did not label
    - ``"present"``: bool ``[B, N]``, optional: whose labels are there. An empty mask is present;
      without this key an annotator is absent where all of the mask is 255.
    - ``"reference"``: int64 ``[B, H, W]``, for ``reference="given"`` or ``"staple"``; 255 where
      unknown
    - ``"expert"``: int64 ``[B, H, W]``, optional: index of the expert of synthetic data
    - ``"id"``: list of str, optional: names of the images, by which prototypes name their sources
    - ``"annotators"``: names in the order of N, optional: checked against ``annotators``

    Args:
        annotators: names, in the order of the N axis of ``"masks"``; or their number.
        classes: names, in the order of class ids; the first is the background. Or their number.
        kernels: kernels, and prototypes, per annotator.
        kernel_size: side of a kernel in pixels, odd.
        who_window: side in pixels, odd, of the window in which agreement with the reference counts.
        loss_weights: weight of each term.
        schedule: when prototypes are started, projected and frozen.
        annotators_per_step: for many annotators: draw at most so many in each training step, from
            those whose labels came. Time and memory of a step then follow that number. The step is
            that of a model of these annotators alone: the result is theirs, and who is one of them.
            (So the logit models of economics are fitted to drawn alternatives: D. McFadden,
            "Modelling the choice of residential location", 1978.) ``None``: all of them.
        explanation_metrics: whether testing measures who and why too, see
            :class:`~tax_lightning.metrics.explanation.ExplanationMetrics`; it then takes several
            times as long.
        **options: ``network``, ``encoder``, ``reference``, ``optimizer`` and all others of
            :class:`~tax_lightning.modules.base.MultiAnnotatorModule`. The network may be a
            :class:`~tax_lightning.models.network.TAXNetwork` too. With ``reference="none"`` the
            result is trained on the labels of all annotators, and who is not trained.

    Raises:
        ValueError: as in the base class.

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

    weighs = True
    kept = 0  # the first so many annotators stay as they are in training

    def __init__(
        self,
        annotators: Sequence[str] | int,
        classes: Sequence[str] | int,
        kernels: int = 2,
        kernel_size: int = 3,
        who_window: int = 23,
        loss_weights: LossWeights | None = None,
        schedule: Schedule | None = None,
        annotators_per_step: int | None = None,
        explanation_metrics: bool = False,
        **options: Any,  # noqa: ANN401 - of the base class
    ) -> None:
        super().__init__(annotators, classes, **options)
        weights = settings_from(LossWeights, loss_weights)
        self.schedule = settings_from(Schedule, schedule)
        if annotators_per_step is not None and (annotators_per_step < 1 or self.types):
            raise ValueError(
                f"annotators_per_step={annotators_per_step}: expected 1 or more, and annotators in "
                "place of types, of which all must be there to be matched. Leave it out."
            )
        self.annotators_per_step = annotators_per_step
        own = {"kernels": kernels, "kernel_size": kernel_size}
        self.save_hyperparameters(
            {
                **own,
                "who_window": who_window,
                "loss_weights": asdict(weights),
                "schedule": {**asdict(self.schedule), "trials": list(self.schedule.trials)},
                "annotators_per_step": annotators_per_step,
                "explanation_metrics": explanation_metrics,
            }
        )
        self._primitives = dict(self.hparams)
        given, built_of = self.backbone["backbone"], {**own, **self.backbone}
        if not isinstance(given, TAXNetwork):
            given = TAXNetwork(len(self.annotators), len(self.classes), **built_of)
        self.network = given
        self.network.check_names(self.annotators, self.classes)
        segmentation = self.hparams["segmentation_loss"]
        self.loss = TAXLoss(len(self.annotators), segmentation, who_window)
        self.loss_weights = asdict(weights)
        if self.reference == "none" or not weights.who:
            L.pytorch.utilities.rank_zero_warn(
                "who is not trained (reference='none', or loss_weights.who=0): the result can be "
                "good all the same, but who decides is then arbitrary and means nothing."
            )
        self.schedule_done: list[str] = []
        self._measure_by(kernels=self.network.kernels)
        if explanation_metrics:
            self.explanation_metrics = ExplanationMetrics(self.network, self.annotators)

    # ------------------------------------------------------------------ use

    def forward(self, images: Tensor, panel: Panel = EVERYBODY) -> TAXOutput:
        """See :class:`~tax_lightning.models.network.TAXNetwork`."""
        output: TAXOutput = self.network(images, panel)
        return output

    def _by_output(
        self,
        images: Tensor,
        made: Callable[[Any], Tensor],
        chosen: list[int] | None,
    ) -> Tensor:
        panel = EVERYBODY if chosen is None else torch.tensor(chosen, device=images.device)
        with evaluating(self.network):
            bands = self.network.bands(self.network.encode(images), panel)
            return torch.cat([made(band) for band in bands], dim=-2)

    @torch.no_grad()
    def explain(
        self,
        images: Tensor,
        ids: Sequence[str] | None = None,
        tile: int | None = None,
        at: tuple[Places, Places] | None = None,
    ) -> Explanation:
        """Segment images and say who decided each pixel and which prototypes are the reason.

        Warns where the weights are of a time before the final projection, so that no prototype
        names a training pixel.

        Args:
            images: ``[B, ch, H, W]``.
            ids: their names.
            tile: side in pixels of windows, as of
                :meth:`~tax_lightning.modules.base.MultiAnnotatorModule.predict`. The kernels and
                their shares are those of the window in whose middle a pixel lies.
            at: rows and columns of the pixels to be explained, in ascending order; with a tile, to
                show a large image smaller without the memory for all of its pixels. ``None``: all.

        Raises:
            ValueError: if the tile is too small.
        """
        trainer = self._trainer
        fitting = trainer is not None and trainer.state.fn == "fit" and not trainer.state.finished
        if not self.explained and not fitting:
            L.pytorch.utilities.rank_zero_warn(
                "explain: no prototype is a training pixel yet, as these weights are of a time "
                "before the final projection. Train to the end, and take the checkpoint that "
                "ExplainedCheckpoint keeps."
            )
        if tile is None:
            maps = self._explanation_maps(images)
        else:
            there = (None, None) if at is None else at
            maps = self._in_tiles(images, tile, self._explanation_maps, *there)
        explanation = Explanation(
            ids=tuple(f"image {i}" for i in range(len(images))) if ids is None else tuple(ids),
            annotators=self.shown_names,
            classes=self.classes,
            **maps,  # type: ignore[arg-type]
            sources=self.network.memory.sources(self.shown_names, self.classes),
            trust=self.network.trust.basis(self.reference),
            dispute_threshold=float(self.network.dispute_threshold),
            persons=self.persons,
            types=self.types,
        )
        if tile is None and at is not None:
            return explanation.sampled(*(torch.tensor([*places]) for places in at))
        return explanation

    def _explanation_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of an :class:`Explanation` by name."""
        with evaluating(self.network):
            bands = self.network.bands(self.network.encode(images))
            parts = [_maps_of(band) for band in bands]
        return {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}

    @property
    def explained(self) -> bool:
        """Whether the prototypes are final, so that reasons can be named."""
        return not self.schedule.enabled or bool(self.network.memory.projected)

    # ------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        """Refuse averages of weights, which no prototype is projected onto."""
        averaging = WeightAveraging, StochasticWeightAveraging
        callbacks: Any = getattr(self.trainer, "callbacks", ())
        for callback in callbacks:
            if self.schedule.enabled and isinstance(callback, averaging):
                raise ValueError(
                    f"{type(callback).__name__}: it averages weights after the prototypes became "
                    "training pixels, so that they would be none. Leave the callback out, or set "
                    "schedule.enabled=false and call module.project(loader) after the training."
                )

    def on_train_start(self) -> None:
        """Start a new run, or continue the schedule of a resumed one."""
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

        With the schedule off, prototypes that the user projected stay where they are.
        """
        self.loss.forget_counts()
        self.schedule_done = []
        if self.schedule.enabled or self.kept > 0:
            self.network.memory.projected.fill_(False)
            self.network.memory.forget_sources(self.kept)
            if self.kept == 0:
                self.network.trust.reset()
                self.network.dispute_threshold.fill_(DISPUTE_THRESHOLD)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start, project and freeze the prototypes if that is due before the first step."""
        super().on_train_batch_start(batch, batch_idx)
        self._keep_schedule(self.trainer.global_step / self._total_steps)

    def optimizer_step(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - of Lightning
        """Start, project and freeze the prototypes when their time has come.

        Right after the step: a callback may save a checkpoint at the end of the batch.
        """
        super().optimizer_step(*args, **options)
        self._keep_schedule(self._progress)

    def _keep_schedule(self, progress: float) -> None:
        for name, kind in self.schedule.due(progress, self.schedule_done):
            self._carry_out(kind)
            self.schedule_done.append(name)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of all terms; each term is logged."""
        batch = self._completed(batch)
        panel = self._drawn(batch["present"])
        output = self(batch["image"], panel)
        batch = self.matched(batch, output.log_annotator_probs)
        masks, present, reference = self._targets(batch, output)
        self._observe(present)
        terms = self.loss.segmentation_terms(output, batch["masks"][:, panel], reference)
        ramp = 0.0 if self.network.frozen_prototypes else self.schedule.ramp(self._progress)
        if ramp > 0:
            labels = masks[:, panel], present[:, panel], reference, panel
            terms |= self.loss.explanation_terms(output, self.network.memory, *labels)
        loss = self._weighted(terms, ramp)
        self._log_loss(loss, terms, images=len(masks))
        # Frozen parameters keep a (zero) gradient, for which DistributedDataParallel waits.
        return loss + sum(0.0 * fixed.sum() for fixed in self.network.frozen_parameters())

    def _drawn(self, present: Tensor) -> Panel:
        """The annotators of this step, of those whose labels came in any process."""
        if self.annotators_per_step is None:
            return EVERYBODY
        counts = self.trainer.strategy.reduce(present.sum(dim=0).float(), reduce_op="sum")
        here = counts.nonzero().flatten() if counts.any() else torch.arange(len(counts))
        # The same in all processes, and in a run that goes on.
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        order = torch.randperm(len(here), generator=generator)[: self.annotators_per_step]
        return here.to(present.device)[order.to(present.device)].sort().values

    def _targets(self, batch: Batch, output: TAXOutput) -> tuple[Tensor, Tensor, Tensor | None]:
        """What who and why are trained with: masks, who is present, and the reference."""
        return batch["masks"], batch["present"], self.reference_labels(batch, output)

    def _weighted(self, terms: Mapping[str, Tensor], ramp: float = 1.0) -> Tensor:
        """Sum of the terms by their weights; ``ramp`` is for all but the segmentation terms."""
        factors = {name: ramp * weight for name, weight in self.loss_weights.items()}
        factors |= {name: self.loss_weights[name] for name in ("annotator", "fused")}
        return torch.stack([factors[name] * term for name, term in terms.items()]).sum()

    def _observe(self, present: Tensor) -> None:
        """Count whose labels came, over all processes."""
        images = torch.ones_like(present[:, :1])
        counts = torch.cat([present, images], dim=1).sum(dim=0).float()
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self.loss.observe(counts[:-1], counts[-1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep weight decay and momentum away from what is frozen."""
        super().on_before_optimizer_step(optimizer)
        for parameter in self.network.frozen_parameters():
            parameter.grad = None

    def on_train_end(self) -> None:
        """Project also when a run ended early, so that the module can explain."""
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

    # ------------------------------------------------------------------ evaluation

    def predict_step(self, batch: Batch, batch_idx: int) -> Explanation:
        """The explanation of each image, on the CPU."""
        return self.explain(batch["image"], batch["id"]).to("cpu")

    def _segmentation_loss(
        self, batch: Batch, output: TAXOutput, reference: Tensor | None
    ) -> Tensor:
        return self._weighted(self.loss.segmentation_terms(output, batch["masks"], reference))

    def on_test_start(self) -> None:
        """Measure the threshold of the pictures."""
        dispute: Any = self.test_metrics["dispute"]
        dispute.threshold = float(self.network.dispute_threshold)

    @property
    def _all_alike(self) -> bool:
        """Whether trust is a constant, so that the weights are the same at every pixel."""
        return self.network.trust.kind != "image"

    def _probed(self) -> dict[str, Tensor]:
        # The data module gives training images by their ids.
        read = getattr(getattr(self.trainer, "datamodule", None), "read", None)
        metrics: Any = self.explanation_metrics
        if read is None:
            return {}
        sources = self.network.memory.sources(self.annotators, self.classes)
        # The probes are those of the first process.
        probed = metrics.probe(sources, lambda id: read(id)["image"])
        probed = self.trainer.strategy.broadcast(probed)
        return {name: torch.tensor(value) for name, value in probed.items()}

    # ------------------------------------------------------------------ prototypes

    def _carry_out(self, kind: Event) -> None:
        self.check_finite()
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

        Which pixels qualify is said in :func:`~tax_lightning.modules.projection.find_sources`. The
        schedule calls this; with ``schedule.enabled=false`` call it yourself after training.

        Args:
            loader: batches of training images, not augmented; of this process.
            final: see :meth:`tax_lightning.models.prototypes.PrototypeMemory.project`. The kernels
                are then fitted to the end and calibrated, and everything but them is frozen.
            validation: batches of images that were not trained on, for the calibration. Without
                any, annotators are not calibrated, and trust is fitted on the training images.
        """
        self.network.memory.project(find_sources(self, loader), final=final, keep=self.kept)
        if final:
            told = finish(self, loader, validation, keep=self.kept)
            if told is not None:
                L.pytorch.utilities.rank_zero_info(told)
            self.network.freeze()
            warn_of_pruned_prototypes(self.annotators, self.network.memory.active)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note also how far the schedule has come."""
        super().on_save_checkpoint(checkpoint)
        # A subclass that calls save_hyperparameters() itself may have replaced the primitives.
        saved = checkpoint.setdefault("hyper_parameters", {})
        for name in ("optimizer", "lr_scheduler"):
            saved.pop(name, None)
        saved.update(self._primitives)
        checkpoint["schedule_done"] = list(self.schedule_done)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the schedule too."""
        super().on_load_checkpoint(checkpoint)
        self.schedule_done = list(checkpoint.get("schedule_done", []))


def _maps_of(output: TAXOutput) -> dict[str, Tensor]:
    """As of :meth:`TAXLightningModule._explanation_maps`, of a part of the rows."""
    probs, annotator_probs = output.probs, output.annotator_probs
    why_share, why = output.shares(most_likely(probs, dim=1)).max(dim=2)
    says_own = probs_at(output.log_odds, most_likely(annotator_probs, dim=2))
    return {
        "probs": probs,
        "annotator_probs": annotator_probs,
        "who": output.who,
        "why": why,
        "why_share": why_share,
        "why_own": most_likely(output.within * says_own, dim=2),
    }
