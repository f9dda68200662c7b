"""A data module over shards, in a folder or an object store."""

from pathlib import Path
from typing import Any

from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import MultiAnnotatorDataset
from tax_lightning.data.pixels import Pictures
from tax_lightning.data.shards import Contents, Shards, stream
from tax_lightning.extras import needed


class StreamingDataModule(MultiAnnotatorDataModule):
    """Samples in shards, as ``tax optimize`` writes them: more than a disk holds, or read fast.

    Training reads shard by shard, in an order that LitData shuffles anew each epoch. Each process
    reads its own part. A run that goes on within an epoch reads the rest of it. Everything else,
    from transforms to batches, is as for other data; splits and patches are those of the shards.

    Args:
        root: Folder, or address in an object store such as ``s3://bucket/name``. Keys and endpoint
            are those of the environment, as for all of AWS's tools.
        cache_dir: Folder for copies of remote shards, of which old ones make room for new ones when
            the disk is nearly full. None: LitData's own, ``~/.lightning/chunks``.
        seed: Seed of the order of training samples.
        kwargs: The loading options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        FileNotFoundError: If there are no shards, or the writing of them was interrupted.
        ModuleNotFoundError: If LitData is not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tax_lightning.data.shards import write_shards
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> few = dict(size=64, train_samples=4, val_samples=1, test_samples=1)
        >>> with TemporaryDirectory() as folder:
        ...     _ = write_shards(SyntheticDataModule(**few), Path(folder, "shards"))
        ...     data = StreamingDataModule(Path(folder, "shards"), batch_size=4)
        ...     batch = next(iter(data.train_dataloader()))
        >>> data.classes[:2], batch["masks"].shape
        (('background', 'cell'), torch.Size([4, 5, 64, 64]))
    """

    def __init__(
        self,
        root: str | Path,
        cache_dir: str | Path | None = None,
        seed: int = 0,
        **kwargs: Any,  # noqa: ANN401 - the parent class types them
    ) -> None:
        self.root = str(root)
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.seed = seed
        self.contents = Contents.read(self.root, self.cache_dir)
        metadata = kwargs.pop("metadata", None) or self.contents.metadata
        super().__init__(
            annotators=self.contents.annotators,
            classes=self.contents.classes,
            channels=self.contents.channels,
            metadata=metadata,
            **kwargs,
        )
        self.persons = self.contents.persons

    @property
    def pictures(self) -> Pictures:
        """How the image files became the pixels of the shards."""
        return Pictures(self.channels, self.contents.intensity_range)

    def _source(self, split: str) -> Shards:
        return Shards(self.root, split, self.contents.ids[split], self.cache_dir)

    def train_dataloader(self) -> Any:  # noqa: ANN401 - of LitData, which ships no types
        """Training batches: augmented and shuffled; the loader can go on within an epoch.

        Samples are left out that would not fill a batch in every process, other ones each epoch.
        """
        samples = MultiAnnotatorDataset(
            self._samples_of("train"), self.train_transforms, self.mean, self.std
        )
        loader = _loader_class()(
            stream(
                self.root,
                "train",
                self.cache_dir,
                shuffle=True,
                seed=self.seed,
                transform=samples.__getitem__,  # by the item that was read, not by its place
            ),
            drop_last=self._drops_last(len(samples)),
            **self._loading(),
        )
        loader.current_epoch = self.trainer.current_epoch if self.trainer else 0  # that is over
        return loader


def _loader_class() -> Any:  # noqa: ANN401 - of LitData, which ships no types
    """LitData's loader, but for what happens after an epoch that was gone on with.

    Lightning takes as many batches as there are and does not ask for one more. LitData's loader
    learns only by that question that the epoch is over, and would go on with it again and again.
    """

    class Loader(needed("litdata").StreamingDataLoader):  # type: ignore[misc]
        restore: bool
        gone_on = False

        def __iter__(self) -> Any:  # noqa: ANN401
            self.gone_on = self.restore = self.restore and not self.gone_on
            return super().__iter__()

    return Loader
