import csv
import dataclasses
import json
import math
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from made_up import make_explanation, make_sources
from PIL import Image
from reading import says
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tax_lightning import TAXLightningModule
from tax_lightning.callbacks import (
    ExplainedCheckpoint,
    ExplanationLogger,
    PredictionWriter,
)
from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization import annotator_palette

ANNOTATORS = ("Ana", "Ben", "Cleo")
SIDE = 16


class Images(Dataset):
    """Images of one grey value each, named for their split and index."""

    def __init__(self, split, count, padded=False):
        self.split, self.count, self.padded = split, count, padded

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = torch.full((1, SIDE, SIDE), i / 10)
        image[0, 0, 0] = 1
        masks = torch.zeros(3, SIDE, SIDE, dtype=torch.int64)
        masks[:, 4:12, 4:12] = 1
        sample = {"image": image, "masks": masks, "id": f"{self.split}-{i}", "reference": masks[0]}
        if self.padded:
            sample["size"] = torch.tensor([SIDE - 4, SIDE - 6])
        return sample


class Stream(IterableDataset):
    """The same images without a length."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter([self.images[i] for i in range(len(self.images))])


class Model(L.LightningModule):
    """Learns nothing of use; explains that the leader changes from left to right."""

    explained_from = 0  # epoch

    def __init__(self, source_id="train-1"):
        super().__init__()
        self.annotators, self.classes = ANNOTATORS, ("background", "cell")
        self.layer = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
        self.source_id = source_id
        self.explained_ids, self.modes = [], []
        self.late = False

    @property
    def explained(self):
        return self.late or self.current_epoch >= self.explained_from

    def explain(self, images, ids):
        assert not torch.is_grad_enabled()
        self.explained_ids += ids
        self.modes.append(self.training)
        self.layer(images)
        leader = (torch.arange(SIDE) * 3 // SIDE).expand(len(images), SIDE, SIDE)
        sources = make_sources(ANNOTATORS, self.source_id if self.explained else "")
        return make_explanation(leader, sources=sources, ids=ids, weight=0.8)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/dice", 1.0 - 0.1 * self.current_epoch)
        self.log("val/dice/Ana", 0.5 - 0.1 * self.current_epoch)

    def predict_step(self, batch, batch_idx):
        return self.explain(batch["image"], batch["id"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LateModel(Model):
    """Is explained only when training is over, after the callbacks' turn."""

    explained_from = 1000

    def on_train_end(self):
        self.late = True


def make_trainer(folder, callbacks, **options):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "limit_train_batches": 2,
    }
    return L.Trainer(callbacks=callbacks, **{**defaults, **options})


def loaders(validation=3, padded=False):
    train = DataLoader(Images("train", 4), batch_size=2, shuffle=True)
    return train, DataLoader(Images("val", validation, padded), batch_size=2)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(does not have many workers|log_every_n_steps).*"
        )
        yield


# ---------------------------------------------------------------------------- ExplanationLogger


