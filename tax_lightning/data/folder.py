"""The plain layout: a folder of images, and a folder of masks for every annotator."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.data.files import IMAGE_SUFFIXES, Pictures, find_images
from tax_lightning.data.metadata import Metadata, composed, read_csv, read_metadata
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.splits import SPLITS
from tax_lightning.data.table import TableDataModule

_LAYOUT = """Expected this layout:
    images/NAME.png
    masks/ANNOTATOR/NAME.png   (a missing file: this annotator did not label that image)
    reference/NAME.png         (optional)
    splits.csv                 (optional; columns name, split, group)
    annotators.csv             (optional; columns annotator, person, tool, ...)"""


class FolderDataModule(TableDataModule):
    """Images and masks in plain folders, joined by their file names.

    ::

        images/NAME.png
        masks/ANNOTATOR/NAME.png
        reference/NAME.png
        splits.csv
        annotators.csv

    The annotators are the sub-folders of ``masks``. A missing mask means that the annotator did not
    label that image; an empty mask means that there is nothing to see in it. ``reference`` and
    ``splits.csv`` are optional. The latter has the columns ``name``, ``split`` (train, val or test)
    and ``group`` (patient, slide or scan); the last two are optional, and without ``split`` the
    splits are drawn by seed with every group kept whole. Extensions need not agree.
    ``annotators.csv``, also optional, has the column ``annotator`` and any others, such as
    ``person``, ``tool`` or ``skill``, by which tables can be read (``group_by``).

    Args:
        root: The folder described above.
        classes: Names of the classes; the index is the class id and the first is the background.
        mask_values: Grey value in the mask files -> class name or ``"ignore"``. None: the values
            are class ids. A 1-bit file's white is 255 where that value is listed, and 1 otherwise.
        channels: 1 (grey) or 3 (RGB); images are converted to it.
        max_value: Grey value of the images that means white, e.g. 4095 for 12-bit images in 16-bit
            files. None: 255 or 65535 by the kind of the file.
        annotators: Names of the annotators to use, in this order. None: all, sorted by name.
        exclude_annotators: Names of annotators to leave out.
        group_pattern: Regular expression with one group, searched in the image names, that yields
            the patient, slide or scan, e.g. ``"(patient[0-9]+)_"``; instead of a column ``group``.
        persons: Whether the masks of a folder are all by the same person. If not, page and panel
            say that names mean nothing.
        kwargs: The options of `TableDataModule`, from ``predict_images`` on, and the loading
            options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        FileNotFoundError: If the folder, its images or its masks are missing.
        ValueError: If names do not match each other; the message names the file and the cure.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for place in ("images", "masks/Ann", "masks/Bob"):
        ...         (Path(root) / place).mkdir(parents=True)
        ...         for number in range(4):
        ...             file = Path(root) / place / f"cell{number}.png"
        ...             Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
        ...     data = FolderDataModule(root, ["background", "cell"], val_fraction=0.25,
        ...         test_fraction=0.25, batch_size=2)
        ...     data.setup("fit")
        ...     batch = next(iter(data.train_dataloader()))
        >>> data.annotators, batch["masks"].shape
        (('Ann', 'Bob'), torch.Size([2, 2, 8, 8]))
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str] | int,
        mask_values: Mapping[int, str] | None = None,
        channels: int = 3,
        max_value: float | None = None,
        annotators: Sequence[str] | None = None,
        exclude_annotators: Sequence[str] = (),
        group_pattern: str | None = None,
        persons: bool = True,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        if isinstance(classes, int):
            raise ValueError(
                f"classes: {classes} is a number, expected the names of at least 2 classes, the "
                "background first, e.g. [background, cell]."
            )
        root = Path(root)
        samples, names = read_folder(root, annotators, exclude_annotators, group_pattern)
        set_pixel = 1 if mask_values is None or 255 not in mask_values else 255
        decoder = Pictures(channels, max_value, set_pixel)
        table = SampleTable(samples, names, tuple(classes), mask_values, decoder)
        super().__init__(table, metadata=_metadata(root), **kwargs)
        self.persons = self.persons and persons  # as a reader of such a folder may say


