"""Wrong configurations, and foreign checkpoints that name code."""

import copy
import json
import re
import sys

import pytest
import torch
import yaml
from squares import make_loader, make_module, make_trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from tax_lightning import AddedAnnotators, TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.cli import ARGUMENTS, TYPES
from tax_lightning.configuration import first_fault
from tax_lightning.modules.checkpoints import FORMAT_VERSION, load_model
from tax_lightning.refusals import made

CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 1,
        "limit_train_batches": 1,
        "accelerator": "cpu",
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
    },
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {
            **{"size": 64, "train_samples": 2, "val_samples": 1, "test_samples": 1},
            "train_transforms": [
                {"class_path": "albumentations.Resize", "init_args": {"height": 64, "width": 64}}
            ],
            "panel": [
                {
                    "name": "Ada",
                    "habits": [
                        {
                            "rule": {"class_path": "Polygon", "init_args": {"corners": 5}},
                            "when": {"min_area": 20},
                        }
                    ],
                }
            ],
        },
    },
    "model": {
        "class_path": "TAXLightningModule",
        "init_args": {
            "encoder": "tu-test_resnet.r160_in1k",
            "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                "init_args": {"T_max": 10},
            },
        },
    },
}
DATA, MODEL = "data.init_args", "model.init_args"
TRANSFORM, RULE = f"{DATA}.train_transforms.0", f"{DATA}.panel.0.habits.0.rule"
RATE = f"{MODEL}.lr_scheduler.init_args"
NAN = float("nan")
DROPPED = object()


