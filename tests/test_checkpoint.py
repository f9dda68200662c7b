"""Which models are kept: the best of those that can name the pixels behind their decisions."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import LateModel, Model, loaders, make_trainer

from tax_lightning.callbacks import ExplainedCheckpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|log_every_n_steps).*",
)


def fit_with_checkpoint(folder, model, kind=ExplainedCheckpoint, epochs=4, trainer=None, **options):
    options = {"monitor": "val/dice", "mode": "max", "filename": "{epoch}", **options}
    checkpoint = kind(dirpath=folder, **options)
    make_trainer(folder, [checkpoint], max_epochs=epochs, **(trainer or {})).fit(model, *loaders())
    return checkpoint


def stored(folder):
    return sorted(path.name for path in folder.glob("*.ckpt"))


def test_the_best_model_is_sought_among_the_explained(tmp_path):
    model = Model()  # val/dice falls from epoch to epoch
    model.explained_from = 2
    checkpoint = fit_with_checkpoint(tmp_path, model)
    assert stored(tmp_path) == ["epoch=2.ckpt"]
    assert Path(checkpoint.best_model_path).name == "epoch=2.ckpt"
    assert checkpoint.best_model_score == pytest.approx(0.8)


@pytest.mark.parametrize("when", [None, True, False])
def test_neither_way_of_saving_comes_too_early(tmp_path, when):
    model = Model()
    model.explained_from = 3
    fit_with_checkpoint(tmp_path, model, save_on_train_epoch_end=when, save_top_k=-1)
    assert stored(tmp_path) == ["epoch=3.ckpt"]


def test_saving_by_steps_waits_too(tmp_path):
    model = Model()
    model.explained_from = 3
    options = {"monitor": None, "every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    fit_with_checkpoint(tmp_path, model, mode="min", **options)
    assert stored(tmp_path) == ["step=7.ckpt", "step=8.ckpt"]


@pytest.mark.parametrize("save_last", [True, "link"])
def test_save_last_is_kept_up_for_resuming(tmp_path, save_last):
    model = Model()
    model.explained_from = 3
    seen = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            last = tmp_path / "last.ckpt"
            if last.exists():
                epoch = torch.load(last, weights_only=True)["epoch"]
                seen.append((epoch, last.is_symlink()))

    checkpoint = ExplainedCheckpoint(
        tmp_path, "{epoch}", "val/dice", save_last=save_last, mode="max"
    )
    trainer = make_trainer(tmp_path, [checkpoint, Watch()], max_epochs=5)
    trainer.fit(model, *loaders())
    linked = save_last == "link"
    assert seen == [(0, False), (1, False), (2, False), (3, linked)]
    assert stored(tmp_path) == ["epoch=3.ckpt", "last.ckpt"]

    resumed = Model()
    resumed.explained_from = 3
    again = ExplainedCheckpoint(tmp_path, "{epoch}", "val/dice", save_last=save_last, mode="max")
    make_trainer(tmp_path, [again], max_epochs=6).fit(
        resumed, *loaders(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert Path(again.best_model_path).name == "epoch=3.ckpt"


@pytest.mark.parametrize("save_last", [None, True])
def test_a_run_that_ends_unexplained_is_stored_as_it_ended(tmp_path, save_last):
    checkpoint = fit_with_checkpoint(tmp_path, LateModel(), epochs=2, save_last=save_last)
    assert checkpoint.best_model_path
    assert checkpoint.best_model_score == pytest.approx(0.9)
    assert len(stored(tmp_path)) == 1 + bool(save_last)
    Model().load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])


def test_an_explained_epoch_without_validation_is_stored_at_the_end(tmp_path):
    model = Model()
    model.explained_from = 3
    checkpoint = fit_with_checkpoint(tmp_path, model, trainer={"check_val_every_n_epoch": 3})
    assert checkpoint.best_model_path


def test_a_dry_run_leaves_no_checkpoint(tmp_path):
    for model in (Model(), LateModel()):
        fit_with_checkpoint(tmp_path, model, save_last=True, trainer={"fast_dev_run": True})
    assert stored(tmp_path) == []


class Plain(Model):
    """A module that knows nothing of explanations."""

    explained = property()  # reading it raises AttributeError, as if it were not there


def test_other_modules_are_checkpointed_as_ever(tmp_path):
    kept = {}
    for kind in (ModelCheckpoint, ExplainedCheckpoint):
        folder = tmp_path / kind.__name__
        checkpoint = fit_with_checkpoint(folder, Plain(), kind, save_last=True, save_top_k=2)
        kept[kind] = (stored(folder), Path(checkpoint.best_model_path).name)
    assert kept[ModelCheckpoint] == kept[ExplainedCheckpoint]
    assert kept[ModelCheckpoint][1] == "epoch=0.ckpt"
