"""QUBIQ 2020 and 2021: structures in MR and CT that three to seven raters outlined."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.splits import split_groups
from tax_lightning.data.table import TableDataModule
from tax_lightning.data.volumes import Volumes, find_volumes, slice_scan, stored_shape

_LAYOUT = """Expected this layout, with root = ORGAN:
    ORGAN/Training/caseNN/image.nii.gz
    ORGAN/Training/caseNN/taskTT_segSS.nii.gz   (TT: the task, SS: the rater)
    ORGAN/Validation/caseNN/...                 (optional)"""
_FIRST_AXIS = ("pancreas", "pancreatic-lesion")  # volumes whose slices are their first axis
_MASK = re.compile(r"(?:task(?P<task>\d+)|case.*)_seg(?P<rater>\d+)")  # case...: the only task
_PATIENT = re.compile(r"case\d+")  # case13-1 and case13-2 are two scans


class QUBIQDataModule(TableDataModule):
    """One binary task of one organ of the QUBIQ challenge.

    ::

        ORGAN/Training/caseNN/image.nii.gz
        ORGAN/Training/caseNN/taskTT_segSS.nii.gz
        ORGAN/Validation/caseNN/...

    Both archives belong into one folder. Cases that lie in ``ORGAN`` itself, as the training cases
    of the pancreas do, count as training. The annotators are ``"rater 1"`` and so on, by the number
    in the file name; a missing file means that this rater did not label that case. Files may be
    compressed or not; see `Volumes` for how intensities and slices are read.

    Cases of ``Validation`` are tested on, those for validation are drawn from ``Training``. Where
    ``Validation`` is missing or has no masks, all splits are drawn. Scans whose names differ only
    behind a dash (``case13-1``, ``case13-2``) stay together.

    The constructor reads headers; of organs in three dimensions also the masks once, to leave out
    empty slices: 0.1 to 0.4 seconds for a compressed mask of 512 x 512 x 53 voxels.

    Args:
        root: The folder of an organ, as above.
        task: Number of the task, from 1.
        class_name: Name of what is outlined. None: the folder's name, with the task's number where
            there are several.
        axis: The stored axis that volumes are sliced along. None: 0 for the pancreas and its
            lesions, else 2.
        empty_slices: Keep slices of a volume on which no rater drew anything.
        intensity_range: Intensities that become black and white, e.g. [-125, 275] Hounsfield units
            for the abdomen. None: percentiles of each scan.
        published_split: Test on ``Validation``. False: all splits, or folds, are drawn from all
            cases together.
        val_fraction: Share of the images drawn for validation.
        split_seed: Seed of that draw.
        kwargs: The options of `TableDataModule`, from ``predict_images`` on, and the loading
            options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        FileNotFoundError: If the folder, its cases or an image are missing.
        ValueError: If there is no such task, or files do not match each other; the message names
            them.
        ModuleNotFoundError: If nibabel, the extra ``volumes``, is not installed.

    Source: H. B. Li et al., "QUBIQ: Uncertainty quantification for biomedical image segmentation
    challenge", arXiv:2405.18435, 2024.
    """

    def __init__(
        self,
        root: str | Path,
        task: int = 1,
        class_name: str | None = None,
        axis: int | None = None,
        empty_slices: bool = False,
        intensity_range: tuple[float, float] | None = None,
        published_split: bool = True,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        root = Path(root).resolve()
        cases, tasks = _read_cases(root, task)
        if axis is None:
            axis = 0 if root.name in _FIRST_AXIS else 2
        decoder = Volumes(_modalities(cases[0]), axis, intensity_range)
        samples = tuple(_slices(cases, decoder, empty_slices, root))
        if published_split:
            samples = _split_as_published(samples, val_fraction, split_seed)
        if class_name is None:
            class_name = root.name if len(tasks) == 1 else f"{root.name} {task}"
        table = SampleTable(
            samples,
            annotators=tuple(f"rater {number}" for number in _raters(cases)),
            classes=("background", class_name),
            mask_values={0: "background", 1: class_name, 255: class_name},
            decoder=decoder,
        )
        super().__init__(table, val_fraction=val_fraction, split_seed=split_seed, **kwargs)


class _Case(NamedTuple):
    """One scan: where it lies, and the masks of the raters by their number."""

    part: str
    name: str
    image: Path
    masks: Mapping[int, Path]


def _read_cases(root: Path, task: int) -> tuple[list[_Case], set[int]]:
    """The cases that somebody labelled for a task, and the tasks there are."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder. {_LAYOUT}")
    cases, tasks = [], set()
    for part, folder in _case_folders(root):
        files = find_volumes(folder)
        if "image" not in files:
            raise FileNotFoundError(
                f"{folder} holds no image.nii.gz. Add it, or remove the folder. {_LAYOUT}"
            )
        masks = _masks(files)
        tasks |= set(masks)
        cases.append(_Case(part, folder.name, files["image"], masks.get(task, {})))
    if not cases:
        raise FileNotFoundError(f"{root} holds no folders of cases. {_LAYOUT}")
    if task not in tasks:
        found = ", ".join(map(str, sorted(tasks))) or "no masks at all"
        raise ValueError(f"task={task}: {root} has no such task, expected one of: {found}.")
    return _labelled(cases, task), tasks