def changed(key, value):
    """The configuration with another value at a key, or without the key."""
    config = copy.deepcopy(CONFIG)
    section, *path = config, *key.split(".")
    for part in path[:-1]:
        section = section[int(part) if isinstance(section, list) else part]
    last = int(path[-1]) if isinstance(section, list) else path[-1]
    section[last] = value
    if value is DROPPED:
        del section[last]
    return config


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        # keys
        ("trainer.maxepochs", 3, "trainer.maxepochs is unknown to Trainer.* mean max_epochs?"),
        (f"{MODEL}.kernles", 3, f"{MODEL}.kernles is unknown to TAXLightningM.* mean kernels?"),
        (f"{TRANSFORM}.init_arg", {}, f"{TRANSFORM}.init_arg is unknown.* mean init_args?"),
        (f"{TRANSFORM}.init_args.widht", 3, f"{TRANSFORM}.init_args.widht .* mean width?"),
        (f"{DATA}.panel.0.habits.0.when.min_are", 3, "when.min_are is unknown.* mean min_area?"),
        (f"{MODEL}.optimizer.lr", 3, f"{MODEL}.optimizer.lr is unknown.* class_path"),
        (f"{TRANSFORM}.class_path", DROPPED, f"{TRANSFORM}: its class_path is missing"),
        ("model.class_path", DROPPED, "model: its class_path is missing"),
        (f"{RULE}.init_args.corners", DROPPED, f"{RULE}.init_args.corners is missing"),
        (f"{RATE}.T_max", DROPPED, f"{RATE}.T_max is missing, required by Cosine"),
        # classes
        ("data.class_path", "Synthetic", "data.class_path: 'Synthetic' is unknown"),
        (f"{RULE}.class_path", "Polgon", f"{RULE}.class_path: 'Polgon' .* mean Polygon?"),
        (f"{MODEL}.optimizer.class_path", "torch.optim.AdmaW", "'torch.optim.AdmaW' .* AdamW?"),
        ("model.class_path", "torch.nn.Linear", "model.class_path: 'torch.nn.Linear' is unknown"),
        # types
        ("trainer.max_epochs", "many", "trainer.max_epochs: 'many', expected a whole number"),
        ("trainer.logger", [3], r"trainer.logger.0: 3, expected a Logger \(class_path"),
        ("trainer", None, "trainer: null, expected the arguments of Trainer"),
        (f"{MODEL}.optimizer", [3], rf"{MODEL}.optimizer: \[3\], expected an Optimizer"),
        (f"{MODEL}.encoder", True, f"{MODEL}.encoder: true, expected a text"),
        (f"{RULE}.init_args.corners", NAN, f"{RULE}.init_args.corners: nan, expected a whole"),
        (f"{DATA}.panel.0.habits.0.when", None, "habits.0.when: null, expected the arguments"),
        (f"{TRANSFORM}.init_args.p", None, f"{TRANSFORM}.init_args.p: null, expected a number"),
        (f"{DATA}.mean", [0.5, "half"], f"{DATA}.mean.1: 'half', expected a number"),
    ],
)
def test_the_first_fault_is_named_with_key_value_and_what_is_expected(key, value, said):
    assert first_fault(CONFIG, TYPES, ARGUMENTS) is None
    assert re.search(said, first_fault(changed(key, value), TYPES, ARGUMENTS))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dta", {}, "dta is unknown to tax fit.* Did you mean data?"),
        (f"{MODEL}.kernels", "few", f"{MODEL}.kernels: 'few', expected a whole number"),
        (f"{MODEL}.backbone_options.encoder_depth", True, "backbone_options.encoder_depth: true"),
        ("seed_everything", -3, "seed_everything: -3, expected 0 to 4294967295"),
        ("trainer.check_val_every_n_epoch", -3, "check_val_every_n_epoch: -3, expected 0 or more"),
        ("trainer.devices", 10**9, "trainer.devices: 1000000000, expected at most"),
        (f"{DATA}.num_workers", 10**9, "num_workers=1000000000: expected 0 to"),
        (f"{DATA}.batch_size", 0, "batch_size=0: expected 1 or more"),
        (f"{DATA}.train_samples", 10**9, "train_samples=1000000000: expected 0 to 1000000"),
        (f"{RULE}.init_args.corners", 2, "Polygon.corners=2: expected 3 to 1024"),
        (f"{TRANSFORM}.init_args.height", -3, "Resize: height=-3: "),
        (f"{TRANSFORM}.init_args.height", 10**9, "train_transforms: Resize: height=1000000000"),
        (f"{MODEL}.kernels", 10**9, "kernels=1000000000, .*the weights take .* GiB"),
        (f"{MODEL}.backbone_options.decoder_channels.0", 10**9, r"channels=\[1000000000, .* GiB"),
        ("checkpoint", {"monitor": "dcie"}, "checkpoint.monitor: 'dcie' is unknown.*mean dice?"),
    ],
)
def test_a_mistake_is_one_short_message(key, value, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changed(key, value)))
    monkeypatch.setattr(sys, "argv", ["tax"])
    with pytest.raises(SystemExit, match=f"(?s){said}") as stop:
        main(["fit", "--config=wrong.yaml"])
    lines = str(stop.value).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1.0}, "AdamW: lr=-1.0: Invalid learning rate"),
        ({"lr": 1e9}, "optimizer: AdamW: lr=1000000000.0: expected 0 to 1000"),
        ({"weight_decay": 1e9}, "weight_decay=1e.09: expected less than 1000 with lr=0.001"),
        ({"T_max": 0}, "lr_scheduler: CosineAnnealingLR: T_max=0, .* by zero"),
        ({"T_max": -3}, "lr_scheduler: CosineAnnealingLR: T_max=-3: expected 0 or more"),
        ({"eta_min": -1.0}, "eta_min=-1.0: the learning rate is -0.* after epoch 1, expected 0"),
    ],
)
def test_rates_that_cannot_be_are_refused_before_the_first_step(options, said):
    of_schedule = {"T_max": 10} | {k: v for k, v in options.items() if k in ("T_max", "eta_min")}
    others = {k: v for k, v in options.items() if k not in of_schedule}
    module = make_module(
        optimizer=lambda parameters: made(torch.optim.AdamW, parameters, **others),
        lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, **of_schedule),
    )
    with pytest.raises(ValueError, match=said):
        module.configure_optimizers()


def test_a_schedule_that_is_tried_changes_nothing():
    module = make_module(lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=10))
    found = module.configure_optimizers()
    assert found["optimizer"].param_groups[0]["lr"] == 1e-3
    assert found["lr_scheduler"]["scheduler"].last_epoch == 0
    assert found["optimizer"].param_groups[0]["params"][0] is next(module.parameters())


def test_a_schedule_that_ends_is_no_fault_where_the_number_of_epochs_is_not_known():
    module = make_module(lr_scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=5))
    module.trainer = make_trainer(max_steps=8, max_epochs=-1)
    assert isinstance(module.configure_optimizers()["lr_scheduler"]["scheduler"], OneCycleLR)


def test_a_training_that_diverged_is_stopped():
    module = make_module()
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    trainer = make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match=r"diverged: the weight .* lr=0\.001 now"):
        trainer.fit(module, make_loader())


def test_flags_mend_what_files_say_wrongly(tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(changed(f"{MODEL}.kernels", None)))
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={file}", f"--{MODEL}.kernels=3", "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["kernels"] == 3


