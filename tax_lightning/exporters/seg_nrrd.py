"""3D Slicer: a segmentation for each layer of a volume, ``VOLUME/LAYER.seg.nrrd``.

Each class but the background is a segment with its name and a colour. Slicer opens such a file as a
segmentation by its ending. Slices that are not in the data set are empty. The folder is read again
by ``tax import seg_nrrd``, where the images lie beside the layers.

Source: the NRRD format (teem.sourceforge.net/nrrd/format.html), and the fields ``SegmentN_...`` in
Slicer's developer guide (MRML overview, segmentations).
"""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tax_lightning.exporters.layers import Segmented
from tax_lightning.exporters.slices import Whole, write_layers

_COLOURS = (  # of segments, red, green and blue from 0 to 1; told apart by the colour-blind
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
)


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write the layers of volumes, whose slices come one after the other."""
    return write_layers(images, folder, ".seg.nrrd", _encoded)


def _encoded(whole: Whole) -> bytes:
    header = "\n".join(_header(whole)) + "\n\n"  # an empty line ends it
    voxels = whole.labels.tobytes(order="F")  # the first axis varies fastest
    return header.encode("utf-8") + gzip.compress(voxels, mtime=0)


def _header(whole: Whole) -> Iterator[str]:
    """The lines of the header; places in mm towards left, back and head."""
    place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ whole.affine + 0.0
    yield from (
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {_numbers(whole.labels.shape)}",
        "space directions: " + " ".join(_point(place[:3, axis]) for axis in range(3)),
        "kinds: domain domain domain",
        "encoding: gzip",
        f"space origin: {_point(place[:3, 3])}",
    )
    extent = _numbers(end for length in whole.labels.shape for end in (0, length - 1))
    for value, name in enumerate(whole.classes[1:], start=1):
        key = f"Segment{value - 1}_"
        yield f"{key}Color:={_numbers(_COLOURS[(value - 1) % len(_COLOURS)])}"
        yield f"{key}Extent:={extent}"
        yield f"{key}ID:=Segment_{value}"
        yield f"{key}LabelValue:={value}"
        yield f"{key}Layer:=0"
        yield f"{key}Name:={' '.join(name.split())}"
        yield f"{key}Tags:=|"
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"


def _point(numbers: Iterable[float]) -> str:
    return "(" + ",".join(repr(float(number)) for number in numbers) + ")"


def _numbers(numbers: Iterable[float]) -> str:
    return " ".join(str(number) for number in numbers)
