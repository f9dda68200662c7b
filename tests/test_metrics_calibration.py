from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, everyone, maps

from tax_lightning.metrics import SegmentationCalibration, segmentation_calibration
from tax_lightning.metrics.calibration import calibration_error, histogram


def binary(*foreground: float) -> torch.Tensor:
    """Probabilities of a line of pixels ``[1, 2, 1, W]``."""
    line = torch.tensor(foreground)[None, None, None]
    return torch.cat([1 - line, line], 1)


def values(result: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


# ---------------------------------------------------------------------- histogram


def test_cases_are_counted_in_whole_numbers_however_many():
    many = 2**40 + 1  # single precision would lose the 1
    counts, gaps = histogram(torch.tensor([0.75]), torch.tensor([many]), torch.tensor([many]))
    assert counts[750].item() == counts.sum().item() == many
    assert gaps[750].item() == gaps.sum().item() == many * 2**22  # a quarter each
    assert calibration_error(counts, gaps).item() == 0.25


def test_where_there_is_no_case_the_rest_is_not_read():
    confidence = torch.tensor([0.5, math.nan, math.inf, -1.0])
    counts, gaps = histogram(confidence, torch.ones(4) > 0, torch.tensor([1, 0, 0, 0]))
    assert counts.sum() == counts[500] == 1
    assert gaps.sum() == gaps[500] == 2**23


def test_confidence_of_0_and_1_have_a_bin():
    counts, gaps = histogram(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), torch.ones(2))
    assert counts[[0, 999]].tolist() == [1, 1]
    assert not gaps.any()


def test_equal_mass_by_hand():
    # Thirty cases, two a group, with gaps of -.05 and .05. The middle group has one of each.
    confidence = torch.tensor([0.05] * 15 + [0.95] * 15)
    found = calibration_error(*histogram(confidence, confidence > 0.5, torch.ones(30)))
    assert found.item() == pytest.approx(14 / 15 * 0.05)


def exact_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    order = np.argsort(confidence)
    gaps = np.split((hits - confidence)[order], 15)
    return sum(abs(group.sum()) for group in gaps) / len(confidence)


def test_agrees_with_groups_of_sorted_cases():
    numbers = np.random.default_rng(0)
    confidence = numbers.random(15 * 400) ** 0.3
    hits = numbers.random(confidence.size) < confidence**3
    exact = exact_error(confidence, hits)
    counted = histogram(*map(torch.from_numpy, (confidence, hits, np.ones_like(hits))))
    assert exact > 0.1
    assert calibration_error(*counted).item() == pytest.approx(exact, abs=1e-3)


# ---------------------------------------------------------------------- of a segmentation


def test_calibration_by_hand():
    probs = binary(0.75, 0.75, 0.25, 0.25, 0.5)
    masks = maps((1, 1, 0, 1, IGNORED), (1, 0, 0, 0, IGNORED))
    reference = torch.tensor([[[1, 1, 0, 1, IGNORED]]])
    result = segmentation_calibration(probs, probs[:, None], masks, everyone(2), reference)
    # All confidences are .75: right at three pixels of four, and at six labels of eight.
    assert values(result) == {"ece_reference": 0, "ece_annotators": 0}
    wrong = segmentation_calibration(probs, probs[:, None], 1 - masks, everyone(2), 1 - reference)
    assert values(wrong) == {"ece_reference": 0.5, "ece_annotators": 0.5}


def test_predictions_are_averaged_before_they_are_judged():
    # The average says .75 for the foreground, which two of three labels confirm.
    predictions = torch.stack([binary(1.0), binary(0.5)], 1)
    masks = maps((1,), (1,), (0,))
    result = segmentation_calibration(binary(0.5), predictions, masks, everyone(3))
    assert result["ece_reference"].isnan()
    assert result["ece_annotators"].item() == pytest.approx(0.75 - 2 / 3)


def test_absent_annotators_do_not_count():
    probs, masks = binary(0.75), maps((1,), (0,), (1,))
    present = torch.tensor([[True, False, False]])
    result = segmentation_calibration(probs, probs[:, None], masks, present)
    assert result["ece_annotators"].item() == pytest.approx(0.25)
    nobody = segmentation_calibration(probs, probs[:, None], masks, torch.zeros_like(present))
    assert nobody["ece_annotators"].isnan()


