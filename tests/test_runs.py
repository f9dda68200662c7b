"""The runner of the studies, the test that it starts, their tables and their figures."""

import asyncio
import doctest
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments import dots, runs, tables
from experiments.runs import Run, add_row, carry_out, fit_and_test, read_rows
from tax_lightning.baselines import Consensus
from tax_lightning.batch import unpacked
from tax_lightning.metrics import FusedOverlap
from tax_lightning.simulation import SyntheticDataModule

REPO = Path(__file__).parent.parent

# Stands in for `tax fit` and the test: it leaves the files that they would, or fails where told to.
FAKE = """
import json, os, sys, time
from pathlib import Path

module, command, *flags = sys.argv[1:]
options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
assert Path("experiments", "score.py").is_file()  # else Python would not find it
where = Path(__file__).parent
with (where / "calls.txt").open("a") as calls:
    print(module, *sys.argv[2:], file=calls)
if (where / "hang").exists():
    (where / "part").write_text(str(os.getpid()))
    (where / "part").rename(where / "hanging")
    time.sleep(60)
if command == (where / "fails").read_text() and options["seed_everything"] == "1":
    print("line", *range(100), sep="\\nline ")
    sys.exit("tax: error: all is lost")
if command == "fit":
    Path(options["checkpoint.dirpath"], "best.ckpt").touch()
else:
    assert Path(options["ckpt_path"]).is_file()
    Path(options["result"]).write_text(json.dumps({"dice/mean": 1 / 3, "images/dice": "0 1"}))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder of a program that the runner takes for `tax`."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "fails").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(runs, "LAUNCHER", (sys.executable, "-IS", str(tmp_path / "fake.py")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def calls(fake):
    path = fake / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def seeds(*numbers):
    return [Run(Path("data.yaml"), "default", seed) for seed in numbers]


def keys(table):
    return sorted((row["data"], row["name"], row["seed"]) for row in read_rows(table))


def test_a_run_is_one_row_that_says_all(fake):
    run = Run(Path("cells.yaml"), "kernels=8", 2, ("--both=1",), ("--kernels=8",), ("--why=true",))
    assert carry_out(fake / "new" / "results.csv", [run], fit_and_test, 1) == 0
    (row,) = read_rows(fake / "new" / "results.csv")
    assert (row["data"], row["name"], row["seed"]) == ("cells", "kernels=8", "2")
    assert float(row["dice/mean"]) == pytest.approx(1 / 3, abs=1e-8)
    assert row["images/dice"] == "0 1"
    assert float(row["fit_seconds"]) >= 0
    assert row["commit"] == runs.code_commit() != ""
    fit, test = (set(call.split()) for call in calls(fake))
    both = {"--config=cells.yaml", "--seed_everything=2", "--both=1"}
    assert fit >= both | {"tax_lightning", "fit", "--kernels=8"}
    assert test >= both | {"experiments.score", "test", "--why=true"}
    assert "--why=true" not in fit
    assert "--kernels=8" not in test  # data and reference of a test are alike for all runs
    assert not list((fake / "tmp").iterdir())


def test_what_is_there_is_not_run_again(fake):
    table = fake / "results.csv"
    assert carry_out(table, seeds(0, 0), fit_and_test, 1) == 0
    assert len(calls(fake)) == 2  # named twice, run once
    assert carry_out(table, seeds(0, 1), fit_and_test, 2) == 0
    assert len(calls(fake)) == 4
    assert all("--seed_everything=1" in call for call in calls(fake)[2:])
    assert carry_out(table, seeds(0, 1), fit_and_test, 1) == 0
    assert len(calls(fake)) == 4
    assert len(keys(table)) == 2


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_failed_run_is_reported_and_tried_again(fake, capsys, command):
    table = fake / "results.csv"
    (fake / "fails").write_text(command)
    assert carry_out(table, seeds(0, 1, 2), fit_and_test, 1) == 1
    assert [seed for _, _, seed in keys(table)] == ["0", "2"]
    said = capsys.readouterr().err
    assert f" {command} --config=data.yaml" in said
    assert "line 99\ntax: error: all is lost\n" in said
    assert "line 9\n" not in said  # the end only
    assert said.endswith("FAILED data default 1\n")
    assert not list((fake / "tmp").iterdir())

    (fake / "fails").write_text("")
    assert carry_out(table, seeds(0, 1, 2), fit_and_test, 1) == 0
    assert [seed for _, _, seed in keys(table)] == ["0", "1", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_study_is_taken_up_where_it_ended(fake, number):
    table = fake / "results.csv"
    assert carry_out(table, seeds(0), fit_and_test, 1) == 0
    (fake / "hang").touch()
    script = (
        # Whoever starts the tests in the background may have had Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from experiments import runs; "
        f"runs.LAUNCHER = (sys.executable, '-IS', {str(fake / 'fake.py')!r}); "
        "todo = [runs.Run(Path('data.yaml'), 'default', seed) for seed in (0, 1, 2)]; "
        f"sys.exit(runs.carry_out(Path({str(table)!r}), todo, runs.fit_and_test, 1))"
    )
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", script],
        cwd=REPO,
        env={**os.environ, "TMPDIR": str(fake / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(fake / "hanging")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == runs.INTERRUPTED
    assert "takes up where this one ended" in said
    assert "Traceback" not in said
    assert [seed for _, _, seed in keys(table)] == ["0"]
    assert not list((fake / "tmp").iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake / "hanging").read_text()), 0)  # only asks whether it is there

    (fake / "hang").unlink()
    assert carry_out(table, seeds(0, 1, 2), fit_and_test, 1) == 0
    assert [seed for _, _, seed in keys(table)] == ["0", "1", "2"]
    assert sum("--seed_everything=0" in call for call in calls(fake)) == 2  # a fit and a test


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_table_is_the_old_or_the_new_one(tmp_path, monkeypatch, broken):
    table = tmp_path / "results.csv"
    add_row(table, {"data": "d", "name": "a", "seed": "0", "dice": 0.5})
    before = table.read_bytes()

    def break_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, broken, break_off)
    with pytest.raises(KeyboardInterrupt):
        add_row(table, {"data": "d", "name": "a", "seed": "1", "dice": 0.7})
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    assert table.read_bytes() == before


def test_every_table_in_git_has_one_row_a_run():
    for path in (REPO / "experiments").rglob("*.csv"):
        with path.open() as file:
            if "name" not in file.readline().split(","):
                continue  # a study of data alone, without runs
        found = keys(path)
        assert len(found) == len(set(found)) > 0
        assert path.stat().st_size < 300_000


TINY = """
trainer: {max_epochs: 1, accelerator: cpu}
data:
  class_path: SyntheticDataModule
  init_args: {size: 64, train_samples: 4, val_samples: 2, test_samples: 3, batch_size: 2}
