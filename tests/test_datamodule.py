"""Datasets and loaders: aligned transforms, repeatable randomness, the form of the batches."""

import pickle
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentError, ArgumentParser

from tax_lightning.batch import unpacked
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import (
    MultiAnnotatorDataModule,
    MultiAnnotatorDataset,
    RawSample,
    collate_samples,
)
from tax_lightning.data.dataset import FewerLabels

import albumentations as A  # isort: skip - after the package, which keeps it off the network

NEAREST = 0  # OpenCV's number for nearest interpolation
STEP = 50


def scene(name: str, size=(24, 20), seed: int = 0, extras: bool = True) -> RawSample:
    """Three annotators with the same blocky labels; the image shows STEP * (label + 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (size[0] // 4, size[1] // 4)).astype(np.uint8)
    labels = labels.repeat(4, 0).repeat(4, 1)
    masks = np.stack([labels, labels, np.full_like(labels, IGNORE_INDEX)])
    return RawSample(
        id=name,
        image=((labels + 1) * STEP)[..., None].repeat(3, 2),
        masks=masks,
        present=np.array([True, True, False]),
        reference=labels if extras else None,
        expert=labels % 3 if extras else None,
        deviation=np.stack([labels * 0, labels, labels]) if extras else None,
    )


class Scenes:
    """A source of scenes that all differ."""

    def __init__(self, count=6, prefix="s", size=(24, 20), extras=True):
        self.ids = tuple(f"{prefix}{number}" for number in range(count))
        self.size, self.extras = size, extras

    def __getitem__(self, index):
        return scene(self.ids[index], self.size, index, self.extras)


class Fixed:
    """The same sample again and again."""

    ids = tuple("abcdefgh")

    def __init__(self, raw):
        self.raw = raw

    def __getitem__(self, index):
        return self.raw


class SceneModule(MultiAnnotatorDataModule):
    """Scenes in three splits; also a target for the command line's parser.

    Args:
        counts: Number of training, validation and test scenes.
        kwargs: The loading options.
    """

    def __init__(self, counts: tuple[int, int, int] = (6, 3, 2), **kwargs) -> None:
        super().__init__(
            annotators=("Ann", "Bob", "Cai"), classes=("background", "a", "b", "c"), **kwargs
        )
        self.counts = dict(zip(("train", "val", "test"), counts, strict=True))

    def _source(self, split):
        return Scenes(self.counts[split], prefix=split)


def dataset(transforms=(), source=None, mean=(0, 0, 0), std=(1, 1, 1), **kwargs):
    return MultiAnnotatorDataset(source or Scenes(), transforms, mean, std, **kwargs)


def images_of(loader) -> torch.Tensor:
    return torch.cat([batch["image"] for batch in loader])


# One sample


def test_a_model_under_a_trainer_gets_numbers():
    data = SceneModule(batch_size=2)
    batch = next(iter(data.train_dataloader()))
    ready = data.on_after_batch_transfer(batch, 0)
    assert batch["image"].dtype == torch.uint8
    expected = (batch["image"] / 255 - batch["normalisation"][0, :, None, None]) / (
        batch["normalisation"][1, :, None, None]
    )
    assert torch.equal(ready["image"], expected)
    assert "normalisation" not in ready
    for key in ("masks", "reference", "expert", "deviation"):
        assert batch[key].dtype == torch.uint8
        assert ready[key].dtype == torch.int64
        assert torch.equal(batch[key], ready[key])


def test_sample_has_the_agreed_form():
    sample = dataset()[1]
    assert sample["id"] == "s1"
    assert {
        key: (value.dtype, tuple(value.shape)) for key, value in sample.items() if key != "id"
    } == {
        "image": (torch.uint8, (3, 24, 20)),
        "normalisation": (torch.float32, (2, 3)),
        "masks": (torch.uint8, (3, 24, 20)),
        "present": (torch.bool, (3,)),
        "reference": (torch.uint8, (24, 20)),
        "expert": (torch.uint8, (24, 20)),
        "deviation": (torch.uint8, (3, 24, 20)),
    }


def test_optional_planes_are_left_out():
    always = {"image", "normalisation", "masks", "present", "id"}
    assert dataset(source=Scenes(extras=False))[0].keys() == always


@pytest.mark.parametrize(
    ("image", "unit"),
    [
        (np.array([[[0], [51]]], np.uint8), [0, 0.2]),
        (np.array([[[0], [13107]]], np.uint16), [0, 0.2]),
        (np.array([[[0], [0.2]]], np.float32), [0, 0.2]),
    ],
)
def test_normalisation(image, unit):
    raw = RawSample("a", image, np.zeros((1, 1, 2), np.uint8), np.array([True]))
    data = MultiAnnotatorDataset(Fixed(raw), mean=(0.5,), std=(0.25,))
    expected = (np.array(unit) - 0.5) / 0.25
    np.testing.assert_allclose(unpacked(data[0])["image"][0, 0].numpy(), expected, rtol=1e-5)


# Transforms


GEOMETRIC = {
    "flips": [A.HorizontalFlip(p=1), A.Transpose(p=1)],
    "rotate": [A.Rotate(limit=(30, 40), interpolation=NEAREST, p=1)],
    "affine": [A.Affine(scale=0.7, rotate=20, interpolation=NEAREST, p=1)],
    "fill with a class": [A.Affine(translate_px=5, interpolation=NEAREST, fill_mask=1, p=1)],
    "fill with 255": [A.Affine(translate_px=5, interpolation=NEAREST, fill_mask=255, p=1)],
    "pad": [A.PadIfNeeded(32, 40)],
    "crop": [A.RandomCrop(12, 10)],
    "crop and pad": [A.CropAndPad(px=(-3, 5), interpolation=NEAREST, p=1)],
    "perspective": [A.Perspective(scale=0.2, interpolation=NEAREST, fit_output=True, p=1)],
    "elastic": [A.ElasticTransform(alpha=20, sigma=5, interpolation=NEAREST, p=1)],
    "grid": [A.GridDistortion(distort_limit=(0.3, 0.3), interpolation=NEAREST, p=1)],
    "holes": [A.CoarseDropout(fill_mask=0, p=1)],
    "choice": [A.OneOf([A.D4(p=1), A.SafeRotate((45, 45), interpolation=NEAREST, p=1)], p=1)],
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_labels_follow_the_image_and_are_ignored_outside_it(name):
    data = dataset(GEOMETRIC[name])
    for index in range(4):
        sample = data[index]
        shown = sample["image"][0].long()
        labels = sample["masks"][0]
        outside = shown == 0
        assert (labels[outside] == IGNORE_INDEX).all()
        assert torch.equal(shown[~outside], (labels[~outside] + 1) * STEP)
        assert torch.equal(sample["masks"][1], labels)
        assert (sample["masks"][2] == IGNORE_INDEX).all()
        assert torch.equal(sample["reference"], labels)
        assert torch.equal(sample["expert"], torch.where(outside, IGNORE_INDEX, labels % 3))
        assert torch.equal(sample["deviation"][2], torch.where(outside, 0, labels))


@pytest.mark.parametrize("name", ["rotate", "affine", "pad", "perspective", "holes"])
def test_the_case_above_does_leave_the_picture(name):
    data = dataset(GEOMETRIC[name])
    assert any((data[index]["masks"][0] == IGNORE_INDEX).any() for index in range(4))


def test_reflected_borders_keep_their_labels():
    data = dataset([A.PadIfNeeded(40, 40, border_mode=4)])
    assert (data[0]["masks"][0] != IGNORE_INDEX).all()
    assert data[0]["masks"].shape == (3, 40, 40)


def test_labels_are_never_interpolated():
    smooth = A.Affine(rotate=(10, 80), interpolation=1, mask_interpolation=1, p=1)
    labels = dataset([A.OneOf([smooth], p=1), A.Resize(50, 41, mask_interpolation=1)])[0]["masks"]
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, IGNORE_INDEX}


def test_transforms_draw_independently_of_each_other():
    data = dataset([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    plain = dataset()[0]["image"]
    outcomes = {
        (x, y): plain.flip([axis for axis, flip in ((2, x), (1, y)) if flip])
        for x in (False, True)
        for y in (False, True)
    }
    seen = [
        next(flips for flips, image in outcomes.items() if torch.equal(image, sample))
        for sample in (data[0]["image"] for _ in range(80))
    ]
    assert min(seen.count(flips) for flips in outcomes) >= 8


@pytest.mark.parametrize("transform", [A.Normalize(), A.ToTensorV2()])
def test_transforms_that_repeat_the_datasets_work_are_refused(transform):
    with pytest.raises(ValueError, match=rf"transform {type(transform).__name__} is not allowed"):
        SceneModule(train_transforms=[A.Sequential([transform])])
    with pytest.raises(ValueError, match="set mean and std instead"):
        dataset([transform])


# Batches


def test_collate_pads_at_the_bottom_and_the_right():
    small, large = (
        dataset(source=Scenes(1, size=(4, 8)))[0],
        dataset(source=Scenes(1, size=(8, 4)))[0],
    )
    batch = collate_samples([small, large], ["Ann", "Bob", "Cai"])
    assert batch["size"].tolist() == [[4, 8], [8, 4]]
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["id"] == ["s0", "s0"]
    assert batch["annotators"] == ("Ann", "Bob", "Cai")
    for index, sample in enumerate((small, large)):
        height, width = batch["size"][index].tolist()
        for key, fill in (
            ("image", 0),
            ("masks", 255),
            ("reference", 255),
            ("expert", 255),
            ("deviation", 0),
        ):
            plane = batch[key][index].clone()
            assert torch.equal(plane[..., :height, :width], sample[key])
            plane[..., :height, :width] = fill
            assert (plane == fill).all()


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_collate_loses_nothing(sizes):
    samples = [
        {
            "image": torch.ones(1, *size),
            "masks": torch.zeros(2, *size, dtype=torch.int64),
            "present": torch.ones(2, dtype=torch.bool),
            "id": str(index),
        }
        for index, size in enumerate(sizes)
    ]
    batch = collate_samples(samples)
    pixels = torch.tensor([height * width for height, width in sizes])
    assert torch.equal(batch["size"].prod(1), pixels)
    assert torch.equal(batch["image"].sum((1, 2, 3)).long(), pixels)
    assert torch.equal((batch["masks"] == 0).sum((1, 2, 3)), 2 * pixels)


def test_loaders():
    data = SceneModule(batch_size=2, train_transforms=[], predict_split="val")
    assert data.annotators == ("Ann", "Bob", "Cai")
    assert (data.channels, data.mean[0]) == (3, 0.485)
    data.setup("fit")
    torch.manual_seed(1)
    drawn = [name for batch in data.train_dataloader() for name in batch["id"]]
    ordered = [f"train{n}" for n in range(6)]
    assert sorted(drawn) == ordered
    assert drawn != ordered
    for loader, names in (
        (data.projection_dataloader(), ordered),
        (data.val_dataloader(), ["val0", "val1", "val2"]),
        (data.test_dataloader(), ["test0", "test1"]),
        (data.predict_dataloader(), ["val0", "val1", "val2"]),
    ):
        batches = list(loader)
        assert [name for batch in batches for name in batch["id"]] == names
        assert tuple(batches[0]["annotators"]) == data.annotators


def test_projection_sees_evaluation_transforms_only():
    data = SceneModule(train_transforms=[A.InvertImg(p=1)], eval_transforms=[A.Resize(8, 8)])
    image = unpacked(next(iter(data.projection_dataloader())))["image"]
    assert image.shape[-2:] == (8, 8)
    assert torch.equal(image[2], data.read("train2")["image"])


@pytest.mark.parametrize(
    ("count", "processes", "batches"), [(7, 1, 3), (8, 1, 4), (1, 1, 1), (7, 4, 1)]
)
def test_only_full_batches_train_unless_there_is_no_full_one(count, processes, batches):
    data = SceneModule((count, 1, 1), batch_size=2)
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    data.trainer = SimpleNamespace(global_rank=0, world_size=processes, strategy=strategy)
    assert len(data.train_dataloader()) == batches


def test_stages_without_samples_fail_at_once():
    data = SceneModule((0, 0, 0))
    stages = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}
    for stage, split in stages.items():
        with pytest.raises(ValueError, match=f"0 samples in the split '{split}'"):
            data.setup(stage)


def test_setup_prepares_its_stage_only():
    class Counting(SceneModule):
        def _source(self, split):
            asked.append(split)
            return super()._source(split)

    asked = []
    data = Counting()
    assert asked == []
    data.setup("test")
    data.test_dataloader()
    assert asked == ["test"]
    data.setup("fit")
    data.train_dataloader()
    data.projection_dataloader()
    assert asked == ["test", "train", "val"]


def test_read_finds_samples_of_every_split():
    data = SceneModule()
    for name in ("train5", "val2", "test1"):
        assert data.read(name)["id"] == name
    with pytest.raises(KeyError, match="No sample has the id 'train6'"):
        data.read("train6")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": (0.5,)}, r"mean=\(0\.5,\) has 1 number\(s\), expected 3"),
        ({"std": (0.5, 0.0, 0.5)}, "expected numbers above 0"),
        ({"std": (0.5, 0.5)}, r"std=\(0\.5, 0\.5\) has 2 number\(s\), expected 3"),
    ],
)
def test_statistics_must_fit_the_channels(options, text):
    with pytest.raises(ValueError, match=text):
        SceneModule(**options)


# Few labels


def shown_to(data: SceneModule, split: str) -> dict[str, dict]:
    """Samples of a split by name, without augmentation."""
    return {name: data.read(name) for name in Scenes(data.counts[split], prefix=split).ids}


def test_only_so_many_annotators_labels_are_shown_of_a_training_image():
    everything, fewer = SceneModule((20, 3, 2)), SceneModule((20, 3, 2), labels_per_image=1)
    whole = shown_to(everything, "train")
    for name, sample in shown_to(fewer, "train").items():
        present = sample["present"]
        assert present.dtype == torch.bool
        assert present.sum() == 1
        assert not present[2]  # Cai labelled nothing that could be shown
        assert (sample["masks"][~present] == IGNORE_INDEX).all()
        assert torch.equal(sample["masks"][present], whole[name]["masks"][present])
        for key in ("image", "reference", "expert"):
            assert torch.equal(sample[key], whole[name][key])


def test_who_is_shown_is_a_matter_of_the_images_name():
    first, second = (SceneModule((30, 1, 1), labels_per_image=1) for _ in range(2))
    chosen = {name: s["present"].tolist() for name, s in shown_to(first, "train").items()}
    assert chosen == {name: s["present"].tolist() for name, s in shown_to(second, "train").items()}
    # The same names in a shorter split, in the shuffled batches, and at the projection.
    shorter = shown_to(SceneModule((10, 1, 1), labels_per_image=1), "train")
    for name, sample in shorter.items():
        assert sample["present"].tolist() == chosen[name]
    for loader in (first.train_dataloader(), first.projection_dataloader()):
        for batch in loader:
            assert batch["present"].tolist() == [chosen[name] for name in batch["id"]]
            labelled = (batch["masks"] != IGNORE_INDEX).flatten(2).any(2)
            assert torch.equal(labelled, batch["present"])
    shown = [present.index(True) for present in chosen.values()]
    assert 8 <= shown.count(0) <= 22  # each of the two is drawn about as often
    assert shown.count(0) + shown.count(1) == 30


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_splits_keep_all_labels(split):
    fewer, everything = SceneModule(labels_per_image=1), SceneModule()
    for sample, whole in zip(
        shown_to(fewer, split).values(), shown_to(everything, split).values(), strict=True
    ):
        assert sample["present"].tolist() == [True, True, False]
        assert torch.equal(sample["masks"], whole["masks"])


@pytest.mark.parametrize("count", [2, 5, None])
def test_no_more_labels_are_shown_than_there_are(count):
    fewer, everything = SceneModule(labels_per_image=count), SceneModule()
    for sample, whole in zip(
        shown_to(fewer, "train").values(), shown_to(everything, "train").values(), strict=True
    ):
        assert torch.equal(sample["present"], whole["present"])
        assert torch.equal(sample["masks"], whole["masks"])


def test_hiding_labels_does_not_touch_the_source():
    source = Scenes(count=1)
    raw = source[0]
    fixed = Fixed(raw)
    masks, present = raw.masks.copy(), raw.present.copy()
    hidden = FewerLabels(fixed, 1)[0]
    assert hidden.present.sum() == 1
    np.testing.assert_array_equal(raw.masks, masks)
    np.testing.assert_array_equal(raw.present, present)
    assert FewerLabels(fixed, 1).ids == fixed.ids


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one_label_an_image_must_be_shown(count):
    message = rf"^labels_per_image={count}: expected at least 1, or null for all\.$"
    with pytest.raises(ValueError, match=message):
        SceneModule(labels_per_image=count)


# Randomness


def epochs(workers: int, seed: int = 3) -> list[torch.Tensor]:
    """The images of two training epochs, in the order of their names' drawing."""
    L.seed_everything(seed, workers=True, verbose=False)
    data = SceneModule(
        (8, 1, 1),
        batch_size=2,
        num_workers=workers,
        train_transforms=[A.Affine(rotate=(-180, 180), translate_px=(-5, 5), p=1)],
    )
    loader = data.train_dataloader()
    return [images_of(loader) for _ in range(2)]


