"""Arrays: images and masks of any number of annotators in NPY, NPZ, MAT or HDF5 files.

::

    CASE.npz   CASE.mat   CASE.h5        image, and masks/ANNOTATOR for each annotator; or
                                         image, masks [annotators, ...], and annotators: their names

    images/NAME.npy                      or a file for each array
    masks/ANNOTATOR/NAME.npy

- A mask is a picture ``[H, W]`` or a volume ``[slices, H, W]``, of which the pictures are taken.
  The image is of the same size, perhaps with channels behind.
- In MAT files, before and since version 7.3, ``masks`` may be a struct with a field for each
  annotator, and ``annotators`` a cell array of names.
- Values of images are kept. Other than unsigned integers of 8 or 16 bits, or numbers from 0 to 1,
  they need ``intensity_range``.
- A file or key that is not there: this annotator did not label the image. Python objects are
  refused, as to read them may run what they hold.

Source: the NumPy format (numpy.lib.format); MAT-File Format, The MathWorks; HDF5, The HDF Group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tax_lightning.data.description import Description
from tax_lightning.data.layouts import from_patterns
from tax_lightning.importers.array_files import ARRAY_SUFFIXES, open_array, open_arrays
from tax_lightning.importers.cases import Found, Pixels, channel_names
from tax_lightning.importers.volumes import (
    Scan,
    Shape,
    Volume,
    channels_of,
    names_and_values,
    sliced,
)


def find(
    root: Path,
    classes: Sequence[str] | None = None,
    image: str = "image",
    masks: str = "masks",
    annotators: str = "annotators",
    axis: int = 0,
    intensity_range: tuple[float, float] | None = None,
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The arrays below a folder.

    Args:
        root: The folder.
        classes: Names of the values 0, 1, 2 and so on in masks; 255 then means not labelled. None:
            a class for each value that any mask holds.
        image: Key of the image.
        masks: Key of the masks.
        annotators: Key of the annotators' names.
        axis: The axis to slice volumes along, 0 to 2.
        intensity_range: Values that mean black and white. None: those of the type.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
    """
    scans, left_out = [], []
    for name, path, pixels, drawn in _files(root, image, masks, annotators):
        if drawn:
            scans.append(_scan(name, path, pixels, drawn, free=intensity_range is not None))
        else:
            left_out.append(f"{path} has no {masks}.")
    if not scans:
        raise FileNotFoundError(f"{root} holds images but no masks, expected those of somebody.")
    names, values = names_and_values(scans, classes)
    description = Description(root.resolve().name, names, channel_names(channels_of(scans)))
    kept = intensity_range or (0.0, 1.0)  # else they would be scaled by percentiles
    slicing |= {"axis": axis, "intensity_range": kept}
    whole = sliced(description, scans, values, left_out, use_affines=False, **slicing)
    said = replace(whole.description, intensity_range=intensity_range)
    return replace(whole, description=said)


_Read = Callable[[], Pixels]


def _files(
    root: Path, image: str, masks: str, annotators: str
) -> Iterator[tuple[str, Path, _Read, dict[str, _Read]]]:
    """Name of a case, its file, and what reads its image and the masks by annotator."""
    if (root / "images").is_dir():
        samples, _ = from_patterns(
            root, "images/{name}.npy", "masks/{annotator}/{name}.npy", suffixes={".npy"}
        )
        for s in samples:
            drawn = {by: open_array(file) for by, file in s.masks.items()}
            yield s.id, s.image, open_array(s.image), drawn
        return
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in ARRAY_SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{root} holds no folder images/ and no {', '.join(ARRAY_SUFFIXES)} files, expected "
            "images/NAME.npy and masks/ANNOTATOR/NAME.npy, or a file for each case."
        )
    for path in files:
        arrays = open_arrays(path)
        if image not in arrays:
            raise ValueError(
                f"{path} has no array {image!r} but {', '.join(arrays)}. Name the image's with "
                "the option image."
            )
        name = path.relative_to(root).with_suffix("").as_posix()
        yield name, path, arrays[image], _drawn(path, arrays, masks, annotators)


def _drawn(
    path: Path, arrays: Mapping[str, _Read], masks: str, annotators: str
) -> dict[str, _Read]:
    """Annotator -> mask, of the arrays in a file."""
    start = f"{masks}/"
    drawn = {key.removeprefix(start): arrays[key] for key in arrays if key.startswith(start)}
    if drawn or masks not in arrays:
        return drawn
    names = (
        [str(name).strip() for name in arrays[annotators]().ravel()] if annotators in arrays else []
    )
    stack = arrays[masks]()
    if len(names) != len(stack):
        raise ValueError(
            f"{path} has {masks} of shape {stack.shape} and {len(names)} name(s) in {annotators}. "
            f"Expected a name for each mask along the first axis, or arrays {masks}/NAME."
        )

    def at(place: int) -> Pixels:
        mask: Pixels = arrays[masks]()[place]
        return mask

    return {name: partial(at, place) for place, name in enumerate(names)}


def _scan(
    name: str,
    path: Path,
    image: _Read,
    masks: Mapping[str, _Read],
    free: bool,
) -> Scan:
    """A picture is a volume of one slice."""
    shapes = {by: read().shape for by, read in masks.items()}
    size = next(iter(shapes.values()))
    whole = image().shape
    odd = {by: shape for by, shape in shapes.items() if shape != size}
    if odd or len(size) not in (2, 3) or whole[: len(size)] != size or len(whole) > len(size) + 1:
        found = ", ".join(f"{by} {shape}" for by, shape in shapes.items())
        raise ValueError(
            f"{path}: the image has the shape {whole}, and masks {found}. Expected masks [H, W] or "
            "[slices, H, W], and an image of that shape, perhaps with channels behind."
        )
    shape: Shape = (*(1,) * (3 - len(size)), *size)
    channels = whole[len(size)] if len(whole) > len(size) else 1

    def read_image() -> Pixels:
        values = image() if free else _checked(image(), path)
        return values.reshape(shape if channels == 1 else (*shape, channels))

    def read_mask(by: str) -> Pixels:
        return masks[by]().reshape(shape)

    drawn = {by: Volume(path, shape, None, partial(read_mask, by)) for by in masks}
    return Scan(name, (Volume(path, shape, None, read_image, channels),), drawn)


def _checked(values: Pixels, path: Path) -> Pixels:
    """The values, of which the type says what is black and white."""
    if values.dtype in (np.uint8, np.uint16, np.bool_):
        return values
    least, most = values.min(), values.max()
    example = f"[{least:g}, {most:g}]"
    if values.dtype.kind != "f" or not (least >= 0 and most <= 1):  # also true for NaN
        raise ValueError(
            f"{path}: the image holds {values.dtype} values from {least} to {most}, of which "
            f"nothing says what is black and white. Set intensity_range, e.g. {example}."
        )
    return values
