"""Passes over images: sources are found, prototypes started, and w is calibrated."""

from types import SimpleNamespace

import pytest
import torch
from squares import QUIET, make_module, make_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.losses import TAXLoss
from tax_lightning.models.network import Encoded
from tax_lightning.models.output import TAXWeights
from tax_lightning.models.prototypes import PrototypeMemory
from tax_lightning.modules.projection import (
    _single_right,
    find_sources,
    fit_who_scale,
    projection_loader,
    starting_pixels,
    validation_loader,
)
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


class Network(nn.Module):
    """Stands in for a network: the images are the embedding, and w may be given."""

    def __init__(self, memory: PrototypeMemory, log_who: torch.Tensor | None = None) -> None:
        super().__init__()
        self.memory, self.log_who = memory, log_who

    def encode(self, images):
        return Encoded(images, images)

    def gate(self, embedding):
        return TAXWeights(self.log_who, self.memory(embedding).log_softmax(dim=2), embedding)


class Stub:
    """Stands in for a module with such a network."""

    device = torch.device("cpu")
    reference_from_output = False
    _trainer = None

    def __init__(self, network: Network, window: int) -> None:
        self.network, self.loss = network, TAXLoss(len(network.memory.active), window=window)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch | {"present": torch.ones(batch["masks"].shape[:2], dtype=torch.bool)}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def reference_labels(self, batch, output):
        return batch["reference"]


# ---------------------------------------------------------------------- sources


def test_sources_by_hand():
    memory = PrototypeMemory(1, kernels=2, channels=2)
    memory.vectors.data = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]])
    far = [-1.0, 0.0]
    # The most similar pixels do not qualify: at the first the annotator is wrong, at the second
    # next to it they are not believed, and the fifth they did not label. The third is very similar
    # to the second prototype too, but nearer to the first.
    pixels = [[1.0, 0.0], [1.0, 0.0], [0.96, 0.28], [0.0, 1.0], [1.0, 0.0], far, far]
    batch = {
        "image": torch.tensor(pixels).T.view(1, 2, 1, 7),
        "masks": torch.tensor([0, 1, 1, 1, 255, 1, 1]).view(1, 1, 1, 7),
        "reference": torch.ones(1, 1, 7).long(),
        "id": ["a"],
    }
    search = find_sources(Stub(Network(memory), window=3), [batch])
    found = [[pixel.place for pixel in pixels] for pixels in search.best[0]]
    assert found == [[("a", 0, 2)], [("a", 0, 3)]]
    assert search.best[0][0][0].similarity == pytest.approx(0.96)
    assert search.best[0][1][0].similarity == pytest.approx(0.6)


# ---------------------------------------------------------------------- calibration


def scale_of(certainty: float, hits: int, misses: int, masks=None) -> float | None:
    """The scale for a who that names Ana with this certainty, and is right in so many cases."""
    pixels = hits + misses
    who = torch.tensor([certainty, 1 - certainty]).view(1, 2, 1, 1).expand(1, 2, 1, pixels)
    if masks is None:
        masks = torch.tensor([[1] * hits + [0] * misses, [0] * hits + [1] * misses])
        masks = masks.view(1, 2, 1, pixels)
    reference = torch.ones(1, 1, pixels).long()
    batch = {"image": torch.zeros(1, 2, 1, pixels), "masks": masks, "reference": reference}
    return fit_who_scale(Stub(Network(PrototypeMemory(2, 1, 2), who.log()), window=1), [batch])


@pytest.mark.parametrize(
    ("certainty", "hits", "low", "high"),
    [
        (0.6, 90, 0.888, 0.912),  # as certain as it is right, up to a step between two scales
        (0.99, 90, 0.888, 0.912),
        (0.9, 100, 0.995, 0.998),  # always right, it is not taken for certain
    ],
)
def test_the_scale_makes_who_as_certain_as_it_is_right(certainty, hits, low, high):
    odds = (certainty / (1 - certainty)) ** scale_of(certainty, hits, 100 - hits)
    assert low <= odds / (1 + odds) <= high


def test_a_who_that_is_as_certain_as_right_stays_and_a_few_pixels_do_not_tell():
    assert scale_of(0.9, 90, 10) == scale_of(0.9, 900, 100) == 1.0
    assert scale_of(0.6, 99, 0) is None
    assert scale_of(0.6, 100, 0) > 5


def test_pixels_that_leave_a_doubt_do_not_count():
    everyone_right = torch.ones(1, 2, 1, 400).long()
    assert scale_of(0.9, 200, 200, masks=everyone_right) is None
    alone = everyone_right.clone()
    alone[:, 1] = 255  # who is right needs someone who is not
    assert scale_of(0.9, 200, 200, masks=alone) is None
    assert scale_of(0.9, 200, 200, masks=torch.zeros(1, 2, 1, 400).long()) is None  # nobody right
    assert scale_of(0.9, 200, 200) is not None


def test_cases_by_hand():
    masks = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 255], [0, 0, 0, 0]])[None, :, None]
    agree = torch.tensor([[1.0, 0.4, 1.0, 1.0], [1.0] * 4, [1.0] * 4])[None, :, None]
    log_who = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1).expand_as(masks)
    log_who, right = _single_right(log_who, masks, masks == 1, agree)
    # At the second pixel nobody around believes the one who is right, at the third two are right.
    assert right.tolist() == [[True, False, False]] * 2
    torch.testing.assert_close(log_who.exp(), torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.0, 0.2]]))


