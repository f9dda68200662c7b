"""How annotators draw, in numbers: answers by hand, and what must hold for any masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tax_lightning.metrics import Tendencies
from tax_lightning.tendencies import (
    SUMS,
    agreement,
    figures,
    not_learnt,
    tendency_sums,
    tendency_table,
)

NAMES, CLASSES = ("Ana", "Ben", "Cem"), ("background", "cell")


def stripes(*ends, height=40, width=20):
    """A mask an annotator, whose foreground are the rows from the first to before the second."""
    masks = np.zeros((len(ends), height, width), np.uint8)
    for mask, (first, last) in zip(masks, ends, strict=True):
        mask[first:last] = 1
    return masks


def said(masks, classes=2):
    return {
        name: value.round(3).tolist()
        for name, value in figures(tendency_sums(masks, classes).sum((1, 2))).items()
    }


@pytest.mark.parametrize(
    ("ends", "outline", "spread", "area"),
    [
        ([(10, 20), (10, 20), (8, 22)], [0, 0, 2], [0, 0, 0], [1, 1, 1.4]),
        ([(10, 20), (10, 20), (13, 17)], [0, 0, -3], [0, 0, 0], [1, 1, 0.4]),
        ([(10, 20), (10, 20), (11, 21)], [0, 0, 0], [0, 0, 1], [1, 1, 1]),  # shifted
        ([(10, 20), (8, 22)], [-1, 1], [0, 0], [10 / 12, 14 / 12]),  # a tie lies half way
    ],
)
def test_distances_of_outlines_and_areas(ends, outline, spread, area):
    found = said(stripes(*ends))
    assert found["outline"] == outline
    assert found["spread"] == spread
    assert found["area"] == pytest.approx(area, abs=1e-3)
    assert found["missed"] == found["added"] == [0] * len(ends)


def test_objects_missed_and_added():
    masks = stripes((5, 10), (5, 10), (5, 10))
    masks[:2, 30:33, 2:5] = 1  # the third misses it
    masks[2, 20:23, 2:5] = masks[2, 20:23, 12:15] = 1  # and adds two
    found = said(masks)
    assert found["missed"] == [0, 0, 0.5]
    assert found["added"] == [0, 0, 1]
    assert found["outline"] == [0, 0, 0]  # what is missed or added has no distance


def test_an_object_on_which_votes_tie_is_nobodys_mistake():
    masks = stripes((5, 10), (5, 10))
    masks[0, 30:33, 2:5] = 1
    found = said(masks)
    assert found == {
        "outline": [0, 0],
        "spread": [0, 0],
        "area": [1, 1],
        "missed": [0, 0],
        "added": [0, 0],
    }


def test_classes_and_sizes_are_told_apart():
    masks = np.zeros((3, 120, 260), np.uint8)
    masks[:, 5:15, 5:15] = 1  # small
    masks[:, 5:45, 30:70] = 2  # medium
    masks[:, 5:105, 100:200] = 2  # large
    masks[2, 5:105, 200:203] = 2
    objects = tendency_sums(masks, 3)[2, ..., SUMS.index("objects")]
    assert objects.tolist() == [[1, 0, 0], [0, 1, 1]]
    outline = figures(tendency_sums(masks, 3))["outline"][2]
    assert outline[0, 0] == outline[1, 1] == 0
    assert outline[1, 2] > 0.5


def test_pixels_and_annotators_without_labels_do_not_count():
    masks = stripes((10, 20), (10, 20), (8, 22))
    absent = np.concatenate([masks, np.full_like(masks[:1], 255)])
    np.testing.assert_array_equal(tendency_sums(absent, 2)[:3], tendency_sums(masks, 2))
    assert not tendency_sums(absent, 2)[3].any()
    masks[2, 20:] = 255  # who looked at the upper part only
    assert said(masks)["outline"] == [0, 0, 2]
    assert said(masks)["area"] == [1, 1, 1.2]


@pytest.mark.parametrize(
    "masks",
    [
        stripes((0, 0), (0, 0)),
        stripes((10, 20)),
        np.concatenate([stripes((10, 20)), np.full((1, 40, 20), 255, np.uint8)]),
    ],
    ids=["empty", "one annotator", "one of two"],
)
def test_where_there_is_no_consensus_nothing_is_said(masks):
    assert all(math.isnan(value) for values in said(masks).values() for value in values)


def test_a_consensus_that_fills_the_image_has_no_outline():
    found = said(stripes((0, 40), (0, 40), (0, 30)))
    assert all(map(math.isnan, found["outline"]))
    assert found["area"] == [1, 1, 0.75]


@settings(max_examples=40)
@given(arrays(np.uint8, (4, 7, 6), elements=st.sampled_from([0, 1, 2, 255])))
def test_any_masks(masks):
    sums = tendency_sums(masks, 3)
    assert np.isfinite(sums).all()
    objects, missed = sums[..., SUMS.index("objects")], sums[..., SUMS.index("missed")]
    assert (missed <= objects).all()
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(tendency_sums(masks[order], 3), sums[order])
    np.testing.assert_allclose(tendency_sums(masks[:, ::-1, ::-1], 3), sums, atol=1e-9)
    framed = np.pad(masks, ((0, 0), (5, 5), (5, 5)), constant_values=255)
    np.testing.assert_allclose(tendency_sums(framed, 3), sums)


def test_agreement_of_masks_and_model():
    masks = tendency_sums(stripes((10, 20), (9, 21), (8, 22)), 2)
    same, alike = tendency_sums(stripes((10, 20), (9, 21), (7, 23)), 2), masks[[1, 1, 1]]
    found = agreement(masks, same)
    assert found["outline_spearman"] == 1
    assert found["outline_error"] == pytest.approx(1 / 3)
    found = agreement(masks, alike)
    assert math.isnan(found["outline_spearman"])
    assert found["outline_error"] == found["outline_error_alike"] == pytest.approx(2 / 3)


def test_a_group_is_the_sum_of_its_annotators():
    sums = tendency_sums(stripes((10, 20), (9, 21), (8, 22)), 2)
    groups = {"tool pen": ["Ana", "Cem"], "tool mouse": ["Ben"]}
    table = tendency_table({"masks": sums, "model": sums[::-1]}, NAMES, CLASSES, groups)
    assert list(table.rows) == [*NAMES, *groups]
    assert table.rows["Ana"][0] == "-1.0 / +1.0"
    assert table.rows["tool pen"][:3] == ["+0.0 / +0.0", "1.0 / 1.0", "1.00 / 1.00"]
    assert table.rows["tool mouse"] == table.rows["Ben"]


def test_a_row_for_each_size_that_there_is():
    masks = stripes((5, 25), (5, 25), height=90, width=90)
    masks[:, 30:32, 30:32] = 1
    table = tendency_table({"masks": tendency_sums(masks, 2)}, NAMES[:2], CLASSES)
    kinds = ("", ": small cell", ": medium cell")
    assert list(table.rows) == [f"{name}{kind}" for kind in kinds for name in NAMES[:2]]


def test_the_metric_adds_batches_and_measures_labelled_pixels():
    masks = torch.from_numpy(stripes((10, 20), (10, 20), (8, 22))).long()
    expected = torch.from_numpy(stripes((10, 20), (10, 20), (9, 21))).long()
    masks[2, :, :5] = 255
    present = torch.ones(2, 3, dtype=torch.bool)
    metric = Tendencies(NAMES, CLASSES)
    for _ in range(2):
        metric.update(
            annotator_prediction=expected.expand(2, -1, -1, -1),
            masks=masks.expand(2, -1, -1, -1),
            present=present,
        )
    values = metric.compute()
    assert values["outline_true/Cem"] == 2
    assert values["outline_predicted/Cem"] == 1
    assert values["outline_error"] == pytest.approx(1 / 3)
    assert metric.table({"tool pen": ["Cem"]}).rows["tool pen"][0] == "+2.0 / +1.0"


def test_who_leaves_out_objects_and_the_model_does_not_know():
    masks, model = np.zeros((2, 3, 1, 3, len(SUMS)))
    masks[..., 0, SUMS.index("objects")] = model[..., 0, SUMS.index("objects")] = 10
    masks[:, 0, 0, SUMS.index("missed")] = (4, 0, 5)
    model[:, 0, 0, SUMS.index("missed")] = (0, 0, 4)
    said = not_learnt(["Ana", "Ben", "Cy"], masks, model)
    assert said == (
        " The model has not learnt that Ana leaves out objects: 40% of those of the majority in "
        "the masks, 0% by the model."
    )
