"""What goes wrong around a run: disks, files, callbacks, checkpoints of others."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from made_up import make_explanation, make_sources
from small_runs import Model, loaders
from small_runs import make_trainer as make_small_trainer
from squares import ANNOTATORS, CLASSES, QUIET, fast, images, make_module, make_trainer
from test_interruption import SquaresData, differences
from test_run_folders import OFFLINE, TINY, here  # noqa: F401 - a fixture

from tax_lightning import TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.callbacks import ExplainedCheckpoint
from tax_lightning.callbacks.checkpoint import WholeCheckpoints
from tax_lightning.files import check_writable, write_table, write_text
from tax_lightning.modules.base import SHARDING
from tax_lightning.modules.checkpoints import check_weights
from tax_lightning.visualization.gallery import read_cards, render_gallery
from tax_lightning.visualization.panel import render_panel

pytestmark = QUIET


@contextmanager
def full_disk(size=2000):
    """In this process no file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------- disks


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    path, checkpoints = tmp_path / "last.ckpt", WholeCheckpoints()
    checkpoints.save_checkpoint({"epoch": 1}, path)
    with full_disk(), pytest.raises(OSError, match=r"last\.ckpt: it cannot be written .*Make room"):
        checkpoints.save_checkpoint({"epoch": 2, "weights": torch.zeros(9999)}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    with full_disk(), pytest.raises(OSError, match=r"--output .*cannot be written to"):
        check_writable(tmp_path / "new", "--output")
    check_writable(tmp_path / "new", "--output")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("folder", ["/proc/nowhere", "a file"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(folder, here):  # noqa: F811
    (here / "a file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *TINY, *OFFLINE, f"--output={folder}", "--data.init_args.train_samples=0"])
    said = str(stop.value)  # not of the samples, which would be asked for next
    assert said.startswith(f"tax: error: --output {folder}")
    assert "\n" not in said


def test_a_folder_deleted_in_mid_run_is_made_again(tmp_path):
    for _ in range(2):
        write_text(tmp_path / "gone" / "a.txt", "whole")
        (tmp_path / "gone" / "a.txt").unlink()
        (tmp_path / "gone").rmdir()


def test_cells_that_would_be_formulas_are_escaped(tmp_path):
    write_table(tmp_path / "a.csv", ["image", "x"], [("=1+1", -0.5), ("@a", "-0.5"), ("b", None)])
    assert (tmp_path / "a.csv").read_text() == "image,x\n'=1+1,-0.5\n'@a,-0.5\nb,\n"


def test_names_with_line_breaks_are_drawn_in_one_line():
    names = ("A\nna", "Ben\r\n", "C")
    leader = (torch.arange(16) * 3 // 16).expand(1, 16, 16)
    said = make_explanation(
        leader, sources=make_sources(names, "tr\nain"), ids=["im\nage"], weight=1
    )
    said = dataclasses.replace(said, annotators=names, classes=("back\nground", "ce\nll"))
    picture, masks = np.zeros((16, 16, 3), np.uint8), np.zeros((3, 16, 16), np.uint8)
    assert render_panel(said, picture, masks).shape[2] == 3
    assert render_gallery(read_cards(said.sources, None)).shape[2] == 3


# ---------------------------------------------------------------------- going on


def test_a_told_command_says_how_to_go_on_and_does(here, monkeypatch, capsys):  # noqa: F811
    step, steps = TAXLightningModule.training_step, []

    def told(module, batch, batch_idx):
        steps.append(1)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(TAXLightningModule, "training_step", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *TINY, "--trainer.logger=false", "--resume=last"])
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    (run,) = (path for path in (here / "runs" / "quickstart").iterdir() if not path.is_symlink())
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.endswith(f"--trainer.logger=false --resume runs/quickstart/{run.name}")
    with pytest.raises(SystemExit, match=r"a run is in this folder already.*--resume"):
        main(["fit", *TINY, "--trainer.logger=false", f"--output={run}"])
    main(["fit", *TINY, "--trainer.logger=false", "--resume=last"])
    made = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert (made, len(steps)) == (2, 2)
    with pytest.raises(SystemExit, match=r"--resume last: tax test resumes nothing"):
        main(["test", *TINY, "--resume=last"])


def keep(folder, **options):
    return ExplainedCheckpoint(folder, "best", "val/dice", mode="max", save_last=True, **options)


def test_the_best_so_far_moves_along_to_another_folder(tmp_path):
    make_small_trainer(tmp_path, [keep(tmp_path / "a")], max_epochs=2).fit(Model(), *loaders())
    again = keep(tmp_path / "b")  # val/dice falls from epoch to epoch
    make_small_trainer(tmp_path, [again], max_epochs=4).fit(
        Model(), *loaders(), ckpt_path=tmp_path / "a" / "last.ckpt"
    )
    assert again.best_model_path == str(tmp_path / "b" / "best.ckpt")
    assert float(again.best_model_score) == 1.0
    for folder in "ab":
        assert torch.load(tmp_path / folder / "best.ckpt", weights_only=True)["epoch"] == 0
    (tmp_path / "b" / "best.ckpt").unlink()
    lost = keep(tmp_path / "b")
    with pytest.warns(UserWarning, match=r"best\.ckpt: this checkpoint, the best so far with 1\.0"):
        make_small_trainer(tmp_path, [lost], max_epochs=5).fit(
            Model(), *loaders(), ckpt_path=tmp_path / "b" / "last.ckpt"
        )
    assert torch.load(tmp_path / "b" / "best.ckpt", weights_only=True)["epoch"] == 4


@pytest.mark.parametrize("explained_from", [0, 9])
def test_an_exception_makes_no_best_checkpoint(explained_from, tmp_path):
    class Failing(Model):
        def on_train_batch_end(self, *_):
            assert self.current_epoch < 2

    model = Failing()
    model.explained_from = explained_from
    checkpoint = keep(tmp_path, save_on_exception=True)
    with pytest.raises(AssertionError):
        make_small_trainer(tmp_path, [checkpoint], max_epochs=4).fit(model, *loaders())
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == (["last.ckpt"] if explained_from else ["best.ckpt", "last.ckpt"])
    if not explained_from:
        assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0


# ---------------------------------------------------------------------- Lightning's callbacks


def run(folder, callback):
    module = make_module(optimizer=fast)
    checkpoint = ExplainedCheckpoint(folder, "best", None, save_last=True)
    trainer = make_trainer(
        enable_checkpointing=True,
        callbacks=[checkpoint, callback],
        max_epochs=3,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=SquaresData(ANNOTATORS, CLASSES, batch_size=4))
    return module


@pytest.mark.parametrize(
    "make", [EMAWeightAveraging, WeightAveraging, lambda: StochasticWeightAveraging(1e-2)]
)
def test_averages_of_weights_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"Averaging: it averages weights after .*Leave the callb"):
        run(tmp_path, make())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningRateFinder(num_training_steps=8),
        lambda: BatchSizeFinder(steps_per_trial=1, max_trials=1),
        lambda: Timer("00:00:00:01"),
    ],
)
def test_finders_and_a_timer_end_with_named_prototypes(make, tmp_path):
    module = run(tmp_path, make())
    assert module.explained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert bool(kept["network.memory.projected"])


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: None, r"holds no weights \(state_dict\)"),
        (lambda state: {**state, "a": torch.zeros(3)}, r"weight a has the shape \(3,\), expected"),
        (lambda state: {**state, "a": torch.tensor([0.0, np.nan])}, r"weight a holds numbers that"),
    ],
)
def test_weights_that_cannot_be_used_are_named(change, said):
    state = {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match=said):
        check_weights({"state_dict": change(state)}, state)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_takes_ordinary_images(kind):
    module = make_module().to(kind)
    assert module.predict(images(1)).isfinite().all()
    assert module.explain(images(1)).who.isfinite().all()


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize("kind", SHARDING)
def test_strategies_that_share_out_weights_are_refused(kind):
    module, strategy = make_module(), object.__new__(kind)
    module._trainer = SimpleNamespace(strategy=strategy)
    with pytest.raises(ValueError, match=f"trainer.strategy={kind.__name__}: .* Use ddp"):
        module.setup("fit")


def test_two_processes_stop_together_and_go_on_as_one_run(tmp_path):
    program = [
        sys.executable,
        str(Path(__file__).with_name("told_in_two.py")),
        str(tmp_path),
        *TINY,
    ]
    program += ["--trainer.logger=false", "--trainer.devices=2", "--trainer.strategy=ddp"]
    program += ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--explanations.samples=1"]
    program += ["--data.init_args.batch_size=2", "--data.init_args.num_workers=1"]
    program += ["--data.init_args.train_samples=12"]  # three steps an epoch
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    def ended(name):
        return json.loads((tmp_path / f"{name}-0.json").read_text())

    assert ended("told")["code"] == 143
    assert ended("told")["said"].strip().endswith("--resume told")
    assert ended("resumed")["code"] == ended("whole")["code"] == 0
    for name in ("last.ckpt", "best.ckpt"):
        folders = (tmp_path / folder / "checkpoints" / name for folder in ("told", "whole"))
        assert differences(*folders) == []
