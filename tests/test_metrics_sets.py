from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import IGNORED, computed, dice_table, everyone, judged, maps, pair_score

from tax_lightning.metrics import (
    GeneralizedEnergyDistance,
    SetDice,
    generalized_energy_distance,
    matched_dice,
)

CLASSES = ("background", "disc", "cup")
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def probabilities(*foreground: tuple[float, ...]) -> torch.Tensor:
    """A line of pixels of each class but the background, of one prediction ``[1, 1, C, 1, W]``."""
    lines = torch.tensor(foreground)
    return torch.cat([1 - lines.sum(0, keepdim=True), lines])[None, None, :, None]


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 2).float()


# ---------------------------------------------------------------------- soft Dice


def set_dice(predicted, masks, present, probs=None, classes=CLASSES) -> dict[str, float]:
    """What the metric says of one batch; each prediction is certain unless told otherwise."""
    return computed(
        SetDice(classes),
        annotator_prediction=predicted,
        annotator_probs=one_hot(predicted, len(classes)) if probs is None else probs,
        masks=masks,
        present=present,
    )


def soft(probs, masks) -> dict[str, float]:
    """Soft Dice of each class and their mean, of a batch of any number of classes."""
    names, present = CLASSES[: probs.shape[2]], everyone(masks.shape[1], len(masks))
    found = set_dice(probs.argmax(2), masks, present, probs, names)
    return {name: value for name, value in found.items() if name.startswith("dice_soft")}


@pytest.mark.parametrize(
    ("probs", "lines", "expected"),
    [
        # Shares .5, 1, 0: at t = .5 alone the two sides differ, in one of three pixels.
        ((0.6, 1.0, 0.0), [(1, 1, 0), (0, 1, 0)], (4 + 2 / 3) / 5),
        ((0.0, 0.0, 0.0), [(1, 1, 0), (0, 1, 0)], 0.0),  # the prediction is empty
        ((0.4, 0.4, 0.0), [(0, 0, 0), (0, 0, 0)], 3 / 5),  # the masks are: t = .1 and .3 are wrong
        ((0.5, 0.0, 0.0), [(1, 0, 0), (0, 0, 0)], 1.0),  # above t = .5 both are empty
        ((0.9, 0.0, 0.0), [(1, 0, 0), (0, 0, 0)], 3 / 5),  # wrong at t = .5 and .7, not at .9
        ((1.0, 0.3, 0.0), [(1, 255, 255), (1, 255, 0)], 1.0),  # nobody labelled the second pixel
        ((1.0, 0.5, 1.0), [(1, 1, 1), (255, 0, 255)], 1.0),  # shares are among those who labelled
    ],
)
def test_soft_dice_by_hand(probs, lines, expected):
    found = soft(probabilities(probs), maps(*lines))
    assert found == pytest.approx({"dice_soft/disc": expected, "dice_soft/mean": expected})


@pytest.mark.parametrize("hits", range(11))
def test_equal_shares_and_probabilities_are_on_the_same_side_of_a_threshold(hits):
    masks = torch.zeros(1, 10, 1, 2, dtype=torch.long)
    masks[:, :hits, 0, 0] = 1
    assert soft(one_hot(masks, 2), masks)["dice_soft/mean"] == 1
    wrong = one_hot(torch.zeros_like(masks), 2)  # wrong at the thresholds below hits / 10
    expected = 1 - sum(hits / 10 > t for t in THRESHOLDS) / 5
    score = soft(wrong, masks)["dice_soft/disc"]
    assert score == pytest.approx(expected if hits > 1 else math.nan, nan_ok=True)


def brute_soft_dice(probs: np.ndarray, masks: np.ndarray, present: np.ndarray, c: int) -> float:
    """Soft Dice of a class of one image ``[S, C, H, W]``, pixel by pixel."""
    scores, height, width = [], *masks.shape[1:]
    for t in THRESHOLDS:
        both = area = 0
        for y, x in itertools.product(range(height), range(width)):
            votes = [m[y, x] == c for m, p in zip(masks, present, strict=True) if p]
            known = [m[y, x] != IGNORED for m, p in zip(masks, present, strict=True) if p]
            if not any(known):
                continue
            predicted = sum(float(p[c, y, x]) for p in probs) / len(probs) > t
            given = sum(votes) / sum(known) > t
            both, area = both + (predicted and given), area + predicted + given
        scores.append(2 * both / area if area else math.nan)
    return (
        math.nan if all(map(math.isnan, scores)) else float(np.mean(np.nan_to_num(scores, nan=1)))
    )


