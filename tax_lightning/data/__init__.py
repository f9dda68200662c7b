"""Data: tables of samples, readers, simulated annotators, and the loaders they share."""

from tax_lightning.data.datamodule import (
    MultiAnnotatorDataModule,
    MultiAnnotatorDataset,
    Source,
    TableDataModule,
    collate_samples,
)
from tax_lightning.data.folder import FolderDataModule
from tax_lightning.data.samples import IGNORE_INDEX, RawSample, Sample, SampleTable

__all__ = [
    "IGNORE_INDEX",
    "FolderDataModule",
    "MultiAnnotatorDataModule",
    "MultiAnnotatorDataset",
    "RawSample",
    "Sample",
    "SampleTable",
    "Source",
    "TableDataModule",
    "collate_samples",
]
