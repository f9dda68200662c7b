"""LIDC-IDRI from its DICOM files: crops around the nodules that pylidc knows the outlines of."""

import configparser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tax_lightning.extras import needed
from tax_lightning.importers.cases import Case, Labels, Pixels

SLOTS = ("slot 0", "slot 1", "slot 2", "slot 3")
"""Places of the readers' outlines of a nodule, which are not persons."""

_DROPPED = (
    (np, "int", int),
    (np, "float", float),
    (np, "bool", bool),
    (configparser, "SafeConfigParser", configparser.ConfigParser),
)


def cases_of_scans(
    root: Path, size: int, hounsfield: tuple[float, float]
) -> tuple[list[Case], list[str]]:
    """Crops around the middle of what all readers outlined, and what was left out.

    A crop is made of each slice with an outline. Outlines of one nodule are put together by
    ``pylidc.Scan.cluster_annotations``.
    """
    low, high = hounsfield
    if size < 1 or not low < high:
        raise ValueError(
            f"size={size}, hounsfield={hounsfield}: expected a size from 1 up, and the density of "
            "black below that of white, e.g. 128 and [-1000, 400]."
        )
    pylidc = needed("pylidc")
    consensus = import_module("pylidc.utils").consensus
    cases: list[Case] = []
    absent, crowded, reason = 0, 0, "pylidc lists none"
    with _set_up(root):
        for scan in pylidc.query(pylidc.Scan):
            try:
                scan.get_path_to_dicom_files()
            except (OSError, RuntimeError) as error:  # how pylidc says that there is no such folder
                absent, reason = absent + 1, str(error)
                continue
            for number, nodule in enumerate(scan.cluster_annotations(verbose=False)):
                if len(nodule) > len(SLOTS):
                    crowded += 1
                    continue
                _, (rows, columns, levels), masks = consensus(nodule)
                for depth, level in enumerate(range(levels.start, levels.stop)):
                    planes = [np.asarray(mask[:, :, depth], np.uint8) for mask in masks]
                    if not any(plane.any() for plane in planes):
                        continue
                    planes += [np.zeros_like(planes[0])] * (len(SLOTS) - len(planes))
                    crop = partial(_crop, scan, root, (rows, columns), size)
                    own = {
                        by: partial(crop, plane) for by, plane in zip(SLOTS, planes, strict=True)
                    }
                    name = f"{scan.patient_id}_scan{scan.id:04d}-{number}-slice{level:03d}"
                    image = partial(_image, crop, level, low, high)
                    cases.append(Case(name, image, own, group=str(scan.patient_id)))
    if not cases:
        raise FileNotFoundError(
            f"{root} holds no scan of LIDC-IDRI ({reason}). Expected folders LIDC-IDRI-0001 and so "
            "on with DICOM files: download the collection."
        )
    crowd = (
        f"group(s) of more than {len(SLOTS)} outlines, which are several nodules close together."
    )
    counted = (absent, "scan(s) that are not on disk."), (crowded, crowd)
    return cases, [f"{count} {what}" for count, what in counted if count]


@lru_cache(maxsize=1)  # cases of a scan follow each other
def _volume(scan: Any, root: Path) -> Pixels:  # noqa: ANN401 - of pylidc
    with _set_up(root):
        return np.asarray(scan.to_volume(verbose=False))


def _image(crop: partial[Pixels], level: int, low: float, high: float) -> Labels:
    """Grey values of 8 bits."""
    shares = (crop(level).clip(low, high) - low) / (high - low)
    return (255 * shares).round().astype(np.uint8)


def _crop(
    scan: Any,  # noqa: ANN401 - of pylidc
    root: Path,
    box: Sequence[slice],
    size: int,
    what: int | Labels,
) -> Pixels:
    """A square around the middle of a box, of a slice by its number or of what the box holds."""
    volume = _volume(scan, root)
    height, width, _ = volume.shape
    if isinstance(what, int):
        plane = volume[:, :, what]
    else:
        plane = np.zeros((height, width), np.uint8)
        plane[box[0], box[1]] = what
    if min(height, width) < size:
        raise ValueError(f"size={size}: a scan has slices of {height} x {width} pixels.")
    middles = [(span.start + span.stop) // 2 - size // 2 for span in box]
    top, left = np.clip(middles, 0, (height - size, width - size)).tolist()
    return plane[top : top + size, left : left + size]


@contextmanager
def _set_up(root: Path) -> Iterator[None]:
    """What pylidc 0.2.3, its last release, needs: the folder, and names that have been dropped.

    It calls what NumPy and Python no longer have, and reads the folder from a file in the user's
    home, which it would write.
    """
    place = "_get_dicom_file_path_from_config_file"
    with ExitStack() as stack:
        for module, name, value in _DROPPED:
            if name not in vars(module):
                stack.enter_context(patch.object(module, name, value, create=True))
        stack.enter_context(patch.object(import_module("pylidc.Scan"), place, lambda: str(root)))
        yield
