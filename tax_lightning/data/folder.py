"""Images and masks of several annotators in a folder: the one format, and other layouts."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.description import FILE, Description, check_range
from tax_lightning.data.labels import IGNORE_NAME, value_texts
from tax_lightning.data.layouts import (
    Listed,
    Row,
    from_csv,
    from_patterns,
    nearest,
    read_samples,
    with_groups,
)
from tax_lightning.data.metadata import Metadata, composed, read_metadata
from tax_lightning.data.pixels import IMAGE_SUFFIXES, Pictures, find_images
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.table import TableDataModule
from tax_lightning.files import name_of

_LAYOUT = """Expected this layout:
    images/NAME.png
    masks/ANNOTATOR/NAME.png   (a missing file: this annotator did not label that image)
    reference/NAME.png         (optional)
    samples.csv                (optional; columns name, split, group, ...)
    annotators.csv             (optional; columns annotator, person, tool, ...)
For files that lie otherwise give the patterns `images` and `masks`, or a `table`; for what an
annotation tool or a published data set holds, run `tax import`."""
_LOOKED_AT = 20  # masks whose values are listed where classes are missing
_MOST_VALUES = 16  # of class masks; more are grey pictures


class FolderDataModule(TableDataModule):
    """Images and masks in folders, joined by their file names.

    ::

        dataset.yaml
        images/NAME.png
        masks/ANNOTATOR/NAME.png
        reference/NAME.png
        samples.csv
        annotators.csv

    This is what ``tax import`` writes. ``dataset.yaml`` names classes, channels and intensity
    range, which are then no arguments here. Without it the same folders serve as they are.

    The annotators are the sub-folders of ``masks``. A missing mask means that the annotator did not
    label that image; an empty mask means that there is nothing to see in it. ``samples.csv`` has
    the column ``name`` and may have ``split`` (train, val or test) and ``group`` (patient, slide or
    scan); without ``split`` the splits are drawn by seed with every group kept whole. Endings of
    files need not agree. ``annotators.csv`` has the column ``annotator`` and any others, such as
    ``person``, ``tool`` or ``skill``, by which tables can be read (``group_by``).

    Args:
        root: The folder.
        classes: Names of the classes; the index is the class id and the first is the background.
            None: those of ``dataset.yaml``.
        mask_values: Grey value in the mask files, or colour such as ``"255,0,0"``, -> class name or
            ``"ignore"``. None: the values are class ids. A 1-bit file's white is 255 where that
            value is listed, and 1 otherwise.
        channels: Channels of an image: grey files become RGB for 3, colour files grey for 1. None:
            those of ``dataset.yaml``, else 3.
        intensity_range: The values of an image that mean black and white, such as ``[0, 4095]`` for
            12 bits or ``[-1000, 400]`` for CT; what lies beyond is cut. None: that of
            ``dataset.yaml``, else 255 or 65535 by the kind of the file.
        images: Pattern of images in another layout, such as ``"{name}/image.png"``, see
            `tax_lightning.data.layouts.from_patterns`.
        masks: Pattern of masks, such as ``"{name}/annotator_{annotator}.png"``.
        reference: Pattern of references.
        table: CSV file below the folder that names images, annotators and masks, see
            `tax_lightning.data.layouts.from_csv`; in place of the patterns.
        annotators: Names of the annotators to use, in this order. None: all, sorted by name.
        exclude_annotators: Names of annotators to leave out.
        group_pattern: Regular expression with one group, searched in the image names, that yields
            the patient, slide or scan, e.g. ``"(patient[0-9]+)_"``; instead of a column ``group``.
        persons: Whether the masks of a folder are all by the same person. If not, tables, pages and
            panels say that names mean nothing. None: as ``dataset.yaml`` says, else yes.
        kwargs: The options of `TableDataModule`, from ``predict_images`` on, and the loading
            options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        FileNotFoundError: If the folder, its images or its masks are missing.
        ValueError: If names do not match each other, or classes are missing; the message names the
            file and the cure.

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
        classes: Sequence[str] | int | None = None,
        mask_values: Mapping[int | str, str] | None = None,
        channels: int | None = None,
        intensity_range: tuple[float, float] | None = None,
        images: str | None = None,
        masks: str | None = None,
        reference: str | None = None,
        table: str | None = None,
        annotators: Sequence[str] | None = None,
        exclude_annotators: Sequence[str] = (),
        group_pattern: str | None = None,
        persons: bool | None = None,
        **kwargs: Any,  # noqa: ANN401 - the parent classes type them
    ) -> None:
        if isinstance(classes, int):
            raise ValueError(
                f"classes: {classes} is a number, expected the names of at least 2 classes, the "
                "background first, e.g. [background, cell]."
            )
        root = Path(root)
        said = None if images or table else Description.read(root)
        listed = _listed(root, images, masks, reference, table, said, exclude_annotators)
        samples, names = _chosen(listed, annotators, exclude_annotators)
        if group_pattern is not None:
            samples = with_groups(samples, group_pattern)
        if said is not None and classes is None:
            classes = said.classes
            mask_values = {**dict(enumerate(said.classes)), IGNORE_INDEX: IGNORE_NAME}
        if classes is None:
            raise ValueError(_proposal(samples))
        if said is not None:
            channels = len(said.channels) if channels is None else channels
            intensity_range = intensity_range or said.intensity_range
        if intensity_range is not None:
            intensity_range = check_range(intensity_range)
        white = 255 if mask_values is not None and 255 in mask_values and said is None else 1
        pictures = Pictures(3 if channels is None else channels, intensity_range, white)
        meaning = SampleTable(samples, names, tuple(classes), mask_values, pictures)
        metadata = kwargs.pop("metadata", None) or _metadata(root, listed[1])
        super().__init__(meaning, metadata=metadata, **kwargs)
        self.persons = persons if persons is not None else said is None or said.persons


