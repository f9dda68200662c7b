from __future__ import annotations

from itertools import permutations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tax_lightning.metrics.why import WhyFaithfulness, why_faithfulness

WEIGHTS = (0.5, 0.3, 0.2)
FIRST_CLASS = (0.9, 0.2, 0.6)  # what each kernel says of class 0, of two classes


def at_pixels(weights: Tensor, first_class: Tensor) -> dict[str, Tensor]:
    """One image of one line: M annotators with a kernel each, from ``[P, M]`` and ``[P, M]``."""
    probs = torch.stack([first_class, 1 - first_class], dim=1)  # [P, C, M]
    return {
        "log_who": weights.log().T[None, :, None],
        "log_within": torch.zeros(1, weights.shape[1], 1, 1, len(weights)),
        "log_kernel_probs": probs.log().permute(2, 1, 0)[None, :, None, :, None],
        "cases": torch.ones(1, 1, len(weights), dtype=torch.bool),
    }


def one_pixel(weights=WEIGHTS, first_class=FIRST_CLASS) -> dict[str, Tensor]:
    return at_pixels(torch.tensor([weights]), torch.tensor([first_class]))


def from_odds(odds: float) -> float:
    return odds / (1 + odds)


def test_by_hand_where_probabilities_are_mixed():
    # p(0) = 0.45 + 0.06 + 0.12; the shares are in this proportion, so the 3rd goes second
    result = why_faithfulness(**one_pixel(), mixing="prob")
    assert result["why_deletion_area"] == pytest.approx((0.63 + 0.18 / 0.5 + 0.2) / 3)
    assert result["why_sufficiency_1"] == 1
    assert result["why_sufficiency_1_random"] == pytest.approx(2 / 3)
    assert result["why_sufficiency_3"] == 1
    entropy = -sum(w * np.log(w) for w in WEIGHTS)
    assert result["why_size"] == pytest.approx(np.exp(entropy))


def test_by_hand_where_logits_are_mixed():
    # the share is the weight, so the 2nd goes second; odds of class 0 are 9, 1/4 and 3/2
    curve = (
        from_odds(9**0.5 * 0.25**0.3 * 1.5**0.2),
        from_odds(0.25**0.6 * 1.5**0.4),
        from_odds(1.5),
    )
    result = why_faithfulness(**one_pixel(), mixing="logit")
    assert result["why_deletion_area"] == pytest.approx(sum(curve) / 3)


def test_kernels_and_annotators_count_alike():
    split = one_pixel()
    split["log_who"] = torch.tensor([0.8, 0.2]).log().view(1, 2, 1, 1)
    within = torch.tensor([[0.625, 0.375], [1.0, 0.0]])  # the 4th kernel is pruned
    split["log_within"] = within.log().view(1, 2, 2, 1, 1)
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.01, 0.99]])
    split["log_kernel_probs"] = probs.log().view(1, 2, 2, 2, 1, 1)
    torch.testing.assert_close(why_faithfulness(**split), why_faithfulness(**one_pixel()))


def test_one_kernel_may_not_be_enough():
    # the leader says 1; together the others outvote it: 0.4 * 0.2 + 0.3 * 0.9 + 0.3 * 0.9 = 0.62
    result = why_faithfulness(**one_pixel((0.3, 0.4, 0.3), (0.9, 0.2, 0.9)), mixing="logit")
    assert result["why_sufficiency_1"] == 0
    assert result["why_sufficiency_3"] == 1
    # by share the first is 0.27 / 0.62, and says 0
    assert why_faithfulness(**one_pixel((0.3, 0.4, 0.3), (0.9, 0.2, 0.9)))["why_sufficiency_1"] == 1


def test_three_kernels_may_not_be_enough_either():
    weights, says = (0.15, 0.15, 0.15, 0.11, 0.11, 0.11, 0.11, 0.11), (0.2,) * 3 + (0.8,) * 5
    result = why_faithfulness(**one_pixel(weights, says), mixing="logit")
    assert result["why_sufficiency_3"] == 0
    assert result["why_sufficiency_1_random"] == pytest.approx(5 / 8)


