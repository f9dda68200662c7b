from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tax_lightning.metrics.usage import (
    AssignmentUsage,
    PrototypeUsage,
    assignment_information,
    prototype_max_cosine,
    prototype_usage,
    pruned_share,
)


def everywhere(*shares: tuple[float, ...]) -> torch.Tensor:
    """The same shares at each pixel of one image ``[1, N, K, 2, 2]``."""
    return torch.tensor(shares)[None, :, :, None, None].expand(-1, -1, -1, 2, 2)


def test_usage_by_hand():
    within = everywhere(
        (0.25, 0.25, 0.25, 0.25),  # all alike
        (1.0, 0.0, 0.0, 0.0),  # one does all
        (0.5, 0.5, 0.0, 0.0),  # two pruned
    )
    torch.testing.assert_close(prototype_usage(within), torch.tensor([1.0, 0.25, 0.5]))


def test_the_mean_share_counts_not_the_share_at_a_pixel():
    # At each pixel one kernel does all, yet over the image both are used alike.
    within = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None, :, None]
    assert prototype_usage(within).item() == pytest.approx(1)


def test_metric_pools_pixels_of_batches_of_any_size():
    metric = PrototypeUsage(["Ada"], kernels=2)
    one, other = everywhere((1.0, 0.0)), everywhere((0.0, 1.0))
    metric.update(within=one)
    metric.update(within=torch.cat([other, other, other]))
    result = metric.compute()
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert result["prototype_usage/Ada"] == pytest.approx(np.exp(entropy) / 2)
    assert result["prototype_usage/mean"] == result["prototype_usage/Ada"]


def test_nan_without_a_case():
    metric = PrototypeUsage(["Ada", "Ben"], kernels=2)
    metric.update(within=torch.zeros(0, 2, 2, 4, 4))
    assert all(value.isnan() for value in metric.compute().values())


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (2, 2, 3, 2, 2), elements=st.floats(-8, 8, width=32)))
def test_usage_is_between_one_kernel_and_all(scores):
    within = torch.from_numpy(scores).softmax(2)
    usage = prototype_usage(within)
    assert ((usage >= 1 / 3 - 1e-5) & (usage <= 1 + 1e-5)).all()
    torch.testing.assert_close(prototype_usage(within.bfloat16()), usage, rtol=0, atol=0.02)


def test_wrong_arguments_are_named():
    metric = PrototypeUsage(["Ada", "Ben"], kernels=2)
    with pytest.raises(
        ValueError, match=r"`within` has shape \[1, 2, 3, 4, 4\], expected \[B=1, N=2, K=2, H, W\]"
    ):
        metric.update(within=torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(
        ValueError, match=r"`within` has shape \[2, 3\], expected \[B, N, K, H, W\]"
    ):
        prototype_usage(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`kernels` is 0, expected at least 1"):
        PrototypeUsage(["Ada"], kernels=0)


def test_dead_share_by_hand():
    # Over three pixels Ada's first and third prototypes lead; Ben's first leads alone.
    within = torch.tensor(
        [
            [[0.6, 0.1, 0.1], [0.3, 0.3, 0.3], [0.1, 0.6, 0.6], [0.0, 0.0, 0.0]],
            [[0.4, 0.4, 0.4], [0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]],
        ]
    )
    log_within = within.log()[None, :, :, None]  # Ada's fourth prototype is pruned
    assert pruned_share(log_within).tolist() == [2 / 4, 3 / 4]
    assert pruned_share(log_within[..., :1]).tolist() == [3 / 4, 3 / 4]
    assert pruned_share(log_within[..., :0]).isnan().all()


def test_information_by_hand():
    # Two pixels, a = (0.9, 0.1) and (0.5, 0.5): the mean is (0.7, 0.3)
    log_who = torch.tensor([[0.9, 0.5], [0.1, 0.5]]).log()[None, :, None]
    log_within = torch.zeros(1, 2, 1, 1, 2)

    def entropy(*shares: float) -> float:
        return -sum(share * np.log(share) for share in shares)

    expected = entropy(0.7, 0.3) - (entropy(0.9, 0.1) + entropy(0.5, 0.5)) / 2
    assert assignment_information(log_who, log_within).item() == pytest.approx(expected)
    # kernels within one annotator count as annotators do
    halves = log_who.unsqueeze(1)
    assert assignment_information(torch.zeros(1, 1, 1, 2), halves).item() == pytest.approx(expected)


def test_information_is_zero_where_the_assignment_has_collapsed():
    log_who = torch.tensor([0.7, 0.3]).log().view(1, 2, 1, 1).expand(2, 2, 4, 4)
    log_within = torch.tensor([1.0, 0.0]).log().view(1, 1, 2, 1, 1).expand(2, 2, 2, 4, 4)
    assert assignment_information(log_who, log_within).item() == pytest.approx(0, abs=1e-6)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (2, 2, 3, 2, 2), elements=st.floats(-80, 80, width=32)))
