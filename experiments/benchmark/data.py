"""How fast batches are read, against the bare decode of the same files with OpenCV.

    python -m experiments.benchmark.data

The files are made up: grainy images, each with masks of up to eight annotators. They are read as
they are, and as the shards that ``tax optimize`` writes of them. Everything runs in one process and
one thread, and the files have been read before, so that the disk does not count.
The ways of reading take turns; a ratio is the median of those of the single turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from tax_lightning.data import (
    FolderDataModule,
    MultiAnnotatorDataModule,
    SampleTable,
    StreamingDataModule,
    write_shards,
)
from tax_lightning.data.dataset import Source
from tax_lightning.data.description import Description

IMAGES, SIDE, ANNOTATORS, TURNS = 128, 512, 8, 7


def write_folder(root: Path) -> None:
    """Grainy pictures of blobs, and annotators who draw them larger or smaller."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        noise = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE, 3)), (12, 12, 0))
        scene = noise / noise.std()
        grain = rng.normal(0, 4, scene.shape)
        pixels = (128 + 40 * scene + grain).clip(0, 255).astype(np.uint8)
        _save(root / "images" / f"{number}.png", pixels)
        for annotator in range(ANNOTATORS):
            mask = scene[..., 0] > 0.2 + 0.05 * annotator
            place = root / "masks" / f"annotator{annotator}" / f"{number}.png"
            _save(place, mask.astype(np.uint8))
    Description("blobs", ("background", "blob"), ("red", "green", "blue")).write(root)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def load(root: Path, count: int) -> FolderDataModule:
    """All images for training, with the first annotators' masks."""
    return FolderDataModule(
        root,
        annotators=[f"annotator{number}" for number in range(count)],
        val_fraction=0.0,
        test_fraction=0.0,
        train_transforms=[],
    )


def decode(table: SampleTable) -> None:
    """OpenCV on every file, and nothing else."""
    for sample in table.samples:
        cv2.imread(str(sample.image), cv2.IMREAD_COLOR_RGB)
        for file in sample.mask_files:
            cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)


def batches(data: MultiAnnotatorDataModule) -> None:
    """An epoch of training batches."""
    for _ in data.train_dataloader():
        pass


def samples(source: Source) -> None:
    """Image and masks of every sample, one after the other."""
    for number in range(len(source.ids)):
        source[number]


def milliseconds(read: Callable[[], None]) -> float:
    """Processor time an image of one pass: other work on the machine does not count."""
    start = time.process_time()
    read()
    return 1e3 * (time.process_time() - start) / IMAGES


def measured(root: Path, count: int) -> dict[str, tuple[float, float]]:
    """Way of reading -> milliseconds an image, and speed relative to the bare decode."""
    data, shards = load(root, count), root / f"shards{count}"
    write_shards(data, shards)
    streamed = StreamingDataModule(shards, train_transforms="none")
    source = streamed._samples_of("train")
    ways = {
        "bare decode": lambda: decode(data.table),
        "batches": lambda: batches(data),
        "samples of shards": lambda: samples(source),
        "batches of shards": lambda: batches(streamed),
    }
    turns = [
        {name: milliseconds(read) for name, read in ways.items()}
        for _ in range(TURNS + 1)  # the first fills caches and is left out
    ]
    found = {name: [turn[name] for turn in turns[1:]] for name in ways}
    bare = found["bare decode"]
    return {
        name: (median(own), median(b / o for b, o in zip(bare, own, strict=True)))
        for name, own in found.items()
    }


def main() -> None:
    """Make up files, measure and print the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder))
        print("| annotators | bare decode, ms | batches | samples of shards | batches of shards |")
        print("|---:|---:|---:|---:|---:|")
        for count in (1, 2, 4, 8):
            found = measured(Path(folder), count)
            (decoding, _), *others = found.values()
            cells = [f"{own:.2f} ms, {ratio:.2f}" for own, ratio in others]
            print(f"| {count} | {decoding:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
