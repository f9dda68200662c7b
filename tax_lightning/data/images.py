"""Images to explain: found on disk, checked, and prepared as a model's training images were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.batch import unpacked
from tax_lightning.data.dataset import MultiAnnotatorDataset, to_picture
from tax_lightning.data.pixels import IMAGE_SUFFIXES, Pictures, find_images
from tax_lightning.data.preparation import Preparation
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.explanation import Explanation
from tax_lightning.palette import Picture
from tax_lightning.windows import Places, Window, cover, spread, stride_of

if TYPE_CHECKING:
    from tax_lightning.data.datamodule import MultiAnnotatorDataModule

DETAILS = 6
"""Parts of a large image that are explained in full, at most."""

Labels = NDArray[np.integer] | None
Explained = tuple[Explanation, Picture, *tuple[Labels, ...]]  # masks and reference may be missing


class ExplainedImages:
    """Images with what a model says of them, explained one after the other as they are asked for.

    Args:
        model: what explains, such as a `TAXLightningModule`, on its own device.
        images: of any sizes, as dictionaries with ``"image"`` ``[ch, H, W]`` and ``"id"``, such as
            the data set of a data module.
        to_picture: from an image ``[ch, H, W]`` as it is in ``images`` to a picture ``[H, W, 3]``
            uint8.
        progress: called with the number of images explained, and of all images.
        drawn_by: names of those who drew the masks of the images, where there are any. If they are
            the model's annotators, masks and reference are handed on.
        tile: side in pixels of windows in which images are explained; ``None``: as a whole. Larger
            images than ``max_side`` are then explained at so many evenly spread rows and columns,
            and details follow: the parts of a tile's size that are most disputed, in full.
        max_side: of an image in tiles, in pixels.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - any module that explains
        images: Any,  # noqa: ANN401 - any data set
        to_picture: Callable[[Tensor], Picture],
        progress: Callable[[int, int], None] = lambda done, total: None,
        drawn_by: Sequence[str] = (),
        tile: int | None = None,
        max_side: int = 1024,
    ) -> None:
        self.model, self.images, self.to_picture = model, images, to_picture
        self.progress, self.drawn_by = progress, tuple(drawn_by)
        self.tile, self.max_side = tile, max_side

    def __len__(self) -> int:
        """How many."""
        return len(self.images)

    def __iter__(self) -> Iterator[Explained]:
        """The explanation of each image on the CPU, the image as a picture, and its labels."""
        for number in range(len(self)):
            yield from self._explained(self.images[number])
            self.progress(number + 1, len(self))

    def _explained(self, sample: Mapping[str, Any]) -> Iterator[Explained]:
        """One image, and details of it if it is large."""
        images, name = unpacked(dict(sample))["image"][None], str(sample["id"])
        picture, size = self.to_picture(sample["image"]), images.shape[-2:]
        if self.tile is None:
            said = self.model.explain(images.to(self.model.device), [name]).to("cpu")
            yield self._with_labels(said, picture, sample)
        elif max(size) <= self.max_side:
            said = self.model.explain(images, [name], tile=self.tile)
            yield self._with_labels(said, picture, sample)
        else:
            scale = self.max_side / max(size)
            at = [spread(side, max(1, round(scale * side))) for side in size]
            said = self.model.explain(images, [name], tile=self.tile, at=at)
            yield self._with_labels(said, picture, sample, *at)
            for detail in most_disputed(said, size[0], size[1], stride_of(self.tile)):
                yield self._detail(images, picture, sample, detail)

    def _detail(
        self, images: Tensor, picture: Picture, sample: Mapping[str, Any], detail: Window
    ) -> Explained:
        """A part of an image, explained with what lies around it."""
        assert self.tile is not None  # asked by `_explained`
        margin = (self.tile - stride_of(self.tile)) // 2
        top, left = max(0, detail.top - margin), max(0, detail.left - margin)
        bottom, right = detail.top + detail.height + margin, detail.left + detail.width + margin
        around = images[..., top:bottom, left:right].to(self.model.device)
        rows, columns = (
            range(start, start + long)
            for start, long in ((detail.top, detail.height), (detail.left, detail.width))
        )
        name = f"{sample['id']}, from row {detail.top} and column {detail.left}"
        said = self.model.explain(around, [name]).to("cpu")
        said = said.part(detail.top - top, detail.left - left, detail.height, detail.width)
        said = replace(said, detail_of=str(sample["id"]))
        cut = picture[detail.top :, detail.left :][: detail.height, : detail.width]
        return self._with_labels(said, cut, sample, rows, columns)

    def _with_labels(
        self, said: Explanation, picture: Picture, sample: Mapping[str, Any], *at: Places
    ) -> Explained:
        """The explanation, the picture, and what was drawn there, if that is known."""
        if said.annotators != self.drawn_by or not bool(sample["present"].any()):
            return said, picture

        def there(labels: Tensor | None) -> Labels:
            if labels is None or not at:
                return None if labels is None else labels.numpy()
            place = (..., np.asarray(at[0])[:, None], np.asarray(at[1]))
            return np.asarray(labels.numpy()[place])

        return said, picture, there(sample["masks"]), there(sample.get("reference"))


