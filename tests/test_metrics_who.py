from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tax_lightning.metrics import (
    ExpertAccuracy,
    WhoAccuracy,
    disagreement,
    expert_accuracy,
    removal_effects,
    who_accuracy,
)


def row(*values: float) -> torch.Tensor:
    """One image of one line of pixels ``[1, 1, W]``."""
    return torch.tensor(values)[None, None]


def rows(*lines: tuple[float, ...]) -> torch.Tensor:
    """One line of pixels an annotator ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


def test_disagreement_is_between_labels_only():
    masks = rows((0, 0, 0, 255, 255), (0, 1, 255, 255, 1), (0, 0, 255, 255, 2))
    everyone = torch.tensor([[True, True, True]])
    assert disagreement(masks, everyone).tolist() == [[[False, True, False, False, True]]]
    without_ben = torch.tensor([[True, False, True]])
    assert not disagreement(masks, without_ben).any()
    assert not disagreement(masks, torch.zeros(1, 3, dtype=torch.bool)).any()


#               only Ada  only Ben  two right  none right  agreed  unknown
MASKS = rows((1, 0, 1, 0, 1, 1), (0, 1, 1, 0, 1, 0), (0, 0, 0, 1, 1, 0))
REFERENCE = row(1, 1, 1, 2, 1, 255)
WHO = rows(
    (0.6, 0.5, 0.80, 1.0, 1.0, 1.0),
    (0.3, 0.4, 0.15, 0.0, 0.0, 0.0),
    (0.1, 0.1, 0.05, 0.0, 0.0, 0.0),
)
EVERYONE = torch.ones(1, 3, dtype=torch.bool)


def test_who_accuracy_by_hand():
    result = who_accuracy(WHO, MASKS, EVERYONE, REFERENCE)  # D1 is the first two pixels
    assert result["who_accuracy_d1"] == pytest.approx(1 / 2)
    assert result["who_chance_d1"] == pytest.approx(1 / 3)


def test_an_absent_annotator_is_never_named():
    # Without Ada the 1st pixel is undisputed; at the 2nd and 3rd Ben alone is right, and leads Cem.
    without_ada = torch.tensor([[False, True, True]])
    unlabelled = MASKS.masked_fill(~without_ada[:, :, None, None], 255)
    for masks in (MASKS, unlabelled):  # presence rules, whatever the masks hold
        result = who_accuracy(WHO, masks, without_ada, REFERENCE)
        assert result["who_accuracy_d1"] == 1
        assert result["who_chance_d1"] == 1 / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_who_may_have_low_precision(dtype):
    metric = WhoAccuracy()
    metric.update(who=WHO.to(dtype), masks=MASKS, present=EVERYONE, reference=REFERENCE)
    assert metric.compute()["who_accuracy_d1"] == pytest.approx(1 / 2)
    expert = ExpertAccuracy()
    expert.update(
        who=WHO.to(dtype),
        masks=MASKS,
        present=EVERYONE,
        reference=REFERENCE,
        expert=row(0, 1, 255, 255, 0, 0).long(),
    )
    assert expert.compute()["who_accuracy_expert"] == pytest.approx(1 / 2)


def test_expert_accuracy_by_hand():
    # 4th pixel: the expert is wrong himself; 5th: undisputed; 6th: the reference is unknown.
    expert = row(0, 1, 1, 0, 0, 0)
    result = expert_accuracy(WHO, MASKS, EVERYONE, REFERENCE, expert)
    assert result["who_accuracy_expert"] == pytest.approx(2 / 4)  # right at the 1st and 4th
    assert result["who_ceiling_expert"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert result["who_chance_expert"] == pytest.approx(1 / 3)
    # Against the expert: both others, both others, one of two, one of two.
    assert result["who_needed_expert"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 4)


def test_the_expert_is_needed_where_the_others_outvote_him():
    def needed(*labels: int) -> float:
        masks = torch.tensor(labels).view(1, -1, 1, 1)
        everyone, none = masks != 255, torch.zeros(1, 1, 1).long()
        result = expert_accuracy(masks.float(), masks, everyone.view(1, -1), none + 1, none)
        return float(result["who_needed_expert"])

    assert needed(1, 0, 0, 1, 1) == 1 / 2  # two to two
    assert needed(1, 0, 0, 1, 2) == 1.0  # two of one kind to one
    assert needed(1, 0, 2, 1, 1) == 0.0
    assert needed(1, 0, 2, 255, 1) == 1 / 2
    assert needed(1, 0, 255, 255, 255) == 1.0


def test_a_wrong_who_can_be_more_necessary_than_the_expert():
    # Ada, the expert, and Ben are right; Cem alone says something else.
    masks = rows((1,) * 4, (1,) * 4, (0,) * 4)
    drawn = F.one_hot(masks, 2).movedim(-1, 2).float().clamp(0.01, 0.99).log()
    reference, expert = row(1, 1, 1, 1), row(0, 0, 0, 0)
    necessity = {}
    for name, shares in (("Ada", (0.9, 0.06, 0.04)), ("Cem", (0.04, 0.06, 0.9))):
        who = torch.tensor(shares).view(1, 3, 1, 1).expand(1, 3, 1, 4)
        necessity[name] = removal_effects(who.log(), drawn, masks, EVERYONE)["who_necessity"]
    needed = expert_accuracy(masks.float(), masks, EVERYONE, reference, expert)["who_needed_expert"]
    assert needed == 1 / 2  # Ben and Cem, by lot
    assert necessity == {"Ada": 0, "Cem": 1}


def test_pixels_without_an_expert_do_not_count():
    expert = row(255, 255, 0, 255, 255, 255)
    result = expert_accuracy(WHO, MASKS, EVERYONE, REFERENCE, expert)
    assert result["who_accuracy_expert"] == 1
    assert result["who_ceiling_expert"] == 1 / 2
    without_expert = torch.tensor([[False, True, True]])
    result = expert_accuracy(WHO, MASKS, without_expert, REFERENCE, expert)
    assert all(value.isnan() for value in result.values())


def test_pixels_are_pooled_over_batches():
    metric = WhoAccuracy()
    for pixels in (slice(0, 1), slice(1, 6)):
        metric.update(
            who=WHO[..., pixels],
            masks=MASKS[..., pixels],
            present=EVERYONE,
            reference=REFERENCE[..., pixels],
        )
    whole = who_accuracy(WHO, MASKS, EVERYONE, REFERENCE)
    assert metric.compute() == {name: pytest.approx(float(v)) for name, v in whole.items()}


def test_nan_without_a_case():
    agreed = torch.ones_like(MASKS)
    metric, expert = WhoAccuracy(), ExpertAccuracy()
    arguments = {"who": WHO, "masks": agreed, "present": EVERYONE, "reference": REFERENCE}
    metric.update(**arguments)
    expert.update(**arguments, expert=torch.zeros_like(REFERENCE))
    expert.update(**arguments)  # data without experts
    metric.update(who=WHO, masks=MASKS, present=EVERYONE)  # data without a reference
    for value in (*metric.compute().values(), *expert.compute().values()):
        assert value.isnan()


masks_and_references = st.tuples(
    hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(bool, (2, 3)),
    hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
)


@settings(max_examples=50)
@given(masks_and_references)
def test_results_are_shares_and_an_oracle_is_perfect(arrays):
    masks, reference, expert, present, who = map(torch.from_numpy, arrays)
    results = who_accuracy(who, masks, present, reference)
    results |= expert_accuracy(who, masks, present, reference, expert)
    assert all(value.isnan() or 0 <= value <= 1 for value in results.values())

    right = (masks == reference[:, None]).float()
    oracle = who_accuracy(right, masks, present, reference)["who_accuracy_d1"]
    assert oracle.isnan() or oracle == 1
    owns = torch.arange(3)[:, None, None] == expert[:, None]
    oracle = expert_accuracy(owns.float(), masks, present, reference, expert)["who_accuracy_expert"]
    assert oracle.isnan() or oracle == 1


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"`masks` has shape \[1, 2, 1, 6\], expected \[B=1, N=3"):
        who_accuracy(WHO, MASKS[:, :2], EVERYONE, REFERENCE)
    with pytest.raises(
        ValueError, match=r"`expert` has shape \[1, 6\], expected \[B=1, H=1, W=6\]"
    ):
        expert_accuracy(WHO, MASKS, EVERYONE, REFERENCE, REFERENCE[:, 0])
    with pytest.raises(
        ValueError, match=r"`present` has shape \[1, 3, 1, 6\], expected \[B=1, N=3\]"
    ):
        disagreement(MASKS, MASKS)
