"""Data: folders in one format, simulated annotators, and the loaders that they share."""

from tax_lightning.data.annotators import Habit, SimulatedAnnotator, When
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
from tax_lightning.data.folder import FolderDataModule
from tax_lightning.data.samples import RawSample, Sample, SampleTable
from tax_lightning.data.simulated import BetaAvailability, SimulatedAnnotatorsDataModule
from tax_lightning.data.synthetic import SyntheticDataModule
from tax_lightning.data.table import TableDataModule

__all__ = [
    "BetaAvailability",
    "FolderDataModule",
    "Habit",
    "MultiAnnotatorDataModule",
    "MultiAnnotatorDataset",
    "RawSample",
    "Sample",
    "SampleTable",
    "SimulatedAnnotator",
    "SimulatedAnnotatorsDataModule",
    "Source",
    "SyntheticDataModule",
    "TableDataModule",
    "When",
    "collate_samples",
]
