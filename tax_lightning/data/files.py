"""Pictures on disk: found and decoded, whole files or parts of larger ones."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

IMAGE_SUFFIXES = frozenset(
    {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
)
MAX_GREY = 65535
_BROKEN_FILE = (  # all that the libraries are known to say of a file with wrong bytes in it
    OSError,
    SyntaxError,  # Pillow's way to say that a PNG chunk is broken
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
_PLAIN_PIXELS = 2**26  # of larger files Pillow says whether they can be trusted
_PLAIN_SIDE = 10**6  # the most that OpenCV's decoder takes
# Pixels, and chunks that say nothing about how these are meant.
_PLAIN_CHUNKS = (b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME")
# Pillow's mode -> the values of a TIFF file whose windows are read without decoding the whole
_PLAIN_TIFF = {"L": "uint8", "RGB": "uint8", "I;16": "uint16", "I;16B": "uint16", "F": "float32"}


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
    process and another run. One that can tell a picture's height and width without decoding it
    does so in a method ``size(file)`` of images and masks; without it, they are decoded for that.
    One that makes an image of several files names them in a method ``files(image)``.
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
        return read_image(_whole(file), self.channels, self.max_value, window)

    def mask(self, file: File, window: Window | None = None) -> npt.NDArray[Any]:
        """See `read_mask`."""
        return read_mask(_whole(file), self.set_pixel, window)

    def size(self, file: File) -> tuple[int, int]:
        """See `read_size`."""
        return read_size(_whole(file))


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


def find_images(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted by name.

    Hidden files and files of other kinds are passed over. Names are compared in Unicode's composed
    form, since some file systems store accents decomposed.

    Args:
        folder: The folder; sub-folders are not searched.
        suffixes: Endings of image files, in small letters.

    Raises:
        ValueError: If two files differ only in their extension.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        name = unicodedata.normalize("NFC", path.stem)
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} have the same name {name!r}. Expected one file a name: "
                "delete or rename one of them."
            )
        found[name] = path
    return found


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as its file declares them, without decoding it.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no picture, or declares to be huge.
    """
    with _opened(path) as image:
        return image.height, image.width


def read_image(
    path: Path,
    channels: int = 3,
    max_value: float | None = None,
    window: Window | None = None,
) -> npt.NDArray[Any]:
    """Decode an image file.

    Args:
        path: 8-bit grey, RGB, RGBA (the transparency is dropped), palette or 1-bit file, or a
            16-bit or floating-point grey file.
        channels: 1 (grey) or 3 (RGB).
        max_value: Grey value that means white; None: 255, 65535 or 1.0 by the kind of the file.
        window: Only these pixels.

    Returns:
        ``[H, W, channels]``: uint8 in 0..255 for 8-bit files without ``max_value``, else float32
        in [0, 1].

    Raises:
        ValueError: If the file cannot be decoded, or is brighter than white.
    """
    if max_value is None and (plain := _plain_png(path, channels, window)) is not None:
        return plain.reshape(*plain.shape[:2], channels)
    image = _decoded(path, window)
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        pixels = np.asarray(image)[..., None].repeat(channels, axis=2)
    else:
        pixels = _converted(image, "RGB" if channels == 3 else "L", path)
        pixels = pixels.reshape(*pixels.shape[:2], channels)
    if not deep and max_value is None:
        return pixels
    return scale_to_unit(pixels, max_value or (1.0 if image.mode == "F" else MAX_GREY), path)


def _converted(image: Image.Image, mode: str, path: Path) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(image if image.mode == mode else image.convert(mode))
    except ValueError as error:
        raise ValueError(
            f"Image {path} holds colours of the kind {image.mode}, expected grey or RGB. Save it "
            "as RGB."
        ) from error


def scale_to_unit(pixels: npt.NDArray[Any], white: float, path: Path) -> npt.NDArray[np.float32]:
    """Grey values as shares of white, in [0, 1].

    Args:
        pixels: Grey values.
        white: The value that means white.
        path: The file that they are from, for the message.

    Raises:
        ValueError: If a value lies outside of 0..white.
    """
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        cure = "rescale the image"
        if low >= 0 and np.isfinite(high):
            cure = f"Set max_value to the grey value that means white, or {cure}"
        elif not np.isfinite(pixels).all():
            cure = "Replace the values that are no numbers (NaN) or infinite, e.g. by 0"
        raise ValueError(
            f"Image {path} holds values from {low} to {high}, expected 0 to {white:g}. "
            f"{cure[0].upper()}{cure[1:]}."
        )
    return (pixels / np.float32(white)).astype(np.float32)


