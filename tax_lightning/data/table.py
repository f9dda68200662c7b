"""A data module over a table of files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from albumentations import DualTransform
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from tax_lightning.data.checks import QuickChecks
from tax_lightning.data.datamodule import STAGE_SPLITS, MultiAnnotatorDataModule
from tax_lightning.data.dataset import Source
from tax_lightning.data.patches import check_patches
from tax_lightning.data.pixels import Pictures, find_images
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.refusals import check_number
from tax_lightning.windows import stride_of


class TableDataModule(MultiAnnotatorDataModule):
    """Loaders over a table of files, such as one that you make yourself.

    Args:
        table: The samples. Those of a data set that publishes its splits are each assigned to one;
            otherwise none is, and the splits are drawn with every group kept whole.
        predict_images: Folder of images without masks to predict on, instead of ``predict_split``;
            the file names are the ids.
        check_files: Decode every file of the splits in use once before the run starts.
        val_fraction: Share of the images for validation, where splits are drawn.
        test_fraction: Share of the images for testing, where splits are drawn by seed.
        split_seed: Seed of that draw.
        folds: Number of folds of a cross-validation; None: one draw. Only where splits are drawn.
        fold: The fold to test on, from 0.
        patch_size: Side in pixels of square patches that the images of all splits are cut into,
            after the splits are drawn; None: whole images. ``predict_images`` stay whole.
        patch_stride: Pixels from one patch to the next; None: ``patch_size``.
        tile: Side in pixels of windows, which overlap by a quarter, for what is not training:
            ``predict`` reads and segments window by window and puts them together, and validation
            and test measure whole images that are segmented so. None: images, or patches, as they
            are.
        kwargs: The loading options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        ValueError: If the table holds no masks at all, or samples without a split, or the options
            of folds or patches are out of range.
        FileNotFoundError: If ``predict_images`` is no folder.

    Example:
        >>> table = SampleTable((Sample("a", Path("a.png"), {"Ann": Path("m/a.png")},
        ...     split="train"),), ("Ann", "Bob"), ("background", "cell"))
        >>> TableDataModule(table, batch_size=2).annotators
        ('Ann', 'Bob')
    """

    def __init__(
        self,
        table: SampleTable,
        predict_images: str | Path | None = None,
        check_files: bool = True,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        patch_size: int | None = None,
        patch_stride: int | None = None,
        tile: int | None = None,
        **kwargs: Any,  # noqa: ANN401 - the parent class types them
    ) -> None:
        super().__init__(
            annotators=table.annotators, classes=table.classes, channels=table.channels, **kwargs
        )
        check_number("split_seed", split_seed, 0)
        if all(sample.split is None for sample in table.samples):
            if folds is None:
                table = table.split_by_seed(val_fraction, test_fraction, split_seed)
            else:
                table = table.split_by_fold(fold, folds, val_fraction, split_seed)
        elif folds is not None:
            raise ValueError(
                f"folds={folds}: the data set says which image is in which split. Leave folds "
                "out, or take the splits out of the data set's own list."
            )
        _check_usable(table)
        if patch_size is not None:
            check_patches(patch_size, patch_stride)
        elif patch_stride is not None:
            raise ValueError(f"patch_stride={patch_stride}: expected patch_size too, e.g. 512.")
        if tile is not None:
            stride_of(tile)  # checks it
            if moving := [t for t in self.eval_transforms if isinstance(t, DualTransform)]:
                raise ValueError(
                    f"tile={tile}: eval_transforms ({type(moving[0]).__name__}) move pixels, which "
                    "they would do in each window by itself. Leave out tile or these transforms."
                )
        self.tile = tile
        self.table = table
        self.patch_size = patch_size
        self.patch_stride = patch_stride
        self.check_files = check_files
        self._unlabelled = (
            None if predict_images is None else _unlabelled(Path(predict_images), table)
        )

    @property
    def pictures(self) -> Pictures:
        """How the files of the table become pixels."""
        return self.table.pictures

    def _source(self, split: str) -> SampleTable:
        table = self.table.select(split)
        if self.patch_size is not None and (split == "train" or self.tile is None):
            table = table.in_patches(self.patch_size, self.patch_stride)
        return table if split == "train" else table.counted_once()

    def _predict_source(self) -> Source:
        if self._unlabelled is None:
            return super()._predict_source()
        return self._unlabelled

    def _predict_parts(self) -> Source:
        if self.tile is not None:
            return self._windows(self.tile)
        source = self._predict_source()
        return source.from_top() if isinstance(source, SampleTable) else source

    def _windows(self, tile: int) -> SampleTable:
        """The windows of the images to predict on, without masks, to be decoded anew for each."""
        table = self._unlabelled or self.table.select(self.predict_split)
        bare = (replace(s, masks={}, reference=None, owner=None) for s in table.samples)
        table = replace(table, samples=tuple(bare), with_reference=False)
        return table.in_patches(tile, stride_of(tile)).from_top()

    def _all_sources(self) -> Iterator[Source]:
        yield from super()._all_sources()
        if self._unlabelled is not None:
            yield self._unlabelled

    def setup(self, stage: str) -> None:
        """Prepare the samples of a stage, and check that all their files can be read.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If the stage has no samples, or a file is broken; the message names it.
        """
        super().setup(stage)
        if stage == "fit":
            self._warn_of_idle_annotators()
        if self.check_files:
            self._check_files(stage)

    def _warn_of_idle_annotators(self) -> None:
        """An annotator without training masks keeps the tendencies of a random start."""
        busy = {name for sample in self.table.select("train").samples for name in sample.masks}
        if idle := [name for name in self.annotators if name not in busy]:
            rank_zero_warn(
                f"Annotator(s) {', '.join(idle)} labelled no training image: nothing can be learnt "
                "about them. Leave them out, or draw the splits with another seed."
            )

    def _check_files(self, stage: str) -> None:
        """Decode the files of a stage, each process its share."""
        if stage == "predict" and self.tile is not None:
            # One window of each file: to decode large images twice takes long.
            parts = self._windows(self.tile)
            firsts = {s.image: s for s in reversed(parts.samples)}
            tables = [replace(parts, samples=tuple(firsts.values()))]
        elif stage == "predict" and self._unlabelled is not None:
            tables = [self._unlabelled]
        else:
            splits = STAGE_SPLITS.get(stage, (self.predict_split,))
            tables = [self.table.select(split) for split in splits]
        count = sum(len(table) for table in tables)
        rank_zero_info(f"Checking the files of {count} images; check_files=False skips this.")
        rank, processes = self._process()
        checks = QuickChecks(self.annotators, self.classes[0])
        look = checks.add if stage == "fit" else lambda sample: None
        for table in tables:
            replace(table, samples=table.samples[rank::processes]).check(look)
        for sentence in checks.sentences() if stage == "fit" else ():
            rank_zero_warn(f"{sentence} `tax inspect` shows the files.")


def _check_usable(table: SampleTable) -> None:
    """A table to learn or test with has masks, and every sample is in a split."""
    if not any(sample.masks for sample in table.samples):
        raise ValueError(
            f"None of the {len(table)} samples has a mask, expected masks by "
            f"{', '.join(table.annotators)}."
        )
    if loose := [sample.id for sample in table.samples if sample.split is None]:
        raise ValueError(
            f"{len(loose)} sample(s) have no split, e.g. {loose[0]!r}. Assign all of them to "
            "train, val or test, or none: the splits are then drawn."
        )


def _unlabelled(folder: Path, table: SampleTable) -> SampleTable:
    """A folder of images as a table like another one, with no masks."""
    images = find_images(folder) if folder.is_dir() else {}
    if not images:
        raise FileNotFoundError(
            f"predict_images: {folder} is no folder with images, expected one with "
            "files such as NAME.png."
        )
    return replace(table, samples=tuple(Sample(name, path, {}) for name, path in images.items()))