model:
  class_path: TAXLightningModule
  init_args:
    encoder: tu-test_resnet.r160_in1k
    encoder_weights: null
    backbone_options: {encoder_depth: 3, decoder_channels: [16, 8, 8]}
    reference: given
"""


async def in_this_process(module, arguments, scratch):
    """As the runner's own `execute`, without imports that take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
    return 0.0


def test_training_and_test_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "execute", in_this_process)
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    fit = ("--model.init_args.reference=majority",)
    run = Run(config, "majority", 0, ("--model=Consensus",), fit, ("--images=true",))
    found = asyncio.run(fit_and_test(run, tmp_path))
    assert not list(tmp_path.rglob("*.png"))
    # Trained for the majority, measured against what the configuration names.
    assert torch.load(tmp_path / "best.ckpt")["hyper_parameters"]["reference"] == "majority"
    data = SyntheticDataModule(**yaml.safe_load(TINY)["data"]["init_args"])
    data.setup("test")
    model = Consensus.load_from_checkpoint(tmp_path / "best.ckpt").eval()
    overlap = FusedOverlap(data.classes)
    for batch in map(unpacked, data.test_dataloader()):
        prediction = model.predict(batch["image"]).argmax(dim=1)
        overlap.update(prediction=prediction, reference=batch["reference"])
    truth = float(overlap.compute()["fused_dice/mean"])
    assert found["fused_dice/mean"] == pytest.approx(truth, abs=1e-5)
    for score, metric in (("ged2", "ged2"), ("dice", "dice/mean")):
        numbers = [float(text) for text in found[f"images/{score}"].split()]
        assert len(numbers) == 3
        assert np.mean(numbers) == pytest.approx(found[metric], abs=1e-5)


