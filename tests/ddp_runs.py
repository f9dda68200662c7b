"""The same runs in one process and in two; each process writes down what it ends with.

Started as ``python ddp_runs.py FOLDER``. The processes are forked, as imports take seconds. This is
a program of its own, as PyTorch may refuse to train in the fork of a process that has trained.
"""

import os
import sys
from pathlib import Path

import baseline_scenes as baseline
import lightning as L
import test_metrics as metrics
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from short_last_fit import SHORT_LAST_FIT
from test_method import Scenes, make_backbone, make_module, make_trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from two_processes import in_two_processes

from tax_lightning import losses
from tax_lightning.callbacks.interruption import Interruption
from tax_lightning.modules import calibration


def shared(samples: Dataset | list, devices: int) -> DataLoader:
    """Global batches of four, of which each process has its part."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    # In the order of the samples; Lightning's own shuffles.
    sampler = DistributedSampler(samples, num_replicas=devices, rank=rank, shuffle=False)
    return DataLoader(samples, batch_size=4 // devices, sampler=sampler)


def together(devices: int) -> dict:
    """Options of a trainer."""
    strategy = "ddp" if devices > 1 else "auto"
    return {"devices": devices, "strategy": strategy, "use_distributed_sampler": False}


# ---------------------------------------------------------------------- the module


STEPS = 21
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


class FourthEpoch(ModelCheckpoint):
    """Keeps a checkpoint of the end of the fourth epoch of seven."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name, every_n_epochs=4, save_on_train_epoch_end=True)


def loader(devices: int, **scenes) -> DataLoader:
    """Twelve small scenes."""
    samples = list(Scenes(12, size=20, margins=TOO_LARGE, **scenes))
    for i, absent in ABSENT.items():
        samples[i]["masks"][absent] = 255
    for i in UNKNOWN:
        samples[i]["reference"][:12] = 255
    return shared(samples, devices)


def run(devices: int, folder: Path, apart: bool = False, after: int | None = None) -> None:
    """Train, validate and test, in the end.

    With ``apart`` each process sums its own images only. ``after`` goes on from the fourth epoch of
    a run in so many processes.
    """
    L.seed_everything(0, verbose=False)
    losses.PROTOTYPE_PIXELS = 100  # of 400, so that which ones are drawn matters
    module = make_module(
        # Batch norm takes the statistics of each process by design.
        network=make_backbone(norm=False),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        explanation_metrics=True,
    )
    trainer = make_trainer(
        **together(devices),
        precision="64-true",  # so that sums in another order stay far below what is tested
        max_steps=STEPS,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=7,  # once, at the end
        enable_checkpointing=not apart,
        callbacks=[Apart()] if apart else [Interruption(), FourthEpoch(folder, f"after {devices}")],
    )
    whence = None if after is None else folder / f"after {after}.ckpt"
    trainer.fit(module, loader(devices), loader(devices, seed=1), ckpt_path=whence)
    end = {"state": module.state_dict(), "world": trainer.world_size, "val": values_of(trainer)}
    if not apart and after is None:
        trainer.test(module, loader(devices, seed=2), verbose=False)
        end["test"] = values_of(trainer)
    name = "apart" if apart else devices if after is None else f"{devices} after {after}"
    torch.save(end, folder / f"{name}-{trainer.global_rank}.pt")


def values_of(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def apart(devices: int, folder: Path) -> None:
    run(devices, folder, apart=True)


# ---------------------------------------------------------------------- the baselines


# Ben is missing from the first batch of the one process and in that of the other.
BEN_ABSENT = {0: [1], 2: [1, 2], 5: [0, 1], 7: [1]}


def train_baselines(devices: int, folder: Path) -> None:
    """Take 4 steps with each baseline."""
    for kind in baseline.ALL:
        torch.manual_seed(0)
        module = baseline.make(
            kind,
            # Batch norm takes the statistics of each process by design.
            network=baseline.make_backbone(norm=False),
            # Adam would divide gradients that are zero but for rounding by their own size.
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        )
        trainer = baseline.make_trainer(**together(devices), max_steps=4)
        trainer.fit(module, shared(baseline.scenes(absent=BEN_ABSENT), devices))
        end = {"state": module.state_dict(), "world": trainer.world_size}
        torch.save(end, folder / f"{kind.__name__}-{devices}-{trainer.global_rank}.pt")


# ---------------------------------------------------------------------- the metrics


SHARDS = ((5,), (2, 1))  # images of each batch of each process


def shard(rank: int) -> list[dict[str, torch.Tensor]]:
    return [metrics.make_batch(images, seed=10 * rank + i) for i, images in enumerate(SHARDS[rank])]


def measure(devices: int, folder: Path) -> None:
    """All metrics of a few batches, other ones in each process."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=devices)
    torch.save(metrics.results(*shard(rank)), folder / f"metrics-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    vars(calibration).update(SHORT_LAST_FIT)  # as in conftest.py
    target = Path(sys.argv[1])
    for job in (run, apart, train_baselines, measure):
        in_two_processes(job, target)
    run(1, target)  # afterwards: see above
    run(1, target, after=2)
    train_baselines(1, target)
