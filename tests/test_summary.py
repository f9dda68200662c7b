import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_explanation, quarters

from tax_lightning.explanation import TrustBasis
from tax_lightning.findings import LabelCounts
from tax_lightning.palette import annotator_palette
from tax_lightning.visualization.summary import (
    DECIDES,
    OUTVOTED,
    SHARED,
    Summary,
    cast_of,
    standing,
    threshold_words,
    trust_words,
)

NAMES = ("Ana", "Ben", "Cleo")


def stripes(widths):
    """An explanation in which annotator n gives the first reason in ``widths[n]`` columns."""
    leader = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
    names = [f"rater {n}" for n in range(len(widths))]
    return make_explanation(leader.expand(1, 2, -1), annotators=names)


# ------------------------------------------------------------------------------------------- cast


def test_twelve_are_all_named_in_the_colours_of_their_positions():
    named, colours = cast_of(Summary.of(stripes([1] * 12)))
    assert named == tuple(range(12))
    assert colours == annotator_palette(12)


@given(widths=st.lists(st.integers(0, 4), min_size=13, max_size=45).filter(any))
def test_of_more_the_eleven_with_most_reasons_are_named_and_the_others_are_grey(widths):
    named, colours = cast_of(Summary.of(stripes(widths)))
    assert len(named) == 11
    others = [n for n in range(len(widths)) if n not in named]
    assert max(widths[n] for n in others) <= min(widths[n] for n in named)
    assert [colours[n] for n in named] == list(annotator_palette(11))
    assert {colours[n] for n in others} == {(150, 150, 150)}


# ----------------------------------------------------------------------------------------- counts


def test_summary_of_known_quarters():
    leader, undisputed = quarters()  # 0, 1, 2 and an undisputed quarter
    summary = Summary.of(make_explanation(leader, leader, undisputed))
    assert (summary.dispute, summary.foreground / summary.pixels) == (0.75, 0.25)
    third = 1 / 3
    assert summary.shares(summary.reasons) == pytest.approx(third * np.eye(3))
    assert summary.shares(summary.support) == pytest.approx([2 / 3, third, 2 / 3])
    assert summary.votes == pytest.approx(5 / 3)
    assert summary.shares(summary.decides) == pytest.approx([third] * 3)
    assert summary.shares(summary.apart) == pytest.approx(
        np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    )


def test_summaries_add_up():
    leader, undisputed = quarters()
    one = Summary.of(make_explanation(leader, undisputed=undisputed))
    both = make_explanation(torch.cat([leader, leader]), undisputed=undisputed.repeat(2, 1, 1))
    np.testing.assert_equal(dataclasses.asdict(one + one), dataclasses.asdict(Summary.of(both)))


def test_summary_where_nothing_is_disputed():
    leader = torch.zeros(1, 4, 4, dtype=torch.int64)
    explanation = make_explanation(leader, undisputed=torch.ones(1, 4, 4, dtype=torch.bool))
    summary = Summary.of(explanation)
    assert summary.dispute == 0
    assert np.isnan(summary.votes)
    assert np.isnan(summary.shares(summary.support)).all()


def test_who_leads_decides_only_with_half_of_the_weight_and_the_result():
    leader = torch.zeros(1, 1, 1).long()
    for weight, kind, expected in (
        (0.8, "image", DECIDES),
        (0.4, "image", SHARED),
        (0.8, "constant", SHARED),
    ):
        explanation = make_explanation(leader, weight=weight, trust=TrustBasis(kind))
        assert standing(explanation).item() == expected
    against = dataclasses.replace(explanation, probs=explanation.probs.flip(1))
    assert standing(against).item() == OUTVOTED


# ---------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        ("uniform", "All annotators weigh the same. Nothing told whom to believe."),
        ("constant", "The weights are one constant for each annotator. The images did not tell"),
        ("image", "The weights follow the image. That was better than one constant"),
    ],
)
def test_trust_is_told_with_its_reference_scores_and_meaning(kind, meaning):
    said = trust_words(TrustBasis(kind, "majority", (0.28, 0.24, 0.25)))
    assert "taught with the majority of the annotators themselves (log score, smaller is" in said
    assert "better: uniform 0.28, constant 0.24, image 0.25). " + meaning in said


def test_the_threshold_in_words():
    assert threshold_words(0.05) == "fewer than 1 pair of annotators in 20 is expected to differ"
    for threshold, number in ((0.15, "15"), (0.453, "45"), (0.0, "0")):
        expected = f"fewer than {number} of 100 pairs of annotators are expected to differ"
        assert threshold_words(threshold) == expected


@given(seed=st.integers(0, 1000))
def test_real_dispute_is_that_of_the_labels_given(seed):
    masks = np.random.default_rng(seed).choice([0, 1, 2, 255], (3, 4, 4))
    labels = [set(pixel) - {255} for pixel in masks.reshape(3, -1).T.tolist()]
    compared = [len(s) > 1 for s, p in zip(labels, masks.reshape(3, -1).T, strict=True)
                if (p != 255).sum() > 1]  # fmt: skip
    expected = pytest.approx(np.mean(compared)) if compared else None
    assert LabelCounts.of(masks, 3).dispute == expected
    assert LabelCounts.of(masks, 3, given=False).dispute is None
