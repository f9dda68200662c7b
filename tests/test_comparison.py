"""``tax compare``: what it runs, what it keeps, its tests over images, tables and figure."""

import asyncio
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tax_lightning.__main__ import main
from tax_lightning.baselines import Consensus
from tax_lightning.batch import unpacked
from tax_lightning.comparison import command, dots, report, runs
from tax_lightning.comparison.models import model_of
from tax_lightning.comparison.results import Results
from tax_lightning.comparison.runs import Run, carry_out
from tax_lightning.metrics import FusedOverlap
from tax_lightning.simulation import SyntheticDataModule

REPO = Path(__file__).parent.parent

# Stands in for `tax fit` and `tax test`: it leaves the files that they would, or fails where told.
FAKE = """
import json, os, sys, time
from pathlib import Path

stage, *flags = sys.argv[1:]
options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
where = Path(__file__).parent
with (where / "calls.txt").open("a") as calls:
    print(*sys.argv[1:], file=calls)
if (where / "hang").exists():
    (where / "part").write_text(str(os.getpid()))
    (where / "part").rename(where / "hanging")
    time.sleep(60)
if stage == (where / "fails").read_text() and options["seed_everything"] == "1":
    print("line", *range(100), sep="\\nline ")
    sys.exit("tax: error: all is lost")
folder = Path(options["checkpoint.dirpath"] if stage == "fit" else options["ckpt_path"])
folder = folder if stage == "fit" else folder.parent
folder.mkdir(exist_ok=True)
noted = folder / "metrics.json"
found = json.loads(noted.read_text()) if noted.exists() else {}
dice = {"val/dice/mean": 0.5, "dice": 7} if stage == "fit" else {"test/dice/mean": 1 / 3}
noted.write_text(json.dumps({**found, stage: {"metrics": dice}}))
if stage == "test":
    (folder / "test_images.csv").write_text("image,ged2,dice,dice/Ana\\na,1,0.25,0\\nb,,0.5,1\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder of a program that the runner takes for `tax`."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "fails").write_text("")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(runs, "LAUNCHER", (sys.executable, "-IS", str(tmp_path / "fake.py")))
    return tmp_path


def calls(fake):
    path = fake / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def todo(*seeds, text="m=MultiHead,kernel_size=1,data.init_args.size=64", fold=None):
    files, options = (Path("fit.yaml"), Path("test.yaml")), ("--fold=1",)
    return [Run(model_of(text), seed, fold, files, options, "staple") for seed in seeds]


def carried_out(fake, *seeds, jobs=1):
    return carry_out(fake / "out", Results(fake / "out"), todo(*seeds), jobs)


def done(fake):
    return sorted(seed for _, seed, _ in Results(fake / "out").keys)


def test_a_run_is_one_row_and_a_row_for_each_image(fake):
    assert carry_out(fake / "out", Results(fake / "out"), todo(2, text="a=B,c=1", fold=3), 1) == 0
    results = Results(fake / "out")
    (row,) = results.rows
    assert (row["model"], row["seed"], row["fold"]) == ("a", "2", "3")
    assert float(row["test/dice/mean"]) == pytest.approx(1 / 3, abs=1e-8)
    assert row["val/dice/mean"] == "0.5"
    assert "dice" not in row
    assert float(row["fit_seconds"]) >= 0
    assert len(row["code"]) >= 5
    assert [(r["image"], r["dice"], r["ged2"]) for r in results.image_rows] == [
        ("a", "0.25", "1"),
        ("b", "0.5", ""),
    ]
    assert (fake / "out" / "a" / "seed2-fold3" / "checkpoints" / "metrics.json").is_file()


def test_the_test_takes_the_model_from_its_checkpoint_and_all_else_from_the_configuration(fake):
    assert carried_out(fake, 0) == 0
    fit, test = (set(call.split()) for call in calls(fake))
    both = {"--seed_everything=0", "--fold=1"}
    assert fit >= both | {"fit", "--config=fit.yaml"}
    assert test >= both | {"test", "--config=test.yaml", "--model.init_args.reference=staple"}
    # the options of the model and the data are in these files
    assert not any("kernel_size" in word or "size=64" in word for word in fit | test)
    assert {word.partition("=")[0] for word in test - fit} >= {"--ckpt_path"}


def test_what_is_there_is_not_run_again(fake):
    assert carried_out(fake, 0) == 0
    assert carried_out(fake, 0, 1, jobs=2) == 0
    assert len(calls(fake)) == 4
    assert all("--seed_everything=1" in call for call in calls(fake)[2:])
    assert carried_out(fake, 0, 1) == 0
    assert len(calls(fake)) == 4
    assert done(fake) == ["0", "1"]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_failed_run_is_reported_and_tried_again(fake, capsys, stage):
    (fake / "fails").write_text(stage)
    assert carried_out(fake, 0, 1, 2) == 1
    assert done(fake) == ["0", "2"]
    said = capsys.readouterr().err
    assert f"tax {stage} --config={stage}.yaml" in said
    assert "line 99\ntax: error: all is lost\n" in said
    assert "line 9\n" not in said  # the end only
    assert said.endswith("FAILED m, seed 1\n")
    (fake / "fails").write_text("")
    assert carried_out(fake, 0, 1, 2) == 0
    assert done(fake) == ["0", "1", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_comparison_goes_on_where_it_ended(fake, number):
    assert carried_out(fake, 0) == 0
    (fake / "hang").touch()
    script = (
        # Whoever starts the tests in the background may have had Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from tax_lightning.comparison import runs; "
        "from tax_lightning.comparison.models import model_of; "
        "from tax_lightning.comparison.results import Results; "
        f"runs.LAUNCHER = (sys.executable, '-IS', {str(fake / 'fake.py')!r}); "
        "files = (Path('fit.yaml'), Path('test.yaml')); model = model_of('MultiHead'); "
        "todo = [runs.Run(model, seed, None, files, (), 'none') for seed in (1, 2)]; "
        f"out = Path({str(fake / 'out')!r}); "
        "sys.exit(runs.carry_out(out, Results(out), todo, 1))"
    )
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", script], cwd=REPO, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(fake / "hanging")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    child = int((fake / "hanging").read_text())
    if number == signal.SIGKILL:  # nobody tidies up; the fake, unlike `tax`, does not notice
        os.kill(child, signal.SIGKILL)
    else:
        assert process.returncode == runs.INTERRUPTED
        assert "goes on where this one ended" in said
        assert "Traceback" not in said
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)  # only asks whether it is there
    assert done(fake) == ["0"]
    (fake / "hang").unlink()
    assert carried_out(fake, 0, 1, 2) == 0
    assert done(fake) == ["0", "1", "2"]


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def test_a_run_ends_with_the_process_that_started_it():
    script = (
        "import threading, time; from tax_lightning.comparison.process import end_with_input; "
        "threading.Thread(target=end_with_input, daemon=True).start(); "
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == -signal.SIGKILL
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize("broken", ["images.csv", "results.csv"])
def test_a_row_says_that_a_run_is_done_and_comes_last(fake, monkeypatch, broken):
    assert carried_out(fake, 0) == 0
    before = Results(fake / "out")
    replace = os.replace

    def break_off(part, path):
        if Path(path).name == broken:
            raise KeyboardInterrupt
        replace(part, path)

    monkeypatch.setattr(os, "replace", break_off)
    with pytest.raises(KeyboardInterrupt):
        Results(fake / "out").add(("MultiHead", "5", ""), {"test/ged2": 0.5}, [{"image": "a"}])
    after = Results(fake / "out")
    assert after.rows == before.rows
    assert after.image_rows == before.image_rows


TINY = """
trainer: {max_epochs: 2, accelerator: cpu}
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


