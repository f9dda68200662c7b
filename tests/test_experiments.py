"""Every configuration that is shipped runs: fit, test and predict through the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tax_lightning.__main__ import main

REPO = Path(__file__).parent.parent
EXPERIMENTS = REPO / "experiments"
OVERLAYS = {"ddp", "debug"}
ON_A_BASE = {"add_annotator"}  # tested in test_add_annotators.py
# On files made in the official layout, in the tests of their readers.
ON_MADE_UP_FILES = {"chase", "drive", "gleason", "ms_lesion", "qubiq", "riga", "stare"}
ALONE = {path.stem for path in EXPERIMENTS.glob("*.yaml")} - OVERLAYS - ON_A_BASE
CONFIGS = [EXPERIMENTS / f"{name}.yaml" for name in sorted(ALONE)]
AT_HAND = [path for path in CONFIGS if path.stem not in ON_MADE_UP_FILES]
# Configuration -> the option that names the folder, and the folder of TAX_TEST_DATA.
REAL_DATA = {
    "bubil": ("root", "BU-BIL/BU-BIL_Dataset1"),
    "bubil_mini": ("root", "bubil_mini"),
    "lidc": ("root", "lidc_mini"),
    "simulated": ("data.init_args.root", "bubil_mini"),
}
# Options that leave few images for training, each of which prototypes are searched in.
FEW = dict.fromkeys(("bubil", "bubil_mini"), ("val_fraction", "test_fraction"))


def root_of(config: Path, request: pytest.FixtureRequest) -> list[str]:
    """The option that points a configuration of real data at its folder."""
    if config.stem not in REAL_DATA:
        return []
    option, name = REAL_DATA[config.stem]
    return [
        f"--data.init_args.{option}={request.getfixturevalue('data_root') / name}",
        *(f"--data.init_args.{share}=0.45" for share in FEW.get(config.stem, ())),
    ]


@pytest.mark.parametrize("config", AT_HAND, ids=lambda path: path.stem)
def test_fit_test_and_predict(config, request, tmp_path, capsys):
    where = [f"--trainer.default_root_dir={tmp_path}"]
    common = ["--config", str(config), *root_of(config, request), *where]
    quick = ["--config", str(REPO / "tests" / "quick.yaml"), "--trainer.logger=false"]

    main(["fit", *common, *quick])
    said = capsys.readouterr().out
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    assert Path(checkpoint).is_file()
    assert "fused_dice" in said

    main(["test", *common, *quick, "--ckpt_path", checkpoint])
    assert "test/dice/mean" in capsys.readouterr().out

    output = tmp_path / "predictions"
    main(
        [
            "predict",
            *common,
            *quick,
            "--ckpt_path",
            checkpoint,
            f"--predictions.output_dir={output}",
        ]
    )
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["images"]


@pytest.mark.parametrize("overlay", sorted(OVERLAYS - {"ddp"}))
def test_overlays_stack(overlay, tmp_path, capsys):
    main(
        [
            "fit",
            *("--config", str(EXPERIMENTS / "quickstart.yaml")),
            *("--config", str(EXPERIMENTS / f"{overlay}.yaml")),
            *("--config", str(REPO / "tests" / "tiny.yaml")),
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    assert "fused_dice" in capsys.readouterr().out


def test_the_readme_of_the_experiments_names_each():
    said = (EXPERIMENTS / "README.md").read_text()
    for path in EXPERIMENTS.glob("*.yaml"):
        assert path.name in said


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_nothing_is_fetched(config):
    settings = yaml.safe_load(config.read_text())["model"]["init_args"]
    assert settings["encoder_weights"] is None
