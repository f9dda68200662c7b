"""When panels, gallery and report are made, of which samples, and what happens where that fails."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from reading import says
from small_runs import Images, LateModel, Model, Stream, fit, loaders, make_trainer
from torch.utils.data import DataLoader

from tax_lightning.callbacks import ExplanationLogger, explanation_logger
from tax_lightning.cli import _report

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|log_every_n_steps).*",
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pictures_appear_every_few_epochs_and_at_the_end(tmp_path):
    callback = ExplanationLogger(samples=1, every_n_epochs=2)
    fit(tmp_path, callback, max_epochs=5)
    expected = ["epoch=001-val-0.png", "epoch=003-val-0.png", "final-val-0.png", "gallery.png"]
    assert names(tmp_path) == expected
    assert callback.folder == tmp_path / "explanations"


@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 4}])
def test_the_last_epoch_is_drawn_once(tmp_path, options):
    model, callback = Model(), ExplanationLogger(samples=1, every_n_epochs=1)
    fit(tmp_path, callback, model=model, **options)
    assert model.explained_ids == ["val-0", "val-0"]
    assert names(tmp_path) == ["epoch=000-val-0.png", "final-val-0.png", "gallery.png"]


def test_the_end_of_a_run_is_a_report_in_files(tmp_path):
    callback = ExplanationLogger(samples=2)
    fit(tmp_path, callback, max_epochs=2)
    files = ["final-val-0.png", "final-val-2.png", "gallery.png", "report.html"]
    assert callback.report == [tmp_path / "explanations" / name for name in files]
    ana = "the first reason at 38% of the disputed"  # of 6 of 16 columns; Cleo and Ben have 5
    assert says(pixels(callback.report[2]), ana, 14)


def test_each_panel_is_of_its_own_sample_with_the_masks_and_patches_of_that_run(
    tmp_path, monkeypatch
):
    drawn = []

    def render(explanation, picture, masks, reference, patches, groups):
        drawn.append((explanation.ids[0], picture[1, 1, 0], masks.sum(), reference.sum()))
        assert (patches, groups) == ({}, None)  # there is no data module to read training images
        return np.zeros((4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr(explanation_logger, "render_panel", render)
    fit(tmp_path, ExplanationLogger(samples=3, every_n_epochs=1), data=loaders(9), max_epochs=2)
    # Image i has the grey value i / 10 of its brightest pixel, and a cell of 8 (i + 1) pixels.
    expected = [(f"val-{i}", round(25.5 * i), 24 * (i + 1), 8 * (i + 1)) for i in (0, 4, 8)]
    assert [(name, *map(int, values)) for name, *values in drawn] == 2 * expected


def test_what_misleads_is_said_in_the_terminal_and_on_the_page(tmp_path, capsys):
    class OfSlots(Model):
        def explain(self, images, ids):
            return dataclasses.replace(super().explain(images, ids), persons=False)

    callback = ExplanationLogger(samples=2)
    trainer = fit(tmp_path, callback, model=OfSlots())
    assert [found.kind for found in callback.findings] == ["slots"]
    _report(trainer, "")
    assert "\nwarning: These annotators are not persons. Ana, Ben" in capsys.readouterr().out
    page = callback.report[-1].read_text(encoding="utf-8")
    assert "These annotators are not persons. Ana, Ben" in page


def test_before_a_projection_there_is_no_gallery(tmp_path):
    fit(tmp_path, ExplanationLogger(samples=1), model=Model(source_id=""))
    assert names(tmp_path) == ["final-val-0.png"]


def test_a_set_without_length_shows_its_first_samples(tmp_path):
    model = Model()
    stream = DataLoader(Stream(Images("val", 5)), batch_size=2)
    fit(tmp_path, ExplanationLogger(samples=3), model=model, data=(loaders()[0], stream))
    assert model.explained_ids == ["val-0", "val-1", "val-2"]


def test_more_samples_than_there_are(tmp_path):
    fit(tmp_path, ExplanationLogger(samples=9), data=loaders(validation=2))
    assert names(tmp_path) == ["final-val-0.png", "final-val-1.png", "gallery.png"]


def test_padding_is_not_shown(tmp_path):
    callback = ExplanationLogger(samples=1)
    fit(tmp_path, callback, data=loaders(padded=True))
    assert says(pixels(callback.report[0]), "10 x 12 pixels", 14)


def test_neither_sanity_check_nor_dry_run_nor_validation_alone_draws(tmp_path):
    model, callback = Model(), ExplanationLogger(samples=1, every_n_epochs=1)
    fit(tmp_path, callback, model=model, fast_dev_run=True)
    make_trainer(tmp_path, [callback]).validate(model, loaders()[1])
    assert model.explained_ids == []
    assert not list(tmp_path.rglob("*.*"))
    fit(tmp_path, callback, num_sanity_val_steps=2, max_epochs=0)
    assert not [name for name in names(tmp_path) if name.startswith("epoch")]


def test_without_validation_data_it_warns_and_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="no validation images"):
        fit(tmp_path, ExplanationLogger(every_n_epochs=1), data=loaders()[:1])
    assert names(tmp_path) == []


def test_only_rank_zero_draws(tmp_path):
    model, callback = Model(), ExplanationLogger(samples=1, every_n_epochs=1)
    trainer = fit(tmp_path, model=model)
    other = SimpleNamespace(
        is_global_zero=False, fast_dev_run=False, loggers=[], logger=None, max_steps=-1,
        max_epochs=9, current_epoch=0, global_step=0, default_root_dir=tmp_path,
        lightning_module=model, val_dataloaders=trainer.val_dataloaders,
        train_dataloader=trainer.train_dataloader, precision_plugin=trainer.precision_plugin,
    )  # fmt: skip
    for rank_zero, expected in ((False, []), (True, ["val-0", "val-0"])):
        other.is_global_zero = rank_zero
        callback.on_train_epoch_end(other, model)
        callback.on_train_end(other, model)
        assert model.explained_ids == expected
        assert bool(names(tmp_path)) == rank_zero


def test_prototypes_projected_as_training_ends_are_shown(tmp_path):
    callback, panels = ExplanationLogger(samples=1), []
    for model in (Model(), LateModel()):
        fit(tmp_path / type(model).__name__, callback, model=model)
        panels.append(pixels(callback.report[0]))
    np.testing.assert_array_equal(*panels)
    assert len(names(tmp_path / "LateModel")) == 2


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    weights = []
    for callbacks in ([], [ExplanationLogger(every_n_epochs=1)]):
        L.seed_everything(3, verbose=False)
        model = Model()
        frozen = model.layer[1].eval()
        # To iterate over a stream's loader is to draw from the generator that shuffles the others.
        stream = DataLoader(Stream(Images("val", 2)))
        fit(tmp_path, *callbacks, model=model, data=(loaders()[0], stream), max_epochs=3)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(*weights)
    assert model.modes[0] is False
    assert model.layer[0].training
    assert not frozen.training


class Album(Logger):
    """A logger that keeps its pictures, or fails at each."""

    name, version = "album", 0

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.pictures = fails, []

    def log_hyperparams(self, *args, **kwargs): ...

    def log_metrics(self, *args, **kwargs): ...

    def log_image(self, key, images, step):
        if self.fails:
            raise ConnectionError("no route to host")
        assert images[0].dtype == np.uint8
        self.pictures.append((key, step))


def test_a_failing_logger_is_reported_once_and_training_goes_on(tmp_path):
    callback = ExplanationLogger(samples=2, every_n_epochs=1)
    with pytest.warns(UserWarning, match="did not take") as caught:
        fit(tmp_path, callback, max_epochs=2, logger=Album(fails=True))
    (complaint,) = [str(w.message) for w in caught if "did not take" in str(w.message)]
    assert "Album did not take the picture 'explanations/val-0'" in complaint
    assert "no route to host" in complaint
    assert all(path.exists() for path in callback.report)
    assert len(callback.report) == 4


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    callback, album = ExplanationLogger(2, every_n_epochs=1), Album()
    with pytest.warns(UserWarning, match="cannot write") as caught:
        fit(tmp_path / "file" / "below", callback, max_epochs=2, logger=album)
    (complaint,) = [str(w.message) for w in caught if "cannot write" in str(w.message)]
    assert "set trainer.default_root_dir" in complaint
    assert callback.report == []
    assert album.pictures == [
        ("explanations/val-0", 2),
        ("explanations/val-2", 2),
        ("explanations/val-0", 4),
        ("explanations/val-2", 4),
        ("explanations/gallery", 4),
    ]


class SameName(Images):
    """All images have one name, which a page cannot tell apart."""

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {"image": sample["image"], "masks": sample["masks"], "id": "scan"}


def test_what_a_page_cannot_show_does_not_cost_the_run(tmp_path):
    images = DataLoader(SameName("train", 4), batch_size=2)
    with pytest.warns(UserWarning, match="report.html: two images have the id 'scan'"):
        trainer = fit(tmp_path, ExplanationLogger(samples=2), data=(images, images))
    assert trainer.state.finished
    assert not (tmp_path / "explanations" / "report.html").exists()


def test_tensorboard_gets_the_very_pixels(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    logger, callback = TensorBoardLogger(tmp_path), ExplanationLogger(samples=1)
    fit(tmp_path, callback, logger=logger)
    assert callback.folder == Path(logger.log_dir) / "explanations"
    events = event_accumulator.EventAccumulator(logger.log_dir).Reload()
    (stored,) = events.Images("explanations/val-0")
    (tmp_path / "stored.png").write_bytes(stored.encoded_image_string)
    np.testing.assert_array_equal(pixels(tmp_path / "stored.png"), pixels(callback.report[0]))
    assert events.Images("explanations/gallery")


def test_other_loggers_get_numbers_only(tmp_path):
    logger, callback = CSVLogger(tmp_path), ExplanationLogger(samples=1)
    fit(tmp_path, callback, logger=logger, log_every_n_steps=1)
    assert callback.folder == Path(logger.log_dir) / "explanations"
    assert "explanations" not in (Path(logger.log_dir) / "metrics.csv").read_text()


@pytest.mark.parametrize("argument", ["samples", "every_n_epochs"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument}=0, expected 1 or more"):
        ExplanationLogger(**{argument: 0})


class ImagesModule(L.LightningDataModule):
    """A data module that can read one sample again."""

    asked = ()

    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    def read(self, sample_id):
        self.asked = {*self.asked, sample_id}
        if not sample_id.startswith("train"):
            raise LookupError(sample_id)
        return Images("train", 4)[int(sample_id.split("-")[1])]

    def to_picture(self, image):
        return np.full((*image.shape[1:], 3), (9, 99, 199), dtype=np.uint8)


def test_patches_come_from_the_data_module(tmp_path):
    datamodule, callback = ImagesModule(), ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback]).fit(Model("train-3"), datamodule=datamodule)
    assert datamodule.asked == {"train-3", "b"}  # the latter is of the other class
    shown = (pixels(callback.report[0]) == (9, 99, 199)).all(axis=2).sum()
    # The image, and three patches for the result with a mark; "b" cannot be read.
    assert 256**2 + 0.9 * 96**2 < shown < 256**2 + 6 * 96**2


@pytest.mark.parametrize("source", ["other-3", ""])
def test_patches_that_are_not_at_hand_leave_empty_frames(tmp_path, source):
    datamodule, callback = ImagesModule(), ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback]).fit(Model(source), datamodule=datamodule)
    ground = (pixels(callback.report[0]) == (238, 238, 238)).all(axis=2).sum()
    assert ground > 96**2
