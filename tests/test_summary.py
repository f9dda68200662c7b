import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_explanation, quarters

from tax_lightning.visualization.palette import annotator_palette
from tax_lightning.visualization.summary import MOST_NAMED, Summary, cast_of


def stripes(widths):
    """An explanation in which annotator n decides ``widths[n]`` columns."""
    leader = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
    names = [f"rater {n}" for n in range(len(widths))]
    return make_explanation(leader.expand(1, 2, -1), annotators=names)


def cast_for(explanation):
    return cast_of(explanation.annotators, Summary.of(explanation).usage)


def test_twelve_are_all_named_in_the_colours_of_their_positions():
    cast = cast_for(stripes([1] * 12))
    assert cast.names == tuple(f"rater {n}" for n in range(12))
    assert cast.colours == annotator_palette(12)
    assert cast.slots.tolist() == list(range(12))
    np.testing.assert_allclose(cast.parts, 1 / 12)


def test_of_thirteen_those_who_decide_most_are_named():
    widths = [3] * 13
    widths[2], widths[7] = 0, 1
    cast = cast_for(stripes(widths))
    assert len(cast.names) == 12
    assert cast.names[-1] == "2 others"
    assert "rater 2" not in cast.names
    assert "rater 7" not in cast.names
    assert cast.slots[[2, 7]].tolist() == [11, 11]
    np.testing.assert_allclose(cast.parts, [3 / 34] * 11 + [1 / 34])


def test_of_many_those_who_decide_more_come_first():
    cast = cast_for(stripes([1, 1, 3, *[1] * 10, 2]))
    assert cast.names[:3] == ("rater 2", "rater 13", "rater 0")
    assert cast.slots[[2, 13, 0, 12]].tolist() == [0, 1, 2, 11]


def test_where_nobody_decides_there_are_no_parts():
    leader, _ = quarters()
    cast = cast_for(make_explanation(leader, unanimous=torch.ones_like(leader).bool()))
    assert cast.names == ("Ana", "Ben", "Cleo")
    assert np.isnan(cast.parts).all()


@given(widths=st.lists(st.integers(0, 4), min_size=1, max_size=45).filter(any))
def test_every_annotator_has_one_entry_and_the_parts_sum_to_one(widths):
    cast = cast_for(stripes(widths))
    assert len(cast.names) == len(cast.colours) == len(cast.parts) == min(len(widths), MOST_NAMED)
    assert len(set(cast.colours)) == len(cast.colours)
    np.testing.assert_allclose(cast.parts.sum(), 1)
    named = len(cast.names) - (len(widths) > MOST_NAMED)
    for n, slot in enumerate(cast.slots):
        if slot < named:
            assert cast.names[slot] == f"rater {n}"
            np.testing.assert_allclose(cast.parts[slot], widths[n] / sum(widths))
    hidden = [widths[n] for n, slot in enumerate(cast.slots) if slot >= named]
    shown = [widths[n] for n, slot in enumerate(cast.slots) if slot < named]
    assert max(hidden, default=0) <= min(shown)


def test_summary_of_known_quarters():
    leader, unanimous = quarters()  # 0, 1, 2 and an unanimous quarter; Ben draws cell everywhere
    summary = Summary.of(make_explanation(leader, unanimous=unanimous))
    assert summary.unanimous == 0.25
    assert summary.largest_weight == 1
    assert summary.usage == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert summary.kernel_usage[:, 0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_summaries_add_up():
    leader, unanimous = quarters()
    one = Summary.of(make_explanation(leader, unanimous=unanimous))
    both = Summary.of(
        make_explanation(torch.cat([leader, leader]), unanimous=unanimous.repeat(2, 1, 1))
    )
    total = one + one
    assert total.pixels == both.pixels
    assert np.array_equal(total.led, both.led)


def test_summary_where_nothing_is_decided():
    leader = torch.zeros(1, 4, 4, dtype=torch.int64)
    summary = Summary.of(make_explanation(leader, unanimous=torch.ones(1, 4, 4, dtype=torch.bool)))
    assert summary.unanimous == 1
    assert np.isnan(summary.usage).all()
    assert summary.caveat is None
