"""The study of experiments/ablation: what is run, what is kept of it, and its tables."""

import doctest
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from tax_lightning import TAXLightningModule
from tax_lightning.losses import LossWeights

FOLDER = Path(__file__).parent.parent / "experiments" / "ablation"
MODULES = ("resumable", "variants", "dots", "study", "table")

# Stands in for `tax`: it leaves the files that `tax` would, or fails where it is told to.
FAKE = """
import os, sys, time
from pathlib import Path

module, command, *flags = sys.argv[1:]
assert module == "tax_lightning"
options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
where = Path(__file__).parent
with (where / "calls.txt").open("a") as calls:
    print(" ".join(sys.argv[1:]), file=calls)
if (where / "hang").exists():
    (where / "part").write_text(str(os.getpid()))
    (where / "part").rename(where / "hanging")
    time.sleep(60)
if command == (where / "fails").read_text() and options["seed_everything"] == "1":
    print("line", *range(100), sep="\\nline ")
    sys.exit("tax: error: all is lost")
if command == "fit":
    checkpoint = Path(options["checkpoint.dirpath"], "best.ckpt")
    checkpoint.parent.mkdir()
    checkpoint.touch()
else:
    assert Path(options["ckpt_path"]).is_file()
    log = Path(options["trainer.logger.save_dir"], "lightning_logs", "version_0", "metrics.csv")
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step,test/dice/mean,test/ged2,test/none\\n0,0,0.5,0.25,nan\\n0,1,,,\\n")
"""


@pytest.fixture(scope="module")
def ablation():
    """The modules of the study, gone from Python's list of modules afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER.parent)
        patch.syspath_prepend(FOLDER)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def fake(tmp_path, monkeypatch, ablation):
    """The folder of a program that the study takes for `tax`."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "fails").write_text("")
    launcher = (sys.executable, "-IS", str(tmp_path / "fake.py"))
    monkeypatch.setattr(ablation.resumable, "LAUNCHER", launcher)
    monkeypatch.setattr("tempfile.tempdir", str(make(tmp_path / "tmp")))
    return tmp_path


def make(folder):
    folder.mkdir()
    return folder


def calls(fake):
    path = fake / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run_study(ablation, fake, *arguments):
    common = ["--data", "synthetic", "--out", str(fake / "out")]
    return ablation.study.main([*common, *arguments])


# ---------------------------------------------------------------------- variants


@pytest.mark.parametrize("data", ["synthetic", "bubil_mini"])
def test_a_name_means_the_same_flags_everywhere(ablation, data):
    rows = [row for group in ablation.variants.groups(data).values() for row in group]
    by_name = {row.name: dict(row.flags) for row in rows}
    assert all(by_name[row.name] == dict(row.flags) for row in rows)
    assert len({tuple(sorted(flags.items())) for flags in by_name.values()}) == len(by_name)
    assert by_name["default"] == {}


@pytest.mark.parametrize("data", ["synthetic", "bubil_mini"])
def test_every_group_has_the_default_and_something_else(ablation, data):
    for title, rows in ablation.variants.groups(data).items():
        labels = [row.label for row in rows if row.name == "default"]
        assert len(labels) == 1, title
        assert labels[0].endswith("(base)")
        assert len(rows) > 1


def test_the_expert_and_the_given_reference_are_for_synthetic_data_only(ablation):
    flags = {
        data: [v.flags for v in ablation.variants.variants(data).values()]
        for data in ("synthetic", "bubil_mini")
    }
    expert = {"model.init_args.who_target": "expert"}
    assert expert in flags["synthetic"]
    assert expert not in flags["bubil_mini"]
    assert all(given.get("model.init_args.reference") != "given" for given in flags["bubil_mini"])


def test_there_is_a_variant_without_each_loss_term(ablation):
    assert set(ablation.variants.LOSS_TERMS) == set(vars(LossWeights()))


