"""A W&B run without an account, read back from its folder."""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tax_lightning.__main__ import main

wandb = pytest.importorskip("wandb")

ANNOTATORS = ("Ana", "Ben", "Chloe", "Dara", "Emil")

REPO = Path(__file__).parent.parent


def chunks(content: bytes):
    """The payloads of a LevelDB log: blocks of 32 KiB, in which a payload may come in pieces."""
    position, pieces = 7, []  # W&B's own header
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # too small for a header: padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pieces.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield b"".join(pieces)
            pieces = []


def records(file: Path, patience: float = 30):
    """All records of an offline run's file, which W&B's own process ends a moment after the run."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    found = []
    deadline = time.monotonic() + patience
    while not any(record.HasField("exit") for record in found):
        assert time.monotonic() < deadline, f"{file} has no end: {len(found)} records"
        try:
            found = [wandb_internal_pb2.Record.FromString(c) for c in chunks(file.read_bytes())]
        except DecodeError:  # still being written
            time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The file of an offline run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    main(
        [
            "fit",
            *("--config", str(REPO / "experiments" / "quickstart.yaml")),
            *("--config", str(REPO / "tests" / "tiny.yaml")),
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger.init_args.save_dir={folder}",
        ]
    )
    wandb.finish()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


@pytest.fixture(scope="module")
def logged(run):
    """Every key of the run with its values in their order."""
    found = {}
    for record in records(run):
        for item in record.history.item:
            found.setdefault(item.key or "/".join(item.nested_key), []).append(
                json.loads(item.value_json)
            )
    return found


def media(logged, key):
    """The values of a key that holds pictures or tables, each as a dictionary."""
    parts = {k.removeprefix(f"{key}/"): v for k, v in logged.items() if k.startswith(f"{key}/")}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def written(run, name):
    """A file of the explanations' folder, which is beside that of the run."""
    (path,) = run.parents[2].rglob(f"explanations/{name}")
    return path


def test_an_offline_run_holds_scalars_by_name(logged):
    for key in ("train/loss", "train/loss_who", "val/dice/Ana", "val/fused_iou/cell", "val/ged2"):
        assert isinstance(logged[key][-1], float | int), key
    assert 0 <= logged["val/who_accuracy_expert"][-1] <= 1


def test_a_sweep_sees_the_monitored_value_of_the_best_checkpoint(run, logged):
    (noted,) = run.parents[2].rglob("metrics.json")
    best = json.loads(noted.read_text())["fit"]["metrics"]["val/fused_dice/mean"]
    assert len(logged["val/fused_dice/mean"]) == 3  # of both epochs and of the checkpoint
    assert logged["val/fused_dice/mean"][-1] == pytest.approx(best)


def test_it_holds_the_panels_of_both_epochs_as_they_are_in_files(run, logged):
    pictures = {key for key in logged if key.startswith("explanations/val-")}
    assert {key.split("/")[1] for key in pictures} == {"val-0000", "val-0003"}
    for sample in ("val-0000", "val-0003"):
        shown = media(logged, f"explanations/{sample}")
        assert len(shown) == 2
        image = Image.open(run.parent / "files" / shown[-1]["filenames"][0])
        drawn = Image.open(written(run, f"final-{sample}.png"))
        assert np.array_equal(np.asarray(image), np.asarray(drawn))


def artifacts(run, kind):
    """The artifacts of a type: the local file of every entry by its name."""
    found = [r.artifact for r in records(run) if r.HasField("artifact") and r.artifact.type == kind]
    return [{e.path: Path(e.local_path) for e in a.manifest.contents} for a in found]


def test_it_holds_the_prototypes_as_a_picture(run, logged):
    (gallery,) = media(logged, "explanations/gallery")
    image = Image.open(run.parent / "files" / gallery["filenames"][0])
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(written(run, "gallery.png"))))


def test_it_holds_the_end_of_the_run_as_an_artifact(run):
    (files,) = artifacts(run, "explanation")
    panels = {f"final-val-{number}.png" for number in ("0000", "0003")}
    assert set(files) == {*panels, "report.html", "gallery.png"}
    for name, file in files.items():
        assert file.read_bytes() == written(run, name).read_bytes()


def test_it_holds_the_whole_configuration_and_the_state_of_the_source(run):
    config = {}
    for record in records(run):
        for change in record.config.update:
            config[change.key or "/".join(change.nested_key)] = json.loads(change.value_json)
    assert config["data"]["init_args"]["train_samples"] == 8
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-3
    assert config["explanations"]["samples"] == 2
    assert config["seed_everything"] == 0
    assert config["kernels"] == 2  # of the model's own hyper-parameters
