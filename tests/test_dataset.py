"""The dataset against the long way round: the same samples, to the last bit."""

import random

import lightning as L
import numpy as np
import pytest
import torch

from tax_lightning.baselines import MultiHead
from tax_lightning.batch import unpacked
from tax_lightning.consensus import staple
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import MultiAnnotatorDataset, RawSample, collate_samples
from tax_lightning.data.dataset import StapleReference
from tax_lightning.data.transforms import training_transforms
from tax_lightning.simulation import SyntheticDataModule

import albumentations as A  # isort: skip - after the package, which keeps it off the network

SEED = 5
UNKNOWN = {"masks": 255, "reference": 255, "expert": 255, "deviation": 0}

TRANSFORMS = {
    "nothing": list,
    "light": lambda: training_transforms("light"),
    "medical": lambda: training_transforms("medical"),
    "out of the picture": lambda: [A.Affine(rotate=(20, 70), fill_mask=1, p=1), A.Pad(2)],
    "other size": lambda: [A.RandomCrop(9, 11), A.Transpose(p=1)],
}


def noise(channels: int, dtype: type, size=(24, 20)) -> RawSample:
    """A sample of noise in planes that nobody may write to, as decoders hand out."""
    rng = np.random.default_rng(channels)
    image = rng.random((*size, channels))
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max
    raw = RawSample(
        id="noise",
        image=(image * white).astype(dtype),
        masks=rng.integers(0, 3, (4, *size)).astype(np.uint8),
        present=np.array([True, True, False, True]),
        reference=rng.integers(0, 3, size).astype(np.uint8),
        expert=rng.choice([0, 1, IGNORE_INDEX], size).astype(np.uint8),
        deviation=rng.integers(0, 5, (4, *size)).astype(np.uint8),
    )
    for plane in (raw.image, raw.masks, raw.present, raw.reference, raw.expert, raw.deviation):
        plane.flags.writeable = False
    return raw


class One:
    ids = ("noise",)

    def __init__(self, raw: RawSample) -> None:
        self.raw = raw

    def __getitem__(self, index: int) -> RawSample:
        return self.raw


def the_long_way(raw: RawSample, transforms, mean, std) -> dict[str, np.ndarray]:
    """What a sample must hold: plane by plane, with nothing left out where it changes nothing."""
    planes = {name: getattr(raw, name) for name in UNKNOWN}
    kinds = {"reference": "mask", "expert": "mask", "deviation": "masks", "inside": "mask"}
    together = A.Compose(transforms, additional_targets=kinds, mask_interpolation=0)
    together.set_random_state(np.random.default_rng(SEED), random.Random(SEED))
    out = together(image=raw.image, inside=np.full(raw.image.shape[:2], 254, np.uint8), **planes)
    image = out["image"].astype(np.float32)
    if raw.image.dtype != np.float32:
        image = image / np.float32(np.iinfo(raw.image.dtype).max)
    image = (image - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    inside = out["inside"] == 254
    labels = {name: np.where(inside, out[name], fill) for name, fill in UNKNOWN.items()}
    return {"image": image.transpose(2, 0, 1), **labels}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_samples_are_those_of_the_long_way(name, dtype, channels):
    raw = noise(channels, dtype)
    mean, std = np.linspace(0.3, 0.6, channels), np.linspace(0.2, 0.3, channels)
    data = MultiAnnotatorDataset(One(raw), TRANSFORMS[name](), mean, std, seed=SEED)
    sample, expected = data[0], the_long_way(raw, TRANSFORMS[name](), mean, std)
    packed = dtype is np.uint8
    assert sample.keys() == {*expected, "present", "id", *(["normalisation"] if packed else [])}
    assert sample["image"].dtype == (torch.uint8 if packed else torch.float32)
    ready = unpacked(sample)
    assert ready["image"].is_contiguous()
    assert ready.keys() == {*expected, "present", "id"}
    for key, plane in expected.items():
        assert key == "image" or sample[key].dtype == torch.uint8
        assert ready[key].dtype == (torch.float32 if key == "image" else torch.int64)
        np.testing.assert_array_equal(ready[key].numpy(), plane)


def test_some_cases_above_leave_the_picture_and_others_do_not():
    raw = noise(3, np.uint8)
    for name, make in TRANSFORMS.items():
        sample = MultiAnnotatorDataset(One(raw), make(), seed=SEED)[0]
        lost = (sample["reference"] == IGNORE_INDEX).any().item()
        assert lost == (name == "out of the picture")


def test_samples_are_nobody_elses_memory():
    raw = noise(1, np.float32)
    data = MultiAnnotatorDataset(One(raw), mean=(0.0,), std=(1.0,))
    first = data[0]
    for plane in first.values():
        if isinstance(plane, torch.Tensor):
            plane.fill_(1)
    np.testing.assert_array_equal(data[0]["image"][0].numpy(), raw.image[..., 0])
    np.testing.assert_array_equal(data[0]["masks"].numpy(), raw.masks)
    assert data[0]["present"].tolist() == raw.present.tolist()


def test_bytes_and_numbers_in_one_batch_become_numbers():
    deep, plain = noise(3, np.float32), noise(3, np.uint8)
    samples = [MultiAnnotatorDataset(One(raw))[0] for raw in (deep, plain)]
    batch = unpacked(collate_samples(samples))
    for row, sample in enumerate(samples):
        for key in ("image", "masks", "reference", "expert", "deviation"):
            assert torch.equal(batch[key][row], unpacked(sample)[key])


def test_smaller_pictures_of_bytes_are_padded_with_the_mean_colour():
    raw = noise(3, np.uint8)
    dataset = MultiAnnotatorDataset(One(raw))
    small = MultiAnnotatorDataset(One(raw), [A.CenterCrop(20, 10)])[0]
    batch = unpacked(collate_samples([dataset[0], small]))
    assert batch["image"][1, :, 20:].abs().max() < 0.01
    assert batch["image"][1, :, :, 10:].abs().max() < 0.01
    assert torch.equal(batch["image"][1, :, :20, :10], unpacked(small)["image"])


def test_numbers_have_the_precision_of_the_run():
    sample = MultiAnnotatorDataset(One(noise(3, np.uint8)))[0]
    exact = unpacked(sample)["image"]
    rounded = unpacked({**sample, "normalisation": sample["normalisation"].bfloat16()})["image"]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.02)