def names(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def test_pictures_appear_every_few_epochs_and_at_the_end(tmp_path):
    callback = ExplanationLogger(samples=1, every_n_epochs=2)
    make_trainer(tmp_path, [callback], max_epochs=3).fit(Model(), *loaders())
    assert names(tmp_path) == ["epoch=001-val-0.png", "final-val-0.png", "gallery.png"]
    assert callback.paths == [tmp_path / "explanations" / "final-val-0.png"]
    assert callback.folder == tmp_path / "explanations"


def test_the_last_epoch_is_drawn_once(tmp_path):
    for limit in ({"max_epochs": 2}, {"max_epochs": -1, "max_steps": 4}):
        model, callback = Model(), ExplanationLogger(samples=1, every_n_epochs=1)
        make_trainer(tmp_path, [callback], **limit).fit(model, *loaders())
        assert model.explained_ids == ["val-0", "val-0", "train-1"]
        assert names(tmp_path) == ["epoch=000-val-0.png", "final-val-0.png", "gallery.png"]


def test_the_end_of_a_run_is_a_report_in_files(tmp_path):
    callback = ExplanationLogger(samples=2)
    make_trainer(tmp_path, [callback], max_epochs=2).fit(Model(), *loaders())
    folder = tmp_path / "explanations"
    files = ["final-val-0.png", "final-val-2.png", "gallery.png", "curves.csv", "manifest.json"]
    assert callback.report == [folder / name for name in files]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["panels"] == [
        {"id": "val-0", "file": "final-val-0.png"},
        {"id": "val-2", "file": "final-val-2.png"},
    ]
    assert [entry["name"] for entry in manifest["annotators"]] == list(ANNOTATORS)
    assert len(manifest["prototypes"]) == 9
    assert manifest["prototypes"][3]["annotator"] == "Ben"
    assert manifest["prototypes"][3]["use"] == pytest.approx(5 / 16, abs=0.01)
    assert manifest["prototypes"][3]["insertion"] is None  # not measured with such a model
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["annotator"], row["epoch"]) for row in rows] == [
        ("dice", "Ana", "0"),
        ("dice", "Ana", "1"),
    ]
    assert [float(row["value"]) for row in rows] == pytest.approx([0.5, 0.4])


def test_many_prototypes_have_a_page_for_each_annotator(tmp_path):
    model, callback = Model(), ExplanationLogger(samples=1)
    explain = model.explain

    def with_more_kernels(images, ids):
        sources = make_sources(ANNOTATORS, "train-1", kernels=9)
        return dataclasses.replace(explain(images, ids), sources=sources)

    model.explain = with_more_kernels
    make_trainer(tmp_path, [callback]).fit(model, *loaders())
    pages = [f"gallery-{name}.png" for name in ANNOTATORS]
    assert names(tmp_path) == ["final-val-0.png", *pages]
    assert json.loads((tmp_path / "explanations" / "manifest.json").read_text())["gallery"] == pages


def test_before_a_projection_there_is_no_gallery(tmp_path):
    make_trainer(tmp_path, [ExplanationLogger(samples=1)]).fit(Model(source_id=""), *loaders())
    assert names(tmp_path) == ["final-val-0.png"]