def test_certainty_is_perfect_or_as_wrong_as_can_be():
    reference = torch.randint(3, (2, 5, 5))
    masks, present = reference[:, None].repeat(1, 4, 1, 1), torch.ones(2, 4, dtype=torch.bool)
    probs = torch.nn.functional.one_hot(reference, 3).movedim(-1, 1).float()
    best = segmentation_calibration(probs, probs[:, None], masks, present, reference)
    assert values(best) == {"ece_reference": 0, "ece_annotators": 0}
    probs = probs.roll(1, dims=1)
    worst = segmentation_calibration(probs, probs[:, None], masks, present, reference)
    assert values(worst) == {"ece_reference": 1, "ece_annotators": 1}


def test_agrees_with_sorted_labels_of_all_annotators():
    probs = torch.randn(3, 4, 3, 25, 16).mul(2).softmax(2)
    mean = probs.mean(1)
    masks, present = torch.randint(3, (3, 5, 25, 16)), torch.ones(3, 5, dtype=torch.bool)
    result = segmentation_calibration(mean, probs, masks, present, masks[:, 0])
    confidence, predicted = (x.numpy() for x in mean.max(1))
    hits = predicted == masks[:, 0].numpy()
    assert result["ece_reference"].item() == pytest.approx(
        exact_error(confidence.ravel(), hits.ravel()), abs=1e-3
    )
    hits = predicted[:, None] == masks.numpy()
    # Equal confidences are in no order, so each stands for its labels' average.
    shares = np.repeat(hits.mean(1, keepdims=True), 5, axis=1)
    confidence = np.broadcast_to(confidence[:, None], hits.shape)
    assert result["ece_annotators"].item() == pytest.approx(
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


def test_parts_of_unequal_size_merge_to_exactly_the_whole():
    batch = random_batch(5)
    first, second = SegmentationCalibration(), SegmentationCalibration()
    for metric, images in ((first, slice(0, 1)), (second, slice(1, 5))):
        metric.update(**{name: value[images] for name, value in batch.items()})
    first.merge_state(second)
    whole = values(segmentation_calibration(**batch))
    assert 0 < whole["ece_annotators"] < 1
    assert values(first.compute()) == whole


def test_the_order_of_annotators_does_not_matter():
    batch = random_batch(3)
    whole = values(segmentation_calibration(**batch))
    order = torch.tensor([2, 0, 3, 1])
    batch |= {name: batch[name][:, order] for name in ("masks", "present")}
    assert values(segmentation_calibration(**batch)) == whole


def test_nan_without_a_case():
    metric, batch = SegmentationCalibration(), random_batch(2)
    reference = batch.pop("reference")
    metric.update(**batch | {"present": torch.zeros(2, 4, dtype=torch.bool)})
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(**batch)
    assert metric.compute()["ece_reference"].isnan()
    assert metric.compute()["ece_annotators"].isfinite()
    metric.update(**batch, reference=torch.full_like(reference, IGNORED))
    assert metric.compute()["ece_reference"].isnan()


@settings(max_examples=50)
@given(
    foreground=hnp.arrays(np.float32, (2, 1, 2, 3), elements=st.floats(0, 1, width=32)),
    masks=hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, IGNORED])),
    present=hnp.arrays(bool, (2, 3)),
)
def test_errors_are_shares(foreground, masks, present):
    foreground, masks, present = map(torch.from_numpy, (foreground, masks, present))
    probs = torch.cat([1 - foreground, foreground], 1)
    result = segmentation_calibration(probs, probs[:, None], masks, present, masks[:, 0])
    assert all(math.isnan(value) or 0 <= value <= 1 for value in values(result).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_may_have_low_precision(dtype):
    batch = random_batch(3)
    whole = values(segmentation_calibration(**batch))
    batch |= {name: batch[name].to(dtype) for name in ("probs", "annotator_probs")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values(segmentation_calibration(**batch))
    assert found == pytest.approx(whole, abs=0.02)


def test_wrong_shapes_are_named():
    batch = random_batch(2)
    with pytest.raises(ValueError, match=r"`reference` has shape \[2, 6\], expected \[B=2, H=6, W"):
        segmentation_calibration(**batch | {"reference": batch["reference"][:, 0]})
    with pytest.raises(
        ValueError, match=r"`annotator_probs` has shape \[2, 5, 2, 6, 6\], expected"
    ):
        segmentation_calibration(**batch | {"annotator_probs": batch["annotator_probs"][:, :, :2]})