def test_batches_are_nobody_elses_memory():
    sample = MultiAnnotatorDataset(One(noise(3, np.uint8)))[0]
    kept = sample["masks"].clone()
    collate_samples([sample])["masks"].fill_(7)
    assert torch.equal(sample["masks"], kept)


@pytest.mark.parametrize("name", ["nothing", "light"])
def test_planes_of_another_size_are_refused(name):
    raw = noise(3, np.uint8)
    wrong = RawSample("noise", raw.image, raw.masks[:, :-1], raw.present)
    with pytest.raises(ValueError, match=r"Sample noise: its masks have the shape \(4, 23, 20\)"):
        MultiAnnotatorDataset(One(wrong), TRANSFORMS[name]())[0]


# ---------------------------------------------------------------------- staple before training


class Masks:
    """Two samples of three annotators, the third absent from the second; counts how often read."""

    ids = ("a", "b")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.masks = rng.integers(0, 2, (2, 3, 8, 6)).astype(np.uint8)
        self.masks[1, 2] = 255

    def __getitem__(self, index):
        present = np.array([True, True, index == 0])
        image = np.zeros((8, 6, 3), np.uint8)
        return RawSample(self.ids[index], image, self.masks[index], present)


def test_the_estimate_of_a_sample_is_made_once_and_follows_its_transforms(monkeypatch):
    pytest.importorskip("SimpleITK")
    calls = []
    monkeypatch.setattr(
        "tax_lightning.data.dataset.staple", lambda *a: calls.append(a) or staple(*a)
    )
    source = StapleReference(Masks(), classes=2)
    flipped = MultiAnnotatorDataset(source, [A.HorizontalFlip(p=1.0)])
    for _ in range(3):
        for index in (0, 1):
            masks = torch.from_numpy(source.source.masks[index]).long()[None]
            expected = staple(masks, 2)[0].to(torch.uint8)
            assert np.array_equal(source[index].reference, expected.numpy())
            assert torch.equal(flipped[index]["reference"], expected.flip(-1))
    assert len(calls) == len(source.ids) == 2


def test_the_model_asks_its_data_module_for_staple_labels():
    pytest.importorskip("SimpleITK")
    data = SyntheticDataModule(
        size=64, train_samples=4, val_samples=2, test_samples=2, batch_size=2, num_workers=0
    )
    seen = []

    class Module(MultiHead):
        def training_step(self, batch, batch_idx):
            seen.append((batch["masks"], batch["reference"]))
            return super().training_step(batch, batch_idx)

    names = data.annotators, data.classes
    module = Module(*names, network=torch.nn.Conv2d(3, 4, 1), reference="staple")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, data)
    assert len(seen) == 2
    for masks, reference in seen:
        # Estimated before the flips and turns, which change no estimate but for ties.
        assert (reference == staple(masks, len(data.classes))).float().mean() > 0.99
