"""Arguments of a command: a parser whose errors are short, and how arguments are parted."""

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

_LINES, _WIDTH, _NAMES, _LISTED = 8, 290, 12, 180


class ShortErrorParser(ArgumentParser):
    """A parser that says in at most ten lines what is wrong and what exists.

    A key that is cut short is wrong too: ``--trainer.max_epoch`` is a slip, not ``max_epochs``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the parent
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments with the short form of the parser's message."""
        super().error(shortened(message, self._known()), ex)

    def _known(self) -> list[str]:
        return [
            action.dest for action in self._actions if action.dest not in ("help", "subcommand")
        ]


def split_off(prefixes: Sequence[str], args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options that begin with one of the prefixes, with their values; the other arguments.

    Example:
        >>> split_off(["--data"], ["--data.root", "a", "--images", "b", "c", "--data=D"])
        (['--data.root', 'a', '--data=D'], ['--images', 'b', 'c'])
    """
    taken: list[str] = []
    others: list[str] = []
    into = others
    for text in args:
        if text.startswith("--"):
            into = taken if text.startswith(tuple(prefixes)) else others
        into.append(text)
    return taken, others


def values_of(option: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of an option in their order, and the other arguments."""
    parser = argparse.ArgumentParser("tax", add_help=False, allow_abbrev=False)
    parser.add_argument(option, action="append", default=[], dest="values")
    known, others = parser.parse_known_args(args)
    return known.values, others


def shortened(message: str, keys: Iterable[str] = ()) -> str:
    """The short form of an error of jsonargparse.

    Args:
        message: what jsonargparse says.
        keys: the keys that the parser knows.

    Example:
        >>> print(shortened("unrecognized arguments: --seed=3", ["seeds"]))
        seed is unknown. Did you mean seeds?
        >>> print(shortened("argument: invalid choice: 'fti' (choose from 'fit', 'test')"))
        'fti' is unknown, expected one of: fit, test. Did you mean fit?
    """
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return unknown_name(repr(found[1]), found[1], re.findall(r"[\w-]+", found[2]))
    if found := re.search(r"unrecognized arguments: -*([^\s=]+)", message):
        return unknown_name(found[1], found[1], keys, listed=False)
    place = re.search(r"Parser key \"([^\"]+)\"", message)
    key = place[1] if place else ""
    found = re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message) or (
        re.search(r"class_path '([^']+)':\s.*?Key '([^']+)' is not expected", message, re.DOTALL)
    )
    if found:
        return unknown_name(f"{key}: {found[2]}", found[2], _parameters(found[1]), of=found[1])
    if found := re.search(
        r"class_path '([^']+)':\s+the following arguments are required: (.*)", message
    ):
        return f"{key}.init_args: {found[2]} missing, required by {found[1].rpartition('.')[2]}."
    if found := re.search(
        r"[Kk]ey '([^']+)' is not expected|does not accept option '([^']+)'", message
    ):
        name = found[1] or found[2]
        return unknown_name(name, name, keys, listed=False)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return unknown_name(f"{key}: {found[1]!r}", found[1], _classes(message))
    return _plain(message)


def unknown_name(
    what: str, name: str, known: Iterable[str], listed: bool = True, of: str = ""
) -> str:
    """Say that a name is unknown, what exists, and what is nearest.

    Args:
        what: the beginning of the message.
        name: what was written.
        known: what exists.
        listed: whether to list what exists.
        of: what it exists in.

    Example:
        >>> unknown_name("model: 'kernles'", "kernles", ["kernels"])
        "model: 'kernles' is unknown, expected one of: kernels. Did you mean kernels?"
    """
    names = sorted(set(known))
    near = get_close_matches(name, names, 1, 0.6)
    if not near:  # a short key may be meant that is spelt right at its end
        ends = {full.rpartition(".")[2]: full for full in names}
        near = [ends[end] for end in get_close_matches(name.rpartition(".")[2], ends, 1, 0.7)]
    text = f"{what} is unknown"
    if listed and names:
        shown = get_close_matches(name, names, _NAMES, 0.0) if len(names) > _NAMES else names
        while len(shown) > 1 and sum(map(len, (what, of, *shown))) > _LISTED:
            shown = shown[:-1]
        more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        text += f"{f' to {of}' if of else ''}, expected one of: {', '.join(shown)}{more}"
    return f"{text}." + (f" Did you mean {near[0]}?" if near else "")


def _plain(message: str) -> str:
    """Any other message without what only the parser's authors can read."""
    dropped = r"\s*(Subtypes:|Given value type:|Errors:|Does not validate against any)"
    lines = [line for line in message.splitlines() if line.strip()]
    kept = [
        re.sub(r"Namespace\(.*", "a section", line) for line in lines if not re.match(dropped, line)
    ]
    unique = list(dict.fromkeys(kept))
    return "\n".join(
        line if len(line) <= _WIDTH else f"{line[:_WIDTH]} ..." for line in unique[:_LINES]
    )


def _parameters(class_path: str) -> list[str]:
    """The arguments of a class."""
    kind = _imported(class_path)
    if kind is None:
        return []
    kinds = [k for k in kind.__mro__ if "__init__" in vars(k)]
    taken = [inspect.signature(vars(k)["__init__"]).parameters.values() for k in kinds[:2]]
    named = (
        p
        for parameters in taken
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    )
    return [p.name for p in named if p.name != "self"]


def _classes(message: str) -> list[str]:
    """The public classes that a message's types accept."""
    names = re.findall(r"(?:<class '|\[)(lightning\.[\w.]+|tax_lightning\.[\w.]+)", message)
    kinds = [kind for kind in map(_imported, names) if kind is not None]
    return [
        kind.__name__
        for base in kinds
        for kind in _subclasses(base)
        if not kind.__name__.startswith("_") and not inspect.isabstract(kind)
    ]


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _imported(path: str) -> Any:  # noqa: ANN401 - a class, or None
    place, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(place), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None
