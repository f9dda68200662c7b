"""Passes over the training images: calibration, and the draw of pixels."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tax_lightning.losses import TAXLoss
from tax_lightning.models.network import Seen, TAXWeights
from tax_lightning.modules.projection import fit_who_scale, starting_pixels, validation_loader
from tax_lightning.modules.schedule import Schedule
from tax_lightning.modules.tax import TAXLightningModule

CLASSES = ("background", "cell")


class Weights(nn.Module):
    """Stands in for a network: the weights of two annotators are given."""

    def __init__(self, log_who: torch.Tensor) -> None:
        super().__init__()
        self.log_who = log_who
        self.scale = nn.Parameter(torch.ones(()))

    def see(self, images):
        return Seen(images, images)

    def weigh(self, embedding):
        return TAXWeights(self.log_who, torch.empty(0), torch.empty(0))


class Stub:
    """Stands in for a module with such a network."""

    loss = TAXLoss(2, window=1)
    device = torch.device("cpu")
    refers_to_output = False
    _trainer = None

    def __init__(self, log_who: torch.Tensor) -> None:
        self.network = Weights(log_who)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def reference_labels(self, batch, output):
        return batch["reference"]


def scale_of(certainty: float, hits: int, misses: int, masks=None) -> float | None:
    """The scale for a who that names Ana with this certainty, and is right in so many cases."""
    pixels = hits + misses
    who = torch.tensor([certainty, 1 - certainty]).view(1, 2, 1, 1).expand(1, 2, 1, pixels)
    if masks is None:
        masks = torch.tensor([[1] * hits + [0] * misses, [0] * hits + [1] * misses]).view(
            1, 2, 1, pixels
        )
    reference = torch.ones(1, 1, pixels).long()
    batch = {"image": torch.zeros(1, 3, 1, pixels), "masks": masks, "reference": reference}
    batch["present"] = torch.ones(1, 2, dtype=torch.bool)
    return fit_who_scale(Stub(who.log()), [batch])


@pytest.mark.parametrize("certainty", [0.6, 0.99])
def test_the_scale_makes_who_as_certain_as_it_is_right(certainty):
    scale = scale_of(certainty, 90, 10)
    odds = (certainty / (1 - certainty)) ** scale
    assert odds / (1 + odds) == pytest.approx(0.9, abs=0.012)  # a step between two scales


def test_a_who_that_is_as_certain_as_right_stays():
    assert scale_of(0.9, 90, 10) == 1.0
    assert scale_of(0.9, 900, 100) == 1.0


def test_a_few_pixels_do_not_tell():
    assert scale_of(0.6, 99, 0) is None
    assert scale_of(0.6, 100, 0) > 5


def test_a_who_that_is_always_right_is_not_taken_for_certain():
    scale = scale_of(0.9, 100, 0)
    odds = 9**scale
    assert 0.995 <= odds / (1 + odds) < 0.998
    assert 2 < scale < 3


def test_pixels_that_leave_a_doubt_do_not_count():
    everyone_right = torch.ones(1, 2, 1, 400).long()
    assert scale_of(0.9, 200, 200, masks=everyone_right) is None
    alone = everyone_right.clone()
    alone[:, 1] = 255  # who is right needs someone who is not
    assert scale_of(0.9, 200, 200, masks=alone) is None
    nobody_right = torch.zeros(1, 2, 1, 400).long()
    assert scale_of(0.9, 200, 200, masks=nobody_right) is None
    assert scale_of(0.9, 200, 200) is not None


def make_module(**options) -> TAXLightningModule:
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 4, 3, padding=1)
    return TAXLightningModule(
        ["Ana", "Ben"],
        CLASSES,
        network=backbone,
        kernels=2,
        embedding_channels=4,
        who_window=3,
        schedule=Schedule(enabled=False),
        **options,
    )


class Listed(DataLoader):
    """A loader of batches that are there already."""

    def __init__(self, ready: list[dict]) -> None:
        super().__init__(ready, batch_size=None)


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
            "present": torch.ones(len(part), 2, dtype=torch.bool),
            "id": [f"image {i}" for i in part],
        }
        for part in (order[start : start + size] for start in range(0, 8, size))
    ]


def test_a_hand_made_projection_calibrates_and_the_result_follows():
    module = make_module(reference="given")
    module.project(batches(list(range(8)), 4))
    scale = module.network.who_scale.item()
    assert scale != 1.0
    images = batches(list(range(8)), 8)[0]["image"]
    with torch.no_grad():
        calibrated = module(images).who
        module.network.who_scale.fill_(1.0)
        plain = module(images).who
    torch.testing.assert_close((scale * plain.log()).softmax(dim=1), calibrated)
    assert torch.equal(plain.argmax(dim=1), calibrated.argmax(dim=1))


def test_who_is_calibrated_by_images_that_were_not_trained_on():
    def scale_after(**loaders) -> float:
        module = make_module(reference="given")
        module.project(batches([0, 1, 2, 3, 4, 5, 6, 7], 4), **loaders)
        return module.network.who_scale.item()

    others = batches([0, 1, 2, 3, 4, 5, 6, 7], 4)
    for batch in others:  # of these, another annotator is the one who is right
        batch["reference"] = batch["masks"][:, 1]
    by_others, by_training = scale_after(validation=others), scale_after()
    assert by_others != by_training
    module = make_module(reference="given")
    module.project(batches([0, 1, 2, 3, 4, 5, 6, 7], 4))
    module.network.who_scale.fill_(1.0)
    assert by_others == pytest.approx(fit_who_scale(module, others))
    for batch in others:
        batch["masks"][:, 0] = batch["masks"][:, 1]  # nobody is right alone: nothing is told
    assert scale_after(validation=others) == by_training


def test_a_run_calibrates_by_its_validation_images(monkeypatch):
    read = []
    monkeypatch.setattr(
        "tax_lightning.modules.projection.fit_who_scale",
        lambda module, loader: read.append([id for batch in loader for id in batch["id"]]),
    )
    module = make_module(reference="given")
    module.schedule = Schedule()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=10,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=10,  # so that nothing is loaded before
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, Listed(batches([4, 5, 6, 7, 0, 1, 2, 3], 4)), Listed(batches([*range(8)], 4))
    )
    assert read == [
        [f"image {i}" for i in (0, 1, 2, 3)],  # as many as it validates with
        [f"image {i}" for i in (4, 5, 6, 7, 0, 1, 2, 3)],  # as those tell nothing
    ]


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


def test_the_draw_of_pixels_depends_on_the_images_alone(monkeypatch):
    module = make_module(reference="given")
    module.loss = TAXLoss(2, window=3, sharpness=1.0)
    monkeypatch.setattr(
        TAXLightningModule,
        "trainer",
        property(lambda self: type("T", (), {"num_training_batches": 8})),
    )
    first = starting_pixels(module, batches([0, 1, 2, 3, 4, 5, 6, 7], 2))
    second = starting_pixels(module, batches([5, 2, 7, 0, 1, 6, 3, 4], 4))
    for mine, other in zip(first, second, strict=True):
        assert len(mine) > 0
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("bank", ["private", "shared"])
def test_who_and_why_alone_lead_to_the_same_sources_as_the_whole_output(bank):
    states = []
    for refers in (False, True):
        module = make_module(reference="given", bank=bank)
        module.refers_to_output = refers  # then the network says all, as for added annotators
        module.project(batches(list(range(8)), 4))
        states.append((module.network.memory, module.network.who_scale))
    (memory, scale), (other, other_scale) = states
    assert torch.equal(memory.vectors, other.vectors)
    assert memory.sources(("Ana", "Ben"), CLASSES) == other.sources(("Ana", "Ben"), CLASSES)
    assert torch.equal(scale, other_scale)
