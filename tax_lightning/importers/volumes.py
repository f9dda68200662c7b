"""Volumes: masks laid on their image by the affines of both, and slices of them as cases."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import Description
from tax_lightning.data.labels import IGNORE_NAME, MaskValues, labels_from_values
from tax_lightning.data.pixels import MAX_GREY
from tax_lightning.exporters.slices import Affine, Slice
from tax_lightning.importers.cases import Case, Found, Labels, Pixels

PERCENTILES = (0.5, 99.5)
"""Of a volume's voxels: these become black and white where no intensities are given."""
_WHOLE = 1e-3  # how far a stored mask value may lie from a whole number
_OFF = 0.1  # voxels by which two grids may differ, since headers hold rounded numbers

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Volume:
    """A volume on disk, of which only the header is known.

    Args:
        path: The file, or the folder of a series.
        shape: Lengths of its three axes.
        affine: Place of its voxels in mm towards right, front and head, ``[4, 4]``; None where
            the file does not say.
        read: Gives the voxels, ``[first, second, third]`` or with channels behind.
        channels: Number of modalities.
    """

    path: Path
    shape: Shape
    affine: Affine | None
    read: Callable[[], Pixels]
    channels: int = 1


@dataclass(frozen=True)
class Scan:
    """The volumes of one case.

    Args:
        name: Of the case.
        images: One or several files, whose channels are put behind each other.
        masks: Annotator -> mask.
        group: Patient; "" where it is the case itself.
        split: As in :class:`~tax_lightning.importers.cases.Case`.
        whole: Whether masks cover all of the image; False: those of a tool that cuts them short.
    """

    name: str
    images: tuple[Volume, ...]
    masks: Mapping[str, Volume]
    group: str = ""
    split: str = ""
    whole: bool = True


