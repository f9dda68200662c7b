"""Image and mask files: found, measured, and decoded to the values that were saved."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from tax_lightning.data.description import check_range
from tax_lightning.data.metadata import composed
from tax_lightning.windows import Window

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
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,  # also NotImplementedError, of a kind of file that is not read
    struct.error,
    zlib.error,
)
_PLAIN_PIXELS = 2**26  # of larger files Pillow says whether they can be trusted
_PLAIN_SIDE = 10**6  # the most that OpenCV's decoder takes
# Pixels, and chunks that say nothing about how these are meant.
_PLAIN_CHUNKS = (b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_DEEP_PNG = (b"\x10\2", b"\x10\6")  # 16 bits; RGB, RGBA: Pillow would keep 8 of them
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _PHOTOMETRIC = 0, 1, 2, 3, 262  # of a TIFF file

_COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow that become RGB

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Pictures:
    """How image files become the pixels that a model sees, and mask files their values.

    Args:
        channels: Channels of an image. Grey files become RGB for 3, and colour files grey for 1.
        intensity_range: The values of an image that mean black and white; what lies beyond is cut.
            None: 0 to 255 or 65535 by the kind of the file, and 0 to 1 for floating-point numbers.
        white: Value of the set pixels of a 1-bit mask, which has no grey values.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "scan.png")
        ...     _ = cv2.imwrite(str(path), np.full((6, 8), 4095, np.uint16))
        ...     pixels = Pictures(1, (0, 4095)).image(path)
        >>> pixels.shape, float(pixels.max())
        ((6, 8, 1), 1.0)
    """

    channels: int = 3
    intensity_range: tuple[float, float] | None = None
    white: int = 255

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels={self.channels}: expected 1 (grey), 3 (RGB) or any number.")
        if self.intensity_range is not None:
            check_range(self.intensity_range)

    def image(self, path: Path, window: Window | None = None) -> Pixels:
        """Pixels of an image: uint8 in 0..255 or float32 in [0, 1], ``[H, W, channels]``.

        Raises:
            ValueError: If the file cannot be decoded, has other channels, or holds values for
                which ``intensity_range`` is needed.
        """
        if window is None:
            return self._scaled(self._values(path), path)
        part = _read_tiff_window(path, window)
        if part is None:
            changed = path.stat().st_mtime_ns if path.exists() else 0
            part = cut(_last_values(self, path, changed), window).copy()
        return self._scaled(with_channels(part, self.channels, path), path)

    def _values(self, path: Path) -> Pixels:
        """The values of an image file, ``[H, W, channels]``."""
        if self.intensity_range is None and self.channels in (1, 3):
            plain = _plain_png(path, self.channels)
            if plain is not None:
                return plain.reshape(*plain.shape[:2], self.channels)
        return with_channels(read_whole(path), self.channels, path)

    def mask(self, path: Path, window: Window | None = None) -> Pixels:
        """Values of a mask, whole numbers ``[H, W]``, or colours ``[H, W, 3]``; `read_mask`."""
        return cut(read_mask(path, self.white), window)

    def _scaled(self, pixels: Pixels, path: Path) -> Pixels:
        if self.intensity_range is not None:
            low, high = (np.float32(limit) for limit in self.intensity_range)
            if not np.isfinite(pixels).all():
                raise ValueError(
                    f"Image {path} holds values that are no numbers (NaN) or infinite. Replace "
                    "them, e.g. by the value of black."
                )
            shares: npt.NDArray[np.float32] = ((pixels - low) / (high - low)).clip(0, 1)
            return shares
        if pixels.dtype == np.uint8:
            return pixels
        if pixels.dtype == np.uint16:
            return (pixels / np.float32(MAX_GREY)).astype(np.float32)
        least, most = pixels.min(), pixels.max()
        if pixels.dtype.kind != "f" or not (least >= 0 and most <= 1):  # also true for NaN
            raise ValueError(
                f"Image {path} holds {pixels.dtype} values from {least} to {most}, of which "
                "nothing says what is black and white. Set intensity_range, e.g. "
                f"[{np.nan_to_num(least):g}, {np.nan_to_num(most):g}]."
            )
        return pixels.astype(np.float32)


@lru_cache(maxsize=1)
def _last_values(pictures: Pictures, path: Path, changed: int) -> Pixels:
    """A decoded file, kept for its next window; ``changed`` is the time of its last change."""
    return pictures._values(path)


def cut(pixels: Pixels, window: Window | None) -> Pixels:
    """The pixels ``[H, W, ...]`` in a window, all of them without one."""
    if window is None:
        return pixels
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


def with_channels(pixels: Pixels, channels: int, path: Path) -> Pixels:
    """Pixels ``[H, W]`` or ``[H, W, found]`` as ``[H, W, channels]``.

    Raises:
        ValueError: If the channels found are neither these, nor grey or RGB to be turned into them.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    found = pixels.shape[2]
    if found in (2, 4) and channels in (1, 3):
        pixels, found = pixels[..., :-1], found - 1  # without the transparency
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return pixels.repeat(3, axis=2)
    if found == 3 and channels == 1:
        grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # as ITU-R BT.601 does
        whole = pixels.dtype.kind in "ui"
        return (grey.round() if whole else grey).astype(pixels.dtype)[..., None]
    raise ValueError(
        f"Image {path} has {found} channel(s), expected {channels}. Set channels to {found}, or "
        "save the image with other channels."
    )


