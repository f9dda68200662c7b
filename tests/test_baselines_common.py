"""What all baselines must do: train, name, measure, save and answer as TAXLightningModule does."""

import json
import re
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from baseline_scenes import (
    ALL,
    ANNOTATORS,
    CLASSES,
    loader,
    make,
    make_backbone,
    make_trainer,
    scenes,
    stacked,
    trained,
)

from tax_lightning import baselines as b
from tax_lightning.__main__ import main
from tax_lightning.callbacks import ExplanationLogger
from tax_lightning.metrics import Dispute, Votes

REPO = Path(__file__).parent.parent
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


class EveryParameterLearns(L.Callback):
    def on_after_backward(self, trainer, module):
        # DistributedDataParallel stops at a parameter without a gradient.
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def fit(module, absent=(), **options):
    """The metrics of a validation before and after a training."""
    options |= {"inference_mode": False, "callbacks": [EveryParameterLearns()]}
    options["check_val_every_n_epoch"] = options["max_epochs"]  # once, at the end
    trainer = make_trainer(**options)
    (before,) = trainer.validate(module, loader(), verbose=False)
    trainer.fit(module, loader(scenes(absent=absent)), loader())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return before, trainer.logged_metrics


@pytest.mark.parametrize(
    ("kind", "loss"),
    [*((kind, "ce") for kind in ALL), (b.MultiHead, "dice"), (b.ConfusionPixel, "ce+dice")],
)
def test_it_learns_also_where_annotators_are_missing(kind, loss):
    # C is missing from the second of two batches; of one image nobody has drawn anything.
    absent = {1: [0, 1, 2], 2: [1], 4: [2], 5: [2], 6: [0, 2], 7: [2]}
    before, after = fit(make(kind, segmentation_loss=loss), absent, max_epochs=30)
    assert after["val/loss"] < 0.6 * before["val/loss"]
    assert after["val/fused_dice/mean"] > (0.7 if loss == "ce" else 0.6)


@pytest.mark.parametrize("kind", [b.MultiHead, b.Pionono])
def test_it_learns_how_each_draws(kind):
    module, images = trained(kind), stacked("image")
    areas = [module.predict(images, annotator=name)[:, 1:].sum() for name in ANNOTATORS]
    assert areas[1] > 1.5 * areas[0] > 2 * areas[2]  # squares with sides of 9, 15 and 5 pixels


@every
@pytest.mark.parametrize(
    ("absent", "precision"),
    [(range(8), "32-true"), ((), "bf16-mixed"), ((), "bf16-true")],
    ids=["nobody labelled", "bf16-mixed", "bf16-true"],
)
def test_numbers_stay_finite(kind, absent, precision):
    absent = {image: [0, 1, 2] for image in absent}
    _, after = fit(make(kind), absent, max_epochs=2, precision=precision)
    assert "val/fused_dice/mean" in after


@every
@torch.no_grad()
def test_predictions_are_probabilities_of_the_size_of_the_image(kind):
    module = make(kind).eval()
    output = module(torch.randn(2, 3, 13, 18))
    count = len(ANNOTATORS) if module.named else 0
    assert output.log_probs.shape == (2, 3, 13, 18)
    assert output.log_annotator_probs.shape == (2, count, 3, 13, 18)
    assert output.log_who.shape == (2, count, 13, 18)
    sums = [output.log_probs.logsumexp(1), output.log_annotator_probs.logsumexp(2)]
    sums += [output.log_sample_probs.logsumexp(2), *[output.log_who.logsumexp(1)] * module.named]
    for total in sums:
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)


@every
def test_evaluation_gives_the_same_every_time_and_image_by_image(kind):
    module, images = make(kind), stacked("image")[:3]
    state = torch.get_rng_state()
    first = module.predict(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module.predict(images), first)
    torch.testing.assert_close(module.predict(images[1:2]), first[1:2])
    assert module.training


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.named])
def test_predictions_of_one_and_of_some(kind):
    module, images = make(kind), stacked("image")[:2]
    for parameter in module.parameters():  # so that annotators differ also at the start
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        output = module.eval()(images)
    own, who = output.log_annotator_probs.exp(), output.log_who.exp()
    for n, name in enumerate(ANNOTATORS):
        torch.testing.assert_close(module.predict(images, annotator=name), own[:, n])
    two = who[:, [2, 0]] / who[:, [2, 0]].sum(dim=1, keepdim=True)
    expected = (two.unsqueeze(2) * own[:, [2, 0]]).sum(dim=1)
    torch.testing.assert_close(module.predict(images, panel=["Dr. C", "Ana"]), expected)
    torch.testing.assert_close(module.predict(images), output.log_probs.exp())
    if kind not in (b.ConfusionGlobal, b.ConfusionPixel):  # of which the truth is the result
        mixture = (who.unsqueeze(2) * own).sum(dim=1)
        torch.testing.assert_close(output.log_probs.exp(), mixture)
    expected = torch.full_like(who, 1 / 3)
    if kind is b.GatedMultiHead:
        expected = module.gate(module.network.features(images)).softmax(dim=1)
    torch.testing.assert_close(who, expected)


