"""What is measured of each batch, and the named values that come of it; the module logs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from tax_lightning.batch import Batch
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics.explanation import EvidenceMetrics, ExplanationMetrics
from tax_lightning.models.network import TAXOutput

if TYPE_CHECKING:
    from tax_lightning.modules.base import ModelOutput


def measure(
    batch: Batch,
    output: TAXOutput | ModelOutput,
    reference: Tensor | None,
    metrics: MetricCollection,
) -> None:
    """Update the metrics of the segmentation.

    Args:
        batch: with ``"masks"``, ``"present"`` and, for synthetic data, ``"expert"``.
        output: what the network says of it.
        reference: ``[B, H, W]``, 255 where unknown; ``None`` where there is none at all.
        metrics: to update, see :func:`.segmentation_metrics` and :func:`.set_metrics`; they take
            what they know of.
    """
    metrics.update(
        prediction=output.log_probs.argmax(dim=1),
        probs=output.log_probs.exp(),
        annotator_prediction=output.log_sample_probs.argmax(dim=2),
        annotator_probs=output.log_sample_probs.exp(),
        masks=batch["masks"],
        present=batch["present"],
        reference=_unknown(batch) if reference is None else reference,
        who=output.log_who.exp(),
        expert=batch["expert"] if "expert" in batch else _unknown(batch),
        within=output.within if isinstance(output, TAXOutput) else None,
    )


def measure_explanation(
    batch: Batch, output: TAXOutput, reference: Tensor | None, metrics: ExplanationMetrics
) -> None:
    """Update the metrics of who and why; arguments as of :func:`measure`, with ``"image"``."""
    metrics.update(
        batch["image"],
        output,
        batch["masks"],
        batch["present"],
        _unknown(batch) if reference is None else reference,
        batch.get("expert"),
    )


def measure_evidence(
    batch: Batch, output: ModelOutput, reference: Tensor | None, metrics: EvidenceMetrics
) -> None:
    """Update the metrics of who and of the evidence; arguments as of :func:`measure`."""
    assert output.evidence is not None  # of a model that weighs its annotators
    metrics.update_evidence(
        log_who=output.log_who,
        log_annotator_probs=output.log_annotator_probs,
        similarity=output.evidence.unsqueeze(2),
        masks=batch["masks"],
        present=batch["present"],
        reference=_unknown(batch) if reference is None else reference,
        expert=batch.get("expert"),
    )


def _unknown(batch: Batch) -> Tensor:
    """Labels of which none is known ``[B, H, W]``."""
    return torch.full_like(batch["masks"][:, 0], IGNORE_INDEX)


def explanation_values(
    metrics: ExplanationMetrics, sources: Sequence[Sequence[PrototypeSource]], trainer: L.Trainer
) -> dict[str, Tensor]:
    """All values of who and why by name, the probes among them; forgets the batches.

    Args:
        metrics: updated with every batch.
        sources: of every prototype ``[N][K]``.
        trainer: whose data module may read training images; the probes are those of its first
            process.
    """
    values = metrics.compute()
    probed = trainer.strategy.broadcast(metrics.probe(sources, _reader(trainer)))
    metrics.reset()
    return values | {name: torch.tensor(value) for name, value in probed.items()}


def _reader(trainer: L.Trainer) -> Callable[[str], Tensor] | None:
    """Reads a training image by its id, if the data module can."""
    read = getattr(getattr(trainer, "datamodule", None), "read", None)
    return None if read is None else lambda id: read(id)["image"]


def with_a_case(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values under prefixed names, less those without a single case.

    Who has none without experts, nor an annotator without masks.

    Example:
        >>> with_a_case({"who": torch.tensor(torch.nan), "dice": torch.tensor(0.5)}, "val/")
        {'val/dice': tensor(0.5000)}
    """
    return {f"{prefix}{name}": value for name, value in values.items() if not value.isnan()}
