"""Pictures on disk: found and decoded, whole files or parts of larger ones."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
)
MAX_GREY = 65535
_BROKEN_FILE = (
    OSError,
    SyntaxError,  # Pillow's way to say that a PNG chunk is broken
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Part:
    """One picture of a file that holds several, or that needs another file to be read.

    Args:
        path: The file.
        key: Which picture: the number of a slice, the name of an entry; what it means is the
            decoder's business.

    Example:
        >>> print(Part(Path("scan.nii.gz"), 12))
        scan.nii.gz [12]
    """

    path: Path
    key: int | str

    def __str__(self) -> str:
        return f"{self.path} [{self.key}]"


File: TypeAlias = Path | Part


class Window(NamedTuple):
    """A rectangle of a picture, in pixels, wholly inside of it."""

    top: int
    left: int
    height: int
    width: int


class Decoder(Protocol):
    """How the files of a data set become pixels.

    Decoders are frozen dataclasses of plain values: equal ones read equal pixels, also in another
    process and another run.
    """

    @property
    def channels(self) -> int:
        """Channels of every image."""

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """Pixels of an image: uint8 in 0..255 or float32 in [0, 1], ``[H, W, channels]``.

        Args:
            file: The file, or its part.
            window: Only these pixels; what lies outside need not be read.

        Raises:
            ValueError: If it cannot be decoded; the message names the file.
        """

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """Integer grey values of a mask, ``[H, W]``; see `image`."""


@dataclass(frozen=True)
class Pictures:
    """Decodes files that Pillow reads: the decoder of every table that names no other.

    Args:
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        max_value: Grey value of the image files that means white. None: 255 in 8-bit files, 65535
            in 16-bit files and 1.0 in floating-point files.
        set_pixel: Value of the set pixels of a 1-bit mask, which has no grey values.

    Raises:
        ValueError: If an argument is out of range.
    """

    channels: int = 3
    max_value: float | None = None
    set_pixel: int = 255

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: expected 1 (grey) or 3 (RGB).")
        if self.max_value is not None and not self.max_value > 0:
            raise ValueError(f"max_value={self.max_value}: expected a number above 0, e.g. 4095.")

    def image(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """See `read_image`."""
        return cut(read_image(_whole(file), self.channels, self.max_value), window)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """See `read_mask`."""
        return cut(read_mask(_whole(file), self.set_pixel), window)


def _whole(file: File) -> Path:
    if isinstance(file, Part):
        raise ValueError(f"{file}: expected a file with one picture, not a part of a file.")
    return file


def cut(pixels: npt.NDArray[Any], window: Window | None) -> npt.NDArray[Any]:
    """The pixels in a window, all of them without one.

    Args:
        pixels: ``[H, W, ...]``.
        window: Rectangle inside of it.
    """
    if window is None:
        return pixels
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


def find_images(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted by name.

    Hidden files and files of other kinds are passed over. Names are compared in Unicode's composed
    form, since some file systems store accents decomposed.

    Args:
        folder: The folder; sub-folders are not searched.

    Raises:
        ValueError: If two files differ only in their extension.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = unicodedata.normalize("NFC", path.stem)
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} have the same name {name!r}. Expected one file a name: "
                "delete or rename one of them."
            )
        found[name] = path
    return found


def read_image(path: Path, channels: int = 3, max_value: float | None = None) -> npt.NDArray[Any]:
    """Decode an image file.

    Args:
        path: 8-bit grey, RGB, RGBA (the transparency is dropped), palette or 1-bit file, or a
            16-bit or floating-point grey file.
        channels: 1 (grey) or 3 (RGB).
        max_value: Grey value that means white; None: 255, 65535 or 1.0 by the kind of the file.

    Returns:
        ``[H, W, channels]``: uint8 in 0..255 for 8-bit files without ``max_value``, else float32
        in [0, 1].

    Raises:
        ValueError: If the file cannot be decoded, or is brighter than white.
    """
    image = _open(path)
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        pixels = np.asarray(image)[..., None].repeat(channels, axis=2)
    else:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
    if not deep and max_value is None:
        return pixels
    return _scale_to_unit(pixels, max_value or (1.0 if image.mode == "F" else MAX_GREY), path)


def _scale_to_unit(pixels: npt.NDArray[Any], white: float, path: Path) -> npt.NDArray[np.float32]:
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        raise ValueError(
            f"Image {path} holds values from {low} to {high}, expected 0 to {white:g}. Set "
            "max_value to the grey value that means white, or rescale the image."
        )
    return (pixels / np.float32(white)).astype(np.float32)


def read_mask(path: Path, white: int = 255) -> npt.NDArray[Any]:
    """Decode a mask file to its grey values.

    Args:
        path: 1-bit, 8-bit, palette (whose indices are taken), or 16-bit grey file; RGB(A) too if
            its three colour channels are equal.
        white: Value of the set pixels of a 1-bit file.

    Returns:
        Integer grey values ``[H, W]``.

    Raises:
        ValueError: If the file cannot be decoded, or is a colour picture.
    """
    image = _open(path)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(white)
    if image.mode in ("L", "P") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0]
    if image.mode in ("RGB", "RGBA"):
        colours = np.asarray(image)[..., :3]
        if (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
    raise ValueError(
        f"Mask {path} is a colour or floating-point picture (mode {image.mode}), expected one grey "
        "value a pixel. Export it as an 8-bit grey or palette PNG with one value a class."
    )


def _open(path: Path) -> Image.Image:
    """The decoded file, or an error that names it."""
    try:
        with Image.open(path) as image:
            image.load()
            pages = getattr(image, "n_frames", 1)
    except _BROKEN_FILE as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole image file ("
            f"{', '.join(sorted(IMAGE_SUFFIXES))}): replace it or remove it."
        ) from error
    if pages > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a preview behind it
        raise ValueError(
            f"{path} holds {pages} pages, expected a single picture. Save every page as a file."
        )
    return image


def size_text(shape: Sequence[int]) -> str:
    """Width x height, the order in which image viewers show it."""
    return f"{shape[1]} x {shape[0]}"