def read_folder(
    root: Path,
    annotators: Sequence[str] | None = None,
    exclude_annotators: Sequence[str] = (),
    group_pattern: str | None = None,
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """List the samples of a folder in the layout of `FolderDataModule`.

    Args:
        root: The folder.
        annotators: Names of the annotators to use, in this order. None: all, sorted by name.
        exclude_annotators: Names of annotators to leave out.
        group_pattern: Regular expression with one group that yields the group of an image name.

    Returns:
        The samples that at least one of the annotators labelled, and the annotators' names.

    Raises:
        FileNotFoundError: If the folder, its images or its masks are missing.
        ValueError: If names do not match each other.
    """
    images = _find_originals(root)
    folders = _annotator_folders(root, annotators, exclude_annotators)
    masks = {name: _find_matching(folder, images) for name, folder in folders.items()}
    reference = root / "reference"
    references = _find_matching(reference, images) if _is_there(reference, Path.is_dir) else {}
    rows = _read_splits(root / "splits.csv", images)
    groups = _groups(images, rows, group_pattern)
    samples = tuple(
        Sample(
            id=name,
            image=image,
            masks={annotator: files[name] for annotator, files in masks.items() if name in files},
            reference=references.get(name),
            group=groups[name],
            split=rows[name].split,
        )
        for name, image in images.items()
    )
    return _labelled(samples), tuple(folders)


def _find_originals(root: Path) -> dict[str, Path]:
    """The images by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder. {_LAYOUT}")
    folder = root / "images"
    images = find_images(folder) if folder.is_dir() else {}
    if not images:
        raise FileNotFoundError(f"{folder} is missing or holds no image files. {_LAYOUT}")
    return images


def _annotator_folders(
    root: Path, wanted: Sequence[str] | None, excluded: Sequence[str]
) -> dict[str, Path]:
    """Annotator name -> folder of masks, in the order wanted."""
    parent = root / "masks"
    folders: dict[str, Path] = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        name = composed(path.name)
        if path.name.startswith(".") or path.is_file() or not _is_there(path, Path.is_dir):
            continue
        if name in folders:
            raise ValueError(
                f"{path} and {folders[name]} have the same name {name!r}, with its accents "
                "written in two ways. Expected one folder an annotator: put them together."
            )
        folders[name] = path
    if not folders:
        raise FileNotFoundError(f"{parent} holds no annotators' folders. {_LAYOUT}")
    for argument, names in (("annotators", wanted or ()), ("exclude_annotators", excluded)):
        if unknown := [name for name in names if composed(name) not in folders]:
            raise ValueError(
                f"{argument}: {unknown[0]!r} is no folder of {parent}, expected one of "
                f"{', '.join(folders)}."
            )
    order = list(folders) if wanted is None else [composed(name) for name in wanted]
    left_out = {composed(name) for name in excluded}
    chosen = {name: folders[name] for name in order if name not in left_out}
    if not chosen:
        raise ValueError(
            f"annotators and exclude_annotators leave nobody of {', '.join(folders)}. Expected at "
            "least one annotator: shorten exclude_annotators."
        )
    return chosen


def _find_matching(folder: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    """The mask files of a folder by name, each of which must belong to an image."""
    files = find_images(folder)
    if not files:
        raise ValueError(
            f"{folder} holds no image files, expected at least one mask. Add the masks, or leave "
            f"{folder.name} out (exclude_annotators: [{folder.name}])."
        )
    for name, path in files.items():
        if name not in images:
            raise ValueError(
                f"{path} belongs to no image: none is named {name!r}.{_hint(name, images)} "
                "Expected the name of an image; rename the file or remove it."
            )
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and composed(path.stem) in images.keys() - files.keys():
            raise ValueError(
                f"{path} has the name of an image, but is no image file itself: the mask would "
                f"count as missing. Expected one of {', '.join(sorted(IMAGE_SUFFIXES))}: convert "
                "it, or move it away."
            )
    return files


def _is_there(path: Path, is_kind: Callable[[Path], bool]) -> bool:
    """Whether a part of the layout exists; what only looks like it is not passed over."""
    there = is_kind(path)
    if not there and os.path.lexists(path):
        raise ValueError(
            f"{path} is not what the layout has in its place, or a link that leads nowhere. Mend "
            f"it or remove it. {_LAYOUT}"
        )
    return there


def _metadata(root: Path) -> Metadata:
    """What the folder says about its annotators, also about those who are left out."""
    path = root / "annotators.csv"
    if not _is_there(path, Path.is_file):
        return {}
    return read_metadata(path, list(_annotator_folders(root, None, ())))


class _Row(NamedTuple):
    """What ``splits.csv`` says about an image."""

    split: str | None = None
    group: str = ""


def _read_splits(path: Path, images: Mapping[str, Path]) -> dict[str, _Row]:
    """One row an image; where there is no such file, rows that say nothing."""
    if not _is_there(path, Path.is_file):
        return dict.fromkeys(images, _Row())
    names_of_files = {composed(file.name): name for name, file in images.items()}
    rows: dict[str, _Row] = {}
    columns, lines = read_csv(path)
    _check_columns(path, columns)
    for line, cells in lines:
        given = composed(cells["name"])
        name = given if given in images else names_of_files.get(given)
        if name is None:
            raise ValueError(
                f"{path}, line {line}: there is no image named {given!r}.{_hint(given, images)} "
                "Expected the name of a file in images/; correct or remove the line."
            )
        if name in rows:
            raise ValueError(f"{path}, line {line}: {name!r} stands twice, expected it once.")
        split = cells.get("split") or None
        if split not in (None, *SPLITS):
            raise ValueError(
                f"{path}, line {line}: split {split!r}, expected one of {', '.join(SPLITS)}."
            )
        rows[name] = _Row(split, cells.get("group", ""))
    _check_complete(path, rows, images)
    return rows


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if "name" not in columns or not {"split", "group"} & set(columns):
        raise ValueError(
            f"{path} has the column(s) {', '.join(columns)}; expected name, and split or group or "
            "both, separated by commas in the first line."
        )


def _check_complete(path: Path, rows: Mapping[str, _Row], images: Iterable[str]) -> None:
    """Every image in the table, and a split for all of them or for none."""
    if missing := [name for name in images if name not in rows]:
        raise ValueError(
            f"{path} lacks {len(missing)} image(s) of images/, e.g. {missing[0]!r}. Add a line for "
            "each, or move the images away."
        )
    loose = [name for name, row in rows.items() if row.split is None]
    if 0 < len(loose) < len(rows):
        raise ValueError(
            f"{path} gives no split for {len(loose)} image(s), e.g. {loose[0]!r}. Write a split "
            "for every image, or for none to have them drawn by seed."
        )


def _groups(
    images: Mapping[str, Path], rows: Mapping[str, _Row], pattern: str | None
) -> dict[str, str]:
    """The group of every image, from the table or from its name."""
    if pattern is None:
        return {name: rows[name].group for name in images}
    if any(row.group for row in rows.values()):
        raise ValueError(
            "group_pattern is set although splits.csv has a column group: remove one of them."
        )
    expression = _compile(pattern)
    groups = {}
    for name in images:
        match = expression.search(name)
        if match is None or not match[1]:
            raise ValueError(
                f"group_pattern {pattern!r} finds no group in the image name {name!r}. Widen the "
                "pattern, or name the groups in splits.csv."
            )
        groups[name] = match[1]
    return groups


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern {pattern!r} is no regular expression: {error}.") from error
    if expression.groups != 1:
        raise ValueError(
            f"group_pattern {pattern!r} has {expression.groups} groups in parentheses, expected "
            "one, e.g. '(patient[0-9]+)_'."
        )
    return expression


def _labelled(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Leave out images that none of the annotators labelled: they teach nothing."""
    labelled = tuple(sample for sample in samples if sample.masks)
    if len(labelled) < len(samples):
        first = next(sample for sample in samples if not sample.masks)
        rank_zero_warn(
            f"{len(samples) - len(labelled)} image(s) without a mask of any annotator are left out,"
            f" e.g. {first.image}. To predict on such images, name their folder in predict_images."
        )
    return labelled


def _hint(name: str, images: Iterable[str]) -> str:
    """The image whose name comes closest."""
    originals = {image.lower(): image for image in images}
    close = get_close_matches(name.lower(), list(originals), n=1)
    return f" The nearest name is {originals[close[0]]!r}." if close else ""
