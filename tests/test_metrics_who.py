from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import computed, everyone
from small_maps import maps as rows

from tax_lightning.metrics import TrustScore, WhoAccuracy


def row(*values: float) -> torch.Tensor:
    """One image of one line of pixels ``[1, 1, W]``."""
    return torch.tensor(values)[None, None]


#               only Ada  only Ben  two right  none right  agreed  unknown
MASKS = rows((1, 0, 1, 0, 1, 1), (0, 1, 1, 0, 1, 0), (0, 0, 0, 1, 1, 0))
REFERENCE = row(1, 1, 1, 2, 1, 255)
EXPERT = row(0, 1, 1, 0, 0, 0)
WHO = rows(
    (0.6, 0.5, 0.80, 1.0, 1.0, 1.0),
    (0.3, 0.4, 0.15, 0.0, 0.0, 0.0),
    (0.1, 0.1, 0.05, 0.0, 0.0, 0.0),
)
BATCH = {"who": WHO, "masks": MASKS, "present": everyone(3), "reference": REFERENCE}
WITHOUT_ADA = torch.tensor([[False, True, True]])


def accuracy(**batch: torch.Tensor) -> dict[str, float]:
    return computed(WhoAccuracy(), **batch)


def test_values_by_hand():
    found = accuracy(**BATCH, expert=EXPERT)
    # D1 holds two pixels: share .5 and wrong, .6 and right. Of 15 groups 7 hold the one, 7 the
    # other, and one holds half a fifteenth of the pixels of each, whose errors cancel in part.
    assert found["who_accuracy_d1"] == pytest.approx(1 / 2)
    assert found["who_chance_d1"] == pytest.approx(1 / 3)
    assert found["who_ece_d1"] == pytest.approx(7 / 15 * 0.5 + 7 / 15 * 0.4 + 0.1 / 30)
    # Four disputed pixels; Ada is named, and right at two. On average 1/3, 1/3, 2/3, 0 are.
    assert found["who_agreement_lift"] == pytest.approx((1 / 2 - 1 / 3) / (1 - 1 / 3))
    # 4th pixel: the expert is wrong; 5th: undisputed; 6th: the reference is unknown.
    assert found["who_accuracy_expert"] == pytest.approx(2 / 4)  # right at the 1st and 4th
    assert found["who_ceiling_expert"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert found["who_chance_expert"] == pytest.approx(1 / 3)
    # Errors -.5, .4, -.8, 0 in the order of their shares, 3.75 groups each: the 4th group has .2 of
    # the first and .2 / 3 of the second, the 8th .4 / 3 of two.
    cancelled = 2 * (0.2 / 3 * 0.4) + 2 * (0.4 / 3 * 0.4)
    assert found["who_ece_expert"] == pytest.approx((0.5 + 0.4 + 0.8 - cancelled) / 4)
    # Against the expert: both others, both others, one of two, one of two.
    assert found["majority_overrules_expert"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 4)
    parts = [(0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.8, 0.15, 0.05)]  # two more are certain
    entropy = -sum(share * math.log(share) for part in parts for share in part) / math.log(3)
    assert found["who_entropy_disputed"] == pytest.approx(entropy / 5)
    assert found["who_entropy_unanimous"] == 0


def test_an_absent_annotator_is_never_named():
    # Ben and Cem differ at the 2nd to 4th pixel; Ben is named, and alone right at two. His shares
    # are .4 : .1 and .15 : .05; at the 4th pixel neither has a share, so that each gets a half.
    unlabelled = MASKS.masked_fill(~WITHOUT_ADA[:, :, None, None], 255)
    for masks in (MASKS, unlabelled):  # presence rules, whatever the masks hold
        batch = BATCH | {"masks": masks, "present": WITHOUT_ADA}
        found = accuracy(**batch, expert=row(255, 1, 1, 2, 255, 1))
        assert found["who_accuracy_d1"] == 1
        assert found["who_chance_d1"] == 1 / 2
        assert found["who_agreement_lift"] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
        assert found["who_ece_d1"] == pytest.approx((0.2 + 0.25) / 2)
        # At the 4th pixel, whose expert is Cem, each is named in half: errors 0, .25, .2.
        assert found["who_ece_expert"] == pytest.approx((0 + 0.25 + 0.2) / 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 0, 0, 1, 1), 1 / 2),  # two to two
        ((1, 0, 0, 1, 2), 1),  # two of one kind to one
        ((1, 0, 2, 1, 1), 0),
        ((1, 0, 2, 255, 1), 1 / 2),
        ((1, 0, 255, 255, 255), 1),
    ],
)
def test_the_majority_overrules_the_expert_where_it_outvotes_them(labels, expected):
    masks = torch.tensor(labels).view(1, -1, 1, 1)
    found = accuracy(
        who=masks.float(),
        masks=masks,
        present=everyone(len(labels)),
        reference=row(1),
        expert=row(0),
    )
    assert found["majority_overrules_expert"] == expected


