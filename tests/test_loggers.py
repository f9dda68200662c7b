"""What loggers are told: the whole configuration, and that a run goes on without them."""

import json
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from tax_lightning.__main__ import main
from tax_lightning.callbacks.loggers import working

REPO = Path(__file__).parent.parent


def quick_fit(folder, *loggers):
    """A run of the quick start made small, with loggers of these classes."""
    configs = ("experiments/quickstart.yaml", "tests/tiny.yaml", "tests/quick.yaml")
    main(
        [
            *("fit", *(f"--config={REPO / config}" for config in configs)),
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger={json.dumps([logger_in(folder, kind) for kind in loggers])}",
        ]
    )


def logger_in(folder, kind):
    return {"class_path": kind, "init_args": {"save_dir": str(folder / kind.rpartition(".")[2])}}


class Unreachable(Logger):
    """A logger behind a network that is down."""

    name, version = "far", 0

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.folder = save_dir

    @property
    def save_dir(self):
        return self.folder

    @property
    def experiment(self):
        raise ConnectionError("no route to host")

    def log_hyperparams(self, *args, **kwargs):
        raise AssertionError("training begins without it")

    log_metrics = log_hyperparams


def test_a_logger_that_cannot_begin_is_replaced_by_a_file(tmp_path):
    fine = CSVLogger(tmp_path, name="fine")
    with pytest.warns(UserWarning, match=r"Unreachable cannot begin: .*no route to host") as said:
        first, second = working([fine, Unreachable(str(tmp_path))])
    assert len(said) == 1
    assert first is fine
    assert isinstance(second, CSVLogger)
    assert second.log_dir == str(tmp_path / "far" / "version_0")


def test_a_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="TensorBoardLogger cannot begin"):
        working([TensorBoardLogger(tmp_path / "file")])


def test_training_goes_on_without_its_logger(tmp_path, capsys):
    with pytest.warns(UserWarning, match="no route to host") as said:
        quick_fit(tmp_path, f"{__name__}.Unreachable")
    assert len([w for w in said if "no route to host" in str(w.message)]) == 1
    assert "fused_dice" in capsys.readouterr().out
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "val/dice/Ana" in metrics.read_text()
    assert list(tmp_path.rglob("explanations/gallery.png"))


def test_loggers_on_disk_hold_the_configuration(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    kinds = ("CSVLogger", "TensorBoardLogger")
    quick_fit(tmp_path, *(f"lightning.pytorch.loggers.{kind}" for kind in kinds))
    (saved,) = tmp_path.rglob("config.yaml")
    for kind in kinds:
        (file,) = (tmp_path / kind).rglob("hparams.yaml")
        held = yaml.safe_load(file.read_text())
        assert held["data"]["init_args"]["train_samples"] == 8
        assert held["trainer"]["max_epochs"] == 1
        assert held["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-3
        assert held["kernels"] == 2  # of the model's own hyper-parameters
        assert yaml.safe_load(saved.read_text())["data"] == held["data"]
