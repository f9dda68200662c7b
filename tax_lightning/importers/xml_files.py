"""XML files of foreign tools, read without what can grow beyond any memory."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of a file.

    Raises:
        ValueError: If it is no XML, or declares entities, by which a small file can become huge.
    """
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError(f"{path} declares a document type or entities, which are not read.")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as XML: {error}.") from error
