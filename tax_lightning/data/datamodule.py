"""From decoded samples to batches: aligned transforms, loaders, and a look at one sample.

Every data module yields batches of this form (``B`` images, ``N`` annotators, ``C`` classes):

- ``image``: float32 ``[B, ch, H, W]``, normalised
- ``masks``: int64 ``[B, N, H, W]``, class ids 0..C-1, 255 where not labelled
- ``present``: bool ``[B, N]``, the annotator labelled this image
- ``reference``: int64 ``[B, H, W]``, 255 where unknown; only in data that have one
- ``owner``: int64 ``[B, H, W]``, index of the expert, 255 for none; synthetic data only
- ``deviation``: int64 ``[B, N, H, W]``, id of the rule that changed the pixel, else 0; synthetic
  data only
- ``size``: int64 ``[B, 2]``, height and width before padding
- ``id``: list of B names; ``annotators``: the N names
"""

import os
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from tax_lightning.data.samples import (
    IGNORE_INDEX,
    SPLITS,
    RawSample,
    Sample,
    SampleTable,
    check_names,
    find_images,
)
from tax_lightning.explain.palette import annotator_palette

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network when imported

import albumentations as A
import cv2

Transform: TypeAlias = A.BasicTransform | A.BaseCompose

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_INSIDE = 254  # marks pixels of the picture: no class id, and no value anybody fills borders with
_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
_PLOT_SIZE = 512  # pixels of the longer side of a plot, about
_OWN_WORK = ("Normalize", "ToTensorV2", "ToTensor3D")  # what the dataset does itself


class Source(Protocol):
    """Anything that can hand out decoded samples by number; a `SampleTable` is one."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the samples, in order."""

    def __getitem__(self, index: int) -> RawSample:
        """The sample at this place."""


