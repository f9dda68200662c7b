"""Ways in which images and masks lie on disk, each listed as a table of samples."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from tax_lightning.data.metadata import composed, read_csv
from tax_lightning.data.pixels import IMAGE_SUFFIXES
from tax_lightning.data.samples import Sample
from tax_lightning.data.splits import SPLITS

Listed = tuple[tuple[Sample, ...], tuple[str, ...]]
"""Samples, and the names of the annotators in order."""

_Key = tuple[str, str, str]  # group, name, annotator
_FIELDS = {"name", "annotator", "group"}
_FIELD = re.compile(r"\{(\w*)\}|(\*)")


def from_patterns(
    root: Path,
    images: str,
    masks: str,
    reference: str | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
) -> Listed:
    """List files whose paths follow patterns.

    A pattern is a path below the folder with ``{name}`` where the image's name stands, and in that
    of the masks ``{annotator}``; ``{group}`` may stand for a patient, slide or scan, and ``*`` for
    any text. None of them spans folders. An image is then called by its name, or by group and name.

    Args:
        root: The folder.
        images: Pattern of images, such as ``"{name}/image.png"``.
        masks: Pattern of masks, such as ``"{name}/annotator_{annotator}.png"``.
        reference: Pattern of references; None: there are none.
        suffixes: Last endings of the files, in small letters.

    Raises:
        FileNotFoundError: If the folder, or files of a pattern, are missing.
        ValueError: If a pattern lacks a field, two files stand for the same, or a mask belongs to
            no image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for file in ("a.png", "a_Ann.png", "a_Bob.png"):
        ...         Path(root, file).touch()
        ...     samples, names = from_patterns(Path(root), "{name}.png", "{name}_{annotator}.png")
        >>> samples[0].id, names
        ('a', ('Ann', 'Bob'))
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is no folder, expected the one around the images.")
    _check_pattern("images", images, {"name"}, {"name", "group"})
    _check_pattern("masks", masks, {"name", "annotator"}, _FIELDS)
    if reference is not None:
        _check_pattern("reference", reference, {"name"}, {"name", "group"})
    files = sorted(_files_below(root, Path(), suffixes))
    found = _by_key("images", images, files)
    drawn = _by_key("masks", masks, files, found)
    found = {key: file for key, file in found.items() if file not in set(drawn.values())}
    for argument, pattern, there in (("images", images, found), ("masks", masks, drawn)):
        if not there:
            raise FileNotFoundError(
                f"{argument}: no file below {root} is named as {pattern!r}. There are "
                f"{', '.join(map(str, files[:3])) or 'no files at all'}. Correct the pattern."
            )
    truth = {} if reference is None else _by_key("reference", reference, files, found)
    masks_of: dict[_Key, dict[str, Path]] = defaultdict(dict)
    for (group, name, annotator), file in drawn.items():
        if (group, name, "") not in found:
            raise ValueError(
                f"{root / file} is by {annotator} of {name!r}, but no image of that name is there."
                f"{nearest(name, [name for _, name, _ in found])} Add the image, or correct the "
                "patterns."
            )
        masks_of[group, name, ""][annotator] = root / file
    samples = tuple(
        Sample(
            id=f"{key[0]}/{key[1]}" if key[0] else key[1],
            image=root / file,
            masks=masks_of[key],
            reference=root / truth[key] if key in truth else None,
            group=key[0],
        )
        for key, file in found.items()
    )
    return samples, tuple(sorted({annotator for _, _, annotator in drawn}))


