"""Every configuration that is shipped runs: fit, test and predict through the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tax_lightning.__main__ import main
from tax_lightning.models.pretrained import PACKAGED_ENCODER

REPO = Path(__file__).parent.parent
EXPERIMENTS = REPO / "experiments"
OVERLAYS = {"ddp", "debug"}
ON_A_BASE = {"add_annotator"}  # tested in test_add_annotators.py
# Whose data cannot be had here.
NOT_AT_HAND = {"chase", "drive", "gleason", "ms_lesion", "qubiq", "riga", "stare"}
SWEEPS = {"sweep"}  # of W&B, tested in test_docs.py
ALONE = {path.stem for path in EXPERIMENTS.glob("*.yaml")} - OVERLAYS - ON_A_BASE - SWEEPS
CONFIGS = [EXPERIMENTS / f"{name}.yaml" for name in sorted(ALONE)]
AT_HAND = [path for path in CONFIGS if path.stem not in NOT_AT_HAND]
# Configuration -> the option that names the folder, and the folder of TAX_TEST_DATA.
IMPORTED = {"bubil": "BU-BIL/BU-BIL_Dataset1", "lidc": "lidc_mini"}
REAL_DATA = {
    "bubil_mini": ("root", "bubil_mini"),
    "bubil_mini_pretrained": ("root", "bubil_mini"),
    "simulated": ("data.init_args.root", "bubil_mini"),
}
# Folder of TAX_TEST_DATA -> the names of its files that are taken.
CHOSEN = {"BU-BIL_Dataset1": "B0[1-3]$", "bubil_mini": "ds1_B0[1-5]$", "lidc_mini": "[0-2]/[^/]+$"}
# Options that leave little to do where prototypes are searched for.
TWO = "annotators=[Person1_Amira, Person2_ImageJ]"
FEW = {
    "bubil": ("batch_size=1", TWO),  # large images
    "bubil_mini": (TWO,),
    "bubil_mini_pretrained": (TWO,),
    "quickstart": ("train_samples=4", "val_samples=2", "test_samples=2"),
}


@pytest.mark.parametrize("config", AT_HAND, ids=lambda path: path.stem)
def test_fit_test_and_predict(config, request, tmp_path, capsys):
    common = [f"--config={config}", f"--trainer.default_root_dir={tmp_path}"]
    if config.stem in REAL_DATA:
        option, name = REAL_DATA[config.stem]
        root = a_few(request.getfixturevalue("data_root") / name, tmp_path / "few")
        common += [f"--data.init_args.{option}={root}"]
    if config.stem in IMPORTED:
        source = request.getfixturevalue("data_root") / IMPORTED[config.stem]
        root = tmp_path / "imported"
        main(["import", config.stem, str(a_few(source, tmp_path / "few")), str(root)])
        common += [f"--data.init_args.root={root}"]
    common += [f"--data.init_args.{option}" for option in FEW.get(config.stem, ())]
    common += [f"--config={REPO / 'tests' / 'quick.yaml'}", "--trainer.logger=false"]

    main(["fit", *common])
    said = capsys.readouterr().out
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    assert Path(checkpoint).is_file()
    assert "fused_dice" in said

    main(["test", *common, "--ckpt_path", checkpoint])
    said = capsys.readouterr().out
    assert "test/dice/mean" in said

    output = tmp_path / "predictions"
    main(["predict", *common, "--ckpt_path", checkpoint, f"--predictions.output_dir={output}"])
    images = json.loads((output / "manifest.json").read_text())["images"]
    assert images
    if config.stem in ("bubil", "bubil_mini"):
        printed = float(re.search(r"test/dice/mean\W+([0-9.]+)", said)[1])
        assert dice_of_files(output, images, root) == pytest.approx(printed, abs=1e-4)


def a_few(source, folder):
    """Some of the files of a data set, by links: the whole would take long."""
    for path in source.rglob("*.png"):
        name = path.relative_to(source)
        if re.search(CHOSEN[source.name], str(name.with_suffix(""))):
            link = folder / source.name / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder / source.name


def dice_of_files(output, images, root):
    """Mean over annotators of the mean Dice over images, from the files alone."""
    dice: dict[str, list[float]] = {}
    for image in images:
        for name, file in image["files"]["annotators"].items():
            with (
                Image.open(output / file) as drawn,
                Image.open(root / "masks" / name / f"{image['id']}.png") as mask,
            ):
                one, other = np.asarray(drawn) == 1, np.asarray(mask) > 0
            total = one.sum() + other.sum()
            dice.setdefault(name, []).append(2 * (one & other).sum() / total if total else 1.0)
    return np.mean([np.mean(values) for values in dice.values()])


def test_the_overlay_debug_stacks(tmp_path, capsys):
    files = ("experiments/quickstart.yaml", "experiments/debug.yaml", "tests/tiny.yaml")
    configs = [f"--config={REPO / name}" for name in files]
    main(["fit", *configs, f"--trainer.default_root_dir={tmp_path}"])
    assert "fused_dice" in capsys.readouterr().out


@pytest.mark.parametrize("config", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_is_in_the_readme_and_fetches_nothing(config):
    assert config.name in (EXPERIMENTS / "README.md").read_text()
    if config in CONFIGS:
        network = yaml.safe_load(config.read_text())["model"]["init_args"]
        packaged = network["encoder"] == PACKAGED_ENCODER  # its weights come with an extra
        assert network["encoder_weights"] is None or packaged
