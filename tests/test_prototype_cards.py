import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import make_explanation, make_sources

from tax_lightning.callbacks.prototype_cards import callout_patches, prototype_cards
from tax_lightning.visualization.palette import annotator_palette

ANNOTATORS = ("Ana", "Ben", "Cleo")
SIDE = 60


class Data:
    """Training images in which every pixel's colour says where it is."""

    def __init__(self, *ids):
        self.ids, self.asked = ids, []

    def read(self, sample_id):
        self.asked.append(sample_id)
        if sample_id not in self.ids:
            raise KeyError(sample_id)
        rows, cols = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        return {"image": torch.stack([rows, cols, torch.full_like(rows, ord(sample_id))]).float()}

    def to_picture(self, image):
        return image.numpy().transpose(1, 2, 0).astype(np.uint8)


class Module:
    """Ana leads in the upper half of every image, Ben in the lower; kernels are columns."""

    device = torch.device("cpu")

    def __init__(self):
        self.explained = []

    def explain(self, images, ids):
        self.explained += ids
        leader = (torch.arange(SIDE) >= SIDE // 2).long()[None, :, None].expand(1, SIDE, SIDE)
        kernel = (torch.arange(SIDE) * 3 // SIDE).expand(1, SIDE, SIDE)
        return make_explanation(leader, kernel)


def trainer_of(data, module):
    precision = SimpleNamespace(forward_context=nullcontext, convert_input=lambda images: images)
    return SimpleNamespace(datamodule=data, precision_plugin=precision, lightning_module=module)


def sources_at(places):
    """Sources as the made-up ones, but for some: (annotator, kernel) -> image, row, column."""
    nowhere = make_sources(ANNOTATORS, sample_id="")
    rows = [[dataclasses.replace(source, nearest=()) for source in row] for row in nowhere]
    for (n, k), (sample_id, y, x) in places.items():
        nearest = (("b", 50, 10, 0.8), ("?", 0, 0, 0.7), ("a", 0, 59, 0.6), ("c", 0, 0, 0.5))
        rows[n][k] = dataclasses.replace(rows[n][k], sample_id=sample_id, y=y, x=x, nearest=nearest)
    return tuple(map(tuple, rows))


def cards_of(sources, data, module=None, leader=None, unanimous=None):
    leader = torch.zeros(1, 4, 4).long() if leader is None else leader
    explanation = make_explanation(leader, kernel=1, unanimous=unanimous, sources=sources)
    trainer = trainer_of(data, module or Module())
    return prototype_cards(trainer, [explanation], [torch.zeros(3, SIDE, SIDE)])


def test_each_prototype_has_a_card_with_its_crop_region_and_nearest():
    data, module = Data(*"abc"), Module()
    cards = cards_of(sources_at({(0, 1): ("a", 20, 30), (1, 2): ("b", 58, 59)}), data, module)
    assert [(c.source.annotator, c.source.kernel) for c in cards] == [
        (name, kernel) for name in ANNOTATORS for kernel in range(3)
    ]
    ana, ben = cards[1], cards[5]
    assert (ana.colour, ben.colour) == annotator_palette(2)
    assert (ana.size, ana.image.shape) == ((SIDE, SIDE), (SIDE, SIDE, 3))
    # 48 pixels around row 20, column 30, of which Ana leads with kernel 1 above row 30 and in
    # columns 20 to 39; the crop begins at row 0, column 6.
    assert ana.patch.image.shape == (48, 48, 3)
    assert ana.patch.image[ana.patch.y, ana.patch.x].tolist() == [20, 30, ord("a")]
    region = np.zeros((48, 48), dtype=bool)
    region[:30, 14:34] = True
    np.testing.assert_array_equal(ana.region, region)
    assert ben.patch.image[ben.patch.y, ben.patch.x].tolist() == [58, 59, ord("b")]
    assert ben.region[ben.patch.y, ben.patch.x]
    first, missing, third = ana.nearest
    assert first.image[first.y, first.x].tolist() == [50, 10, ord("b")]
    assert missing is None
    assert third.image[third.y, third.x].tolist() == [0, 59, ord("a")]
    # Each image is read once, those of prototypes are explained, and the fourth is not asked for.
    assert data.asked == ["?", "a", "b"]
    assert module.explained == ["a", "b"]


def test_what_is_not_projected_or_not_at_hand_is_left_out():
    cards = cards_of(sources_at({(0, 1): ("?", 20, 30)}), Data("a", "b"))
    nowhere, lost = cards[0], cards[1]
    assert (lost.patch, lost.region, lost.image, lost.size) == (None,) * 4
    assert lost.nearest[0] is not None
    assert (nowhere.patch, nowhere.nearest) == (None, ())
    assert all(card.insertion is None for card in cards)  # the module has no network to ask


def test_a_pixel_outside_its_image_is_as_good_as_lost():
    sources = sources_at({(0, 1): ("a", SIDE, 3), (0, 2): ("a", 3, SIDE), (1, 0): ("a", 3, 3)})
    cards = cards_of(sources, Data("a"))
    assert [card.patch is not None for card in cards[:4]] == [False, False, False, True]


def test_where_another_weighs_most_at_the_pixel_no_region_is_marked():
    (card,) = [c for c in cards_of(sources_at({(2, 0): ("a", 5, 5)}), Data("a")) if c.patch]
    assert not card.region.any()


def test_use_is_the_share_of_the_decided_pixels():
    leader = torch.tensor([[[0, 0, 1, 2]]])
    unanimous = torch.tensor([[[False, False, False, True]]])
    sources = sources_at({(0, 1): ("a", 5, 5)})
    use = [c.use for c in cards_of(sources, Data("a"), None, leader, unanimous)]
    assert use == pytest.approx([0, 2 / 3, 0, 0, 1 / 3, 0, 0, 0, 0])
    nobody = cards_of(sources, Data("a"), None, leader, torch.ones_like(unanimous))
    assert all(card.use is None for card in nobody)


def test_a_panel_gets_the_patches_of_the_prototypes_that_decide_in_it():
    leader = (torch.arange(SIDE) >= SIDE // 2).long()[None, :, None].expand(1, SIDE, SIDE)
    sources = sources_at({(0, 1): ("a", 20, 30), (1, 1): ("b", 40, 10), (2, 1): ("c", 1, 1)})
    explanation = make_explanation(leader, kernel=1, sources=sources)
    patches = callout_patches(trainer_of(Data(*"abc"), Module()), [explanation])
    pixels = {place: patch.image[patch.y, patch.x].tolist() for place, patch in patches.items()}
    assert pixels == {(0, 1): [20, 30, ord("a")], (1, 1): [40, 10, ord("b")]}


def test_nothing_is_read_before_a_projection():
    data = Data("a")
    assert cards_of(sources_at({}), data) == []
    assert prototype_cards(trainer_of(data, Module()), [], []) == []
    assert data.asked == []


def test_of_large_images_cards_keep_a_small_copy():
    data = Data("a")
    read = data.read
    data.read = lambda name: {"image": read(name)["image"].repeat(1, 10, 5)}
    module = Module()
    explain = module.explain
    module.explain = lambda images, ids: explain(images, ids).sampled(
        torch.arange(600) % SIDE, torch.arange(300) % SIDE
    )
    cards = cards_of(sources_at({(0, 1): ("a", 20, 30)}), data, module)
    assert cards[1].size == (600, 300)
    assert cards[1].image.shape == (256, 128, 3)
    assert cards[1].patch.image.shape == (75, 75, 3)
    assert cards[1].region.shape == (75, 75)
