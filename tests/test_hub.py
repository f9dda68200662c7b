"""Models as folders to share."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from squares import QUIET, images, make_backbone, make_loader, make_trainer

from tax_lightning import TAXLightningModule
from tax_lightning.baselines import MultiHead

NAMES = {"annotators": ["Ana", "Ben", "Cleo"], "classes": ["background", "cell"]}
ENCODER = {
    "encoder": "tu-test_resnet.r160_in1k",
    "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}

pytestmark = QUIET


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = TAXLightningModule(**NAMES, **ENCODER)
    make_trainer(max_epochs=1).fit(module, make_loader())
    return module.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "cells"
    model.save_pretrained(folder, model_card_kwargs={"metrics": {"test/dice/mean": 0.5}})
    return folder


def test_another_process_predicts_the_same_and_names_the_sources(model, folder, tmp_path):
    torch.save(images(2), tmp_path / "images.pt")
    program = f"""
import torch
from tax_lightning import TAXLightningModule
model = TAXLightningModule.from_pretrained({str(folder)!r})
images = torch.load({str(tmp_path / "images.pt")!r})
torch.save(model.predict(images), {str(tmp_path / "probs.pt")!r})
print(model.explain(images).sources)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "probs.pt"), model.predict(images(2)))
    assert done.stdout.strip() == str(model.explain(images(2)).sources)
    assert model.explain(images(2)).sources[0][0].projected


def test_the_folder_holds_weights_settings_and_a_card(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    for said in ("library_name: tax-lightning", "Ana, Ben, Cleo", "majority", "| 0.500 |"):
        assert said in card
    settings = json.loads((folder / "config.json").read_text())
    assert settings["class_path"] == "tax_lightning.modules.tax.TAXLightningModule"


def test_a_name_on_the_hub_is_found_in_its_local_folder(model, folder, tmp_path, monkeypatch):
    assert constants.HF_HUB_OFFLINE
    revision = "0" * 40
    cached = tmp_path / "models--lab--cells"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    (cached / "snapshots" / revision).mkdir(parents=True)
    for path in folder.iterdir():
        (cached / "snapshots" / revision / path.name).symlink_to(path)
    again = TAXLightningModule.from_pretrained("lab/cells", cache_dir=tmp_path)
    assert torch.equal(again.predict(images(2)), model.predict(images(2)))


def test_a_network_of_ones_own_is_given_again(tmp_path):
    module = TAXLightningModule(**NAMES, network=make_backbone()).eval()
    module.save_pretrained(tmp_path)
    again = TAXLightningModule.from_pretrained(tmp_path, network=make_backbone())
    assert torch.equal(again.predict(images(2)), module.predict(images(2)))
    with pytest.raises(ValueError, match="give it again"):
        TAXLightningModule.from_pretrained(tmp_path)


def test_other_classes_and_folders_are_refused_and_nothing_is_imported(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"its model is a .*TAXLightningModule, expected MultiHead"
    ):
        MultiHead.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in this folder"):
        TAXLightningModule.from_pretrained(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    settings = json.loads((folder / "config.json").read_text())
    settings["class_path"] = "antigravity.Model"
    (other / "config.json").write_text(json.dumps(settings))
    (other / "model.safetensors").symlink_to(Path(folder, "model.safetensors"))
    with pytest.raises(ValueError, match=r"its model is a antigravity\.Model"):
        TAXLightningModule.from_pretrained(other)
    assert "antigravity" not in sys.modules
