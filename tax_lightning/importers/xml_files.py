"""XML files of foreign tools, read without what can grow beyond any memory."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of a file.

    Raises:
        ValueError: If it is no XML, or declares entities, by which a small file can become huge.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # in other encodings they would be overlooked
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8, in which tools write XML: {error}.") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type or entities, which are not read.")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as XML: {error}.") from error
