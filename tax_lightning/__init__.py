"""Multi-annotator semantic segmentation that explains itself: who decides, and why."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names are imported when they are used, so that `tax --version` needs no torch.
_PUBLIC = {
    "TAXLightningModule": "tax_lightning.module",
    "AddedAnnotators": "tax_lightning.addition",
    "TAXNetwork": "tax_lightning.network",
    "TAXOutput": "tax_lightning.network",
    "KernelBank": "tax_lightning.kernels",
    "PrototypeMemory": "tax_lightning.prototypes",
    "LossWeights": "tax_lightning.losses",
    "Schedule": "tax_lightning.schedule",
    "MultiAnnotatorDataModule": "tax_lightning.data",
    "FolderDataModule": "tax_lightning.data",
    "SyntheticDataModule": "tax_lightning.data",
    "Explanation": "tax_lightning.explain",
    "ExplanationLogger": "tax_lightning.callbacks",
    "PredictionWriter": "tax_lightning.callbacks",
    "ExplainedCheckpoint": "tax_lightning.callbacks",
}

__all__ = [
    "AddedAnnotators",
    "ExplainedCheckpoint",
    "Explanation",
    "ExplanationLogger",
    "FolderDataModule",
    "KernelBank",
    "LossWeights",
    "MultiAnnotatorDataModule",
    "PredictionWriter",
    "PrototypeMemory",
    "Schedule",
    "SyntheticDataModule",
    "TAXLightningModule",
    "TAXNetwork",
    "TAXOutput",
    "__version__",
]

if TYPE_CHECKING:
    from tax_lightning.addition import AddedAnnotators
    from tax_lightning.callbacks import ExplainedCheckpoint, ExplanationLogger, PredictionWriter
    from tax_lightning.data import (
        FolderDataModule,
        MultiAnnotatorDataModule,
        SyntheticDataModule,
    )
    from tax_lightning.explain import Explanation
    from tax_lightning.kernels import KernelBank
    from tax_lightning.losses import LossWeights
    from tax_lightning.module import TAXLightningModule
    from tax_lightning.network import TAXNetwork, TAXOutput
    from tax_lightning.prototypes import PrototypeMemory
    from tax_lightning.schedule import Schedule


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tax_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
