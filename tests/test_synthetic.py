"""Synthetic scenes: repeatable, true to their own promises, and hard enough."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tax_lightning.batch import unpacked
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.simulation.annotators import Habit, SimulatedAnnotator, rule_names
from tax_lightning.simulation.rules import Miss
from tax_lightning.simulation.scenes import CLASSES, MARGIN, TYPES, draw_scene
from tax_lightning.simulation.synthetic import (
    HABITS,
    OWNER_BAND,
    SPECIALISTS,
    SyntheticDataModule,
    SyntheticScenes,
)

PLANES = ("image", "masks", "present", "reference", "expert", "deviation")


@pytest.fixture(scope="module")
def scenes():
    """Enough scenes to judge averages by."""
    source = SyntheticScenes("train", 60, HABITS)
    return [source[number] for number in range(60)]


def same(one, other):
    return all((getattr(one, name) == getattr(other, name)).all() for name in PLANES)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([64, 96, 128]), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_scene_keeps_its_promises(seed, size, missing):
    sample = SyntheticScenes("val", 1, HABITS, size, seed, missing)[0]
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == sample.masks.dtype == sample.expert.dtype == np.uint8
    assert sample.reference.max() < len(CLASSES)
    assert sample.present.any()
    for number, present in enumerate(sample.present):
        mask, deviation = sample.masks[number], sample.deviation[number]
        if present:
            assert mask.max() < len(CLASSES)
            assert ((mask == sample.reference) == (deviation == 0)).all()
            assert deviation.max() < len(rule_names(HABITS))
        else:
            assert (mask == IGNORE_INDEX).all()
            assert not deviation.any()
        assert not deviation[sample.expert == number].any()
    objects = sample.reference > 0
    assert (sample.expert[objects] != IGNORE_INDEX).all()
    near = ndimage.distance_transform_edt(~objects) <= OWNER_BAND
    assert ((sample.expert != IGNORE_INDEX) == near).all()
    assert near[sample.deviation.any(axis=0)].all()


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_objects_are_several_apart_and_inside(seed):
    _, objects = draw_scene(96, np.random.default_rng(seed))
    assert 3 <= len(objects) <= 6
    assert len({thing.kind for thing in objects}) >= 3
    for one, other in itertools.combinations(objects, 2):
        assert ndimage.distance_transform_edt(~one.mask)[other.mask].min() >= 6
    for thing in objects:
        assert ndimage.label(thing.mask, np.ones((3, 3)))[1] == 1
        assert thing.mask[MARGIN:-MARGIN, MARGIN:-MARGIN].sum() == thing.area


def test_larger_scenes_hold_more():
    counts = [len(draw_scene(size, np.random.default_rng(3))[1]) for size in (64, 96, 256)]
    assert counts == sorted(set(counts))
    assert counts[-1] > 12


def test_each_type_has_one_expert_and_all_others_a_habit():
    experts = {kind.name: set() for kind in TYPES}
    for number in range(20):
        for thing in draw_scene(96, np.random.default_rng(number))[1]:
            faithful = [who.name for who in HABITS if who.rule_for(thing) is None]
            experts[thing.kind].add(tuple(faithful))
    assert experts == {
        "round cell": {("Ana",)},
        "spotted cell": {("Ben",)},
        "fibre": {("Chloe",)},
        "crystal": {("Dara",)},
        "clump": {("Emil",)},
    }


def test_each_habit_shows(scenes):
    """Whoever is not the expert visibly deviates from each object."""
    for sample in scenes:
        parts, count = ndimage.label(sample.reference > 0, np.ones((3, 3)))
        place = ndimage.distance_transform_edt(parts == 0, return_indices=True)[1]
        nearest = parts[tuple(place)]
        for part in range(1, count + 1):
            changed = (sample.deviation[:, nearest == part] > 0).sum(axis=1)
            expert = sample.expert[parts == part][0]
            assert changed[expert] == 0
            assert (np.delete(changed, expert) >= 15).all()


def test_all_rules_are_in_use_and_there_are_several_kinds(scenes):
    used = set().union(*(np.unique(sample.deviation).tolist() for sample in scenes))
    assert used == set(range(len(rule_names(HABITS))))
    assert len({type(habit.rule) for who in HABITS for habit in who.habits}) >= 5


def test_labels_alone_do_not_tell_who_is_right(scenes):
    """The label-only ceiling: mean over disputed pixels of 1 / #(annotators who are right)."""
    masks = np.stack([sample.masks for sample in scenes], axis=1)
    right = (masks == np.stack([sample.reference for sample in scenes])).sum(axis=0)
    disputed = (masks != masks[0]).any(axis=0)
    assert right.min() >= 1
    assert 0.25 < (1 / right[disputed]).mean() < 0.6
    assert 0.1 < disputed.mean() < 0.2


def test_annotators_and_their_majority_are_fair_but_not_perfect(scenes):
    masks = np.stack([sample.masks for sample in scenes], axis=1)
    reference = np.stack([sample.reference for sample in scenes])
    pairs = [dice(one, other) for one, other in itertools.combinations(masks, 2)]
    votes = np.stack([(masks == label).sum(axis=0) for label in range(len(CLASSES))])
    assert 0.7 < np.mean(pairs) < 0.9
    assert 0.8 < dice(votes.argmax(axis=0), reference) < 0.95
    for mask in masks:
        assert 0.7 < dice(mask, reference) < 0.95


