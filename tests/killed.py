"""Runs of ``tax`` in processes of their own that are killed at a chosen place."""

import fnmatch
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from tax_lightning import files
from tax_lightning.__main__ import main
from tax_lightning.modules.tax import TAXLightningModule


def die_at_step(number: int, kind: int = signal.SIGKILL) -> None:
    """In this process, let a signal come within training step ``number``, from 1."""
    count, step = iter(range(1, 1 << 30)), TAXLightningModule.training_step

    def training_step(module, batch, batch_idx):
        if next(count) == number:
            os.kill(os.getpid(), kind)
        return step(module, batch, batch_idx)

    TAXLightningModule.training_step = training_step


def die_at_file(pattern: str, number: int = 1, kind: int = signal.SIGKILL) -> None:
    """In this process, let a signal come when a file was written, before it gets its name."""
    count, replace = iter(range(1, 1 << 30)), os.replace

    def killed(source, target):
        if fnmatch.fnmatch(str(target), pattern) and next(count) == number:
            os.kill(os.getpid(), kind)
        replace(source, target)

    files.os.replace = killed


def run(*arguments: str, log: Path, die=None) -> int:
    """The exit code of ``tax``; minus the number of the signal that killed it."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(arguments, log, die))
    process.start()
    process.join()
    return process.exitcode


def _run(arguments, log, die) -> None:
    for name in ("TAX_RUN_STARTED", "PL_GLOBAL_SEED"):
        os.environ.pop(name, None)
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv[1:] = arguments
    torch.set_num_threads(1)
    if die is not None:
        die()
    main(arguments)


def state_of(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two checkpoints hold that is not the same to the last bit."""
    a, b = state_of(one), state_of(other)
    same = {
        name
        for name in a.keys() & b.keys()
        if (
            torch.equal(a[name].nan_to_num(9), b[name].nan_to_num(9))
            if torch.is_tensor(a[name])
            else repr(a[name]) == repr(b[name])
        )
    }
    return sorted((a.keys() | b.keys()) - same)
