"""Data: images and masks of several annotators in one format, and their loaders."""

from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
from tax_lightning.data.folder import FolderDataModule
from tax_lightning.data.samples import RawSample, Sample, SampleTable
from tax_lightning.data.shards import write_shards
from tax_lightning.data.streaming import StreamingDataModule
from tax_lightning.data.table import TableDataModule

__all__ = [
    "FolderDataModule",
    "MultiAnnotatorDataModule",
    "MultiAnnotatorDataset",
    "RawSample",
    "Sample",
    "SampleTable",
    "Source",
    "StreamingDataModule",
    "TableDataModule",
    "collate_samples",
    "write_shards",
]
