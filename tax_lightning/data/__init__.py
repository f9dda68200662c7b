"""Data: tables of samples, readers, simulated annotators, and the loaders they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are used: losses and metrics need the label conventions of
# `labels`, but neither Lightning nor albumentations.
_HOMES = {
    "IGNORE_INDEX": "labels",
    "FolderDataModule": "folder",
    "MultiAnnotatorDataModule": "datamodule",
    "MultiAnnotatorDataset": "dataset",
    "RawSample": "samples",
    "Sample": "samples",
    "SampleTable": "samples",
    "Source": "dataset",
    "SyntheticDataModule": "synthetic",
    "TableDataModule": "table",
    "collate_samples": "dataset",
}

__all__ = [
    "IGNORE_INDEX",
    "FolderDataModule",
    "MultiAnnotatorDataModule",
    "MultiAnnotatorDataset",
    "RawSample",
    "Sample",
    "SampleTable",
    "Source",
    "SyntheticDataModule",
    "TableDataModule",
    "collate_samples",
]

if TYPE_CHECKING:
    from tax_lightning.data.datamodule import MultiAnnotatorDataModule
    from tax_lightning.data.dataset import MultiAnnotatorDataset, Source, collate_samples
    from tax_lightning.data.folder import FolderDataModule
    from tax_lightning.data.labels import IGNORE_INDEX
    from tax_lightning.data.samples import RawSample, Sample, SampleTable
    from tax_lightning.data.synthetic import SyntheticDataModule
    from tax_lightning.data.table import TableDataModule


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
