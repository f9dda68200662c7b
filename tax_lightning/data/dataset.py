"""Decoded samples as a PyTorch dataset: aligned transforms, tensors, batches."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from tax_lightning.batch import unpacked
from tax_lightning.consensus import staple
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.preparation import IMAGENET
from tax_lightning.data.samples import RawSample
from tax_lightning.data.transforms import Transform, check_transforms, compose

_INSIDE = 254  # marks pixels of the picture: no class id, and no value anybody fills borders with
_PLANES = {"reference": "mask", "expert": "mask", "deviation": "masks", "inside": "mask"}
_PLANES["places"] = "masks"


class Source(Protocol):
    """Anything that can hand out decoded samples by number; a `SampleTable` is one."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the samples, in order."""

    def __getitem__(self, index: int) -> RawSample:
        """The sample at this place."""


class MultiAnnotatorDataset(Dataset[dict[str, Any]]):
    """Decoded samples, transformed: the batch form without its batch axis.

    Labels and the pixels of 8-bit images stay bytes as they were read, an eighth of the int64 and a
    quarter of the floats that a model wants: the data module makes those where the batch is used
    (`tax_lightning.batch.unpacked`). Other images are normalised here.

    One draw of a transform is applied to the image and to all its label planes alike, with nearest
    interpolation for labels. Labels that a transform fills in from outside the picture become
    `IGNORE_INDEX`, whatever the transform's own fill value says.

    The transforms draw from the seed that a :class:`~tax_lightning.data.loader.Draw` brings, else
    from PyTorch's random numbers.

    Args:
        source: The decoded samples.
        transforms: Albumentations transforms, applied in this order.
        mean: Mean of each channel of the image in [0, 1].
        std: Standard deviation of each channel.
        seed: Fixes the transforms' draw for every sample, for evaluation: the same sample always
            comes out the same.
        frames: Whether a sample tells where the transforms put the original image, so that a
            prediction can be put back: ``"frame"``, a :class:`Frame`, or None where they turn,
            mirror or crop it.

    Raises:
        ValueError: If the transforms normalise or make tensors, which the dataset does itself; when
            a sample is read, if its planes are not of one size.

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
        frames: bool = False,
    ) -> None:
        check_transforms(transforms)
        self.frames = frames
        self.source = source
        self.seed = seed
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self._normalisation = torch.from_numpy(np.stack([self.mean, self.std]))
        self._compose = compose(transforms, _PLANES)

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The transformed sample at this place."""
        raw = self.source[index]
        planes = self._transformed(raw, getattr(index, "seed", None))
        sample: dict[str, Any] = {
            **self._image(planes.pop("image")),
            "present": torch.from_numpy(raw.present.copy()),
            "id": raw.id,
        }
        if self.frames:
            sample["frame"] = Frame.of(planes.pop("places", None), raw.image.shape[:2])
            sample["facts"] = dict(raw.facts)
        return sample | {name: _own(plane) for name, plane in planes.items()}

    def _transformed(self, raw: RawSample, drawn: int | None) -> dict[str, npt.NDArray[Any]]:
        """Image and label planes after one joint draw of the transforms."""
        arrays = {
            "image": raw.image,
            "masks": raw.masks,
            "reference": raw.reference,
            "expert": raw.expert,
            "deviation": raw.deviation,
        }
        planes: dict[str, npt.NDArray[Any]]
        planes = {name: array for name, array in arrays.items() if array is not None}
        _check_sizes(raw.id, planes)
        if not self._compose.transforms:  # to pass through none takes as long as a small decode
            return planes
        self._start_random_stream(drawn)
        inside = np.full(raw.image.shape[:2], _INSIDE, np.uint8)
        if self.frames:
            planes["places"] = np.indices(raw.image.shape[:2], np.float32)
        planes = self._compose(**planes, inside=inside)
        outside = planes.pop("inside") != _INSIDE
        if self.frames:
            planes["places"] = np.where(outside, np.float32(np.nan), planes["places"])
        if outside.any():
            for name in planes.keys() - {"image", "places"}:
                unknown = 0 if name == "deviation" else IGNORE_INDEX  # no rule acted out there
                planes[name] = np.where(outside, np.uint8(unknown), planes[name])
        return planes

    def _start_random_stream(self, drawn: int | None) -> None:
        """Let all transforms draw from one stream.

        Passing a seed to the composition would start every transform with the same number: two
        flips would then always happen together.
        """
        seed = drawn if self.seed is None else self.seed
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def _image(self, image: npt.NDArray[Any]) -> dict[str, Tensor]:
        """Pixels ``[H, W, ch]`` as a tensor ``[ch, H, W]``: bytes, or normalised numbers."""
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype == np.uint8:
            # Channels stay last in memory: to part them is work for the device too.
            pixels = _own(image).permute(2, 0, 1)
            return {"image": pixels, "normalisation": self._normalisation}
        white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
        # Channels first, then in place: several times as fast as the other way round.
        planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
        planes /= np.float32(white)
        planes -= self.mean[:, None, None]
        planes /= self.std[:, None, None]
        return {"image": torch.from_numpy(planes)}