@pytest.mark.parametrize(
    ("group", "parameter"),
    [
        ("Kernels an annotator", "kernels"),
        ("Side of a kernel, pixels", "kernel_size"),
        ("Window of who, pixels", "who_window"),
        ("What who is taught", "who_target"),
        ("Kernel bank", "bank"),
        ("Mixing", "mixing"),
        ("How prototypes learn", "prototype_update"),
    ],
)
def test_the_default_row_names_the_default(ablation, group, parameter):
    default = inspect.signature(TAXLightningModule).parameters[parameter].default
    labels = [row.label for row in ablation.variants.groups("synthetic")[group]]
    assert f"{default} (base)" in labels


def test_the_base_row_names_the_default_weight_of_pull(ablation):
    labels = [row.label for row in ablation.variants.groups("synthetic")["Weight of pull"]]
    assert f"{LossWeights().pull} (base)" in labels


@pytest.mark.parametrize("data", ["synthetic", "bubil_mini"])
def test_a_configuration_says_nothing_that_a_variant_changes(ablation, data):
    """It would beat the checkpoint in the test run; the reference alone is meant to."""
    config = yaml.safe_load((FOLDER / f"{data}.yaml").read_text())
    said = set(config["model"]["init_args"]) | set(config["data"]["init_args"])
    varied = {
        flag.split("init_args.")[1].split(".")[0]
        for variant in ablation.variants.variants(data).values()
        for flag in variant.flags
        if "init_args." in flag
    }
    assert said & varied == {"reference"}
    assert config["model"]["init_args"]["reference"] == ablation.variants.REFERENCE[data]
    assert config["model"]["init_args"]["encoder_weights"] is None
    assert config["trainer"]["logger"] is False


# ---------------------------------------------------------------------- runs


def test_a_run_leaves_one_file_that_says_all(ablation, fake, capsys):
    assert run_study(ablation, fake, "--seeds", "2", "--only", "kernels=8") == 0
    assert files(fake / "out") == ["synthetic/kernels=8/seed2.json"]
    stored = json.loads((fake / "out/synthetic/kernels=8/seed2.json").read_text())
    assert stored["metrics"] == {"test/dice/mean": 0.5, "test/ged2": 0.25}  # no case, no metric
    assert stored["flags"] == {"model.init_args.kernels": "8"}
    assert (stored["data"], stored["variant"], stored["seed"]) == ("synthetic", "kernels=8", 2)
    assert set(stored["seconds"]) == {"fit", "test"}
    assert stored["commit"]
    fit, test = stored["commands"]
    assert "--model.init_args.kernels=8" in fit
    assert "kernels" not in test  # the checkpoint says it, and data and reference stay alike
    assert "--seed_everything=2" in fit
    assert "--ckpt_path=$RUN/checkpoints/best.ckpt" in test
    assert "--model.init_args.explanation_metrics=true" in test
    assert str(fake) not in fit + test
    assert not list((fake / "tmp").iterdir())
    assert "[1/1] synthetic kernels=8 seed 2" in capsys.readouterr().out


def test_what_is_there_is_not_run_again(ablation, fake):
    chosen = ("--only", "default", "Mixing")  # the default is in both, and is run once
    assert run_study(ablation, fake, *chosen, "--seeds", "0", "0") == 0
    assert len(calls(fake)) == 4
    assert run_study(ablation, fake, *chosen, "--seeds", "0", "1", "--jobs", "2") == 0
    later = calls(fake)[4:]
    assert len(later) == 4
    assert all("--seed_everything=1" in call for call in later)
    assert run_study(ablation, fake, *chosen, "--seeds", "0", "1") == 0
    assert len(calls(fake)) == 8


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_study_goes_on_after_a_failure_and_tries_again(ablation, fake, capsys, command):
    (fake / "fails").write_text(command)
    arguments = ("--seeds", "0", "1", "2", "--only", "default")
    assert run_study(ablation, fake, *arguments) == 1
    there = ["seed0.json", "seed1.failed.txt", "seed2.json"]
    assert files(fake / "out/synthetic/default") == there
    said = (fake / "out/synthetic/default/seed1.failed.txt").read_text()
    assert said.startswith(f"python -m tax_lightning {command} ")
    assert "exit status 1\n" in said
    assert said.endswith("tax: error: all is lost\n")
    assert "line 99\n" in said
    assert "line 9\n" not in said  # the end only
    assert "failed: synthetic default seed 1" in capsys.readouterr().err
    assert not list((fake / "tmp").iterdir())

    (fake / "fails").write_text("")
    assert run_study(ablation, fake, *arguments) == 0
    assert files(fake / "out/synthetic/default") == ["seed0.json", "seed1.json", "seed2.json"]