def test_information_is_between_nothing_and_all(evidence):
    evidence = torch.from_numpy(evidence)
    log_who, log_within = evidence.logsumexp(2).log_softmax(1), evidence.log_softmax(2)
    information = assignment_information(log_who, log_within)
    assert 0 <= information <= np.log(6) + 1e-5


def test_assignment_usage_pools_pixels_of_batches_of_any_size():
    log_who = torch.rand(5, 2, 3, 3).softmax(1).log()
    log_within = (8 * torch.rand(5, 2, 4, 3, 3)).softmax(2).log()
    metric = AssignmentUsage(["Ada", "Ben"], kernels=4)
    for images in (slice(0, 1), slice(1, 5)):
        metric.update(log_who=log_who[images], log_within=log_within[images])
    result = metric.compute()
    pruned = pruned_share(log_within)
    assert result["prototype_pruned/Ada"] == pruned[0]
    assert result["prototype_pruned/Ben"] == pruned[1]
    assert result["prototype_pruned/mean"] == pruned.mean()
    expected = assignment_information(log_who, log_within)
    assert result["assignment_information"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_assignment_usage_is_nan_without_a_case():
    metric = AssignmentUsage(["Ada", "Ben"], kernels=2)
    metric.update(log_who=torch.zeros(0, 2, 4, 4), log_within=torch.zeros(0, 2, 2, 4, 4))
    assert all(value.isnan() for value in metric.compute().values())


def test_max_cosine_by_hand():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.6, 0.8], [-1.0, 0.0]]])
    assert prototype_max_cosine(vectors).item() == pytest.approx(0.8)
    active = torch.tensor([[True, True], [False, True]])
    assert prototype_max_cosine(vectors, active).item() == 0
    active = torch.tensor([[True, False], [False, True]])
    assert prototype_max_cosine(vectors, active).item() == -1
    assert prototype_max_cosine(vectors[:1, :1]).isnan()
    assert prototype_max_cosine(vectors, torch.zeros(2, 2, dtype=torch.bool)).isnan()


def test_wrong_arguments_of_the_assignment_are_named():
    metric = AssignmentUsage(["Ada", "Ben"], kernels=2)
    with pytest.raises(
        ValueError, match=r"`log_who` has shape \[1, 3, 4, 4\], expected \[B=1, N=2"
    ):
        metric.update(log_who=torch.zeros(1, 3, 4, 4), log_within=torch.zeros(1, 2, 2, 4, 4))
    with pytest.raises(ValueError, match="`kernels` is 0, expected at least 1"):
        AssignmentUsage(["Ada"], kernels=0)
    with pytest.raises(ValueError, match=r"`active` has shape \[2\], expected \[N=1, K=2\]"):
        prototype_max_cosine(torch.ones(1, 2, 3), torch.ones(2, dtype=torch.bool))