def test_one_seed_gives_one_sequence_for_any_number_of_workers():
    first, second = epochs(workers=0), epochs(workers=2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], epochs(0, seed=4)[0])


def test_workers_draw_differently_from_each_other_and_in_every_epoch():
    class Same(SceneModule):
        def _source(self, split):
            return Fixed(scene("same"))

    L.seed_everything(0, workers=True, verbose=False)
    spin = [A.Affine(rotate=(-180, 180), p=1)]
    loader = Same(batch_size=2, num_workers=2, train_transforms=spin).train_dataloader()
    assert loader.persistent_workers
    images = torch.cat([images_of(loader) for _ in range(2)])
    assert len(images.flatten(1).unique(dim=0)) == 16


def test_workers_evaluate_as_the_training_process_does():
    chance = [A.RandomCrop(8, 8), A.Affine(rotate=(-90, 90), p=0.5)]
    alone, helped = (
        SceneModule((1, 7, 1), batch_size=2, num_workers=workers, eval_transforms=chance)
        for workers in (0, 2)
    )
    loader = helped.val_dataloader()
    for _ in range(2):  # workers persist; what they draw does not go on
        for expected, batch in zip(alone.val_dataloader(), loader, strict=True):
            assert batch.keys() == expected.keys()
            for key in expected.keys() - {"id", "annotators"}:
                assert torch.equal(batch[key], expected[key])
            assert batch["id"] == expected["id"]


