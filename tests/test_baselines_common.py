"""What all baselines must do: train, name, measure, save and answer as TAXLightningModule does."""

import json
import math
import re
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from baseline_scenes import (
    ANNOTATORS,
    CLASSES,
    images,
    loader,
    make,
    make_backbone,
    make_trainer,
    scenes,
)

from tax_lightning import baselines
from tax_lightning.__main__ import main
from tax_lightning.baselines import (
    ConfusionGlobal,
    ConfusionPixel,
    Consensus,
    GatedMultiHead,
    MultiHead,
    Pionono,
    ProbabilisticUNet,
    Separate,
)
from tax_lightning.callbacks import ExplanationLogger

REPO = Path(__file__).parent.parent
ALL = (
    Consensus,
    Separate,
    MultiHead,
    GatedMultiHead,
    ConfusionGlobal,
    ConfusionPixel,
    Pionono,
    ProbabilisticUNet,
)
NAMED = tuple(kind for kind in ALL if kind is not ProbabilisticUNet)
MEANS = (Separate, MultiHead, Pionono)  # whose result is the mean of all annotators

every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
every_named = pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:ExplanationLogger. .* explains nothing"),
]


def test_all_that_is_exported_is_tested():
    assert {kind.__name__ for kind in ALL} | {"Baseline"} == set(baselines.__all__)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []
        self.left_out: list[str] = []

    def on_after_backward(self, trainer, module):
        self.left_out += [
            name for name, p in module.named_parameters() if p.requires_grad and p.grad is None
        ]

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append(float(outputs["loss"]))


@every
def test_it_learns_also_where_annotators_are_missing(kind):
    # C is missing from a whole batch; of one image nobody has drawn anything.
    absent = {0: [2], 1: [2], 2: [0, 2], 3: [2], 5: [0, 1, 2], 6: [1]}
    module, losses = make(kind), Losses()
    trainer = make_trainer(max_epochs=30, callbacks=[losses])
    trainer.fit(module, loader(scenes(absent=absent)), loader())
    assert all(math.isfinite(loss) for loss in losses.seen)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert sum(losses.seen[-4:]) < 0.6 * sum(losses.seen[:4])
    # DistributedDataParallel stops at a parameter without a gradient.
    assert losses.left_out == []
    assert trainer.logged_metrics["val/fused_dice/mean"] > 0.7
    assert module.monitor in trainer.logged_metrics


@every
def test_a_batch_that_nobody_labelled_does_no_harm(kind):
    module, losses = make(kind), Losses()
    trainer = make_trainer(max_epochs=1, callbacks=[losses])
    trainer.fit(module, loader(scenes(4, absent={i: [0, 1, 2] for i in range(4)})))
    assert all(math.isfinite(loss) for loss in losses.seen)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@every
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_numbers_may_be_short(kind, precision):
    module, losses = make(kind), Losses()
    trainer = make_trainer(max_epochs=2, precision=precision, callbacks=[losses])
    trainer.fit(module, loader(), loader())
    assert all(math.isfinite(loss) for loss in losses.seen)
    assert "val/fused_dice/mean" in trainer.logged_metrics


@every
@pytest.mark.parametrize("loss", ["dice", "ce+dice"])
def test_the_loss_may_be_another(kind, loss):
    module, losses = make(kind, segmentation_loss=loss), Losses()
    make_trainer(max_epochs=12, callbacks=[losses]).fit(module, loader())
    assert module.loss.segmentation == loss
    assert sum(losses.seen[-2:]) < sum(losses.seen[:2])


@every
def test_what_it_says_are_probabilities_of_the_size_of_the_image(kind):
    module = make(kind).eval()
    strange = torch.randn(2, 3, 13, 18)
    with torch.no_grad():
        output = module(strange)
    count = len(ANNOTATORS) if module.named else 0
    assert output.log_probs.shape == (2, 3, 13, 18)
    assert output.log_annotator_probs.shape == (2, count, 3, 13, 18)
    assert output.log_who.shape == (2, count, 13, 18)
    for log_probs, axis in (
        (output.log_probs, 1),
        (output.log_annotator_probs, 2),
        (output.log_sample_probs, 2),
    ):
        total = log_probs.exp().sum(dim=axis)
        torch.testing.assert_close(total, torch.ones_like(total))
    if module.named:
        torch.testing.assert_close(output.log_who.exp().sum(dim=1), torch.ones(2, 13, 18))


@every
def test_evaluation_gives_the_same_every_time_and_image_by_image(kind):
    module = make(kind)
    seen = images()[:3]
    state = torch.get_rng_state()
    first = module.predict(seen)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module.predict(seen), first)
    torch.testing.assert_close(module.predict(seen[1:2]), first[1:2])
    assert module.training
    assert not first.requires_grad


