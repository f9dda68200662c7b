"""``python -m tax_lightning.comparison.process ARGUMENTS``: ``tax`` that ends with who started it.

A process that is killed cannot end those that it started. So each of them waits for the end of its
standard input, which the system closes when the other end is gone.
"""

import os
import runpy
import signal
import sys
import threading


def end_with_input() -> None:
    """Wait for the end of standard input, then end this process and those that it started."""
    while os.read(sys.stdin.fileno(), 1):
        pass  # nothing is said to it
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    sys.argv[0] = "tax"  # what the records of the run call it
    runpy.run_module("tax_lightning", run_name="__main__")
