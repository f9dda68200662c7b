"""Large images in tiles: time beside a plain network, and memory.

    python -m experiments.large_image FOLDER [--steps small large page]

``small`` segments an image of 3000 x 3000 pixels for ten annotators, by a U-Net of ResNet-34 with
random weights: TAX and a head for each annotator by `tax predict`, and the same U-Net alone.
``large`` predicts a TIFF file of 20000 x 20000 pixels, of four annotators, by one convolution.
``page`` explains an image of 5000 x 5000 pixels. Each step is a process of its own, of one thread.
The table says how much time of the processor it took, and how much memory at most. The first
row is Python with all libraries loaded.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import numpy as np
import segmentation_models_pytorch as smp
import tifffile
import torch
from PIL import Image

from tax_lightning import FolderDataModule, SyntheticDataModule, TAXLightningModule
from tax_lightning.baselines import MultiHead
from tax_lightning.blending import blend
from tax_lightning.callbacks import PredictionWriter
from tax_lightning.data.images import ExplainedImages
from tax_lightning.data.pixels import Pictures
from tax_lightning.modules.base import MultiAnnotatorModule
from tax_lightning.visualization.report import write_report
from tax_lightning.windows import tiles

SIDES = {"small": 3000, "large": 20000, "page": 5000}
TILE, SCENE, PIECE = 512, 96, 256
CLASSES = ["background", "cell"]


def make(folder: Path, annotators: int, side: int) -> FolderDataModule:
    """Write an image of scenes of the quick start, and a small one that everybody labelled."""
    data = SyntheticDataModule(size=SCENE, train_samples=20, val_samples=1, test_samples=1)
    source = data._samples_of("train")
    scenes = np.stack([source[i].image for i in range(20)])
    rng = np.random.default_rng(0)

    def pieces() -> Iterator[np.ndarray]:
        for _ in range((-(-side // PIECE)) ** 2):
            rows = scenes[rng.integers(0, len(scenes), (3, 3))].swapaxes(1, 2)
            yield np.ascontiguousarray(rows.reshape(3 * SCENE, 3 * SCENE, 3)[:PIECE, :PIECE])

    (folder / "new").mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        folder / "new" / "slide.tif",
        pieces(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(PIECE, PIECE),
        photometric="rgb",
        compression="zlib",
    )
    for place in ("images", *(f"masks/annotator {n}" for n in range(annotators))):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((SCENE, SCENE), np.uint8)).save(folder / place / "a.png")
    (folder / "samples.csv").write_text("name,split\na,train\n")
    return data_of(folder)


def data_of(folder: Path) -> FolderDataModule:
    """The data of a step, whose images are read in tiles."""
    options = {"predict_images": folder / "new", "batch_size": 1, "tile": TILE}
    return FolderDataModule(folder, CLASSES, **options)


def predict(folder: Path, module: MultiAnnotatorModule) -> None:
    """As `tax predict`."""
    writer = PredictionWriter(str(folder / f"predictions of {type(module).__name__}"))
    trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[writer])
    trainer.predict(module, data_of(folder), return_predictions=False)


def plain(folder: Path) -> None:
    """The U-Net alone, in the same tiles."""
    module, pictures = smp.Unet("resnet34", encoder_weights=None, classes=2).eval(), Pictures()
    side = SIDES["small"]

    @torch.inference_mode()
    def said(window: object) -> dict[str, torch.Tensor]:
        pixels = pictures.image(folder / "new" / "slide.tif", window)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        return {"probs": module(image).softmax(dim=1)}

    parts = ((window, said(window)) for window in tiles(side, side, TILE))
    probs = blend(parts, range(side), range(side), ["probs"])["probs"]
    Image.fromarray(probs[0].argmax(0).byte().numpy()).save(folder / "plain.png")


def page(folder: Path) -> None:
    """As `tax explain`."""
    data, module = data_of(folder), TAXLightningModule(*names(4), **one())
    explained = ExplainedImages(module, data.predict_dataset(), data.to_picture, tile=TILE)
    file = write_report(explained, folder / "report", overwrite=True)
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MB", file=sys.stderr)


def names(annotators: int) -> tuple[list[str], list[str]]:
    """Of the annotators and the classes."""
    return [f"annotator {n}" for n in range(annotators)], CLASSES


def one() -> dict[str, object]:
    """One convolution in place of a network, so that all else is measured."""
    return {"network": torch.nn.Conv2d(3, 8, 3, padding=1)}


STEPS: dict[str, dict[str, Callable[[Path], object]]] = {
    "small": {
        "libraries alone": lambda folder: None,
        "U-Net alone": plain,
        "a head for each of 10": lambda folder: predict(folder, MultiHead(*names(10))),
        "TAX, 10 annotators": lambda folder: predict(folder, TAXLightningModule(*names(10))),
    },
    "large": {
        "a head for each of 4": lambda folder: predict(folder, MultiHead(*names(4), **one())),
        "TAX, 4 annotators": lambda folder: predict(
            folder, TAXLightningModule(*names(4), kernels=1, **one())
        ),
    },
    "page": {"tax explain, 4 annotators": page},
}


def carry_out(folder: Path, step: str, name: str) -> None:
    """Carry out one step and print its seconds of the processor, and MB at most."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    STEPS[step][name](folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(seconds, used.ru_maxrss / 1024)


def main() -> None:
    """Make the images, carry out the steps, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made; about 4 GB are written to it")
    parser.add_argument("--steps", nargs="+", default=["small"], choices=list(STEPS))
    parser.add_argument("--only", nargs=2, help="a step and a row of it, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        carry_out(arguments.folder, *arguments.only)
        return
    print(
        "| image | step | seconds | beside the U-Net | memory at most |\n|---|---|---:|---:|---:|"
    )
    for step in arguments.steps:
        folder, side = arguments.folder / step, SIDES[step]
        make(folder, 10 if step == "small" else 4, side)
        alone = None
        for name in STEPS[step]:
            command = [sys.executable, "-m", "experiments.large_image", str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.run(
                [*command, "--only", step, name],
                stdout=subprocess.PIPE,
                env=environment,
                check=True,
            )
            seconds, memory = map(float, process.stdout.split()[-2:])
            alone = seconds if name == "U-Net alone" else alone
            beside = f"{seconds / alone:.2f}" if alone else ""
            print(
                f"| {side} x {side} | {name} | {seconds:.0f} | {beside} | {memory:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