def sliced(
    description: Description,
    scans: Iterable[Scan],
    values: MaskValues | None = None,
    left_out: Sequence[str] = (),
    axis: int = 2,
    intensity_range: tuple[float, float] | None = None,
    empty_slices: bool = False,
    use_affines: bool = True,
) -> Found:
    """The slices of volumes as cases, which are to be read in this order.

    Headers are read, and the masks of volumes with several slices. Each volume and channel is
    scaled to 16 bits by the percentiles 0.5 and 99.5 of its voxels; what is no number becomes
    black. With an ``intensity_range``, values stay as they are stored.

    Args:
        description: Of the data set, but for ``intensity_range``.
        scans: The volumes.
        values: Value in the masks -> name of its class, or ``"ignore"``. None: they are class ids.
        left_out: As in :class:`~tax_lightning.importers.cases.Found`.
        axis: The stored axis to slice along, 0 to 2; 2 gives axial slices of most files. A volume
            of one slice is sliced along its short axis.
        intensity_range: Values that mean black and white, such as -1000 and 400 for the lung. None:
            percentiles of each volume.
        empty_slices: Keep slices on which nobody drew anything.
        use_affines: Turn masks by their affine, and refuse those that do not fit. False: lay them
            on images as they are stored.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"axis={axis}: expected 0, 1 or 2, the axis to slice along.")
    description = replace(description, intensity_range=intensity_range)
    kept = _Kept()
    cases: list[Case] = []
    scan = None
    for scan in scans:
        image = scan.images[0]
        parts = [
            (volume, laid_on(volume, image, scan.whole, use_affines)) for volume in scan.images
        ]
        drawn = {
            by: partial(
                _labels,
                mask,
                description.classes,
                values,
                laid_on(mask, image, scan.whole, use_affines),
            )
            for by, mask in scan.masks.items()
        }
        read = {"": partial(_grey, parts, intensity_range), **drawn}
        cases += _cases(scan, read, axis, empty_slices, kept)
    if not cases:
        path = scan.images[0].path if scan else None
        raise ValueError(
            f"All masks are empty, e.g. those beside {path}, expected something drawn. Set "
            "empty_slices to true to keep empty slices."
        )
    return Found(description, cases, left_out=left_out)


class _Kept:
    """What was decoded of the last volume: its slices are asked for one after the other."""

    def __init__(self) -> None:
        self._scan = ""
        self._kept: dict[str, Pixels] = {}

    def slice(self, part: Slice, by: str, read: Callable[[], Pixels]) -> Pixels:
        if part.volume != self._scan:
            self._scan, self._kept = part.volume, {}
        if by not in self._kept:
            self._kept[by] = read()
        return np.ascontiguousarray(part.cut(self._kept[by]))


def _cases(
    scan: Scan,
    read: Mapping[str, Callable[[], Pixels]],
    axis: int,
    empty_slices: bool,
    kept: _Kept,
) -> Iterator[Case]:
    """The slices of one volume, of which "" reads the image and each annotator a mask."""
    shape, affine = scan.images[0].shape, scan.images[0].affine
    if shape[axis] > 1 and 1 in shape:
        axis = shape.index(1)
    count = shape[axis]
    used = np.ones(count, np.bool_)
    if count > 1 and not empty_slices:
        others = tuple(other for other in range(3) if other != axis)
        used = np.any([read[by]().any(axis=others) for by in scan.masks], axis=0)
    for number in np.flatnonzero(used).tolist():
        part = Slice(scan.name, number, axis, shape, affine)
        name = f"{scan.name}_slice{number:0{max(3, len(str(count - 1)))}d}"
        yield Case(
            name if count > 1 else scan.name,
            partial(kept.slice, part, "", read[""]),
            {by: partial(kept.slice, part, by, read[by]) for by in scan.masks},
            group=scan.group or scan.name,
            split=scan.split,
            facts=part.facts() if count > 1 or affine is not None else {},
        )


def _labels(
    volume: Volume,
    classes: Sequence[str],
    values: MaskValues | None,
    lie: Callable[[Pixels], Pixels],
) -> Labels:
    """The class ids of a mask, laid on its image."""
    found = whole_numbers(volume.read(), volume.path)
    cure = "name all classes, or export the mask anew"
    ids = labels_from_values(found.ravel(), classes, values, volume.path, cure=cure)
    labels: Labels = lie(ids.reshape(found.shape))
    return labels


def names_and_values(
    scans: Iterable[Scan], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], MaskValues]:
    """Names of the classes, and value in the masks -> name.

    Args:
        scans: Their masks are read where no classes are given.
        classes: Names of the values 0, 1, 2 and so on; 255 then means not labelled. None: a class
            for each value that any mask holds.
    """
    if classes is not None:
        return tuple(classes), {**dict(enumerate(classes)), IGNORE_INDEX: IGNORE_NAME}
    found = {0}
    for volume in (mask for scan in scans for mask in scan.masks.values()):
        found |= set(np.unique(whole_numbers(volume.read(), volume.path)).tolist())
        if min(found) < 0 or max(found) > MAX_GREY or (IGNORE_INDEX in found and len(found) > 2):
            raise ValueError(
                f"Mask {volume.path} or one before it holds values outside 0 to 65535, or 255 "
                "beside other classes. Name the classes of 0, 1, 2 and so on with the option "
                "classes; 255 then means not labelled."
            )
    values: MaskValues
    values = {value: f"class {value}" if value else "background" for value in sorted(found)}
    return tuple(values.values()), values


def channels_of(scans: Sequence[Scan]) -> int:
    """Number of channels of the image files, which have the same number."""
    channels = {scan.images[0].channels: scan.images[0].path for scan in scans}
    if len(channels) > 1:
        (one, path), (other, second) = list(channels.items())[:2]
        raise ValueError(
            f"{path} has {one} modalities, but {second} has {other}. Expected the same number: "
            "move one of them away."
        )
    return next(iter(channels))


def whole_numbers(values: Pixels, path: Path) -> Pixels:
    """Values as integers, of 8 bits where these hold them.

    Example:
        >>> whole_numbers(np.array([0.0, 4.0]), Path("a.nii"))
        array([0, 4], dtype=uint8)
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"Mask {path} holds {values.dtype} values, expected whole numbers.")
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity minus itself
            odd = ~(np.abs(values - np.rint(values)) <= _WHOLE)  # also true for NaN
        if odd.any():
            raise ValueError(
                f"Mask {path} holds {values[odd][0]:g}, expected whole numbers, one a class. "
                "Export it without interpolation."
            )
        values = np.rint(values).clip(-(2**31), 2**31)
    bytes_hold = values.size and values.min() >= 0 and values.max() <= 255
    return values.astype(np.uint8 if bytes_hold else np.int64)


def _grey(
    parts: Sequence[tuple[Volume, Callable[[Pixels], Pixels]]],
    limits: tuple[float, float] | None,
) -> Pixels:
    """Voxels of all channels, in 16 bits or as they are stored."""
    done = []
    for volume, lie in parts:
        voxels = volume.read()
        for channel in [voxels] if voxels.ndim == 3 else np.moveaxis(voxels, 3, 0):
            done.append(lie(scaled(channel) if limits is None else as_stored(channel, limits[0])))
    return done[0] if len(done) == 1 else np.stack(done, axis=3)


