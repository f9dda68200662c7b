"""What is said of images as a whole."""

import dataclasses

import numpy as np
import pytest
import torch
from made_up import make_explanation, quarters

from tax_lightning.explanation import TrustBasis
from tax_lightning.visualization.summary import Summary, cautions, trust_words


def test_summary_of_known_quarters():
    leader, undisputed = quarters()  # 0, 1, 2 and an undisputed quarter; Ben says cell
    summary = Summary.of(make_explanation(leader, undisputed=undisputed))
    assert summary.share_disputed == 0.75
    assert summary.mean_votes == pytest.approx((2 + 1 + 2) / 3)
    assert summary.usage == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert summary.kernel_usage[:, 0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_summaries_add_up():
    leader, undisputed = quarters()
    one = Summary.of(make_explanation(leader, undisputed=undisputed))
    both = Summary.of(
        make_explanation(torch.cat([leader, leader]), undisputed=undisputed.repeat(2, 1, 1))
    )
    total = one + one
    assert (total.pixels, total.votes) == (both.pixels, both.votes)
    assert np.array_equal(total.reasons, both.reasons)


def test_summary_where_nothing_is_disputed():
    leader = torch.zeros(1, 4, 4, dtype=torch.int64)
    summary = Summary.of(make_explanation(leader, undisputed=torch.ones_like(leader).bool()))
    assert summary.share_disputed == 0
    assert np.isnan(summary.usage).all()


def test_trust_is_told_with_its_scores_or_as_not_measured():
    constant = trust_words(TrustBasis("constant", "majority", (0.28, 0.24, 0.25)))
    assert "each annotator has one weight everywhere" in constant
    assert "what most annotators say" in constant
    assert (
        "equal weights 0.28, one weight an annotator 0.24, weights from the image 0.25" in constant
    )
    assert "was not measured" in trust_words(TrustBasis("image", "given"))
    assert "all annotators have the same weight" in trust_words(TrustBasis("uniform", "none"))


def with_probs(*second, **changes):
    """An explanation of one pixel at which each annotator says cell with this probability."""
    p = torch.tensor(second)
    explanation = make_explanation(torch.ones(1, 1, 1).long(), **changes)
    own = torch.stack([1 - p, p], dim=1).view(1, 3, 2, 1, 1)
    return dataclasses.replace(explanation, annotator_probs=own)


@pytest.mark.parametrize(
    ("explanation", "words"),
    [
        (with_probs(0.7, 0.7, 0.705), "the same of all annotators: nobody can be told apart"),
        (with_probs(0.7, 0.2, 0.7), "the same of Ana and Cleo: they cannot be told apart"),
        (make_explanation(torch.zeros(1, 2, 2).long()), "background everywhere: nothing was found"),
        (with_probs(0.1, 0.5, 0.9, trust=TrustBasis()), "Whom to trust was not measured"),
    ],
)
def test_what_would_mislead_is_called_by_name(explanation, words):
    assert any(words in caution for caution in cautions(explanation))


def test_nothing_is_said_of_what_does_not_mislead():
    assert cautions(with_probs(0.1, 0.5, 0.9)) == []
