from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, judged, pair_score

from tax_lightning.metrics import GeneralizedEnergyDistance, generalized_energy_distance


def brute_mean(first: list[np.ndarray], second: list[np.ndarray], num_classes: int) -> float:
    return float(np.mean([1 - pair_score(a, b, num_classes, "iou") for a in first for b in second]))


def brute_ged(predicted: np.ndarray, masks: np.ndarray, present: np.ndarray, classes: int) -> float:
    p, a = list(predicted), [masks[n] for n in judged(masks, present)]
    if not a:
        return float("nan")
    return 2 * brute_mean(p, a, classes) - brute_mean(p, p, classes) - brute_mean(a, a, classes)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("samples", [1, 3, 5])
def test_equals_double_loop(num_classes, samples):
    rng = np.random.default_rng(num_classes * 10 + samples)
    predicted = rng.integers(num_classes, size=(6, samples, 5, 7))
    masks = rng.choice([*range(num_classes), IGNORED], size=(6, 3, 5, 7))
    predicted[0], masks[1] = 0, 0  # some sets hold empty maps only, some hold one
    masks[2, 0] = 0
    present = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    found = generalized_energy_distance(
        *map(torch.from_numpy, (predicted, masks, present)), num_classes=num_classes
    )
    expected = [
        brute_ged(*image, num_classes) for image in zip(predicted, masks, present, strict=True)
    ]
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-6)


@settings(max_examples=100)
@given(st.data())
def test_equals_double_loop_on_any_sets(data):
    samples, annotators, num_classes = (data.draw(st.integers(1, 4)) for _ in range(3))
    num_classes += 1
    label = st.integers(0, num_classes - 1)
    predicted = data.draw(hnp.arrays(np.int64, (samples, 2, 3), elements=label))
    known = st.one_of(label, st.just(IGNORED))
    masks = data.draw(hnp.arrays(np.int64, (annotators, 2, 3), elements=known))
    present = data.draw(hnp.arrays(bool, annotators))
    image = predicted, masks, present
    found = generalized_energy_distance(*(torch.from_numpy(x)[None] for x in image), num_classes)
    expected = brute_ged(*image, num_classes)
    assert found.item() == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_is_0_for_the_same_maps_in_any_order_and_number(num_classes):
    masks = torch.randint(num_classes, (4, 3, 5, 5))
    masks[0, 1] = 0
    copies = masks[:, [2, 0, 1, 1, 2, 0]]
    present = torch.ones(4, 3, dtype=torch.bool)
    found = generalized_energy_distance(copies, masks, present, num_classes)
    torch.testing.assert_close(found, torch.zeros(4), rtol=0, atol=1e-6)


def test_an_empty_map_is_at_distance_0_from_an_empty_map():
    # A = {empty, one pixel}, P = {empty}: 2 * (0 + 1) / 2 - 0 - 2 / 4. With an epsilon in the
    # denominator instead of the rule, two empty maps would be at distance 1.
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    masks[0, 1, 0, 0] = 1
    found = generalized_energy_distance(
        masks[:, :1], masks, torch.ones(1, 2, dtype=torch.bool), num_classes=2
    )
    assert found.item() == pytest.approx(0.5)


def test_disjoint_sets_are_as_far_apart_as_can_be():
    predicted = torch.tensor([[[[1, 0]], [[1, 0]]]])
    present = torch.ones(1, 2, dtype=torch.bool)
    found = generalized_energy_distance(predicted, predicted.flip(-1), present, num_classes=2)
    assert found.item() == pytest.approx(2)


def test_absent_annotators_do_not_count():
    predicted = torch.tensor([[[[1, 0, 0]], [[1, 1, 0]]]])
    masks = torch.tensor([[[[1, 0, 0]], [[0, 0, 1]], [[1, 1, 0]]]])
    present = torch.tensor([[True, False, True]])
    found = generalized_energy_distance(predicted, masks, present, num_classes=2)
    assert found.item() == pytest.approx(0)


def test_metric_averages_labelled_images():
    metric = GeneralizedEnergyDistance(num_classes=2)
    masks = torch.tensor([[[[1, 0]]], [[[1, 0]]], [[[255, 255]]]])
    predicted = torch.tensor([[[[1, 0]]], [[[0, 1]]], [[[1, 1]]]])
    present = torch.tensor([[True], [True], [False]])
    absent = torch.zeros_like(present)
    metric.update(annotator_prediction=predicted, masks=masks, present=absent)
    assert metric.compute().isnan()
    metric.update(annotator_prediction=predicted, masks=masks, present=present)
    assert metric.compute() == pytest.approx(1)  # (0 + 2) / 2


def test_mixed_precision_does_not_round_counts():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(2, (1, 3, 40, 40), generator=generator)
    predicted = torch.randint(2, (1, 3, 40, 40), generator=generator)
    present = torch.ones(1, 3, dtype=torch.bool)
    plain = generalized_energy_distance(predicted, masks, present, num_classes=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = generalized_energy_distance(predicted, masks, present, num_classes=2)
    assert torch.equal(plain, mixed)


binary_sets = hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.integers(0, 1))


@settings(max_examples=50)
@given(first=binary_sets, second=binary_sets)
def test_is_a_distance_of_sets(first, second):
    first, second = torch.from_numpy(first), torch.from_numpy(second)
    present = torch.ones(2, 3, dtype=torch.bool)
    there = generalized_energy_distance(first, second, present, num_classes=2)
    back = generalized_energy_distance(second, first, present, num_classes=2)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-6)
    assert ((there >= -1e-6) & (there <= 2 + 1e-6)).all()
    same = generalized_energy_distance(first, first.flip(1), present, num_classes=2)
    torch.testing.assert_close(same, torch.zeros(2), rtol=0, atol=1e-6)


def test_wrong_arguments_are_named():
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.long)
    present = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"`masks` has shape \[2, 3, 4, 4\], expected \[B=2, N=3, H=2"
    ):
        generalized_energy_distance(masks[:, :, :2], masks, present, num_classes=2)
    with pytest.raises(ValueError, match=r"`annotator_prediction` has shape \[2, 4, 4\], expected"):
        generalized_energy_distance(masks[:, 0], masks, present, num_classes=2)
    with pytest.raises(ValueError, match="`num_classes` is 1, expected at least 2"):
        GeneralizedEnergyDistance(num_classes=1)