def _listed(
    root: Path,
    images: str | None,
    masks: str | None,
    reference: str | None,
    table: str | None,
    said: Description | None,
    excluded: Sequence[str],
) -> Listed:
    """The samples, by the layout that the arguments name."""
    if (images is None) != (masks is None) or (table is not None and images is not None):
        raise ValueError(
            f"images={images!r}, masks={masks!r}, table={table!r}: expected both patterns, or a "
            "table, or none of them."
        )
    if table is not None:
        return from_csv(root, Path(table))
    if images is not None and masks is not None:
        return from_patterns(root, images, masks, reference)
    return read_folder(root, said, excluded)


def read_folder(
    root: Path, said: Description | None = None, excluded: Sequence[str] = ()
) -> Listed:
    """List the samples of a folder in the layout of `FolderDataModule`.

    Args:
        root: The folder.
        said: What its ``dataset.yaml`` says, if there is one.
        excluded: Names of annotators whose masks are not looked at.

    Returns:
        The samples, and the annotators' names.

    Raises:
        FileNotFoundError: If the folder, its images or its masks are missing.
        ValueError: If names do not match each other.
    """
    images = _find_originals(root)
    folders = _annotator_folders(root / "masks")
    masks = {
        name: _find_matching(folder, images)
        for name, folder in folders.items()
        if name not in map(composed, excluded)
    }
    others = {
        kind: _find_matching(root / kind, images) if _is_there(root / kind, Path.is_dir) else {}
        for kind in ("reference", "owner")
    }
    named = (lambda file: composed(name_of(file))) if said is not None else str
    rows = _read_rows(root, {named(name): file for name, file in images.items()})
    samples = tuple(
        Sample(
            id=named(name),
            image=image,
            masks={named(a): files[name] for a, files in masks.items() if name in files},
            reference=others["reference"].get(name),
            group=rows[named(name)].group,
            split=rows[named(name)].split,
            owner=others["owner"].get(name),
            facts=rows[named(name)].facts,
        )
        for name, image in images.items()
    )
    return samples, tuple(map(named, folders))


def _read_rows(root: Path, images: Mapping[str, Path]) -> Mapping[str, Row]:
    """What ``samples.csv`` says; rows that say nothing where there is no such file."""
    if (root / "splits.csv").exists():
        raise ValueError(f"{root / 'splits.csv'}: this file is called samples.csv now: rename it.")
    path = root / "samples.csv"
    if not _is_there(path, Path.is_file):
        return dict.fromkeys(images, Row())
    return read_samples(path, images)