def test_a_run_without_metrics_has_failed(ablation, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train/loss,test/dice\n0,0.5,nan\n")
    with pytest.raises(ablation.resumable.RunFailedError, match="no metric"):
        ablation.resumable.read_metrics(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_was_started_and_leaves_nothing(fake, number):
    (fake / "hang").touch()
    script = (
        # Whoever starts the tests in the background may have had Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import study, resumable; "
        f"resumable.LAUNCHER = (sys.executable, '-IS', {str(fake / 'fake.py')!r}); "
        f"sys.exit(study.main(['--data', 'synthetic', '--out', {str(fake / 'out')!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", script],
        env={**os.environ, "TMPDIR": str(fake / "tmp")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(fake / "hanging")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "takes up where this one ended" in said
    assert "Traceback" not in said
    assert not (fake / "out").exists()
    assert not list((fake / "tmp").iterdir())
    assert len(calls(fake)) == 1  # nothing else was started
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake / "hanging").read_text()), 0)  # only asks whether it is there


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def test_a_file_is_written_whole_or_not_at_all(ablation, tmp_path, monkeypatch):
    path = tmp_path / "seed0.json"
    ablation.resumable.write_whole(path, "old")

    def break_off(self, text):
        self.write_bytes(text[:1].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", break_off)
    with pytest.raises(KeyboardInterrupt):
        ablation.resumable.write_whole(path, "new")
    assert files(tmp_path) == ["seed0.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "synthetic", "--only", "kernel"], "kernels=8"),
        (["--data", "bubil_mini"], "--root None: expected the folder of bubil_mini"),
        (["--data", "synthetic", "--jobs", "0"], "expected a number from 1 up"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(ablation, fake, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        ablation.study.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not calls(fake)


def test_the_root_of_the_data_is_handed_on(ablation, fake):
    where = ["--data", "bubil_mini", "--out", str(fake / "out"), "--root", str(fake)]
    assert ablation.study.main([*where, "--only", "default", "--seeds", "0"]) == 0
    assert all(f"--data.init_args.root={fake}" in call for call in calls(fake))


# ---------------------------------------------------------------------- tables


def store(folder, variant, seed, commit="c0ffee", **metrics):
    path = folder / "synthetic" / variant / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {"dice": "test/dice/mean", "who": "test/who_accuracy_expert"}
    stored = {keys[name]: value for name, value in metrics.items()}
    path.write_text(json.dumps({"metrics": stored, "commit": commit}))


@pytest.fixture
def results(tmp_path):
    for seed, dice in enumerate((0.6, 0.7, 0.8)):  # mean .7; deviations -.1, 0, .1: sd .1
        store(tmp_path, "default", seed, dice=dice, who=1.0)
    store(tmp_path, "mixing=logit", 0, dice=0.5)
    store(tmp_path, "mixing=logit", 2, dice=0.9, commit="decaf")  # mean .7; sd sqrt(.08)
    store(tmp_path, "mixing=logit", 7, dice=0.0)  # a seed that nobody asked for
    return tmp_path


def test_a_table_of_known_numbers(ablation, results, capsys):
    assert ablation.table.main(["--data", "synthetic", "--results", str(results)]) == 0
    said = capsys.readouterr().out
    (mixing,) = (part for part in said.split("\n\n") if part.startswith("| Mixing"))
    head, rule, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in mixing.splitlines())
    assert len(head) == len(rule) == len(rows[0]) == len(rows[1])
    default, logit = (dict(zip(head, row, strict=True)) for row in rows)
    assert default["Mixing"] == "prob (base)"
    assert default["Annotator Dice"] == "0.700 ± 0.100"
    assert default["Who @expert"] == "1.000 ± 0.000"
    assert default["Fused Dice"] == "-"
    assert logit["Annotator Dice"] == "0.700 ± 0.283 (2 of 3)"
    assert logit["Who @expert"] == "-"
    assert said.endswith("over the seeds 0, 1, 2; 5 runs; commit c0ffee, decaf.\n")


def test_the_default_is_in_every_table(ablation, results, capsys):
    ablation.table.main(["--data", "synthetic", "--results", str(results)])
    *tables, _ = capsys.readouterr().out.split("\n\n")
    assert len(tables) == len(ablation.variants.groups("synthetic"))
    assert all(part.count("0.700 ± 0.100") == 1 for part in tables)


def test_no_results_are_no_tables(ablation, tmp_path, capsys):
    assert ablation.table.main(["--data", "synthetic", "--results", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "run study.py first" in printed.err


# ---------------------------------------------------------------------- figure


def test_the_figure_has_a_panel_for_each_metric_that_was_measured(ablation, results, tmp_path):
    found = ablation.table.read_results(
        results / "synthetic", ablation.variants.variants("synthetic"), [0, 1, 2]
    )
    rows, panels = ablation.table.figure_parts(found, "synthetic")
    assert [panel.title for panel in panels] == ["Annotator Dice", "Who @expert"]
    assert panels[0].points == {"default": [0.6, 0.7, 0.8], "mixing=logit": [0.5, 0.9]}
    assert [row.name for row in rows].count("default") == 1

    path = tmp_path / "figure.png"
    where = ["--data", "synthetic", "--results", str(results), "--figure", str(path)]
    assert ablation.table.main(where) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_dots_bar_and_line_are_where_the_numbers_are(ablation):
    dots = ablation.dots
    # limits 0 and 1 with their room of 6 %; the default's mean is .5, the other's .25
    panel = dots.Panel("m", "", {"default": [0.0, 1.0], "other": [0.0, 0.5]})
    rows = [dots.Row("default", "default"), dots.Row("heading"), dots.Row("other", "other")]
    picture = np.asarray(dots.draw(rows, [panel], baseline="default"))

    def columns(line, colour, height):
        """Where the colour stands in a row, from 0 to 1 along the axis, at a height in it."""
        y = round((dots.TOP + dots.LINE * line + height) * dots.SCALE)
        left = (dots.EDGE + dots.LABELS) * dots.SCALE
        x = np.flatnonzero((picture[y, left:] == rgb(colour)).all(axis=1))
        return ((x + 0.5) / dots.SCALE / dots.PANEL) * 1.12 - 0.06

    assert columns(0, dots.INK, 4).mean() == pytest.approx(0.5, abs=0.01)
    assert columns(2, dots.INK, 4).mean() == pytest.approx(0.25, abs=0.01)
    assert columns(1, dots.GREY, 10).mean() == pytest.approx(0.5, abs=0.01)
    rings = columns(2, dots.BLUE, 10)
    assert rings[rings < 0.25].mean() == pytest.approx(0.0, abs=0.01)
    assert rings[rings > 0.25].mean() == pytest.approx(0.5, abs=0.01)


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_equal_values_still_have_an_axis(ablation):
    panel = ablation.dots.Panel("m", "", {"default": [0.5, 0.5]})
    assert ablation.dots.limits(panel) == pytest.approx((0.45, 0.55))


def test_a_figure_of_nothing_is_refused(ablation):
    with pytest.raises(ValueError, match="panels is empty"):
        ablation.dots.draw([], [], baseline="default")


@pytest.mark.parametrize("scale", [0.001, 0.013, 0.37, 0.81, 1.0, 47.0])
def test_an_axis_has_two_to_six_ticks(ablation, scale):
    found = ablation.dots.ticks(0.3 * scale, 1.3 * scale)
    assert 2 <= len(found) <= 6
    assert all(0.3 * scale <= tick <= 1.3 * scale for tick in found)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_hold(ablation, module):
    assert doctest.testmod(getattr(ablation, module)).failed == 0
