"""The command ``tax``, also as ``python -m tax_lightning``."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tax_lightning.constants import __version__
from tax_lightning.usage import COMMANDS, unknown, usage

_CTRL_C = 128 + signal.SIGINT


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; see `tax_lightning.cli`.

    Args:
        args: arguments after ``tax``; ``None`` takes those of the process.

    Raises:
        SystemExit: with one message where the input is at fault. With the environment variable
            ``TAX_DEBUG`` set, the error itself is raised, with its traceback.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        tax-lightning ...
    """
    arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
    if arguments == ["--version"]:  # answered, as the help is, before torch is imported
        print(f"tax-lightning {__version__}")
        return
    if arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        sys.exit(f"tax: error: {unknown(arguments[0])}")
    try:
        with _cleaning_up():
            _run(*arguments)
    except BrokenPipeError:  # what reads our output has seen enough, as `tax import | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_CTRL_C)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning answers by 1
            sys.exit(_CTRL_C)
        raise
    except Exception as error:
        from tax_lightning.refusals import in_lines, refusal

        refused = refusal(error)
        if refused is None or "TAX_DEBUG" in os.environ:
            raise
        sys.exit(in_lines(f"tax: error: {refused}"))


def _run(command: str, *arguments: str) -> None:
    """Carry out a command, importing what it needs: torch alone takes seconds."""
    if command == "compare":
        from tax_lightning.comparison.command import compare_models as run
    elif command == "explain":
        from tax_lightning.commands import explain_images as run
    elif command == "export":
        from tax_lightning.commands import export_checkpoint as run
    elif command == "import":
        from tax_lightning.importers.command import import_data as run
    elif command == "inspect":
        from tax_lightning.commands import inspect_data as run
    elif command == "optimize":
        from tax_lightning.commands import optimize_data as run
    else:
        from tax_lightning.cli import TAXCLI

        TAXCLI.run([command, *arguments])
        return
    run(arguments)


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let SIGTERM end the command as an error would, so that it leaves no half-written files."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
