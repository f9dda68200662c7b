"""Named sets of augmentations: what they do to images, and that all planes follow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.batch import unpacked
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import MultiAnnotatorDataset, RawSample
from tax_lightning.data.transforms import check_transforms, compose, training_transforms

import albumentations as A  # isort: skip - after the package, which keeps it off the network

NEAREST = 0  # OpenCV's number for nearest interpolation
CLASSES = 5


class One:
    ids = ("one",)

    def __init__(self, raw: RawSample) -> None:
        self.raw = raw

    def __getitem__(self, index: int) -> RawSample:
        return self.raw


def geometric(name: str) -> list[A.BasicTransform]:
    """The part of a set that moves pixels, every time, and without mixing their values."""
    moving = [t for t in training_transforms(name) if isinstance(t, A.DualTransform)]
    for transform in moving:
        transform.p = 1
        transform.interpolation = NEAREST
    return moving


def telling(size, channels: int, dtype: type, seed: int) -> tuple[RawSample, np.ndarray]:
    """A scene whose image tells the labels of every plane, and the colour of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, [-(-length // 3) for length in size]).astype(np.uint8)
    labels = labels.repeat(3, 0).repeat(3, 1)[: size[0], : size[1]]
    colours = np.stack([10 + 40 * np.roll(np.arange(CLASSES), c) for c in range(channels)], 1)
    colours = (colours / 255).astype(dtype) if dtype is np.float32 else colours.astype(dtype)
    raw = RawSample(
        id="telling",
        image=colours[labels],
        masks=np.stack([labels, (labels + 1) % CLASSES, np.full_like(labels, IGNORE_INDEX)]),
        present=np.array([True, True, False]),
        reference=labels,
        expert=np.where(labels == 0, IGNORE_INDEX, labels % 3).astype(np.uint8),
        deviation=np.stack([labels * 0, labels, labels]),
    )
    return raw, colours


# What is in a set


def test_light_is_the_default_and_flips_only():
    for choice in ("light", None):
        across, down = training_transforms(choice)
        assert (type(across), type(down)) == (A.HorizontalFlip, A.VerticalFlip)
        assert (across.p, down.p) == (0.5, 0.5)


def test_none_is_nothing_and_a_list_is_itself():
    assert training_transforms("none") == []
    own = [A.Transpose()]
    assert training_transforms(own) == own
    assert training_transforms([]) == []


def test_each_call_makes_its_own_transforms():
    first, second = training_transforms("medical"), training_transforms("medical")
    assert not {id(transform) for transform in first} & {id(transform) for transform in second}


def test_an_unknown_name_is_refused():
    message = (
        "^train_transforms='heavy': expected none, light, medical, or a list of albumentations "
        r"transforms\.$"
    )
    with pytest.raises(ValueError, match=message):
        training_transforms("heavy")


@pytest.mark.parametrize("name", ["none", "light", "medical"])
def test_sets_leave_the_datasets_work_to_the_dataset(name):
    check_transforms(training_transforms(name))


WATCHED = """
import os, sys

class Watch:
    def find_spec(name, path=None, target=None):
        if name == "albumentations":
            print(os.environ.get("NO_ALBUMENTATIONS_UPDATE"))
            sys.exit()  # its import itself takes seconds

sys.meta_path.insert(0, Watch)
import tax_lightning.data.dataset
"""


def test_albumentations_is_told_to_keep_off_the_network_before_it_is_imported():
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


# Planes follow the image


@given(
    name=st.sampled_from(["light", "medical"]),
    size=st.tuples(st.integers(12, 50), st.integers(12, 50)),
    channels=st.sampled_from([1, 3, 4, 6]),
    dtype=st.sampled_from([np.uint8, np.float32]),
    seed=st.integers(0, 2**31 - 1),
)
def test_all_planes_move_as_the_image_does(name, size, channels, dtype, seed):
    raw, colours = telling(size, channels, dtype, seed)
    data = MultiAnnotatorDataset(
        One(raw), geometric(name), [0.0] * channels, [1.0] * channels, seed=seed
    )
    sample = data[0]
    reference = sample["reference"]
    unit = colours / np.float32(255) if dtype is np.uint8 else colours
    shown = torch.from_numpy(unit)[reference.long()].permute(2, 0, 1)
    assert torch.equal(unpacked(sample)["image"], shown)
    assert_planes_agree(sample)


def assert_planes_agree(sample) -> None:
    """All planes of `telling` say what its reference says, at every pixel."""
    reference = sample["reference"]
    assert reference.max() < CLASSES
    assert torch.equal(sample["masks"][0], reference)
    assert torch.equal(sample["masks"][1], (reference + 1) % CLASSES)
    assert (sample["masks"][2] == IGNORE_INDEX).all()
    expert = torch.where(reference == 0, IGNORE_INDEX, reference % 3)
    assert torch.equal(sample["expert"], expert)
    assert (sample["deviation"][0] == 0).all()
    assert torch.equal(sample["deviation"][1], reference)
    assert torch.equal(sample["deviation"][2], reference)


@pytest.mark.parametrize("kind", ["D4", "Affine", "ElasticTransform"])
def test_every_geometric_part_moves_something(kind):
    """Else the test above would hold for no reason."""
    (transform,) = (t for t in geometric("medical") if type(t).__name__ == kind)
    raw, _ = telling((60, 60), 1, np.uint8, 0)
    data = MultiAnnotatorDataset(One(raw), [transform], [0.0], [1.0])
    moved = [not np.array_equal(data[0]["reference"].numpy(), raw.reference) for _ in range(6)]
    assert sum(moved) >= 4


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_medical_takes_images_of_every_kind(dtype, channels):
    raw, _ = telling((33, 40), channels, dtype, 1)
    data = MultiAnnotatorDataset(
        One(raw), training_transforms("medical"), [0.0] * channels, [1.0] * channels
    )
    for _ in range(60):  # the rarest part is drawn by a tenth of them
        sample = data[0]
        image = unpacked(sample)["image"]
        assert tuple(image.shape) in {(channels, 33, 40), (channels, 40, 33)}
        assert image.dtype == torch.float32
        assert image.isfinite().all()
        assert 0 <= image.min() < image.max() <= 1
        assert_planes_agree(sample)


def test_labels_that_were_not_there_never_appear():
    rng = np.random.default_rng(0)
    values = np.array([0, 4, 7, IGNORE_INDEX], np.uint8)  # averages of these would be seen
    labels = values[rng.integers(0, 4, (40, 36))]
    raw = RawSample("odd", np.zeros((40, 36, 1), np.uint8), labels[None], np.array([True]))
    data = MultiAnnotatorDataset(One(raw), training_transforms("medical"), [0.0], [1.0])
    for _ in range(40):
        assert set(data[0]["masks"].unique().tolist()) <= set(values.tolist())


def test_elastic_moves_pixels_by_about_two_whatever_the_size():
    (elastic,) = (t for t in geometric("medical") if isinstance(t, A.ElasticTransform))
    elastic.interpolation = 1  # linear: a place between two pixels
    bent = compose([elastic], {})
    bent.set_random_seed(0)
    for size in (64, 256):
        where = np.mgrid[:size, :size].transpose(1, 2, 0).astype(np.float32) / size
        draws = [bent(image=where)["image"] - where for _ in range(8)]
        moved = np.stack(draws)[:, 10:-10, 10:-10] * size  # the border is mirrored
        assert 1.5 < np.sqrt((moved**2).mean()) < 2.5


def test_grey_levels_change_by_little():
    """The photometric part keeps the picture what it is: brightness by a fifth or so."""
    level = [t for t in training_transforms("medical") if not isinstance(t, A.DualTransform)]
    raw = RawSample(
        "grey",
        np.full((16, 16, 1), 0.5, np.float32),
        np.zeros((1, 16, 16), np.uint8),
        np.array([True]),
    )
    data = MultiAnnotatorDataset(One(raw), level, [0.0], [1.0])
    means = torch.stack([data[0]["image"].mean() for _ in range(200)])
    assert means.std() > 0.03  # it does something,
    assert (means - 0.5).abs().max() < 0.45  # and never ends in black or white
    assert 0.4 < means.median() < 0.6