def test_evaluation_is_the_same_every_time_and_draws_nothing():
    data = SceneModule(eval_transforms=[A.RandomCrop(8, 8)])
    state = torch.random.get_rng_state()
    first, second = data.read("val1"), data.read("val1")
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_datasets_can_be_sent_to_another_process():
    data = pickle.loads(pickle.dumps(dataset([A.D4(p=1), A.OneOf([A.Blur(), A.Rotate()])])))
    assert data[0]["image"].shape[0] == 3


# Pictures


def test_to_picture_undoes_the_normalisation():
    data = SceneModule(eval_transforms=[])
    picture = data.to_picture(data.read("train1")["image"])
    np.testing.assert_array_equal(picture, Scenes()[1].image)
    assert picture.dtype == np.uint8


def test_to_picture_shows_grey_images():
    data = SceneModule(channels=1)
    assert data.mean == (0.5,)
    picture = data.to_picture(torch.tensor([[[-2.0, 0.0, 2.0]]]))
    assert picture.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    pixels = torch.tensor([[[0, 128, 255]]], dtype=torch.uint8)  # as a data set may hold them
    assert data.to_picture(pixels).tolist() == picture.tolist()


def test_plot_shows_outlines_and_names():
    data = SceneModule()
    sample = data.read("train0")
    picture = np.asarray(data.plot(sample))
    plain = data.to_picture(sample["image"])
    zoom = round(512 / 24)
    assert picture.shape[0] == 24 * zoom
    assert picture.shape[1] > 20 * zoom
    shown = picture[:, : 20 * zoom].reshape(24, zoom, 20, zoom, 3)
    changed = (shown != plain[:, None, :, None]).any((1, 3, 4))
    np.testing.assert_array_equal(shown[:, zoom // 2, :, zoom // 2], plain)
    labels = sample["masks"][0].numpy()
    edge = np.zeros_like(changed)
    for axis in (0, 1):
        step = np.diff(labels, axis=axis) != 0
        for side in ((1, 0), (0, 1)):
            edge |= np.pad(step, [side if axis == other else (0, 0) for other in (0, 1)])
    np.testing.assert_array_equal(changed, edge & (labels != 0))


# Lightning


YAML = """
data:
  class_path: tests.test_datamodule.SceneModule
  init_args:
    counts: [4, 2, 2]
    mean: [0.1, 0.2, 0.3]
    train_transforms:
    - class_path: albumentations.HorizontalFlip
      init_args: {p: 0.5}
    - class_path: albumentations.OneOf
      init_args:
        transforms:
        - class_path: albumentations.Affine
          init_args: {rotate: [-20, 20], scale: [0.9, 1.1], p: 1.0}
        - class_path: albumentations.RandomBrightnessContrast
    - class_path: albumentations.RandomCrop
      init_args: {height: 16, width: 16}
    eval_transforms:
    - class_path: albumentations.CenterCrop
      init_args: {height: 16, width: 16}
"""


def parsed(tmp_path, text: str, *options: str) -> MultiAnnotatorDataModule:
    """The data module that a YAML file and options of the command line describe."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data")
    path = tmp_path / "data.yaml"
    path.write_text(text.replace("tests.test_datamodule", __name__))
    return parser.instantiate(parser.parse_args([f"--config={path}", *options])).data


def test_everything_can_be_said_in_yaml(tmp_path):
    data = parsed(tmp_path, YAML, "--data.batch_size=4")
    assert data.mean == (0.1, 0.2, 0.3)
    flip, choice, _ = data.train_transforms
    assert isinstance(flip, A.HorizontalFlip)
    assert isinstance(choice.transforms[0], A.Affine)
    assert choice.transforms[0].rotate == (-20, 20)
    assert next(iter(data.train_dataloader()))["masks"].shape == (4, 3, 16, 16)
    assert data.read("val0")["image"].shape == (3, 16, 16)


NAMED = """
data:
  class_path: tests.test_datamodule.SceneModule
  init_args: {counts: [4, 2, 2]}
"""
FLIPS = [A.HorizontalFlip, A.VerticalFlip]


@pytest.mark.parametrize(
    ("said", "first"),
    [("light", FLIPS), ("null", FLIPS), ("none", []), ("medical", [A.D4, A.Affine]), ("[]", [])],
)
def test_augmentation_can_be_named_in_yaml_and_on_the_command_line(tmp_path, said, first):
    in_yaml = NAMED.replace("2, 2]", f"2, 2], train_transforms: {said}")
    for data in (
        parsed(tmp_path, in_yaml),
        parsed(tmp_path, NAMED, f"--data.train_transforms={said}"),
    ):
        kinds = [type(transform) for transform in data.train_transforms]
        assert kinds[:2] == first
        assert len(kinds) == (6 if said == "medical" else len(first))
        assert len(list(data.projection_dataloader())) == 1


def test_augmentation_is_light_unless_something_else_is_said(tmp_path):
    for data in (SceneModule(), parsed(tmp_path, NAMED)):
        assert [type(transform) for transform in data.train_transforms] == FLIPS


def test_an_unknown_augmentation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'heavy': expected none, light, medical, or a list"):
        SceneModule(train_transforms="heavy")
    with pytest.raises(ArgumentError, match="'none', 'light', 'medical'"):
        parsed(tmp_path, NAMED, "--data.train_transforms=heavy")


class Tiny(L.LightningModule):
    """Sees every batch of every stage."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen += batch["id"]
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, _):
        self.seen += batch["id"]

    test_step = validation_step

    def predict_step(self, batch, _):
        return batch["id"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("validated", [0, 3])
def test_a_trainer_runs_every_stage(tmp_path, validated):
    model, data = Tiny(), SceneModule((4, validated, 2), batch_size=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=None if validated else 0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert sorted(model.seen) == sorted(
        [f"train{n}" for n in range(4)] + [f"val{n}" for n in range(validated)] + ["test0", "test1"]
    )
    assert trainer.predict(model, data) == [["test0", "test1"]]