def read_mask(path: Path, white: int = 255, window: Window | None = None) -> npt.NDArray[Any]:
    """Decode a mask file to its grey values.

    Args:
        path: 1-bit, 8-bit, palette (whose indices are taken), or 16-bit grey file; RGB too if its
            three channels are equal, and a channel of transparency if all is opaque.
        white: Value of the set pixels of a 1-bit file.
        window: Only these pixels.

    Returns:
        Integer grey values ``[H, W]``.

    Raises:
        ValueError: If the file cannot be decoded, or is a colour picture, transparent, or a JPEG
            file, whose values are not those that were saved.
    """
    if (plain := _plain_png(path, 1, window)) is not None:
        return plain
    image = _decoded(path, window, lossless=True)
    pixels = np.asarray(image)
    if image.mode == "1":
        return pixels.astype(np.uint8) * np.uint8(white)
    if image.mode in ("L", "P") or image.mode.startswith("I"):
        return pixels
    if image.mode in ("LA", "PA", "RGBA"):
        if (pixels[..., -1] < 255).any():
            raise ValueError(
                f"Mask {path} is transparent in places, where it may hold any value. Flatten it "
                "onto its background, or export it as an 8-bit grey or palette PNG."
            )
        pixels = pixels[..., :-1]
    if image.mode in ("LA", "PA", "RGB", "RGBA") and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    raise ValueError(
        f"Mask {path} is a colour or floating-point picture (mode {image.mode}), expected one grey "
        "value a pixel. Export it as an 8-bit grey or palette PNG with one value a class."
    )


def _plain_png(path: Path, channels: int, window: Window | None) -> npt.NDArray[np.uint8] | None:
    """Pixels of a plain 8-bit PNG file, decoded faster than by Pillow; None for any other file.

    Plain are files whose pixels need no interpretation: no palette, transparency or turning. What
    OpenCV cannot decode is left to Pillow, which says why.
    """
    if path.suffix.lower() != ".png" or not (path.is_file() and os.access(path, os.R_OK)):
        return None
    with open(path, "rb", buffering=0) as file:
        head = file.read(26)
        depth_and_kind = b"\x08\0" if channels == 1 else b"\x08\2"  # 8 bits; grey, RGB
        if head[:8] != b"\x89PNG\r\n\x1a\n" or head[24:] != depth_and_kind:
            return None
        file.seek(0)
        data = file.readall()
    width, height = struct.unpack(">II", head[16:24])
    if width * height > _PLAIN_PIXELS or max(width, height) > _PLAIN_SIDE:
        return None
    if not _plain_chunks(data):
        return None
    top, left, rows, columns = window or (0, 0, height, width)
    if top + rows > height or left + columns > width:
        return None
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    encoded = np.frombuffer(data, np.uint8)
    pixels = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        _decoded(path, None)  # says why, but fills up rows that are missing
        raise ValueError(f"Cannot read {path}: it lacks pixels. Replace it or remove it.")
    return cut(np.asarray(pixels, np.uint8), window)


def _plain_chunks(data: bytes) -> bool:
    """Whether nothing beside the pixels of a PNG file says how they are meant."""
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        if kind not in _PLAIN_CHUNKS:
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return kind == b"IEND" and at == len(data)


def _decoded(path: Path, window: Window | None, lossless: bool = False) -> Image.Image:
    """The decoded file or a window of it, or an error that names it."""
    with _opened(path) as file:
        file.verify()  # the checksums of a PNG file, which Pillow passes over when it decodes
    with _opened(path) as file:
        refusal = _refusal(file, lossless)
        image = file if refusal else _window_of(file, path, window)
    if refusal:
        raise ValueError(f"{path} {refusal}")
    return image


