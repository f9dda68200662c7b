"""An image whose parts are predicted one after the other: it grows on disk, from top to bottom."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tax_lightning.blending import BAND_VALUES, Parts, blend
from tax_lightning.explanation import AVERAGED, Prediction
from tax_lightning.files import appearing
from tax_lightning.palette import Colour
from tax_lightning.windows import Window

_PIECE = 256  # pixels a side of the pieces that a TIFF file is made of


class Whole(NamedTuple):
    """An image that comes in parts."""

    id: str
    height: int
    width: int
    facts: tuple[tuple[str, str], ...] = ()  # what else is known of it


class Growing:
    """What is predicted of an image, of which the rows above some row are finished.

    Args:
        whole: The image.
        folder: Where the finished rows are kept.
        parts: Its parts, from one process or several.
        made: Gives arrays ``[..., h, W]`` by name of the prediction of a band of rows.

    Example:
        >>> import tempfile, tifffile
        >>> half = torch.ones(1, 2, 4, 4) / 2
        >>> part = Prediction(("a@0,0",), ("Ana",), ("no", "yes"), half, half.unsqueeze(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = lambda band: {"yes": (255 * band.probs[0, 1]).byte().numpy()}
        ...     whole, parts = Whole("a", 4, 6), Parts(Path(folder, "parts"))
        ...     growing = Growing(whole, Path(folder, "rows"), [parts], made)
        ...     for left in (0, 2):
        ...         growing.add(part, whole, 0, left, ["probs", "annotator_probs"])
        ...     growing.grow(4, part.part(0, 0, 1, 1), ["probs", "annotator_probs"])
        ...     growing.write_tiff(Path(folder, "yes.tif"), "yes", None)
        ...     tifffile.imread(Path(folder, "yes.tif")).max()
        np.uint8(127)
    """

    def __init__(
        self,
        whole: Whole,
        folder: Path,
        parts: Sequence[Parts],
        made: Callable[[Prediction], Mapping[str, NDArray[Any]]],
    ) -> None:
        self.whole, self.folder, self.parts, self.made = whole, folder, [*parts], made
        self.finished = self.unknown = 0  # rows, and pixels without a result
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the arrays

    def add(
        self, part: Prediction, whole: Whole, top: int, left: int, names: Collection[str]
    ) -> None:
        """Keep these maps of a part at its place, until the rows that it shows are finished.

        Raises:
            ValueError: If the part does not lie in the whole, parts tell of wholes that differ, or
                the part lies above finished rows.
        """
        height, width = part.probs.shape[-2:]
        known = self.whole
        same = (known.height, known.width) == (whole.height, whole.width)
        if not same or top + height > whole.height or left + width > whole.width:
            raise ValueError(
                f"{part.ids[0]!r} has {height} x {width} pixels at row {top} and column {left} of "
                f"{whole.id!r}, which has {whole.height} x {whole.width} by this part and "
                f"{known.height} x {known.width} by others. Expected parts that lie in one image: "
                "correct samples.csv, or import the tiles anew."
            )
        if top < self.finished:
            raise ValueError(
                f"{part.ids[0]!r} lies above rows of {whole.id!r} that are written already. "
                "Expected the parts of an image from top to bottom: do not shuffle the loader of "
                "predict."
            )
        maps = part.tensors()
        window = Window(top, left, height, width)
        self.parts[0].add(window, {name: maps[name] for name in names})

    def grow(self, bottom: int, template: Prediction, names: Collection[str]) -> None:
        """Finish the rows above this one, of which all parts have come.

        Args:
            bottom: The row.
            template: The prediction of one pixel, for all that is the same at all pixels.
            names: The maps that parts have. Others are arbitrary in the prediction of a band.
        """
        width, maps = self.whole.width, template.tensors()
        numbers = sum(maps[name].numel() for name in names)
        most = max(1, BAND_VALUES // (numbers * width))
        while self.finished < bottom:
            rows = range(self.finished, min(bottom, self.finished + most))
            showing = (parts.showing(rows.start, rows.stop) for parts in self.parts)
            unknown = {
                name: (values.new_full((), torch.nan) if name in AVERAGED else values).expand(
                    *values.shape[:-2], len(rows), width
                )
                for name, values in maps.items()
            }
            known = blend(itertools.chain(*showing), rows, range(width), AVERAGED)
            band = dataclasses.replace(template, **_long(unknown | known))
            self.unknown += int((~band.probs.isfinite()).any(dim=1).sum())
            self._write(rows, band)
            self.finished = rows.stop
        for parts in self.parts:
            parts.forget(bottom)

    def write_tiff(
        self, path: Path, name: str, plane: int | None, colours: Mapping[int, Colour] | None = None
    ) -> None:
        """Write an array, or one plane of it, as a tiled and compressed TIFF file.

        Args:
            path: The file.
            name: Of the array ``[H, W]`` or ``[planes, H, W]``; deeper ones are flattened.
            plane: The plane to be written; None: all of them, each as a page.
            colours: Of the values, for programs that show the file.
        """
        import tifffile  # takes a while

        *_, height, width = shape = self.shapes[name]
        count = int(np.prod(shape[:-2]))
        planes = range(count) if plane is None else [plane]

        def pieces() -> Iterator[NDArray[Any]]:
            for page, top in itertools.product(planes, range(0, height, _PIECE)):
                # Opened anew each time: memory of a file counts as used until it is closed.
                stored = np.load(self._file(name), "r").reshape(count, height, width)
                rows = np.array(stored[page, top : top + _PIECE])
                right, below = -width % _PIECE, _PIECE - len(rows)
                padded = np.pad(rows, ((0, below), (0, right)))
                yield from np.split(padded, padded.shape[1] // _PIECE, axis=1)

        kind = np.load(self._file(name), "r").dtype
        palette = np.zeros((3, 256), np.uint16)
        for value, colour in (colours or {}).items():
            palette[:, value] = np.array(colour) * 257
        with appearing(path) as part:
            tifffile.imwrite(
                part,
                pieces(),
                shape=(len(planes), height, width) if plane is None else (height, width),
                dtype=kind,
                tile=(_PIECE, _PIECE),
                compression="zlib",
                bigtiff=len(planes) * height * width * kind.itemsize > 2**31,
                photometric="palette" if colours else "minisblack",
                colormap=palette if colours else None,
                metadata=None,
            )

    def _write(self, rows: range, band: Prediction) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, values in self.made(band).items():
            shape = (*values.shape[:-2], self.whole.height, self.whole.width)
            if name not in self.shapes:
                self.shapes[name] = shape
                np.lib.format.open_memmap(self._file(name), "w+", values.dtype, shape)
            np.load(self._file(name), "r+")[..., rows.start : rows.stop, :] = values

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _long(maps: Mapping[str, Tensor]) -> dict[str, Any]:
    """The maps with indices as an explanation has them."""
    return {name: v if v.is_floating_point() else v.long() for name, v in maps.items()}
