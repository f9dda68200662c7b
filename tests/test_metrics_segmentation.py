from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, computed, everyone, maps
from torchmetrics.functional.classification import multiclass_jaccard_index

from tax_lightning.metrics import (
    AnnotatorDice,
    FusedOverlap,
    RelativeArea,
    SegmentationCalibration,
    annotator_dice,
    fused_dice,
)
from tax_lightning.metrics.segmentation import calibration_error, histogram

# ---------------------------------------------------------------------- overlap

CLASSES = ("background", "disc", "cup")


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
    score = annotator_dice(maps(predicted), maps(given), everyone(1), num_classes=3)
    assert score.shape == (1, 1)
    assert score.item() == pytest.approx(expected)


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


def test_images_with_nothing_to_find_do_not_raise_the_mean():
    metric, empty = FusedOverlap(["background", "lesion"]), torch.zeros(9, 1, 4, dtype=torch.long)
    metric.update(prediction=empty, reference=empty)
    assert metric.compute()["fused_dice/mean"] == 1  # nothing to find, nothing found
    lesion = torch.tensor([[[1, 1, 0, 0]]])
    metric.update(prediction=empty[:1], reference=lesion)
    assert metric.compute()["fused_dice/mean"] == 0  # and not 9 of 10
    metric.update(prediction=lesion, reference=lesion)
    assert metric.compute()["fused_dice/mean"] == 0.5


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
    with pytest.raises(ValueError, match=r"annotators=.*: expected a list of at least 1"):
        AnnotatorDice(names, CLASSES)


# ---------------------------------------------------------------------- relative area

NAMES = ("Ada", "Ben", "Cem")


def areas(*sizes: int) -> torch.Tensor:
    """One image with as many foreground pixels an annotator ``[1, N, 1, 8]``, of both classes."""
    line = torch.arange(8)
    return torch.stack([(line < size) * (1 + line % 2) for size in sizes])[None, :, None]


def test_relative_area_by_hand():
    metric = RelativeArea(NAMES)
    masks = torch.cat([areas(2, 4, 6), areas(0, 0, 0), areas(2, 2, 8)])
    predicted = torch.cat([areas(4, 4, 4), areas(0, 3, 6), areas(1, 5, 7)])
    present = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    masks[2, 2] = 255
    metric.update(annotator_prediction=predicted, masks=masks, present=present)
    result = {name: float(value) for name, value in metric.compute().items()}
    true = [(0.5 + 1) / 2, (1 + 1) / 2, 1.5]  # the second image has no foreground in the masks
    found = [(1 + 0 + 1 / 3) / 3, (1 + 1 + 5 / 3) / 3, (1 + 2) / 2]
    assert result == {
        **{f"relative_area_true/{name}": pytest.approx(true[n]) for n, name in enumerate(NAMES)},
        **{
            f"relative_area_predicted/{name}": pytest.approx(found[n])
            for n, name in enumerate(NAMES)
        },
        "relative_area_spearman": pytest.approx(1, abs=1e-5),
        "relative_area_error": pytest.approx(np.abs(np.subtract(true, found)).mean()),
    }


def test_reversed_tendencies_have_correlation_minus_one():
    metric = RelativeArea(NAMES)
    metric.update(annotator_prediction=areas(6, 4, 2), masks=areas(1, 4, 7), present=everyone(3))
    assert metric.compute()["relative_area_spearman"] == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [((1, 2), (1, 2)), ((1, 1, 1), (1, 2, 3)), ((1, 2, 3), (1, 1, 1))],  # too few, or all equal
)
def test_no_rank_correlation_without_ranks(predicted, true):
    batch = {"annotator_prediction": areas(*predicted), "masks": areas(*true)}
    metric = RelativeArea(NAMES[: len(true)])
    found = computed(metric, **batch, present=everyone(len(true)))
    assert math.isnan(found["relative_area_spearman"])


@settings(max_examples=50)
@given(hnp.arrays(np.int64, (1, 3, 2, 3), elements=st.integers(0, 2)))
def test_relative_areas_average_to_one(labels):
    labels = torch.from_numpy(labels)
    batch = {"annotator_prediction": labels, "masks": labels, "present": everyone(3)}
    found = computed(RelativeArea(NAMES), **batch)
    mean = sum(found[f"relative_area_true/{name}"] for name in NAMES) / 3
    assert mean == pytest.approx(1 if (labels > 0).any() else math.nan, nan_ok=True)


# ---------------------------------------------------------------------- calibration


def binary(*foreground: float) -> torch.Tensor:
    """Probabilities of a line of pixels ``[1, 2, 1, W]``."""
    line = torch.tensor(foreground)[None, None, None]
    return torch.cat([1 - line, line], 1)