# ---------------------------------------------------------------------- names


@every_named
def test_predictions_of_one_and_of_some(kind):
    module = make(kind)
    for parameter in module.parameters():  # so that annotators differ also at the start
        torch.nn.init.normal_(parameter, std=0.3)
    seen = images()[:2]
    with torch.no_grad():
        output = module.eval()(seen)
    own, who = output.log_annotator_probs.exp(), output.log_who.exp()
    for n, name in enumerate(ANNOTATORS):
        torch.testing.assert_close(module.predict(seen, annotator=name), own[:, n])
    two = who[:, [2, 0]] / who[:, [2, 0]].sum(dim=1, keepdim=True)
    expected = (two.unsqueeze(2) * own[:, [2, 0]]).sum(dim=1)
    torch.testing.assert_close(module.predict(seen, panel=["Dr. C", "Ana"]), expected)
    torch.testing.assert_close(module.predict(seen), output.log_probs.exp())
    if kind in MEANS:
        torch.testing.assert_close(module.predict(seen), own.mean(dim=1))
    if kind not in (GatedMultiHead,):
        torch.testing.assert_close(who, torch.full_like(who, 1 / 3))


@every_named
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"annotator": "Bob"}, r"annotator 'Bob' is unknown: expected one of \('Ana', 'Ben', "),
        ({"panel": []}, r"predict: panel=\[\] names nobody"),
    ],
)
def test_predictions_of_nobody(kind, chosen, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(kind).predict(images()[:1], **chosen)


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"^annotators=.*expected a list of at least 1 different"):
        MultiHead(["Ana", "Ana"], CLASSES, network=make_backbone())


# ---------------------------------------------------------------------- metrics


@every
def test_metrics_are_logged_by_the_names_of_tax(kind):
    (found,) = make_trainer().test(make(kind), loader(), verbose=False)
    expected = {"ged2", "loss"}
    expected |= {
        f"fused_{name}/{label}" for name in ("dice", "iou") for label in (*CLASSES[1:], "mean")
    }
    expected |= {f"dice_soft/{label}" for label in (*CLASSES[1:], "mean")}
    expected |= {f"dice_max/{name}" for name in ("predictions", "annotators", "mean")}
    expected |= {"dice_match", "ece_reference", "ece_annotators"}
    if kind is not ProbabilisticUNet:
        expected |= {f"dice/{name}" for name in (*ANNOTATORS, "mean")}
        expected |= {
            f"relative_area_{side}/{name}" for side in ("predicted", "true") for name in ANNOTATORS
        }
        expected |= {"relative_area_error", "relative_area_spearman"}
    if kind is GatedMultiHead:
        expected |= {"who_agreement_lift", "who_entropy_disputed", "who_entropy_unanimous"}
    # A correlation has no case where all areas are the same.
    assert {f"test/{name}" for name in expected - {"relative_area_spearman"}} <= set(found)
    assert set(found) <= {f"test/{name}" for name in expected}


@pytest.mark.parametrize("kind", [Separate, MultiHead, GatedMultiHead, ConfusionGlobal, Pionono])
def test_without_a_reference_annotators_are_measured(kind):
    module = make(kind, reference="none")
    assert module.monitor == "val/dice/mean"
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, loader(), loader())
    assert "val/dice/mean" in trainer.logged_metrics
    assert not any("fused_dice" in key for key in trainer.logged_metrics)


@pytest.mark.parametrize("kind", [Consensus, ProbabilisticUNet])
def test_some_need_a_reference(kind):
    message = f"^reference='none': {kind.__name__} .*Set reference='majority'"
    with pytest.raises(ValueError, match=message):
        make(kind, reference="none")


def test_a_given_reference_must_be_there():
    with pytest.raises(ValueError, match=r"^reference='given': the batch has no key 'reference'"):
        make_trainer(max_epochs=1).fit(make(Consensus, reference="given"), loader())


def test_there_is_no_other_loss():
    with pytest.raises(ValueError, match=r"^segmentation_loss='focal': expected one of ce, dice, "):
        make(MultiHead, segmentation_loss="focal")


# ---------------------------------------------------------------------- checkpoints

# One option of each that changes its shape or its answers.
OPTIONS = {
    Consensus: {},
    Separate: {},
    MultiHead: {"kernel_size": 1},
    GatedMultiHead: {"kernel_size": 1, "explanation_metrics": True},
    ConfusionGlobal: {"trace_weight": 0.5},
    ConfusionPixel: {"kernel_size": 1, "warm_up": 0.0},
    Pionono: {"latent_dim": 3, "samples": 4, "head_layers": 2},
    ProbabilisticUNet: {"latent_dim": 3, "samples": 4},
}


