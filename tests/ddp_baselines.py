"""Trains every baseline in one process and in two, and writes down what each ends with.

Started as ``python ddp_baselines.py FOLDER``; the second process is this script once more.
"""

import os
import sys
from pathlib import Path

import torch
from baseline_scenes import make, make_backbone, make_trainer, scenes
from torch.utils.data import DataLoader, DistributedSampler

from tax_lightning import baselines

KINDS = [name for name in baselines.__all__ if name != "Baseline"]
STEPS = 8
# Of two processes the first sees 0 and 2, the second 1 and 3, and so on: Ben is missing from the
# first batch of the one and in that of the other.
ABSENT = {0: [1], 2: [1, 2], 5: [0, 1], 7: [1]}


def run(name: str, devices: int, folder: Path) -> None:
    """Train on global batches of four."""
    torch.manual_seed(0)
    module = make(
        getattr(baselines, name),
        # Batch norm takes the statistics of each process by design.
        network=make_backbone(norm=False),
        # Adam would divide gradients that are zero but for rounding by their own size.
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    trainer = make_trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        use_distributed_sampler=False,  # that of Lightning shuffles
    )
    samples = scenes(absent=ABSENT)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    sampler = DistributedSampler(samples, num_replicas=devices, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(samples, batch_size=4 // devices, sampler=sampler))
    file = f"{name}-{devices}-{trainer.global_rank}.pt"
    torch.save({"state": module.state_dict(), "world": trainer.world_size}, folder / file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    first = "LOCAL_RANK" not in os.environ
    if first:
        for kind in KINDS:
            run(kind, devices=1, folder=target)
    for kind in KINDS:
        run(kind, devices=2, folder=target)
