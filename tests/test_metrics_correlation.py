from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, everyone, maps

from tax_lightning.metrics import NormalizedCrossCorrelation, normalized_cross_correlation


def binary(*lines: tuple[float, ...]) -> torch.Tensor:
    """A line of foreground probabilities of each prediction ``[1, S, 2, 1, W]``."""
    foreground = torch.tensor(lines)[None, :, None, None]
    return torch.cat([1 - foreground, foreground], 2)


def correlate(first: list[float], second: list[float]) -> float:
    a, b = np.array(first), np.array(second)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_two_predictions_by_hand():
    probs = binary((0.5, 0.25, 0.25), (0.5, 0.75, 0.25))
    # Of the class drawn and of the other, the mean negative logarithms; the mean says .5, .5, .25.
    half, mixed = math.log(2), -(math.log(0.25) + math.log(0.75)) / 2
    low, high = -math.log(0.75), -math.log(0.25)
    uncertainty = [half, mixed, 0.75 * low + 0.25 * high]
    agreeing, other = [half, mixed, low], [half, mixed, high]
    found = normalized_cross_correlation(probs, maps((0, 1, 0), (1, 1, 1)), everyone(2))
    expected = (correlate(uncertainty, agreeing) + correlate(uncertainty, other)) / 2
    assert correlate(uncertainty, agreeing) > 0.9 > 0 > correlate(uncertainty, other)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_absent_annotators_and_unlabelled_pixels_do_not_count():
    probs = binary((0.5, 0.2, 0.1, 0.4), (0.6, 0.3, 0.1, 0.9))
    alone = normalized_cross_correlation(probs[..., :3], maps((1, 0, 0)), everyone(1))
    masks = maps((1, 0, 0, IGNORED), (0, 1, 1, 0), (IGNORED,) * 4)
    present = torch.tensor([[True, False, True]])
    found = normalized_cross_correlation(probs, masks, present)
    assert found.item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("probs", "line", "expected"),
    [
        # The same everywhere, and wrong in places: it does not say where.
        ([(0.3, 0.3, 0.3)], (0, 1, 0), 0.0),
        # Entropies that differ only by rounding are the same too.
        ([(0.1, 0.9, 0.1)], (0, 1, 1), 0.0),
        ([(1.0, 0.0, 1.0)], (0, 0, 1), 0.0),  # nothing but certainty
        # The error is the same everywhere: nothing can be said.
        ([(0.3, 0.3, 0.3)], (0, 0, 0), math.nan),
        ([(1.0, 0.0, 1.0)], (1, 0, 1), math.nan),
        ([(0.2, 0.3, 0.4)], (0, IGNORED, IGNORED), math.nan),  # a single pixel
        ([(0.2, 0.3, 0.4)], (IGNORED, IGNORED, IGNORED), math.nan),
    ],
)
def test_constant_maps(probs, line, expected):
    found = normalized_cross_correlation(binary(*probs), maps(line), everyone(1))
    assert found.item() == pytest.approx(expected, nan_ok=True)


def test_an_annotator_with_a_constant_error_is_left_out():
    probs = binary((0.5, 0.5, 0.9), (0.5, 0.5, 0.8))
    masks = maps((1, 1, 1), (1, 1, IGNORED))
    both = normalized_cross_correlation(probs, masks, everyone(2))
    assert both.item() == pytest.approx(1, abs=1e-6)  # two kinds of pixel: correlated without rest


def test_a_class_nobody_drew_and_probabilities_of_0_are_no_trouble():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]).T[None, None, :, None]
    found = normalized_cross_correlation(probs, maps((0, 0, 0)), everyone(1))
    uncertainty = [0, 0, math.log(2)]
    error = [0, -math.log(1e-8), math.log(2)]
    assert found.item() == pytest.approx(correlate(uncertainty, error), abs=1e-6)


def cross_entropy(sample: np.ndarray, target: np.ndarray) -> float:
    return -float(sum(t * math.log(max(s, 1e-8)) for s, t in zip(sample, target, strict=True)))


def brute_correlation(probs: np.ndarray, masks: np.ndarray, present: np.ndarray) -> float:
    """Of one image, as it is defined: all samples, pixels and annotators one by one."""
    found = []
    for mask, there in zip(masks, present, strict=True):
        uncertainty, error = [], []
        for pixel in np.ndindex(mask.shape):
            if there and mask[pixel] != IGNORED:
                samples = probs[(..., *pixel)].astype(float)
                target = np.eye(samples.shape[1])[mask[pixel]]
                uncertainty.append(np.mean([cross_entropy(s, samples.mean(0)) for s in samples]))
                error.append(np.mean([cross_entropy(s, target) for s in samples]))
        if uncertainty and np.ptp(error) > 0:
            found.append(correlate(uncertainty, error))
    return float(np.mean(found)) if found else math.nan


def random_batch(samples: int, annotators: int) -> list[torch.Tensor]:
    probs = torch.randn(4, samples, 3, 4, 5).mul(3).softmax(2)
    masks = torch.tensor([0, 0, 1, 2, IGNORED])[torch.randint(5, (4, annotators, 4, 5))]
    present = torch.rand(4, annotators) < 0.7
    present[0] = False
    return [probs, masks, present]


@pytest.mark.parametrize(("samples", "annotators"), [(1, 3), (4, 1), (3, 3)])
def test_equals_the_definition_pixel_by_pixel(samples, annotators):
    batch = random_batch(samples, annotators)
    images = zip(*(x.numpy() for x in batch), strict=True)
    expected = [brute_correlation(*image) for image in images]
    found = normalized_cross_correlation(*batch)
    assert found.tolist() == pytest.approx(expected, abs=1e-5, nan_ok=True)


@settings(max_examples=50)
@given(
    probs=hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
    masks=hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, IGNORED])),
    order=st.permutations(range(3)),
)
def test_lies_in_its_range_whatever_the_order(probs, masks, order):
    foreground, masks = torch.from_numpy(probs).unsqueeze(2), torch.from_numpy(masks)
    probs, present = torch.cat([1 - foreground, foreground], 2), torch.ones(2, 3) > 0
    found = normalized_cross_correlation(probs, masks, present)
    known = found[~found.isnan()]
    assert (known.abs() <= 1).all()
    exchanged = normalized_cross_correlation(probs, masks[:, order], present)
    torch.testing.assert_close(exchanged, found, rtol=0, atol=1e-5, equal_nan=True)


def test_metric_averages_the_images_that_have_a_value():
    probs, masks, present = random_batch(samples=3, annotators=2)
    metric = NormalizedCrossCorrelation()
    nobody = torch.zeros_like(present)
    metric.update(annotator_probs=probs, masks=masks, present=nobody)
    assert metric.compute()["ncc"].isnan()
    metric.update(annotator_probs=probs, masks=masks, present=present)
    found = normalized_cross_correlation(probs, masks, present)
    assert metric.compute()["ncc"] == pytest.approx(found[~found.isnan()].mean().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_may_have_low_precision(dtype):
    probs, masks, present = random_batch(samples=3, annotators=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = normalized_cross_correlation(probs.to(dtype), masks, present)
    expected = normalized_cross_correlation(probs, masks, present)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02, equal_nan=True)


def test_wrong_shapes_are_named():
    probs, masks, present = random_batch(samples=3, annotators=2)
    with pytest.raises(ValueError, match=r"`annotator_probs` has shape \[4, 3, 4, 5\], expected"):
        normalized_cross_correlation(probs[:, :, 0], masks, present)
    with pytest.raises(ValueError, match=r"`present` has dtype torch.int64, expected torch.bool"):
        normalized_cross_correlation(probs, masks, present.long())
