"""Data: images and masks of several annotators in one format, and their loaders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are used: an import of masks needs no torch.
_PUBLIC = {
    "FolderDataModule": "folder",
    "MultiAnnotatorDataModule": "datamodule",
    "MultiAnnotatorDataset": "dataset",
    "RawSample": "samples",
    "Sample": "samples",
    "SampleTable": "samples",
    "Source": "dataset",
    "StreamingDataModule": "streaming",
    "TableDataModule": "table",
    "collate_samples": "dataset",
    "write_shards": "shards",
}

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

if TYPE_CHECKING:
    from tax_lightning.data.datamodule import MultiAnnotatorDataModule
    from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
    from tax_lightning.data.folder import FolderDataModule
    from tax_lightning.data.samples import RawSample, Sample, SampleTable
    from tax_lightning.data.shards import write_shards
    from tax_lightning.data.streaming import StreamingDataModule
    from tax_lightning.data.table import TableDataModule


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _PUBLIC:
        return getattr(import_module(f"tax_lightning.data.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'tax_lightning.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