def find_images(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted by name.

    Hidden files and files of other kinds are passed over. Names are compared in Unicode's composed
    form, since some file systems store accents decomposed.

    Raises:
        ValueError: If two files differ only in their extension.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = composed(path.stem)
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} have the same name {name!r}. Expected one file a name: "
                "delete or rename one of them."
            )
        found[name] = path
    return found


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as its file declares them, without decoding it.

    Raises:
        ValueError: If it is no picture, or declares to be huge.
    """
    if _is_tiff(path):
        with _tiff(path) as file:
            return int(file.pages.first.imagelength), int(file.pages.first.imagewidth)
    with _opened(path) as image:
        return image.height, image.width


def read_whole(path: Path) -> Pixels:
    """The values of an image file as they were saved: ``[H, W]`` or ``[H, W, channels]``.

    Palettes become colours. A TIFF file in which white is the lowest value is turned round.

    Raises:
        ValueError: If the file cannot be decoded, holds several pictures, or is to be turned for
            viewing.
    """
    if _is_tiff(path):
        return _read_tiff(path)
    if (deep := _deep_png(path)) is not None:
        return deep
    image = _decoded(path)
    if image.mode in ("1", "P", "PA", *_COLOURS):
        image = _converted(image, "L" if image.mode == "1" else "RGB", path)
    return _upright(np.asarray(image))


def read_mask(path: Path, white: int = 255) -> Pixels:
    """The values of a mask file.

    Args:
        path: 1-bit, 8-bit, palette, or 16-bit grey file, or RGB; transparency must be opaque.
        white: Value of the set pixels of a 1-bit file.

    Returns:
        Whole numbers ``[H, W]``; of a palette its numbers, or its greys where all of its colours
        are grey. A file of colours gives uint8 ``[H, W, 3]``, unless the colours are all grey.

    Raises:
        ValueError: If the file cannot be decoded, is transparent, holds other than whole numbers,
            or is a JPEG file, whose values are not those that were saved.
    """
    if (plain := _plain_png(path, 1)) is not None:
        return plain
    if _is_tiff(path):
        pixels = _read_tiff(path, as_saved=True)
        return (
            pixels.astype(np.uint8) * np.uint8(white)
            if pixels.dtype == bool
            else _values(pixels, path)
        )
    if (deep := _deep_png(path)) is not None:
        return _values(deep, path)
    image = _decoded(path, lossless=True)
    pixels = np.asarray(image)
    if image.mode == "1":
        return pixels.astype(np.uint8) * np.uint8(white)
    if image.mode == "P":
        colours = np.asarray(image.getpalette() or [], np.uint8).reshape(-1, 3)
        used = np.unique(pixels)
        if len(colours) > used[-1] and (colours[used] == colours[used][:, :1]).all():
            greys: Pixels = colours[pixels, 0]
            return greys
        return pixels
    if image.mode in ("LA", "PA", "RGBA"):
        if (pixels[..., -1] < 255).any():
            raise ValueError(
                f"Mask {path} is transparent in places, where it may hold any value. Flatten it "
                "onto its background, or export it as an 8-bit grey or palette PNG."
            )
        pixels = pixels[..., :-1]
    return _values(pixels, path)


def read_colours(path: Path) -> npt.NDArray[np.uint8]:
    """The colours of a mask file, ``[H, W, 3]``.

    Raises:
        ValueError: As `read_mask`; also if the file has more than 8 bits.
    """
    pixels = with_channels(read_whole(path), 3, path)
    if pixels.dtype != np.uint8 or _is_lossy(path):
        raise ValueError(f"Mask {path} has no colours of 8 bits that were saved without loss.")
    return pixels


def palette_of(path: Path) -> dict[int, tuple[int, int, int]]:
    """The colours of the palette's numbers that a mask uses; nothing where it has no palette."""
    if path.suffix.lower() not in (".png", ".gif", ".bmp"):
        return {}
    with _opened(path) as image:
        if image.mode != "P":
            return {}
        image.load()
        used = np.unique(np.asarray(image)).tolist()
        colours = np.asarray(image.getpalette() or [], np.uint8).reshape(-1, 3).tolist()
    return {number: tuple(colours[number]) for number in used if number < len(colours)}