def _case_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Part (Training or Validation) and folder of every case."""
    for part, parent in (
        ("Training", root),
        ("Training", root / "Training"),
        ("Validation", root / "Validation"),
    ):
        for folder in sorted(parent.glob("case*"), key=_natural):
            if folder.is_dir():
                yield part, folder


def _natural(path: Path) -> tuple[list[int], str]:
    """Order by number: case2 before case10."""
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


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


def _labelled(cases: Sequence[_Case], task: int) -> list[_Case]:
    """Leave out the cases without a mask for the task: they teach nothing."""
    labelled = [case for case in cases if case.masks]
    if bare := [case for case in cases if not case.masks]:
        rank_zero_warn(
            f"{len(bare)} case(s) without a mask for task {task} are left out, e.g. "
            f"{bare[0].image.parent}."
        )
    return labelled


def _raters(cases: Iterable[_Case]) -> list[int]:
    return sorted({rater for case in cases for rater in case.masks})


def _modalities(case: _Case) -> int:
    """Length of the last axis of an image that has one axis more than its mask."""
    mask, image = (
        [length for length in stored_shape(path) if length > 1]
        for path in (next(iter(case.masks.values())), case.image)
    )
    return image[-1] if len(image) == len(mask) + 1 else 1


def _slices(
    cases: Sequence[_Case], decoder: Volumes, empty_slices: bool, root: Path
) -> Iterator[Sample]:
    """The slices of all cases; at least one."""
    found = False
    for case in cases:
        patient = _PATIENT.match(case.name)
        for sample in slice_scan(
            f"{case.part}_{case.name}",
            case.image,
            {f"rater {number}": path for number, path in sorted(case.masks.items())},
            f"{case.part}_{patient[0] if patient else case.name}",
            decoder,
            empty_slices,
        ):
            found = True
            yield sample
    if not found:
        raise ValueError(
            f"All masks in {root} are empty, expected something drawn. Set empty_slices=True to "
            "keep empty slices."
        )


def _split_as_published(
    samples: tuple[Sample, ...], val_fraction: float, seed: int
) -> tuple[Sample, ...]:
    """Validation becomes the test split; as they are, where there is no such part."""
    published = [sample.group.startswith("Validation") for sample in samples]
    if not any(published) or all(published):
        return samples
    sizes: dict[str, int] = {}
    for sample, tested in zip(samples, published, strict=True):
        if not tested:
            sizes[sample.group] = sizes.get(sample.group, 0) + 1
    split_of = split_groups(sizes, val_fraction, 0.0, seed)
    return tuple(replace(s, split=split_of.get(s.group, "test")) for s in samples)
