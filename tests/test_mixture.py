"""The mixture of segmentations, by hand and by its properties."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tax_lightning.models.mixture import logsumexp, mix

INF = float("inf")


def weights_of(*weights: float) -> Tensor:
    """Logarithms of weights at one pixel, ``[M, 1, 1]``."""
    return torch.tensor(weights).log().view(-1, 1, 1)


def probs_of(*rows: tuple[float, ...]) -> Tensor:
    """Logarithms of what M say of C classes at one pixel, ``[M, C, 1, 1]``."""
    return torch.tensor(rows).log()[..., None, None]


def numbers(*shape: int):
    """Logits from -20 to 20."""
    return hnp.arrays(np.float64, shape, elements=st.floats(-20, 20)).map(torch.tensor)


# Two images, three to mix, four classes, pixels 1 x 2.
WEIGHTS = numbers(2, 3, 1, 2).map(lambda logits: logits.log_softmax(dim=1))
PROBS = numbers(2, 3, 4, 1, 2).map(lambda logits: logits.log_softmax(dim=2))


# ---------------------------------------------------------------------- mix


def test_probabilities_by_hand():
    mixed = mix(weights_of(0.5, 0.2, 0.3), probs_of((0.8, 0.2), (0.5, 0.5), (0.1, 0.9)))
    assert mixed.shape == (2, 1, 1)
    torch.testing.assert_close(mixed.exp().flatten(), torch.tensor([0.53, 0.47]))


@given(log_weights=WEIGHTS, log_probs=PROBS)
def test_what_is_mixed_is_probabilities(log_weights, log_probs):
    mixed = mix(log_weights, log_probs)
    assert mixed.shape == (2, 4, 1, 2)
    assert (mixed <= 1e-9).all()
    torch.testing.assert_close(mixed.exp().sum(dim=1), torch.ones(2, 1, 2).double())


@given(log_weights=WEIGHTS, log_probs=PROBS)
def test_the_order_does_not_matter_nor_do_those_who_agree_change_anything(log_weights, log_probs):
    order = [2, 0, 1]
    torch.testing.assert_close(
        mix(log_weights[:, order], log_probs[:, order]),
        mix(log_weights, log_probs),
    )
    same = log_probs[:, :1].expand_as(log_probs)
    torch.testing.assert_close(mix(log_weights, same), log_probs[:, 0])


@given(WEIGHTS, PROBS)
def test_mixed_probabilities_are_the_weighted_sum(log_weights, log_probs):
    expected = (log_weights.exp().unsqueeze(2) * log_probs.exp()).sum(dim=1)
    torch.testing.assert_close(mix(log_weights, log_probs).exp(), expected)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_also_of_certainty_and_of_those_left_out(scale):
    logits = (torch.randn(2, 3, 4, 5, 5) * scale).requires_grad_()
    evidence = (torch.randn(2, 3, 5, 5) * scale).requires_grad_()
    left = evidence.masked_fill(torch.tensor([False, True, False]).view(3, 1, 1), -INF)
    mixed = mix(left.log_softmax(dim=1), logits.log_softmax(dim=2))
    assert mixed.isfinite().all()
    mixed[:, 1].mean().backward()
    for gradient in (logits.grad, evidence.grad):
        assert gradient.isfinite().all()
        assert (gradient[:, 1] == 0).all()
    assert (logits.grad[:, [0, 2]] != 0).any()  # also a certain mistake is learnt from


# ---------------------------------------------------------------------- logsumexp


@given(numbers(2, 3, 4), st.sampled_from([0, 1, 2, -1, -2, -3]))
def test_logsumexp_and_its_gradient_are_those_of_torch(values, dim):
    values.requires_grad_()
    ours, theirs = logsumexp(values, dim), values.logsumexp(dim)
    torch.testing.assert_close(ours, theirs)
    weight = torch.arange(ours.numel(), dtype=ours.dtype).view_as(ours)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), values)
    torch.testing.assert_close(gradient, *torch.autograd.grad((theirs * weight).sum(), values))


def test_logsumexp_of_those_left_out_and_of_large_numbers():
    values = torch.tensor([[-INF, 1e4, 1e4], [-INF, -1e4, -INF]], requires_grad=True)
    summed = logsumexp(values, dim=1)
    torch.testing.assert_close(summed, torch.tensor([1e4 + np.log(2).item(), -1e4]))
    summed.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0, 0.5, 0.5], [0, 1, 0]]))