def as_stored(values: Pixels, black: float) -> Pixels:
    """Values in a type that image files take; what is no number is black."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" or values.dtype.itemsize > 4:
        single = values.astype(np.float32)
        return np.where(np.isnan(single), np.float32(black), single)
    return values


def scaled(values: Pixels) -> Pixels:
    """16 bits from the percentiles 0.5 to 99.5, or from the extremes where nearly all are equal.

    Example:
        >>> scaled(np.array([-1.0, 0.0, 1.0, np.nan])).tolist()
        [0, 32768, 65535, 0]
    """
    numbers = values[np.isfinite(values)].astype(np.float32)
    low, high = np.percentile(numbers, PERCENTILES) if numbers.size else (0.0, 0.0)
    if low == high and numbers.size:
        low, high = numbers.min(), numbers.max()
    share = (values.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    share = np.where(np.isnan(share), 0, share.clip(0, 1))
    grey: Pixels = np.rint(share * MAX_GREY).astype(np.uint16)
    return grey


# Where volumes lie


def laid_on(
    volume: Volume, image: Volume, whole: bool = True, use_affines: bool = True
) -> Callable[[Pixels], Pixels]:
    """How the voxels of a volume are turned to lie on those of an image.

    Args:
        volume: A mask, or a further channel.
        image: The image, or its first channel.
        whole: Refuse a volume that covers a part of the image; False: fill up with zeros.
        use_affines: Compare where the two lie. Where one of them does not say, or with False, they
            must be of one shape and stay as they are stored.

    Example:
        >>> read = lambda: np.zeros((2, 1, 1))
        >>> image = Volume(Path("image.nii"), (2, 1, 1), np.diag([1.0, 1, 1, 1]), read)
        >>> mirrored = np.diag([-1.0, 1, 1, 1])
        >>> mirrored[0, 3] = 1  # its first voxel is the last one of the image
        >>> mask = Volume(Path("mask.nii"), (2, 1, 1), mirrored, read)
        >>> laid_on(mask, image)(np.array([5, 6]).reshape(2, 1, 1)).ravel().tolist()
        [6, 5]
    """
    if volume.affine is None or image.affine is None or not use_affines:
        if [n for n in volume.shape if n > 1] != [n for n in image.shape if n > 1]:
            raise _misfit(volume, image, whole)
        return lambda voxels: voxels.reshape(image.shape)
    to_image = np.linalg.inv(image.affine) @ volume.affine
    long = [axis for axis in range(3) if volume.shape[axis] > 1]
    onto = {axis: int(np.abs(to_image[:3, axis]).argmax()) for axis in long}
    free = [axis for axis in range(3) if axis not in onto.values()]
    if len(set(onto.values())) < len(long):
        raise _misfit(volume, image, whole)
    onto |= {axis: free.pop(0) for axis in range(3) if axis not in long}
    back = [next(own for own, of in onto.items() if of == axis) for axis in range(3)]
    steps = np.eye(3)[[onto[axis] for axis in long]].T * np.sign(
        [to_image[onto[axis], axis] for axis in long]
    )
    lengths = np.array([volume.shape[axis] - 1 for axis in long])
    first = np.rint(to_image[:3, 3])
    off = np.abs(to_image[:3, long] - steps) @ lengths + np.abs(to_image[:3, 3] - first)
    last = first + steps @ lengths
    low, high = np.minimum(first, last).astype(int), np.maximum(first, last).astype(int)
    inside = (low >= 0).all() and (high < image.shape).all()
    if off.max() > _OFF or not inside or (whole and (high - low + 1 != image.shape).any()):
        raise _misfit(volume, image, whole)
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    turn = tuple(slice(None, None, -1 if a > b else 1) for a, b in zip(first, last, strict=True))

    def lie(voxels: Pixels) -> Pixels:
        placed: Pixels = np.zeros(image.shape, voxels.dtype)
        placed[box] = voxels.transpose(back)[turn]
        return placed

    return lie


def _misfit(volume: Volume, image: Volume, whole: bool) -> ValueError:
    other = " If only its header is wrong, set use_affines to false." if whole else ""
    return ValueError(
        f"{volume.path} has {_lies(volume)}, but {image.path} has {_lies(image)}. Expected the "
        "same grid of voxels, perhaps turned or mirrored: resample it, without interpolation if "
        f"it is a mask, or remove it.{other}"
    )


def _lies(volume: Volume) -> str:
    text = f"{' x '.join(map(str, volume.shape))} voxels"
    if volume.affine is None:
        return text
    sides = np.linalg.norm(volume.affine[:3, :3], axis=0)
    along = (volume.affine[:3, :3] / sides.clip(1e-12)).T.round(2) + 0.0
    return (
        f"{text} of {' x '.join(f'{side:.4g}' for side in sides)} mm from "
        f"{volume.affine[:3, 3].round(2).tolist()} along {along.tolist()}"
    )