def test_another_class_begins_with_the_arguments_that_it_takes(tmp_path, capsys):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    other = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 5}}
    files[0].write_text(yaml.safe_dump(CONFIG))
    files[1].write_text(yaml.safe_dump({"model": {"init_args": {"lr_scheduler": other}}}))
    flags = ["--trainer.logger=WandbLogger", "--trainer.logger.project=cells", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(f"--config={file}" for file in files), *flags])
    assert stop.value.code == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["model"]["init_args"]["lr_scheduler"]["init_args"]["step_size"] == 5
    assert said["trainer"]["logger"]["init_args"]["project"] == "cells"


# ---------------------------------------------------------------------- foreign checkpoints


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A module outside of what a checkpoint may import: it leaves a file where it is imported."""
    code = f"open({str(tmp_path / 'imported')!r}, 'w')\nfrom tax_lightning import *\n"
    (tmp_path / "foreign_code.py").write_text(code + "class Net(TAXLightningModule): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("foreign_code", None)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What a checkpoint holds."""
    options = {"optimizer": None, "lr_scheduler": None, "network": None}
    module = make_module(**CONFIG["model"]["init_args"] | options)
    path, trainer = tmp_path_factory.mktemp("stored") / "best.ckpt", make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


@pytest.fixture
def checkpoint(stored, tmp_path):
    """Makes a checkpoint of another class, or with other hyper-parameters."""

    def make(class_path="tax_lightning.TAXLightningModule", **hyper_parameters):
        settings = stored["hyper_parameters"] | hyper_parameters
        content = stored | {"class_path": class_path, "hyper_parameters": settings}
        torch.save(content, tmp_path / "best.ckpt")
        return tmp_path / "best.ckpt"

    return make


@pytest.mark.parametrize("command", ["fit", "test", "predict", "explain", "export"])
def test_a_checkpoint_imports_no_model_of_others(command, foreign, checkpoint, tmp_path):
    path = checkpoint("foreign_code.Net")
    arguments = {
        "explain": [f"--ckpt_path={path}", "--images=."],
        "export": [str(path), "model.onnx"],
    }
    with pytest.raises(SystemExit) as stop:
        main(
            [
                command,
                *arguments.get(command, ["--data=SyntheticDataModule", f"--ckpt_path={path}"]),
            ]
        )
    said = str(stop.value)
    assert f"{path}: its model is of the class foreign_code.Net" in said.replace("\n", " ")
    assert "TAX_TRUSTED=foreign_code" in said
    assert not foreign.exists()


@pytest.mark.parametrize(
    "hyper_parameters",
    [
        {"optimizer": {"class_path": "foreign_code.Net"}},
        {"optimizer": "foreign_code.Net"},
        {"network": "foreign_code.Net"},
        {"loss_weights": "foreign_code.yaml"},
        {"backbone_options": {"a": [{"class_path": "subprocess.Popen", "init_args": {}}]}},
        {"backbone_options": {"a": {"class_path": "foreign_code.Net"}}},
        {"_instantiator": "foreign_code.Net"},
    ],
)
def test_hyper_parameters_import_nothing(hyper_parameters, foreign, checkpoint, tmp_path):
    path = checkpoint(**hyper_parameters)
    loads = (
        lambda: main(["test", "--data=SyntheticDataModule", f"--ckpt_path={path}"]),
        lambda: load_model(str(path), "path"),
        lambda: AddedAnnotators(str(path), ["Zoe"], ["background", "cell"]),
    )
    for load in loads:
        with pytest.raises((SystemExit, ValueError), match=r"(?s)its\s+hyper-parameters\s+name"):
            load()
    assert not foreign.exists()


def test_a_shared_folder_imports_nothing(foreign, tmp_path):
    settings = {"optimizer": {"class_path": "foreign_code.Net"}}
    content = {"format_version": FORMAT_VERSION, "hyper_parameters": settings}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its hyper-parameters name the class foreign_code\.Net"):
        TAXLightningModule.from_pretrained(tmp_path)
    assert not foreign.exists()


def test_the_user_may_trust_a_module_or_import_it(foreign, checkpoint, monkeypatch):
    path = str(checkpoint("foreign_code.Net"))
    with pytest.raises(ValueError, match="TAX_TRUSTED=foreign_code"):
        load_model(path, "path")
    with monkeypatch.context() as patch:
        patch.setenv("TAX_TRUSTED", "other, foreign_code")
        assert type(load_model(path, "path")).__name__ == "Net"
    assert foreign.exists()
    assert type(load_model(path, "path")).__name__ == "Net"  # it is imported now


def test_what_is_no_model_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear is no LightningModule"):
        load_model(str(checkpoint("torch.nn.Linear")), "path")