def _find_originals(root: Path) -> dict[str, Path]:
    """The images by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder. {_LAYOUT}")
    if (root / "samples.csv.part").exists():
        raise ValueError(
            f"{root} is an import that was interrupted. Run the same `tax import` again: it goes "
            "on where it ended."
        )
    folder = root / "images"
    images = find_images(folder) if folder.is_dir() else {}
    if not images:
        raise FileNotFoundError(f"{folder} is missing or holds no image files. {_LAYOUT}")
    return images


def _annotator_folders(parent: Path) -> dict[str, Path]:
    """Annotator name -> folder of masks."""
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
    return folders


def _find_matching(folder: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    """The mask files of a folder by name, each of which must belong to an image."""
    files = find_images(folder)
    if not files:
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        cure = (
            f"Its folder {inner[0].name} is not searched: name where masks lie by the patterns "
            '`images` and `masks`, e.g. masks: "masks/{annotator}/{group}/{name}.png".'
            if inner
            else f"Add the masks, or leave {folder.name} out (exclude_annotators: "
            f"[{folder.name}]). Arrays and exports of tools need `tax import` first."
        )
        raise ValueError(f"{folder} holds no image files, expected at least one mask. {cure}")
    for name, path in files.items():
        if name not in images:
            raise ValueError(
                f"{path} belongs to no image: none is named {name!r}.{nearest(name, images)} "
                "Expected the name of an image; rename the file or remove it."
            )
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and composed(path.stem) in images.keys() - files.keys():
            raise ValueError(
                f"{path} has the name of an image, but is no image file itself: the mask would "
                f"count as missing. Expected one of {', '.join(sorted(IMAGE_SUFFIXES))}: convert "
                "it (`tax import arrays` for .npy, .npz and .mat), or move it away."
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


def _metadata(root: Path, known: Sequence[str]) -> Metadata:
    """What the folder says about its annotators, also about those who are left out."""
    path = root / "annotators.csv"
    return read_metadata(path, known) if _is_there(path, Path.is_file) else {}


def _chosen(listed: Listed, wanted: Sequence[str] | None, excluded: Sequence[str]) -> Listed:
    """The samples that somebody of those wanted labelled, and these names in the order wanted."""
    samples, known = listed
    for argument, names in (("annotators", wanted or ()), ("exclude_annotators", excluded)):
        if unknown := [name for name in names if composed(name) not in known]:
            raise ValueError(
                f"{argument}: {unknown[0]!r} drew none of the masks, expected one of "
                f"{', '.join(known)}."
            )
    left_out = {composed(name) for name in excluded}
    order = known if wanted is None else [composed(name) for name in wanted]
    chosen = tuple(name for name in order if name not in left_out)
    if not chosen:
        raise ValueError(
            f"annotators and exclude_annotators leave nobody of {', '.join(known)}. Expected at "
            "least one annotator: shorten exclude_annotators."
        )
    own = tuple(
        replace(sample, masks={n: f for n, f in sample.masks.items() if n in chosen})
        for sample in samples
    )
    return _labelled(own), chosen


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


def _proposal(samples: Sequence[Sample]) -> str:
    """What to write where nothing says what the values of the masks mean."""
    files = [file for sample in samples for file in sample.mask_files]
    looked_at = files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]
    values = Counter(v for file in looked_at for v in value_texts(Pictures().mask(file)))
    looked = f"{len(looked_at)} of {len(files)} masks were looked at"
    if len(values) > _MOST_VALUES:
        return (
            f"classes is missing, and the masks hold {len(values)} values ({looked}): they are no "
            "masks of classes, or were saved as JPEG. Save them as PNG with one value a class."
        )
    order = sorted(values, key=lambda text: (-values[text], len(text), text))
    names = ["background", *(f"class{i}" for i in range(1, len(order)))]
    lines = [f"  {value}: {name}" for value, name in zip(order, names, strict=True)]
    return "\n".join(
        [
            f"classes is missing, and there is no {FILE}. The masks hold the value(s) "
            f"{', '.join(order)} ({looked}). If the first is the background, write, with names of "
            "your own:",
            f"classes: [{', '.join(names if len(names) > 1 else [*names, 'object'])}]",
            "mask_values:",
            *lines,
        ]
    )
