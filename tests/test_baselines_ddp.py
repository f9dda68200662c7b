"""The baselines in two processes on the CPU, with annotators missing from one of them.

This file is also the script that trains them; Lightning starts it once more as the second process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from baseline_scenes import ALL, make, make_backbone, make_trainer, scenes
from torch.utils.data import DataLoader, DistributedSampler

TESTS = Path(__file__).parent
# Of two processes the first sees 0 and 2, the second 1 and 3, and so on: Ben is missing from the
# first batch of the one and in that of the other.
ABSENT = {0: [1], 2: [1, 2], 5: [0, 1], 7: [1]}


def train(devices: int, folder: str) -> None:
    """Take 4 steps on global batches of four with each baseline, and store what it ends with."""
    for kind in ALL:
        torch.manual_seed(0)
        module = make(
            kind,
            # Batch norm takes the statistics of each process by design.
            network=make_backbone(norm=False),
            # Adam would divide gradients that are zero but for rounding by their own size.
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        )
        trainer = make_trainer(
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_steps=4,
            use_distributed_sampler=False,  # that of Lightning shuffles
        )
        samples = scenes(absent=ABSENT)
        rank = int(os.environ.get("LOCAL_RANK", 0))
        sampler = DistributedSampler(samples, num_replicas=devices, rank=rank, shuffle=False)
        trainer.fit(module, DataLoader(samples, batch_size=4 // devices, sampler=sampler))
        state = {"state": module.state_dict(), "world": trainer.world_size}
        torch.save(state, f"{folder}/{kind.__name__}-{devices}-{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp-baselines")
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, __file__, str(folder)]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=280, **both)
    assert done.returncode == 0, done.stdout[-6000:]
    return lambda name: torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in ALL])
def test_two_processes_train_one_model_and_what_one_process_does(load, kind):
    alone, first, second = (load(f"{kind}-{name}") for name in ("1-0", "2-0", "2-1"))
    assert first["world"] == 2
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert value.isfinite().all(), name
        # Of these each process draws its own z or annotators.
        if kind not in ("Pionono", "ProbabilisticUNet", "RandomRater"):
            torch.testing.assert_close(value, alone["state"][name], atol=1e-4, rtol=1e-3, msg=name)


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:
        train(1, sys.argv[1])
    train(2, sys.argv[1])