def batches(order: list[int], size: int) -> list[dict]:
    """Eight images in this order in batches of this size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    masks = (torch.rand(8, 2, 8, 8, generator=generator) < 0.3).long()
    return [
        {
            "image": images[part],
            "masks": masks[part],
            "reference": masks[part, 0],
            "id": [f"image {i}" for i in part],
        }
        for part in (order[start : start + size] for start in range(0, 8, size))
    ]


def make_small(**options):
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 4, 3, padding=1)
    small = {"annotators": ["Ana", "Ben"], "network": backbone, "who_window": 3}
    return make_module(
        **small | {"reference": "given", "schedule": Schedule(enabled=False)} | options
    )


@torch.no_grad()
def test_a_projection_by_hand_calibrates_and_the_result_follows():
    module = make_small()
    module.project(batches([*range(8)], 4))
    scale = module.network.who_scale.item()
    assert scale != 1.0
    (batch,) = batches([*range(8)], 8)
    calibrated = module(batch["image"]).who
    module.network.who_scale.fill_(1.0)
    plain = module(batch["image"]).who
    torch.testing.assert_close((scale * plain.log()).softmax(dim=1), calibrated)
    assert torch.equal(plain.argmax(dim=1), calibrated.argmax(dim=1))


def test_who_is_calibrated_by_images_that_were_not_trained_on():
    def scale_after(**loaders) -> float:
        module = make_small()
        module.network.who_scale.fill_(3.0)  # of an earlier projection, to be forgotten
        module.project(batches([*range(8)], 4), **loaders)
        return module.network.who_scale.item()

    others = batches([*range(8)], 4)
    for batch in others:  # of these, another annotator is the one who is right
        batch["reference"] = batch["masks"][:, 1]
    by_others, by_training = scale_after(validation=others), scale_after()
    assert by_others != by_training
    module = make_small()
    module.project(batches([*range(8)], 4))
    module.network.who_scale.fill_(1.0)
    assert by_others == pytest.approx(fit_who_scale(module, others))
    for batch in others:
        batch["masks"][:, 0] = batch["masks"][:, 1]  # nobody is right alone: nothing is told
    assert scale_after(validation=others) == by_training


class Listed(DataLoader):
    """A loader of batches that are there already."""

    def __init__(self, ready: list[dict]) -> None:
        super().__init__(ready, batch_size=None)


def test_a_run_calibrates_by_its_validation_images(monkeypatch):
    read = []
    monkeypatch.setattr(
        "tax_lightning.modules.projection.fit_who_scale",
        lambda module, loader: read.append([id for batch in loader for id in batch["id"]]),
    )
    # Validated only at the end, so that nothing is loaded before.
    options = {"limit_val_batches": 1, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 10}
    trainer = make_trainer(max_epochs=10, **options)
    training, validation = batches([4, 5, 6, 7, 0, 1, 2, 3], 4), batches([*range(8)], 4)
    trainer.fit(make_small(schedule=Schedule()), Listed(training), Listed(validation))
    assert read == [
        [f"image {i}" for i in (0, 1, 2, 3)],  # as many as it validates with
        [f"image {i}" for i in (4, 5, 6, 7, 0, 1, 2, 3)],  # as those tell nothing
    ]


# ---------------------------------------------------------------------- loaders


class Stream(IterableDataset):
    def __iter__(self):
        return iter(batches([*range(8)], 4))


@pytest.mark.parametrize(
    ("loaders", "limits", "count"),
    [
        (DataLoader(Stream(), batch_size=None), [float("inf")], 2),
        ([Listed(batches([*range(8)], 2))], [3], 3),
        ({"one": Listed(batches([*range(8)], 2))}, [4], 4),
        (Listed(batches([*range(8)], 2)), [0], 0),
        (None, [], 0),
    ],
)
def test_the_loaders_that_a_trainer_may_have(loaders, limits, count):
    trainer = SimpleNamespace(
        val_dataloaders=loaders, num_val_batches=limits, enable_validation=loaders is not None
    )
    assert len(list(validation_loader(trainer))) == count


def test_each_process_looks_for_sources_in_its_part_of_the_images():
    datamodule = SimpleNamespace(projection_dataloader=lambda: DataLoader(range(7), batch_size=2))
    trainer = SimpleNamespace(datamodule=datamodule, world_size=2, global_rank=1)
    assert [batch.tolist() for batch in projection_loader(trainer)] == [[1, 3], [5]]


# ---------------------------------------------------------------------- starting pixels


@torch.no_grad()
def test_starting_pixels_are_drawn_by_agreement_and_depend_on_the_images_alone(monkeypatch):
    module = make_small(who_window=1)
    monkeypatch.setattr(type(module), "trainer", SimpleNamespace(num_training_batches=8))
    first = starting_pixels(module, batches([0, 1, 2, 3, 4, 5, 6, 7], 2))
    second = starting_pixels(module, batches([5, 2, 7, 0, 1, 6, 3, 4], 4))
    (batch,) = batches([*range(8)], 8)
    pixels = module.network.eval().encode(batch["image"]).embedding.movedim(1, -1)
    for n, (mine, other) in enumerate(zip(first, second, strict=True)):
        assert len(mine) == 4096
        torch.testing.assert_close(mine, other)
        agrees = (batch["masks"][:, n] == batch["reference"]).flatten()
        assert agrees[torch.cdist(mine, pixels.flatten(0, -2)).argmin(dim=1)].all()


def test_who_and_why_alone_lead_to_the_same_sources_as_the_whole_output():
    states = []
    for from_output in (False, True):
        module = make_small()
        module.reference_from_output = from_output  # then the network says all
        module.project(batches([*range(8)], 4))
        states.append((module.network.memory, module.network.who_scale))
    (memory, scale), (other, other_scale) = states
    assert torch.equal(memory.vectors, other.vectors)
    assert memory.sources(("Ana", "Ben"), "bc") == other.sources(("Ana", "Ben"), "bc")
    assert torch.equal(scale, other_scale)
