"""Data: tables of samples, readers, simulated annotators, and the loaders they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are used: losses and metrics need the label conventions of
# `labels`, but neither Lightning nor albumentations.
_HOMES = {
    "IGNORE_INDEX": "labels",
    "BUBILDataModule": "bubil",
    "BetaAvailability": "simulated",
    "ChaseDataModule": "retina",
    "DriveDataModule": "retina",
    "FolderDataModule": "folder",
    "GleasonDataModule": "gleason",
    "Habit": "annotators",
    "LIDCDataModule": "lidc",
    "LIDCDicomDataModule": "lidc",
    "MSLesionDataModule": "ms_lesion",
    "MultiAnnotatorDataModule": "datamodule",
    "MultiAnnotatorDataset": "dataset",
    "QUBIQDataModule": "qubiq",
    "RIGADataModule": "riga",
    "RawSample": "samples",
    "Sample": "samples",
    "SampleTable": "samples",
    "SimulatedAnnotator": "annotators",
    "SimulatedAnnotatorsDataModule": "simulated",
    "Source": "dataset",
    "StareDataModule": "retina",
    "SyntheticDataModule": "synthetic",
    "TableDataModule": "table",
    "When": "annotators",
    "collate_samples": "dataset",
}

__all__ = [
    "IGNORE_INDEX",
    "BUBILDataModule",
    "BetaAvailability",
    "ChaseDataModule",
    "DriveDataModule",
    "FolderDataModule",
    "GleasonDataModule",
    "Habit",
    "LIDCDataModule",
    "LIDCDicomDataModule",
    "MSLesionDataModule",
    "MultiAnnotatorDataModule",
    "MultiAnnotatorDataset",
    "QUBIQDataModule",
    "RIGADataModule",
    "RawSample",
    "Sample",
    "SampleTable",
    "SimulatedAnnotator",
    "SimulatedAnnotatorsDataModule",
    "Source",
    "StareDataModule",
    "SyntheticDataModule",
    "TableDataModule",
    "When",
    "collate_samples",
]

if TYPE_CHECKING:
    from tax_lightning.data.annotators import Habit, SimulatedAnnotator, When
    from tax_lightning.data.bubil import BUBILDataModule
    from tax_lightning.data.datamodule import MultiAnnotatorDataModule
    from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
    from tax_lightning.data.folder import FolderDataModule
    from tax_lightning.data.gleason import GleasonDataModule
    from tax_lightning.data.labels import IGNORE_INDEX
    from tax_lightning.data.lidc import LIDCDataModule, LIDCDicomDataModule
    from tax_lightning.data.ms_lesion import MSLesionDataModule
    from tax_lightning.data.qubiq import QUBIQDataModule
    from tax_lightning.data.retina import ChaseDataModule, DriveDataModule, StareDataModule
    from tax_lightning.data.riga import RIGADataModule
    from tax_lightning.data.samples import RawSample, Sample, SampleTable
    from tax_lightning.data.simulated import BetaAvailability, SimulatedAnnotatorsDataModule
    from tax_lightning.data.synthetic import SyntheticDataModule
    from tax_lightning.data.table import TableDataModule


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
