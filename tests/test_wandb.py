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


def test_an_offline_run_holds_scalars_by_name_and_the_panels(tmp_path):
    main(
        [
            "fit",
            *("--config", str(REPO / "experiments" / "quickstart.yaml")),
            *("--config", str(REPO / "tests" / "tiny.yaml")),
            f"--trainer.default_root_dir={tmp_path}",
            f"--trainer.logger.init_args.save_dir={tmp_path}",
        ]
    )
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    values, pictures = {}, {}
    for record in records(file):
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            values[key] = json.loads(item.value_json)
            if key.endswith("/filenames"):
                pictures.setdefault(key.removesuffix("/filenames"), []).extend(values[key])

    for key in ("train/loss", "train/loss_who", "val/dice/Ana", "val/fused_iou/cell", "val/ged2"):
        assert isinstance(values[key], float | int), key
    assert 0 <= values["val/who_accuracy_owner"] <= 1

    # Two samples, each after both epochs.
    assert {key: len(files) for key, files in pictures.items()} == {
        "explanations/val-0000": 2,
        "explanations/val-0003": 2,
    }
    for key, files in pictures.items():
        logged = Image.open(file.parent / "files" / files[-1])
        (drawn,) = tmp_path.rglob(f"final-{key.split('/')[1]}.png")
        assert np.array_equal(np.asarray(logged), np.asarray(Image.open(drawn)))