def test_curves_of_a_resumed_run_are_whole(tmp_path):
    first, second = ExplanationLogger(samples=1), ExplanationLogger(samples=1)
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    make_trainer(tmp_path, [first, checkpoint], max_epochs=2).fit(Model(), *loaders())
    trainer = make_trainer(tmp_path, [second], max_epochs=3)
    trainer.fit(Model(), *loaders(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    with (tmp_path / "explanations" / "curves.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    trainer = make_trainer(tmp_path, [second])
    trainer.fit(Model(), *loaders())  # another run begins anew
    with (tmp_path / "explanations" / "curves.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0"]


def test_samples_are_spread_over_the_validation_set(tmp_path):
    model = Model()
    make_trainer(tmp_path, [ExplanationLogger(samples=3)]).fit(model, *loaders(validation=9))
    assert model.explained_ids == ["val-0", "val-4", "val-8", "train-1"]


def test_a_set_without_length_shows_its_first_samples(tmp_path):
    model = Model()
    stream = DataLoader(Stream(Images("val", 5)), batch_size=2)
    make_trainer(tmp_path, [ExplanationLogger(samples=3)]).fit(model, loaders()[0], stream)
    assert model.explained_ids == ["val-0", "val-1", "val-2", "train-1"]


def test_more_samples_than_there_are(tmp_path):
    callback = ExplanationLogger(samples=9)
    make_trainer(tmp_path, [callback]).fit(Model(), *loaders(validation=2))
    assert names(tmp_path) == ["final-val-0.png", "final-val-1.png", "gallery.png"]


def test_padding_is_not_shown(tmp_path):
    callback = ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback]).fit(Model(), *loaders(padded=True))
    with Image.open(callback.paths[0]) as panel:
        shown = np.asarray(panel)
    assert shown.shape[1] == 3 * 256 + 2 * 16 + 2 * 18
    assert says(shown, "10 x 12 pixels", 14)


def test_neither_sanity_check_nor_dry_run_draws(tmp_path):
    model = Model()
    callback = ExplanationLogger(samples=1, every_n_epochs=1)
    make_trainer(tmp_path, [callback], fast_dev_run=True).fit(model, *loaders())
    assert model.explained_ids == []
    assert names(tmp_path) == []
    make_trainer(tmp_path, [callback], num_sanity_val_steps=2, max_epochs=0).fit(model, *loaders())
    assert not [name for name in names(tmp_path) if name.startswith("epoch")]


def test_validation_alone_draws_nothing(tmp_path):
    model = Model()
    make_trainer(tmp_path, [ExplanationLogger(every_n_epochs=1)]).validate(model, loaders()[1])
    assert model.explained_ids == []


def test_without_validation_data_it_warns_and_goes_on(tmp_path):
    callback = ExplanationLogger(every_n_epochs=1)
    with pytest.warns(UserWarning, match="no validation images"):
        make_trainer(tmp_path, [callback]).fit(Model(), loaders()[0])
    assert callback.paths == []


def test_only_rank_zero_draws():
    model = Model()
    trainer = SimpleNamespace(is_global_zero=False, current_epoch=0, fast_dev_run=False)
    callback = ExplanationLogger(every_n_epochs=1)
    callback.on_train_epoch_end(trainer, model)
    callback.on_train_end(trainer, model)
    assert model.explained_ids == []


def test_prototypes_projected_as_training_ends_are_shown(tmp_path):
    callback = ExplanationLogger(samples=1)
    with_late, without = Model(), LateModel()
    make_trainer(tmp_path / "a", [callback]).fit(with_late, *loaders())
    expected = callback.paths[0].read_bytes()
    make_trainer(tmp_path / "b", [callback]).fit(without, *loaders())
    assert callback.paths == [tmp_path / "b" / "explanations" / "final-val-0.png"]
    assert callback.paths[0].read_bytes() == expected


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    weights = []
    for callbacks in ([], [ExplanationLogger(every_n_epochs=1)]):
        L.seed_everything(3, verbose=False)
        model = Model()
        frozen = model.layer[1].eval()
        # To iterate over a stream's loader is to draw from the generator that shuffles the others.
        stream = DataLoader(Stream(Images("val", 2)))
        make_trainer(tmp_path, callbacks, max_epochs=3).fit(model, loaders()[0], stream)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(*weights)
    assert model.modes[0] is False
    assert model.layer[0].training
    assert not frozen.training


class Deaf(Logger):
    """A tracker that fails at every picture."""

    name, version = "deaf", 0

    def log_hyperparams(self, *args, **kwargs): ...

    def log_metrics(self, *args, **kwargs): ...

    def log_image(self, key, images, step):
        raise ConnectionError("no route to host")


class SameName(Images):
    """All images have one name, which a page cannot tell apart."""

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {"image": sample["image"], "masks": sample["masks"], "id": "scan"}


def test_what_a_page_cannot_show_does_not_cost_the_run(tmp_path):
    module = TAXLightningModule(
        ANNOTATORS,
        ("background", "cell"),
        network=torch.nn.Conv2d(1, 4, 1),
        in_channels=1,
        kernels=1,
    )
    callback = ExplanationLogger(samples=2)
    trainer = make_trainer(tmp_path, [callback], max_epochs=2)
    images = DataLoader(SameName("train", 4), batch_size=2)
    with pytest.warns(UserWarning, match="no page of the samples: two images have the id 'scan'"):
        trainer.fit(module, images, images)
    assert trainer.state.finished
    assert "report.html" not in {path.name for path in callback.report}
    assert json.loads((tmp_path / "explanations" / "manifest.json").read_text())["page"] is None


def test_a_failing_tracker_is_reported_once_and_training_goes_on(tmp_path):
    callback = ExplanationLogger(samples=2, every_n_epochs=1)
    with pytest.warns(UserWarning, match="did not take") as caught:
        make_trainer(tmp_path, [callback], max_epochs=2, logger=Deaf()).fit(Model(), *loaders())
    complaints = [str(w.message) for w in caught if "did not take" in str(w.message)]
    assert len(complaints) == 1
    assert "Deaf did not take the picture 'explanations/val-0'" in complaints[0]
    assert "no route to host" in complaints[0]
    assert all(path.exists() for path in callback.report)
    assert len(callback.paths) == 2


class Album(Deaf):
    """A tracker that keeps its pictures."""

    def __init__(self):
        super().__init__()
        self.pictures = []

    def log_image(self, key, images, step):
        self.pictures.append((key, step, images[0]))


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    callback = ExplanationLogger(2, every_n_epochs=1, output_dir=str(tmp_path / "file" / "below"))
    album = Album()
    with pytest.warns(UserWarning, match="cannot write") as caught:
        make_trainer(tmp_path, [callback], max_epochs=2, logger=album).fit(Model(), *loaders())
    complaints = [w for w in caught if "cannot write" in str(w.message)]
    assert len(complaints) == 1
    assert "set output_dir" in str(complaints[0].message)
    assert callback.paths == []
    # Two samples in two epochs; the end adds nothing that the trackers have not seen.
    assert [(key, step) for key, step, _ in album.pictures] == [
        ("explanations/val-0", 2),
        ("explanations/val-2", 2),
        ("explanations/val-0", 4),
        ("explanations/val-2", 4),
        ("explanations/gallery", 4),
    ]


def test_tensorboard_gets_the_very_pixels(tmp_path):
    layout_pb2 = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    logger = TensorBoardLogger(tmp_path)
    callback = ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback], logger=logger).fit(Model(), *loaders())
    assert callback.folder == Path(logger.log_dir) / "explanations"
    events = event_accumulator.EventAccumulator(logger.log_dir).Reload()
    (stored,) = events.Images("explanations/val-0")
    (tmp_path / "stored.png").write_bytes(stored.encoded_image_string)
    with Image.open(tmp_path / "stored.png") as shown, Image.open(callback.paths[0]) as written:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(written))
    assert events.Images("explanations/gallery")
    layout = layout_pb2.Layout()
    content = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout.ParseFromString(content)
    (category,) = layout.category
    assert [(chart.title, list(chart.multiline.tag)) for chart in category.chart] == [
        ("dice", ["^val/dice/Ana$"])
    ]


