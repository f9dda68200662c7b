"""A job in two forked processes, which Lightning takes for processes of its own."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from torch.multiprocessing import start_processes


def in_two_processes(job: Callable[[int, Path], None], folder: Path) -> None:
    """Call ``job(2, folder)`` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start_processes(_process, args=(job, folder, port), nprocs=2, start_method="fork")


def _process(rank: int, job: Callable[[int, Path], None], folder: Path, port: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    os.environ["LOCAL_RANK"] = str(rank)
    job(2, folder)
