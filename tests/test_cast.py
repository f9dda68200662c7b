import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_explanation, quarters

from tax_lightning.visualization.cast import MOST, cast_of
from tax_lightning.visualization.palette import annotator_palette


def stripes(widths):
    """An explanation in which annotator n decides ``widths[n]`` columns."""
    leader = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
    names = [f"rater {n}" for n in range(len(widths))]
    return make_explanation(leader.expand(1, 2, -1), annotators=names)


def test_twelve_are_all_named_in_the_colours_of_their_positions():
    cast = cast_of(stripes([1] * 12))
    assert cast.names == tuple(f"rater {n}" for n in range(12))
    assert cast.colours == annotator_palette(12)
    assert cast.slots.tolist() == list(range(12))
    np.testing.assert_allclose(cast.parts, 1 / 12)
    assert cast.named == 12


def test_of_thirteen_those_who_decide_most_are_named():
    widths = [3] * 13
    widths[2], widths[7] = 0, 1
    cast = cast_of(stripes(widths))
    assert cast.named == 11
    assert cast.names[-1] == "2 others"
    assert "rater 2" not in cast.names
    assert "rater 7" not in cast.names
    assert cast.slots[[2, 7]].tolist() == [11, 11]
    np.testing.assert_allclose(cast.parts, [3 / 34] * 11 + [1 / 34])


def test_whoever_decides_most_has_the_colour_of_the_position():
    widths = [1] * 30
    widths[25] = 9  # place 3 counted round the eleven, like 3 and 14
    cast = cast_of(stripes(widths))
    assert cast.slots[25] == 3
    assert cast.slots[3] == 4
    assert cast.slots[4] == 5


def test_where_nobody_decides_there_are_no_parts():
    leader, _ = quarters()
    cast = cast_of(make_explanation(leader, unanimous=torch.ones_like(leader).bool()))
    assert cast.names == ("Ana", "Ben", "Cleo")
    assert np.isnan(cast.parts).all()


@given(widths=st.lists(st.integers(0, 4), min_size=1, max_size=45).filter(any))
def test_every_annotator_has_one_entry_and_the_parts_sum_to_one(widths):
    cast = cast_of(stripes(widths))
    assert len(cast.names) == len(cast.colours) == len(cast.parts) == min(len(widths), MOST)
    assert len(set(cast.colours)) == len(cast.colours)
    np.testing.assert_allclose(cast.parts.sum(), 1)
    for n, slot in enumerate(cast.slots):
        if slot < cast.named:
            assert cast.names[slot] == f"rater {n}"
            np.testing.assert_allclose(cast.parts[slot], widths[n] / sum(widths))
    hidden = [widths[n] for n, slot in enumerate(cast.slots) if slot >= cast.named]
    shown = [widths[n] for n, slot in enumerate(cast.slots) if slot < cast.named]
    assert max(hidden, default=0) <= min(shown)
