"""Where a configuration is wrong: the key, the value, and what the signature of a class expects.

The parser checks values too. But it lets some pass, such as null, and it shows the whole section
that a wrong value is in. Here the first wrong value is found, before a class is made.
"""

import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

from tax_lightning.arguments import unknown_name
from tax_lightning.refusals import shown

_LEFT = object()  # a value that is left to the parser
_SPEC = ("class_path", "init_args", "dict_kwargs")  # the keys of a class
_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class Fault(NamedTuple):
    """A wrong value: its key, and the message that names the key, the value and the cure."""

    key: str
    message: str


def read_file(path: Path) -> dict[str, Any]:
    """What a configuration file says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no YAML file with sections.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} is no file, expected a YAML file.")
    try:
        settings = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path} holds {shown(settings)}, expected sections.")
    return settings


def together(every: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What configurations say together; later ones win, as for the parser.

    Example:
        >>> together([{"trainer": {"devices": 1}}, {"trainer": {"devices": 2}, "output": "a"}])
        {'trainer': {'devices': 2}, 'output': 'a'}
    """
    settings: dict[str, Any] = {}
    for more in every:
        settings = _merged(settings, more)
    return settings


def with_flags(settings: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """The settings, with a place holder for what flags say; a class that one names is said.

    Example:
        >>> with_flags({"model": {"init_args": {"kernels": None}}}, ["--model=Consensus"])
        {'model': {'init_args': {'kernels': None}, 'class_path': 'Consensus'}}
    """
    settings = plain(settings)
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        section: Any = settings
        *path, last = name.removeprefix("--").removesuffix(".class_path").split(".")
        for part in path:
            section = _arguments_in(section, part).get(part)
        if not name.startswith("--") or not isinstance(section, dict):
            continue
        section = _arguments_in(section, last)
        said = value if equals else following
        named = re.fullmatch(r"(?!(true|false|null)$)[A-Za-z_][\w.]*", said)
        if isinstance(section.get(last), dict) and named:
            section[last] = _merged(section[last], {"class_path": said})
        elif path:
            section[last] = _LEFT
    return dict(settings)


def _arguments_in(section: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    """The part of a section that holds this argument: of a class a flag may leave out init_args."""
    if not isinstance(section, dict):
        return {}
    is_class = not section or not section.keys().isdisjoint(_SPEC)
    if is_class and name not in _SPEC:
        inner: dict[str, Any] = section.setdefault("init_args", {})
        return inner if isinstance(inner, dict) else {}
    return section


def _merged(settings: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The first settings with what the second ones change.

    Of another class the parser keeps the arguments that it takes, whatever they are.
    """
    new = dict(settings)
    before, kind = new.get("init_args"), new.get("class_path")
    if isinstance(before, dict) and kind is not None and more.get("class_path", kind) != kind:
        new["init_args"] = dict.fromkeys(before, _LEFT)
    for key, value in more.items():
        both = isinstance(new.get(key), dict) and isinstance(value, dict)
        new[key] = _merged(new[key], value) if both else value
    return new


def first_fault(
    settings: Mapping[str, Any], types: Mapping[str, Any], arguments: Mapping[str, type]
) -> str | None:
    """The first wrong value in a configuration, with its key and what is expected; None: none.

    Args:
        settings: The configuration, or a part of it, as dictionaries and lists.
        types: Key -> the type hint of its value. A class is written as its name and arguments.
        arguments: Key -> the class whose arguments it holds, without a name. Other keys pass.

    Example:
        >>> import torch
        >>> wrong = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": None}}
        >>> first_fault({"optimizer": wrong}, {"optimizer": torch.optim.Optimizer}, {})
        'optimizer.init_args.momentum: null, expected a number. Leave the key out for its default.'
    """
    for key, given in settings.items():
        value, fault = plain(given), None
        if key in types:
            fault = _fault(value, types[key], key)
        elif key in arguments:
            fault = _of_arguments(value, arguments[key], key)
        if fault is not None:
            return fault.message
    return None


def plain(value: Any) -> Any:  # noqa: ANN401 - any part of a configuration
    """A part of a configuration as dictionaries and lists, at any depth."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _fault(value: Any, hint: Any, key: str) -> Fault | None:  # noqa: ANN401
    """What is wrong with a value of that type."""
    members = list(_members(hint))
    kinds = tuple(m for m in members if _is_class(m))
    others = [m for m in members if not _is_class(m)]
    if value is _LEFT or any(map(_takes_all, members)):
        return None
    if value is None and type(None) in members:
        return None
    if value is None:
        cure = "Leave the key out for its default."
        return Fault(key, f"{key}: null, expected {_words(members)}. {cure}")
    found = [_against(value, member, key) for member in others]
    if kinds:
        found.append(_of_class(value, kinds, key))
    if None in found:
        return None
    deepest = max((f for f in found if f is not None), key=lambda fault: len(fault.key))
    if deepest.key != key or len(found) == 1:
        return deepest
    return _not(value, members, key)


def _members(hint: Any) -> Iterator[Any]:  # noqa: ANN401
    """The types of a union, or the one type."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _members(part)
    else:
        yield hint


def _is_class(hint: Any) -> bool:  # noqa: ANN401
    """Whether a value of that type is written as a class and its arguments."""
    return (
        isinstance(hint, type)
        and not _takes_all(hint)
        and get_origin(hint) is None
        and hint.__module__ not in ("builtins", "datetime", "os", "pathlib")
        and not is_dataclass(hint)
    )


def _takes_all(hint: Any) -> bool:  # noqa: ANN401
    """Whether any value passes as one of that type, null included."""
    is_kind = isinstance(hint, type) and hint not in (Any, object)
    return get_origin(hint) is None and (not is_kind or getattr(hint, "_is_protocol", False))


def _against(value: Any, hint: Any, key: str) -> Fault | None:  # noqa: ANN401
    """What is wrong with a value of a type that is no union and no class of its own."""
    origin = get_origin(hint) or hint
    wrong = _not(value, [hint], key)
    if hint is float:
        return None if type(value) in (int, float) and not math.isnan(value) else wrong
    if hint in _PLAIN:
        return None if type(value) is hint else wrong
    if hint is type(None):
        return wrong
    if origin is Literal:
        return None if value in get_args(hint) else wrong
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict) and "class_path" in value:
            return _of_class(value, (hint,), key)
        if isinstance(value, dict):
            return _of_arguments(value, hint, key)
        return None if isinstance(value, hint) else wrong
    if origin is Callable:
        made = tuple(m for m in _members(get_args(hint)[-1]) if _is_class(m))
        supplied = len(get_args(hint)[0])  # by whoever calls it
        return _of_class(value, made, key, supplied) if made else None
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return wrong
        of_key, of_value = get_args(hint) or (Any, Any)
        for name, part in value.items():
            at = f"{key}.{name}"
            if fault := _fault(name, of_key, at) or _fault(part, of_value, at):
                return fault
        return None
    if issubclass(origin, Iterable) and origin not in (str, bytes):
        return _of_list(value, hint, origin, key) if isinstance(value, list | tuple) else wrong
    return None


def _of_list(value: Any, hint: Any, origin: type, key: str) -> Fault | None:  # noqa: ANN401
    """What is wrong with a list."""
    parts = get_args(hint) or (Any, ...)
    if origin is tuple and Ellipsis not in parts:
        if len(value) != len(parts):
            return _not(value, [hint], key)
    else:
        parts = (parts[0],) * len(value)
    for place, (part, of_part) in enumerate(zip(value, parts, strict=True)):
        if fault := _fault(part, of_part, f"{key}.{place}"):
            return fault
    return None


def _of_class(
    value: Any,  # noqa: ANN401
    bases: tuple[type, ...],
    key: str,
    supplied: int = 0,
) -> Fault | None:
    """What is wrong with a class and its arguments, which must be derived from one of the bases.

    The first arguments are not the configuration's if they are ``supplied``.
    """
    if isinstance(value, bases) or callable(value):
        return None
    if isinstance(value, str):
        return None if class_of(value, bases) else _no_class(value, bases, key)
    if not isinstance(value, Mapping):
        return _not(value, bases, key)
    for part in value:
        if part not in _SPEC:
            return _unknown(part, _SPEC, f"{key}.{part}")
    if "class_path" not in value:
        return Fault(
            f"{key}.class_path", f"{key}: its class_path is missing, expected {_words(bases)}."
        )
    name = value["class_path"]
    if not isinstance(name, str):
        return _not(name, bases, f"{key}.class_path")
    kind = class_of(name, bases)
    if kind is None:
        return _no_class(name, bases, f"{key}.class_path")
    given = value.get("init_args", {})
    if fault := _of_arguments(given, kind, f"{key}.init_args"):
        return fault
    needed = _required(kind)[supplied:] if "." in key else []  # links may give those of the others
    for name in needed:
        if name not in given and not value.get("dict_kwargs"):
            missing = f"{key}.init_args.{name}"
            return Fault(missing, f"{missing} is missing, required by {kind.__name__}.")
    return None


def _of_arguments(value: Any, kind: type, key: str) -> Fault | None:  # noqa: ANN401
    """What is wrong with the arguments of a class."""
    if not isinstance(value, Mapping):
        of = f"the arguments of {kind.__name__} by name"
        return Fault(key, f"{key}: {shown(value)}, expected {of}.")
    hints, complete = arguments_of(kind)
    for name, part in value.items():
        if name in hints:
            if fault := _fault(part, hints[name], f"{key}.{name}"):
                return fault
        elif complete and part is not _LEFT:
            return _unknown(name, hints, f"{key}.{name}", kind.__name__)
    return None


def _required(kind: type) -> list[str]:
    """The arguments of a class that have no default, in order."""
    parameters = list(inspect.signature(kind).parameters.values())
    flexible = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in flexible]


def arguments_of(kind: type) -> tuple[dict[str, Any], bool]:
    """The arguments of a class with their types, and whether these are all.

    What a class hands on to its parent as ``**kwargs`` is an argument too.

    Example:
        >>> import torch
        >>> hints, complete = arguments_of(torch.optim.lr_scheduler.StepLR)
        >>> hints["step_size"], complete
        (<class 'int'>, True)
    """
    hints: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        start = vars(base)["__init__"]
        more = False
        for place, parameter in enumerate(inspect.signature(start).parameters.values()):
            more |= parameter.kind is parameter.VAR_KEYWORD
            if place and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                hints.setdefault(parameter.name, _hint_of(parameter, start))
        if not more:
            return hints, True
    known = _known_to_the_parser(kind)
    return {**dict.fromkeys(known, Any), **hints}, bool(known)


def _hint_of(parameter: inspect.Parameter, start: Any) -> Any:  # noqa: ANN401 - of a function
    """The type of an argument; anything where only a type checker can read it."""
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = eval(hint, vars(sys.modules[start.__module__]))
        except Exception:  # a name that is there for type checkers only
            hint = Any
    if hint is inspect.Parameter.empty:
        hint = Any
    return hint | None if parameter.default is None and hint is not Any else hint


def _known_to_the_parser(kind: type) -> list[str]:
    """The arguments that the parser finds by reading the code; none where it finds no end."""
    parser = ArgumentParser()
    try:
        parser.add_class_arguments(kind, "of", fail_untyped=False)
    except ValueError:
        return []
    return list(parser.get_defaults().get("of", {}).as_dict())


def class_of(name: str, bases: tuple[type, ...]) -> type | None:
    """The class of that name, short or with its module, derived from one of the bases."""
    if "." in name:
        place, _, last = name.rpartition(".")
        try:
            found = getattr(import_module(place), last)
        except (ImportError, AttributeError, ValueError):
            return None
        made = found if isinstance(found, type) else object  # a function that makes one
        return made if made is object or issubclass(made, bases) else None
    return next((kind for base in bases for kind in derived(base) if kind.__name__ == name), None)


def derived(kind: type) -> Iterator[type]:
    """The class and all classes that are derived from it."""
    yield kind
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        yield from derived(child)


def _no_class(name: str, bases: tuple[type, ...], key: str) -> Fault:
    """A name that is no class of that kind, and what is nearest."""
    names = {
        kind.__name__
        for base in bases
        for kind in derived(base)
        if not kind.__name__.startswith("_") and not inspect.isabstract(kind)
    }
    place, _, last = name.rpartition(".")
    try:
        there = vars(import_module(place)) if place else {}
    except (ImportError, ValueError):
        there = {}
    names |= {n for n, v in there.items() if isinstance(v, type) and issubclass(v, bases)}
    return Fault(key, unknown_name(f"{key}: {name!r}", last, names))


def _unknown(name: Any, known: Iterable[str], key: str, of: str = "") -> Fault:  # noqa: ANN401
    return Fault(key, unknown_name(key, str(name), known, of=of))


def _not(value: Any, hints: Iterable[Any], key: str) -> Fault:  # noqa: ANN401
    return Fault(key, f"{key}: {shown(value)}, expected {_words(hints)}.")


def _words(hints: Iterable[Any]) -> str:
    """What a value of one of these types is, in words."""
    return " or ".join(dict.fromkeys(_word(hint) for hint in hints))


def _word(hint: Any) -> str:  # noqa: ANN401
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is Callable:
        return _words(_members(parts[-1]))
    if _is_class(hint):
        article = "an" if hint.__name__[0] in "AEIOU" else "a"
        return f"{article} {hint.__name__} (class_path, init_args)"
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "keys with values"
    if isinstance(kind, type) and issubclass(kind, Iterable):
        if kind is tuple and parts and Ellipsis not in parts:
            return f"a list ({', '.join(_words(_members(part)) for part in parts)})"
        return f"a list (each {_words(_members(parts[0]))})" if parts else "a list"
    if is_dataclass(hint):
        return f"the arguments of {hint.__name__} by name"  # type: ignore[union-attr]
    return str(getattr(hint, "__name__", hint)).lower()
