"""The tests of experiments/trust: what is compared, what is kept of a run, and the tables."""

import asyncio
import doctest
import importlib
import inspect
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml

from tax_lightning import TAXLightningModule
from tax_lightning.baselines import Consensus
from tax_lightning.cli import TAXCLI
from tax_lightning.data import SyntheticDataModule

FOLDER = Path(__file__).parent.parent / "experiments" / "trust"
MODULES = ("resumable", "runner", "retraining", "plain", "figures")

SCENES = {"size": 64, "train_samples": 2, "val_samples": 2, "test_samples": 2, "batch_size": 2}
NETWORK = {
    "encoder": "tu-test_resnet.r160_in1k",
    "encoder_weights": None,
    "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}


@pytest.fixture(scope="module")
def trust():
    """The scripts, gone from Python's list of modules afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER.parent)
        patch.syspath_prepend(FOLDER)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def config(tmp_path):
    """A configuration with few and small scenes."""
    path = tmp_path / "tiny.yaml"
    settings = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
        "data": {"class_path": "SyntheticDataModule", "init_args": SCENES},
        "model": {
            "class_path": "TAXLightningModule",
            "init_args": NETWORK | {"kernels": 2, "reference": "given"},
        },
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def changed_data(config, **options):
    settings = yaml.safe_load(config.read_text())
    settings["data"]["init_args"] |= options
    config.write_text(yaml.safe_dump(settings))
    return config


# ---------------------------------------------------------------------- leaving one out


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_leaving_one_out_leaves_scenes_and_reference_the_same(trust, config, left_out):
    whole = trust.retraining.make_data(config)
    names = whole.annotators
    runs = trust.retraining.make_runs(config, names, [names[left_out]], 0, config.parent)
    ((flag, value),) = runs[names[left_out]].flags
    assert flag == "data.init_args.annotators"
    fewer = SyntheticDataModule(**SCENES, annotators=yaml.safe_load(value))

    rest = [n for n in range(5) if n != left_out]
    assert fewer.annotators == tuple(names[n] for n in rest)
    disagreeing = 0
    for split in ("train", "val", "test"):
        before, after = whole._samples_of(split), fewer._samples_of(split)
        assert before.ids == after.ids
        for i in range(2):
            assert (before[i].image == after[i].image).all()
            assert (before[i].reference == after[i].reference).all()
            assert (before[i].masks[rest] == after[i].masks).all()
            disagreeing += (before[i].masks[left_out] != before[i].reference).sum()
    assert disagreeing  # so that there was something to leave out


def test_the_runs_of_a_seed_are_one_with_all_and_one_without_each(trust, tmp_path):
    runs = trust.retraining.make_runs(tmp_path / "c.yaml", "ABC", ["A", "C"], 7, tmp_path / "out")
    assert [run.name for run in runs.values()] == ["all", "without-A", "without-C"]
    assert runs["all"].flags == ()
    assert runs["C"].flags == (("data.init_args.annotators", "[A, B]"),)
    assert runs["C"].result == tmp_path / "out" / "c" / "without-C" / "seed7.json"


@pytest.mark.parametrize("option", [{"missing": 0.5}, {"labels_per_image": 2}])
def test_data_that_change_with_who_is_left_out_are_refused(trust, config, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*expected 0 and null"):
        trust.retraining.make_data(changed_data(config, **option))


def test_data_without_a_reference_of_their_own_are_refused(trust, config, capsys):
    settings = yaml.safe_load(config.read_text())
    settings["data"]["class_path"] = "FolderDataModule"
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        trust.retraining.main(["--config", str(config)])
    assert stop.value.code == 2
    assert "FolderDataModule, expected SyntheticDataModule" in capsys.readouterr().err


# ---------------------------------------------------------------------- AUROC


def test_auroc_by_hand(trust):
    auroc = trust.retraining.auroc
    positive = torch.tensor([False, False, True, True])
    # of the four pairs, only (.35 against .4) is the wrong way round
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), positive) == pytest.approx(3 / 4)
    assert auroc(torch.tensor([0.9, 0.8, 0.2, 0.1]), positive) == 0
    # pairs: .5 = .5 counts half, .5 < .7, .2 < .5, .2 < .7
    assert auroc(torch.tensor([0.5, 0.2, 0.5, 0.7]), positive) == pytest.approx(3.5 / 4)
    assert auroc(torch.full((4,), 0.2), positive) == pytest.approx(1 / 2)


@pytest.mark.parametrize("positive", [True, False])
def test_auroc_has_no_value_without_both_kinds_of_pixel(trust, positive):
    assert math.isnan(trust.retraining.auroc(torch.rand(3), torch.full((3,), positive)))


def test_auroc_tells_tiny_weights_apart_beside_one_just_above_1(trust):
    score = torch.tensor([1 + 2e-7, 1e-20, 1e-30])
    assert score[0] > 1
    assert trust.retraining.auroc(score, torch.tensor([True, True, False])) == 1


# ---------------------------------------------------------------------- comparing


def outcome(*labels, who=None, disputed=(1, 1, 1, 0)):
    """One image of 1 x 4 pixels."""
    said = {"prediction": torch.tensor(labels, dtype=torch.uint8).view(1, 1, 4)}
    if who is not None:
        said["who"] = torch.tensor(who).view(1, 3, 1, 4)
        said["disputed"] = torch.tensor(disputed).bool().view(1, 1, 4)
    return said


WHO = [[0.7, 0.2, 0.6, 0.1], [0.2, 0.5, 0.3, 0.0], [0.1, 0.3, 0.1, 0.9]]


def test_two_models_are_compared_by_hand(trust):
    whole = outcome(1, 1, 0, 0, who=WHO)
    found = trust.retraining.compare(whole, outcome(0, 1, 0, 1)["prediction"], index=0)
    # Changed: pixels 0 and 3, of which D holds pixel 0.
    # all: Ana .7 .1 against .2 .6: 2 of 4 pairs. Ben .2 0 against .5 .3: 0 of 4.
    #      Chloe .1 .9 against .3 .1: .1 = .1 half, .9 wins both: 2.5 of 4.
    # D: Ana .7 against .2 .6: 2 of 2. Ben .2 against .5 .3: 0. Chloe .1 against .3 .1: .5 of 2.
    assert found == pytest.approx(
        {
            "changed": 2 / 4,
            "auroc": 2 / 4,
            "auroc_others": (0 + 2.5 / 4) / 2,
            "changed_disputed": 1 / 3,
            "auroc_disputed": 1.0,
            "auroc_others_disputed": (0 + 0.5 / 2) / 2,
        }
    )


def test_where_nothing_changes_there_is_no_auroc(trust):
    whole = outcome(1, 1, 0, 0, who=WHO)
    found = trust.retraining.compare(whole, outcome(1, 1, 0, 0)["prediction"], index=1)
    assert found == {"changed": 0, "changed_disputed": 0}


NAMES = ("Ana", "Ben", "Chloe")


@pytest.fixture
def trained(trust, config, tmp_path):
    """Two seeds whose runs are done: all three annotators, and without Ana or Chloe."""
    by_seed = {
        seed: trust.retraining.make_runs(config, NAMES, ["Ana", "Chloe"], seed, tmp_path / "out")
        for seed in (3, 8)
    }
    said = {
        (3, "all"): (outcome(1, 1, 0, 0, who=WHO), 0.9),
        (3, "Ana"): (outcome(0, 1, 0, 1), 0.8),  # pixels 0 and 3
        (3, "Chloe"): (outcome(1, 1, 0, 1), 0.7),  # pixel 3
        (8, "all"): (outcome(1, 1, 1, 0, who=WHO), 0.6),  # from seed 3: pixel 2
        (8, "Ana"): (outcome(0, 1, 1, 0), 0.5),  # pixel 0
        (8, "Chloe"): (outcome(1, 1, 1, 0), 0.6),  # none
    }
    for (seed, name), (tensors, dice) in said.items():
        run = by_seed[seed][name]
        trust.retraining.save(tensors, run.result.with_suffix(".pt"))
        run.result.write_text(json.dumps({"fused_dice": dice, "commit": "c0ffee"}))
    return by_seed


def test_a_seed_is_compared_with_the_next_and_the_last_with_the_first(trust, trained, tmp_path):
    trust.retraining.compare_all(trained, NAMES)
    three, eight = (
        json.loads((tmp_path / "out" / "tiny" / f"seed{seed}.json").read_text()) for seed in (3, 8)
    )
    assert (three["control_seed"], eight["control_seed"]) == (8, 3)
    ana, chloe = three["annotators"]["Ana"], three["annotators"]["Chloe"]
    assert ana["changed"] == 0.5
    assert ana["auroc_disputed"] == 1
    assert ana["changed_seed"] == chloe["changed_seed"] == 0.25
    assert ana["auroc_seed"] == pytest.approx(2 / 3)  # .6 against .7 .2 .1
    assert chloe["auroc_seed"] == pytest.approx(0.5 / 3)  # .1 against .1 .3 .9
    assert chloe["auroc"] == 1  # .9 against the rest
    assert chloe["changed_disputed"] == 0
    assert "auroc_disputed" not in chloe
    assert (ana["fused_dice"], ana["fused_dice_all"]) == (0.8, 0.9)
    assert three["mean"]["changed"] == pytest.approx((0.5 + 0.25) / 2)
    assert three["mean"]["auroc"] == pytest.approx((0.5 + 1) / 2)
    assert three["mean"]["auroc_disputed"] == 1  # Ana's alone
    assert eight["mean"]["changed"] == pytest.approx(0.25 / 2)
    assert eight["mean"]["auroc"] == 1
    assert three["commits"] == ["c0ffee"]


def test_a_single_seed_has_no_control(trust, trained):
    found = trust.retraining.compare_seed(trained[3], NAMES, None)
    assert found["control_seed"] is None
    assert not any("seed" in key for key in found["mean"])


def test_tables_of_known_numbers(trust, trained, config, tmp_path, capsys):
    trust.retraining.compare_all(trained, NAMES)
    where = ["--config", str(config), "--out", str(tmp_path / "out")]
    assert trust.retraining.main([*where, "--seeds", "3", "8", "--table"]) == 0
    seeds, on_d, by_name, commit = capsys.readouterr().out.split("\n\n")
    three, eight, mean = rows(seeds)
    assert three["Changed without n"] == "0.375"
    assert three["AUROC of w_n"] == "0.750"
    assert eight["AUROC of w_n"] == "1.000"
    # mean .875, deviations ± .125: sd .125 * sqrt(2)
    assert mean["AUROC of w_n"] == "0.875 ± 0.177"
    assert mean["Changed by seed"] == "0.250 ± 0.000"
    assert rows(on_d)[0]["Changed without n"] == "0.167"  # a third for Ana, none for Chloe
    ana, chloe = rows(by_name)
    assert (ana["n"], chloe["n"]) == ("Ana", "Chloe")
    assert ana["AUROC of w_n, D"] == "1.000 ± 0.000"
    assert chloe["AUROC of w_n, D"] == "-"
    assert ana["Fused Dice without n"] == "0.650 ± 0.212"  # .8 and .5
    assert commit == "Commit c0ffee.\n"


def rows(table):
    head, _, *lines = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_a_comparison_stays_where_predictions_are_gone(trust, trained, tmp_path, capsys):
    trust.retraining.compare_all(trained, NAMES)
    path = tmp_path / "out" / "tiny" / "seed3.json"
    before = path.read_text()
    gone = trained[3]["Chloe"].result.with_suffix(".pt")
    gone.unlink()
    trust.retraining.compare_all({3: trained[3]}, NAMES)
    assert f"seed 3 is not compared: {gone}" in capsys.readouterr().err
    assert path.read_text() == before


# ---------------------------------------------------------------------- TAX against plain


def stored(run, dice, minutes, **metrics):
    run.result.parent.mkdir(parents=True, exist_ok=True)
    metrics = {f"test/{name}": value for name, value in metrics.items()}
    what = {
        "metrics": {"test/fused_dice/mean": dice, **metrics},
        "seconds": {"fit": 60 * minutes, "test": 1},
        "commit": "c0ffee",
    }
    run.result.write_text(json.dumps(what))


def test_the_table_of_both_networks(trust, config, tmp_path, capsys):
    runs = {
        (run.name, run.seed): run
        for run in trust.plain.make_runs(config, [0, 1, 2], tmp_path / "out")
    }
    stored(runs["tax", 0], 0.9, 4, who_accuracy_expert=0.5, integrity_min=1.0)
    stored(runs["plain", 0], 0.8, 2)
    stored(runs["tax", 1], 0.7, 6, who_accuracy_expert=0.7)
    stored(runs["plain", 1], 0.9, 2)
    stored(runs["tax", 2], 0.8, 5)
    where = ["--config", str(config), "--out", str(tmp_path / "out"), "--table"]
    assert trust.plain.main(where) == 0
    table, commit = capsys.readouterr().out.split("\n\n")
    zero, one, two, mean = rows(table)
    assert [row["Difference"] for row in (zero, one, two)] == ["0.100", "-0.200", "-"]
    assert two["Fused Dice, plain"] == two["Fit of plain, min"] == "-"
    assert one["Integrity, min"] == "-"
    # .9 .7 .8: mean .8, sd .1; .1 -.2: mean -.05, sd .3 / sqrt(2); .5 .7: sd .2 / sqrt(2)
    assert mean["Fused Dice, TAX"] == "0.800 ± 0.100"
    assert mean["Difference"] == "-0.050 ± 0.212 (2 of 3)"
    assert mean["Who @expert"] == "0.600 ± 0.141 (2 of 3)"
    assert mean["Integrity, min"] == "1.000 (1 of 3)"
    assert mean["Fit of TAX, min"] == "5.000 ± 1.000"
    assert mean["Dead prototypes"] == "-"
    assert commit == "Commit c0ffee.\n"


@pytest.mark.parametrize("script", ["plain", "retraining"])
def test_no_results_are_no_table(trust, config, tmp_path, capsys, script):
    where = ["--config", str(config), "--out", str(tmp_path / "none"), "--table"]
    assert getattr(trust, script).main(where) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no results" in printed.err
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_plain_network_is_trained_and_tested_by_the_command_line(trust, config, tmp_path):
    flags = (trust.plain.PLAIN,)
    run = trust.resumable.Run(config, "plain", 0, tmp_path / "out", flags, trust.runner.OPTIONS)
    fit = TAXCLI.run(trust.resumable.fit_arguments(run, tmp_path, trust.runner.FIT_OPTIONS))
    checkpoint = trust.resumable.only(tmp_path, "checkpoints/*.ckpt")
    assert not list(tmp_path.rglob("*.png"))
    assert type(fit.model) is Consensus
    assert fit.model.reference == "given"
    assert fit.model.loss.segmentation == "ce"
    assert type(fit.model.network.backbone).__name__ == "Unet"
    assert fit.model.network.head.out_channels == 4  # one a class

    options = [f"--{flag}={value}" for flag, value in flags]
    test = TAXCLI.run(trust.resumable.test_arguments(run, tmp_path, checkpoint, options))
    metrics = trust.resumable.read_metrics(trust.resumable.only(tmp_path, "test/**/metrics.csv"))
    assert 0 <= metrics["test/fused_dice/mean"] <= 1
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all((test.model.state_dict()[name] == trained[name]).all() for name in trained)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"reference": "majority"}, "reference is majority, expected given"),
        ({"segmentation_loss": "dice"}, "segmentation_loss is dice, expected ce"),
    ],
)
def test_another_objective_than_the_plain_networks_is_refused(trust, config, capsys, option, said):
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"] |= option
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        trust.plain.main(["--config", str(config)])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_what_a_configuration_need_not_say_is_what_tax_takes(trust, config):
    """The reference must be said, as the default of TAX is the majority; its loss need not be."""
    settings = yaml.safe_load(config.read_text())
    trust.plain.check_config(config)
    del settings["model"]["init_args"]["reference"]
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="reference is majority"):
        trust.plain.check_config(config)
    defaults = inspect.signature(TAXLightningModule).parameters
    assert defaults["reference"].default == "majority"
    assert defaults["segmentation_loss"].default == "ce"


# ---------------------------------------------------------------------- runs


def test_what_is_there_is_not_run_again_and_what_failed_is(trust, config, tmp_path, capsys):
    runs = [trust.resumable.Run(config, "tax", seed, tmp_path / "out") for seed in (0, 1, 2)]
    called, broken = [], {1}

    async def measure(run, scratch):
        assert scratch.is_dir()
        called.append(run.seed)
        if run.seed in broken:
            raise trust.resumable.RunFailedError("all is lost")
        return {"value": run.seed / 2}

    assert trust.runner.carry_out_tests(runs, measure, jobs=2) == 1
    assert sorted(called) == [0, 1, 2]
    assert runs[1].failure.read_text() == "all is lost\n"
    assert not runs[1].result.exists()
    result = json.loads(runs[2].result.read_text())
    assert (result["config"], result["name"], result["seed"]) == ("tiny", "tax", 2)
    assert result["value"] == 1.0
    assert result["commit"]
    assert "failed: tiny tax seed 1" in capsys.readouterr().err

    broken.clear()
    assert trust.runner.carry_out_tests(runs, measure, jobs=2) == 0
    assert called[3:] == [1]
    assert not runs[1].failure.exists()


def test_flags_reach_training_but_leave_the_test_alone(trust, config, tmp_path):
    flags = (("data.init_args.annotators", "[A, B]"),)
    quickstart = trust.resumable.REPO / "experiments" / "quickstart.yaml"
    run = trust.resumable.Run(quickstart, "x", 4, config, flags, trust.runner.OPTIONS)
    fit = trust.resumable.fit_arguments(run, tmp_path, trust.runner.FIT_OPTIONS)
    assert fit[0] == "fit"
    assert "--config=experiments/quickstart.yaml" in fit
    assert "--seed_everything=4" in fit
    assert "--data.init_args.annotators=[A, B]" in fit
    test = trust.resumable.test_arguments(run, tmp_path, tmp_path / "best.ckpt", ["--last=1"])
    assert f"--ckpt_path={tmp_path / 'best.ckpt'}" in test
    assert not any("annotators" in argument for argument in test)
    assert test[-1] == "--last=1"
    # "none" clears what the file asks for, so it must come before the logger that is wanted.
    assert test.index("--trainer.logger=false") < test.index("--trainer.logger=CSVLogger")


def test_a_program_is_run_and_its_failure_told(trust, tmp_path):
    done = asyncio.run(trust.resumable.execute(["--version"], tmp_path))
    assert done.command == "python -m tax_lightning --version"
    assert done.seconds >= 0
    missing = tmp_path / "none.json"
    with pytest.raises(trust.resumable.RunFailedError) as error:
        asyncio.run(trust.resumable.execute([str(missing)], tmp_path, "json.tool"))
    assert str(error.value).startswith("python -m json.tool $RUN/none.json\nexit status ")
    assert "No such file" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "expected a number from 1 up"),
        (["--config", "nowhere.yaml"], "there is no such file"),
        (["--without", "Zoe"], "--without Zoe: expected some of Ana"),
    ],
)
def test_a_wrong_option_is_refused(trust, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        trust.retraining.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_hold(trust, module):
    assert doctest.testmod(getattr(trust, module)).failed == 0


# ---------------------------------------------------------------------- figures beside controls


def test_figures_stand_beside_their_controls(trust, tmp_path, capsys):
    files = []
    for seed, value in enumerate((0.25, 0.75)):
        metrics = {"test/who_necessity": value, "test/who_necessity_shuffled": 0.0}
        files.append(tmp_path / f"seed{seed}.json")
        files[-1].write_text(json.dumps({"metrics": metrics}))
    log = tmp_path / "metrics.csv"
    log.write_text("test/who_necessity,test/integrity_min\n0.125,\n,1.0\n")
    assert trust.figures.main(["--of", "scenes", *map(str, files), "--of", "cells", str(log)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| figure | scenes | its control | cells | its control |"
    assert "| necessity | 0.500 ± 0.354 | 0.000 ± 0.000 | 0.125 (1 of 2) | - |" in lines
    assert "| integrity, smallest | - | - | 1.000 (1 of 2) | - |" in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2\n", "no metric whose name starts with test/"), (None, "No such file")],
)
def test_files_without_figures_are_named(trust, tmp_path, capsys, content, message):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        trust.figures.main(["--of", "cells", str(path)])
    said = capsys.readouterr().err
    assert message in said
    assert "metrics.csv" in said


def test_an_outcome_is_what_the_module_says_of_the_test_scenes(trust, tmp_path):
    data = SyntheticDataModule(size=64, train_samples=1, val_samples=1, test_samples=3)
    module = TAXLightningModule(
        data.annotators,
        data.classes,
        network=None,
        encoder="tu-test_resnet.r160_in1k",
        backbone_options={"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
        kernels=1,
    )
    trainer = L.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    said, dice = trust.retraining.outcome(tmp_path / "model.ckpt", data)
    images = torch.stack([data.read(f"test-{i:04}")["image"] for i in range(3)])
    explanation = module.explain(images)
    assert torch.equal(said["prediction"].long(), explanation.decision)
    torch.testing.assert_close(said["who"], explanation.who)
    assert said["disputed"].any()
    assert 0 <= dice <= 1
