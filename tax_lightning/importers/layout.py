"""Published data sets: folders and files found by name, joined into cases."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tax_lightning.data.labels import MaskValues, labels_from_values
from tax_lightning.data.pixels import IMAGE_SUFFIXES, read_mask
from tax_lightning.importers.cases import Case, Labels, Pixels


def find_folder(root: Path, *names: str) -> Path:
    """The folder of this name that holds image files, at whatever depth below the root.

    Archives are unpacked with or without a folder of their own, and some into two of one name.

    Args:
        root: The folder of the data set.
        names: Spellings of the folder's name that are in circulation.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected the folder of the data set.")
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
            "the other away, or name the folder around the right one."
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
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected one with files like {example}.")
    found = []
    for path in sorted(folder.iterdir()):
        if is_image(path):
            match = re.fullmatch(pattern, Path(_unpacked(path)).stem, re.IGNORECASE)
            if match is None:
                raise ValueError(
                    f"{path} is named as no file of this data set, expected a name like {example}. "
                    "Rename the file or move it away."
                )
            found.append((tuple(group or "" for group in match.groups()), path))
    return found


def by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by name, each of which may stand once."""
    found: dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise ValueError(
                f"{found[name]} and {path} are both {name}, expected one file. Move one of them "
                "away."
            )
        found[name] = path
    return found


def by_pattern(folder: Path, pattern: str, example: str) -> dict[str, Path]:
    """The image files of a folder by the one group of the pattern; see :func:`match_files`."""
    return by_name((groups[0], path) for groups, path in match_files(folder, pattern, example))


def is_image(path: Path) -> bool:
    """Whether this is named as an image file, which may be packed as ``.gz``, and is not hidden."""
    return not path.name.startswith(".") and Path(_unpacked(path)).suffix.lower() in IMAGE_SUFFIXES


def join_cases(
    images: Mapping[str, Path],
    masks: Mapping[str, Mapping[str, Path]],
    read: Callable[[str, Path], Labels],
    groups: Mapping[str, str] | None = None,
    show: Callable[[Path], Path | Callable[[], Pixels]] = lambda path: path,
) -> tuple[list[Case], list[str]]:
    """The cases of images and masks by name, and what is to be said of images without a mask.

    Args:
        images: Name -> image.
        masks: Annotator -> name of an image -> mask.
        read: Gives the class ids of a mask, from the name of its image and its file.
        groups: Name -> patient, slide or scan. None: every image stands alone.
        show: Gives the image of a case from its file.

    Example:
        >>> a, b, mask = Path("a.png"), Path("b.png"), Path("m/a.png")
        >>> zeros = lambda name, path: np.zeros((4, 4), np.uint8)
        >>> cases, left_out = join_cases({"a": a, "b": b}, {"Ann": {"a": mask}}, zeros)
        >>> [case.name for case in cases], left_out
        (['a'], ['1 image(s) without a mask of any annotator, e.g. b.png.'])
    """
    if not images:
        raise FileNotFoundError("The folder holds no images of this data set: name another folder.")
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
    cases, loose = [], []
    for name, image in images.items():
        own = {
            annotator: partial(read, name, files[name])
            for annotator, files in masks.items()
            if name in files
        }
        if own:
            cases.append(Case(name, show(image), own, group=groups[name] if groups else ""))
        else:
            loose.append(image)
    said = f"{len(loose)} image(s) without a mask of any annotator, e.g. {{}}."
    return cases, [said.format(loose[0])] if loose else []


def read_labels(path: Path, classes: Sequence[str], values: MaskValues) -> Labels:
    """Class ids of a grey, palette or 1-bit mask file, whose white is 255."""
    return labels_from_values(read_mask(path), classes, values, path, cure="unpack the file anew")


def _unpacked(path: Path) -> str:
    return path.name[:-3] if path.suffix.lower() == ".gz" else path.name


def _holds_images(path: Path) -> bool:
    return (
        path.is_dir() and "__MACOSX" not in path.parts and any(is_image(p) for p in path.iterdir())
    )
