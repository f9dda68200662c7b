"""The comparison of methods: the grid, a run of it, what is made of the results, what they cost."""

import argparse
import csv
import doctest
import importlib
import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from tax_lightning.baselines import __all__ as baselines

REPO = Path(__file__).parent.parent
FOLDER = REPO / "experiments" / "benchmark"
MODULES = ("resumable", "dots", "methods", "compare", "report", "cost", "spread", "necessity")


@pytest.fixture(scope="module")
def bench():
    """The modules of the comparison, gone from Python's list of modules afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER.parent)
        patch.syspath_prepend(FOLDER)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name, None)


def options(bench, *arguments):
    return bench.compare._parser().parse_args(list(arguments))


# ---------------------------------------------------------------------- the grid


def test_every_baseline_is_compared(bench):
    models = {m.flags["model"] for m in bench.methods.METHODS.values() if "model" in m.flags}
    assert models == set(baselines) - {"Baseline"}


def test_the_grid_is_every_method_on_every_data_set_with_every_seed(bench, tmp_path):
    folders = ["--bubil_mini", str(tmp_path), "--lidc_mini", str(tmp_path)]
    runs = bench.compare.make_runs(options(bench, *folders, "--seeds", "0", "1"))
    count = len(bench.methods.METHODS) * len(bench.compare.FOLDERS)
    assert len({run.result for run in runs}) == len(runs) == 2 * count
    assert all(run.seed == 0 for run in runs[:count])
    assert all(run.config.is_file() for run in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "TAXX"], "--methods 'TAXX': expected some of TAX, multi-head"),
        (["--data", "cells"], "--data 'cells': expected some of synthetic"),
        (["--data", "bubil_mini"], "--bubil_mini None: expected the folder of bubil_mini"),
        (["--data", "simulated"], "expected the folder of bubil_mini, for simulated"),
        (["--configs", "nowhere"], "--configs nowhere: expected a folder with synthetic.yaml"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(bench, arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.compare.main(arguments)
    assert message in capsys.readouterr().err


def test_the_larger_grid_has_a_place_of_its_own(bench):
    small, large = (
        bench.compare.make_runs(options(bench, "--data", "synthetic", "--configs", str(folder)))[0]
        for folder in (FOLDER, FOLDER / "large")
    )
    assert small.result.is_relative_to(FOLDER / "results")
    assert large.result.is_relative_to(FOLDER / "large" / "results")
    configs = [yaml.safe_load(run.config.read_text()) for run in (small, large)]
    few, many = (config["trainer"]["max_epochs"] for config in configs)
    assert many == 4 * few


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "large"], ids=["small", "large"])
@pytest.mark.parametrize("data", ["synthetic", "simulated", "bubil_mini", "lidc_mini"])
def test_selection_is_on_validation_and_the_same_for_all(data, folder):
    config = yaml.safe_load((folder / f"{data}.yaml").read_text())
    assert config["checkpoint"] == {"monitor": "val/ged2", "mode": "min"}
    assert config["model"]["init_args"]["encoder_weights"] is None
    scheduler = config["model"]["init_args"]["lr_scheduler"]["init_args"]
    assert scheduler["T_max"] == config["trainer"]["max_epochs"]


# ---------------------------------------------------------------------- a run


@pytest.mark.parametrize("method", ["TAX", "gated multi-head", "Probabilistic U-Net"])
def test_a_run_trains_tests_and_scores_every_test_image(bench, method, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPO)
    module = importlib.import_module("experiments.benchmark.fit_and_test")
    chosen = bench.methods.METHODS[method]
    result = tmp_path / "result.json"
    module.FitAndTestCLI.run(
        [
            "fit",
            f"--config={FOLDER / 'synthetic.yaml'}",
            f"--config={REPO / 'tests' / 'tiny.yaml'}",
            "--data.init_args.test_samples=5",
            f"--trainer.default_root_dir={tmp_path}",
            f"--result={result}",
            f"--samples={tmp_path / 'samples.npz'}",
            *(f"--{flag}={value}" for flag, value in chosen.flags.items()),
        ]
    )
    found = json.loads(result.read_text())
    images = found["images"]
    assert sorted(images) == [f"test-{i:04}" for i in range(5)]
    for score, metric in (("ged2", "test/ged2"), ("dice", "test/dice/mean")):
        if score == "dice" and not chosen.names_annotators:
            assert metric not in found["metrics"]
            continue
        mean = statistics.fmean(scores[score] for scores in images.values())
        assert mean == pytest.approx(found["metrics"][metric], abs=1e-5)
    assert ("test/who_necessity" in found["metrics"]) == chosen.says_who
    with np.load(tmp_path / "samples.npz") as samples:
        assert {key for key in samples.files if key.startswith("drawn/")} == {
            f"drawn/{name}" for name in images
        }
        drawn, masks = samples["drawn/test-0000"], samples["masks/test-0000"]
    assert masks.shape[0] == 5
    if chosen.names_annotators:
        assert drawn.shape == masks.shape
    assert found["parameters"] > 0


# ---------------------------------------------------------------------- tables


def run_of(dice, images, seed=0, **more):
    return {
        "seed": seed,
        "seconds": 60,
        "commit": "abc",
        "metrics": {"test/dice/mean": dice, **more},
        "images": {f"image {i}": {"dice": value} for i, value in enumerate(images)},
    }


def results(leader):
    """Two methods and two seeds; TAX leads by so much on each of 12 images."""
    base = [0.5 + 0.01 * i for i in range(12)]
    return {
        name: {
            seed: run_of(statistics.fmean(base) + ahead, [v + ahead for v in base], seed)
            for seed in (0, 1)
        }
        for name, ahead in (("TAX", leader), ("multi-head", 0.0))
    }


def test_bold_is_what_a_paired_test_over_images_supports(bench):
    ahead = bench.report.comparison(results(0.1), [0, 1])
    assert "| TAX | **0.655 ± 0.000** |" in ahead
    assert "| multi-head | 0.555 ± 0.000 |" in ahead
    assert "**" not in bench.report.comparison(results(0.0), [0, 1])


def test_scores_of_images_are_averaged_over_seeds_before_they_are_compared(bench):
    runs = {"TAX": {0: run_of(0.5, [0.2, 0.4]), 1: run_of(0.5, [0.6, 0.8])}}
    scores = bench.report.image_scores(runs, "TAX", "dice")
    assert scores == pytest.approx({"image 0": 0.4, "image 1": 0.6})


def test_lower_is_better_for_a_distance(bench):
    found = results(0.1)
    for runs in found.values():
        for run in runs.values():
            run["metrics"]["test/ged2"] = run["metrics"]["test/dice/mean"]
            run["images"] = {k: {"ged2": v["dice"]} for k, v in run["images"].items()}
    assert bench.report.best_method(found, "test/ged2", bench.report.LOWER) == "multi-head"
    assert bench.report.best_method(found, "test/ged2", bench.report.HIGHER) == "TAX"


def test_one_image_supports_nothing(bench):
    assert not bench.report.is_supported({"a": 1.0}, [{"a": 0.0}])
    assert not bench.report.is_supported({"a": 1.0}, [])


def test_files_of_a_report(bench, tmp_path, capsys):
    for name, runs in results(0.1).items():
        for seed, run in runs.items():
            path = tmp_path / "synthetic" / name / f"seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run))
    where = ["--results", str(tmp_path), "--seeds", "0", "1", "2", "--csv", str(tmp_path / "t.csv")]
    assert bench.report.main([*where, "--figures", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "### synthetic" in said
    assert "**0.655 ± 0.000 (2 of 3)**" in said
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0] == {
        **{"data": "synthetic", "method": "TAX", "seed": "0", "metric": "test/dice/mean"},
        "value": rows[0]["value"],
    }
    assert (tmp_path / "annotator_dice.png").is_file()
    assert bench.report.main(["--results", str(tmp_path / "none")]) == 1


# ---------------------------------------------------------------------- cost


@pytest.mark.parametrize("method", ["plain network", "TAX", "multi-head", "separate", "STAPLE"])
def test_every_kind_of_method_can_be_measured(bench, method):
    asked = argparse.Namespace(
        annotators=[2], encoder="tu-test_resnet.r160_in1k", side=32, batch=2, turns=1
    )
    found = bench.cost.measure_here(method, asked)
    assert set(found) == set(bench.cost.QUANTITIES)
    assert all(value > 0 for value in found.values())


def test_costs_are_drawn_by_number_of_annotators(bench):
    turn = {
        method: {quantity: float(cost) for quantity in bench.cost.QUANTITIES}
        for cost, method in enumerate(("plain network", "TAX", "multi-head"), start=1)
    }
    picture = bench.cost.figure({4: [turn, turn], 16: [turn]}, list(turn))
    assert picture.height == 2 * (48 + 28 + 20 * 2 * (1 + 2))


# ---------------------------------------------------------------------- spread


def test_sets_of_several_networks_against_those_of_one(bench, tmp_path, capsys):
    # Each of two networks hits one of two annotators, and draws the same for the other.
    masks = np.zeros((2, 4, 8), np.uint8)
    masks[0, :, :4], masks[1, :, 4:] = 1, 1
    for seed, drawn in enumerate((masks[[0, 0]], masks[[1, 1]])):
        file = tmp_path / "bubil_mini" / "TAX" / f"seed{seed}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{"drawn/a": drawn, "masks/a": masks, "classes": np.uint8(2)})
    assert bench.spread.main(["--results", str(tmp_path), "--seeds", "0", "1"]) == 0
    # Of one: 2 * 1/2 - 0 - 1/2. Of both in turns: all annotators are met or none; as sets these are
    # the same, with a distance of 0. Half of the annotators are met either way.
    assert "| TAX, 2 networks | 0.500 | 0.500 | 0.000 |" in capsys.readouterr().out


def test_spread_needs_two_networks(bench, tmp_path, capsys):
    assert bench.spread.main(["--results", str(tmp_path), "--seeds", "0", "1"]) == 1
    assert "run compare.py --samples first" in capsys.readouterr().err


# ---------------------------------------------------------------------- necessity


def test_a_wrong_leader_is_more_necessary_where_the_others_side_with_the_expert(bench):
    # Ana is the expert. At the first pixel Ben and Cleo agree with her and at the second nobody;
    # the third, where all agree, is not counted; at the fourth nobody is the expert.
    masks = torch.tensor([[[[1, 1, 1, 0]], [[1, 0, 1, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]]])
    expert = torch.tensor([[[0, 0, 0, 255]]])
    batch = {"masks": masks, "expert": expert, "present": torch.ones(1, 4, dtype=torch.bool)}
    # Of three disputed pixels the second flips without Ana; without Ben, who leads, none does.
    assert bench.necessity.necessity([batch], 4, 2, ahead=0) == pytest.approx(1 / 3)
    assert bench.necessity.necessity([batch], 4, 2, ahead=1) == pytest.approx(0)
    # Dan, who leads three places on, is alone with his label at the first pixel.
    assert bench.necessity.necessity([batch], 4, 2, ahead=3) == pytest.approx(1 / 3)


def test_the_data_of_a_configuration_are_read_alone(bench, capsys):
    config, fewer = FOLDER / "synthetic.yaml", "--data.init_args.test_samples=2"
    bench.necessity.main(["--config", str(config), fewer])
    assert capsys.readouterr().out.startswith("the expert leads: 0.")


def test_examples_in_the_docstrings(bench):
    for name in ("report", "cost", "spread"):
        assert doctest.testmod(getattr(bench, name)).failed == 0
