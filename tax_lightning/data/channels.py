"""Images of any number of channels: arrays of NumPy, and TIFF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tax_lightning.data.files import File, Part, Window, cut, read_mask, scale_to_unit


@dataclass(frozen=True)
class ManyChannels:
    """Decodes files whose channels are more, or others, than grey or RGB.

    A file holds an array ``[H, W, channels]`` or ``[channels, H, W]``: ``.npy`` as `numpy.save`
    writes it, ``.tif`` or ``.tiff``.

    Args:
        channels: Channels of every image.
        max_value: Value that means white. None: the largest of the file's integers, 1.0 in
            floating-point files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/scan.npy", np.full((2, 6, 8), 65535, np.uint16))
        ...     pixels = ManyChannels(2).image(Path(folder, "scan.npy"))
        >>> pixels.shape, float(pixels.max())
        ((6, 8, 2), 1.0)
    """

    suffixes: ClassVar[frozenset[str]] = frozenset({".npy", ".tif", ".tiff"})

    channels: int
    max_value: float | None = None

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """Pixels: uint8 in 0..255 or float32 in [0, 1], ``[H, W, channels]``.

        Raises:
            ValueError: If the file cannot be read, or has other channels.
        """
        path = file.path if isinstance(file, Part) else file
        pixels = cut(self._channels_last(_array(path), path), window)
        if pixels.dtype == np.uint8 and self.max_value is None:
            return pixels
        whole = np.issubdtype(pixels.dtype, np.integer)
        white = self.max_value or (np.iinfo(pixels.dtype).max if whole else 1.0)
        return scale_to_unit(pixels, float(white), path)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """See `read_mask`."""
        return read_mask(file.path if isinstance(file, Part) else file, window=window)

    def _channels_last(self, array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
        if array.ndim == 3 and array.dtype.kind in "uif":
            if array.shape[2] == self.channels:
                return array
            if array.shape[0] == self.channels:
                return array.transpose(1, 2, 0)
        raise ValueError(
            f"Image {path} holds {array.dtype} {list(array.shape)}, expected numbers [H, W, "
            f"{self.channels}] or [{self.channels}, H, W]: an image has {self.channels} channels."
        )


def _array(path: Path) -> npt.NDArray[Any]:
    import tifffile  # takes a while

    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.asarray(tifffile.imread(path))
    except Exception as error:  # the libraries say that a file is broken in many ways
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a .npy or TIFF file that holds one array of "
            "numbers."
        ) from error