def size_text(shape: Sequence[int]) -> str:
    """Width x height, the order in which image viewers show it."""
    return f"{shape[1]} x {shape[0]}"


def _values(pixels: Pixels, path: Path) -> Pixels:
    """Whole numbers ``[H, W]``, or colours ``[H, W, 3]``."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    colours = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if not colours and (pixels.ndim != 2 or pixels.dtype.kind not in "ui"):
        whole = pixels.ndim == 2 and pixels.dtype.kind == "f" and (pixels == pixels.round()).all()
        if not whole:
            raise ValueError(
                f"Mask {path} holds {pixels.dtype} {list(pixels.shape)}, expected one whole number "
                "a pixel, or colours of 8 bits. Export it as an 8-bit grey or palette PNG."
            )
        return pixels.astype(np.int64)
    return pixels


def _is_lossy(path: Path) -> bool:
    with _opened(path) as image:
        return image.format in ("JPEG", "MPO")


def _plain_png(path: Path, channels: int) -> npt.NDArray[np.uint8] | None:
    """Pixels of a plain 8-bit PNG file, decoded faster than by Pillow; None for any other file.

    Plain are files whose pixels need no interpretation: no palette, transparency or turning. What
    OpenCV cannot decode is left to Pillow, which says why.
    """
    if path.suffix.lower() != ".png" or not (path.is_file() and os.access(path, os.R_OK)):
        return None
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    depth_and_kind = b"\x08\0" if channels == 1 else b"\x08\2"  # 8 bits; grey, RGB
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != depth_and_kind:
        return None
    width, height = struct.unpack(">II", data[16:24])
    if width * height > _PLAIN_PIXELS or max(width, height) > _PLAIN_SIDE:
        return None
    if not _plain_chunks(data):
        return None
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    encoded = np.frombuffer(data, np.uint8)
    pixels = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        _decoded(path)  # says why, but fills up rows that are missing
        raise ValueError(f"Cannot read {path}: it lacks pixels. Replace it or remove it.")
    return np.asarray(pixels, np.uint8)


def _plain_chunks(data: bytes) -> bool:
    """Whether nothing beside the pixels of a PNG file says how they are meant."""
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        if kind not in _PLAIN_CHUNKS:
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return kind == b"IEND" and at == len(data)


def _deep_png(path: Path) -> npt.NDArray[np.uint16] | None:
    """Pixels of a PNG file of 16 bits a colour; None for any other file."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return None
    with open(path, "rb") as file:
        head = file.read(26)
    if head[24:26] not in _DEEP_PNG:
        return None
    with _opened(path) as image:
        image.verify()
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError(f"Cannot read {path}: it lacks pixels. Replace it or remove it.")
    order = [2, 1, 0, 3][: pixels.shape[2]]  # from BGR
    return np.asarray(pixels[..., order], np.uint16)


def _upright(pixels: Pixels) -> Pixels:
    """The values in the machine's own byte order."""
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


@contextmanager
def _tiff(path: Path) -> Iterator[Any]:
    """The open file; errors of reading it name it."""
    import tifffile  # takes a while

    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except _BROKEN_FILE as error:
        raise ValueError(
            f"Cannot read {path}: {error}. Expected a whole image file: replace it or remove it."
        ) from error


