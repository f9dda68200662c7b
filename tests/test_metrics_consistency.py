from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, everyone, maps, pair_score

from tax_lightning.metrics import ConsistencyError, consistency_error

ANNOTATORS = ("Ada", "Ben", "Cem")
CLASSES = ("background", "disc", "cup")


def error(predicted, masks, present, num_classes=3) -> float:
    return consistency_error(predicted, masks, present, num_classes)["consistency_error"].item()


def test_one_image_by_hand():
    # Dice of the masks: 2/3 of Ada and Ben, 0 of either with Cem; of the predictions 1, 0, 0.
    masks = maps((1, 1, 0), (1, 0, 0), (0, 0, 0))
    predicted = maps((1, 1, 0), (1, 1, 0), (0, 0, 0))
    assert error(predicted, masks, everyone(3)) == pytest.approx(1 / 3 / 3)


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (maps((1, 1), (1, 0)), 1 / 3),
        (maps((0, 0), (1, 0)), 1),  # one is empty
        (maps((0, 0), (0, 0)), 0),  # both are
        (maps((1, 2), (1, 0)), 1 / 2),  # disc agrees, cup is in one of them only
        (maps((1, 1), (1, 1)), 0),
    ],
)
def test_the_same_for_everybody_is_wrong_by_the_disagreement(masks, expected):
    same = masks[:, [0, 0]]
    assert error(same, masks, everyone(2)) == pytest.approx(expected)
    assert error(masks, masks, everyone(2)) == 0


def test_images_are_averaged_before_the_difference():
    # The predictions disagree in one image and the masks in the other, which is as consistent.
    agreed, disputed = maps((1, 1), (1, 1)), maps((1, 1), (0, 0))
    masks, predicted = torch.cat([agreed, disputed]), torch.cat([disputed, agreed])
    assert error(predicted, masks, everyone(2, images=2)) == 0


def test_both_sides_count_the_pixels_that_both_annotators_labelled():
    masks = maps((1, 1, IGNORED), (1, 0, 0))
    predicted = maps((1, 1, 0), (1, 0, 1))  # differ in the last pixel too
    assert error(predicted, masks, everyone(2)) == 0


def test_pairs_count_in_the_images_where_both_are_present():
    masks = torch.cat([maps((1, 1), (1, 0), (0, 0)), maps((1, 1), (0, 0), (1, 1))])
    predicted = masks[:, [0, 0, 0]]
    present = torch.tensor([[True, True, False], [True, False, True]])
    # Ada and Ben 1 - 2/3 in the first image, Ada and Cem 0 in the second, Ben and Cem nowhere.
    assert error(predicted, masks, present) == pytest.approx(1 / 3 / 2)


def test_nan_without_a_pair():
    masks = maps((1, IGNORED), (IGNORED, 1))  # no pixel has two labels
    assert np.isnan(error(masks.clamp(max=1), masks, everyone(2)))
    assert np.isnan(error(masks[:, :1].clamp(max=1), masks[:, :1], everyone(1)))
    present = torch.tensor([[True, False]])
    assert np.isnan(error(maps((1, 1), (1, 0)), maps((1, 1), (1, 0)), present))


def brute_error(predicted: np.ndarray, masks: np.ndarray, present: np.ndarray) -> float:
    annotators, gaps = range(masks.shape[1]), []
    for n in annotators:
        for m in annotators[n + 1 :]:
            true, guessed = [], []
            for p, y, there in zip(predicted, masks, present, strict=True):
                unknown = (y[n] == IGNORED) | (y[m] == IGNORED)
                if there[n] and there[m] and not unknown.all():
                    true.append(pair_score(y[n], y[m], 3, "dice"))
                    first, second = (np.where(unknown, IGNORED, p[i]) for i in (n, m))
                    guessed.append(pair_score(first, second, 3, "dice"))
            if true:
                gaps.append(abs(np.mean(true) - np.mean(guessed)))
    return float(np.mean(gaps)) if gaps else float("nan")


@settings(max_examples=50)
@given(
    predicted=hnp.arrays(np.int64, (3, 3, 2, 3), elements=st.integers(0, 2)),
    masks=hnp.arrays(np.int64, (3, 3, 2, 3), elements=st.sampled_from([0, 1, 2, IGNORED])),
    present=hnp.arrays(bool, (3, 3)),
    order=st.permutations(range(3)),
)
def test_equals_the_definition_pair_by_pair(predicted, masks, present, order):
    expected = brute_error(predicted, masks, present)
    assert np.isnan(expected) or 0 <= expected <= 1
    batch = [torch.from_numpy(x) for x in (predicted, masks, present)]
    assert error(*batch) == pytest.approx(expected, abs=1e-6, nan_ok=True)
    exchanged = [x[:, order] for x in batch]
    assert error(*exchanged) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_predictions_are_paired_with_annotators_by_identity():
    masks = maps((1, 1, 0), (1, 0, 0), (0, 0, 0))
    assert error(masks[:, [2, 0, 1]], masks, everyone(3)) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


def test_metric_gathers_batches_and_names_the_matrices():
    metric = ConsistencyError(ANNOTATORS, CLASSES)
    masks = torch.cat([maps((1, 1), (1, 0), (0, 0)), maps((1, 1), (0, 0), (1, 1))])
    predicted = masks[:, [0, 0, 0]]
    present = torch.tensor([[True, True, False], [True, False, True]])
    for i in range(2):
        image = slice(i, i + 1)
        metric.update(
            annotator_prediction=predicted[image], masks=masks[image], present=present[image]
        )
    assert metric.compute()["consistency_error"] == pytest.approx(1 / 6)
    matrices = metric.matrices()
    nan, both = float("nan"), 2 / 3
    expected = {
        "true": torch.tensor([[1, both, 1], [both, 1, nan], [1, nan, 1]]),
        "predicted": torch.tensor([[1, 1, 1], [1, 1, nan], [1, nan, 1]]),
    }
    torch.testing.assert_close(matrices, expected, equal_nan=True)


def test_samples_that_are_not_annotators_are_refused():
    metric = ConsistencyError(ANNOTATORS, CLASSES)
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.long)
    samples = torch.zeros(2, 16, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`annotator_prediction` has shape \[2, 16, 4, 4\], exp"):
        metric.update(annotator_prediction=samples, masks=masks, present=everyone(3, images=2))
    with pytest.raises(ValueError, match=r"`masks` has shape \[2, 2, 4, 4\], expected \[B=2, N=3"):
        metric.update(annotator_prediction=masks, masks=masks[:, :2], present=everyone(3, images=2))
    with pytest.raises(ValueError, match=r"`annotators` is .*, expected at least 1 different name"):
        ConsistencyError(["Ada", "Ada"], CLASSES)
