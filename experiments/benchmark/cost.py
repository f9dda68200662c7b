"""What each method costs, against a plain network of the same backbone measured in the same run.

    python -m experiments.benchmark.cost
    python -m experiments.benchmark.cost --methods TAX MultiHead --annotators 5

Parameters, processor time of a training step and of the segmentation of a batch, and the most
memory that a process held. Every measurement is a process of its own with one thread. The methods
take turns, and a ratio is the median of those of the single turns, as machines are noisy. A step is
forward pass, loss, backward pass and optimizer; that of TAX has all its terms.

The C library gives large blocks of memory back to the system and takes them anew at every
operation, which then costs more than to compute. By default it is told to keep them for all
methods alike, as PyTorch's own allocator does on a GPU; ``--allocator system`` leaves it as it is.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import segmentation_models_pytorch as smp
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tax_lightning import Schedule, TAXLightningModule, baselines
from tax_lightning.comparison.dots import Panel, Row, draw
from tax_lightning.comparison.report import markdown_table

REPO = Path(__file__).resolve().parent.parent.parent
TAX, MULTI_HEAD = "TAX", "MultiHead"
METHODS = (TAX, *(name for name in baselines.__all__ if name != "Baseline"))
PLAIN = "plain network"
CLASSES = ("background", "cell")
Turn: TypeAlias = Mapping[str, Mapping[str, float]]  # method -> quantity -> value
QUANTITIES = ("parameters", "step, s", "segmentation, s", "memory, MiB")
ENCODER, SIDE, BATCH = "resnet34", 256, 2
WARM_UP, STEPS, TURNS = 2, 3, 3
# Variables of glibc, in bytes: nothing is given back, and what is asked for comes in large parts.
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Plain(L.LightningModule):
    """A network of segmentation_models_pytorch with cross-entropy on the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.network = smp.Unet(ENCODER, encoder_weights=None, classes=len(CLASSES))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: D102
        return F.cross_entropy(self.network(batch["image"]), batch["reference"])

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:  # noqa: D102
        probs: Tensor = self.network(images).softmax(dim=1)
        return probs

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.AdamW(self.parameters(), lr=1e-3)  # as of all methods by default


class StepTimes(Callback):
    """Processor time of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: ANN401, D102
        self._start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401, D102
        self.seconds.append(time.process_time() - self._start)


def make_module(method: str, annotators: int) -> L.LightningModule:
    """The module of a method, as the command line would build it."""
    if method == PLAIN:
        return Plain()
    names = [f"annotator {n}" for n in range(annotators)]
    options: dict[str, Any] = {"encoder": ENCODER, "reference": "given"}
    if method == TAX:  # without a schedule all terms have their full weight from the first step on
        return TAXLightningModule(names, CLASSES, schedule=Schedule(enabled=False), **options)
    return getattr(baselines, method)(names, CLASSES, **options)


def make_batch(annotators: int, side: int = SIDE) -> dict[str, Any]:
    """Noise for images, and discs of different sizes for masks."""
    place = torch.arange(side) - side / 2
    distance = (place[:, None].square() + place.square()).sqrt()
    radii = side * torch.linspace(0.2, 0.4, annotators)
    return {
        "image": torch.randn(BATCH, 3, side, side),
        "masks": (distance < radii[:, None, None]).long().expand(BATCH, -1, -1, -1),
        "reference": (distance < 0.3 * side).long().expand(BATCH, -1, -1),
    }


def measure_here(method: str, annotators: int) -> dict[str, float]:
    """Measure one method in this process."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, batch = make_module(method, annotators), make_batch(annotators)
    times = StepTimes()
    trainer = L.Trainer(
        max_steps=WARM_UP + STEPS,
        accelerator="cpu",
        logger=False,
        callbacks=[times],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * (WARM_UP + STEPS), batch_size=None))
    module.eval()
    segmentation = []
    for _ in range(WARM_UP + STEPS):
        start = time.process_time()
        module.predict(batch["image"])
        segmentation.append(time.process_time() - start)
    return {
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "step, s": statistics.median(times.seconds[WARM_UP:]),
        "segmentation, s": statistics.median(segmentation[WARM_UP:]),
        "memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(method: str, annotators: int, allocator: str) -> dict[str, float]:
    """Measure one method in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmark.cost", "--here", method]
    command += ["--annotators", str(annotators)]
    kept = KEEPING if allocator == "keeping" else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **kept}
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ratios(turns: Sequence[Turn], method: str, to: str) -> dict[str, float]:
    """Median over turns of each quantity of a method over that of another."""
    return {
        key: statistics.median(turn[method][key] / turn[to][key] for turn in turns)
        for key in QUANTITIES
    }


def report(options: argparse.Namespace) -> None:
    """Measure and print a table for each number of annotators."""
    methods = [PLAIN, *options.methods]
    all_turns: dict[int, list[Turn]] = {}
    for annotators in options.annotators:
        turns = all_turns[annotators] = [
            {method: measure(method, annotators, options.allocator) for method in methods}
            for _ in range(TURNS)
        ]
        print(f"\n{annotators} annotators\n")
        rows = [["Method, relative to a plain network", *QUANTITIES]]
        rows += [[m, *(f"{r:.2f}" for r in ratios(turns, m, PLAIN).values())] for m in methods]
        print(markdown_table(rows), flush=True)
        if {TAX, MULTI_HEAD} <= set(methods):
            against = ratios(turns, TAX, MULTI_HEAD)["step, s"]
            print(f"\nTraining step of TAX over that of MultiHead: {against:.2f}", flush=True)
    few, many = min(all_turns), max(all_turns)
    step = {
        (n, m): statistics.median(turn[m]["step, s"] for turn in turns)
        for n, turns in all_turns.items()
        for m in methods
    }
    rows = [["Method", f"step with {many} over {few} annotators"]]
    rows += [[m, f"{step[many, m] / step[few, m]:.2f}"] for m in methods]
    print("\n" + markdown_table(rows))
    if options.figure is not None:
        figure(all_turns, methods).save(options.figure)


def figure(all_turns: Mapping[int, Sequence[Turn]], methods: Sequence[str]) -> Image.Image:
    """What each method costs by number of annotators; a ring a turn, a bar at the mean."""
    panels = [
        Panel(
            quantity.partition(",")[0],
            "over a plain network",
            {
                f"{m} {n}": [turn[m][quantity] / turn[PLAIN][quantity] for turn in turns]
                for n, turns in all_turns.items()
                for m in methods
            },
        )
        for quantity in QUANTITIES
    ]
    rows = []
    for method in methods[1:]:
        rows += [Row(method), *(Row(f"{n} annotators", f"{method} {n}") for n in all_turns)]
    return draw(rows, panels, f"{PLAIN} {min(all_turns)}")


def main() -> None:
    """Read the arguments and measure."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--annotators", type=int, nargs="+", default=[4, 5, 16, 64])
    parser.add_argument("--allocator", choices=["keeping", "system"], default="keeping")
    parser.add_argument("--figure", type=Path, help="picture to write")
    parser.add_argument("--here", choices=[PLAIN, *METHODS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps(measure_here(options.here, *options.annotators)))
    else:
        report(options)


if __name__ == "__main__":
    main()
