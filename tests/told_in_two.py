"""Three runs of ``tax`` in two processes, the first of which is told to stop in its fifth step.

Started as ``python told_in_two.py FOLDER OPTIONS``. Each run leaves its exit code and what it said
in a file. The processes are forked, as imports take seconds.
"""

import contextlib
import io
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from short_last_fit import SHORT_LAST_FIT
from two_processes import in_two_processes

from tax_lightning.__main__ import main
from tax_lightning.modules import calibration
from tax_lightning.modules.tax import TAXLightningModule

step, steps = TAXLightningModule.training_step, []


def told_to_stop(module, batch, batch_idx):
    steps.append(batch_idx)
    if len(steps) == 5 and module.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(module, batch, batch_idx)


def run(devices: int, folder: Path, name: str, options: list[str]) -> None:
    """``tax fit`` in ``folder``; it notes how it ended."""
    os.chdir(folder)
    if name == "told":
        TAXLightningModule.training_step = told_to_stop
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            main(["fit", *options])
        except SystemExit as stop:
            code = stop.code
    end = {"code": code, "said": said.getvalue()}
    Path(f"{name}-{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(end))


if __name__ == "__main__":
    vars(calibration).update(SHORT_LAST_FIT)  # as in conftest.py
    for name, last in (
        ("told", ["--output=told"]),
        ("resumed", ["--resume=told"]),
        ("whole", ["--output=whole", "--resume=last"]),  # nothing to resume: a new run
    ):
        job = partial(run, name=name, options=[*sys.argv[2:], *last])
        in_two_processes(job, Path(sys.argv[1]))