def test_weights_and_biases_gets_the_very_pixels(tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
    callback = ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback], logger=logger).fit(Model(), *loaders())
    version = logger.version
    wandb.finish()
    assert callback.folder == tmp_path / "tests" / version / "explanations"
    (stored,) = tmp_path.rglob("media/images/explanations/val-0*.png")
    with Image.open(stored) as shown, Image.open(callback.paths[0]) as written:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(written))


def test_other_loggers_are_left_alone(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback], logger=logger).fit(Model(), *loaders())
    assert callback.folder == Path(logger.log_dir) / "explanations"


@pytest.mark.parametrize("argument", ["samples", "every_n_epochs"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument}=0, expected 1 or more"):
        ExplanationLogger(**{argument: 0})


class ImagesModule(L.LightningDataModule):
    """A data module that can read one sample again."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    def read(self, sample_id):
        self.asked.append(sample_id)
        return Images("train", 4)[int(sample_id.split("-")[1])]

    def to_picture(self, image):
        return np.full((*image.shape[1:], 3), (9, 99, 199), dtype=np.uint8)


def test_patches_come_from_the_data_module(tmp_path):
    datamodule, callback = ImagesModule(), ExplanationLogger(samples=1)
    make_trainer(tmp_path, [callback]).fit(Model("train-3"), datamodule=datamodule)
    assert set(datamodule.asked) == {"train-3", "b"}  # the latter is the nearest pixels
    with Image.open(callback.paths[0]) as panel:
        shown = (np.asarray(panel) == (9, 99, 199)).all(axis=2).sum()
    assert shown > 256**2 + 3 * 0.9 * 96**2  # the image, and three patches with a mark


def has_patch(path):
    """Whether the patches' frames hold pictures instead of the ground for none."""
    with Image.open(path) as panel:
        ground = (np.asarray(panel) == (238, 238, 238)).all(axis=2).sum()
    return bool(ground < 96**2)


@pytest.mark.parametrize("streamed", [False, True])
def test_patches_without_a_data_module_come_from_the_training_loader(tmp_path, streamed):
    train = loaders()[0]
    if streamed:
        train = DataLoader(Stream(Images("train", 4)), batch_size=2)
    for source_id, expected in (("train-3", True), ("elsewhere-3", False), ("", False)):
        callback = ExplanationLogger(samples=1)
        make_trainer(tmp_path, [callback]).fit(Model(source_id), train, loaders()[1])
        assert has_patch(callback.paths[0]) is expected


# ------------------------------------------------------------------------------ PredictionWriter


class Named(Images):
    """Images with names of choice."""

    def __init__(self, names, padded=False):
        super().__init__("predict", len(names), padded)
        self.names = names

    def __getitem__(self, i):
        return {**super().__getitem__(i), "id": self.names[i]}


def predict(folder, ids=("a", "b", "c"), padded=False, model=None, **options):
    writer = PredictionWriter(str(folder), **options)
    loader = DataLoader(Named(ids, padded), batch_size=2)
    trainer = make_trainer(folder.parent, [writer])
    trainer.predict(model or Model(), loader, return_predictions=False)
    return json.loads(writer.manifest.read_text(encoding="utf-8"))


def test_predictions_read_back(tmp_path):
    out = tmp_path / "out"
    manifest = predict(out, padded=True)
    assert [image["id"] for image in manifest["images"]] == ["a", "b", "c"]
    assert [entry["name"] for entry in manifest["annotators"]] == list(ANNOTATORS)
    assert [entry["name"] for entry in manifest["classes"]] == ["background", "cell"]
    assert len(manifest["prototypes"]) == 9
    assert manifest["prototypes"][4]["annotator"] == "Ben"
    assert manifest["prototypes"][4]["sample_id"] == "train-1"
    leader = np.broadcast_to(np.arange(SIDE) * 3 // SIDE, (SIDE, SIDE))[: SIDE - 4, : SIDE - 6]
    for image in manifest["images"]:
        files = image["files"]
        assert (image["height"], image["width"]) == leader.shape
        np.testing.assert_array_equal(Image.open(out / files["fused"]), leader % 2)
        np.testing.assert_array_equal(Image.open(out / files["who"]), leader)
        assert (np.asarray(Image.open(out / files["annotators"]["Ben"])) == 1).all()
        with np.load(out / files["maps"]) as maps:
            assert maps["who"].shape == (3, *leader.shape)
            assert maps["who"].dtype == np.float16
            np.testing.assert_allclose(maps["who"].max(axis=0), 0.8, atol=1e-3)
            assert maps["why"].dtype == np.int8
            assert maps["unanimous"].dtype == bool
            assert maps["annotators"].tolist() == list(ANNOTATORS)
    colours = [entry["colour"] for entry in manifest["annotators"]]
    who = Image.open(out / "a" / "who.png").convert("RGB")
    assert who.getpixel((0, 0)) == annotator_palette(3)[0]
    assert colours[0] == "#{:02x}{:02x}{:02x}".format(*annotator_palette(3)[0])
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    named = {"manifest.json"}
    for image in manifest["images"]:
        own = image["files"].pop("annotators")
        named |= {*image["files"].values(), *own.values()}
    assert written == named


def test_any_id_gives_a_folder_of_its_own(tmp_path):
    ids = ["a/b", "a b", "a_b", "é", "e", "..", "", "x" * 300, "/abs", "a\\b", "日本", "中国"]
    manifest = predict(tmp_path / "out", ids)
    folders = [image["files"]["fused"].split("/")[0] for image in manifest["images"]]
    assert len(set(folders)) == len(ids)
    assert all(folder.isascii() and 0 < len(folder) < 100 for folder in folders)
    assert "a_b" in folders
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert sorted(image["id"] for image in manifest["images"]) == sorted(ids)


def test_annotators_may_have_the_names_of_other_files(tmp_path):
    model = Model()
    explain = model.explain

    def renamed(images, ids):
        names = ("who", "Fused", "a/b")
        explanation = explain(images, ids)
        return make_explanation(explanation.leader, annotators=names, ids=ids)

    model.explain = renamed
    manifest = predict(tmp_path / "out", ["x"], model=model)
    (image,) = manifest["images"]
    files = image["files"].pop("annotators")
    assert len({*files.values(), *image["files"].values()}) == 6
    assert set(np.unique(Image.open(tmp_path / "out" / image["files"]["who"]))) == {0, 1, 2}


def test_predictions_are_not_overwritten_unless_asked(tmp_path):
    predict(tmp_path / "out")
    with pytest.raises(FileExistsError, match="give another folder, or set overwrite=true"):
        predict(tmp_path / "out", ["d"])
    manifest = predict(tmp_path / "out", ["d"], overwrite=True)
    assert [image["id"] for image in manifest["images"]] == ["d"]


def test_an_interrupted_run_leaves_no_manifest(tmp_path):
    predict(tmp_path / "out")
    model = Model()
    model.explain = lambda images, ids: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict(tmp_path / "out", overwrite=True, model=model)
    assert not (tmp_path / "out" / "manifest.json").exists()
    predict(tmp_path / "out")


def test_two_images_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two images have the id 'a'"):
        predict(tmp_path / "out", ["a", "b", "a"])


def test_other_predictions_are_refused(tmp_path):
    model = Model()
    model.predict_step = lambda batch, batch_idx: batch["image"]
    with pytest.raises(TypeError, match="predict_step returned Tensor, expected an Explanation"):
        predict(tmp_path / "out", model=model)


def test_numbers_that_json_has_not_become_null(tmp_path):
    model = Model()
    sources = tuple(
        (PrototypeSource(name, 0, "", 0, 0, math.nan, "cell", True, ()),) for name in ANNOTATORS
    )
    leader = torch.zeros(1, SIDE, SIDE).long()
    model.explain = lambda images, ids: make_explanation(leader, sources=sources, ids=ids)
    manifest = predict(tmp_path / "out", ["x"], model=model)
    assert manifest["prototypes"][0]["similarity"] is None


def test_processes_put_their_parts_together(tmp_path):
    writers = []
    for rank in (0, 1, 2):
        strategy = SimpleNamespace(barrier=lambda: None)
        trainer = SimpleNamespace(
            global_rank=rank, world_size=3, is_global_zero=rank == 0, strategy=strategy
        )
        writer = PredictionWriter(str(tmp_path))
        writer.setup(trainer, Model(), "predict")
        if rank < 2:  # more processes than images
            leader = torch.zeros(1, 4, 4).long()
            explanation = make_explanation(leader, ids=[f"image-{rank}"])
            writer.write_on_batch_end(trainer, Model(), explanation, [rank], {}, 0, 0)
        writers.append((writer, trainer))
    for writer, trainer in reversed(writers):
        writer.on_predict_end(trainer, Model())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [image["id"] for image in manifest["images"]] == ["image-0", "image-1"]
    assert len(manifest["annotators"]) == 3
    assert sorted(os.listdir(tmp_path)) == ["image-0", "image-1", "manifest.json"]


# -------------------------------------------------------------------------- ExplainedCheckpoint


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
