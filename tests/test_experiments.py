"""Every configuration that is shipped runs: fit, test and predict through the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tax_lightning.__main__ import main

REPO = Path(__file__).parent.parent
EXPERIMENTS = REPO / "experiments"
OVERLAYS = {"ddp", "debug"}
ON_A_BASE = {"add_annotator"}  # tested in test_addition.py
ALONE = {path.stem for path in EXPERIMENTS.glob("*.yaml")} - OVERLAYS - ON_A_BASE
CONFIGS = [EXPERIMENTS / f"{name}.yaml" for name in sorted(ALONE)]
REAL_DATA = {"bubil_mini": "bubil_mini"}  # configuration -> folder of TAX_TEST_DATA


def root_of(config: Path, request: pytest.FixtureRequest) -> list[str]:
    """The option that points a configuration of real data at its folder."""
    if config.stem not in REAL_DATA:
        return []
    folder = request.getfixturevalue("data_root") / REAL_DATA[config.stem]
    return [f"--data.init_args.root={folder}"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
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