def calibration(probs, annotator_probs, masks, present, reference=None) -> dict[str, float]:
    return computed(
        SegmentationCalibration(),
        probs=probs,
        annotator_probs=annotator_probs,
        masks=masks,
        present=present,
        reference=reference,
    )


def test_cases_are_counted_in_whole_numbers_however_many():
    many = 2**40 + 1  # single precision would lose the 1
    counts, gaps = bins = histogram(*map(torch.tensor, ([0.75], [many], [many])))
    assert counts[750].item() == counts.sum().item() == many
    assert gaps[750].item() == gaps.sum().item() == many * 2**22  # a quarter each
    assert calibration_error(bins).item() == 0.25


def test_where_there_is_no_case_the_rest_is_not_read():
    confidence = torch.tensor([0.5, math.nan, math.inf, -1.0])
    counts, gaps = histogram(confidence, torch.ones(4) > 0, torch.tensor([1, 0, 0, 0]))
    assert counts.sum() == counts[500] == 1
    assert gaps.sum() == gaps[500] == 2**23


def test_equal_mass_by_hand():
    # Thirty cases, two a group, with gaps of -.05 and .05. The middle group has one of each.
    confidence = torch.tensor([0.05] * 15 + [0.95] * 15)
    found = calibration_error(histogram(confidence, confidence > 0.5, torch.ones(30)))
    assert found.item() == pytest.approx(14 / 15 * 0.05)


def exact_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    order = np.argsort(confidence)
    gaps = np.split((hits - confidence)[order], 15)
    return sum(abs(group.sum()) for group in gaps) / len(confidence)


def test_calibration_by_hand():
    probs = binary(0.75, 0.75, 0.25, 0.25, 0.5)
    masks = maps((1, 1, 0, 1, IGNORED), (1, 0, 0, 0, IGNORED))
    reference = torch.tensor([[[1, 1, 0, 1, IGNORED]]])
    # All confidences are .75: right at three pixels of four, and at six labels of eight.
    found = calibration(probs, probs[:, None], masks, everyone(2), reference)
    assert found == {"ece_reference": 0, "ece_annotators": 0}
    wrong = calibration(probs, probs[:, None], 1 - masks, everyone(2), 1 - reference)
    assert wrong == {"ece_reference": 0.5, "ece_annotators": 0.5}
    # The average says .75 for the foreground, which two of three labels confirm; one is absent.
    predictions = torch.stack([binary(1.0), binary(0.5)], 1)
    present = torch.tensor([[True, True, True, False]])
    found = calibration(binary(0.5), predictions, maps((1,), (1,), (0,), (0,)), present)
    assert math.isnan(found["ece_reference"])
    assert found["ece_annotators"] == pytest.approx(0.75 - 2 / 3)


def test_agrees_with_sorted_labels_of_all_annotators():
    probs = torch.randn(3, 4, 3, 25, 16).mul(2).softmax(2)
    mean = probs.mean(1)
    masks, present = torch.randint(3, (3, 5, 25, 16)), torch.ones(3, 5, dtype=torch.bool)
    result = calibration(mean, probs, masks, present, masks[:, 0])
    confidence, predicted = (x.numpy() for x in mean.max(1))
    hits = predicted == masks[:, 0].numpy()
    assert result["ece_reference"] == pytest.approx(
        exact_error(confidence.ravel(), hits.ravel()), abs=1e-3
    )
    hits = predicted[:, None] == masks.numpy()
    # Equal confidences are in no order, so each stands for its labels' average.
    shares = np.repeat(hits.mean(1, keepdims=True), 5, axis=1)
    confidence = np.broadcast_to(confidence[:, None], hits.shape)
    assert result["ece_annotators"] == pytest.approx(
        exact_error(confidence.ravel(), shares.ravel()), abs=1e-3
    )


def random_batch(images: int) -> dict[str, torch.Tensor]:
    labels = torch.tensor([0, 1, 2, IGNORED])
    return {
        "probs": torch.randn(images, 3, 6, 6).softmax(1),
        "annotator_probs": torch.randn(images, 5, 3, 6, 6).softmax(2),
        "masks": labels[torch.randint(4, (images, 4, 6, 6))],
        "present": torch.rand(images, 4) < 0.8,
        "reference": labels[torch.randint(4, (images, 6, 6))],
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_may_have_low_precision(dtype):
    batch = random_batch(3)
    whole = calibration(**batch)
    batch |= {name: batch[name].to(dtype) for name in ("probs", "annotator_probs")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = calibration(**batch)
    assert found == pytest.approx(whole, abs=0.02)
