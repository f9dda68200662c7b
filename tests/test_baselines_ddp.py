"""The baselines in two processes on the CPU, with annotators missing from one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_baselines import KINDS

TESTS = Path(__file__).parent
# Each process draws its own latent vectors.
DRAWN = {"Pionono", "ProbabilisticUNet"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp-baselines")
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "ddp_baselines.py"), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_one_model(folder, kind):
    first, second = (
        torch.load(folder / f"{kind}-2-{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert first["world"] == 2
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert value.isfinite().all(), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DRAWN])
def test_two_processes_train_what_one_does(folder, kind):
    alone = torch.load(folder / f"{kind}-1-0.pt", weights_only=True)["state"]
    both = torch.load(folder / f"{kind}-2-0.pt", weights_only=True)["state"]
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, atol=1e-4, rtol=1e-3, msg=name)