class Frame(NamedTuple):
    """Where the original image lies in a transformed one, and how large the original was."""

    top: int
    left: int
    height: int
    width: int
    original_height: int
    original_width: int

    @classmethod
    def of(cls, places: npt.NDArray[Any] | None, size: Sequence[int]) -> Frame | None:
        """The frame from the row and column of the original at each transformed pixel.

        Args:
            places: ``[2, h, w]``, NaN outside of the original; None where nothing was transformed.
            size: Height and width of the original.

        Returns:
            None if the original is turned, mirrored or cropped, or a border repeats parts of it.

        Example:
            >>> rows, columns = np.indices((2, 3), np.float32).repeat(2, axis=1)  # twice as high
            >>> Frame.of(np.stack([rows, columns]), (2, 3))
            Frame(top=0, left=0, height=4, width=3, original_height=2, original_width=3)
            >>> Frame.of(np.stack([rows[::-1], columns]), (2, 3)) is None
            True
        """
        height, width = size
        if places is None:
            return cls(0, 0, height, width, height, width)
        known = np.isfinite(places[0])
        if not known.any():
            return None
        rows, columns = (np.flatnonzero(known.any(axis)) for axis in (1, 0))
        top, left = rows[0], columns[0]
        box = places[:, top : rows[-1] + 1, left : columns[-1] + 1]
        h, w = box.shape[1:]
        # Where the middle of each pixel would come from if the box held the whole original.
        row, column = (np.arange(n) + 0.5 for n in (h, w))
        expected = row * height / h - 0.5, column * width / w - 0.5
        most = max(1.0, height / h, width / w)  # nearest interpolation is off by one pixel at most
        apart = max(np.abs(box[0] - expected[0][:, None]).max(), np.abs(box[1] - expected[1]).max())
        if not apart <= most:  # also true for NaN
            return None
        return cls(int(top), int(left), h, w, height, width)


def _check_sizes(id: str, planes: Mapping[str, npt.NDArray[Any]]) -> None:
    size = planes["image"].shape[:2]
    for name, plane in planes.items():
        if name != "image" and plane.shape[-2:] != size:
            raise ValueError(
                f"Sample {id}: its {name} have the shape {plane.shape}, expected the height and "
                f"width of the image, {size}. Hand out planes of one size."
            )


