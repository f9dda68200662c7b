"""Trains and tests the same model in one process and in two, and writes down what each ends with.

Started as ``python ddp_equal.py FOLDER``; the second process is this script once more.
"""

import os
import sys
from pathlib import Path

import lightning as L
import torch
from test_method import Scenes, make_backbone, make_module, make_trainer
from torch.utils.data import DataLoader, DistributedSampler

from tax_lightning.modules import calibration

STEPS = 21
calibration.FIT_STEPS = 60  # as in conftest.py
# Only the expert is right just outside an object, which tells how certain who may be.
TOO_LARGE = (0.0, 2.5, 2.0, 3.0, 3.5)
# Annotators whose labels are missing, by image. Of two processes the first has the even images, of
# which it sees few labels of Ben and all of Ana; the second has the odd ones.
ABSENT = {0: [1], 2: [1, 3], 5: [0, 2, 4], 7: [3], 8: [1], 10: [1]}
UNKNOWN = (1, 9)  # images of the second process that mostly have no reference


class Apart(L.Callback):
    """Lets each process train with the sums over its own images."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        module.loss.total = lambda local: local


def loader(devices: int, **scenes) -> DataLoader:
    """Global batches of four of twelve small scenes."""
    samples = list(Scenes(12, size=20, margins=TOO_LARGE, **scenes))
    for i, absent in ABSENT.items():
        samples[i]["masks"][absent] = 255
    for i in UNKNOWN:
        samples[i]["reference"][:12] = 255
    rank = int(os.environ.get("LOCAL_RANK", 0))
    sampler = DistributedSampler(samples, num_replicas=devices, rank=rank, shuffle=False)
    return DataLoader(samples, batch_size=4 // devices, sampler=sampler)


def run(devices: int, folder: Path, apart: bool = False) -> None:
    """Train, validate and test; with ``apart`` each process sums its own images only."""
    torch.manual_seed(0)
    module = make_module(
        # Batch norm takes the statistics of each process by design.
        network=make_backbone(norm=False),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        explanation_metrics=True,
    )
    trainer = make_trainer(
        devices=devices,
        precision="64-true",  # so that sums in another order stay far below what is tested
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        use_distributed_sampler=False,  # that of Lightning shuffles
        num_sanity_val_steps=0,
        check_val_every_n_epoch=7,  # once, at the end
        callbacks=[Apart()] if apart else [],
    )
    trainer.fit(module, loader(devices), loader(devices, seed=1))
    end = {"state": module.state_dict(), "world": trainer.world_size, "val": values_of(trainer)}
    if not apart:
        trainer.test(module, loader(devices, seed=2), verbose=False)
        end["test"] = values_of(trainer)
    torch.save(end, folder / f"{'apart' if apart else devices}-{trainer.global_rank}.pt")


def values_of(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if "LOCAL_RANK" not in os.environ:
        run(devices=1, folder=target)
    run(devices=2, folder=target)
    run(devices=2, folder=target, apart=True)
