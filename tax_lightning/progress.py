"""How far a long piece of work is, where somebody watches and where a log is kept."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def show_progress(done: int, total: int) -> None:
    """One line that counts up on a terminal; elsewhere a line for each tenth of the work.

    Args:
        done: Images that are done.
        total: All images.
    """
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} images", end=end, file=sys.stderr, flush=True)
    elif 10 * done // total > 10 * (done - 1) // total:
        print(f"{done} of {total} images", file=sys.stderr, flush=True)


def watched(items: Sequence[Item], called: str) -> Iterator[Item]:
    """The items; a terminal shows how many of them are done, other places nothing.

    Args:
        items: What is worked on, one after the other.
        called: What they are, such as ``"windows"``.
    """
    shown = sys.stderr.isatty() and len(items) > 1
    for done, item in enumerate(items):
        yield item
        if shown:
            end = "\n" if done + 1 == len(items) else ""
            print(f"\r{done + 1} of {len(items)} {called}", end=end, file=sys.stderr, flush=True)