class MultiAnnotatorDataset(Dataset[dict[str, Any]]):
    """Decoded samples, transformed and normalised: the batch form without its batch axis.

    One draw of a transform is applied to the image and to all its label planes alike, with nearest
    interpolation for labels. Labels that a transform fills in from outside the picture become
    `IGNORE_INDEX`, whatever the transform's own fill value says.

    Without a seed the transforms draw from PyTorch's random numbers, so that
    `lightning.seed_everything` with ``workers=True`` makes them repeatable, in loader workers too.

    Args:
        source: The decoded samples.
        transforms: Albumentations transforms, applied in this order.
        mean: Mean of each channel of the image in [0, 1].
        std: Standard deviation of each channel.
        seed: Fixes the transforms' draw for every sample, for evaluation: the same sample always
            comes out the same.

    Raises:
        ValueError: If the transforms normalise or make tensors, which the dataset does itself.

    Example:
        >>> class Flat:
        ...     ids = ("flat",)
        ...     def __getitem__(self, index):
        ...         return RawSample("flat", np.full((4, 4, 1), 255, np.uint8),
        ...             np.zeros((2, 4, 4), np.uint8), np.array([True, True]))
        >>> sample = MultiAnnotatorDataset(Flat(), [A.Pad(1)], mean=(0.5,), std=(0.25,))[0]
        >>> sample["image"].shape, sample["masks"][0, :, 1].tolist()
        (torch.Size([1, 6, 6]), [255, 0, 0, 0, 0, 255])
    """

    def __init__(
        self,
        source: Source,
        transforms: Sequence[Transform] = (),
        mean: Sequence[float] = _IMAGENET[0],
        std: Sequence[float] = _IMAGENET[1],
        seed: int | None = None,
    ) -> None:
        _check_transforms(transforms)
        self.source = source
        self.seed = seed
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self._compose = A.Compose(
            list(transforms),
            additional_targets={
                "reference": "mask",
                "owner": "mask",
                "deviation": "masks",
                "inside": "mask",
            },
            mask_interpolation=cv2.INTER_NEAREST,
        )

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The transformed sample at this place."""
        raw = self.source[index]
        planes = self._transformed(raw)
        sample: dict[str, Any] = {
            "image": self._normalised(planes.pop("image")),
            "present": torch.from_numpy(raw.present.copy()),
            "id": raw.id,
        }
        return sample | {name: _to_labels(plane) for name, plane in planes.items()}

    def _transformed(self, raw: RawSample) -> dict[str, npt.NDArray[Any]]:
        """Image and label planes after one joint draw of the transforms."""
        arrays = {
            "image": raw.image,
            "masks": raw.masks,
            "reference": raw.reference,
            "owner": raw.owner,
            "deviation": raw.deviation,
            "inside": np.full(raw.image.shape[:2], _INSIDE, np.uint8),
        }
        self._start_random_stream()
        planes: dict[str, npt.NDArray[Any]] = self._compose(
            **{name: array for name, array in arrays.items() if array is not None}
        )
        outside = planes.pop("inside") != _INSIDE
        for name in planes.keys() - {"image"}:
            unknown = 0 if name == "deviation" else IGNORE_INDEX  # no rule acted out there
            planes[name] = np.where(outside, np.uint8(unknown), planes[name])
        return planes

    def _start_random_stream(self) -> None:
        """Let all transforms draw from one stream.

        Passing a seed to the composition would start every transform with the same number: two
        flips would then always happen together.
        """
        seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def _normalised(self, image: npt.NDArray[Any]) -> Tensor:
        """``[H, W, ch]`` pixels to a normalised ``[ch, H, W]`` tensor."""
        if image.ndim == 2:
            image = image[..., None]
        white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
        scaled = (image.astype(np.float32) / np.float32(white) - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))


class FewerLabels:
    """Samples of which only some annotators' labels are shown, drawn by the sample's name.

    Args:
        source: The samples with all labels.
        count: Annotators an image whose labels are shown, at most.
    """

    def __init__(self, source: Source, count: int) -> None:
        self.source = source
        self.count = count

    @property
    def ids(self) -> Sequence[str]:
        """Those of the samples."""
        return self.source.ids

    def __getitem__(self, index: int) -> RawSample:
        """The sample with the labels of a few."""
        raw = self.source[index]
        rng = np.random.default_rng(zlib.crc32(raw.id.encode()))
        shown = rng.permutation(np.flatnonzero(raw.present))[: self.count]
        hidden = np.setdiff1d(np.arange(len(raw.present)), shown)
        masks, present = raw.masks.copy(), raw.present.copy()
        masks[hidden], present[hidden] = IGNORE_INDEX, False
        deviation = None if raw.deviation is None else raw.deviation.copy()
        if deviation is not None:
            deviation[hidden] = 0  # no rule acted where nothing is shown
        return replace(raw, masks=masks, present=present, deviation=deviation)


def _to_labels(plane: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(plane.astype(np.int64))


def _check_transforms(transforms: Iterable[Transform]) -> None:
    """Refuse transforms that do what the dataset does itself, at any depth."""
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            _check_transforms(transform.transforms)
        elif (name := type(transform).__name__) in _OWN_WORK:
            raise ValueError(
                f"The transform {name} is not allowed: images are normalised with mean and std and "
                f"made tensors after the transforms. Remove {name}, and set mean and std instead."
            )


def collate_samples(
    samples: Sequence[Mapping[str, Any]], annotators: Sequence[str] | None = None
) -> dict[str, Any]:
    """Stack samples to a batch; smaller pictures are padded at the bottom and the right.

    Args:
        samples: Samples as `MultiAnnotatorDataset` yields them.
        annotators: Names of the annotators, passed on with the batch.

    Returns:
        The batch: padding is 0 in ``image`` and ``deviation`` and `IGNORE_INDEX` in labels;
        ``size`` holds each picture's height and width before padding.

    Example:
        >>> samples = [{"image": torch.ones(3, n, n), "masks": torch.ones(2, n, n).long(),
        ...     "present": torch.ones(2).bool(), "id": str(n)} for n in (2, 3)]
        >>> batch = collate_samples(samples, ["Ann", "Bob"])
        >>> batch["masks"][0, 0].tolist(), batch["size"].tolist(), batch["id"]
        ([[1, 1, 255], [1, 1, 255], [255, 255, 255]], [[2, 2], [3, 3]], ['2', '3'])
    """
    sizes = torch.tensor([sample["image"].shape[-2:] for sample in samples])
    height, width = sizes.amax(0).tolist()
    batch: dict[str, Any] = {"size": sizes, "id": [sample["id"] for sample in samples]}
    batch["present"] = torch.stack([sample["present"] for sample in samples])
    for key in [key for key in samples[0] if key not in batch]:
        fill = 0 if key in ("image", "deviation") else IGNORE_INDEX
        batch[key] = torch.stack([_pad_to(sample[key], height, width, fill) for sample in samples])
    if annotators is not None:
        batch["annotators"] = tuple(annotators)
    return batch


def _pad_to(plane: Tensor, height: int, width: int, fill: int) -> Tensor:
    return pad(plane, (0, width - plane.shape[-1], 0, height - plane.shape[-2]), value=fill)


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
        train_transforms: Albumentations transforms for training. None: random horizontal and
            vertical flips; an empty list: no augmentation.
        eval_transforms: Albumentations transforms for everything else, e.g. to resize. None: none.
        predict_split: The split that ``predict`` runs on.
        labels_per_image: Train with the labels of at most this many annotators an image, drawn by
            the image's name, to learn what few labels cost. None: with all.

    Raises:
        ValueError: If names are missing or double, a transform is not allowed, ``mean`` and
            ``std`` do not fit the channels, or ``labels_per_image`` is below 1.

    Example:
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

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        channels: int = 3,
        batch_size: int = 8,
        num_workers: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        predict_split: Literal["train", "val", "test"] = "test",
        labels_per_image: int | None = None,
    ) -> None:
        super().__init__()
        check_names(annotators, classes)
        if labels_per_image is not None and labels_per_image < 1:
            raise ValueError(
                f"labels_per_image={labels_per_image}: expected at least 1, or null for all."
            )
        self.labels_per_image = labels_per_image
        self.annotators = tuple(annotators)
        self.classes = tuple(classes)
        self.channels = channels
        self.batch_size = batch_size
        self.num_workers = num_workers
        usual = _IMAGENET if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        self.mean = _per_channel("mean", mean or usual[0], channels)
        self.std = _per_channel("std", std or usual[1], channels)
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: expected numbers above 0, one a channel.")
        flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
        self.train_transforms = flips if train_transforms is None else train_transforms
        self.eval_transforms = eval_transforms or []
        _check_transforms([*self.train_transforms, *self.eval_transforms])
        self.predict_split = predict_split
        self._sources: dict[str, Source] = {}

    @abstractmethod
    def _source(self, split: str) -> Source:
        """The samples of one split; asked for once, when the split is first needed."""

    def _predict_source(self) -> Source:
        """The samples to predict on."""
        return self._samples_of(self.predict_split)

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
            sources = {split: self._samples_of(split) for split in _STAGE_SPLITS[stage]}
        for split, source in sources.items():
            if not len(source.ids) and not (split == "val" and self._validates_nothing()):
                raise ValueError(
                    f"{type(self).__name__} has no samples in the split {split!r}, expected at "
                    "least one. Assign images to it, or raise its share; to train without "
                    "validation, set trainer.limit_val_batches=0."
                )

    def _validates_nothing(self) -> bool:
        """Whether the trainer was told to leave validation out."""
        return self.trainer is not None and self.trainer.limit_val_batches == 0

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training batches: augmented and shuffled.

        A last batch that is not full is left out, unless it is the only one: batch normalisation
        cannot work with a single image. The next epoch shuffles anew, so no image is lost.
        """
        dataset = MultiAnnotatorDataset(
            self._samples_of("train"), self.train_transforms, self.mean, self.std
        )
        _, processes = self._process()
        full = len(dataset) // processes >= self.batch_size
        return self._loader(dataset, shuffle=True, drop_last=full)

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Validation batches; an empty list where there is no validation split."""
        samples = self._samples_of("val")
        return self._eval_loader(samples) if len(samples.ids) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches."""
        return self._eval_loader(self._samples_of("test"))

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the split ``predict_split``."""
        return self._eval_loader(self._predict_source())

    def projection_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The training samples as they are: evaluation transforms, in order.

        Prototypes are started from these images and projected onto them, so that a prototype's
        place can be looked up again with `read`.
        """
        return self._eval_loader(self._samples_of("train"))

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
                return self._eval_dataset(source)[list(source.ids).index(id)]
        raise KeyError(f"No sample has the id {id!r}. Expected the name of an image of the data.")

    def to_picture(self, image: Tensor) -> npt.NDArray[np.uint8]:
        """Undo the normalisation, for showing.

        Args:
            image: Normalised image ``[ch, H, W]``; of other than 3 channels the first is shown.

        Returns:
            uint8 RGB picture ``[H, W, 3]``.
        """
        shown = image.detach().cpu().float().numpy().transpose(1, 2, 0)
        shown = shown * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        if shown.shape[2] != 3:
            shown = shown[..., :1].repeat(3, axis=2)
        return (shown.clip(0, 1) * 255).round().astype(np.uint8)

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
            self._sources[split] = source
        return self._sources[split]

    def _all_sources(self) -> Iterator[Source]:
        yield from (self._samples_of(split) for split in SPLITS)

    def _process(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _eval_dataset(self, source: Source) -> MultiAnnotatorDataset:
        return MultiAnnotatorDataset(source, self.eval_transforms, self.mean, self.std, seed=0)

    def _eval_loader(self, source: Source) -> DataLoader[dict[str, Any]]:
        return self._loader(self._eval_dataset(source))

    def _loader(
        self, dataset: MultiAnnotatorDataset, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(collate_samples, annotators=self.annotators),
        )


class TableDataModule(MultiAnnotatorDataModule):
    """Loaders over a table of files: what every reader of files builds on.

    Args:
        table: The samples, each assigned to a split.
        predict_images: Folder of images without masks to predict on, instead of ``predict_split``;
            the file names are the ids.
        check_files: Decode every file of the splits in use once before the run starts.
        kwargs: The loading options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        ValueError: If the table holds no masks at all, or samples without a split.
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
        **kwargs: Any,  # noqa: ANN401 - the parent class types them
    ) -> None:
        super().__init__(
            annotators=table.annotators, classes=table.classes, channels=table.channels, **kwargs
        )
        _check_usable(table)
        self.table = table
        self.check_files = check_files
        self._unlabelled = (
            None if predict_images is None else _unlabelled(Path(predict_images), table)
        )

    def _source(self, split: str) -> SampleTable:
        return self.table.select(split)

    def _predict_source(self) -> Source:
        return self._unlabelled or super()._predict_source()

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
        if stage == "predict" and self._unlabelled is not None:
            tables = [self._unlabelled]
        else:
            splits = _STAGE_SPLITS.get(stage, (self.predict_split,))
            tables = [self.table.select(split) for split in splits]
        count = sum(len(table) for table in tables)
        rank_zero_info(f"Checking the files of {count} images; check_files=False skips this.")
        rank, processes = self._process()
        for table in tables:
            replace(table, samples=table.samples[rank::processes]).check()


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
            "train, val or test, or none and call split_by_seed."
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
