"""What loggers get: pictures, curves and the configuration; those that fail do not stop a run."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from tax_lightning.__main__ import main
from tax_lightning.callbacks.loggers import Destinations, source_state, working, write_curves

REPO = Path(__file__).parent.parent


class Unreachable(Logger):
    """A tracker behind a network that is down."""

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


def test_training_goes_on_without_its_tracker(tmp_path, capsys):
    with pytest.warns(UserWarning, match="no route to host") as said:
        main(
            [
                "fit",
                *("--config", str(REPO / "experiments" / "quickstart.yaml")),
                *("--config", str(REPO / "tests" / "tiny.yaml")),
                *("--config", str(REPO / "tests" / "quick.yaml")),
                f"--trainer.default_root_dir={tmp_path}",
                f"--trainer.logger={__name__}.Unreachable",
                f"--trainer.logger.save_dir={tmp_path}",
            ]
        )
    assert len([w for w in said if "no route to host" in str(w.message)]) == 1
    assert "fused_dice" in capsys.readouterr().out
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "val/dice/Ana" in metrics.read_text()
    assert list(tmp_path.rglob("explanations/gallery.png"))


class Recorder(TensorBoardLogger):
    """Keeps what it is told instead of writing it."""

    def __init__(self):
        self.told = []

    @property
    def experiment(self):
        return SimpleNamespace(
            add_image=lambda *args, **kw: self.told.append(args[0]),
            add_custom_scalars=self.told.append,
        )


def destinations(tmp_path, *loggers):
    trainer = SimpleNamespace(
        logger=None, loggers=list(loggers), default_root_dir=str(tmp_path), global_step=1
    )
    return Destinations(trainer, set())


def test_tensorboard_groups_the_curves_of_a_metric_and_no_others(tmp_path):
    logger = Recorder()
    destinations(tmp_path, logger).curves({"dice": {"Ana": {0: 0.5}, "Person (2)": {0: 0.5}}})
    ((kind, (first, second)),) = (chart for chart in logger.told[0]["by annotator"].values())
    assert kind == "Multiline"
    assert re.match(first, "val/dice/Ana")
    assert re.match(second, "val/dice/Person (2)")
    assert not re.match(first, "val/dice/Anabel")
    assert not re.match(first, "test/val/dice/Ana")


def test_what_a_logger_cannot_hold_is_not_sent(tmp_path):
    logger = CSVLogger(tmp_path)
    to = destinations(tmp_path / "run", logger)
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    (file,) = to.picture("a", picture, "a.png")
    assert file == tmp_path / "run" / "explanations" / "a.png"
    to.table("a", [{"card": picture}])
    to.curves({"dice": {"Ana": {0: 0.5}}})
    to.artifact("a", [file])
    logger.save()
    assert not list(tmp_path.rglob("*.csv"))
    assert to.warned == set()


def test_the_file_of_curves_reads_back(tmp_path):
    write_curves({"dice": {"Ana": {0: 0.5, 2: 0.75}}, "iou": {"x/y": {0: 0.1}}}, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().splitlines() == [
        "metric,annotator,epoch,value",
        "dice,Ana,0,0.5",
        "dice,Ana,2,0.75",
        "iou,x/y,0,0.1",
    ]


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
