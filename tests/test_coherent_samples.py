"""Samples that a model holds possible: right shares, whole outlines, the same at every call."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.models.samples import coherent_samples


@given(st.floats(0.01, 0.99), st.integers(1, 40))
def test_shares_of_two_classes_are_exact_to_half_a_sample(probability, samples):
    probs = torch.tensor([1 - probability, probability], dtype=torch.float64).view(2, 1, 1)
    share = coherent_samples(probs.log(), samples).double().mean()
    assert abs(share - probability) <= 0.5 / samples + 1e-9


def test_shares_of_three_classes():
    probs = torch.tensor([0.6, 0.3, 0.1]).view(3, 1, 1)
    shares = coherent_samples(probs.log(), 1024).flatten().bincount() / 1024
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)


def test_samples_of_two_classes_are_nested():
    """Every sample is a region that holds the next one: outlines, not grains."""
    foreground = torch.rand(1, 16, 16)
    probs = torch.cat([1 - foreground, foreground])
    drawn = coherent_samples(probs.log(), 9)
    assert (drawn[:-1] >= drawn[1:]).all()


def test_annotators_and_images_keep_their_axes_and_every_call_is_the_same():
    log_probs = torch.randn(2, 5, 3, 4, 6).log_softmax(dim=2)
    drawn = coherent_samples(log_probs, 7)
    assert drawn.shape == (2, 5, 7, 4, 6)
    assert torch.equal(drawn, coherent_samples(log_probs, 7))
    assert torch.equal(drawn[1, 3], coherent_samples(log_probs[1, 3], 7))


def test_one_sample_is_the_largest_probability():
    log_probs = torch.randn(2, 4, 4).log_softmax(dim=0)
    assert torch.equal(coherent_samples(log_probs, 1)[0], log_probs.argmax(dim=0))


def test_impossible_classes_are_never_drawn():
    log_probs = torch.tensor([1.0, 0.0, 0.0]).log().view(3, 1, 1)
    assert (coherent_samples(log_probs, 50) == 0).all()


def test_no_samples():
    with pytest.raises(ValueError, match="samples=0: expected at least 1"):
        coherent_samples(torch.zeros(2, 1, 1), 0)
