from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_jaccard_index

from tax_lightning.metrics import AnnotatorDice, FusedOverlap, annotator_dice, fused_dice

CLASSES = ("background", "disc", "cup")
ALL_PRESENT = torch.ones(1, 1, dtype=torch.bool)


def one_map(*labels: int) -> torch.Tensor:
    return torch.tensor(labels)[None, None, None]


@pytest.mark.parametrize(
    ("predicted", "given", "expected"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0), 1.0),  # both empty
        ((0, 1, 1, 0), (0, 0, 0, 0), 0.0),  # the truth is empty
        ((0, 0, 0, 0), (0, 1, 1, 0), 0.0),  # the prediction is empty
        ((0, 1, 1, 1), (0, 0, 1, 0), 0.5),  # cup in neither: disc alone counts
        ((0, 1, 1, 2), (0, 1, 1, 0), 0.5),  # cup predicted only: (1 + 0) / 2
        ((1, 1, 2, 2), (1, 2, 2, 2), (2 / 3 + 4 / 5) / 2),
        ((1, 1, 2, 2), (255, 255, 2, 255), 1.0),  # pixels without a label do not count
        ((1, 1, 1, 1), (255, 255, 0, 0), 0.0),
    ],
)
def test_annotator_dice_of_one_map(predicted, given, expected):
    score = annotator_dice(one_map(*predicted), one_map(*given), ALL_PRESENT, num_classes=3)
    assert score.shape == (1, 1)
    assert score.item() == pytest.approx(expected)


def test_annotator_dice_is_nan_where_nobody_labelled():
    maps = torch.tensor([[[[1, 1]], [[1, 1]], [[255, 255]]]])
    present = torch.tensor([[True, False, True]])
    scores = annotator_dice(maps.clamp(max=1), maps, present, num_classes=2)
    assert scores[0, 0] == 1
    assert scores[0, 1:].isnan().all()


def test_annotator_dice_averages_images_then_annotators():
    metric = AnnotatorDice(["Ada", "Ben", "Cem"], CLASSES)
    masks = torch.tensor(
        [[[[1, 1]], [[0, 0]], [[255, 255]]], [[[1, 1]], [[255, 255]], [[255, 255]]]]
    )
    predicted = torch.tensor([[[[1, 1]], [[1, 1]], [[1, 1]]], [[[2, 2]], [[1, 1]], [[1, 1]]]])
    present = torch.tensor([[True, True, False], [True, False, False]])
    metric.update(annotator_prediction=predicted, masks=masks, present=present)
    result = metric.compute()
    assert list(result) == ["dice/Ada", "dice/Ben", "dice/Cem", "dice/mean"]
    assert result["dice/Ada"] == pytest.approx(0.5)  # images: 1 and 0
    assert result["dice/Ben"] == 0
    assert math.isnan(result["dice/Cem"])
    assert result["dice/mean"] == pytest.approx(0.25)  # Cem has no case


def test_annotators_are_paired_by_identity():
    masks = torch.tensor([[[[1, 0]], [[0, 1]]]])
    present = torch.tensor([[True, True]])
    swapped = annotator_dice(masks.flip(1), masks, present, num_classes=2)
    assert swapped.tolist() == [[0, 0]]


def test_fused_overlap_by_hand():
    metric = FusedOverlap(CLASSES)
    reference = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 0, 0]], [[255, 255, 255, 255]]])
    prediction = torch.tensor([[[1, 2, 0, 2]], [[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    metric.update(prediction=prediction, reference=reference)
    result = {name: float(value) for name, value in metric.compute().items()}
    assert result == {
        "fused_dice/disc": pytest.approx((2 / 3 + 0) / 2),
        "fused_dice/cup": pytest.approx(0),  # the second image has none and is left out
        "fused_dice/mean": pytest.approx((1 / 3 + 0) / 2),  # the third image is unknown
        "fused_iou/disc": pytest.approx(1 / 3),
        "fused_iou/cup": pytest.approx(0),
        "fused_iou/mean": pytest.approx(1 / 6),
    }


def test_fused_overlap_of_empty_images():
    metric = FusedOverlap(CLASSES)
    empty = torch.zeros(2, 3, 3, dtype=torch.long)
    metric.update(prediction=empty, reference=empty)
    result = metric.compute()
    assert result["fused_dice/mean"] == 1
    del result["fused_dice/mean"]
    assert all(value.isnan() for value in result.values())


def test_fused_overlap_is_nan_without_reference():
    metric = FusedOverlap(CLASSES)
    metric.update(prediction=torch.zeros(1, 2, 2, dtype=torch.long))
    assert all(value.isnan() for value in metric.compute().values())


def test_fused_iou_equals_jaccard_index():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(3, (4, 8, 8), generator=generator)
    reference = torch.randint(3, (4, 8, 8), generator=generator)
    reference[:, :2] = 255
    metric = FusedOverlap(CLASSES)
    for image in range(4):
        metric.update(prediction=prediction[[image]], reference=reference[[image]])
    expected = multiclass_jaccard_index(
        prediction, reference, num_classes=3, average=None, ignore_index=255
    )
    result = metric.compute()
    assert result["fused_iou/disc"] == pytest.approx(expected[1].item())
    assert result["fused_iou/cup"] == pytest.approx(expected[2].item())


label_maps = hnp.arrays(np.int64, (2, 2, 3, 4), elements=st.sampled_from([0, 1, 2, 255]))


@settings(max_examples=50)
@given(first=label_maps, second=label_maps)
def test_dice_is_a_share_and_symmetric(first, second):
    # Ignored on both sides alike, so that the two may change places.
    ignored = (first == 255) | (second == 255)
    first, second = (torch.from_numpy(np.where(ignored, 255, x)) for x in (first, second))
    present = torch.ones(2, 2, dtype=torch.bool)
    scores = annotator_dice(first, second, present, num_classes=3)
    known = scores[~scores.isnan()]
    assert ((known >= 0) & (known <= 1)).all()
    torch.testing.assert_close(
        scores, annotator_dice(second, first, present, num_classes=3), equal_nan=True
    )
    same = annotator_dice(first, first, present, num_classes=3)
    assert (same[~same.isnan()] == 1).all()


def test_wrong_shapes_are_named():
    metric = AnnotatorDice(["Ada", "Ben"], CLASSES)
    masks = torch.zeros(1, 3, 2, 2, dtype=torch.long)
    present = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`masks` has shape \[1, 3, 2, 2\], expected \[B=1, N=2"):
        metric.update(annotator_prediction=masks, masks=masks, present=present)
    with pytest.raises(ValueError, match=r"`present` has shape \[1, 2\], expected \[B=1, N=3\]"):
        annotator_dice(masks, masks, present[:, :2], num_classes=3)
    with pytest.raises(ValueError, match=r"`present` has dtype torch.int64, expected torch.bool"):
        annotator_dice(masks, masks, present.long(), num_classes=3)
    with pytest.raises(ValueError, match=r"`reference` has shape \[1, 2\], expected \[B=1, H=2, W"):
        fused_dice(masks[:, 0], masks[:, 0, 0], num_classes=3)


@pytest.mark.parametrize("names", [[], ["Ada", "Ada"], ["Ada", "mean"]])
def test_names_that_cannot_be_keys(names):
    with pytest.raises(ValueError, match=r"`annotators` is .*, expected at least 1 different name"):
        AnnotatorDice(names, CLASSES)


def test_background_alone_is_too_few_classes():
    with pytest.raises(ValueError, match=r"`classes` is \['background'\], expected at least 2"):
        FusedOverlap(["background"])
