"""Decoded samples as a PyTorch dataset: aligned transforms, tensors, batches."""

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from tax_lightning.data.labels import IGNORE_INDEX
from tax_lightning.data.preparation import IMAGENET
from tax_lightning.data.samples import RawSample
from tax_lightning.data.transforms import Transform, check_transforms, compose
from tax_lightning.explain.palette import Picture

_INSIDE = 254  # marks pixels of the picture: no class id, and no value anybody fills borders with
_PLANES = {"reference": "mask", "owner": "mask", "deviation": "masks", "inside": "mask"}


class Source(Protocol):
    """Anything that can hand out decoded samples by number; a `SampleTable` is one."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the samples, in order."""

    def __getitem__(self, index: int) -> RawSample:
        """The sample at this place."""


class MultiAnnotatorDataset(Dataset[dict[str, Any]]):
    """Decoded samples, transformed and normalised: the batch form without its batch axis.

    Labels stay bytes as they were read, an eighth of the int64 that losses want: the data module
    widens them where the batch is used (`with_class_ids`).

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
        >>> import albumentations as A
        >>> sample = MultiAnnotatorDataset(Flat(), [A.Pad(1)], mean=(0.5,), std=(0.25,))[0]
        >>> sample["image"].shape, sample["masks"][0, :, 1].tolist()
        (torch.Size([1, 6, 6]), [255, 0, 0, 0, 0, 255])
    """

    def __init__(
        self,
        source: Source,
        transforms: Sequence[Transform] = (),
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        seed: int | None = None,
    ) -> None:
        check_transforms(transforms)
        self.source = source
        self.seed = seed
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self._compose = compose(transforms, _PLANES)

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
        if outside.any():
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
        if image.dtype == np.uint8:
            return torch.from_numpy(self._looked_up(image))
        white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
        # Channels first, then in place: several times as fast as the other way round.
        planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
        planes /= np.float32(white)
        planes -= self.mean[:, None, None]
        planes /= self.std[:, None, None]
        return torch.from_numpy(planes)

    def _looked_up(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The same for 8-bit images, which have 256 values a channel: several times as fast."""
        grey = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        table = ((grey - self.mean) / self.std).T[:, None]
        planes = np.empty((image.shape[2], *image.shape[:2]), np.float32)
        for plane, values, found in zip(cv2.split(image), table, planes, strict=True):
            cv2.LUT(plane, values, found)
        return planes


def as_picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """Undo the normalisation, for showing.

    Args:
        image: Normalised image ``[ch, H, W]``; of other than 3 channels the first is shown.
        mean: Mean of each channel of the image in [0, 1].
        std: Standard deviation of each channel.

    Returns:
        uint8 RGB picture ``[H, W, 3]``.

    Example:
        >>> as_picture(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3), [0.5], [0.5])[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    shown = image.detach().cpu().float().numpy().transpose(1, 2, 0)
    shown = shown * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    if shown.shape[2] != 3:
        shown = shown[..., :1].repeat(3, axis=2)
    picture: Picture = (shown.clip(0, 1) * 255).round().astype(np.uint8)
    return picture


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
    return torch.from_numpy(np.array(plane, np.uint8, order="C"))  # a copy: sources may keep theirs


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
        planes = [_pad_to(sample[key], height, width, fill) for sample in samples]
        batch[key] = torch.stack(planes, out=_space_for(planes))
    if annotators is not None:
        batch["annotators"] = tuple(annotators)
    return batch


def _space_for(planes: Sequence[Tensor]) -> Tensor:
    """Memory for a stack, from NumPy: it asks for large pages, which saves most of the time."""
    dtype = planes[0].numpy().dtype
    return torch.from_numpy(np.empty((len(planes), *planes[0].shape), dtype))


def _pad_to(plane: Tensor, height: int, width: int, fill: int) -> Tensor:
    if plane.shape[-2:] == (height, width):
        return plane  # padding by nothing would copy it
    return pad(plane, (0, width - plane.shape[-1], 0, height - plane.shape[-2]), value=fill)
