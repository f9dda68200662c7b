"""Passes over images: sources are found and prototypes started."""

import math
from types import SimpleNamespace

import pytest
import torch
from squares import QUIET, make_module
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.losses import TAXLoss
from tax_lightning.models.network import Encoded
from tax_lightning.models.output import TAXWeights
from tax_lightning.models.prototypes import PrototypeMemory
from tax_lightning.modules.projection import (
    START_PIXELS,
    UNKNOWN_NUMBER,
    find_sources,
    projection_loader,
    starting_pixels,
    validation_loader,
)
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


class Network(nn.Module):
    """Stands in for a network: the images are the embedding."""

    def __init__(self, memory: PrototypeMemory) -> None:
        super().__init__()
        self.memory = memory

    def encode(self, images):
        return Encoded(images, images)

    def gate(self, embedding):
        return TAXWeights(None, self.memory(embedding).softmax(dim=2), embedding)


class Stub:
    """Stands in for a module with such a network."""

    device = torch.device("cpu")
    reference_from_output = types = False
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
    memory = PrototypeMemory(1, kernels=2, channels=2, classes=2)
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
    found = [[pixel.place for pixel in pixels] for pixels in (search.best[0, 0], search.best[0, 1])]
    assert found == [[("a", 0, 2)], [("a", 0, 3)]]
    assert search.best[0, 0][0].similarity == pytest.approx(0.96)
    assert search.best[0, 1][0].similarity == pytest.approx(0.6)


def test_disputed_pixels_off_the_border_are_preferred():
    """The more similar ones are undisputed, or at the border of the image."""
    memory = PrototypeMemory(2, kernels=1, channels=2, classes=2)
    memory.vectors.data[:] = torch.tensor([1.0, 0.0])
    image = torch.stack([torch.full((40, 40), 0.6), torch.full((40, 40), 0.8)])
    masks = torch.ones(1, 2, 40, 40).long()
    for y, x, similarity, disputed in (
        (20, 5, 0.99, False),
        (2, 20, 0.98, True),
        (20, 20, 0.9, True),
    ):
        image[:, y, x] = torch.tensor([similarity, math.sqrt(1 - similarity**2)])
        masks[0, 1, y, x] = 1 - disputed
    batch = {"image": image[None], "masks": masks, "reference": torch.ones(1, 40, 40).long()}
    search = find_sources(Stub(Network(memory), window=1), [batch | {"id": ["a"]}])
    assert [p.place for p in search.best[0, 0]] == [("a", 20, 20)]
    assert [p.place for p in search.best[1, 0]] == [("a", 20, 5)]  # wrong where it is disputed


# ---------------------------------------------------------------------- loaders


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


class Listed(DataLoader):
    """A loader of batches that are there already."""

    def __init__(self, ready: list[dict]) -> None:
        super().__init__(ready, batch_size=None)


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


@pytest.mark.parametrize("offered", [True, False])
def test_a_trial_of_a_few_batches_looks_at_no_more(offered):
    loader = DataLoader(range(7), batch_size=2)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(projection_dataloader=lambda: loader) if offered else None,
        train_dataloader=loader,
        world_size=1,
        fast_dev_run=2,
    )
    assert [batch.tolist() for batch in projection_loader(trainer)] == [[0, 1], [2, 3]]


# ---------------------------------------------------------------------- starting pixels


@torch.no_grad()
def test_starting_pixels_are_drawn_by_agreement_and_depend_on_the_images_alone():
    module = make_small(who_window=1)
    first = starting_pixels(module, batches([0, 1, 2, 3, 4, 5, 6, 7], 2))
    second = starting_pixels(module, batches([5, 2, 7, 0, 1, 6, 3, 4], 4))
    (batch,) = batches([*range(8)], 8)
    pixels = module.network.eval().encode(batch["image"]).embedding.movedim(1, -1)
    for n, (mine, other) in enumerate(zip(first, second, strict=True)):
        assert len(mine) == 8 * (START_PIXELS // UNKNOWN_NUMBER)  # a list has no length to go by
        torch.testing.assert_close(mine, other)
        agrees = (batch["masks"][:, n] == batch["reference"]).flatten()
        assert agrees[torch.cdist(mine, pixels.flatten(0, -2)).argmin(dim=1)].all()


def test_who_and_why_alone_lead_to_the_same_sources_as_the_whole_output():
    states = []
    for from_output in (False, True):
        module = make_small()
        module.reference_from_output = from_output  # then the network says all
        module.project(batches([*range(8)], 4))
        states.append((module.network.memory, module.network.trust))
    (memory, trust), (other, other_trust) = states
    assert torch.equal(memory.vectors, other.vectors)
    assert memory.sources(("Ana", "Ben"), "bc") == other.sources(("Ana", "Ben"), "bc")
    for name, value in trust.state_dict().items():
        torch.testing.assert_close(other_trust.state_dict()[name], value, equal_nan=True)
