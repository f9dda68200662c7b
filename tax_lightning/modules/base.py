"""What all models of several annotators share: batches, optimizers, metrics, checkpoints."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection

from tax_lightning.batch import Batch, by_our_keys, complete_batch, unpacked
from tax_lightning.blending import Part, blend
from tax_lightning.consensus import (
    Reference,
    check_reference,
    disagreement,
    reference_labels,
    right_labels,
)
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.loader import fixed_seed, seed_of
from tax_lightning.data.preparation import Preparation
from tax_lightning.distributed import across_processes, alone
from tax_lightning.explanation import AVERAGED, most_likely
from tax_lightning.losses import SegmentationLoss, SegmentationTerms
from tax_lightning.metrics import (
    Tendencies,
    WhoMetrics,
    annotator_dice,
    fused_dice,
    generalized_energy_distance,
    sample_metrics,
    segmentation_metrics,
)
from tax_lightning.metrics.inputs import check_names, macro_over_classes
from tax_lightning.models.backbone import evaluating
from tax_lightning.models.output import ModelOutput, TAXOutput, of_panel
from tax_lightning.models.samples import coherent_samples
from tax_lightning.modules.annotation_types import (
    TypeNumbers,
    best_order,
    in_order,
    order_of_areas,
    type_words,
)
from tax_lightning.modules.checkpoints import (
    FORMAT_VERSION,
    TRAIN_AGAIN,
    check_format,
    check_same_names,
    check_weights,
    given_network,
)
from tax_lightning.modules.hub import Shareable
from tax_lightning.progress import watched
from tax_lightning.refusals import check_number, refusing
from tax_lightning.windows import Places, tiles

HELD_STILL = 0.1  # share of the run before which a slow encoder does not move
BY_AREA = 0.3  # share of the run at whose start types are the ranks of the areas in an image
_LARGEST_RATE = 1000
TEST_SAMPLES = 9  # of each annotator, of which a test measures the sets
SHARDING = DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy


class MultiAnnotatorModule(L.LightningModule, Shareable, ABC):
    """Base of the Lightning modules for several annotators; works with any ``Trainer``.

    A subclass builds its network with the arguments ``self.backbone``, sets ``loss``, and
    implements ``forward``, ``training_step`` and ``_segmentation_loss``. The batches are those of
    :class:`~tax_lightning.modules.tax.TAXLightningModule`. All subclasses take these arguments:

    Args:
        annotators: names, in the order of the N axis of ``"masks"``; or their number, and names are
            made up and said.
        classes: names, in the order of class ids; the first is the background. Or their number.
        network: a module that gives dense features ``[B, D, h, w]``, or a pair of these and of a
            context, in place of the five arguments below. A checkpoint does not hold it: give it
            again to load one.
        architecture: of segmentation_models_pytorch, such as ``"unet"``.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``"imagenet"``, the path of a file, or ``None`` for random weights, see
            :class:`~tax_lightning.models.backbone.DenseNetwork`.
        in_channels: channels of an image.
        backbone_options: further arguments of the smp architecture.
        reference: the labels that the result is measured against, and trained for where the method
            does so: ``"given"`` with the data, the ``"majority"`` of the annotators, ties ignored,
            ``"staple"``, which weights them (:func:`tax_lightning.consensus.staple`), or
            ``"none"``.
        segmentation_loss: cross-entropy, Dice or their sum.
        optimizer: from parameters to an optimizer; the default is AdamW with a rate of 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.
        encoder_rate: for an encoder of smp with pretrained weights: the share of the learning rate
            at which it is trained, in (0, 1]. It is also held still for the first tenth of the run,
            as a head that knows nothing yet would destroy its weights. ``None``: as all else.
        types: for masks that are nobody's: learn as many types of annotation as there are masks an
            image, in place of annotators, see :mod:`tax_lightning.modules.annotation_types`. It
            changes nothing for a model that names no annotators.
        batch_keys: for batches whose keys have other names: ours -> theirs, such as
            ``{"masks": "label"}``.

    Raises:
        ValueError: if names are missing or doubled, an option is unknown or out of its range, or a
            checkpoint of the user's own network is loaded without that network.
    """

    lr: float | None = None  # of all parameters; set by Lightning's LearningRateFinder
    monitor = "val/fused_dice/mean"
    mode = "max"
    preparation: Preparation | None = None  # of its training images, where that is known
    reference_from_output = False  # whether the reference is a result of the network itself
    named = True  # predicts what each annotator would draw
    weighs = False  # learns a weight for each annotator at each pixel
    persons = True  # whether an annotator is the same person throughout, as the data module says
    loss: SegmentationTerms

    def __init__(
        self,
        annotators: Sequence[str] | int,
        classes: Sequence[str] | int,
        network: nn.Module | None = None,
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        reference: Reference = "majority",
        segmentation_loss: SegmentationLoss = "ce",
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        encoder_rate: float | None = None,
        types: bool = False,
        batch_keys: dict[str, str] | None = None,
        **unknown: Any,  # noqa: ANN401 - refused
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: {', '.join(unknown)}: unknown, expected arguments of the "
                f"model. If this comes from a checkpoint: {TRAIN_AGAIN}"
            )
        self.labelled_by = _named("annotators", annotators)
        self.types = types and self.named
        numbers = range(1, 1 + len(self.labelled_by))
        self.annotators = tuple(f"type {i}" for i in numbers) if self.types else self.labelled_by
        self.type_words: list[str] = []  # of each type one, after a validation
        self.classes = _named("classes", classes, "background")
        self.batch_keys = batch_keys or {}
        check_reference(reference)
        self.reference: Reference = reference
        if reference == "none":
            self.monitor = "val/dice/mean"  # there is no reference to compare the result with
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if encoder_rate is not None and not 0 < encoder_rate <= 1:
            raise ValueError(
                f"encoder_rate={encoder_rate}: expected a share of the learning rate in (0, 1]."
            )
        self.encoder_rate = encoder_rate
        self._objects_seen = False  # whether a training mask has held an object
        built_of: dict[str, Any] = {
            "architecture": architecture,
            "encoder": encoder,
            "encoder_weights": encoder_weights,
            "in_channels": in_channels,
            "backbone_options": backbone_options,
        }
        # Primitives only, so that a checkpoint loads with weights_only=True. Subclasses add theirs.
        self.save_hyperparameters(
            {
                "annotators": list(self.labelled_by),
                "classes": list(self.classes),
                "network": None if network is None else "given",
                **built_of,
                "reference": reference,
                "segmentation_loss": segmentation_loss,
                "encoder_rate": encoder_rate,
                "types": types,
                "batch_keys": batch_keys,
            }
        )
        self.backbone = {**built_of, "backbone": given_network(network)}
        # Of a subclass whose test can measure who and why too, which takes long.
        self.explanation_metrics: WhoMetrics | None = None

    def _measure_by(self, kernels: int | None = None, who: bool = True, named: bool = True) -> None:
        """Make the metrics: of the segmentation, and in testing those of sets of them too."""
        names = self.annotators, self.classes
        self.val_metrics = segmentation_metrics(*names, kernels, who=who, named=named)
        self.test_metrics = segmentation_metrics(*names, kernels, who=who, named=named, sets=True)
        self.sample_metrics = sample_metrics(self.classes)
        self.tendencies = Tendencies(*names)
        if self.types:
            for metrics in (self.val_metrics, self.test_metrics):
                metrics.add_metrics({"types": TypeNumbers(self.annotators)})

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        annotator: str | None = None,
        panel: Sequence[str] | None = None,
        samples: int | None = None,
        tile: int | None = None,
    ) -> Tensor:
        """Segment images: the result, or one annotator's segmentation, or that of a panel.

        Args:
            images: ``[B, ch, H, W]``.
            annotator: name; gives this annotator's own segmentation.
            panel: names; gives the result if only these annotators counted.
            samples: number S; gives S plausible segmentations of each of the annotators, see
                :func:`tax_lightning.models.samples.coherent_samples`.
            tile: side in pixels of windows that overlap by a quarter. Each is segmented by itself,
                and they are put together, so that memory grows with the result alone. Images may
                then lie on another device. ``None``: whole images.

        Returns:
            Probabilities ``[B, C, H, W]``; with ``samples`` class ids ``[B, M S, H, W]`` of M
            annotators, those of one annotator after the other. For a model that names no annotators
            M is the number of segmentations that it draws by itself.

        Raises:
            ValueError: if a name is unknown, nobody is named, both arguments are given, the model
                names no annotators, or the tile is too small.
        """
        chosen = chosen_annotators(self.annotators, annotator, panel)
        if chosen is not None and not self.named:
            raise ValueError(
                f"predict: {type(self).__name__} draws samples that belong to no annotator. Leave "
                "out annotator=... and panel=...; samples=... alone gives what it draws."
            )
        if tile is not None:
            return self._predict_in_tiles(images, chosen, samples, tile)
        if samples is None:
            return self._by_output(images, lambda output: output.log_probs.exp(), chosen)
        return self._by_output(images, lambda output: sampled(output, samples), chosen)

    def _predict_in_tiles(
        self, images: Tensor, chosen: list[int] | None, samples: int | None, tile: int
    ) -> Tensor:
        """As `predict`; samples are drawn of the whole image, so that they fit at every seam."""
        if samples is not None and not self.named:
            raise ValueError(
                f"predict: {type(self).__name__} draws the samples of each window by themselves, "
                "and they do not fit together. Leave out tile=... or samples=...."
            )

        def said(output: Any) -> Tensor:  # noqa: ANN401 - of any model
            logarithms = output.log_probs if samples is None else output.log_annotator_probs
            probs: Tensor = logarithms.exp()
            return probs

        def made(part: Tensor) -> dict[str, Tensor]:
            return {"probs": self._by_output(part, said, chosen)}

        probs = self._in_tiles(images, tile, made)["probs"].to(images.device)
        return probs if samples is None else coherent_samples(probs.log(), samples).flatten(1, 2)

    def _in_tiles(
        self,
        images: Tensor,
        tile: int,
        made: Callable[[Tensor], dict[str, Tensor]],
        rows: Places | None = None,
        columns: Places | None = None,
        averaged: Collection[str] = AVERAGED,
        counted: bool = True,
    ) -> dict[str, Tensor]:
        """The maps ``[B, ..., H, W]`` that are made of images, window by window, on the CPU.

        ``rows``, ``columns`` and ``averaged`` are as of :func:`tax_lightning.blending.blend`;
        ``counted`` lets a terminal show how many windows are done.
        """
        height, width = images.shape[-2:]

        def parts() -> Iterator[Part]:
            places = tiles(height, width, tile)
            for window in watched(places, "windows") if counted else places:
                yield window, made(window.of(images).to(self.device))

        rows = range(height) if rows is None else rows
        columns = range(width) if columns is None else columns
        return blend(parts(), rows, columns, averaged)

    def _by_output(
        self,
        images: Tensor,
        made: Callable[[Any], Tensor],
        chosen: list[int] | None,
    ) -> Tensor:
        """What is made of the output of the chosen for these images, ``[B, ..., H, W]``."""
        with evaluating(self):
            output: Any = self(images)
        return made(output if chosen is None else of_panel(output, chosen))

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the parent
        """Refused: a Lightning module has hooks that no exported graph holds.

        Raises:
            NotImplementedError: says what to call.
        """
        raise NotImplementedError(
            "to_onnx and to_torchscript: call tax_lightning.export.export_model(module, "
            "'tax.onnx'), or `tax export CHECKPOINT tax.onnx`. For TorchScript's place, let the "
            "name end in .pt2."
        )

    to_torchscript = to_onnx

    # ------------------------------------------------------------------ batches

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:  # noqa: ANN401
        """Check a batch while it is in the CPU's memory, and fill in the optional keys."""
        batch, names = by_our_keys(batch, self.batch_keys), self.labelled_by
        checked: Batch = complete_batch(batch, names, self.classes, needs_labels=self._needs_labels)
        if not self._objects_seen and self._trainer is not None and self.trainer.training:
            labels = checked["masks"]
            self._objects_seen = bool(((labels > 0) & (labels != IGNORE_INDEX)).any())
        return checked

    @torch.no_grad()
    def matched(self, batch: Batch, log_probs: Tensor) -> Batch:
        """The batch with the masks of each image in the order of the types, if there are types.

        At the start of a run the types are the ranks of the areas in an image, as heads that know
        little yet would match by chance. ``log_probs`` are as of :func:`best_order`.
        """
        if not self.types:
            return batch
        fitting = self._trainer is not None and self.trainer.training
        by_area = fitting and self._progress < BY_AREA
        masks = batch["masks"]
        return in_order(batch, order_of_areas(masks) if by_area else best_order(masks, log_probs))

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The annotators as pictures name them: types with what is known of them."""
        words = self.type_words or [""] * len(self.annotators)
        pairs = zip(self.annotators, words, strict=True)
        return tuple(f"{name}: {word}" if word else name for name, word in pairs)

    @property
    def type_note(self) -> str:
        """What a reader of names and figures must know; "" where annotators are persons."""
        shown = ", ".join(self.shown_names)
        return f"These are types of annotation, not persons: {shown}." if self.types else ""

    def _completed(self, batch: Batch) -> Batch:
        """The batch, checked also where a data module's own hooks replaced ours."""
        done = isinstance(batch, dict) and "present" in batch
        checked = batch if done else self.on_before_batch_transfer(batch, 0)
        return unpacked(checked)

    @property
    def _needs_labels(self) -> bool:
        return not (self._trainer is not None and self.trainer.predicting)

    def reference_labels(self, batch: Batch, output: Any) -> Tensor | None:  # noqa: ANN401
        """As of :func:`tax_lightning.consensus.reference_labels`, ``[B, H, W]`` or ``None``.

        The network's output is only needed where :attr:`reference_from_output` is true.
        """
        return reference_labels(self.reference, batch, len(self.classes))

    def right_labels(self, batch: Batch) -> Tensor:
        """As of :func:`tax_lightning.consensus.right_labels`, bool ``[B, C, H, W]``."""
        return right_labels(self.reference, batch, len(self.classes))

    def setup(self, stage: str) -> None:
        """Let the data module estimate the STAPLE labels once, before training.

        Raises:
            ValueError: if the strategy would shard the weights.
        """
        if isinstance(self.trainer.strategy, SHARDING):
            raise ValueError(
                f"trainer.strategy={type(self.trainer.strategy).__name__}: it gives each process a "
                "part of the weights, but calibration, prototypes and checkpoints need them whole. "
                "Use ddp; the weights of these models fit on one device."
            )
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.persons = getattr(datamodule, "persons", self.persons)
        if stage != "predict" and self.reference == "staple" and hasattr(datamodule, "use_staple"):
            datamodule.use_staple()

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Note how long the run is; take the losses over all of its processes."""
        self._total_steps = self.trainer.estimated_stepping_batches
        self.loss.total = across_processes if self.trainer.world_size > 1 else alone

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let what a step draws depend on seed and place alone: a run can go on.

        It is the same in all processes, so that several of them train as one does.
        """
        if (seed := fixed_seed()) is not None:
            torch.manual_seed(seed_of(seed, self.trainer.current_epoch, batch_idx))

    def on_train_epoch_end(self) -> None:
        """Stop a training that diverged; warn of masks that hold no object.

        Those of 0 and 255 look right and teach nothing.
        """
        self.check_finite()
        if not self._objects_seen:
            self._objects_seen = True  # said once
            rank_zero_warn(
                f"No mask of this epoch holds a class but {self.classes[0]!r} (0); {IGNORE_INDEX} "
                "means not labelled. If the masks are files of 0 and 255, make classes of them: "
                "masks = (masks > 0).long()."
            )

    def on_train_end(self) -> None:
        """Take losses over this process again."""
        self.loss.total = alone

    @property
    def _progress(self) -> float:
        """Share of the run that is over after the coming step; the last step ends at 1."""
        return (self.trainer.global_step + 1) / self._total_steps

    def _log_loss(self, loss: Tensor, terms: dict[str, Tensor], images: int) -> None:
        """Log the loss of a training step and, by name, its terms."""
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        self.log_dict(
            {f"train/loss_{name}": term.detach() for name, term in terms.items()},
            batch_size=images,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and scheduler given, on all parameters."""
        make = self.optimizer or (lambda params: torch.optim.AdamW(params, lr=1e-3))
        optimizer = make(self._optimized())
        _check_rates(optimizer)
        if self.encoder_rate is not None:
            self._slow_down_encoder(optimizer, self.encoder_rate)
        if self.lr_scheduler is None:
            return optimizer
        _check_schedule(self.lr_scheduler, optimizer)
        scheduler = self.lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor},
        }

    def _optimized(self) -> list[Any]:
        """The parameters that are trained, or groups of them as an optimizer takes them."""
        return [p for p in self.parameters() if p.requires_grad]

    def _slow_down_encoder(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Move the encoder's parameters into groups of their own, with a lower rate."""
        encoder = {id(parameter) for parameter in self._encoder_parameters()}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in encoder]
            if own:
                group["params"] = [p for p in group["params"] if id(p) not in encoder]
                slow = {**group, "params": own, "lr": rate * group["lr"]}
                optimizer.add_param_group(slow)

    def _encoder_parameters(self) -> list[nn.Parameter]:
        """Those of the encoders of smp models that are trained."""
        named = self.named_parameters()
        return [p for name, p in named if ".backbone.encoder." in name and p.requires_grad]

    def check_finite(self) -> None:
        """Raise a ``ValueError`` if the training diverged; no later step would mend that."""
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                rates = {
                    group["lr"] for one in self.trainer.optimizers for group in one.param_groups
                }
                raise ValueError(
                    f"the training diverged: the weight {name} holds numbers that are not finite. "
                    f"Lower the learning rate: lr={max(rates):g} now (optimizer.init_args.lr)."
                )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold a slow encoder still at first."""
        if self.encoder_rate is not None and self._progress < HELD_STILL:
            for parameter in self._encoder_parameters():
                parameter.grad = None

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics of :func:`tax_lightning.metrics.segmentation_metrics`."""
        batch, output, reference = self._evaluated(batch, self.val_metrics)
        loss = self._segmentation_loss(batch, output, reference)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["masks"]))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Update the metrics, also those of sets and calibration.

        Returns:
            ``"id"`` of the images, and their ``"scores"`` as of :func:`image_scores`.
        """
        batch, output, reference = self._evaluated(batch, self.test_metrics)
        loss = self._segmentation_loss(batch, output, reference)
        self.log("test/loss", loss, sync_dist=True, batch_size=len(batch["masks"]))
        drawn = sampled(output, TEST_SAMPLES)
        labels = {"masks": batch["masks"], "present": batch["present"]}
        self.sample_metrics.update(annotator_prediction=drawn, **labels)
        if self.explanation_metrics is not None:
            own = most_likely(output.log_sample_probs, dim=2)
            self.tendencies.update(annotator_prediction=own, **labels)
            known = known_labels(batch, reference) | {"right": self.right_labels(batch)}
            disputed = disagreement(batch["masks"])
            self.explanation_metrics.update(batch["image"], output, disputed, **known)
        names = self.annotators if self.named else ()
        scores = image_scores(output, drawn, batch, reference, names)
        return {"id": batch["id"], "scores": scores}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation split by name."""
        values = self._log_metrics(self.val_metrics, "val/")
        if self.types:
            self.type_words = type_words(values, self.annotators)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test split by name."""
        self._log_metrics(self.test_metrics, "test/")
        self._log_metrics(self.sample_metrics, "test/")
        if self.explanation_metrics is not None:
            values = self.explanation_metrics.compute() | self._probed()
            self.log_dict(with_a_case(values, "test/"))
            self.explanation_metrics.reset()
            self._log_metrics(self.tendencies, "test/")
            rank_zero_info(f"\n{self.tendencies.table(self._groups)}")

    @property
    def _all_alike(self) -> bool:
        """Whether the weights of the annotators are the same at every pixel."""
        return False

    @property
    def _groups(self) -> Any:  # noqa: ANN401 - of the user's data module
        """Groups of annotators by which the data module wants to see values, if any."""
        return getattr(getattr(self.trainer, "datamodule", None), "groups", {})

    def _evaluated(
        self, batch: Batch, metrics: MetricCollection
    ) -> tuple[Batch, TAXOutput | ModelOutput, Tensor | None]:
        """The batch with its masks matched, the output and the reference, of which it measures."""
        batch = self._completed(batch)
        output = self._said_of(batch["image"])
        batch = self.matched(batch, output.log_annotator_probs)
        reference = self.reference_labels(batch, output)
        metrics.update(**metric_inputs(batch, output, reference, all_alike=self._all_alike))
        return batch, output, reference

    def _said_of(self, images: Tensor) -> Any:  # noqa: ANN401 - TAXOutput or ModelOutput
        """The output for whole images; in windows if the data module asks for them by ``tile``."""
        tile = getattr(getattr(self._trainer, "datamodule", None), "tile", None)
        if tile is None or max(images.shape[-2:]) <= tile:
            return self(images)
        output: Any = None

        def made(part: Tensor) -> dict[str, Tensor]:
            nonlocal output
            output = self(part)
            there = {name: map for name, map in output._asdict().items() if map is not None}
            return {name: map.exp() if name in logs else map for name, map in there.items()}

        every = {*ModelOutput._fields, *TAXOutput._fields}
        logs = {name for name in every if name.startswith("log_")} - {"log_odds"}
        maps = self._in_tiles(images, tile, made, averaged=every, counted=False)
        for name, values in maps.items():
            if name in logs:
                maps[name] = values.clamp_min(torch.finfo(values.dtype).tiny).log()
            elif name == "embedding":
                maps[name] = normalize(values, dim=1)
        return output._replace(**{name: values.to(images.device) for name, values in maps.items()})

    @abstractmethod
    def _segmentation_loss(self, batch: Batch, output: Any, reference: Tensor | None) -> Tensor:  # noqa: ANN401
        """The part of the objective that a validation or test has."""

    def _probed(self) -> dict[str, Tensor]:
        """Further values of a test, which need passes of their own."""
        return {}

    def _log_metrics(self, metrics: Metric | MetricCollection, prefix: str) -> dict[str, Tensor]:
        values: dict[str, Tensor] = metrics.compute()
        known = with_a_case(values | by_group(values, self._groups), prefix)
        # Tensors made in inference mode could not be updated in a later run with gradients.
        with torch.inference_mode(False):
            metrics.reset()
        self.log_dict(known)
        if self.monitor in known:
            self.log("dice", known[self.monitor], prog_bar=True, logger=False)
        return values

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the format, the class, the names, and how images are prepared."""
        checkpoint["format_version"] = FORMAT_VERSION
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["names"] = {"annotators": self.annotators, "classes": self.classes}
        if self.types:
            checkpoint["type_words"] = self.type_words
        if "encoder_weights" in checkpoint.get("hyper_parameters", {}):
            # The weights are in the checkpoint: to load it must neither fetch nor need a file.
            checkpoint["hyper_parameters"]["encoder_weights"] = None
        prepared = getattr(getattr(self._trainer, "datamodule", None), "preparation", None)
        if isinstance(prepared, Preparation):
            self.preparation = prepared
        checkpoint["persons"] = self.persons
        if self.preparation is not None:
            checkpoint["preparation"] = self.preparation.to_primitives()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another format or other names; take up how images are prepared."""
        check_format(checkpoint)
        check_same_names(checkpoint, annotators=self.annotators, classes=self.classes)
        check_weights(checkpoint, dict(self.named_parameters()))
        self.persons = checkpoint.get("persons", True)
        self.type_words = checkpoint.get("type_words", [])
        if "preparation" in checkpoint:
            self.preparation = Preparation.from_primitives(checkpoint["preparation"])


def _check_rates(optimizer: torch.optim.Optimizer) -> None:
    """Refuse rates with which no training can go well."""
    what = f"optimizer: {type(optimizer).__name__}"
    for group in optimizer.param_groups:
        rate, decay = float(group["lr"]), float(group.get("weight_decay", 0))
        check_number(f"{what}: lr", rate, 0, _LARGEST_RATE)
        if rate * decay >= 1:  # each step would turn the weights round
            raise ValueError(
                f"{what}: weight_decay={decay:g}: expected less than {1 / rate:g} with lr={rate:g}."
            )


def _check_schedule(make: Any, optimizer: torch.optim.Optimizer) -> None:  # noqa: ANN401
    """Refuse a schedule whose first step fails, or leads to a learning rate that cannot be.

    Only the first: how many steps there will be is not known of every run.
    """
    trial = copy.copy(optimizer)
    trial.param_groups = [{**group, "params": [torch.zeros(1)]} for group in trial.param_groups]
    scheduler = make(trial)
    what = f"lr_scheduler: {type(scheduler).__name__}"
    progress = ("_", "last_epoch", "base_lrs")  # not settings
    settings = {k: v for k, v in vars(scheduler).items() if not k.startswith(progress)}
    for name, value in settings.items():
        if type(value) is int:  # which counts epochs or steps
            check_number(f"{what}: {name}", value, 0)
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    with refusing(what, settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer came before
        scheduler.step()
        for group in trial.param_groups:
            if not 0 <= group["lr"] <= _LARGEST_RATE:
                raise ArithmeticError(
                    f"the learning rate is {group['lr']:g} after epoch 1, expected 0 to "
                    f"{_LARGEST_RATE}."
                )


def known_labels(batch: Batch, reference: Tensor | None) -> dict[str, Tensor]:
    """The labels that metrics compare with, by keyword; 255 where one is unknown."""
    unknown = torch.full_like(batch["masks"][:, 0], IGNORE_INDEX)
    return {
        "masks": batch["masks"],
        "present": batch["present"],
        "reference": unknown if reference is None else reference,
        "expert": batch.get("expert", unknown),
    }


def metric_inputs(
    batch: Batch,
    output: TAXOutput | ModelOutput,
    reference: Tensor | None,
    *,
    all_alike: bool = False,
) -> dict[str, Tensor | None]:
    """The keywords from which each metric of the segmentation takes those that it knows.

    ``all_alike`` is that of :meth:`.TAXOutput.reason`.
    """
    decision, reason = most_likely(output.log_probs, dim=1), None
    if isinstance(output, TAXOutput):
        reason = output.reason(decision, all_alike=all_alike)
    return {
        **known_labels(batch, reference),
        "prediction": decision,
        "probs": output.log_probs.exp(),
        "annotator_prediction": most_likely(output.log_sample_probs, dim=2),
        "annotator_probs": output.log_sample_probs.exp(),
        "who": output.log_who.exp(),
        "reason": reason,
    }


def image_scores(
    output: TAXOutput | ModelOutput,
    drawn: Tensor,
    batch: Batch,
    reference: Tensor | None,
    annotators: Sequence[str],
) -> dict[str, Tensor]:
    """Scores of single images by name, ``[B]`` each, NaN without a case.

    Args:
        output: of the model.
        drawn: samples, class ids ``[B, S, H, W]``.
        batch: checked, with the masks in the order of the annotators or types.
        reference: class ids ``[B, H, W]`` or ``None``.
        annotators: names; none for a model that names no annotators.

    Returns:
        ``dice`` (mean over annotators, and ``dice/NAME``), ``fused_dice`` (mean over the classes in
        the image; 1 where there is nothing to find and nothing is found), ``ged2`` and
        ``samples/ged2``; see :mod:`tax_lightning.metrics`.
    """
    masks, present, classes = batch["masks"], batch["present"], output.log_probs.shape[1]
    own = most_likely(output.log_sample_probs, dim=2)
    scores = {
        "ged2": generalized_energy_distance(own, masks, present, classes),
        "samples/ged2": generalized_energy_distance(drawn, masks, present, classes),
    }
    if reference is not None:
        dice = macro_over_classes(
            fused_dice(most_likely(output.log_probs, dim=1), reference, classes)
        )
        unknown = (reference == IGNORE_INDEX).flatten(1).all(1)
        scores["fused_dice"] = dice.masked_fill(unknown, torch.nan)
    if annotators:
        by_name = annotator_dice(own, masks, present, classes)
        scores["dice"] = by_name.nanmean(dim=1)
        scores |= {f"dice/{name}": by_name[:, n] for n, name in enumerate(annotators)}
    return scores


def sampled(output: TAXOutput | ModelOutput, samples: int) -> Tensor:
    """Plausible segmentations of every annotator ``[B, M samples, H, W]``."""
    return coherent_samples(output.log_sample_probs, samples).flatten(1, 2)


def by_group(
    values: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """What annotators have by name, for groups of them: votes and weights summed, else the mean.

    Example:
        >>> dice = {"dice/Ana": torch.tensor(0.5), "dice/Ben": torch.tensor(0.75)}
        >>> by_group(dice, {"tool pen": ["Ana", "Ben"]})
        {'dice/tool pen': tensor(0.6250)}
    """
    found = {}
    for kind in dict.fromkeys(name.rpartition("/")[0] for name in values):
        for group, names in groups.items():
            own = [values[f"{kind}/{name}"] for name in names if f"{kind}/{name}" in values]
            if own:
                values_of = torch.stack(own)
                total = kind in ("votes", "weight")
                found[f"{kind}/{group}"] = values_of.sum() if total else values_of.nanmean()
    return found


def with_a_case(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values under prefixed names, without those that had no case.

    Accuracy of who has none without experts, nor has an annotator without masks.

    Example:
        >>> with_a_case({"who": torch.tensor(torch.nan), "dice": torch.tensor(0.5)}, "val/")
        {'val/dice': tensor(0.5000)}
    """
    return {f"{prefix}{name}": value for name, value in values.items() if not value.isnan()}