ENDS = (".yaml", ".test.yaml")


@pytest.fixture
def in_process(monkeypatch):
    """Runs `tax` in the process of the tests, which has imported everything."""

    async def execute(arguments, place, jobs, trusted):
        try:
            await asyncio.to_thread(main, arguments)
        except SystemExit as stop:
            raise runs.RunFailedError(str(stop)) from stop
        return 1.0

    monkeypatch.setattr(runs, "execute", execute)


@pytest.mark.filterwarnings("ignore")  # of Lightning, on runs as small as these
def test_models_are_trained_tested_and_compared(tmp_path, monkeypatch, in_process, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    asked = ["compare", "--config", "tiny.yaml", "--seeds", "0", "--trainer.max_epochs=1"]
    asked += ["--models", "MultiHead"]
    main([*asked, "vote=Consensus,reference=majority"])
    out = tmp_path / "runs" / "compare" / "tiny"
    # Trained for the majority, measured against what the configuration names.
    checkpoint = out / "vote" / "seed0" / "checkpoints" / "best.ckpt"
    assert torch.load(checkpoint)["hyper_parameters"]["reference"] == "majority"
    data = SyntheticDataModule(**yaml.safe_load(TINY)["data"]["init_args"])
    data.setup("test")
    model, overlap = Consensus.load_from_checkpoint(checkpoint).eval(), FusedOverlap(data.classes)
    for batch in map(unpacked, data.test_dataloader()):
        prediction = model.predict(batch["image"]).argmax(dim=1)
        overlap.update(prediction=prediction, reference=batch["reference"])
    truth = float(overlap.compute()["fused_dice/mean"])
    kept, tested = (yaml.safe_load((out / "configs" / f"vote{end}").read_text()) for end in ENDS)
    assert kept["trainer"]["max_epochs"] == 1
    assert kept["data"] == tested["data"]
    assert "model" not in tested
    results = Results(out)
    figures = {row["model"]: row for row in results.rows}
    assert float(figures["vote"]["test/fused_dice/mean"]) == pytest.approx(truth, abs=1e-5)
    for name in ("MultiHead", "vote"):
        own = [row for row in results.image_rows if row["model"] == name]
        assert [row["image"] for row in own] == [f"test-{i:04}" for i in range(3)]
        for score in ("ged2", "samples/ged2", "dice"):
            key = f"test/{score}" if "ged2" in score else f"test/{score}/mean"
            mean = np.mean([float(row[score]) for row in own])
            assert mean == pytest.approx(float(figures[name][key]), abs=1e-5)
    for file in ("table.md", "table.tex", "table.csv", "comparison.png"):
        assert (out / file).stat().st_size > 100
    said = capsys.readouterr()
    assert (out / "table.md").read_text() in said.out
    assert "2 runs, 2 to do" in said.err
    main(asked)  # nothing to do: the table of one model
    assert "1 runs, 0 to do" in capsys.readouterr().err
    Path("tiny.yaml").write_text(TINY.replace("batch_size: 2", "batch_size: 1"))
    with pytest.raises(SystemExit, match=r"data.init_args.batch_size is not what the runs"):
        main(asked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "MultiHaed"], "MultiHead"),
        (["--models", "TAX", "tax=TAX,kernels=1"], "is there twice"),
        (["--models", "=TAX,1"], "expected CLASS or NAME=CLASS"),
        (["--models", "TAX,kernles=1"], "kernels"),
        (["--folds", "3"], "SyntheticDataModule has no folds"),
        (["--folds", "1"], "two folds or more"),
        (["--seeds", "x"], "seeds"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    monkeypatch.setattr(command, "carry_out", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--config", "tiny.yaml", *arguments])
    told = f"{stop.value}{capsys.readouterr().err}"
    assert said in told
    assert "tax fit" not in told
    assert "MultiAnnotatorModule" not in told
    assert not list(tmp_path.rglob("*.ckpt"))


def test_folds_are_options_of_the_data_module_that_draws_them():
    def inner(name, **arguments):
        return {"class_path": name, "init_args": arguments}

    nested = {"data": inner("A", seed=1, data=inner("B", folds=None))}
    assert command.split_options(nested, 5, 2) == (
        "--data.init_args.data.init_args.folds=5",
        "--data.init_args.data.init_args.fold=2",
    )


# What is computed of the rows


def selection(folder, rows, images=()):
    """Of rows (model, seed, fold, Dice) and rows (model, seed, image, Dice)."""
    with (folder / "results.csv").open("w") as file:
        print("model,seed,fold,code,fit_seconds,test_seconds,test/dice/mean,test/ged2", file=file)
        for model, seed, fold, dice in rows:
            print(f"{model},{seed},{fold},c0ffee,3600,,{dice},{dice}", file=file)
    with (folder / "images.csv").open("w") as file:
        print("model,seed,fold,image,dice,ged2", file=file)
        for model, seed, image, dice in images:
            print(f"{model},{seed},,{image},{dice},{dice}", file=file)
    names = list(dict.fromkeys(row[0] for row in rows))
    seeds = sorted({row[1] for row in rows})
    return Results(folder).of(names, seeds), names, seeds


def test_spread_is_over_seeds_or_over_the_folds_of_one_seed(tmp_path):
    rows = [("a", seed, fold, 0.5 + 0.1 * seed + fold) for seed in (0, 1) for fold in (0, 1)]
    found, names, _ = selection(tmp_path, rows)
    assert found.values("a", "dice/mean") == pytest.approx([1.0, 1.1])
    one = Results(tmp_path).of(names, [0])
    assert one.values("a", "dice/mean") == pytest.approx([0.5, 1.5])
    assert "standard deviation over 2 folds;" in report.caption(one, [0])
    assert "over the seeds 0, 1, each the mean of 2 folds;" in report.caption(found, [0, 1])


def leading(folder, by):
    """Two models and two seeds; one leads by so much on each of 14 images."""
    rows, images = [], []
    for name, ahead in (("TAX", by), ("Multi_Head", 0.0)):
        for seed in (0, 1):
            scores = [0.5 + 0.01 * i + ahead for i in range(14)]
            rows.append((name, seed, "", np.mean(scores)))
            images += [(name, seed, f"i{i}", score) for i, score in enumerate(scores)]
    return selection(folder, rows, images)


def test_bold_is_what_a_paired_test_over_images_supports(tmp_path):
    ahead = report.markdown(*leading(tmp_path, 0.1))
    assert "| TAX | **0.665 ± 0.000** | 0.665 ± 0.000 |" in ahead  # of GED² less is better
    assert "| Multi_Head | 0.565 ± 0.000 | **0.565 ± 0.000** |" in ahead
    # fourteen differences of one sign: p is about 2 / 2^14
    assert "| Multi_Head | -0.100, p < 0.001 |" in ahead
    assert "**" not in report.markdown(*leading(tmp_path, 0.0))
    assert "| +0.000, p = 1.000 |" in report.markdown(*leading(tmp_path, 0.0))


def test_latex_has_the_same_cells(tmp_path):
    text = report.latex(*leading(tmp_path, 0.1))
    assert r"TAX & \textbf{0.665 $\pm$ 0.000} & 0.665 $\pm$ 0.000 \\" in text
    assert r"Multi\_Head & 0.565" in text
    assert r"Model & Annotator Dice $\uparrow$ & GED\textsuperscript{2} $\downarrow$ \\" in text
    assert r"Multi\_Head & -0.100, p $<$ 0.001 &" in text
    assert text.count(r"\begin{tabular}{lrr}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\caption{") == 2


def test_the_table_as_csv(tmp_path):
    report.write_tables(tmp_path, *leading(tmp_path, 0.1))
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "model": "TAX",
        "figure": "dice/mean",
        "mean": "0.665",
        "standard_deviation": "0",
        "values": "2",
        "bold": "1",
        "minus TAX": "",
        "p": "",
    }
    assert float(rows[2]["minus TAX"]) == pytest.approx(-0.1)
    assert float(rows[2]["p"]) < 0.001


def test_images_are_paired_by_name_and_averaged_over_seeds(tmp_path):
    rows = [("a", 0, "", 1), ("a", 1, "", 1), ("b", 0, "", 1)]
    images = [("a", 0, "x", 0.2), ("a", 1, "x", 0.6), ("a", 0, "y", ""), ("a", 1, "y", 0.8)]
    images += [("b", 0, "x", 0.1), ("b", 0, "y", 0.1), ("b", 0, "z", 0.9)]
    found, *_ = selection(tmp_path, rows, images)
    assert found.scores("a", "dice") == {"x": pytest.approx(0.4)}  # y has no case with seed 0
    difference, p = report.paired(found, "dice", "a", "b")
    assert difference == pytest.approx(0.3)
    assert p == 1
    assert np.isnan(report.paired(found, "fused_dice", "a", "b")[0])


def test_missing_values_are_said(tmp_path):
    found, names, _ = selection(tmp_path, [("a", 0, "", 0.5), ("a", 2, "", 0.7), ("b", 0, "", "")])
    text = report.markdown(found, names, [0, 1, 2])
    assert "| a | 0.600 ± 0.141 [2 of 3] |" in text
    assert "| b | - |" in text


@pytest.mark.parametrize("folder", ["benchmark", "benchmark/large", "benchmark/pretrained"])
def test_the_configurations_of_the_benchmark_are_equal_terms(folder):
    for path in (REPO / "experiments" / folder).glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        assert config["checkpoint"] == {"monitor": "val/ged2", "mode": "min"}
        scheduler = config["model"]["init_args"]["lr_scheduler"]["init_args"]
        assert scheduler["T_max"] == config["trainer"]["max_epochs"]


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
