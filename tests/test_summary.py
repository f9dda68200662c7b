import numpy as np
import pytest
import torch
from made_up import make_explanation, quarters

from tax_lightning.visualization.summary import Summary


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