def _files_below(folder: Path, below: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Files with these endings at any depth, as paths below the folder, without hidden ones."""
    for path in (folder / below).iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(folder, below / path.name, suffixes)
        elif path.suffix.lower() in suffixes:
            yield below / path.name


def _check_pattern(argument: str, pattern: str, needed: set[str], allowed: set[str]) -> None:
    there = {match[1] for match in _FIELD.finditer(pattern) if match[2] is None}
    if needed - there or there - allowed:
        fields = ", ".join(f"{{{name}}}" for name in sorted(needed))
        raise ValueError(
            f"{argument}: the pattern {pattern!r} has {', '.join(sorted(there)) or 'no fields'}, "
            f"expected {fields}" + (" and perhaps {group}." if "group" in allowed else ".")
        )


def _by_key(
    argument: str, pattern: str, files: Iterable[Path], images: Mapping[_Key, Path] | None = None
) -> dict[_Key, Path]:
    """The files that fit a pattern, by group, name and annotator.

    ``{name}_{annotator}`` can be cut in several ways where both hold ``_``: the known images
    decide, the longest name first. A file that is itself a known image is left to be one, unless it
    fits another image.
    """
    lengths = sorted({len(name) for _, name, _ in images or ()}, reverse=True)
    ways = [_expression(pattern, size) for size in ([f"{{{length}}}" for length in lengths] or "+")]
    found: dict[_Key, Path] = {}
    for file in files:
        matches = [way.fullmatch(composed(file.as_posix())) for way in ways]
        keys = [_key(match) for match in matches if match is not None]
        if images is not None and not keys:  # of an image that is not there
            match = _expression(pattern, "+").fullmatch(composed(file.as_posix()))
            keys = [] if match is None else [_key(match)]
        if images is not None:
            of = {key: images.get((*key[:2], "")) for key in keys}
            fitting = [key for key in keys if of[key] not in (None, file)]
            keys = fitting or ([] if file in images.values() else keys)
        if not keys:
            continue
        if keys[0] in found:
            raise ValueError(
                f"{argument}: {found[keys[0]]} and {file} both stand for "
                f"{' '.join(keys[0]).strip()!r} by the pattern {pattern!r}. Expected one: add "
                "{group}, or move one away."
            )
        found[keys[0]] = file
    return found


def _key(match: re.Match[str]) -> _Key:
    fields = match.groupdict()
    return fields.get("group") or "", fields["name"], fields.get("annotator") or ""


def _expression(pattern: str, size_of_name: str) -> re.Pattern[str]:
    """The pattern as a regular expression of a path; a field that stands again is the same text."""
    parts, at, seen = [], 0, set()
    for match in _FIELD.finditer(pattern):
        parts.append(re.escape(pattern[at : match.start()]))
        at = match.end()
        if match[2]:
            parts.append("[^/]*")
        elif match[1] in seen:
            parts.append(f"(?P={match[1]})")
        else:
            many = size_of_name if match[1] == "name" else "+"
            parts.append(f"(?P<{match[1]}>[^/]{many})")
            seen.add(match[1])
    return re.compile("".join(parts) + re.escape(pattern[at:]))


def from_csv(root: Path, table: Path) -> Listed:
    """List the files that a CSV table names.

    The table has the columns ``image``, ``annotator`` and ``mask``, a row for each mask; paths are
    below the folder. ``name``, ``group``, ``split`` and ``reference`` may be further columns.
    An image whose row has no annotator is there without masks.

    Args:
        root: The folder.
        table: The file; a path below the folder.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the table does not say this; the message names the line.
    """
    path = root / table
    if not path.is_file():
        raise FileNotFoundError(f"table: {path} is no file, expected a CSV table of masks.")
    columns, rows = read_csv(path)
    if missing := {"image", "annotator", "mask"} - set(columns):
        raise ValueError(
            f"{path} has the column(s) {', '.join(columns)}; expected image, annotator and mask, "
            f"but {', '.join(sorted(missing))} is not there. Name the columns in the first line."
        )
    samples: dict[str, Sample] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        image = _there(root, row["image"], where)
        name = row.get("name") or image.stem
        reference = _there(root, row["reference"], where) if row.get("reference") else None
        new = Sample(name, image, {}, reference, row.get("group", ""), row.get("split") or None)
        sample = samples.setdefault(name, new)
        if replace(sample, masks={}) != new:
            raise ValueError(
                f"{where}: {name!r} has another image, group, split or reference than in a line "
                "before. Expected the same, or another name in a column name."
            )
        if not row["annotator"]:
            continue
        if row["annotator"] in sample.masks:
            raise ValueError(f"{where}: {row['annotator']} stands twice for {name!r}.")
        mask = _there(root, row["mask"], where)
        samples[name] = replace(sample, masks={**sample.masks, row["annotator"]: mask})
    found = tuple(samples.values())
    if len({sample.image for sample in found}) < len(found):
        double, _ = Counter(sample.image for sample in found).most_common(1)[0]
        raise ValueError(f"{path}: the image {double} has two names, expected one.")
    return found, tuple(sorted({name for sample in found for name in sample.masks}))


def _there(root: Path, text: str, where: str) -> Path:
    path = root / text
    if not text or not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {text!r} below {root}.")
    return path


class Row(NamedTuple):
    """What ``samples.csv`` says about an image."""

    split: str | None = None
    group: str = ""
    facts: Mapping[str, str] = {}


def read_samples(path: Path, images: Mapping[str, Path]) -> dict[str, Row]:
    """Read ``samples.csv``: a row for each image.

    Args:
        path: The file, with the column ``name`` and others, such as ``split`` and ``group``.
        images: Name -> file of every image.

    Raises:
        ValueError: If the file does not say this; the message names the line and the cure.
    """
    names_of_files = {composed(file.name): name for name, file in images.items()}
    rows: dict[str, Row] = {}
    columns, lines = read_csv(path)
    if "name" not in columns:
        raise ValueError(
            f"{path} has the column(s) {', '.join(columns)}; expected name, and others such as "
            "split or group, separated by commas in the first line."
        )
    for line, cells in lines:
        given = cells.pop("name")
        name = given if given in images else names_of_files.get(given)
        if name is None:
            raise ValueError(
                f"{path}, line {line}: there is no image named {given!r}.{nearest(given, images)} "
                "Expected the name of a file in images/; correct or remove the line."
            )
        if name in rows:
            raise ValueError(f"{path}, line {line}: {name!r} stands twice, expected it once.")
        split = cells.pop("split", "") or None
        if split not in (None, *SPLITS):
            raise ValueError(
                f"{path}, line {line}: split {split!r}, expected one of {', '.join(SPLITS)}."
            )
        rows[name] = Row(split, cells.pop("group", ""), {k: v for k, v in cells.items() if v})
    _check_complete(path, rows, images)
    return rows


def _check_complete(path: Path, rows: Mapping[str, Row], images: Iterable[str]) -> None:
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


def with_groups(samples: Sequence[Sample], pattern: str) -> tuple[Sample, ...]:
    """The samples with groups from a regular expression that is searched in their names.

    Raises:
        ValueError: If there are groups already, or the expression finds none.
    """
    if any(sample.group for sample in samples):
        raise ValueError("group_pattern is set although the data name groups: remove one of them.")
    expression = _compiled(pattern)
    grouped = []
    for sample in samples:
        match = expression.search(sample.id)
        if match is None or not match[1]:
            raise ValueError(
                f"group_pattern {pattern!r} finds no group in the image name {sample.id!r}. Widen "
                "the pattern, or name the groups in samples.csv."
            )
        grouped.append(replace(sample, group=match[1]))
    return tuple(grouped)


def _compiled(pattern: str) -> re.Pattern[str]:
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


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence with the name that comes closest, or nothing."""
    originals = {known.lower(): known for known in names}
    close = get_close_matches(name.lower(), list(originals), n=1)
    return f" The nearest name is {originals[close[0]]!r}." if close else ""
