"""From arrays to pixels: images of any kind as pictures, contours, hatching, mixed colours."""

import base64
import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Explanation
from tax_lightning.palette import Colour, Picture

_LOOKED_AT = 512  # pixels a side, at most, from which the range of grey values is taken
_STRAY = 0.1  # per cent of the pixels at each end that may be darker than black, or above white


def check_single(explanation: Explanation) -> None:
    """Refuse the explanation of several images with a ``ValueError``."""
    if len(explanation) != 1:
        raise ValueError(
            f"The explanation is of {len(explanation)} images, expected 1; "
            "take one of them: explanation[i]."
        )


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values; half precision, which NumPy lacks in part, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def as_picture(image: NDArray[Any]) -> Picture:
    """An image ``[H, W]`` or ``[H, W, ch]`` of any kind as a person would see it.

    uint8 stays as it is; anything else, such as 16-bit or floating-point values, is stretched so
    that all but one in a thousand lie between black and white. Of one, two or more than three
    channels the first is shown in grey.

    Example:
        >>> as_picture(np.array([[300, 800, 1300]], dtype=np.uint16))[0, :, 0]
        array([  0, 128, 255], dtype=uint8)
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"image has shape {image.shape}, expected [H, W] or [H, W, channels] with pixels."
        )
    planes = image if image.ndim == 3 else image[..., None]
    planes = planes if planes.shape[2] == 3 else planes[..., :1]
    if planes.dtype != np.uint8:
        low, high = _shown_range(planes)
        values = np.nan_to_num(planes.astype(np.float32), nan=low, posinf=high, neginf=low)
        scaled = ((values - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
        planes = np.floor(scaled + 0.5).astype(np.uint8)
    return np.broadcast_to(planes, (*planes.shape[:2], 3)).copy()


def _shown_range(planes: NDArray[Any]) -> tuple[float, float]:
    """The values shown as black and as white; 0 and 1 of an image without finite values."""
    step = -(-max(planes.shape[:2]) // _LOOKED_AT)
    values = planes[::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (_STRAY, 100 - _STRAY), method="nearest")
    return float(low), float(high)


def grey_rgb(grey: NDArray[np.floating]) -> Picture:
    """Grey values ``[H, W]`` as a picture."""
    return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def data_uri(picture: Picture) -> str:
    """A picture as the address of itself: PNG or JPEG, whichever is smaller."""
    image = Image.fromarray(picture)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "png")  # the best compression saves 3 % more, and takes six times as long
    image.save(jpeg, "jpeg", quality=85, subsampling=0, optimize=True)
    kind, file = min((("png", png), ("jpeg", jpeg)), key=lambda pair: pair[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def blend(
    picture: Picture, colour: Colour | NDArray[np.integer], strength: float | NDArray[np.floating]
) -> Picture:
    """The picture mixed with a colour: strength 0 leaves it, 1 covers it."""
    mixed = picture + (np.asarray(colour, dtype=np.float32) - picture) * np.float32(strength)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def contours(labels: NDArray[Any], width: int) -> NDArray[np.bool_]:
    """The inner edges of regions of class ids ``[..., H, W]``; 255 counts as background."""
    known = np.where(labels == IGNORE_INDEX, 0, labels).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    square = np.ones((2 * width - 1, 2 * width - 1), np.uint8)
    lines = np.empty(known.shape, np.bool_)
    for place in np.ndindex(known.shape[:-2]):
        edge = cv2.morphologyEx(known[place], cv2.MORPH_GRADIENT, cross) * (known[place] > 0)
        lines[place] = cv2.dilate(edge, square) > 0
    return lines & (known > 0)


def dashed(picture: Picture, line: NDArray[np.bool_]) -> Picture:
    """The picture with a line in black and white dashes."""
    picture[line] = np.where(_diagonal(line.shape)[line, None] // 5 % 2 == 0, 255, 0)
    return picture


def hatching(height: int, width: int, period: int, share: float = 1 / 6) -> NDArray[np.bool_]:
    """Diagonal lines that cover this share."""
    return _diagonal((height, width)) % period < int(share * period)


def taking_turns(lines: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Where there are lines ``[M, H, W]``, and whose is shown; those that coincide take turns."""
    rank = lines.cumsum(axis=0, dtype=np.int16)
    together = rank[-1]
    turn = _diagonal(together.shape) // 6 % np.maximum(together, 1) + 1
    return together > 0, (lines & (rank == turn)).argmax(axis=0)


def _diagonal(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Row plus column of every pixel, ``[H, W]``; it grows along any line but falling diagonals."""
    return np.add.outer(*(np.arange(length, dtype=np.int32) for length in shape))
