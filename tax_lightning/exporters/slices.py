"""Slices of volumes: how a picture lies in its volume, as columns of ``samples.csv`` and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.exporters.layers import Segmented
from tax_lightning.files import file_of, write_bytes

Affine = npt.NDArray[np.float64]
"""``[4, 4]``: from the index of a voxel to its place in mm, towards right, front and head."""


@dataclass(frozen=True)
class Slice:
    """One slice of a volume.

    With an affine its picture stands upright, as radiologists view it: the front or the head is at
    the top, the patient's right or front at the left. Without one it lies as it is stored.

    Args:
        volume: Name of the volume.
        number: Of the slice, from 0.
        axis: The axis that is sliced, 0 to 2.
        shape: Lengths of the volume's three axes.
        affine: Place of the voxels, ``[4, 4]``; None where it is unknown.

    Example:
        >>> part = Slice("scan", 1, 2, (2, 3, 4), np.eye(4))
        >>> voxels = np.arange(24).reshape(2, 3, 4)
        >>> part.cut(voxels).tolist()  # rows run from front to back, columns from right to left
        [[21, 9], [17, 5], [13, 1]]
        >>> Slice.of(part.facts(), "scan_slice1", (3, 2)).facts() == part.facts()
        True
    """

    volume: str
    number: int
    axis: int
    shape: tuple[int, int, int]
    affine: Affine | None = None

    @property
    def layout(self) -> Affine:
        """The affine; without one, voxels of 1 mm whose slices lie upright as they are stored."""
        if self.affine is not None:
            return self.affine
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        made = np.zeros((4, 4))
        made[2, self.axis], made[1, rows], made[0, columns], made[3, 3] = 1, -1, -1, 1
        return made

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance of rows and of columns, in mm."""
        rows, columns, _, _ = self._view()
        sides = np.linalg.norm(self.layout[:3, :3], axis=0)
        return float(sides[rows]), float(sides[columns])

    def facts(self) -> dict[str, str]:
        """All of this as columns of ``samples.csv``."""
        known = {
            "volume": self.volume,
            "slice": str(self.number),
            "axis": str(self.axis),
            "shape": " ".join(map(str, self.shape)),
        }
        if self.affine is not None:
            known["spacing"] = " ".join(f"{side:.6g}" for side in self.spacing)
            known["affine"] = " ".join(repr(float(number)) for number in self.affine.flat)
        return known

    @classmethod
    def of(cls, facts: Mapping[str, str], name: str, size: tuple[int, int]) -> Slice:
        """The slice that a row of ``samples.csv`` tells of; without ``slice``, a volume of one."""
        if "slice" not in facts:
            return cls(name, 0, 0, (1, *size))
        try:
            first, second, third = (int(word) for word in facts["shape"].split())
            affine = None
            if facts.get("affine"):
                affine = np.array([float(word) for word in facts["affine"].split()]).reshape(4, 4)
            number, axis = int(facts["slice"]), int(facts["axis"])
            part = cls(facts["volume"], number, axis, (first, second, third), affine)
            inside = 0 <= number < part.shape[axis] and axis >= 0
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"samples.csv says of {name!r} {dict(facts)}, expected volume, slice, axis, shape "
                "(three numbers) and perhaps affine (16 numbers). Import the volumes anew."
            ) from error
        rows, columns, _, _ = part._view()
        expected = part.shape[rows], part.shape[columns]
        if not inside or expected != size:
            raise ValueError(
                f"{name!r} is a picture of {size}, but slice {number} of {part.volume!r}, a volume "
                f"of {part.shape} along axis {axis}, is one of {expected}. Expected whole slices: "
                "put tiles together first."
            )
        return part

    def cut(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The picture ``[H, W, ...]`` of this slice of ``[first, second, third, ...]``."""
        rows, columns, turn_rows, turn_columns = self._view()
        plane: npt.NDArray[Any] = np.take(voxels, self.number, axis=self.axis)
        plane = plane if rows < columns else plane.swapaxes(0, 1)
        return plane[:: -1 if turn_rows else 1, :: -1 if turn_columns else 1]

    def put(self, picture: npt.NDArray[Any], voxels: npt.NDArray[Any]) -> None:
        """Write the picture of this slice into a volume; undoes :meth:`cut`."""
        rows, columns, turn_rows, turn_columns = self._view()
        plane = picture[:: -1 if turn_rows else 1, :: -1 if turn_columns else 1]
        index: list[int | slice] = [slice(None)] * 3
        index[self.axis] = self.number
        voxels[tuple(index)] = plane if rows < columns else plane.swapaxes(0, 1)

    def _view(self) -> tuple[int, int, bool, bool]:
        """Axis of the rows, axis of the columns, and whether these are turned round."""
        along = self.layout[:3, :3]
        across = int(np.abs(along[:, self.axis]).argmax())  # 0 right, 1 front, 2 head
        down, right = (1 if across == 2 else 2), (1 if across == 0 else 0)
        one, other = (axis for axis in range(3) if axis != self.axis)
        steep = np.abs(along[down]) / np.linalg.norm(along, axis=0).clip(1e-12)
        rows, columns = (one, other) if steep[one] > steep[other] else (other, one)
        return rows, columns, bool(along[down, rows] > 0), bool(along[right, columns] > 0)


class Whole(NamedTuple):
    """A layer of a volume, put together from its slices."""

    volume: str
    layer: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.uint8]
    """Class ids ``[first, second, third]``; 0 in slices that did not come, and where 255 stood."""
    affine: Affine


def assembled(images: Iterable[Segmented]) -> Iterator[Whole]:
    """Put slices together; one volume at a time is in memory.

    Args:
        images: The slices of a volume one after the other; other pictures are volumes of a slice.
    """
    done: set[str] = set()
    layers: dict[str, Whole] = {}
    first: Slice | None = None
    numbers: set[int] = set()
    for image in images:
        part = Slice.of(image.facts, image.name, image.size)
        if first is None or part.volume != first.volume:
            yield from layers.values()
            first, layers, numbers = part, {}, set()
            if part.volume in done:
                raise ValueError(
                    f"{image.name!r}: slices of the volume {part.volume!r} came before others. "
                    "Expected them one after the other: sort the images by name."
                )
            done.add(part.volume)
        same = (part.shape, part.axis) == (first.shape, first.axis)
        if not same or not np.array_equal(part.layout, first.layout) or part.number in numbers:
            raise ValueError(
                f"{image.name!r} is slice {part.number} of {part.volume!r}, which came already or "
                "lies in another way. Expected each slice once, with one affine and one shape."
            )
        numbers.add(part.number)
        for layer in image.layers:
            if layer.name not in layers:
                empty = np.zeros(part.shape, np.uint8)
                whole = Whole(part.volume, layer.name, layer.classes, empty, part.layout)
                layers[layer.name] = whole
            drawn = np.where(layer.labels == IGNORE_INDEX, 0, layer.labels).astype(np.uint8)
            part.put(drawn, layers[layer.name].labels)
    yield from layers.values()


def write_layers(
    images: Iterable[Segmented], folder: Path, suffix: str, encode: Callable[[Whole], bytes]
) -> list[Path]:
    """Write a file for each layer of all volumes, ``VOLUME/LAYER`` and a suffix."""
    files = []
    for whole in assembled(images):
        files.append(folder / file_of(whole.volume) / f"{file_of(whole.layer)}{suffix}")
        write_bytes(files[-1], encode(whole))
    return files
