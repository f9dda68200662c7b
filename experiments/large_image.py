"""One image of 5000 x 5000 pixels and four annotators: imported in tiles, learnt from, predicted.

    python -m experiments.large_image FOLDER

Scenes of the quick start are put together to one image. Every step is a command of ``tax``, in a
process of its own, and the table says how long it took and how much memory it needed at most.
Memory of Python with all libraries loaded is the first row.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tax_lightning.simulation import SyntheticDataModule

SIDE, TILE, SCENE = 5000, 1024, 96
ANNOTATORS = 4
DIFFERENT = 100  # scenes that are drawn; the image repeats them in random order
STEPS = 30


def make(folder: Path) -> tuple[str, ...]:
    """Write the image and its masks as arrays; returns the names of the classes."""
    data = SyntheticDataModule(size=SCENE, train_samples=DIFFERENT, val_samples=1, test_samples=1)
    scenes = data._samples_of("train")
    read = [scenes[i] for i in range(DIFFERENT)]
    rng = np.random.default_rng(0)
    order = rng.integers(0, DIFFERENT, [-(-SIDE // SCENE)] * 2)

    def whole(parts: np.ndarray) -> np.ndarray:
        return np.concatenate([np.concatenate(list(parts[row]), 1) for row in order], 0)[
            :SIDE, :SIDE
        ]

    planes = {"images": np.stack([scene.image for scene in read])} | {
        f"masks/{name}": np.stack([scene.masks[n] for scene in read])
        for n, name in enumerate(data.annotators[:ANNOTATORS])
    }
    for place, parts in planes.items():
        file = folder / place / "slide.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, whole(parts))
    return data.classes


def configure(folder: Path) -> Path:
    """The configuration of the quick start, over the tiles; all of them are to learn from."""
    settings = yaml.safe_load(Path(__file__).with_name("quickstart.yaml").read_text("utf-8"))
    settings["trainer"] = {
        "max_steps": STEPS,
        "accelerator": "cpu",
        "limit_val_batches": 0,
        "default_root_dir": str(folder / "runs"),
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings["data"] = {
        "class_path": "FolderDataModule",
        "init_args": {
            "root": str(folder / "tiles"),
            "val_fraction": 0.0,
            "test_fraction": 0.0,
            "predict_split": "train",
            "batch_size": 2,
            "train_transforms": [
                {
                    "class_path": "albumentations.RandomCrop",
                    "init_args": {"height": 256, "width": 256},
                }
            ],
        },
    }
    settings["model"]["init_args"]["reference"] = "majority"
    del settings["explanations"]
    config = folder / "large.yaml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    return config


def measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Carry out a command; seconds, and MB of memory at most."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> None:
    """Make the image, carry out the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made; about 1 GB is written to it")
    folder: Path = parser.parse_args().folder
    classes = make(folder / "arrays")
    config = configure(folder)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    output = folder / "predictions"
    tax = ["-m", "tax_lightning"]
    given = ["--config", str(config)]
    steps = {
        "nothing: libraries alone": [*tax, "fit", "--print_config"],
        f"tax import --tile {TILE}": [
            *(*tax, "import", "arrays", str(folder / "arrays"), str(folder / "tiles")),
            *("--tile", str(TILE), "--classes", f"[{', '.join(classes)}]"),
        ],
        f"tax fit, {STEPS} steps of 2 crops": [
            *(*tax, "fit", *given, "--checkpoint.dirpath", str(checkpoint.parent)),
        ],
        "tax predict": [
            *(*tax, "predict", *given, "--ckpt_path", str(checkpoint)),
            *("--data.init_args.batch_size=1", "--predictions.output_dir", str(output)),
        ],
    }
    print("| step | seconds | memory at most |\n|---|---:|---:|")
    for name, arguments in steps.items():
        seconds, memory = measured(arguments)
        print(f"| {name} | {seconds:.0f} | {memory:.0f} MB |", flush=True)
    for file in sorted(output.rglob("*.png")):
        with Image.open(file) as picture:
            print(f"{file.relative_to(output)}: {picture.width} x {picture.height}")


if __name__ == "__main__":
    main()
