"""The studies under experiments: what each runs, what it measures, and its tables."""

import doctest
import importlib
import math

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from experiments import pictures
from experiments.benchmark import cost
from experiments.review import study as review
from experiments.trust import retraining
from tax_lightning import TAXLightningModule
from tax_lightning.simulation import SyntheticDataModule


def split(table):
    """Rows of a Markdown table, by the titles of its columns."""
    head, _, *lines = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.mark.parametrize("method", ["plain network", "TAX", "Separate"])
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


SCENES = {"size": 64, "train_samples": 2, "val_samples": 2, "test_samples": 2, "batch_size": 2}
WHO = [[0.7, 0.2, 0.6, 0.1], [0.2, 0.5, 0.3, 0.0], [0.1, 0.3, 0.1, 0.9]]


def outcome(*labels, disputed=(1, 1, 1, 0)):
    """What a model says of one image of 1 x 4 pixels and three annotators."""
    return {
        "prediction": torch.tensor(labels, dtype=torch.uint8).view(1, 1, 4),
        "who": torch.tensor(WHO).view(1, 3, 1, 4),
        "disputed": torch.tensor(disputed).bool().view(1, 1, 4),
    }


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


def test_models_without_somebody_are_compared_to_that_of_all(tmp_path, monkeypatch, capsys):
    said = {
        ("all", "seed3"): outcome(1, 1, 0, 0) | {"dice": 0.9},
        ("all", "seed8"): outcome(1, 1, 1, 0) | {"dice": 0.6},  # from seed 3: pixel 2
        ("without-Ana", "seed3"): outcome(0, 1, 0, 1) | {"dice": 0.5},  # pixels 0 and 3
        ("without-Ana", "seed8"): outcome(1, 1, 1, 0) | {"dice": 0.5},  # nothing
    }
    for name, seed in said:
        (tmp_path / name / seed).mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    data = {"class_path": "SyntheticDataModule", "init_args": SCENES}
    (tmp_path / "configs" / "all.yaml").write_text(yaml.safe_dump({"data": data}))
    monkeypatch.setattr(
        retraining, "outcome", lambda file, data: said[file.parts[-4], file.parts[-3]]
    )
    retraining.main([str(tmp_path), "--table", str(tmp_path / "t.csv")])
    pixels, on_d = (split(part) for part in capsys.readouterr().out.split("\n\n"))
    three, eight, mean = pixels
    assert (three["Changed without n"], eight["Changed without n"]) == ("0.500", "0.000")
    assert (three["Changed by seed"], three["AUROC of w_n, by seed"]) == ("0.250", "0.667")
    assert (three["Fused Dice, all"], three["Fused Dice without n"]) == ("0.900", "0.500")
    assert mean["Changed without n"] == "0.250 ± 0.354"
    assert (on_d[0]["AUROC of w_n"], on_d[1]["AUROC of w_n"]) == ("1.000", "-")
    assert (tmp_path / "t.csv").read_text().startswith("without,seed,fused_dice_all,fused_dice,")


def test_a_folder_without_the_model_of_all_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        retraining.main([str(tmp_path)])
    assert "expected the folder of a tax compare with the model 'all'" in capsys.readouterr().err


def test_an_outcome_is_what_the_module_says_of_the_test_scenes(tmp_path):
    data = SyntheticDataModule(**SCENES)
    backbone = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    options = {"encoder": "tu-test_resnet.r160_in1k", "backbone_options": backbone, "kernels": 1}
    module = TAXLightningModule(data.annotators, data.classes, network=None, **options)
    trainer = L.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    data.setup("test")
    said = retraining.outcome(tmp_path / "model.ckpt", data)
    images = torch.stack([data.read(f"test-{i:04}")["image"] for i in range(2)])
    explanation = module.explain(images)
    assert torch.equal(said["prediction"].long(), explanation.decision)
    torch.testing.assert_close(said["who"], explanation.who)
    assert said["disputed"].any()
    assert 0 <= said["dice"] <= 1


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


def test_the_examples_hold():
    found = doctest.testmod(importlib.import_module("experiments.trust.retraining"))
    assert found.attempted > found.failed == 0
