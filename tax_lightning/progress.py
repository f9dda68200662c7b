"""How far a long piece of work is, where somebody watches and where a log is kept."""

import sys


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