def test_the_rows_of_a_data_set_are_in_the_order_of_the_seeds(tmp_path, capsys):
    path = tmp_path / "results.csv"
    for data, seed, dice in (("a", "2", 0.9), ("b", "0", 0.1), ("a", "0", 0.5), ("a", "7", 0.0)):
        add_row(path, {"data": data, "name": "x", "seed": seed, "dice": dice})
    add_row(path, {"data": "a", "name": "y", "seed": "0", "area": 0.1 + 0.2})
    rows = tables.stored(path, "a", [0, 1, 2])
    assert path.read_text().startswith(",".join([*runs.FIRST, "area", "dice"]))
    assert tables.values(rows, "y", "area") == [0.3]
    assert tables.values(rows, "y", "dice") == []
    assert tables.values(rows, "x", "dice") == [0.5, 0.9]
    assert tables.cell(tables.values(rows, "x", "dice"), 3) == "0.700 ± 0.283 (2 of 3)"
    assert tables.stored(path, "c", [0]) == []
    assert f"no results of c with these seeds in {path}" in capsys.readouterr().err


def test_rings_bar_and_line_are_where_the_numbers_are():
    # limits 0 and 1 with their room of 6 %; the default's mean is .5, the other's .25
    panel = dots.Panel("m", "", {"default": [0.0, 1.0], "other": [0.0, 0.5]})
    rows = [dots.Row("default", "default"), dots.Row("heading"), dots.Row("other", "other")]
    picture = np.asarray(dots.draw(rows, [panel], baseline="default"))

    def columns(line, colour, height):
        """Where the colour stands in a row, from 0 to 1 along the axis, at a height in it."""
        left, wanted = dots.EDGE + dots.LABELS, [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        pixels = picture[round(dots.TOP + dots.LINE * line + height), left:]
        return (np.flatnonzero((pixels == wanted).all(axis=1)) + 0.5) / dots.PANEL * 1.12 - 0.06

    assert columns(0, dots.INK, 8).mean() == pytest.approx(0.5, abs=0.01)
    assert columns(2, dots.INK, 8).mean() == pytest.approx(0.25, abs=0.01)
    assert columns(1, dots.GREY, 20).mean() == pytest.approx(0.5, abs=0.01)
    rings = columns(2, dots.BLUE, 20)
    assert rings[rings < 0.25].mean() == pytest.approx(0.0, abs=0.01)
    assert rings[rings > 0.25].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("scale", [0.001, 0.013, 0.37, 0.81, 1.0, 47.0])
def test_an_axis_has_two_to_six_ticks(scale):
    found = dots.ticks(0.3 * scale, 1.3 * scale)
    assert 2 <= len(found) <= 6
    assert all(0.3 * scale <= tick <= 1.3 * scale for tick in found)
    assert dots.limits(dots.Panel("m", "", {"a": [0.5, 0.5]})) == pytest.approx((0.45, 0.55))
    with pytest.raises(ValueError, match="panels is empty"):
        dots.draw([], [], baseline="default")


EXAMPLES = ["tables", "dots", "ablation.variants", "benchmark.report", "trust.retraining"]


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_hold(module):
    found = doctest.testmod(importlib.import_module(f"experiments.{module}"))
    assert found.attempted > found.failed == 0
