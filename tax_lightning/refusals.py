"""Refusals: how an error is told, in lines that name the argument, the value and what is expected.

An error of one of our own checks is told as it is. Those of the system and of libraries are told
with the arguments that they are about. Everything else is a fault of ours, and keeps its traceback.
"""

import math
import os
import re
import textwrap
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

_SHOWN, _WIDTH, _LINE = 100, 130, 290  # characters of a value, of an error or arguments, of a line


def refusal(error: BaseException | None) -> BaseException | None:
    """The error of one of our own checks, even if the parser wrapped it; else a traceback helps."""
    while error is not None:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        ours = any(Path(frame.filename).is_relative_to(Path(__file__).parent) for frame in last)
        if ours and isinstance(error, ValueError | OSError | LookupError | ModuleNotFoundError):
            return error
        error = error.__cause__
    return None


def in_lines(message: str) -> str:
    """A message whose lines are not too long to read.

    Example:
        >>> in_lines("short")
        'short'
    """
    # A path stays whole, so that it can be copied.
    wrapper = textwrap.TextWrapper(_LINE, break_long_words=False, break_on_hyphens=False)
    lines = (wrapper.wrap(line) or [""] for line in message.splitlines())
    return message if len(message) <= _LINE else "\n".join(chain.from_iterable(lines))


def shown(value: Any) -> str:  # noqa: ANN401
    """A value as it stands in a message: in one line, and not too long.

    Example:
        >>> shown(None), shown({"a": [1]}), shown("few")
        ('null', "{'a': [1]}", "'few'")
    """
    words = {"None": "null", "True": "true", "False": "false"}
    text = words.get(repr(value), repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


_noted: ContextVar[list[Exception] | None] = ContextVar("noted", default=None)


def made(kind: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - what a class makes
    """An object of a class, for the parser; an error is told with the arguments it is about.

    Raises:
        ValueError: If the class raises any error but that of one of our own checks.

    Example:
        >>> import torch
        >>> made(torch.optim.SGD, [torch.zeros(1)], lr=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: SGD: lr=-1.0: Invalid learning rate: -1.0
    """
    try:
        with refusing(kind.__name__, kwargs):
            return kind(*args, **kwargs)
    except Exception as error:
        if (noted := _noted.get()) is not None:
            noted.append(error)
        raise


def add_instantiator(parser: ArgumentParser) -> None:
    """Let a parser make all classes by `made`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this name goes in jsonargparse 5; what follows is new
        parser.add_instantiator(made, object)


@contextmanager
def first_refusal() -> Iterator[None]:
    """Raise what `made` refused first, in place of the parser's error, which hides it."""
    noted: list[Exception] = []
    token = _noted.set(noted)
    try:
        yield
    except Exception:
        if noted:
            raise noted[0] from None
        raise
    finally:
        _noted.reset(token)


@contextmanager
def refusing(what: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Tell an error of others in one line, with the arguments that it is about."""
    try:
        yield
    except Exception as error:
        if refusal(error) is not None:
            raise
        raise ValueError(f"{what}: {_blamed(arguments, error)}{told(error)}") from error


def check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a number out of its range.

    Raises:
        ValueError: If it is.

    Example:
        >>> check_number("batch_size", -3, 1)
        Traceback (most recent call last):
            ...
        ValueError: batch_size=-3: expected 1 or more.
    """
    if not least <= value <= most:
        expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise ValueError(f"{name}={value}: expected {expected}.")


def check_memory(sizes: Iterable[int]) -> None:
    """Refuse weights that would not fit into the memory of this machine.

    Args:
        sizes: Bytes of the weights.

    Raises:
        MemoryError: If they take more memory than there is.

    Example:
        >>> check_memory([4 * 10**6, 8])
    """
    memory, needed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), sum(sizes)
    if needed > memory:
        least, there = needed / 2**30, memory / 2**30
        raise MemoryError(f"the weights take {least:.3g} GiB, but this machine has {there:.3g}.")


def told(error: BaseException) -> str:
    r"""What an error says, in one line.

    Example:
        >>> told(RuntimeError("bad\n  size"))
        'bad size'
    """
    lines = [line.strip() for line in str(error).splitlines() if "further information" not in line]
    text = " ".join(filter(None, lines)) or type(error).__name__
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."


def _blamed(arguments: Mapping[str, Any], error: BaseException) -> str:
    """The arguments that an error names, else those whose value it names, else all plain ones."""
    words, numbers = (set(re.findall(form, str(error))) for form in (r"\w+", r"-?\d[\w.+-]*"))
    values = dict(_leaves(arguments, nulls="NoneType" in words))
    named = {key: value for key, value in values.items() if key in words}
    if not named:  # numbers below 2 stand in many messages
        numbers -= {"0", "1"}
        named = {key: value for key, value in values.items() if str(value) in numbers}
    texts = [f"{key}={shown(value)}" for key, value in (named or values).items()]
    every = ", ".join(texts)
    return f"{every[:_WIDTH]}{' ...' if len(every) > _WIDTH else ''}: " if texts else ""


def _leaves(settings: Mapping[str, Any], nulls: bool) -> Iterator[tuple[str, Any]]:
    """The plain values of arguments, also of dictionaries within them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, nulls)
        elif isinstance(value, int | float | str | list | tuple) or (nulls and value is None):
            yield str(key), value
