"""NPC-170 (MMIS 2024): nasopharyngeal tumours in MR that four radiologists outlined.

::

    training_2d/*.h5      a slice a file: t1, t1c, t2, label_a1, label_a2, label_a3, label_a4
    validation/*.h5       a volume a file, with the same keys; slices are its first axis
    testing/*.h5          if there

- ``radiologist 1`` to ``4`` drew ``label_a1`` to ``label_a4``. A missing key: this one did not
  label the file.
- The parts are the splits. Slices of volumes that nobody drew on are left out.
- Slices of one scan are one group, by the file's name up to its last number.
- Each file and sequence is scaled by the percentiles 0.5 and 99.5 of its voxels, which is slice by
  slice in ``training_2d``. With ``intensity_range`` values are kept.

Source: Wu et al., "Dataset, challenge, and evaluation for tumor segmentation variability", ACM
Multimedia 2024.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tax_lightning.data.description import Description
from tax_lightning.importers.array_files import open_arrays
from tax_lightning.importers.cases import Found, Pixels, either
from tax_lightning.importers.volumes import Scan, Shape, Volume, sliced

PARTS = {"training_2d": "train", "validation": "val", "testing": "test"}
SEQUENCES = ("t1", "t1c", "t2")
_SCAN = re.compile(r"(.*\D)?\d+")  # its one group: all before the last number
_LABEL = re.compile(r"label_a(\d+)")


def find(
    root: Path,
    sequences: Sequence[str] = SEQUENCES,
    axis: int = 0,
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The slices and volumes of all parts.

    Args:
        root: The folder that holds ``training_2d`` and the other parts.
        sequences: The channels of the images, in this order.
        axis: The stored axis to slice along, 0 to 2; 0 gives axial slices.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
    """
    scans: list[Scan] = []
    left_out: list[str] = []
    for part, split in PARTS.items():
        for path in sorted((root / part).glob("*.h5")):
            scan = _scan(path, split, sequences)
            if scan.masks:
                scans.append(scan)
            else:
                left_out.append(f"{path} has no mask.")
    if not scans:
        raise FileNotFoundError(
            f"{root} holds no masks, expected .h5 files in some of the folders {', '.join(PARTS)}."
        )
    description = Description(
        "NPC-170",
        ("background", "tumour"),
        tuple(sequences),
        source="Wu et al., ACM Multimedia 2024; mmis2024.vercel.app",
        licence="The terms of the challenge MMIS 2024",
    )
    return sliced(
        description, scans, either("tumour"), left_out, axis=axis, use_affines=False, **slicing
    )


def _scan(path: Path, split: str, sequences: Sequence[str]) -> Scan:
    """A file; a flat one is a volume of one slice."""
    arrays = open_arrays(path)
    if missing := [name for name in sequences if name not in arrays]:
        raise ValueError(
            f"{path} has no array {missing[0]!r} but {', '.join(arrays)}. Name the sequences to "
            "take with the option sequences."
        )
    stored = arrays[sequences[0]]().shape
    if len(stored) not in (2, 3):
        raise ValueError(f"{path}: {sequences[0]} has the shape {stored}, expected [slices, H, W].")
    shape: Shape = (*(1,) * (3 - len(stored)), *stored)

    def read(key: str, get: Callable[[], Pixels]) -> Pixels:
        values = get()
        if values.shape != stored:
            raise ValueError(
                f"{path}: {key} has the shape {values.shape}, but {sequences[0]} {stored}. "
                "Expected the same: unpack the file anew."
            )
        return values.reshape(shape)

    def volume(key: str) -> Volume:
        return Volume(path, shape, None, partial(read, key, arrays[key]))

    drawn = {
        f"radiologist {match[1]}": volume(key)
        for key in sorted(arrays)
        if (match := _LABEL.fullmatch(key))
    }
    scan = _SCAN.fullmatch(path.stem) if len(stored) == 2 else None
    group = (scan[1] or "").strip("_-") if scan else path.stem
    images = tuple(volume(name) for name in sequences)
    return Scan(f"{split}_{path.stem}", images, drawn, f"{split}_{group}", split)
