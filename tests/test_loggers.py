"""Loggers that do not work: training goes on, and says so."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from made_up import make_sources
from tax_lightning.callbacks.curves import Curves
from tax_lightning.callbacks.trackers import (
    send_cards,
    send_curves,
    send_files,
    send_overlays,
    send_picture,
    working,
)

from tax_lightning.__main__ import main
from tax_lightning.visualization.gallery import PrototypeCard

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


def test_what_a_tracker_cannot_hold_is_not_sent(tmp_path):
    """A logger of numbers gets none of it, and TensorBoard only pictures and the layout."""
    curves = Curves()
    curves.add(0, {"val/dice/Ana": 0.5}, ["Ana"])
    card = PrototypeCard(make_sources(["Ana"])[0][0], (1, 2, 3))
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    logger = CSVLogger(tmp_path)
    send_picture(logger, "a", picture, 1)
    send_overlays(logger, "a", picture, {"who": (picture[..., 0], {0: "Ana"})}, 1)
    send_cards(logger, "a", [card], 1)
    send_curves(logger, curves, 1)
    send_files(logger, "a", [tmp_path], 1)
    logger.save()
    assert not list(tmp_path.rglob("*.csv"))
