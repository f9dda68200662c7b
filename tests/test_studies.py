"""The studies under experiments: what each runs, what it measures, and its tables."""

import asyncio
import inspect
import math
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from experiments import pictures
from experiments.ablation import study, variants
from experiments.benchmark import compare, cost, methods, report
from experiments.review import study as review
from experiments.runs import Run, RunFailedError, add_row
from experiments.trust import plain, retraining
from tax_lightning import TAXLightningModule
from tax_lightning.baselines import __all__ as baselines
from tax_lightning.losses import LossWeights
from tax_lightning.modules.base import MultiAnnotatorModule
from tax_lightning.simulation import SyntheticDataModule

FOLDER = Path(__file__).parent.parent / "experiments"


def store(path, data, name, seed, commit="c0ffee", **metrics):
    add_row(path, {"data": data, "name": name, "seed": str(seed), "commit": commit, **metrics})


def split(table):
    """Rows of a Markdown table, by the titles of its columns."""
    head, _, *lines = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.fixture
def started(monkeypatch):
    """The runs that a study would carry out."""
    runs = []
    for module in (study, compare, plain, retraining):
        monkeypatch.setattr(module, "carry_out", lambda _, todo, *__: runs.extend(todo) or 0)
    return runs


@pytest.mark.parametrize("data", variants.DATA)
def test_a_name_means_the_same_flags_in_every_group(data):
    rows = [row for group in variants.groups(data).values() for row in group]
    by_name = {row.name: row.flags for row in rows}
    assert all(by_name[row.name] == row.flags for row in rows)
    assert len({tuple(sorted(flags)) for flags in by_name.values()}) == len(by_name)
    for group in variants.groups(data).values():
        assert len(group) > 1
        assert [row.label.endswith("(base)") for row in group if not row.flags] == [True]
    assert set(variants.LOSS_TERMS) == set(vars(LossWeights()))


def test_the_default_row_names_the_default():
    groups, model = variants.groups("synthetic"), inspect.signature(TAXLightningModule).parameters
    for group, default in (
        ("Kernels an annotator", variants.KERNELS),
        ("Side of a kernel, pixels", model["kernel_size"].default),
        ("Window of who, pixels", model["who_window"].default),
        ("Weight of cluster", LossWeights().cluster),
    ):
        assert f"{default} (base)" in [row.label for row in groups[group]]


@pytest.mark.parametrize("data", variants.DATA)
def test_a_configuration_says_nothing_that_a_variant_changes(data):
    """It would beat the checkpoint in the test run; the reference alone is meant to."""
    config = yaml.safe_load((FOLDER / "ablation" / f"{data}.yaml").read_text())
    said = set(config["model"]["init_args"]) | set(config["data"]["init_args"])
    flags = [flag for row in variants.variants(data).values() for flag in row.flags]
    varied = {f.split("init_args.")[1].split("=")[0].split(".")[0] for f in flags if "init" in f}
    assert said & varied == {"reference"}
    assert config["model"]["init_args"]["reference"] == variants.REFERENCE[data]


