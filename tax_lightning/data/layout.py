"""Data sets in their official layout: folders and files found by name, joined into samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.data.files import IMAGE_SUFFIXES, File
from tax_lightning.data.samples import Sample


def find_folder(root: Path, *names: str) -> Path:
    """The folder of this name that holds image files, at whatever depth below the root.

    Archives are unpacked with or without a folder of their own, and some into two of one name.

    Args:
        root: The folder of the data set.
        names: Spellings of the folder's name that are in circulation.

    Raises:
        FileNotFoundError: If there is no such folder with image files.
        ValueError: If there are several.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder. Expected the folder of the data set.")
    found = sorted({path for name in names for path in (root, *root.rglob(name))})
    found = [path for path in found if path.name in names and _holds_images(path)]
    if not found:
        raise FileNotFoundError(
            f"{root} has no folder {' or '.join(names)} with image files, at whatever depth. "
            "Unpack that part of the data set there."
        )
    if len(found) > 1:
        raise ValueError(
            f"{root} has two folders of one kind, {found[0]} and {found[1]}. Expected one: move "
            "the other away, or set root to the folder around the right one."
        )
    return found[0]


def match_files(folder: Path, pattern: str, example: str) -> list[tuple[tuple[str, ...], Path]]:
    """What the names of a folder's image files say, sorted by name.

    Hidden files and files of other kinds are passed over.

    Args:
        folder: The folder; sub-folders are not searched.
        pattern: Regular expression of the whole name without its extension, in any case.
        example: A right name, for the message.

    Returns:
        The groups of the expression and the file, for every image file.

    Raises:
        ValueError: If the name of an image file is of another form.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected one with files like {example}.")
    found = []
    for path in sorted(folder.iterdir()):
        if _is_image(path):
            match = re.fullmatch(pattern, _stem(path), re.IGNORECASE)
            if match is None:
                raise ValueError(
                    f"{path} is named as no file of this data set, expected a name like {example}. "
                    "Rename the file or move it away."
                )
            found.append((tuple(group or "" for group in match.groups()), path))
    return found


def by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by name, each of which may stand once.

    Args:
        files: Names and files.

    Raises:
        ValueError: If two files have one name.
    """
    found: dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise ValueError(
                f"{found[name]} and {path} are both {name}, expected one file. Move one of them "
                "away."
            )
        found[name] = path
    return found


def join_samples(
    images: Mapping[str, Path],
    masks: Mapping[str, Mapping[str, File]],
    groups: Mapping[str, str] | None = None,
) -> tuple[Sample, ...]:
    """The samples of images and masks by name; images that nobody labelled are left out aloud.

    Args:
        images: Name -> image.
        masks: Annotator -> name of an image -> mask.
        groups: Name -> patient, slide or scan. None: every image stands alone.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If a mask belongs to no image, or an annotator has no mask.

    Example:
        >>> a, b, mask = Path("a.png"), Path("b.png"), Path("m/a.png")
        >>> join_samples({"a": a}, {"Ann": {"a": mask}})[0].masks["Ann"].name
        'a.png'
    """
    if not images:
        raise FileNotFoundError(
            "The folder holds no images of this data set. Expected root to be the folder that is "
            "described in the class."
        )
    for annotator, files in masks.items():
        if not files:
            raise ValueError(
                f"{annotator} has no mask, expected at least one. Unpack the part of the data set "
                "with these masks."
            )
        if stray := [name for name in files if name not in images]:
            raise ValueError(
                f"{files[stray[0]]} belongs to no image: none is named {stray[0]!r}. Add the "
                "image, or move the mask away."
            )
    samples = []
    for name, image in images.items():
        own = {annotator: files[name] for annotator, files in masks.items() if name in files}
        samples.append(Sample(name, image, own, group=groups[name] if groups else ""))
    if loose := [sample for sample in samples if not sample.masks]:
        rank_zero_warn(
            f"{len(loose)} image(s) without a mask of any annotator are left out, e.g. "
            f"{loose[0].image}."
        )
    return tuple(sample for sample in samples if sample.masks)


def choose_annotators(wanted: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The annotators to use.

    Args:
        wanted: Some of the known ones, in any order; None: all.
        known: Those of the data set.

    Raises:
        ValueError: If somebody is not known.
    """
    if unknown := [name for name in wanted or () if name not in known]:
        raise ValueError(
            f"annotators: {unknown[0]!r} is nobody of this data set, expected some of "
            f"{', '.join(known)}."
        )
    return tuple(known if wanted is None else wanted)


def _stem(path: Path) -> str:
    """The name without its extension, and without ``.gz`` behind that."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    return Path(name).stem


def _is_image(path: Path) -> bool:
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _holds_images(path: Path) -> bool:
    return (
        path.is_dir() and "__MACOSX" not in path.parts and any(_is_image(p) for p in path.iterdir())
    )