def test_the_best_and_the_worst():
    masks, expert = rows((1, 0, 1), (0, 1, 0)), row(0, 1, 0)
    batch = {"masks": masks, "present": everyone(2), "reference": row(1, 1, 1), "expert": expert}
    best = accuracy(**batch, who=(masks == 1).float())
    worst = accuracy(**batch, who=(masks != 1).float())
    for name, limits in {
        "who_accuracy_d1": (1, 0),
        "who_accuracy_expert": (1, 0),
        "who_agreement_lift": (1, -1),
        "who_ece_d1": (0, 1),
        "who_ece_expert": (0, 1),
    }.items():
        assert (best[name], worst[name]) == limits


def test_entropy_of_equal_and_one_hot_shares():
    masks = rows((1, 1, 1, 255), (0, 1, 1, 1), (1, 1, 255, 255))  # the last has one label only
    who = rows((1.0, 1 / 3, 0.5, 0.9), (0.0, 1 / 3, 0.5, 0.1), (0.0, 1 / 3, 0.0, 0.0))
    found = accuracy(who=who, masks=masks, present=everyone(3))
    assert found["who_entropy_disputed"] == 0
    assert found["who_entropy_unanimous"] == pytest.approx((1 + math.log(2) / math.log(3)) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_who_may_have_low_precision(dtype):
    expected = accuracy(**BATCH, expert=EXPERT)
    found = accuracy(**BATCH | {"who": WHO.to(dtype)}, expert=EXPERT)
    assert found == pytest.approx(expected, abs=0.01)


def random_batch(images: int, annotators: int = 4) -> dict[str, torch.Tensor]:
    return {
        "who": torch.randn(images, annotators, 8, 8).softmax(1),
        "masks": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, annotators, 8, 8))],
        "present": torch.rand(images, annotators) < 0.8,
        "reference": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, 8, 8))],
        "expert": torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (images, 8, 8))],
    }


def test_the_order_of_annotators_does_not_matter():
    batch, order = random_batch(3), torch.tensor([2, 0, 3, 1])
    whole = accuracy(**batch)
    batch |= {name: batch[name][:, order] for name in ("who", "masks", "present")}
    place = torch.full((256,), 255)
    place[order] = torch.arange(4)
    batch["expert"] = place[batch["expert"]]
    assert accuracy(**batch) == pytest.approx(whole, rel=1e-5)


def test_nan_without_a_case():
    nobody_else = accuracy(**BATCH | {"present": torch.tensor([[True, False, False]])})
    assert all(math.isnan(value) for value in nobody_else.values())
    single = {name: BATCH[name][:, :1] for name in ("who", "masks", "present")}
    single |= {"reference": REFERENCE, "expert": 0 * EXPERT}
    assert all(math.isnan(value) for value in accuracy(**single).values())
    without_experts = accuracy(**BATCH)
    missing = {name for name, value in without_experts.items() if math.isnan(value)}
    assert missing == {name for name in without_experts if "expert" in name}