def to_picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Undo the normalisation, for showing.

    Args:
        image: Normalised image ``[ch, H, W]``, or its pixels in uint8, as a data set may hold them;
            of other than 3 channels the first is shown.
        mean: Mean of each channel of the image in [0, 1].
        std: Standard deviation of each channel.

    Returns:
        uint8 RGB picture ``[H, W, 3]``.

    Example:
        >>> to_picture(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3), [0.5], [0.5])[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    if image.dtype == torch.uint8 and len(image) == 3:
        return np.asarray(image.cpu().permute(1, 2, 0).numpy())  # large images: no copies
    shown = image.detach().cpu().float().numpy().transpose(1, 2, 0)
    if image.dtype == torch.uint8:
        shown = shown / 255
    else:
        shown = shown * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    if shown.shape[2] != 3:
        shown = shown[..., :1].repeat(3, axis=2)
    picture: npt.NDArray[np.uint8] = (shown.clip(0, 1) * 255).round().astype(np.uint8)
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


class StapleReference:
    """Samples whose reference is the STAPLE estimate of their masks, made once for all of them.

    Args:
        source: The samples.
        classes: Number of classes.
    """

    def __init__(self, source: Source, classes: int) -> None:
        rank_zero_info(f"STAPLE estimates the reference of {len(source.ids)} images.")
        self.source = source
        self._estimates = {
            name: _staple_png(source[i], classes) for i, name in enumerate(source.ids)
        }

    @property
    def ids(self) -> Sequence[str]:
        """Those of the samples."""
        return self.source.ids

    def __getitem__(self, index: int) -> RawSample:
        """The sample with the estimate as its reference."""
        raw = self.source[index]
        estimate = cv2.imdecode(self._estimates[raw.id], cv2.IMREAD_UNCHANGED)
        return replace(raw, reference=np.asarray(estimate, np.uint8))


def _staple_png(sample: RawSample, classes: int) -> npt.NDArray[np.uint8]:
    """The estimate as the bytes of a PNG, since label maps shrink to a hundredth."""
    labels = staple(torch.from_numpy(sample.masks).long().unsqueeze(0), classes)
    done, png = cv2.imencode(".png", labels[0].numpy().astype(np.uint8))
    assert done
    return np.asarray(png, np.uint8)


def _own(plane: npt.NDArray[np.uint8]) -> Tensor:
    """Bytes as a tensor; a copy where the source keeps them, which it says by the array's flags."""
    return torch.from_numpy(np.require(plane, np.uint8, ["C", "W"]))


def collate_samples(
    samples: Sequence[Mapping[str, Any]], annotators: Sequence[str] | None = None
) -> dict[str, Any]:
    """Stack samples to a batch; smaller pictures are padded at the bottom and the right.

    Args:
        samples: Samples as `MultiAnnotatorDataset` yields them.
        annotators: Names of the annotators, passed on with the batch.

    Returns:
        The batch: padding is the mean colour in ``image``, 0 in ``deviation`` and `IGNORE_INDEX` in
        labels; ``size`` holds each picture's height and width before padding.

    Example:
        >>> samples = [{"image": torch.ones(3, n, n), "masks": torch.ones(2, n, n).long(),
        ...     "present": torch.ones(2).bool(), "id": str(n)} for n in (2, 3)]
        >>> batch = collate_samples(samples, ["Ann", "Bob"])
        >>> batch["masks"][0, 0].tolist(), batch["size"].tolist(), batch["id"]
        ([[1, 1, 255], [1, 1, 255], [255, 255, 255]], [[2, 2], [3, 3]], ['2', '3'])
    """
    if len({sample["image"].dtype for sample in samples}) > 1:
        samples = [unpacked(dict(sample)) for sample in samples]  # bytes beside numbers
    sizes = torch.tensor([sample["image"].shape[-2:] for sample in samples])
    batch: dict[str, Any] = {"size": sizes, "id": [sample["id"] for sample in samples]}
    batch |= {key: [s[key] for s in samples] for key in ("frame", "facts") if key in samples[0]}
    batch["present"] = torch.stack([sample["present"] for sample in samples])
    if "normalisation" in samples[0]:
        batch["normalisation"] = samples[0]["normalisation"]
    for key in [key for key in samples[0] if key not in batch]:
        fill = _padding(key, samples[0])
        planes = [_pad_to(sample[key], sizes.amax(0).tolist(), fill) for sample in samples]
        batch[key] = _stacked(planes)
    if annotators is not None:
        batch["annotators"] = tuple(annotators)
    return batch


def _padding(key: str, sample: Mapping[str, Any]) -> Tensor:
    """What fills the place around a smaller picture."""
    if key != "image":
        return torch.tensor(0 if key == "deviation" else IGNORE_INDEX)
    if "normalisation" not in sample:
        return torch.tensor(0.0)
    mean: Tensor = sample["normalisation"][0]
    return (255 * mean).round()[:, None, None]  # 0 once it is normalised, but for the rounding


def _stacked(planes: Sequence[Tensor]) -> Tensor:
    """The planes as one tensor, channels last in memory where they are so in the planes."""
    last = planes[0].ndim == 3 and not planes[0].is_contiguous()
    rows = [plane.permute(1, 2, 0) for plane in planes] if last else list(planes)
    # Memory from NumPy: it asks for large pages, which saves most of the time.
    space = np.empty((len(rows), *rows[0].shape), rows[0].numpy().dtype)
    stack: Tensor = torch.stack(rows, out=torch.from_numpy(space))
    return stack.permute(0, 3, 1, 2) if last else stack


def _pad_to(plane: Tensor, size: Sequence[int], fill: Tensor) -> Tensor:
    height, width = plane.shape[-2:]
    if [height, width] == list(size):
        return plane  # padding by nothing would copy it
    padded = plane.new_empty(*plane.shape[:-2], *size)
    padded[:] = fill
    padded[..., :height, :width] = plane
    return padded
