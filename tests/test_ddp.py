"""Two processes on the CPU: as a user starts them, and compared with one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from baseline_scenes import ALL
from ddp_runs import shard
from test_metrics import results

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
        "--data.init_args.missing=0.5",
        "--data.init_args.batch_size=1",
        "--data.init_args.val_samples=5",  # which two processes cannot share evenly
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


def test_every_image_is_measured_by_one_process_only(run):
    folder, _ = run
    parts = [(folder / f"measured-{rank}.txt").read_text().split() for rank in range(2)]
    assert [len(part) for part in parts] == [3, 2]
    assert len(set(parts[0] + parts[1])) == 5


def test_sources_and_examples_come_from_the_images_of_both_ranks(run):
    folder, _ = run
    state = torch.load(folder / "rank-0.pt", weights_only=True)["state"]
    pixels = [ids for row in state["_extra_state"]["pixel_ids"] for ids in row]
    names = {name for ids in pixels for name in ids if name}
    numbers = {int(name.rsplit("-", 1)[1]) % 2 for name in names}
    assert numbers == {0, 1}, names


def test_one_set_of_pictures_and_one_report(run):
    folder, output = run
    pictures = sorted(folder.rglob("final-*.png"))
    assert len({picture.name for picture in pictures}) == len(pictures) > 0
    assert output.count("checkpoint  ") == 1


# ---------------------------------------------------------------------- compared with one process


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What the runs of ``ddp_runs.py`` end with, by the name of the run and the process."""
    folder = tmp_path_factory.mktemp("equal")
    done = subprocess.run(
        [sys.executable, str(REPO / "tests" / "ddp_runs.py"), str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_end_where_one_does(ends, rank):
    assert (ends["1-0"]["world"], ends[f"2-{rank}"]["world"]) == (1, 2)
    # In float64, where sums in another order differ by 1e-15 at the end (measured).
    assert_same_end(ends["1-0"], ends[f"2-{rank}"], 1e-9)


def test_one_process_goes_on_where_two_stopped(ends):
    # Lightning reads the weights of a checkpoint in float32.
    assert_same_end(ends["1-0"], ends["1 after 2-0"], 1e-6)


def assert_same_end(one, other, difference):
    ids = "network.memory._extra_state"
    assert other["state"][ids] == one["state"][ids]
    for name in one["state"].keys() - {ids}:
        torch.testing.assert_close(
            *(run["state"][name] for run in (other, one)),
            atol=difference,
            rtol=0,
            equal_nan=True,
            msg=lambda said, name=name: f"{name}: {said}",
        )


def test_the_processes_see_different_annotators_and_calibrate_who(ends):
    # Else a process that counted or calibrated alone would end where both together do.
    state = ends["1-0"]["state"]
    assert state["network.memory.projected"]
    assert state["loss.images_seen"] == 84
    assert state["loss.images_labelled"].tolist() == [77, 56, 77, 70, 77]
    assert state["network.trust.scale"] != 1
    assert state["network.trust.scores"].isfinite().all()


def test_sums_of_each_process_alone_end_elsewhere(ends):
    one, apart = ends["1-0"]["state"], ends["apart-0"]["state"]
    for name in ("network.memory.vectors", "network.bank.weight"):
        assert (one[name] - apart[name]).abs().max() > 0.1, name


# Controls that exchange annotators batch by batch, and means over batches.
OF_BATCHES = ("_exchanged", "val/loss", "test/loss")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("split", ["val", "test"])
def test_two_processes_measure_what_one_does(ends, split, rank):
    one, two = ends["1-0"][split], ends[f"2-{rank}"][split]
    assert two.keys() == one.keys()
    same = {name for name in one if not any(part in name for part in OF_BATCHES)}
    assert len(same) >= {"val": 20, "test": 40}[split]
    # A pixel on the edge between two classes may fall to either.
    wrong = {name: (two[name], one[name]) for name in same if abs(two[name] - one[name]) > 1e-3}
    assert wrong == {}


def test_both_processes_know_every_value(ends):
    assert ends["2-0"]["val"] == ends["2-1"]["val"]
    assert ends["2-0"]["test"] == ends["2-1"]["test"]


@pytest.mark.parametrize("kind", [kind.__name__ for kind in ALL])
def test_two_processes_train_one_baseline_and_what_one_process_does(ends, kind):
    alone, first, second = (ends[f"{kind}-{name}"] for name in ("1-0", "2-0", "2-1"))
    assert (alone["world"], first["world"]) == (1, 2)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert value.isfinite().all(), name
        # Of these each process draws its own z or annotators.
        if kind not in ("Pionono", "ProbabilisticUNet", "RandomRater"):
            torch.testing.assert_close(value, alone["state"][name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("rank", [0, 1])
def test_metrics_of_two_processes_are_those_of_one(ends, rank):
    expected = results(*shard(0), *shard(1))
    torch.testing.assert_close(ends[f"metrics-{rank}"], expected, rtol=1e-6, atol=1e-6)
