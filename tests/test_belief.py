from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tax_lightning.metrics.belief import (
    AgreementLift,
    WhoCalibration,
    WhoEntropy,
    agreement_lift,
    who_calibration,
    who_entropy,
)


def row(*values: float) -> torch.Tensor:
    """One image of one line of pixels ``[1, 1, W]``."""
    return torch.tensor(values)[None, None]


def rows(*lines: tuple[float, ...]) -> torch.Tensor:
    """One line of pixels an annotator ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


#               only Ada  only Ben  two right  none right  agreed  unknown
MASKS = rows((1, 0, 1, 0, 1, 1), (0, 1, 1, 0, 1, 0), (0, 0, 0, 1, 1, 0))
REFERENCE = row(1, 1, 1, 2, 1, 255)
OWNER = row(0, 1, 1, 0, 0, 0)
WHO = rows(
    (0.6, 0.5, 0.80, 1.0, 1.0, 1.0),
    (0.3, 0.4, 0.15, 0.0, 0.0, 0.0),
    (0.1, 0.1, 0.05, 0.0, 0.0, 0.0),
)
EVERYONE = torch.ones(1, 3, dtype=torch.bool)
WITHOUT_ADA = torch.tensor([[False, True, True]])


def values(result: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


def everything(who, masks, present, reference, expert) -> dict[str, float]:
    return values(
        agreement_lift(who, masks, present, reference)
        | who_calibration(who, masks, present, reference, expert)
        | who_entropy(who, masks, present)
    )


def test_agreement_lift_by_hand():
    # Four pixels; Ada is named, and right at two. On average 1/3, 1/3, 2/3 and 0 of all are.
    result = agreement_lift(WHO, MASKS, EVERYONE, REFERENCE)
    assert values(result) == {"who_agreement_lift": pytest.approx((1 / 2 - 1 / 3) / (1 - 1 / 3))}


def test_agreement_lift_is_among_those_who_labelled():
    # Ben and Cem differ at the 2nd to 4th pixel; Ben is named, right at two, Cem at none.
    result = agreement_lift(WHO, MASKS, WITHOUT_ADA, REFERENCE)
    assert float(result["who_agreement_lift"]) == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))


def test_agreement_lift_of_the_best_and_the_worst():
    masks, reference = rows((1, 0, 1), (0, 1, 0)), row(1, 1, 1)
    present = torch.ones(1, 2, dtype=torch.bool)
    best = (masks == 1).float()
    assert float(agreement_lift(best, masks, present, reference)["who_agreement_lift"]) == 1
    worst = 1 - best
    assert float(agreement_lift(worst, masks, present, reference)["who_agreement_lift"]) == -1


def test_calibration_by_hand():
    result = values(who_calibration(WHO, MASKS, EVERYONE, REFERENCE, OWNER))
    # D1 holds two pixels: share .5 and wrong, .6 and right. Of 15 groups 7 hold the one, 7 the
    # other, and one holds half a fifteenth of the pixels of each, whose errors cancel in part.
    assert result["who_ece_d1"] == pytest.approx(7 / 15 * 0.5 + 7 / 15 * 0.4 + 0.1 / 30)
    # Four owned pixels with errors -.5, .4, -.8, 0 in the order of their shares, 3.75 groups each:
    # the 4th group has .2 of the first and .2 / 3 of the second, the 8th .4 / 3 of two.
    cancelled = 2 * (0.2 / 3 * 0.4) + 2 * (0.4 / 3 * 0.4)
    assert result["who_ece_expert"] == pytest.approx((0.5 + 0.4 + 0.8 - cancelled) / 4)
    # Three disputed pixels at which somebody is right.
    logs = math.log(0.6) + math.log(0.4) + (math.log(0.8) + math.log(0.15)) / 2
    assert result["who_nll"] == pytest.approx(-logs / 3)
    squares = (0.16 + 0.09 + 0.01) + (0.25 + 0.36 + 0.01) + (0.09 + 0.1225 + 0.0025)
    assert result["who_brier"] == pytest.approx(squares / 3)


def test_shares_are_taken_among_those_who_labelled():
    # The 2nd and 3rd pixel, where Ben is right and Cem not: shares .4 : .1 and .15 : .05; at the
    # 4th nobody is right, and neither has a share, so that each gets a half.
    result = values(who_calibration(WHO, MASKS, WITHOUT_ADA, REFERENCE, row(255, 1, 1, 2, 255, 1)))
    assert result["who_ece_d1"] == pytest.approx((0.2 + 0.25) / 2)
    assert result["who_nll"] == pytest.approx(-(math.log(0.8) + math.log(0.75)) / 2)
    assert result["who_brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.25**2) / 2)
    # Ben is named at the 4th pixel, which Cem owns: errors -.5, .25, .2 of 5 groups each.
    assert result["who_ece_expert"] == pytest.approx((0.5 + 0.25 + 0.2) / 3)


def test_one_hot_shares_are_perfect_or_as_wrong_as_can_be():
    masks, reference = rows((1, 0, 1), (0, 1, 0)), row(1, 1, 1)
    present = torch.ones(1, 2, dtype=torch.bool)
    right = (masks == 1).float()
    expert = row(0, 1, 0)
    zeros = dict.fromkeys(("who_ece_d1", "who_ece_expert", "who_nll", "who_brier"), 0)
    assert values(who_calibration(right, masks, present, reference, expert)) == zeros
    assert values(who_calibration(1 - right, masks, present, reference, expert)) == {
        "who_ece_d1": pytest.approx(1),
        "who_ece_expert": pytest.approx(1),
        "who_nll": pytest.approx(23 * math.log(2)),  # finite: the resolution of single precision
        "who_brier": 2,
    }


def exact_calibration_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    order = np.argsort(confidence)
    gaps = np.split((hits - confidence)[order], 15)
    return sum(abs(group.sum()) for group in gaps) / len(confidence)


def disputes(confidence: np.ndarray, hits: np.ndarray) -> dict[str, torch.Tensor]:
    """Two annotators, of whom the first is named with this confidence and right where it hits."""
    first = torch.from_numpy(confidence).float()[None, None, None]
    mask = torch.from_numpy(hits).long()[None, None, None]
    return {
        "who": torch.cat([first, 1 - first], 1),
        "masks": torch.cat([mask, 1 - mask], 1),
        "present": torch.ones(1, 2, dtype=torch.bool),
        "reference": torch.ones_like(mask[:, 0]),
    }


@pytest.mark.parametrize("power", [1, 4, 0.2])
def test_equal_mass_groups_agree_with_exact_ones(power):
    numbers = np.random.default_rng(0)
    crowded = np.unique(0.5 + 0.5 * numbers.random(15 * 2000 + 99) ** power)  # at either end
    confidence = numbers.choice(crowded, 15 * 2000, replace=False)
    hits = numbers.random(confidence.size) < confidence**2  # too confident
    error = float(who_calibration(**disputes(confidence, hits))["who_ece_d1"])
    exact = exact_calibration_error(confidence, hits)
    assert exact > 0.05
    assert error == pytest.approx(exact, abs=1e-3)


def test_equal_mass_groups_are_exact_with_one_value_a_bin():
    numbers = np.random.default_rng(1)
    confidence = numbers.permutation(np.arange(525, 975) + 0.5) / 1000
    hits = numbers.random(confidence.size) < 0.7
    error = float(who_calibration(**disputes(confidence, hits))["who_ece_d1"])
    assert error == pytest.approx(exact_calibration_error(confidence, hits), abs=1e-6)


def test_groups_are_of_equal_mass_not_width():
    # Fourteen wrong at .51 to .64 and one right at .99: groups of equal width would be unequal.
    confidence = np.append(np.arange(0.51, 0.645, 0.01), 0.99)
    hits = confidence > 0.9
    error = float(who_calibration(**disputes(confidence, hits))["who_ece_d1"])
    assert error == pytest.approx((confidence[:-1].sum() + 0.01) / 15, abs=1e-6)


def test_equal_shares_are_in_no_order():
    confidence = np.full(150, 0.8)
    for hits in (np.arange(150) < 120, np.arange(150) % 5 > 0):
        error = float(who_calibration(**disputes(confidence, hits))["who_ece_d1"])
        assert error == pytest.approx(0, abs=1e-6)


def test_memory_does_not_grow_with_the_data():
    metric = WhoCalibration()
    size = sum(value.numel() for value in metric.metric_state.values())
    for _ in range(3):
        metric.update(who=WHO, masks=MASKS, present=EVERYONE, reference=REFERENCE, expert=OWNER)
    assert sum(value.numel() for value in metric.metric_state.values()) == size


def test_entropy_by_hand():
    result = values(who_entropy(WHO, MASKS, EVERYONE))
    parts = [(0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.8, 0.15, 0.05)]  # two more are certain
    entropy = -sum(share * math.log(share) for part in parts for share in part) / math.log(3)
    assert result["who_entropy_disputed"] == pytest.approx(entropy / 5)
    assert result["who_entropy_unanimous"] == 0


def test_entropy_of_equal_and_one_hot_shares():
    masks = rows((1, 1, 1, 255), (0, 1, 1, 1), (1, 1, 255, 255))  # the last has one label only
    who = rows((1.0, 1 / 3, 0.5, 0.9), (0.0, 1 / 3, 0.5, 0.1), (0.0, 1 / 3, 0.0, 0.0))
    result = values(who_entropy(who, masks, EVERYONE))
    assert result["who_entropy_disputed"] == 0
    assert result["who_entropy_unanimous"] == pytest.approx((1 + math.log(2) / math.log(3)) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_who_may_have_low_precision(dtype):
    result = everything(WHO.to(dtype), MASKS, EVERYONE, REFERENCE, OWNER)
    assert result == pytest.approx(everything(WHO, MASKS, EVERYONE, REFERENCE, OWNER), abs=0.01)


def update_all(metrics, **batch) -> None:
    lift, calibration, entropy = metrics
    expert = batch.pop("expert")
    lift.update(**batch)
    calibration.update(**batch, expert=expert)
    batch.pop("reference")
    entropy.update(**batch)


def compute_all(metrics) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in values(metric.compute()).items()}


def make_metrics() -> tuple[AgreementLift, WhoCalibration, WhoEntropy]:
    return AgreementLift(), WhoCalibration(), WhoEntropy()


def random_batch(images: int) -> dict[str, torch.Tensor]:
    return {
        "who": torch.randn(images, 4, 8, 8).softmax(1),
        "masks": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, 4, 8, 8))],
        "present": torch.rand(images, 4) < 0.8,
        "reference": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, 8, 8))],
        "expert": torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (images, 8, 8))],
    }


def test_parts_of_unequal_size_merge_to_the_whole():
    batch = random_batch(5)
    parts = make_metrics(), make_metrics()
    for metrics, images in zip(parts, (slice(0, 1), slice(1, 5)), strict=True):
        update_all(metrics, **{name: value[images] for name, value in batch.items()})
    for one, other in zip(*parts, strict=True):
        one.merge_state(other)
    whole = everything(**batch)
    assert all(math.isfinite(value) for value in whole.values())
    assert compute_all(parts[0]) == pytest.approx(whole, rel=1e-5)


def test_the_order_of_annotators_does_not_matter():
    batch = random_batch(3)
    whole = everything(**batch)
    order = torch.tensor([2, 0, 3, 1])
    for name in ("who", "masks", "present"):
        batch[name] = batch[name][:, order]
    place = torch.full((256,), 255)
    place[order] = torch.arange(4)
    batch["expert"] = place[batch["expert"]]
    assert everything(**batch) == pytest.approx(whole, rel=1e-5)


def test_nan_without_a_case():
    metrics = make_metrics()
    single = torch.tensor([[True, False, False]])
    batch = {"who": WHO, "masks": MASKS, "reference": REFERENCE, "expert": OWNER}
    update_all(metrics, **batch, present=single)
    metrics[0].update(who=WHO, masks=MASKS, present=EVERYONE)  # data without a reference
    metrics[1].update(who=WHO, masks=MASKS, present=EVERYONE)
    assert all(math.isnan(value) for value in compute_all(metrics).values())
    metrics[1].update(who=WHO, masks=MASKS, present=EVERYONE, reference=REFERENCE)
    result = values(metrics[1].compute())  # data without experts
    assert [name for name, value in result.items() if math.isnan(value)] == ["who_ece_expert"]


def test_a_single_annotator_is_no_case():
    arguments = (WHO[:, :1], MASKS[:, :1], EVERYONE[:, :1], REFERENCE, torch.zeros_like(REFERENCE))
    assert all(math.isnan(value) for value in everything(*arguments).values())


@settings(max_examples=50)
@given(
    hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(bool, (2, 3)),
    hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
)
def test_results_lie_in_their_ranges(masks, reference, expert, present, who):
    masks, reference, expert, present, who = map(
        torch.from_numpy, (masks, reference, expert, present, who)
    )
    who = who / who.sum(1, keepdim=True).clamp(min=1e-30)  # all 0 where all were
    result = everything(who, masks, present, reference, expert)
    assert result["who_agreement_lift"] <= 1 or math.isnan(result["who_agreement_lift"])
    highest = {
        "who_ece_d1": 1,
        "who_ece_expert": 1,
        "who_nll": 16,
        "who_brier": 2,
        "who_entropy_disputed": 1,
        "who_entropy_unanimous": 1,
    }
    for name, limit in highest.items():
        assert math.isnan(result[name]) or 0 <= result[name] <= limit + 1e-5


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"`masks` has shape \[1, 2, 1, 6\], expected \[B=1, N=3"):
        agreement_lift(WHO, MASKS[:, :2], EVERYONE, REFERENCE)
    with pytest.raises(
        ValueError, match=r"`expert` has shape \[1, 6\], expected \[B=1, H=1, W=6\]"
    ):
        who_calibration(WHO, MASKS, EVERYONE, REFERENCE, OWNER[:, 0])
    with pytest.raises(ValueError, match=r"`reference` has shape \[1, 6\]"):
        who_calibration(WHO, MASKS, EVERYONE, REFERENCE[:, 0])
    with pytest.raises(ValueError, match=r"`present` has dtype torch.int64, expected torch.bool"):
        who_entropy(WHO, MASKS, EVERYONE.long())
