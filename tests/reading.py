"""Pictures read back: files as pixels, and where something stands in a picture."""

import numpy as np
from PIL import Image, ImageDraw

from tax_lightning.data.pixels import Pictures
from tax_lightning.palette import INK, PAPER
from tax_lightning.visualization.sheet import font_for


def read_image(path, channels=3, intensity_range=None, window=None):
    """The pixels of an image file as a model gets them."""
    return Pictures(channels, intensity_range).image(path, window)


def places_of(piece, picture):
    """Rows and columns of the top left corners where a picture holds another one exactly."""
    height, width = piece.shape[:2]
    down, right = np.subtract(picture.shape[:2], (height - 1, width - 1)).clip(0)
    wanted, found = piece.astype(int) @ [1, 256, 65536], picture.astype(int) @ [1, 256, 65536]
    striking = np.argsort(piece.sum(axis=2), axis=None)  # leave few places to look at closely
    y, x = divmod(int(striking[0]), width)
    rows, cols = np.nonzero(found[y : y + down, x : x + right] == wanted[y, x])
    for y, x in zip(striking // width, striking % width, strict=True):
        same = found[rows + y, cols + x] == wanted[y, x]
        rows, cols = rows[same], cols[same]
        if not len(rows):
            break
    return list(zip(rows.tolist(), cols.tolist(), strict=True))


def written(text, size, ink=INK, paper=PAPER):
    """A line of text as it stands in a picture, without the paper around it."""
    font = font_for(text, size)
    line = Image.new("RGB", (int(font.getlength(text)) + 4, 2 * size), paper)
    ImageDraw.Draw(line).text((0, 0), text, ink, font)
    pixels = np.asarray(line)
    rows, cols = np.nonzero((pixels != paper).any(axis=2))
    return pixels[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]


def says(picture, text, size, ink=INK):
    """Whether a text stands in a picture, in letters of that size."""
    return bool(places_of(written(text, size, ink), picture))