def test_random_orders_are_the_expectation_over_all_orders():
    curves = [
        [0.63]
        + [
            sum(WEIGHTS[k] * FIRST_CLASS[k] for k in order[gone:])
            / sum(WEIGHTS[k] for k in order[gone:])
            for gone in (1, 2)
        ]
        for order in permutations(range(3))
    ]
    result = why_faithfulness(**one_pixel(), orders=400)
    assert result["why_deletion_area_random"] == pytest.approx(np.mean(curves), abs=0.01)
    assert result["why_deletion_area_random"] > result["why_deletion_area"] + 0.1
    few = [why_faithfulness(**one_pixel(), orders=1, seed=seed) for seed in (0, 0, 1, 2, 3)]
    areas = [float(values["why_deletion_area_random"]) for values in few]
    assert areas[0] == areas[1]
    assert len(set(areas)) > 1


def test_removing_what_decides_shows_where_all_else_disagrees():
    result = why_faithfulness(**one_pixel((0.97, 0.01, 0.01, 0.01), (0.99, 0.01, 0.01, 0.01)))
    assert result["why_deletion_area"] < 0.3 < result["why_deletion_area_random"]
    assert result["why_size"] < 1.3


def test_only_cases_count_and_they_are_spread_evenly():
    alike = torch.arange(100) % 10 == 0
    weights = torch.where(alike[:, None], torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    batch = at_pixels(weights, torch.full((100, 2), 0.7))
    assert why_faithfulness(**batch, pixels=100)["why_size"] == pytest.approx(1.1)
    assert why_faithfulness(**batch, pixels=10)["why_size"] == pytest.approx(2)
    batch["cases"] = ~alike[None, None]
    assert why_faithfulness(**batch)["why_size"] == 1


def test_a_kernel_without_weight_at_a_pixel_adds_nothing():
    batch = at_pixels(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.8, 0.8]] * 2))
    area = why_faithfulness(**batch)["why_deletion_area"]
    assert area == pytest.approx((0.8 / 2 + 0.8) / 2)


def test_metric_pools_pixels():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 4, generator=generator)
    batch = at_pixels(weights / weights.sum(1, keepdim=True), torch.rand(7, 4, generator=generator))
    metric = WhyFaithfulness(mixing="logit")
    for pixels in (slice(0, 2), slice(2, 7)):
        metric.update(**{name: tensor[..., pixels] for name, tensor in batch.items()})
    expected = why_faithfulness(**batch, mixing="logit")
    torch.testing.assert_close(metric.compute(), expected)
    metric.update(**(batch | {"cases": torch.zeros_like(batch["cases"])}))
    torch.testing.assert_close(metric.compute(), expected)


def test_nan_without_a_case():
    batch = one_pixel()
    batch["cases"] = ~batch["cases"]
    metric = WhyFaithfulness()
    metric.update(**batch)
    assert all(value.isnan() for value in metric.compute().values())


@settings(max_examples=30)
@given(
    hnp.arrays(np.float32, (2, 2, 3, 2, 2), elements=st.floats(-8, 8, width=32)),
    hnp.arrays(np.float32, (2, 2, 3, 3, 2, 2), elements=st.floats(-8, 8, width=32)),
    st.sampled_from(["prob", "logit"]),
)
def test_results_are_in_range(evidence, logits, mixing):
    evidence = torch.from_numpy(evidence)
    result = why_faithfulness(
        log_who=evidence.logsumexp(2).log_softmax(1),
        log_within=evidence.log_softmax(2),
        log_kernel_probs=torch.from_numpy(logits).log_softmax(3),
        cases=torch.ones(2, 2, 2, dtype=torch.bool),
        mixing=mixing,
    )
    size = result.pop("why_size")
    assert 1 - 1e-4 <= size <= 6 + 1e-4
    assert all(0 <= value <= 1 + 1e-5 for value in result.values())


def test_wrong_arguments_are_named():
    batch = one_pixel()
    with pytest.raises(ValueError, match=r"`cases` has dtype torch.int64, expected torch.bool"):
        why_faithfulness(**(batch | {"cases": batch["cases"].long()}))
    with pytest.raises(ValueError, match=r"`log_within` has shape \[1, 2, 1, 1, 1\], expected"):
        why_faithfulness(**(batch | {"log_within": batch["log_within"][:, :2]}))
    with pytest.raises(ValueError, match=r"`mixing` is 'mean', expected one of"):
        WhyFaithfulness(mixing="mean")
    with pytest.raises(ValueError, match=r"`pixels` is 0 and `orders` is 4, expected at least 1"):
        WhyFaithfulness(pixels=0)
