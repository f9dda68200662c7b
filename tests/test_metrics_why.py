"""How many prototypes are the reason of something where annotators disagree."""

from __future__ import annotations

import math

import pytest
import torch
from small_maps import computed, everyone
from small_maps import maps as rows

from tax_lightning.metrics import PrototypesInUse


def in_use(*reasons: int, disputed: int | None = None) -> dict[str, float]:
    """Of two annotators with two prototypes each; the first so many pixels are disputed."""
    disputed = len(reasons) if disputed is None else disputed
    second = [1] * disputed + [0] * (len(reasons) - disputed)
    masks = rows(tuple([0] * len(reasons)), tuple(second))
    reason = torch.tensor(reasons)[None, None]
    return computed(PrototypesInUse(2, 2), reason=reason, masks=masks, present=everyone(2))


def test_all_alike_and_one_everywhere():
    assert in_use(0, 1, 2, 3) == {"prototypes_in_use": pytest.approx(1), "prototypes_idle": 0}
    assert in_use(2, 2, 2) == {"prototypes_in_use": pytest.approx(1 / 4), "prototypes_idle": 3 / 4}


def test_the_effective_number_by_hand():
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = in_use(0, 0, 0, 3)
    assert found["prototypes_in_use"] == pytest.approx(math.exp(entropy) / 4)
    assert found["prototypes_idle"] == 2 / 4


def test_only_disputed_pixels_count_and_without_any_nothing_is_said():
    assert in_use(0, 1, 2, 3, disputed=2) == in_use(0, 1)
    assert all(math.isnan(value) for value in in_use(0, 1, disputed=0).values())


def test_a_prototype_of_less_than_half_a_per_cent_is_idle():
    assert in_use(*[0] * 199, 1)["prototypes_idle"] == 2 / 4
    assert in_use(*[0] * 200, 1)["prototypes_idle"] == 3 / 4


def test_without_kernels_there_is_nothing_to_count():
    with pytest.raises(ValueError, match="`kernels` is 0, expected at least 1"):
        PrototypesInUse(1, kernels=0)