@settings(max_examples=50)
@given(
    st.integers(0, 2**31),
    hnp.arrays(np.int64, (3, 2, 3), elements=st.sampled_from([0, 1, 2, IGNORED])),
    hnp.arrays(bool, 3),
)
def test_soft_dice_equals_a_loop_over_pixels(seed, masks, present):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(1, 4, 3, 2, 3, generator=generator).mul(3).softmax(2)
    image = torch.from_numpy(masks)[None], torch.from_numpy(present)[None]
    found = set_dice(probs.argmax(2), *image, probs)
    for c in (1, 2):
        expected = brute_soft_dice(probs[0].numpy(), masks, present, c)
        assert found[f"dice_soft/{CLASSES[c]}"] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_metric_averages_images():
    probs = torch.cat(
        [
            probabilities((1.0, 0.0), (0.0, 0.0)),  # disc is right, cup in neither
            probabilities((0.0, 0.0), (1.0, 0.0)),  # cup for disc: both are wrong
            probabilities((0.0, 0.0), (0.0, 0.0)),  # nothing in either
            probabilities((1.0, 0.0), (0.0, 0.0)),  # nobody labelled
        ]
    )
    masks = torch.cat([maps((1, 0)), maps((1, 0)), maps((0, 0)), maps((255, 255))])
    result = set_dice(probs.argmax(2), masks, everyone(1, images=4), probs)
    assert result.pop("dice_soft/disc") == pytest.approx((1 + 0) / 2)
    assert result.pop("dice_soft/cup") == 0
    assert list(result.values()) == pytest.approx([(1 + 0 + 1) / 3] * 5)


# ---------------------------------------------------------------------- maximal and matched Dice


def test_max_dice_by_hand():
    # Dice of the first prediction with the masks: 1, 2/3, 0; of the second: 0, 0, 1.
    predicted = maps((1, 1, 0), (0, 0, 0))
    masks = maps((1, 1, 0), (1, 0, 0), (0, 0, 0))
    result = set_dice(predicted, masks, everyone(3))
    assert result["dice_max/predictions"] == pytest.approx(1)
    assert result["dice_max/annotators"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert result["dice_max/mean"] == pytest.approx((1 + (1 + 2 / 3 + 1) / 3) / 2)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([(1, 1, 0), (1, 0, 0), (0, 0, 0)], 1),
        ([(0, 0, 0), (1, 1, 0), (1, 0, 0)], 1),  # the order does not matter
        # Both are next to the first annotator, but only one is matched to her: 1 + 2/3 + 0.
        ([(1, 1, 0), (1, 1, 0), (1, 1, 0)], 5 / 9),
        ([(1, 1, 0)], 5 / 9),  # one prediction is matched to everybody
        ([(1, 1, 0), (0, 0, 0)], (1 + 2 / 3 + 1) / 3),  # the first to two annotators
        ([(1, 1, 0), (1, 0, 0), (0, 0, 0), (0, 1, 1)], 1),  # the last is left over
    ],
)
def test_matched_dice_by_hand(predicted, expected):
    masks = maps((1, 1, 0), (1, 0, 0), (0, 0, 0))
    found = matched_dice(maps(*predicted), masks, everyone(3), num_classes=2)
    assert found.item() == pytest.approx(expected)


def test_absent_annotators_and_unlabelled_pixels_do_not_count():
    masks = maps((1, 255, 0), (0, 0, 1), (255, 255, 255))
    predicted = maps((1, 1, 0), (1, 0, 0))
    present = torch.tensor([[True, False, True]])
    found = set_dice(predicted, masks, present)
    assert all(found[f"dice_max/{kind}"] == 1 for kind in ("predictions", "annotators", "mean"))
    assert found["dice_match"] == 1


def brute_max_dice(table: np.ndarray) -> tuple[float, float, float]:
    if not table.size:
        return math.nan, math.nan, math.nan
    predictions = float(np.mean([max(row) for row in table]))
    annotators = float(np.mean([max(column) for column in table.T]))
    return predictions, annotators, (predictions + annotators) / 2


def brute_matched_dice(table: np.ndarray) -> float:
    """The best of all ways to give each annotator a prediction."""
    samples, annotators = table.shape
    if not annotators:
        return math.nan
    most = math.ceil(annotators / samples)
    ways = itertools.product(range(samples), repeat=annotators)
    return max(
        float(np.mean(table[list(way), range(annotators)]))
        for way in ways
        if max(map(way.count, way)) <= most
    )