def _read_tiff(path: Path, as_saved: bool = False) -> Pixels:
    """Values of a TIFF file; ``as_saved`` leaves those alone in which white is the lowest."""
    with _tiff(path) as file:
        page, pages = file.pages.first, len(file.pages)
        orientation = page.tags.get("Orientation")
        if orientation is not None and int(orientation.value) not in (0, 1):
            raise ValueError(_turned(path, int(orientation.value)))
        axes = file.series[0].axes if pages > 1 else ""
        if pages > 1 and (len(file.series) > 1 or "C" not in axes):
            raise ValueError(
                f"{path} holds {pages} pages, expected a single picture. Save every page as a file."
            )
        pixels = _compressed_otherwise(path) if _needs_pillow(page) else file.asarray()
        palette = None if page.colormap is None or as_saved else page.colormap
        white_is_low = int(page.photometric) == _MIN_IS_WHITE
    if pixels.ndim == 3 and (pages > 1 or int(page.planarconfig) == 2):
        pixels = pixels.transpose(1, 2, 0)  # a page a channel, as ImageJ saves them, or a plane
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(
            f"{path} holds an array of shape {list(pixels.shape)}, expected a single picture. Save "
            "every picture as a file."
        )
    if palette is not None:
        pixels = (palette >> 8).astype(np.uint8)[:, pixels].transpose(1, 2, 0)
    if white_is_low and not as_saved:
        pixels = ~pixels if pixels.dtype.kind in "ub" else pixels.max() - pixels
    if pixels.dtype == bool and not as_saved:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    return _upright(pixels)


def _read_tiff_window(path: Path, window: Window) -> Pixels | None:
    """The values in a window, of which only the tiles or strips around it are decoded.

    None where it is not that simple: for files of other kinds, several pages, palettes, planes, or
    one large piece.
    """
    if not _is_tiff(path):
        return None
    with _tiff(path) as file:
        page = file.pages.first
        long, wide = page.chunks[:2]
        orientation = page.tags.get("Orientation")
        if (
            len(file.pages) > 1
            or _needs_pillow(page)
            or int(page.photometric) not in (_MIN_IS_BLACK, _RGB)
            or int(page.planarconfig) == 2
            or (orientation is not None and int(orientation.value) not in (0, 1))
            or page.bitspersample < 8
            or 4 * long * wide > page.imagelength * page.imagewidth
        ):
            return None
        top, left, height, width = window
        pixels = np.zeros((height, width, page.samplesperpixel), page.dtype)
        across = -(-page.imagewidth // wide)
        for row in range(top // long, (top + height - 1) // long + 1):
            for column in range(left // wide, (left + width - 1) // wide + 1):
                place = row * across + column
                file.filehandle.seek(page.dataoffsets[place])
                data = file.filehandle.read(page.databytecounts[place])
                piece, _, shape = page.decode(data, place)
                if piece is None:  # nothing is stored where all is 0
                    continue
                piece = piece[0, : shape[1], : shape[2]]
                y, x = row * long - top, column * wide - left
                here = piece[max(0, -y) : height - y, max(0, -x) : width - x]
                y, x = max(0, y), max(0, x)
                pixels[y : y + here.shape[0], x : x + here.shape[1]] = here
    return _upright(pixels)


def _needs_pillow(page: Any) -> bool:  # noqa: ANN401 - of tifffile
    """Whether the colours are of another kind, or compressed as tifffile cannot read alone."""
    return int(page.compression) not in (1, 8, 32946) or int(page.photometric) > _PALETTE


def _compressed_otherwise(path: Path) -> Pixels:
    """Values of a TIFF file by Pillow, as they were saved."""
    image = _decoded(path)
    if image.mode in _COLOURS:
        image = _converted(image, "RGB", path)
    pixels = np.asarray(image)
    turned = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE
    return ~pixels if turned and image.mode in ("1", "L") else pixels  # Pillow turned these round


def _converted(image: Image.Image, mode: str, path: Path) -> Image.Image:
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(
            f"Image {path} holds colours of the kind {image.mode}, expected grey or RGB. Save it "
            "as RGB."
        ) from error


def _decoded(path: Path, lossless: bool = False) -> Image.Image:
    """The decoded file, or an error that names it."""
    with _opened(path) as file:
        file.verify()  # the checksums of a PNG file, which Pillow passes over when it decodes
    with _opened(path) as file:
        refusal = _refusal(file, lossless)
        if not refusal:
            file.load()
            image = file.copy()
            image.format = file.format
            if hasattr(file, "tag_v2"):
                image.tag_v2 = file.tag_v2  # type: ignore[attr-defined]
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
    return "" if turn in (0, 1) else _turned("", turn).strip()


def _turned(path: Path | str, turn: int) -> str:
    return (
        f"{path} is to be turned or mirrored for viewing (EXIF orientation {turn}), which not all "
        "programs do, so that image and masks may not fit. Turn the pixels themselves, e.g. with "
        "'magick mogrify -auto-orient', and compare them with the masks."
    )


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