def chosen_annotators(
    annotators: Sequence[str], annotator: str | None, panel: Sequence[str] | None
) -> list[int] | None:
    """Places of the annotators that count, each once; ``None`` for all. See `predict`.

    Example:
        >>> chosen_annotators(["Ana", "Ben"], None, ["Ben", "Ana", "Ben"])
        [1, 0]
    """
    if annotator is not None and panel is not None:
        raise ValueError("predict: give annotator=... or panel=[...], not both.")
    if panel is not None and not panel:
        raise ValueError(f"predict: panel=[] names nobody, expected some of {annotators}.")
    chosen = [annotator] if annotator is not None else panel
    if chosen is None:
        return None
    for name in chosen:
        if name not in annotators:
            raise ValueError(f"annotator {name!r} is unknown: expected one of {annotators}.")
    return [annotators.index(name) for name in dict.fromkeys(chosen)]


def _named(argument: str, given: Sequence[str] | int, *first: str) -> tuple[str, ...]:
    """The names; where there is only a number of them, names are made up and said."""
    if not isinstance(given, int):
        return check_names(argument, given, least=1 + len(first))
    word = "annotator" if argument == "annotators" else "class"
    names = [*first, *(f"{word} {i}" for i in range(1, 1 + given - len(first)))]
    rank_zero_info(
        f"{argument}={given}: they are called {', '.join(names)}. Give a list of names instead to "
        "call them by those."
    )
    return check_names(argument, names, least=1 + len(first))