@every
def test_metrics_are_logged_by_the_names_of_tax(kind):
    (found,) = make_trainer().test(make(kind), loader(), verbose=False)
    labels = (*CLASSES[1:], "mean")
    expected = {f"{name}/{c}" for name in ("fused_dice", "fused_iou", "dice_soft") for c in labels}
    expected |= {f"dice_max/{name}" for name in ("predictions", "annotators", "mean")}
    expected |= {"ged2", "loss", "dice_match", "ece_reference", "ece_annotators"}
    expected |= {"samples/ged2", "samples/dice_match"}
    if kind is not b.ProbabilisticUNet:
        expected |= {f"dice/{name}" for name in (*ANNOTATORS, "mean")}
        expected |= {f"relative_area_{s}/{n}" for s in ("predicted", "true") for n in ANNOTATORS}
        expected |= {"relative_area_error", *Dispute().compute(), *Votes(3, 3).compute()}
    if kind is b.GatedMultiHead:
        expected |= {"who_agreement_lift", "who_entropy_disputed", "who_entropy_unanimous"}
        expected |= {f"{of}/{name}" for of in ("votes", "weight") for name in ANNOTATORS}
    # A correlation has no case where all areas are the same.
    without_a_case = {"relative_area_spearman"} if kind is not b.ProbabilisticUNet else set()
    assert {key.removeprefix("test/") for key in found} - without_a_case == expected


@every
def test_without_a_reference_annotators_are_measured_where_it_learns_from_them(kind):
    if kind in (b.Consensus, b.ProbabilisticUNet):
        message = f"^reference='none': {kind.__name__} .*Set reference='majority'"
        with pytest.raises(ValueError, match=message):
            make(kind, reference="none")
    else:
        _, after = fit(make(kind, reference="none"), max_epochs=1)
        assert "val/dice/mean" in after
        assert not any("fused_dice" in key for key in after)


# Options of each that change its shape or its answers.
OPTIONS = {
    b.MultiHead: {"kernel_size": 1},
    b.GatedMultiHead: {"kernel_size": 1, "explanation_metrics": True},
    b.ConfusionGlobal: {"trace_weight": 0.5},
    b.ConfusionPixel: {"warm_up": 0.0},
    b.Pionono: {"latent_dim": 3, "samples": 4, "train_samples": 2, "latent_rate": 0.1},
    b.ProbabilisticUNet: {"latent_dim": 3, "samples": 4, "kl_weight": 2.0},
}


def saved(module, folder):
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "baseline.ckpt")
    return folder / "baseline.ckpt"


@every
def test_a_module_is_reloaded_from_its_checkpoint_alone(kind, tmp_path):
    options = OPTIONS.get(kind, {})
    tiny = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())["model"]["init_args"]
    backbone = {name: tiny[name] for name in ("encoder", "backbone_options")}
    module = make(kind, network=None, segmentation_loss="ce+dice", **backbone, **options)
    file = saved(module, tmp_path)
    stored = torch.load(file, weights_only=True)
    assert stored["class_path"].endswith(f".{kind.__name__}")
    assert stored["names"] == {"annotators": ANNOTATORS, "classes": CLASSES}
    assert options.items() <= stored["hyper_parameters"].items()
    again = kind.load_from_checkpoint(file, weights_only=True)
    assert again.hparams["segmentation_loss"] == "ce+dice"
    assert again.weights == module.weights
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.predict(images), module.predict(images))


@every
def test_a_network_of_ones_own_must_be_given_again(kind, tmp_path):
    module, image = make(kind), stacked("image")[:1]
    file = saved(module, tmp_path)
    with pytest.raises(ValueError, match=r"^this checkpoint was trained with a network of"):
        kind.load_from_checkpoint(file)
    again = kind.load_from_checkpoint(file, network=make_backbone())
    assert torch.equal(again.predict(image), module.predict(image))
    others = {"network": make_backbone(), "classes": ["background", "a", "b"]}
    with pytest.raises(ValueError, match=r"^checkpoint: its classes are .* were asked for"):
        kind.load_from_checkpoint(file, **others)


@every
def test_fit_then_test_and_predict_from_the_checkpoint_alone(kind, tmp_path, capsys):
    options = ["logger=false", "accelerator=cpu", "max_epochs=1", "limit_train_batches=1"]
    data = [
        *(f"--trainer.{option}" for option in (*options, f"default_root_dir={tmp_path}")),
        *("--data=SyntheticDataModule", "--data.init_args.size=64"),
        *(f"--data.init_args.{split}_samples=2" for split in ("train", "val", "test")),
    ]
    files = REPO / "experiments" / "quickstart.yaml", REPO / "tests" / "tiny.yaml"
    main(["fit", *(f"--config={file}" for file in files), f"--model={kind.__name__}", *data])
    said = capsys.readouterr().out
    assert re.search(r"^fused_dice +cell", said, re.MULTILINE)
    assert "pictures    none" in said
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["reference"] == "given"

    main(["test", *data, "--ckpt_path", checkpoint])
    assert ("test/dice/Chloe" in capsys.readouterr().out) == kind.named

    output = tmp_path / "predictions"
    main(["predict", *data, "--ckpt_path", checkpoint, f"--predictions.output_dir={output}"])
    manifest = json.loads((output / "manifest.json").read_text())
    assert "prototypes" not in manifest
    named = [annotator["name"] for annotator in manifest["annotators"]]
    assert named == ["Ana", "Ben", "Chloe", "Dara", "Emil"] * kind.named
    for files in (image["files"] for image in manifest["images"]):
        assert list(files["annotators"]) == named
        written = (files["fused"], files["maps"], *files["annotators"].values())
        assert all((output / file).is_file() for file in written)


def test_that_there_are_no_pictures_is_said_once():
    trainer = make_trainer(max_epochs=3, callbacks=[ExplanationLogger(every_n_epochs=1)])
    with pytest.warns(UserWarning, match="^ExplanationLogger: MultiHead explains nothing") as said:
        trainer.fit(make(b.MultiHead), loader(), loader())
    assert sum("explains nothing" in str(warning.message) for warning in said) == 1
