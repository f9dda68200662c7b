"""What is known of annotators beside their names: person, tool, skill, and groups by these."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

Metadata = Mapping[str, Mapping[str, str]]
"""Name of an annotator -> column -> value."""


def read_metadata(path: Path, known: Sequence[str]) -> dict[str, dict[str, str]]:
    r"""Read a table of annotators, such as ``annotators.csv``.

    Args:
        path: CSV file in UTF-8 with the column ``annotator`` and at least one more, such as
            ``person``, ``tool``, ``skill`` or ``group``. A cell may be empty.
        known: Names of the annotators of the data set, each of which has one line.

    Returns:
        Annotator -> column -> value.

    Raises:
        ValueError: If the file does not say this; the message names the line and the cure.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "annotators.csv")
        ...     _ = path.write_text("annotator,tool\nAnn,pen\nBob,mouse\n")
        ...     read_metadata(path, ["Ann", "Bob"])
        {'Ann': {'tool': 'pen'}, 'Bob': {'tool': 'mouse'}}
    """
    columns, rows = read_csv(path)
    if columns.count("annotator") != 1 or len(set(columns)) != len(columns) or len(columns) < 2:
        raise ValueError(
            f"{path} has the column(s) {', '.join(columns)}; expected annotator and at least one "
            "other, such as tool, each once, separated by commas in the first line."
        )
    if "" in columns:
        raise ValueError(f"{path}: column {columns.index('') + 1} has no name, expected one.")
    metadata: dict[str, dict[str, str]] = {}
    for line, row in rows:
        name = row.pop("annotator")
        if name not in known:
            raise ValueError(
                f"{path}, line {line}: there is no annotator {name!r}, expected one of "
                f"{', '.join(known)}. Correct or remove the line."
            )
        if name in metadata:
            raise ValueError(f"{path}, line {line}: {name!r} stands twice, expected it once.")
        metadata[name] = row
    if missing := [name for name in known if name not in metadata]:
        raise ValueError(
            f"{path} lacks {len(missing)} annotator(s), e.g. {missing[0]!r}. Add a line for each."
        )
    return metadata


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, in small letters, and its lines by their number.

    Raises:
        ValueError: If the file is not encoded in UTF-8, or no table.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line breaks within quotes stay as they are
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not encoded as expected ({error}). Save it as CSV in UTF-8."
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}). Save it as CSV in UTF-8."
        ) from error
    return columns, [
        (line, {key: composed((row[key] or "").strip()) for key in columns}) for line, row in rows
    ]


def composed(text: str) -> str:
    """Text in Unicode's composed form; some file systems store accents decomposed."""
    return unicodedata.normalize("NFC", text)


def groups_by(
    column: str | None, annotators: Sequence[str], metadata: Metadata
) -> dict[str, tuple[str, ...]]:
    """The groups of annotators that have the same value in a column.

    Args:
        column: Name of the column; None: no groups.
        annotators: Names, in their order.
        metadata: What is known of them.

    Returns:
        Column and value -> names of the annotators, in the order of the values' first appearance.

    Raises:
        ValueError: If there is no such column, or it says nothing about an annotator.

    Example:
        >>> tools = {"Ann": {"tool": "pen"}, "Bob": {"tool": "mouse"}, "Cem": {"tool": "pen"}}
        >>> groups_by("tool", ["Ann", "Bob", "Cem"], tools)
        {'tool pen': ('Ann', 'Cem'), 'tool mouse': ('Bob',)}
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in annotators if column is not None else ():
        value = metadata.get(name, {}).get(column or "")
        if not value:
            there = sorted({key for row in metadata.values() for key in row})
            raise ValueError(
                f"group_by={column!r}: nothing is known of {name} under this name. Expected a "
                f"value for every annotator under one of {', '.join(there) or 'no columns'}: name "
                "another column, or complete annotators.csv."
            )
        group = f"{column} {value}"
        groups[group] = (*groups.get(group, ()), name)
    return groups
