"""QUBIQ 2020 and 2021: structures in MR and CT that three to seven raters outlined.

::

    ORGAN/Training/caseNN/image.nii.gz
    ORGAN/Training/caseNN/taskTT_segSS.nii.gz     TT: the task, SS: the rater
    ORGAN/Validation/caseNN/...                   optional

Name the folder of an organ, with both archives unpacked into it. Files may be compressed or not.

- One binary task is one data set. Its class is named after the folder, with the number of the task
  where there are several.
- ``rater 1`` and so on are the numbers in the files' names. The challenge does not say that a
  number is the same person in every case. A missing file: this rater did not label that case.
- Cases that lie in ``ORGAN`` itself, as those of the pancreas do, count as training. Scans whose
  names differ only behind a dash (``case13-1``, ``case13-2``) are one group.
- ``Validation`` is tested on, the images for validation are drawn from ``Training``. Where
  ``Validation`` is missing or has no masks, all splits are left to be drawn.
- The volumes of the pancreas are sliced along the first axis, all others along the third. Slices
  that nobody drew on are left out. Flat pictures may be stored with two axes, or with three.
- Several sequences are the last axis of an image. 1 and 255 both mean the structure.
- Each scan and sequence is scaled by the percentiles 0.5 and 99.5, or with ``intensity_range`` kept
  as it is.

Source: H. B. Li et al., "QUBIQ: Uncertainty quantification for biomedical image segmentation
challenge", arXiv:2405.18435, 2024.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tax_lightning.data.description import Description
from tax_lightning.data.splits import split_groups
from tax_lightning.importers.cases import Case, Found, channel_names, either
from tax_lightning.importers.nifti import find_nifti, open_nifti
from tax_lightning.importers.volumes import Scan, sliced

_LAYOUT = """Expected this layout, with FROM = ORGAN:
    ORGAN/Training/caseNN/image.nii.gz
    ORGAN/Training/caseNN/taskTT_segSS.nii.gz   (TT: the task, SS: the rater)
    ORGAN/Validation/caseNN/...                 (optional)"""
_FIRST_AXIS = ("pancreas", "pancreatic-lesion")
_MASK = re.compile(r"(?:task(?P<task>\d+)|case.*)_seg(?P<rater>\d+)")  # case...: the only task
_PATIENT = re.compile(r"case\d+")


def find(
    root: Path,
    task: int = 1,
    class_name: str | None = None,
    axis: int | None = None,
    published_split: bool = True,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    **slicing: Any,  # noqa: ANN401 - of sliced
) -> Found:
    """The cases of one organ.

    Args:
        root: The folder of the organ.
        task: Number of the task, from 1.
        class_name: Name of what is outlined. None: of the folder.
        axis: The stored axis to slice along. None: 0 for the pancreas and its lesions, else 2.
        published_split: Test on ``Validation``. False: all splits are left to be drawn.
        val_fraction: Share of the training images for validation.
        split_seed: Seed of that draw.
        slicing: As :func:`~tax_lightning.importers.volumes.sliced` takes it.
    """
    root = root.resolve()
    scans: list[Scan] = []
    left_out: list[str] = []
    tasks: set[int] = set()
    channels = 1
    for part, folder in _folders(root):
        files = find_nifti(folder)
        if "image" not in files:
            raise FileNotFoundError(
                f"{folder} holds no image.nii.gz. Add it, or remove the folder. {_LAYOUT}"
            )
        masks = _masks(files)
        tasks |= set(masks)
        if task not in masks:
            left_out.append(f"{part}/{folder.name} has no mask for task {task}.")
            continue
        if not scans:
            channels = _channels(files["image"], next(iter(masks[task].values())))
        patient = _PATIENT.match(folder.name)
        scans.append(
            Scan(
                f"{part}_{folder.name}",
                (open_nifti(files["image"], channels),),
                {f"rater {number}": open_nifti(path) for number, path in masks[task].items()},
                group=f"{part}_{patient[0] if patient else folder.name}",
            )
        )
    if not tasks:
        raise FileNotFoundError(f"{root} holds no cases with masks. {_LAYOUT}")
    if not scans:
        found = ", ".join(map(str, sorted(tasks)))
        raise ValueError(f"task={task}: {root} has no such task, expected one of: {found}.")
    if axis is None:
        axis = 0 if root.name in _FIRST_AXIS else 2
    name = root.name if len(tasks) == 1 else f"{root.name} {task}"
    structure = class_name or name
    description = Description(
        f"QUBIQ {name}",
        ("background", structure),
        channel_names(channels, "modality"),
        persons=False,
        source="H. B. Li et al., arXiv:2405.18435; qubiq.grand-challenge.org",
        licence="The terms accepted at registration for the challenge",
    )
    whole = sliced(description, scans, either(structure), left_out, axis=axis, **slicing)
    if not published_split:
        return whole
    return replace(whole, cases=_split(whole.cases, val_fraction, split_seed))


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Part (Training or Validation) and folder of every case, case2 before case10."""
    for part, parent in (
        ("Training", root),
        ("Training", root / "Training"),
        ("Validation", root / "Validation"),
    ):
        folders = [folder for folder in parent.glob("case*") if folder.is_dir()]
        by_number = [([int(n) for n in re.findall(r"\d+", f.name)], f.name, f) for f in folders]
        yield from ((part, folder) for _, _, folder in sorted(by_number))


def _masks(files: Mapping[str, Path]) -> dict[int, dict[int, Path]]:
    """Task -> number of the rater -> file."""
    masks: dict[int, dict[int, Path]] = {}
    for name, path in files.items():
        if match := _MASK.fullmatch(name):
            of_task = masks.setdefault(int(match["task"] or 1), {})
            rater = int(match["rater"])
            if rater in of_task:
                raise ValueError(
                    f"{path} and {of_task[rater]} are masks of the same task and rater, expected "
                    "one: delete one of them."
                )
            of_task[rater] = path
    return masks


def _channels(image: Path, mask: Path) -> int:
    """Length of the last axis of an image that has one axis more than its mask."""
    flat = open_nifti(mask).shape
    whole = open_nifti(image, channels=None)
    if whole.channels == 1 and 1 in flat and 1 not in whole.shape:
        return whole.shape[2]
    return whole.channels


def _split(cases: Sequence[Case], val_fraction: float, seed: int) -> Sequence[Case]:
    """Validation becomes the test split; nothing is split where there is no such part."""
    tested = [case.group.startswith("Validation") for case in cases]
    if not any(tested) or all(tested):
        return cases
    sizes = Counter(case.group for case, test in zip(cases, tested, strict=True) if not test)
    split_of = split_groups(sizes, val_fraction, 0.0, seed)
    return [replace(case, split=split_of.get(case.group, "test")) for case in cases]