def _refusal(file: Image.Image, lossless: bool) -> str:
    """Why the pixels that Pillow finds need not be those that are meant, or nothing."""
    pages = getattr(file, "n_frames", 1)
    if pages > 1 and file.format != "MPO":  # MPO: a phone's JPEG with a preview behind it
        return f"holds {pages} pages, expected a single picture. Save every page as a file."
    if lossless and file.format in ("JPEG", "MPO"):
        return (
            "is a JPEG file, which holds stray values in place of those of a mask, expected a "
            "lossless file. Export it anew as PNG; to convert the JPEG would keep them."
        )
    tiles = getattr(file, "tile", ())  # what is stored, in a form that Pillow goes on to reduce
    if file.mode[0] not in "IF" and any(";16" in str(tile.args) for tile in tiles):
        return (
            f"holds 16 bits a channel of {file.mode}, of which 8 would be lost. Save it with 8 "
            "bits, or as 16-bit grey."
        )
    turn = file.getexif().get(ExifTags.Base.Orientation, 1)
    if turn not in (0, 1):
        return (
            f"is to be turned or mirrored for viewing (EXIF orientation {turn}), which not all "
            "programs do, so that image and masks may not fit. Turn the pixels themselves, e.g. "
            "with 'magick mogrify -auto-orient', and compare them with the masks."
        )
    return ""


def _window_of(file: Image.Image, path: Path, window: Window | None) -> Image.Image:
    """The pixels in a window, with no more decoded than the format asks for."""
    if window is None:
        file.load()
        return file
    top, left, height, width = window
    if top + height > file.height or left + width > file.width:
        raise ValueError(f"{window} reaches beyond its {file.width} x {file.height} pixels")
    pixels = _tiff_window(path, file.mode, window) if file.format == "TIFF" else None
    if pixels is not None:
        return Image.fromarray(pixels)
    return file.crop((left, top, left + width, top + height))


def _tiff_window(path: Path, mode: str, window: Window) -> npt.NDArray[Any] | None:
    """The pixels in a window of a plain TIFF file; None where Pillow must decode the whole."""
    import tifffile  # takes a while, and most data sets hold no such file

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if not (isinstance(page, tifffile.TiffPage) and _is_plain(page, mode)):
            return None
        if not page.is_final:
            return _from_segments(tiff, page, window)
        stored = np.dtype(page.dtype).newbyteorder(tiff.byteorder)
        pixels = np.memmap(path, stored, "r", page.dataoffsets[0], page.shape)
        return cut(pixels, window).astype(page.dtype)


def _is_plain(page: TiffPage, mode: str) -> bool:
    """Whether the values of the file are the pixels that Pillow makes of it."""
    return (
        mode in _PLAIN_TIFF
        and page.dtype == _PLAIN_TIFF[mode]
        and len(page.shape) == (3 if mode == "RGB" else 2)
        and page.photometric == (2 if mode == "RGB" else 1)
        and page.planarconfig == 1
        and page.compression in (1, 8, 32946)  # none and Deflate, which need no further library
        and page.predictor in (1, 2)
        and page.fillorder == 1
        and 0 not in page.databytecounts
    )


def _from_segments(tiff: TiffFile, page: TiffPage, window: Window) -> npt.NDArray[Any]:
    """The pixels in a window, decoded from the strips or tiles that it touches."""
    top, left, height, width = window
    rows, columns = page.chunks[:2]
    across = -(-page.imagewidth // columns)
    first, last = left // columns, (left + width - 1) // columns
    bands = []
    for row in range(top // rows, (top + height - 1) // rows + 1):
        band = [_segment(tiff, page, row * across + column) for column in range(first, last + 1)]
        bands.append(np.concatenate(band, axis=1))
    inner = Window(top % rows, left % columns, height, width)
    return cut(np.concatenate(bands), inner).reshape(height, width, *page.shape[2:])


def _segment(tiff: TiffFile, page: TiffPage, index: int) -> npt.NDArray[Any]:
    """One decoded strip or tile, ``[rows, columns, samples]``."""
    tiff.filehandle.seek(page.dataoffsets[index])
    encoded = tiff.filehandle.read(page.databytecounts[index])
    pixels, *_ = page.decode(encoded, index)
    band: npt.NDArray[Any] = np.asarray(pixels)[0]  # of depth 1
    return band


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file with its header read; errors of reading it, now or later, name it."""
    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} is declared too large: {error}. Cut it into smaller files or, if you trust "
            "it and have the memory, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except _BROKEN_FILE as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole image file ("
            f"{', '.join(sorted(IMAGE_SUFFIXES))}): replace it or remove it."
        ) from error


def size_text(shape: Sequence[int]) -> str:
    """Width x height, the order in which image viewers show it."""
    return f"{shape[1]} x {shape[0]}"
