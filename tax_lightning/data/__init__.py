"""Data: tables of samples, readers, simulated annotators, and the loaders they share."""

from tax_lightning.data.annotators import Habit, SimulatedAnnotator, When
from tax_lightning.data.bubil import BUBILDataModule
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
from tax_lightning.data.folder import FolderDataModule
from tax_lightning.data.gleason import GleasonDataModule
from tax_lightning.data.lidc import LIDCDataModule, LIDCDicomDataModule
from tax_lightning.data.ms_lesion import MSLesionDataModule
from tax_lightning.data.qubiq import QUBIQDataModule
from tax_lightning.data.retina import ChaseDataModule, DriveDataModule, StareDataModule
from tax_lightning.data.riga import RIGADataModule
from tax_lightning.data.samples import RawSample, Sample, SampleTable
from tax_lightning.data.simulated import BetaAvailability, SimulatedAnnotatorsDataModule
from tax_lightning.data.synthetic import SyntheticDataModule
from tax_lightning.data.table import TableDataModule

__all__ = [
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
