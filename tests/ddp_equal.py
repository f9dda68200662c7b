"""Trains the same model in one process and in two, and writes down what each ends with.

Started as ``python ddp_equal.py FOLDER``; the second process is this script once more.
"""

import os
import sys
from pathlib import Path

import lightning as L
import torch
from test_method import Scenes, make_backbone, make_module, make_trainer
from torch.utils.data import DataLoader, DistributedSampler

STEPS = 30
ABSENT = {0: [1], 2: [1, 3], 5: [0, 2, 4], 7: [3], 8: [1], 10: [1]}
VARIANTS = {
    "private": {},
    "shared": {"bank": "shared", "mixing": "logit", "prototype_update": "ema", "kernels": 6},
}


class Apart(L.Callback):
    """Lets each process train with the sums over its own images."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        module.loss.total = lambda local: local


def images() -> list[dict]:
    """Twelve small scenes: of two processes the first sees 0 and 2, the second 1 and 3, and so on.

    So Ben is missing from the first batch of the one and in that of the other.
    """
    samples = list(Scenes(12, size=20))
    for i, absent in ABSENT.items():
        samples[i]["masks"][absent] = 255
    return samples


def run(name: str, devices: int, folder: Path, apart: bool = False) -> None:
    """Train on global batches of four; with ``apart`` each process sums its own images only."""
    torch.manual_seed(0)
    module = make_module(
        # Batch norm takes the statistics of each process by design.
        network=make_backbone(norm=False),
        # Adam would divide gradients that are zero but for rounding by their own size.
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        **VARIANTS[name],
    )
    trainer = make_trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        use_distributed_sampler=False,  # that of Lightning shuffles
        callbacks=[Apart()] if apart else [],
    )
    scenes = images()
    rank = int(os.environ.get("LOCAL_RANK", 0))
    sampler = DistributedSampler(scenes, num_replicas=devices, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(scenes, batch_size=4 // devices, sampler=sampler))
    file = f"{name}-{'apart' if apart else devices}-{trainer.global_rank}.pt"
    torch.save({"state": module.state_dict(), "world": trainer.world_size}, folder / file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    first = "LOCAL_RANK" not in os.environ
    if first:
        for variant in VARIANTS:
            run(variant, devices=1, folder=target)
    for variant in VARIANTS:
        run(variant, devices=2, folder=target)
    run("private", devices=2, folder=target, apart=True)