@settings(max_examples=100)
@given(st.data())
def test_max_and_matched_dice_equal_all_loops(data):
    samples, annotators = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    label, known = st.integers(0, 2), st.sampled_from([0, 1, 2, IGNORED])
    predicted = data.draw(hnp.arrays(np.int64, (samples, 2, 3), elements=label))
    masks = data.draw(hnp.arrays(np.int64, (annotators, 2, 3), elements=known))
    present = data.draw(hnp.arrays(bool, annotators))
    table = dice_table(predicted, masks, 3)[:, judged(masks, present)]
    image = [torch.from_numpy(x)[None] for x in (predicted, masks, present)]
    found = set_dice(*image)
    largest = [found[f"dice_max/{kind}"] for kind in ("predictions", "annotators", "mean")]
    assert largest == pytest.approx(brute_max_dice(table), abs=1e-6, nan_ok=True)
    best = matched_dice(*image, num_classes=3).item()
    assert best == pytest.approx(brute_matched_dice(table), abs=1e-6, nan_ok=True)
    assert found["dice_match"] == pytest.approx(best, nan_ok=True)


# ---------------------------------------------------------------------- what all have in common


def all_scores(predicted, masks, present) -> dict[str, float]:
    batch = {"annotator_prediction": predicted, "masks": masks, "present": present}
    return set_dice(predicted, masks, present) | computed(
        GeneralizedEnergyDistance(CLASSES), **batch
    )


label_maps = hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.integers(0, 2))


@settings(max_examples=50)
@given(
    predicted=label_maps,
    masks=hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, 2, IGNORED])),
    present=hnp.arrays(bool, (2, 3)),
    order=st.permutations(range(3)),
)
def test_neither_order_matters_and_scores_are_shares(predicted, masks, present, order):
    predicted, masks, present = map(torch.from_numpy, (predicted, masks, present))
    scores = all_scores(predicted, masks, present)
    others = all_scores(predicted[:, order], masks, present)
    exchanged = all_scores(predicted, masks[:, order], present[:, order])
    for name, score in scores.items():
        assert math.isnan(score) or -1e-6 <= score <= (2 if name == "ged2" else 1) + 1e-6
    assert others == pytest.approx(scores, abs=1e-6, nan_ok=True)
    assert exchanged == pytest.approx(scores, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_changes_nothing_that_it_can_hold(dtype):
    labels, masks = torch.randint(3, (2, 4, 40, 40)), torch.randint(3, (2, 4, 40, 40))
    plain = all_scores(labels, masks, everyone(4, images=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all_scores(labels, masks, everyone(4, images=2)) == plain
    low = set_dice(labels, masks, everyone(4, images=2), one_hot(labels, 3).to(dtype))
    assert low == {name: plain[name] for name in low}


# ---------------------------------------------------------------------- energy distance


def brute_mean(first: list[np.ndarray], second: list[np.ndarray], num_classes: int) -> float:
    return float(np.mean([1 - pair_score(a, b, num_classes, "iou") for a in first for b in second]))


def brute_ged(predicted: np.ndarray, masks: np.ndarray, present: np.ndarray, classes: int) -> float:
    p, a = list(predicted), [masks[n] for n in judged(masks, present)]
    if not a:
        return float("nan")
    return 2 * brute_mean(p, a, classes) - brute_mean(p, p, classes) - brute_mean(a, a, classes)


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


def test_an_empty_map_is_at_distance_0_from_an_empty_map():
    # A = {empty, one pixel}, P = {empty}: 2 * (0 + 1) / 2 - 0 - 2 / 4. With an epsilon in the
    # denominator instead of the rule, two empty maps would be at distance 1.
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    masks[0, 1, 0, 0] = 1
    found = generalized_energy_distance(
        masks[:, :1], masks, torch.ones(1, 2, dtype=torch.bool), num_classes=2
    )
    assert found.item() == pytest.approx(0.5)


def test_energy_distance_averages_labelled_images():
    masks = torch.tensor([[[[1, 0]], [[1, 0]]], [[[1, 0]], [[1, 0]]], [[[255, 255]]] * 2])
    predicted = torch.tensor([[[[1, 0]]], [[[0, 1]]], [[[1, 1]]]])
    present = torch.tensor([[True, True], [True, False], [True, True]])
    batch = {"annotator_prediction": predicted, "masks": masks, "present": present}
    found = computed(GeneralizedEnergyDistance(["background", "cup"]), **batch)
    assert found == {"ged2": pytest.approx((0 + 2) / 2)}
