"""The mixture of segmentations, by hand and by its properties."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.models.mixture import mix, mix_kernels, probs_of, split, unit_length

INF = float("inf")


def weights_of(*weights: float) -> Tensor:
    """Logarithms of weights at one pixel, ``[M, 1, 1]``."""
    return torch.tensor(weights).log().view(-1, 1, 1)


def saying(*rows: tuple[float, ...]) -> Tensor:
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
    mixed = mix(weights_of(0.5, 0.2, 0.3), saying((0.8, 0.2), (0.5, 0.5), (0.1, 0.9)))
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


# ---------------------------------------------------------------------- the parts of it


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.arange(1, 1 + value.numel(), dtype=value.dtype).view_as(value).cos()
    return torch.autograd.grad((value * weight).sum(), inputs, retain_graph=True)


@given(numbers(2, 3, 4), st.sampled_from([0, 1, 2, -1, -2, -3]))
def test_shares_and_sum_and_their_gradients_are_those_of_torch(values, dim):
    values.requires_grad_()
    shares, total = split(values, dim)
    for ours, theirs in ((shares, values.softmax(dim)), (total, values.logsumexp(dim))):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(gradients(ours, values), gradients(theirs, values))


def test_shares_of_those_left_out_and_of_large_numbers():
    values = torch.tensor([[-INF, 1e4, 1e4], [-INF, -1e4, -INF]], requires_grad=True)
    shares, total = split(values, dim=1)
    expected = torch.tensor([[0, 0.5, 0.5], [0, 1, 0]])
    torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(total, torch.tensor([1e4 + np.log(2).item(), -1e4]))
    total.sum().backward()
    torch.testing.assert_close(values.grad, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_kernels_are_mixed_as_their_probabilities(classes):
    evidence = torch.randn(2, 3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    logits = torch.randn(2, 3, 4, classes, 5, 6, dtype=torch.double, requires_grad=True)
    within, log_odds = evidence.softmax(2), logits[:, :, :, 1:] - logits[:, :, :, :1]
    probs = logits.softmax(dim=3)
    torch.testing.assert_close(probs_of(log_odds), probs)
    ours = mix_kernels(within, log_odds)
    theirs = (within.unsqueeze(3) * probs).sum(dim=2).log()
    torch.testing.assert_close(ours, theirs)
    leaves = evidence, logits
    torch.testing.assert_close(gradients(ours, *leaves), gradients(theirs, *leaves))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_kernel_that_is_certain_and_wrong_still_learns(classes):
    log_odds = torch.full((1, 1, 2, classes - 1, 1, 1), 1e4, requires_grad=True)
    mixed = mix_kernels(torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1), log_odds)
    assert mixed.isfinite().all()
    mixed[:, :, 0].sum().backward()  # the class that both deny
    assert log_odds.grad.isfinite().all()
    assert (log_odds.grad[:, :, 0] < 0).all()
    assert (log_odds.grad[:, :, 1] == 0).all()  # its weight is 0


def test_segmentations_that_are_not_taught_get_no_gradient():
    log_weights = torch.randn(1, 3, 1, 4).log_softmax(1).requires_grad_()
    log_probs = torch.randn(1, 3, 2, 1, 4).log_softmax(2).requires_grad_()
    taught = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]]).bool().view(1, 3, 1, 4)
    ours, theirs = mix(log_weights, log_probs, taught), mix(log_weights, log_probs)
    torch.testing.assert_close(ours, theirs)
    leaves = log_weights, log_probs
    for_weights, for_probs = gradients(theirs, *leaves)
    expected = for_weights, for_probs * taught.unsqueeze(2)
    torch.testing.assert_close(gradients(ours, *leaves), expected)


@given(numbers(2, 3, 4, 5))
def test_vectors_of_unit_length_and_their_gradient(vectors):
    vectors = (vectors + 1e-3).requires_grad_()
    ours, theirs = unit_length(vectors), F.normalize(vectors, dim=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, vectors), gradients(theirs, vectors))
