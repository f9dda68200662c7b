"""Two processes on the CPU, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One distributed run of a small quick start in which annotators are often absent."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [
        sys.executable,
        *("-m", "tax_lightning", "fit"),
        *("--config", str(REPO / "experiments" / "quickstart.yaml")),
        *("--config", str(REPO / "experiments" / "ddp.yaml")),
        *("--config", str(REPO / "tests" / "tiny.yaml")),
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--model.init_args.encoder=resnet18",  # of which depth 3 leaves a layer unused
        "--data.init_args.missing=0.7",
        "--data.init_args.batch_size=1",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.logger.init_args.save_dir={folder}",
        "--trainer.callbacks+=ddp_probe.Probe",
        f"--trainer.callbacks.folder={folder}",
    ]
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_prototypes_and_their_sources_are_bit_identical_on_both_ranks(run):
    folder, _ = run
    first, second = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["world"] == 2
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        if isinstance(value, torch.Tensor):
            other = second["state"][name]
            assert torch.equal(value.nan_to_num(9), other.nan_to_num(9)), name
        else:
            assert value == second["state"][name]
    assert first["state"]["projected"]


def test_an_annotator_was_missing_from_a_batch_of_one_rank_only(run):
    folder, _ = run
    first, second = ((folder / f"present-{rank}.txt").read_text().split() for rank in range(2))
    assert any(mine != theirs for mine, theirs in zip(first, second, strict=True))


def test_sources_come_from_the_images_of_both_ranks(run):
    folder, _ = run
    state = torch.load(folder / "rank-0.pt", weights_only=True)["state"]
    names = {ids[0] for row in state["_extra_state"]["source_ids"] for ids in row if ids}
    numbers = {int(name.rsplit("-", 1)[1]) % 2 for name in names}
    assert numbers == {0, 1}, names


def test_one_set_of_pictures_and_one_report(run):
    folder, output = run
    pictures = sorted(folder.rglob("final-*.png"))
    assert len({picture.name for picture in pictures}) == len(pictures) > 0
    assert output.count("checkpoint  ") == 1