@every
def test_a_module_is_reloaded_from_its_checkpoint_alone(kind, tmp_path):
    backbone = {
        "network": None,
        "encoder": "tu-test_resnet.r160_in1k",
        "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    }
    module = make(kind, **backbone, segmentation_loss="ce+dice", **OPTIONS[kind])
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "baseline.ckpt")
    stored = torch.load(tmp_path / "baseline.ckpt", weights_only=True)
    assert stored["class_path"].endswith(f".{kind.__name__}")
    assert stored["names"] == {"annotators": ANNOTATORS, "classes": CLASSES}
    for name, value in OPTIONS[kind].items():
        assert stored["hyper_parameters"][name] == value
    again = kind.load_from_checkpoint(tmp_path / "baseline.ckpt", weights_only=True)
    assert again.loss.segmentation == "ce+dice"
    assert again.weights == module.weights
    seen = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.predict(seen), module.predict(seen))


@every
def test_a_network_of_ones_own_must_be_given_again(kind, tmp_path):
    module = make(kind)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"^this checkpoint was trained with a network of"):
        kind.load_from_checkpoint(tmp_path / "own.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "own.ckpt", network=make_backbone())
    assert torch.equal(again.predict(images()[:1]), module.predict(images()[:1]))
    with pytest.raises(ValueError, match=r"^checkpoint: its classes are .* were asked for"):
        kind.load_from_checkpoint(
            tmp_path / "own.ckpt", network=make_backbone(), classes=["background", "a", "b"]
        )


# ---------------------------------------------------------------------- command line


@every
def test_fit_test_and_predict_through_the_command_line(kind, tmp_path, capsys):
    config = [
        *("--config", str(REPO / "experiments" / "quickstart.yaml")),
        *("--config", str(REPO / "tests" / "tiny.yaml")),
        f"--model={kind.__name__}",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    main(["fit", *config])
    said = capsys.readouterr().out
    assert re.search(r"^fused_dice +cell", said, re.MULTILINE)
    assert "pictures    none" in said
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["reference"] == "given"

    main(["test", *config, "--ckpt_path", checkpoint])
    assert ("test/dice/Chloe" in capsys.readouterr().out) == (kind is not ProbabilisticUNet)

    output = tmp_path / "predictions"
    main(["predict", *config, "--ckpt_path", checkpoint, f"--predictions.output_dir={output}"])
    manifest = json.loads((output / "manifest.json").read_text())
    assert "prototypes" not in manifest
    named = [annotator["name"] for annotator in manifest["annotators"]]
    assert named == ([] if kind is ProbabilisticUNet else ["Ana", "Ben", "Chloe", "Dara", "Emil"])
    for image in manifest["images"]:
        files = image["files"]
        assert set(files) == {"fused", "annotators"}
        assert list(files["annotators"]) == named
        assert all((output / file).is_file() for file in files["annotators"].values())
        assert (output / files["fused"]).is_file()


def test_a_configuration_may_name_a_baseline_and_a_checkpoint_be_enough(tmp_path, capsys):
    common = [
        "--data=SyntheticDataModule",
        "--data.init_args.size=64",
        *(f"--data.init_args.{split}_samples=2" for split in ("train", "val", "test")),
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    network = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())["model"]["init_args"]
    settings = {name: network[name] for name in ("encoder", "backbone_options")} | {"latent_dim": 3}
    config = tmp_path / "pionono.yaml"
    config.write_text(yaml.safe_dump({"model": {"class_path": "Pionono", "init_args": settings}}))
    main(["fit", "--config", str(config), *common])
    checkpoint = capsys.readouterr().out.split("checkpoint  ")[1].split("\n")[0]
    stored = torch.load(checkpoint, weights_only=True)
    assert stored["class_path"] == "tax_lightning.baselines.pionono.Pionono"
    assert stored["hyper_parameters"]["latent_dim"] == 3
    main(["test", *common, "--ckpt_path", checkpoint])
    assert "test/dice/mean" in capsys.readouterr().out


@pytest.mark.filterwarnings("default:ExplanationLogger")
def test_that_there_are_no_pictures_is_said_once():
    trainer = make_trainer(max_epochs=3, callbacks=[ExplanationLogger(every_n_epochs=1)])
    with pytest.warns(UserWarning, match="^ExplanationLogger: MultiHead explains nothing") as said:
        trainer.fit(make(MultiHead), loader(), loader())
    assert sum("explains nothing" in str(warning.message) for warning in said) == 1
