from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tax_lightning.metrics import PrototypeUsage, prototype_usage


def everywhere(*shares: tuple[float, ...]) -> torch.Tensor:
    """The same shares at each pixel of one image ``[1, N, K, 2, 2]``."""
    return torch.tensor(shares)[None, :, :, None, None].expand(-1, -1, -1, 2, 2)


def test_usage_by_hand():
    within = everywhere(
        (0.25, 0.25, 0.25, 0.25),  # all alike
        (1.0, 0.0, 0.0, 0.0),  # one does all
        (0.5, 0.5, 0.0, 0.0),  # two dead
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
