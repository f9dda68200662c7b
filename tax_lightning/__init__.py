"""Multi-annotator semantic segmentation that explains itself: who decides, and why."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tax_lightning.constants import __version__

# Names are imported when they are used, so that `tax --version` needs no torch.
_PUBLIC = {
    "TAXLightningModule": "tax_lightning.modules",
    "AddedAnnotators": "tax_lightning.modules",
    "TAXNetwork": "tax_lightning.models",
    "TAXOutput": "tax_lightning.models",
    "KernelBank": "tax_lightning.models",
    "PrototypeMemory": "tax_lightning.models",
    "LossWeights": "tax_lightning.losses",
    "Schedule": "tax_lightning.modules",
    "MultiAnnotatorDataModule": "tax_lightning.data",
    "FolderDataModule": "tax_lightning.data",
    "SyntheticDataModule": "tax_lightning.simulation",
    "Explanation": "tax_lightning.explanation",
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
    from tax_lightning.callbacks import ExplainedCheckpoint, ExplanationLogger, PredictionWriter
    from tax_lightning.data import FolderDataModule, MultiAnnotatorDataModule
    from tax_lightning.explanation import Explanation
    from tax_lightning.losses import LossWeights
    from tax_lightning.models import TAXNetwork, TAXOutput
    from tax_lightning.models.kernel_bank import KernelBank
    from tax_lightning.models.prototypes import PrototypeMemory
    from tax_lightning.modules.add_annotators import AddedAnnotators
    from tax_lightning.modules.schedule import Schedule
    from tax_lightning.modules.tax import TAXLightningModule
    from tax_lightning.simulation import SyntheticDataModule


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tax_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