def test_all_variants_with_one_seed_come_before_the_next_seed(started, tmp_path):
    chosen = ["--only", "Labels an image", "kernels=8", "--seeds", "3", "4"]
    where = ["--data", "bubil_mini", "--root", str(tmp_path), "--table", str(tmp_path / "t.csv")]
    assert study.main([*where, *chosen]) == 1  # nothing to print
    names = ["labels=1", "labels=2", "default", "kernels=8"]
    assert [(run.name, run.seed) for run in started] == [(n, s) for s in (3, 4) for n in names]
    assert all(f"--data.init_args.root={tmp_path}" in run.options for run in started)


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (study, ["--data", "synthetic", "--only", "kernel"], "kernels=8"),
        (study, ["--data", "bubil_mini"], "--root None: expected the folder of bubil_mini"),
        (compare, ["--methods", "TAXX"], "invalid choice: 'TAXX'"),
        (compare, ["--data", "simulated"], "expected the folder of bubil_mini, for simulated"),
        (compare, ["--configs", "nowhere"], "--configs nowhere: expected a folder with synthetic"),
        (plain, ["--config", "nowhere.yaml"], "nowhere.yaml"),
        (retraining, ["--without", "Zoe"], "--without Zoe: expected some of Ana"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(started, capsys, main, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not started


def test_tables_and_figure_of_the_ablation(tmp_path, capsys):
    path = tmp_path / "results.csv"
    metric, who = "dice/mean", "who_accuracy_expert"
    for seed, dice in enumerate((0.6, 0.7, 0.8)):  # mean .7; deviations -.1, 0, .1: sd .1
        store(path, "synthetic", "default", seed, **{metric: dice, who: 1.0})
    store(path, "synthetic", "kernel_size=1", 0, **{metric: 0.5})
    store(path, "synthetic", "kernel_size=1", 2, "decaf", **{metric: 0.9})  # sd sqrt(.08)
    store(path, "synthetic", "kernel_size=1", 7, **{metric: 0.0})  # nobody asked for this seed
    store(path, "synthetic", "mixing=logit", 0, **{metric: 0.25})
    arguments = ["--data", "synthetic", "--only_tables", "--table", str(path)]
    assert study.main([*arguments, "--figure", str(tmp_path / "figure.png")]) == 0
    *parts, made = capsys.readouterr().out.split("\n\n")
    assert len(parts) == len(variants.groups("synthetic")) + 1
    assert all(part.count("0.700 ± 0.100") == 1 for part in parts)  # the default is in every table
    (side,) = (part for part in parts if part.startswith("| Side of a kernel"))
    one, default = split(side)
    assert default["Side of a kernel, pixels"] == "3 (base)"
    assert default["Who @expert"] == "1.000 ± 0.000"
    assert one["Annotator Dice"] == "0.700 ± 0.283 (2 of 3)"
    assert one["Who @expert"] == "-"
    assert split(parts[-1])[1][study.GONE] == "mixing=logit"
    assert made.endswith("over the seeds 0, 1, 2; 6 runs; commit c0ffee, decaf.\n")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines, panels = study.figure_parts(study.stored(path, "synthetic", [0, 1, 2]), "synthetic")
    assert [panel.title for panel in panels] == ["Annotator Dice", "Who @expert"]
    assert [line.name for line in lines].count("default") == 1


@pytest.mark.parametrize("folder", ["benchmark", "benchmark/large"])
def test_the_comparison_is_every_method_on_every_data_set_with_every_seed(
    started, tmp_path, folder
):
    where = ["--bubil_mini", str(tmp_path), "--lidc_mini", str(tmp_path), "--seeds", "0", "1"]
    table = ["--table", str(tmp_path / "none.csv"), "--configs", str(FOLDER / folder)]
    assert compare.main([*where, *table]) == 1
    models = {method.model for method in methods.METHODS.values() if method.model}
    assert models == set(baselines) - {"Baseline"}
    count = len(methods.METHODS) * len(compare.FOLDERS)
    assert len({run.key for run in started}) == len(started) == 2 * count
    assert all(run.seed == 0 for run in started[:count])
    assert {run.config.parent for run in started} == {FOLDER / folder}
    (staple,) = (r for r in started if r.key == ("synthetic", "STAPLE", "0"))
    assert staple.options == ("--model=Consensus",)
    assert staple.fit == ("--model.init_args.reference=staple",)  # and not in the test
    for path in {run.config for run in started}:  # selection is the same for all
        config = yaml.safe_load(path.read_text())
        assert config["checkpoint"] == {"monitor": "val/ged2", "mode": "min"}
        assert config["model"]["init_args"]["encoder_weights"] is None
        scheduler = config["model"]["init_args"]["lr_scheduler"]["init_args"]
        assert scheduler["T_max"] == config["trainer"]["max_epochs"]


def leading(path, by, column="dice", metric="dice/mean"):
    """Two methods and two seeds; TAX leads by so much on each of 12 images."""
    for name, ahead in (("TAX", by), ("multi-head", 0.0)):
        scores = [0.5 + 0.01 * i + ahead for i in range(12)]
        found = {metric: np.mean(scores), f"images/{column}": " ".join(map(str, scores))}
        for seed in (0, 1):
            store(path, "synthetic", name, seed, fit_seconds=40.0, test_seconds=20.0, **found)
    return compare.stored(path, "synthetic", [0, 1])


def test_bold_is_what_a_paired_test_over_images_supports(tmp_path):
    ahead = report.comparison(leading(tmp_path / "ahead.csv", 0.1), [0, 1])
    assert "| TAX | **0.655 ± 0.000** |" in ahead
    assert "| multi-head | 0.555 ± 0.000 |" in ahead
    assert "**" not in report.comparison(leading(tmp_path / "level.csv", 0.0), [0, 1])
    distances = leading(tmp_path / "distances.csv", 0.1, "ged2", "ged2")
    assert report.best_method(distances, "ged2", report.LOWER) == "multi-head"
    assert report.best_method(distances, "ged2", report.HIGHER) == "TAX"


def test_scores_of_images_are_averaged_over_seeds_before_they_are_compared():
    rows = [{"name": "TAX", "images/dice": text} for text in ("0.2 0.4 nan", "0.6 0.8 0.5")]
    scores = report.image_scores(rows, "TAX", "images/dice")
    np.testing.assert_allclose(scores, [0.4, 0.6, math.nan])
    # an image without a case for one method takes no part
    assert not report.is_supported(scores, [np.array([0.4, 0.6, 0.9])])
    assert not report.is_supported(np.ones(1), [np.zeros(1)])
    assert not report.is_supported(np.ones(9), [])


def test_what_the_comparison_prints(tmp_path, capsys):
    leading(tmp_path / "t.csv", 0.1)
    where = ["--table", str(tmp_path / "t.csv"), "--figures", str(tmp_path)]
    assert compare.main(["--only_tables", *where, "--data", "synthetic", "lidc_mini"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("### synthetic\n")
    assert "lidc_mini" not in said
    assert "**0.655 ± 0.000 (2 of 3)**" in said
    assert said.endswith("4 runs, 4 minutes of one thread each; commit c0ffee.\n")
    assert [path.name for path in tmp_path.glob("*.png")] == ["annotator_dice.png"]


@pytest.mark.parametrize("method", ["plain network", "TAX", "multi-head", "separate", "STAPLE"])
def test_every_kind_of_method_can_be_measured(monkeypatch, method):
    monkeypatch.setattr(cost, "ENCODER", "tu-test_resnet.r160_in1k")
    monkeypatch.setattr(cost, "SIDE", 32)
    found = cost.measure_here(method, 2)
    assert set(found) == set(cost.QUANTITIES)
    assert all(value > 0 for value in found.values())


def test_a_ratio_is_taken_within_a_turn():
    one, four, six = (dict.fromkeys(cost.QUANTITIES, value) for value in (1.0, 4.0, 6.0))
    turns = [{"a": four, "b": one}, {"a": six, "b": four}, {"a": six, "b": one}]
    assert cost.ratios(turns, "a", "b") == four  # the median of 4, 1.5 and 6


def test_both_networks_side_by_side(tmp_path, capsys):
    path = tmp_path / "plain.csv"
    for name, seed, dice, minutes, more in (
        ("tax", 0, 0.9, 4, {"who_accuracy_expert": 0.5, "integrity_min": 1.0}),
        ("plain", 0, 0.8, 2, {}),
        ("tax", 1, 0.7, 6, {"who_accuracy_expert": 0.7, "who_accuracy_expert_exchanged": 0.25}),
        ("plain", 1, 0.9, 2, {}),
        ("tax", 2, 0.8, 5, {}),
    ):
        seconds = {"fit_seconds": 60.0 * minutes, "fused_dice/mean": dice}
        store(path, "quickstart", name, seed, **seconds, **more)
    assert plain.main(["--table", str(path), "--only_tables"]) == 0
    table, controls, commit = capsys.readouterr().out.split("\n\n")
    *lines, mean = split(table)
    assert [row["Difference"] for row in lines] == ["0.100", "-0.200", "-"]
    assert lines[2]["Fused Dice, plain"] == lines[2]["Fit of plain, min"] == "-"
    # .9 .7 .8: mean .8, sd .1; .1 -.2: mean -.05, sd .3 / sqrt(2); .5 .7: sd .2 / sqrt(2)
    assert mean["Fused Dice, TAX"] == "0.800 ± 0.100"
    assert mean["Difference"] == "-0.050 ± 0.212 (2 of 3)"
    assert mean["Who @expert"] == "0.600 ± 0.141 (2 of 3)"
    assert mean["Fit of TAX, min"] == "5.000 ± 1.000"
    assert mean["Who ECE"] == "-"
    _, figure, control = split(controls)[0].values()  # of who accuracy @expert
    assert (figure, control) == ("0.600 ± 0.141 (2 of 3)", "0.250 (1 of 3)")
    assert commit == "Commit c0ffee.\n"


@pytest.mark.parametrize(
    "said", [{"reference": "majority"}, {"reference": "given", "segmentation_loss": "dice"}, {}]
)
def test_another_objective_than_the_plain_networks_is_refused(tmp_path, said):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"model": {"init_args": said}}))
    with pytest.raises(ValueError, match="expected given and ce"):
        plain.check_config(config)
    defaults = inspect.signature(MultiAnnotatorModule).parameters
    assert defaults["reference"].default == "majority"
    assert defaults["segmentation_loss"].default == "ce"


SCENES = {"size": 64, "train_samples": 2, "val_samples": 2, "test_samples": 2, "batch_size": 2}
WHO = [[0.7, 0.2, 0.6, 0.1], [0.2, 0.5, 0.3, 0.0], [0.1, 0.3, 0.1, 0.9]]


def outcome(*labels, disputed=(1, 1, 1, 0)):
    """What a model says of one image of 1 x 4 pixels and three annotators."""
    return {
        "prediction": torch.tensor(labels, dtype=torch.uint8).view(1, 1, 4),
        "who": torch.tensor(WHO).view(1, 3, 1, 4),
        "disputed": torch.tensor(disputed).bool().view(1, 1, 4),
    }


def scenes(tmp_path, name="SyntheticDataModule", **options):
    config = tmp_path / "tiny.yaml"
    data = {"class_path": name, "init_args": {**SCENES, **options}}
    config.write_text(yaml.safe_dump({"data": data}))
    return config


def test_leaving_one_out_leaves_scenes_and_reference_the_same(tmp_path):
    config = scenes(tmp_path)
    whole = retraining.make_data(config)
    run = retraining.without(config, whole.annotators, "Chloe", 7)
    assert run.key == ("tiny", "without-Chloe", "7")
    option, value = run.fit[0].split("=")
    assert (option, value) == ("--data.init_args.annotators", "[Ana, Ben, Dara, Emil]")
    fewer, rest = SyntheticDataModule(**SCENES, annotators=yaml.safe_load(value)), [0, 1, 3, 4]
    for name in ("train-0000", "val-0001", "test-0001"):
        before, after = whole.read(name), fewer.read(name)
        for key in ("image", "reference"):
            assert torch.equal(before[key], after[key])
        assert torch.equal(before["masks"][rest], after["masks"])


def test_data_that_change_with_who_is_left_out_are_refused(tmp_path):
    for options, said in (
        ({"missing": 0.5}, "missing=0.5.*expected 0 and null"),
        ({"labels_per_image": 2}, "labels_per_image=2.*expected 0 and null"),
        ({"name": "FolderDataModule"}, "FolderDataModule, expected SyntheticDataModule"),
    ):
        with pytest.raises(ValueError, match=said):
            retraining.make_data(scenes(tmp_path, **options))


def test_auroc_by_hand():
    positive = torch.tensor([False, False, True, True])
    # of the four pairs, only (.35 against .4) is the wrong way round
    for score, expected in (
        ([0.1, 0.4, 0.35, 0.8], 3 / 4),
        ([0.9, 0.8, 0.2, 0.1], 0),
        ([0.5, 0.2, 0.5, 0.7], 3.5 / 4),  # .5 = .5 counts half
        ([0.2] * 4, 1 / 2),
    ):
        assert retraining.auroc(torch.tensor(score), positive) == pytest.approx(expected)
    for every in (True, False):
        assert math.isnan(retraining.auroc(torch.rand(4), torch.full((4,), every)))
    # tiny weights are told apart beside one that is just above 1 by rounding
    score = torch.tensor([1 + 2e-7, 1e-20, 1e-30])
    assert score[0] > 1
    assert retraining.auroc(score, torch.tensor([True, True, False])) == 1


def test_two_models_are_compared_by_hand():
    found = retraining.compare(outcome(1, 1, 0, 0), outcome(0, 1, 0, 1)["prediction"], index=0)
    # Changed: pixels 0 and 3, of which D holds pixel 0.
    # all: Ana .7 .1 against .2 .6: 2 of 4 pairs. Ben .2 0 against .5 .3: 0 of 4.
    #      Chloe .1 .9 against .3 .1: .1 = .1 half, .9 wins both: 2.5 of 4.
    # D: Ana .7 against .2 .6: 2 of 2. Ben .2 against .5 .3: 0. Chloe .1 against .3 .1: .5 of 2.
    expected = {"changed": 2 / 4, "auroc": 2 / 4, "auroc_others": (0 + 2.5 / 4) / 2}
    on_d = {"changed": 1 / 3, "auroc": 1.0, "auroc_others": (0 + 0.5 / 2) / 2}
    assert found == pytest.approx({**expected, **{f"{k}_disputed": v for k, v in on_d.items()}})
    same = retraining.compare(outcome(1, 1, 0, 0), outcome(1, 1, 0, 0)["prediction"], index=1)
    assert same == {"changed": 0, "changed_disputed": 0}  # where nothing changes, no AUROC


def test_a_model_is_compared_as_soon_as_it_is_trained(tmp_path, monkeypatch):
    said = {}

    async def fit(run, scratch):
        said["now"] = {
            ("all", 3): outcome(1, 1, 0, 0),
            ("all", 8): outcome(1, 1, 1, 0),  # from seed 3: pixel 2
            ("without-Ana", 3): outcome(0, 1, 0, 1),  # pixels 0 and 3
        }[run.name, run.seed]
        return 1.5

    monkeypatch.setattr(retraining, "fit", fit)
    monkeypatch.setattr(retraining, "outcome", lambda checkpoint, data: (said["now"], 0.8))
    config, table = scenes(tmp_path), tmp_path / "out.csv"

    def measure(name, seed, control):
        run = Run(config, name, seed)
        return asyncio.run(retraining.measure(run, tmp_path, table, control))

    with pytest.raises(RunFailedError, match=r"out-tiny-seed3.pt is gone"):
        measure("without-Ana", 3, {})
    assert measure("all", 3, {3: 8}) == {"fit_seconds": 1.5, "fused_dice": 0.8}
    assert not any("seed" in key for key in measure("without-Ana", 3, {}))  # no control
    measure("all", 8, {8: 3})
    found = measure("without-Ana", 3, {3: 8, 8: 3})
    assert found["changed"] == 0.5
    assert found["auroc_disputed"] == 1
    assert found["changed_seed"] == 0.25
    assert found["auroc_seed"] == pytest.approx(2 / 3)  # .6 against .7 .2 .1
    assert found["changed_seed_disputed"] == pytest.approx(1 / 3)


def test_models_of_all_annotators_come_first(started, tmp_path):
    retraining.train(tmp_path / "t.csv", scenes(tmp_path), ["Ana", "Ben"], [0, 1], 1)
    assert [run.name for run in started] == ["all"] * 2 + ["without-Ana", "without-Ben"] * 2


def test_tables_of_retraining(tmp_path, capsys):
    path = tmp_path / "t.csv"
    for seed, dice, rocs in ((3, 0.9, (0.5, 1.0)), (8, 0.6, (1.0, 1.0))):
        store(path, "specialists", "all", seed, fused_dice=dice)
        for name, auroc in zip(("without-Ana", "without-Ben"), rocs, strict=True):
            more = {"auroc_disputed": 0.25} if name == "without-Ana" else {}
            store(path, "specialists", name, seed, fused_dice=0.5, auroc=auroc, **more)
    assert retraining.main(["--table", str(path), "--only_tables", "--seeds", "3", "8"]) == 0
    pixels, on_d, commit = capsys.readouterr().out.split("\n\n")
    three, eight, mean = split(pixels)
    assert (three["AUROC of w_n"], eight["AUROC of w_n"]) == ("0.750", "1.000")
    assert mean["AUROC of w_n"] == "0.875 ± 0.177"  # deviations ± .125: sd .125 * sqrt(2)
    assert (three["Changed by seed"], three["Fused Dice, all"]) == ("-", "0.900")
    assert split(on_d)[0]["AUROC of w_n"] == "0.250"  # Ana's alone
    assert commit == "Commit c0ffee.\n"


def test_an_outcome_is_what_the_module_says_of_the_test_scenes(tmp_path):
    data = SyntheticDataModule(**SCENES)
    backbone = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    options = {"encoder": "tu-test_resnet.r160_in1k", "backbone_options": backbone, "kernels": 1}
    module = TAXLightningModule(data.annotators, data.classes, network=None, **options)
    trainer = L.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    said, dice = retraining.outcome(tmp_path / "model.ckpt", data)
    images = torch.stack([data.read(f"test-{i:04}")["image"] for i in range(2)])
    explanation = module.explain(images)
    assert torch.equal(said["prediction"].long(), explanation.decision)
    torch.testing.assert_close(said["who"], explanation.who)
    assert said["disputed"].any()
    assert 0 <= dice <= 1


def test_the_pictures_of_the_docs_are_drawn(tmp_path):
    data = SyntheticDataModule(size=64, train_samples=2, val_samples=32, test_samples=2)
    data.setup("fit")
    options = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    module = TAXLightningModule(
        data.annotators, data.classes, encoder="resnet18", backbone_options=options
    )
    pictures.draw(module.eval(), data, tmp_path)
    assert Image.open(tmp_path / "quickstart.png").width > 500
    assert Image.open(tmp_path / "gallery.png").width > 100


# Review


@pytest.mark.parametrize("kind", review.KINDS)
def test_a_spoilt_mask_differs_as_it_should(kind):
    mask, another = np.zeros((2, 40, 40), np.uint8)
    mask[10:20, 12:24] = 2
    another[30:, 30:] = 1
    spoilt = review.spoil(kind, mask, another, np.random.default_rng(0))
    area = (spoilt > 0).sum() / 120
    assert (spoilt != mask).any()
    assert {
        "shifted": area == 1,
        "swapped": (spoilt == another).all(),
        "truncated": 0.35 < area < 0.75 and (spoilt[mask == 0] == 0).all(),
        "blob": 1 < area < 2.1 and (spoilt[mask > 0] == 2).all(),
    }[kind]


def test_errors_are_planted_in_one_of_twenty_masks_and_nowhere_else():
    masks = np.random.default_rng(0).integers(0, 2, (20, 4, 16, 16)).astype(np.uint8)
    spoilt, kinds = review.plant(masks, 0)
    assert sorted(kinds[kinds >= 0]) == [0, 1, 2, 3]
    np.testing.assert_array_equal((spoilt != masks).any((2, 3)), kinds >= 0)


def test_dice_with_the_majority_by_hand():
    masks = np.array([[[[1, 1, 0]], [[1, 0, 0]], [[1, 0, 2]]]], np.uint8)
    # the majority is 1, 0, 0; the last has a class that nobody else has
    np.testing.assert_allclose(review.dice_with_majority(masks, 3), [[2 / 3, 1, 0.5]])


def test_the_review_queue_finds_planted_errors():
    data = SyntheticDataModule(size=64, train_samples=40, val_samples=0, test_samples=0)
    found = review.measure(data, seed=5)
    assert found["queue"] > found["dice with majority"] > 2 * found["random"]
