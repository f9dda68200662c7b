"""The loggers of a run know its whole configuration."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tax_lightning.__main__ import main
from tax_lightning.callbacks.configuration import source_state

REPO = Path(__file__).parent.parent


def git(folder, *arguments):
    identity = ("-c", "user.name=Ana", "-c", "user.email=ana@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_state_of_a_repository_is_its_commit_and_whether_files_differ(tmp_path):
    assert source_state(tmp_path) == {}
    git(tmp_path, "init")
    assert source_state(tmp_path) == {}  # no commit yet
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a file")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "unknown to git").write_text("b")
    assert source_state(tmp_path) == {"git": {"commit": commit, "changed": False}}
    (tmp_path / "file").write_text("b")
    assert source_state(tmp_path) == {"git": {"commit": commit, "changed": True}}


def test_without_git_there_is_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_state(tmp_path) == {}


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_loggers_on_disk_hold_the_configuration(logger, tmp_path):
    if logger == "TensorBoardLogger":
        pytest.importorskip("tensorboard", reason="needs tensorboard")
    main(
        [
            "fit",
            *("--config", str(REPO / "experiments" / "quickstart.yaml")),
            *("--config", str(REPO / "tests" / "tiny.yaml")),
            *("--config", str(REPO / "tests" / "quick.yaml")),
            f"--trainer.default_root_dir={tmp_path}",
            f"--trainer.logger=lightning.pytorch.loggers.{logger}",
            f"--trainer.logger.save_dir={tmp_path}",
        ]
    )
    (file,) = tmp_path.rglob("hparams.yaml")
    held = yaml.safe_load(file.read_text())
    assert held["data"]["init_args"]["train_samples"] == 8
    assert held["trainer"]["max_epochs"] == 1
    assert held["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-3
    assert held["kernels"] == 2  # of the model's own hyper-parameters
    (saved,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["data"] == held["data"]
