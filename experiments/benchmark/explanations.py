"""What explanations cost a run: the share of its time that logging them takes.

    python experiments/benchmark/explanations.py
    python experiments/benchmark/explanations.py --trainer.max_epochs=3 --trainer.logger=false

The quick start is run with the callback's defaults, in one thread. What is measured is processor
time of the training process: neither other work on the machine nor the disk counts. Options are
those of `tax fit`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler

from tax_lightning.callbacks import ExplanationLogger
from tax_lightning.cli import TAXCLI

EXPERIMENTS = Path(__file__).parent.parent


class ProcessorTime(Profiler):
    """Processor time of every hook and step by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        """Begin to count."""
        self.seconds[action_name] -= time.process_time()

    def stop(self, action_name: str) -> None:
        """Stop counting."""
        self.seconds[action_name] += time.process_time()


def main(options: list[str]) -> None:
    """Run the quick start and print the share."""
    torch.set_num_threads(1)
    defaults = ExplanationLogger()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        cli = TAXCLI.run(
            [
                "fit",
                *("--config", str(EXPERIMENTS / "quickstart.yaml")),
                f"--trainer.default_root_dir={folder}",
                f"--trainer.logger.init_args.save_dir={folder}",
                f"--trainer.profiler={Path(__file__).stem}.{ProcessorTime.__name__}",
                f"--explanations.samples={defaults.samples}",
                f"--explanations.every_n_epochs={defaults.every_n_epochs}",
                *options,
            ]
        )
        whole = time.process_time() - begin
    seconds = {
        name: spent
        for name, spent in cli.trainer.profiler.seconds.items()
        if ExplanationLogger.__name__ in name and spent > 0.005
    }
    print("\n| part | seconds | share |\n|---|---:|---:|")
    for name, spent in [*seconds.items(), ("explanations", sum(seconds.values()))]:
        print(f"| {name.rpartition('.')[2]} | {spent:.2f} | {spent / whole:.2%} |")
    print(f"| the run | {whole:.2f} | |")


if __name__ == "__main__":
    main(sys.argv[1:])
