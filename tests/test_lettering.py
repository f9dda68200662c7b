from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.visualization.lettering import shorten


@given(name=st.text(max_size=60), limit=st.integers(3, 40))
def test_shortened_names_fit_and_keep_both_ends(name, limit):
    short = shorten(name, limit)
    assert len(short) <= limit
    if len(name) > limit:
        assert short[0] == name[0]
        assert short[-1] == name[-1]
    else:
        assert short == name
