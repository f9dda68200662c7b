"""From decoded samples to batches: aligned transforms, loaders, and a look at one sample.

Every data module yields batches of this form (``B`` images, ``N`` annotators, ``C`` classes):

- ``image``: ``[B, ch, H, W]``; float32, normalised, or uint8 as in the file
- ``normalisation``: float32 ``[2, ch]``, mean and standard deviation; only with uint8 images
- ``masks``: ``[B, N, H, W]``, class ids 0..C-1, 255 where not labelled
- ``present``: bool ``[B, N]``, the annotator labelled this image
- ``reference``: ``[B, H, W]``, 255 where unknown; only in data that have one
- ``expert``: ``[B, H, W]``, index of the expert, 255 for none; simulated annotators only
- ``deviation``: ``[B, N, H, W]``, id of the rule that changed the pixel, else 0; simulated
  annotators only
- ``size``: int64 ``[B, 2]``, height and width before padding
- ``id``: list of B names; ``annotators``: the N names

Loaders give labels and 8-bit images as uint8. A model under a Trainer gets int64 and normalised
float32, which they become on its device; without one, `tax_lightning.batch.unpacked` does the same.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tax_lightning.batch import Batch, unpacked
from tax_lightning.data.dataset import (
    FewerLabels,
    MultiAnnotatorDataset,
    Source,
    StapleReference,
    collate_samples,
    to_picture,
)
from tax_lightning.data.loader import EpochSampler, ResumableLoader, fixed_seed
from tax_lightning.data.metadata import groups_by
from tax_lightning.data.pixels import Pictures
from tax_lightning.data.preparation import Preparation, usual_normalisation
from tax_lightning.data.samples import check_names
from tax_lightning.data.splits import SPLITS
from tax_lightning.data.transforms import (
    Preset,
    Transform,
    check_transforms,
    training_transforms,
)
from tax_lightning.palette import annotator_palette
from tax_lightning.refusals import check_number, refusing

STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
_MOST_CHANNELS, _MOST_WORKERS = 4096, 64
_PLOT_SIZE = 512  # pixels of the longer side of a plot, about


class MultiAnnotatorDataModule(L.LightningDataModule, ABC):
    """Loaders over samples that several annotators labelled.

    A subclass says where the samples of a split come from (`_source`); everything after that is
    shared. Names and channels are known as soon as the object exists.

    Args:
        annotators: Names of the annotators; their order is that of the axis ``N``.
        classes: Names of the classes; the index is the class id and the first is the background.
        channels: Number of image channels.
        batch_size: Images a batch.
        num_workers: Loader processes; 0 loads in the training process.
        mean: Mean of each channel of the image in [0, 1]. None: ImageNet's for 3 channels,
            else 0.5.
        std: Standard deviation of each channel. None: ImageNet's for 3 channels, else 0.25.
        train_transforms: Augmentation: ``"none"``, ``"light"`` (flips), ``"medical"`` (flips, 90
            degree turns, small deformations, brightness, contrast, slight blur or noise; see
            `tax_lightning.data.transforms`), or a list of Albumentations transforms. None is
            ``"light"``.
        eval_transforms: Albumentations transforms for everything else, e.g. to resize. None: none.
        predict_split: The split that ``predict`` runs on.
        metadata: What is known of annotators: name -> column, such as ``tool`` -> value. Readers
            of files give it themselves where the data say it.
        group_by: Column of the metadata by which tables, metrics and pages also tell of groups of
            annotators. None: of single annotators only.
        labels_per_image: Train with the labels of at most this many annotators an image, drawn by
            the image's name, to learn what few labels cost. None: with all.

    Raises:
        ValueError: If names are missing or double, a transform is unknown or not allowed, ``mean``
            and ``std`` do not fit the channels, ``labels_per_image`` is below 1, or ``group_by``
            names no column that is known of every annotator.

    Example:
        >>> from tax_lightning.data.samples import RawSample
        >>> class Squares:
        ...     ids = ("dark", "light")
        ...     def __getitem__(self, index):
        ...         image = np.full((8, 8, 3), 50 + 150 * index, np.uint8)
        ...         mask = np.zeros((1, 8, 8), np.uint8)
        ...         mask[:, 2:6, 2:6] = 1
        ...         return RawSample(self.ids[index], image, mask, np.array([True]))
        >>> class SquaresDataModule(MultiAnnotatorDataModule):
        ...     def _source(self, split):
        ...         return Squares()
        >>> data = SquaresDataModule(["Ann"], ["background", "square"], batch_size=2)
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch["id"], batch["annotators"], batch["masks"].shape
        (['dark', 'light'], ('Ann',), torch.Size([2, 1, 8, 8]))
        >>> data.plot(data.read("light")).height
        512
    """

    persons = True  # whether an annotator is the same person throughout

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        channels: int = 3,
        batch_size: int = 8,
        num_workers: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        train_transforms: Preset | list[Transform] | None = "light",
        eval_transforms: list[Transform] | None = None,
        predict_split: Literal["train", "val", "test"] = "test",
        labels_per_image: int | None = None,
        metadata: Mapping[str, Mapping[str, str]] | None = None,
        group_by: str | None = None,
    ) -> None:
        super().__init__()
        check_names(annotators, classes)
        check_number("channels", channels, 1, _MOST_CHANNELS)
        check_number("batch_size", batch_size, 1)
        check_number("num_workers", num_workers, 0, max(_MOST_WORKERS, os.cpu_count() or 1))
        if labels_per_image is not None and labels_per_image < 1:
            raise ValueError(
                f"labels_per_image={labels_per_image}: expected at least 1, or null for all."
            )
        self.labels_per_image = labels_per_image
        self.annotators = tuple(annotators)
        self.metadata = metadata or {}
        self.groups = groups_by(group_by, annotators, self.metadata)
        self.classes = tuple(classes)
        self.channels = channels
        self.batch_size = batch_size
        self.num_workers = num_workers
        usual = usual_normalisation(channels)
        self.mean = _per_channel("mean", mean or usual[0], channels)
        self.std = _per_channel("std", std or usual[1], channels)
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: expected numbers above 0, one a channel.")
        self._by_preset = train_transforms is None or isinstance(train_transforms, str)
        self.train_transforms = training_transforms(train_transforms)
        self.eval_transforms = eval_transforms or []
        check_transforms([*self.train_transforms, *self.eval_transforms])
        self.predict_split = predict_split
        self._sources: dict[str, Source] = {}
        self._uses_staple = False

    @property
    def pictures(self) -> Pictures:
        """How image files become pixels."""
        return Pictures(self.channels)

    @property
    def preparation(self) -> Preparation:
        """How image files become what a model sees, for its checkpoint to note."""
        return Preparation(
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            intensity_range=self.pictures.intensity_range,
            transforms=tuple(type(transform).__name__ for transform in self.eval_transforms),
        )

    @abstractmethod
    def _source(self, split: str) -> Source:
        """The samples of one split; asked for once, when the split is first needed."""

    def _predict_source(self) -> Source:
        """The samples to predict on."""
        return self._samples_of(self.predict_split)

    def _predict_parts(self) -> Source:
        """The same as the loader gives them: whole, or in windows."""
        return self._predict_source()

    def setup(self, stage: str) -> None:
        """Prepare the samples of a stage, and only those.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If the stage has no samples to work on.
        """
        if stage == "predict":
            sources: dict[str, Source] = {self.predict_split: self._predict_source()}
        else:
            sources = {split: self._samples_of(split) for split in STAGE_SPLITS[stage]}
        for split, source in sources.items():
            if not len(source.ids) and not (split == "val" and self._validates_nothing()):
                raise ValueError(
                    f"{type(self).__name__} has 0 samples in the split {split!r}, expected at "
                    f"least 1. Assign images to it, or raise {split}_fraction (simulated scenes: "
                    f"{split}_samples); to train without validation, set "
                    "trainer.limit_val_batches=0."
                )
            if stage == "fit" and len(source.ids):
                self._try_transforms(split, source)

    def _try_transforms(self, split: str, source: Source) -> None:
        """Transform one sample by the user's own list: what cannot work is refused by its name."""
        kind = "train_transforms" if split == "train" else "eval_transforms"
        transforms: list[Any] = getattr(self, kind)
        if split == "train" and self._by_preset:
            return

        def transform(count: int) -> None:
            MultiAnnotatorDataset(source, transforms[:count], self.mean, self.std, seed=0)[0]

        with suppress(Exception):  # whose name is found below
            if transforms:
                transform(len(transforms))
            return
        for count, last in enumerate(transforms, start=1):
            what = f"{kind}: {type(last).__name__}"
            with refusing(what, getattr(last, "get_transform_init_args", dict)()):
                transform(count)

    def _validates_nothing(self) -> bool:
        """Whether the trainer was told to leave validation out."""
        return self.trainer is not None and self.trainer.limit_val_batches == 0

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training batches: augmented and shuffled, by the seed of ``lightning.seed_everything``.

        A last batch that is not full is left out, unless it is the only one: batch normalisation
        cannot work with a single image. The next epoch shuffles anew, so no image is lost. A run
        goes on from any batch, see :mod:`tax_lightning.data.loader`.
        """
        dataset = MultiAnnotatorDataset(
            self._samples_of("train"), self.train_transforms, self.mean, self.std
        )
        rank, processes = self._process()
        seed = fixed_seed()
        if seed is None:
            seed = int(torch.randint(2**31, ()))
            seed = seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
        return ResumableLoader(
            dataset,
            sampler=EpochSampler(dataset, seed, rank, processes),
            drop_last=self._drops_last(len(dataset)),
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Validation batches; an empty list where there is no validation split."""
        samples = self._samples_of("val")
        return self._measuring_loader(samples) if len(samples.ids) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches."""
        return self._measuring_loader(self._samples_of("test"))

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the split ``predict_split``, which tell how to put a prediction back.

        ``"frame"`` is a :class:`.Frame` for each image, None where it cannot be put back, and
        ``"facts"`` what ``samples.csv`` says.
        """
        transforms = self.eval_transforms
        return self._loader(
            MultiAnnotatorDataset(
                self._predict_parts(), transforms, self.mean, self.std, seed=0, frames=True
            )
        )

    def predict_dataset(self) -> MultiAnnotatorDataset:
        """The images that ``predict`` runs on, each of them whole."""
        return self._eval_dataset(self._predict_source())

    def projection_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The training samples as they are: evaluation transforms, in order.

        Prototypes are started from these images and projected onto them, so that a prototype's
        place can be looked up again with `read`.
        """
        return self._eval_loader(self._samples_of("train"))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise images and widen labels, both of which were loaded and moved as bytes."""
        return unpacked(batch)

    def read(self, id: str) -> dict[str, Any]:
        """One sample of any split, with the evaluation transforms.

        Args:
            id: Name of the sample.

        Returns:
            The sample as in a batch, without the batch axis.

        Raises:
            KeyError: If no split has such a sample.
        """
        for source in self._all_sources():
            if id in source.ids:
                return unpacked(self._eval_dataset(source)[list(source.ids).index(id)])
        raise KeyError(f"No sample has the id {id!r}. Expected the name of an image of the data.")

    def to_picture(self, image: Tensor) -> npt.NDArray[np.uint8]:
        """Undo the normalisation, for showing.

        Args:
            image: Normalised image ``[ch, H, W]``, or its pixels in uint8, as a data set may hold
                them; of other than 3 channels the first is shown.

        Returns:
            uint8 RGB picture ``[H, W, 3]``.
        """
        return to_picture(image, self.mean, self.std)

    def plot(self, sample: Mapping[str, Any]) -> Image.Image:
        """The image with the outlines of all annotators, and their names in the same colours.

        Args:
            sample: A sample as `read` returns it.

        Returns:
            RGB picture, small images enlarged.
        """
        picture = self.to_picture(sample["image"])
        zoom = max(1, round(_PLOT_SIZE / max(picture.shape)))
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
        masks = sample["masks"].cpu().numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)
        colours = annotator_palette(len(self.annotators))
        for mask, colour in zip(masks, colours, strict=True):
            picture[find_boundaries(mask, mode="inner")] = colour
        return _with_legend(picture, self.annotators, colours)

    def _samples_of(self, split: str) -> Source:
        """The samples of a split, made once."""
        if split not in self._sources:
            source = self._source(split)
            if split == "train" and self.labels_per_image is not None:
                source = FewerLabels(source, self.labels_per_image)
            if self._uses_staple:
                source = StapleReference(source, len(self.classes))
            self._sources[split] = source
        return self._sources[split]

    def use_staple(self) -> None:
        """Let the reference of every sample be the STAPLE estimate of its masks.

        Estimated once for each sample, see :func:`tax_lightning.consensus.staple`.
        """
        if not self._uses_staple:
            self._uses_staple = True
            for split, source in self._sources.items():
                self._sources[split] = StapleReference(source, len(self.classes))

    def _all_sources(self) -> Iterator[Source]:
        yield from (self._samples_of(split) for split in SPLITS)

    def _drops_last(self, samples: int) -> bool:
        """Whether a last batch that is not full is left out: not if it is the only one."""
        _, processes = self._process()
        return samples // processes >= self.batch_size

    def _process(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _eval_dataset(self, source: Source) -> MultiAnnotatorDataset:
        return MultiAnnotatorDataset(source, self.eval_transforms, self.mean, self.std, seed=0)

    def _eval_loader(self, source: Source) -> DataLoader[dict[str, Any]]:
        return self._loader(self._eval_dataset(source))

    def _measuring_loader(self, source: Source) -> DataLoader[dict[str, Any]]:
        """Every image in one process only.

        Lightning's own sampler repeats images until all processes have as many, and a repeated
        image would count twice in the figures.
        """
        dataset = self._eval_dataset(source)
        rank, processes = self._process()
        if not 1 < processes <= len(dataset):  # a process without any image would wait for ever
            return self._loader(dataset)
        sampler = UnrepeatedDistributedSampler(
            dataset, num_replicas=processes, rank=rank, shuffle=False
        )
        return self._loader(dataset, sampler=sampler)

    def _loader(
        self,
        dataset: MultiAnnotatorDataset,
        sampler: Sampler[int] | None = None,
    ) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            sampler=sampler,
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def _loading(self) -> dict[str, Any]:
        """Options of every loader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": partial(collate_samples, annotators=self.annotators),
        }


def _per_channel(argument: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) != channels:
        raise ValueError(
            f"{argument}={values} has {len(values)} number(s), expected {channels}: one a channel."
        )
    return tuple(values)


def _with_legend(
    picture: npt.NDArray[np.uint8],
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """The picture with one name a line to its right, each behind its colour."""
    font = ImageFont.load_default(16)
    width = max(round(font.getlength(name)) for name in names) + 40
    height = max(picture.shape[0], 20 * len(names) + 10)
    canvas = Image.new("RGB", (picture.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for line, (name, colour) in enumerate(zip(names, colours, strict=True)):
        left, top = picture.shape[1] + 10, 5 + 20 * line
        draw.rectangle((left, top + 3, left + 12, top + 15), fill=colour)
        draw.text((left + 20, top), name, fill="black", font=font)
    return canvas