@settings(max_examples=50)
@given(
    hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(bool, (2, 3)),
    hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
)
def test_values_lie_in_their_ranges(masks, reference, expert, present, who):
    names = ("masks", "reference", "expert", "present", "who")
    batch = dict(zip(names, map(torch.from_numpy, (masks, reference, expert, present, who))))  # noqa: B905
    batch["who"] = batch["who"] / batch["who"].sum(1, keepdim=True).clamp(min=1e-30)
    found = accuracy(**batch)
    lift = found.pop("who_agreement_lift")
    assert math.isnan(lift) or lift <= 1
    assert all(math.isnan(value) or 0 <= value <= 1 + 1e-5 for value in found.values())
    named = torch.arange(3)[:, None, None] == batch["expert"][:, None]
    oracle = accuracy(**batch | {"who": named.float()})["who_accuracy_expert"]
    assert math.isnan(oracle) or oracle == 1


# ---------------------------------------------------------------------- trust


def trust(constant: torch.Tensor | None = None, **batch) -> dict[str, float]:
    metric = TrustScore(3)
    metric.constant = constant
    metric.update(**batch)
    return {name: float(value) for name, value in metric.compute().items()}


def one_hot(*labels: int, classes: int = 2) -> torch.Tensor:
    """Which label is right at a line of pixels ``[1, C, 1, W]``; none for -1."""
    return torch.stack([row(*(label == c for label in labels)) for c in range(classes)], 1)


def test_trust_by_hand():
    #              Ada alone right   two right   nobody wrong   unknown
    masks = rows((1, 1, 1, 1), (0, 1, 1, 0), (0, 0, 1, 1))
    who = rows((0.5, 0.5, 0.2, 0.2), (0.3, 0.3, 0.4, 0.4), (0.2, 0.2, 0.4, 0.4))
    batch = {"who": who, "masks": masks, "present": everyone(3), "right": one_hot(1, 1, 1, -1)}
    found = trust(constant=torch.tensor([0.6, 0.2, 0.2]).log(), **batch)
    assert found["trust_agreement"] == pytest.approx((0.5 + 0.8) / 2)
    assert found["trust_leader"] == 1
    assert found["trust_log_score"] == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    assert found["trust_agreement_uniform"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["trust_leader_uniform"] == found["trust_agreement_uniform"]
    assert found["trust_agreement_constant"] == pytest.approx((0.6 + 0.8) / 2)
    # In the first image each weight is said to be the next one's: .2, .5, .3.
    assert found["trust_agreement_exchanged"] == pytest.approx((0.2 + 0.7) / 2)
    without = trust(**batch)
    assert not any("constant" in name for name in without)
    assert without == {name: found[name] for name in without}


def test_a_tie_counts_half_to_each_side_and_the_absent_have_no_weight():
    masks = rows((1,), (0,), (255,))
    right = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    who = rows((0.6,), (0.2,), (0.2,))
    found = trust(who=who, masks=masks, present=everyone(3), right=right)
    assert found["trust_agreement"] == pytest.approx(1 / 2)
    assert found["trust_leader"] == 1 / 2
    assert found["trust_log_score"] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    alone = trust(who=who, masks=masks, present=WITHOUT_ADA, right=right)
    assert all(math.isnan(value) for value in alone.values())


def test_equal_weights_name_everybody_in_part():
    who = torch.full((1, 3, 1, 2), 1 / 3)
    masks = torch.tensor([[1, 0], [1, 1], [0, 1]]).view(1, 3, 1, 2)
    given = {"masks": masks, "present": everyone(3), "reference": torch.ones(1, 1, 2).long()}
    found = accuracy(who=who, **given, expert=torch.tensor([[[0, 2]]]))
    assert found["who_accuracy_expert"] == pytest.approx(1 / 3)
    assert found["who_agreement_lift"] == pytest.approx(0, abs=1e-6)
    assert found["who_ece_expert"] == pytest.approx(0, abs=1e-6)
