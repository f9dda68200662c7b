"""Simulated annotators round real masks: what is known of them is exact, and always the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from tax_lightning.cli import TAXCLI
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.folder import FolderDataModule
from tax_lightning.data.samples import RawSample
from tax_lightning.simulation.annotators import Habit, SimulatedAnnotator, When
from tax_lightning.simulation.rules import (
    Miss,
    Noise,
    OverSegment,
    PermuteClasses,
    SwapClass,
    Wobble,
)
from tax_lightning.simulation.simulated import (
    PRESETS,
    BetaAvailability,
    SimulatedAnnotatorsDataModule,
    SimulatedLabels,
)
from tax_lightning.simulation.synthetic import SyntheticDataModule

CLASSES = ("background", "cell", "fibre", "debris")
ALL = tuple(PRESETS.values())
PLANES = ("image", "masks", "present", "reference", "expert", "deviation")
SHAKY = SimulatedAnnotator(
    "shaky",
    (
        Habit(Noise(0.3, within=2), When(labels=("cell",))),
        Habit(Wobble(1.5), When(kinds=("fibre",))),
    ),
)


class Masks:
    """A source of one sample a mask, by a single annotator; the mask is the reference too."""

    def __init__(self, *masks, reference=True):
        self.ids = tuple(f"mask{number}" for number in range(len(masks)))
        self.masks, self.reference = masks, reference

    def __getitem__(self, index):
        mask = np.asarray(self.masks[index], np.uint8)
        image = (60 * mask.clip(0, 4))[..., None].repeat(3, 2)
        here = np.array([bool((mask != IGNORE_INDEX).any())])
        return RawSample(self.ids[index], image, mask[None], here, mask if self.reference else None)


def labels(*masks, panel=ALL, missing=0.0, band=2.0, seed=0):
    """The samples as the panel labels them."""
    panel = tuple(annotator.resolved(CLASSES, CLASSES[1:]) for annotator in panel)
    return SimulatedLabels(
        Masks(*masks), 0, CLASSES, panel, [missing] * len(panel), expert_band=band, seed=seed
    )


def same(one, other):
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in PLANES)


@pytest.fixture
def root(tmp_path) -> Path:
    """Six images with cells and fibres, a part of each left open, labelled by one person."""
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros((64, 64), np.uint8)
        for value in (1, 2, 1):
            top, left = rng.integers(4, 44, 2)
            mask[top : top + 14, left : left + 10] = value
        mask[:, :3] = 9
        for place, pixels in (("images", mask * 20), ("masks/Ann", mask)):
            path = tmp_path / place / f"image{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def folder(root, **kwargs) -> FolderDataModule:
    values = {0: "background", 1: "cell", 2: "fibre", 9: "ignore"}
    return FolderDataModule(root, ["background", "cell", "fibre"], values, **kwargs)


def simulated(root, annotators=("good", "over", "wrong", SHAKY), **kwargs):
    return SimulatedAnnotatorsDataModule(folder(root), annotators, **({"source": "Ann"} | kwargs))


# The published annotators


def test_presets_on_a_hand_made_mask():
    mask = np.zeros((7, 13), np.uint8)
    mask[2:5, 2:5] = 1
    mask[2:5, 7:10] = 2
    mask[6, 12] = 3
    sample = labels(mask)[0]
    drawn = dict(zip(PRESETS, sample.masks, strict=True))
    assert (drawn["good"] == mask).all()
    assert not drawn["blank"].any()
    assert drawn["wrong"].tolist() == np.array([0, 3, 1, 2])[mask].tolist()
    assert drawn["over"][:5].tolist() == [
        [0] * 13,
        *[[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]] * 4,
    ]
    assert (
        drawn["under"].tolist()
        == np.where(
            (np.arange(91).reshape(7, 13) == 42),
            1,
            np.where(np.arange(91).reshape(7, 13) == 47, 2, 0),
        ).tolist()
    )
    assert set(sample.expert[mask > 0].tolist()) == {list(PRESETS).index("good")}


def test_two_faithful_annotators_leave_an_object_without_expert():
    mask = np.zeros((8, 20), np.uint8)
    mask[2:5, 2:5], mask[2:5, 14:17] = 1, 2
    fibre = SimulatedAnnotator("fibre", (Habit(Miss(), When(labels=("cell",))),))
    sample = labels(mask, panel=(PRESETS["good"], fibre))[0]
    assert (sample.expert[mask == 1] == 0).all()
    assert (sample.expert[mask == 2] == IGNORE_INDEX).all()


# What always holds


@st.composite
def truths(draw):
    """Patches of three classes and of pixels left open, which may touch."""
    mask = np.zeros((24, 30), dtype=np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, 22)), draw(st.integers(0, 28))
        height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        value = draw(st.sampled_from([0, 1, 2, 3, IGNORE_INDEX]))
        mask[top : top + height, left : left + width] = value
    return mask


PANELS = st.lists(
    st.sampled_from([*PRESETS.values(), SHAKY]), min_size=1, max_size=6, unique_by=lambda a: a.name
)


@settings(max_examples=60)
@given(truths(), PANELS, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**31))
def test_the_truth_is_exact(truth, panel, missing, seed):
    sample = labels(truth, panel=panel, missing=missing, seed=seed)[0]
    unknown = truth == IGNORE_INDEX
    assert (sample.reference == truth).all()
    assert sample.present.any() == (not unknown.all())
    for number, present in enumerate(sample.present):
        mask, deviation = sample.masks[number], sample.deviation[number]
        if not present:
            assert (mask == IGNORE_INDEX).all()
            assert not deviation.any()
            continue
        assert ((mask == truth) == (deviation == 0)).all()
        assert (mask[unknown] == IGNORE_INDEX).all()
        assert not deviation[unknown].any()
        assert not deviation[sample.expert == number].any()
    assert (sample.expert[unknown] == IGNORE_INDEX).all()
    assert same(sample, labels(truth, panel=panel, missing=missing, seed=seed)[0])


def test_what_is_drawn_depends_on_seed_and_name_alone():
    one, other = np.zeros((2, 20, 20), np.uint8)
    one[5:15, 5:15], other[2:9, 2:9] = 1, 1
    both = labels(one, other, panel=(SHAKY,))
    second, first = both[1], both[0]
    assert same(labels(one, panel=(SHAKY,))[0], first)
    assert same(both[1], second)
    alike = labels(one, one, panel=(SHAKY,))
    assert (alike[0].masks != alike[1].masks).any()
    assert (labels(one, panel=(SHAKY,), seed=1)[0].masks != first.masks).any()


def test_nobody_labels_an_image_without_truth():
    sample = labels(np.full((4, 4), IGNORE_INDEX))[0]
    assert not sample.present.any()
    assert (sample.masks == IGNORE_INDEX).all()


# The data module


def test_splits_images_and_classes_are_those_of_the_data_set(root):
    plain, data = folder(root), simulated(root)
    assert data.annotators == ("good", "over", "wrong", "shaky")
    assert data.classes == ("background", "cell", "fibre")
    assert data.rules[:3] == (
        "agrees",
        "over-segments by 1 px (square)",
        "calls fibre cell, cell fibre",
    )
    for split in ("train", "val", "test"):
        assert data._samples_of(split).ids == plain._samples_of(split).ids
    for name in plain.table.ids:
        assert torch.equal(data.read(name)["image"], plain.read(name)["image"])
        assert torch.equal(data.read(name)["reference"], plain.read(name)["masks"][0])


def test_batches_of_every_stage(root):
    data = simulated(root, batch_size=2, predict_split="val")
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch["masks"].shape == batch["deviation"].shape == (2, 4, 64, 64)
    assert batch["annotators"] == data.annotators
    (predicted,) = data.predict_dataloader()
    assert predicted["id"] == list(data.data.table.select("val").ids)


def test_workers_change_nothing(root):
    options = {"availability": 0.5, "batch_size": 2, "predict_split": "train"}
    alone = simulated(root, **options).predict_dataloader()
    helped = simulated(root, **options, num_workers=2).predict_dataloader()
    for one, other in zip(alone, helped, strict=True):
        assert one["id"] == other["id"]
        assert all(torch.equal(one[name], other[name]) for name in PLANES)


def test_new_images_can_be_predicted_on(root, tmp_path):
    shutil.copytree(root / "images", tmp_path / "new")
    (tmp_path / "new/image0.png").rename(tmp_path / "new/another.png")
    inner = folder(root, predict_images=tmp_path / "new")
    data = SimulatedAnnotatorsDataModule(inner, ["good", "over"], source="Ann", batch_size=6)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["id"][0] == "another"
    assert not batch["present"].any()
    assert (batch["masks"] == IGNORE_INDEX).all()
    assert not data.read("another")["present"].any()


def test_the_reference_can_be_the_source():
    scenes = SyntheticDataModule(size=64, train_samples=2)
    data = SimulatedAnnotatorsDataModule(scenes, ["good", "wrong"])
    sample, scene = data.read("train-0001"), scenes.read("train-0001")
    assert torch.equal(sample["reference"], scene["reference"])
    assert torch.equal(sample["masks"][0], scene["reference"])


def test_images_without_the_truth_are_left_out_aloud(root):
    shutil.copytree(root / "masks/Ann", root / "masks/Bob")
    (root / "masks/Bob/image0.png").unlink()
    data = simulated(root, source="Bob")
    with pytest.warns(
        UserWarning, match=r"1 of the \d images of the split '\w+' are left out: .*Bob"
    ):
        ids = [name for split in ("train", "val", "test") for name in data._samples_of(split).ids]
    assert sorted(ids) == [f"image{number}" for number in range(1, 6)]


def test_files_are_checked_before_the_run(root):
    data = simulated(root)
    name = data.data.table.select("val").ids[0]
    (root / "masks/Ann" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rf"Cannot read .*{name}\.png"):
        data.setup("fit")


# Who labels what


def shares(data):
    source = data._samples_of("train")
    return np.mean([source[number].present for number in range(len(source.ids))], axis=0)


def many(count=200):
    """A data module of many small masks."""

    class Many(MultiAnnotatorDataModule):
        def _source(self, split):
            return Masks(*[np.eye(3)] * count)

    return Many(["Ann"], CLASSES)


def test_availability_for_all_for_each_and_by_chance():
    whole = SimulatedAnnotatorsDataModule(many(), ["good", "blank"])
    assert shares(whole).tolist() == [1, 1]
    each = {"good": 0.9, "blank": 0.2}
    named = shares(SimulatedAnnotatorsDataModule(many(), ["blank", "good"], availability=each))
    assert 0.1 < named[0] < 0.35
    assert 0.8 < named[1] < 1
    half = SimulatedAnnotatorsDataModule(many(), ["good", "blank", "over"], availability=0.6)
    assert ((shares(half) > 0.5) & (shares(half) < 0.8)).all()
    drawn = [
        SimulatedAnnotatorsDataModule(
            many(), list(names), availability=BetaAvailability(1, 3), seed=seed
        ).availability
        for names, seed in ((("good", "over"), 0), (("over", "good"), 0), (("good", "over"), 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0]["good"] != drawn[0]["over"]


def test_the_beta_draw_has_its_mean():
    names = [SimulatedAnnotator(f"annotator {number}") for number in range(400)]
    data = SimulatedAnnotatorsDataModule(many(1), names, availability=BetaAvailability(1, 3))
    assert np.mean(list(data.availability.values())) == pytest.approx(0.25, abs=0.03)


def test_never_nobody_and_never_one_who_labels_nothing():
    each = {"good": 0.0, "blank": 0.01}
    data = SimulatedAnnotatorsDataModule(many(50), ["good", "blank"], availability=each)
    assert shares(data).tolist() == [0, 1]


# What is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "Eve"}, "source='Eve' is no annotator of the data. Expected one of Ann, ref"),
        ({"source": "reference"}, "the data have no reference. Set source to .*: one of Ann"),
        ({"annotators": ["clumsy"]}, "'clumsy' is no preset. Expected one of good, over, under"),
        ({"annotators": ["good", "good"]}, "the name 'good' stands twice"),
        ({"annotators": ["good"], "seed": -1}, "seed=-1: expected 0 or more"),
        ({"availability": 1.5}, r"availability=1\.5 of good: expected a share"),
        ({"availability": {"good": 1.0}}, "availability names good; expected each of the annot"),
        (
            {"annotators": [SimulatedAnnotator("A", (Habit(Miss(), When(("blob",))),))]},
            "Annotator 'A': a habit is for the kind 'blob', but objects are of the kinds cell, fib",
        ),
        (
            {"annotators": [SimulatedAnnotator("A", (Habit(SwapClass("blob")),))]},
            "Annotator 'A': .* names the class 'blob', expected one of background, cell, fibre, or",
        ),
    ],
)
def test_bad_arguments(root, options, message):
    with pytest.raises(ValueError, match=message):
        simulated(root, **options)


def test_classes_can_be_confused_only_where_there_are_several(root):
    data = FolderDataModule(root, ["background", "cell"])
    with pytest.raises(
        ValueError, match=r"'wrong': PermuteClasses: .* expected at least two to con"
    ):
        SimulatedAnnotatorsDataModule(data, ["good", "wrong"], source="Ann")


def test_a_source_without_reference_says_so():
    class Bare(MultiAnnotatorDataModule):
        def _source(self, split):
            return Masks(np.eye(3), reference=False)

    data = SimulatedAnnotatorsDataModule(Bare(["Ann"], CLASSES), ["good"])
    with pytest.raises(ValueError, match=r"'mask0' has no reference\. Set source to the name"):
        data.read("mask0")


def test_beta_parameters():
    with pytest.raises(ValueError, match="a=0 and b=3, expected numbers above 0"):
        BetaAvailability(0, 3)


# From the command line

HOME = "tax_lightning.simulation"


def config(root):
    return {
        "class_path": f"{HOME}.simulated.SimulatedAnnotatorsDataModule",
        "init_args": {
            "data": {
                "class_path": "tax_lightning.data.folder.FolderDataModule",
                "init_args": {
                    "root": str(root),
                    "classes": ["background", "cell", "fibre"],
                    "mask_values": {0: "background", 1: "cell", 2: "fibre", 9: "ignore"},
                },
            },
            "annotators": [
                "good",
                {
                    "name": "Bo",
                    "habits": [
                        {
                            "rule": {
                                "class_path": f"{HOME}.rules.Chain",
                                "init_args": {
                                    "rules": [
                                        {
                                            "class_path": f"{HOME}.rules.OverSegment",
                                            "init_args": {"pixels": 2, "brush": "square"},
                                        },
                                        {
                                            "class_path": f"{HOME}.rules.SwapClass",
                                            "init_args": {"to": "fibre"},
                                        },
                                    ]
                                },
                            },
                            "when": {"labels": ["cell"], "min_area": 20},
                        },
                        {"rule": {"class_path": f"{HOME}.rules.PermuteClasses"}},
                        {"rule": None, "when": {"side": "left"}},
                    ],
                },
            ],
            "source": "Ann",
            "availability": {"a": 1, "b": 3},
            "batch_size": 2,
        },
    }


def parsed(tree):
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": tree})).data


def test_yaml_builds_the_same_as_python(root):
    data = parsed(yaml.safe_load(yaml.safe_dump(config(root))))
    assert data.rules[1:] == (
        "over-segments by 2 px (square), then calls it fibre",
        "calls fibre cell, cell fibre",
    )
    assert data.panel[1].habits[0].rule.rules[0] == OverSegment(2, "square")
    assert data.panel[1].habits[0].when == When(labels=(1,), min_area=20)
    assert data.panel[1].habits[1].rule == PermuteClasses((2, 1), ("fibre", "cell"))
    assert data.panel[1].habits[2] == Habit(None, When(side="left"))
    assert data.panel[0] == PRESETS["good"]
    drawn = simulated(root, availability=BetaAvailability(1, 3)).availability
    assert data.availability["good"] == drawn["good"]


@pytest.mark.parametrize("availability", [0.7, {"good": 0.5, "Bo": 1.0}])
def test_availability_in_yaml(root, availability):
    tree = config(root)
    tree["init_args"]["availability"] = availability
    data = parsed(tree)
    expected = availability if isinstance(availability, dict) else {"good": 0.7, "Bo": 0.7}
    assert data.availability == expected


def test_a_panel_in_yaml_for_synthetic_scenes(root):
    panel = [{"name": "Zoe", "habits": [{"rule": {"class_path": f"{HOME}.rules.Miss"},
                                         "when": {"kinds": ["fibre"]}}]}]  # fmt: skip
    data = parsed(
        {
            "class_path": f"{HOME}.synthetic.SyntheticDataModule",
            "init_args": {"panel": panel, "size": 64},
        }
    )
    assert data.annotators == ("Zoe",)
    assert data.rules == ("agrees", "misses")


def test_the_experiment_runs(root, tmp_path, monkeypatch, capsys):
    experiment = Path(__file__).parents[1] / "experiments/simulated.yaml"
    tree = yaml.safe_load(experiment.read_text())
    tree["data"] = config(root)
    tree["data"]["init_args"]["availability"] = 1.0
    tree["model"]["init_args"]["encoder"] = "tu-test_resnet"
    tree["model"]["init_args"]["backbone_options"] = {
        "encoder_depth": 3,
        "decoder_channels": [8, 8, 8],
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    run = ["fit", "--config", str(file), "--trainer.fast_dev_run=1", "--trainer.logger=false"]
    TAXCLI.run(run)
    assert "who_accuracy_expert" in capsys.readouterr().out


def test_the_experiment_prints_its_configuration(capsys):
    experiment = Path(__file__).parents[1] / "experiments/simulated.yaml"
    with pytest.raises(SystemExit):
        TAXCLI.run(["fit", "--config", str(experiment), "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    names = [annotator["name"] for annotator in data["init_args"]["annotators"]]
    assert names == ["Ada", "Bo", "Cy"]


# Real data


def test_bubil_mini(data_root):
    inner = FolderDataModule(
        data_root / "bubil_mini", ["background", "cell"], {0: "background", 255: "cell"}
    )
    panel = ["good", "over", "under", "blank"]
    data = SimulatedAnnotatorsDataModule(inner, panel, source="Person1_ImageJ", batch_size=4)
    place = inner.annotators.index("Person1_ImageJ")
    for name in inner.table.select("val").ids:
        sample, truth = data.read(name), inner.read(name)["masks"][place]
        assert torch.equal(sample["reference"], truth)
        good, over, under, blank = (mask.sum() for mask in sample["masks"])
        assert blank == 0 < under < good == truth.sum() < over
        assert (sample["expert"][truth == 1] == 0).all()
        agrees = sample["masks"] == truth
        assert torch.equal(agrees, sample["deviation"] == 0)