def most_disputed(said: Explanation, height: int, width: int, side: int) -> list[Window]:
    """Parts of an image on which annotators are expected to differ most, the most disputed first.

    Args:
        said: Of the image, at some of its pixels, evenly spread.
        height: Of the image in full.
        width: Of the image in full.
        side: Of a part, in pixels.

    Returns:
        Up to `DETAILS` of the windows that cover the image, none of which overlap.
    """
    rows, columns = said.dispute.shape[-2:]
    dispute = said.dispute[0].masked_fill(said.undisputed[0], 0)

    def disputed(part: Window) -> float:
        top, left = part.top * rows // height, part.left * columns // width
        bottom, right = top + part.height * rows // height, left + part.width * columns // width
        return float(dispute[top : bottom + 1, left : right + 1].mean())

    chosen: list[Window] = []
    for part in sorted(cover(height, width, side), key=disputed, reverse=True):
        apart = all(
            abs(part.top - p.top) >= side or abs(part.left - p.left) >= side for p in chosen
        )
        if apart and disputed(part) and len(chosen) < DETAILS:
            chosen.append(part)
    return chosen


def images_on_disk(
    paths: Iterable[str | Path],
    pictures: Pictures,
    annotators: Sequence[str],
    classes: Sequence[str],
) -> SampleTable:
    """A table of images without masks, all of which can be read.

    Args:
        paths: image files, and folders of them; sub-folders are not searched.
        pictures: how files become pixels.
        annotators: names of a model's annotators.
        classes: names of its classes.

    Returns:
        The samples, in the order of the paths; named for their files.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder holds no images.
        ValueError: if two images have the same name, or one cannot be read.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        for name, file in _images_at(path).items():
            if name in found:
                raise ValueError(
                    f"--images: {file} and {found[name]} have the same name {name!r}, by which "
                    "the report tells them apart. Rename one, or explain them apart."
                )
            found[name] = file
    table = SampleTable(
        tuple(Sample(name, file, {}) for name, file in found.items()),
        tuple(annotators),
        tuple(classes),
        pictures=pictures,
    )
    table.check()
    return table


def _images_at(path: Path) -> dict[str, Path]:
    """The images of a folder, or the one file, by name."""
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise FileNotFoundError(
            f"--images: {path} does not exist, expected an image file or a folder of them."
        )
    images = find_images(path)
    if not images:
        raise FileNotFoundError(
            f"--images: the folder {path} holds no images, expected files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return images


class Prepared(NamedTuple):
    """Images as a model gets them, and what a report on them needs beside.

    Attributes:
        images: the samples, in order.
        to_picture: from an image ``[ch, H, W]`` to a picture ``[H, W, 3]`` uint8.
        read: gives the picture of a training image by its id; None where there are none.
        notes: what the reader of the report must know.
    """

    images: Any
    to_picture: Callable[[Tensor], Picture]
    read: Callable[[str], Picture] | None
    notes: tuple[str, ...] = ()


def images_for(
    model: Any,  # noqa: ANN401 - any module that notes how its training images were prepared
    paths: Sequence[str | Path] | None,
    data: MultiAnnotatorDataModule | None,
) -> Prepared:
    """Images prepared as the model's training images were.

    Args:
        model: which is to explain them; has ``preparation``, ``annotators``, ``classes`` and
            ``hparams`` as a `TAXLightningModule` has.
        paths: image files, and folders of them; None: the images that ``data`` would predict on.
        data: the data module of the training; without it, how to prepare images is taken from what
            the checkpoint notes.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder holds no images.
        ValueError: if an image cannot be read, the data prepare images in another way than those
            of the training, or the checkpoint does not say enough to do without the data.
    """
    channels = int(model.hparams["in_channels"])
    if data is not None:
        _check_same_preparation(model.preparation, data.preparation, channels)
        images: Any = data.predict_dataset()
        if paths is not None:
            table = images_on_disk(paths, data.pictures, model.annotators, model.classes)
            images = MultiAnnotatorDataset(table, data.eval_transforms, data.mean, data.std, seed=0)
        return Prepared(
            images,
            data.to_picture,
            lambda sample_id: data.to_picture(data.read(sample_id)["image"]),
        )
    if paths is None:
        raise ValueError(
            "--images is missing, expected images or folders of them; or give --config, whose data "
            "name images to predict on."
        )
    preparation = model.preparation or Preparation.usual(channels)
    table = images_on_disk(paths, _pictures_of(preparation), model.annotators, model.classes)
    return Prepared(
        MultiAnnotatorDataset(table, (), preparation.mean, preparation.std),
        partial(to_picture, mean=preparation.mean, std=preparation.std),
        None,
        () if model.preparation else (_ASSUMED.format(preparation=preparation),),
    )


_ASSUMED = (
    "The checkpoint does not say how its training images were normalised. Taken is what data "
    "modules do by default: mean {preparation.mean}, standard deviation {preparation.std}. If the "
    "training did otherwise, everything here is wrong: give its configuration with --config."
)


def _pictures_of(preparation: Preparation) -> Pictures:
    """How files become pixels, if a checkpoint notes all that was done to its images."""
    if not preparation.known_in_full:
        done = ", ".join(preparation.transforms)
        raise ValueError(
            f"--config is missing: the model's training images were prepared in a way that a "
            f"checkpoint does not hold in full ({done}). Give the configuration of the training, "
            "of which only the part `data` is read."
        )
    return Pictures(preparation.channels, preparation.intensity_range)


def _check_same_preparation(noted: Preparation | None, given: Preparation, channels: int) -> None:
    """Refuse data that prepare images in another way than those of the training."""
    noted = noted or replace(given, channels=channels)
    if difference := given.difference(noted):
        raise ValueError(
            f"--config: its data prepare images with {difference} of the model's training. Give "
            "the configuration of the training: a model that gets its images in another way is "
            "wrong without a word."
        )