def dice(one, other):
    """Mean over the classes but the background."""
    return np.mean(
        [
            2
            * ((one == label) & (other == label)).sum()
            / ((one == label).sum() + (other == label).sum())
            for label in range(1, len(CLASSES))
        ]
    )


def test_scenes_depend_on_seed_split_and_number_alone():
    source = SyntheticScenes("train", 4, HABITS, size=64, seed=7)
    backwards = SyntheticScenes("train", 9, HABITS, size=64, seed=7)
    for number in (3, 1, 0):
        assert same(source[number], backwards[number])
    assert source[-1] is source[3]
    others = [
        source[1],
        SyntheticScenes("train", 4, HABITS, size=64, seed=8)[0],
        SyntheticScenes("val", 4, HABITS, size=64, seed=7)[0],
    ]
    for other in others:
        assert (source[0].image != other.image).any()
    with pytest.raises(IndexError):
        source[4]


def test_neither_annotators_nor_absences_change_what_is_shown():
    full = SyntheticScenes("test", 1, HABITS, size=64)[0]
    sparse = SyntheticScenes("test", 1, HABITS, size=64, missing=0.6)[0]
    other = SyntheticScenes("test", 1, (SimulatedAnnotator("Zoe"),), size=64)[0]
    assert (full.image == sparse.image).all()
    assert (full.image == other.image).all()
    assert (full.masks[sparse.present] == sparse.masks[sparse.present]).all()
    assert (full.expert == sparse.expert).all()
    assert (other.masks[0] == full.reference).all()


def test_absences_come_as_often_as_asked_for():
    source = SyntheticScenes("train", 60, HABITS, size=64, missing=0.4)
    present = np.stack([source[number].present for number in range(60)])
    assert present.any(axis=1).all()
    assert 0.5 < present.mean() < 0.7
    alone = SyntheticScenes("train", 10, HABITS, size=64, missing=1.0)
    assert all(alone[number].present.sum() == 1 for number in range(10))


def test_names_are_known_at_once():
    data = SyntheticDataModule()
    assert data.annotators == ("Ana", "Ben", "Chloe", "Dara", "Emil")
    assert data.classes == ("background", "cell", "fibre", "debris")
    assert data.channels == 3
    assert data.rules[0] == "agrees"
    assert len(data.rules) > 5


def test_batches_hold_the_truth():
    data = SyntheticDataModule(
        size=64, train_samples=4, val_samples=2, test_samples=3, missing=0.5, batch_size=2
    )
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert len(list(data.val_dataloader())) == 1
    assert len(list(data.test_dataloader())) == 2
    for batch in batches:
        assert batch["image"].shape == (2, 3, 64, 64)
        assert batch["masks"].shape == batch["deviation"].shape == (2, 5, 64, 64)
        assert batch["reference"].shape == batch["expert"].shape == (2, 64, 64)
        assert batch["annotators"] == data.annotators
        labelled = batch["masks"] != IGNORE_INDEX
        agrees = batch["masks"] == batch["reference"][:, None]
        assert torch.equal(agrees[labelled], (batch["deviation"] == 0)[labelled])
        assert torch.equal(labelled.flatten(2).any(dim=2), batch["present"])


def test_number_of_workers_does_not_matter():
    options = {"size": 64, "train_samples": 4, "val_samples": 2, "test_samples": 4}
    alone = SyntheticDataModule(**options, batch_size=2)
    helped = SyntheticDataModule(**options, batch_size=2, num_workers=2)
    for one, other in zip(alone.test_dataloader(), helped.test_dataloader(), strict=True):
        assert one["id"] == other["id"]
        assert all(torch.equal(one[name], other[name]) for name in PLANES)


def test_read_finds_a_scene_of_any_split_by_its_name():
    data = SyntheticDataModule(size=64, train_samples=2, val_samples=2, test_samples=2)
    batch = next(iter(data.test_dataloader()))
    sample = data.read("test-0001")
    assert batch["id"] == ["test-0000", "test-0001"]
    assert torch.equal(sample["image"], unpacked(batch)["image"][1])
    assert data.plot(sample).size[0] > 64


def test_a_panel_of_ones_own():
    panel = (SimulatedAnnotator("Zoe", (Habit(Miss()),)), SimulatedAnnotator("Yan"))
    data = SyntheticDataModule(size=64, train_samples=1, panel=panel)
    sample = data.read("train-0000")
    assert data.annotators == ("Zoe", "Yan")
    assert data.rules == ("agrees", "misses")
    assert not sample["masks"][0].any()
    assert torch.equal(sample["masks"][1], sample["reference"])
    assert sample["expert"].unique().tolist() == [1, IGNORE_INDEX]


def test_among_specialists_nobody_but_the_expert_draws_anything_right():
    scenes = SyntheticScenes("train", 10, SPECIALISTS, size=64)
    for sample in (scenes[i] for i in range(10)):
        there = sample.reference > 0
        right = sample.masks == sample.reference
        assert (right.sum(axis=0)[there] == 1).all()
        assert (right.argmax(axis=0)[there] == sample.expert[there]).all()
        assert right[:, ~there].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"panel": "doctors"}, "panel='doctors': expected habits, specialists or a list"),
        ({"size": 100}, "size=100: expected a multiple of 32 from 64 to 16384.*set size to 96"),
        ({"size": 32}, "size=32: .*set size to 64"),
        ({"seed": -1}, "seed=-1: expected 0 or more"),
        ({"missing": 1.5}, r"missing=1\.5: expected 0 to 1"),
        ({"val_samples": -2}, "val_samples=-2: expected 0 to 1000000"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDataModule(**options)
