import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from made_up import TRUSTED, make_explanation, quarters

from tax_lightning.explanation import TrustBasis


def test_leader_and_reason_are_read_from_the_maps():
    leader, undisputed = quarters()
    explanation = make_explanation(leader, kernel=leader, undisputed=undisputed, weight=0.8)
    assert torch.equal(explanation.leader, leader)
    assert torch.equal(explanation.reason, leader)
    assert torch.equal(explanation.reason_kernel, leader)
    torch.testing.assert_close(explanation.reason_share, torch.full(leader.shape, 0.4))
    assert torch.equal(explanation.undisputed, undisputed)


def test_the_reason_is_the_largest_share_and_its_own_kernel():
    explanation = make_explanation(quarters()[0], weight=0.8)
    why = torch.arange(3).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    share = torch.tensor([0.1, 0.2, 0.6]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    explanation = dataclasses.replace(explanation, why=why, why_share=share)
    assert explanation.reason.eq(2).all()
    assert explanation.reason_kernel.eq(2).all()


def test_support_votes_and_dissent_by_hand():
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]).view(1, 3, 2, 1, 1)
    explanation = dataclasses.replace(
        make_explanation(torch.zeros(1, 1, 1).long()),
        probs=torch.tensor([0.6, 0.4]).view(1, 2, 1, 1),
        annotator_probs=probs,
        why_own=torch.tensor([0, 2, 1]).view(1, 3, 1, 1),
    )
    torch.testing.assert_close(explanation.support.flatten(), torch.tensor([0.9, 0.3, 0.6]))
    assert explanation.votes.item() == pytest.approx(1.8)
    found = explanation.dissenter, explanation.dissent, explanation.dissent_kernel
    assert [value.item() for value in found] == [1, 1, 2]
    # Pairs differ with .9 * .7 + .1 * .3, .9 * .4 + .1 * .6 and .3 * .4 + .7 * .6.
    assert explanation.dispute.item() == pytest.approx((0.66 + 0.42 + 0.54) / 3)


@pytest.mark.parametrize(
    ("weight", "leader", "trust", "expected"),
    [
        (0.8, 1, TRUSTED, True),
        (0.4, 1, TRUSTED, False),  # shared
        (0.8, 1, TrustBasis("constant", "majority"), False),  # the same everywhere
    ],
)
def test_who_decides_is_said_only_where_it_is_true(weight, leader, trust, expected):
    explanation = make_explanation(torch.full((1, 1, 1), leader), weight=weight, trust=trust)
    assert explanation.decides.item() is expected


def test_a_leader_who_would_say_otherwise_does_not_decide():
    explanation = make_explanation(torch.ones(1, 1, 1).long(), weight=0.6)
    outvoted = dataclasses.replace(explanation, probs=explanation.probs.flip(1))
    assert explanation.decides.item()
    assert not outvoted.decides.item()


def test_decisions():
    leader, _ = quarters()
    explanation = make_explanation(leader, weight=0.8)
    assert torch.equal(explanation.decision, leader % 2)
    assert explanation.annotator_decisions[0, :, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("weight", "certainty"), [(1.0, 1.0), (1 / 3, 0.0), (2 / 3, 0.5)])
def test_certainty(weight, certainty):
    explanation = make_explanation(quarters()[0], weight=weight)
    torch.testing.assert_close(explanation.certainty, torch.full((1, 8, 8), certainty))


@given(weights=st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_certainty_stays_in_range(weights):
    names = [str(n) for n in range(len(weights))]
    explanation = make_explanation(torch.zeros(1, 1, 1, dtype=torch.int64), annotators=names)
    who = torch.tensor(weights).view(1, -1, 1, 1)
    explanation = dataclasses.replace(explanation, who=who / who.sum())
    assert 0 <= explanation.certainty.item() <= 1


def test_a_single_annotator_is_certain():
    leader = torch.zeros(1, 2, 2, dtype=torch.int64)
    explanation = make_explanation(leader, annotators=["Ana"])
    assert explanation.certainty.eq(1).all()
    assert explanation.dispute.eq(0).all()


def test_indexing_gives_one_image():
    leader = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).long()
    explanation = make_explanation(leader, ids=["a", "b"])
    for i in (1, -1):
        assert explanation[i].ids == ("b",)
        assert explanation[i].leader.eq(1).all()
        assert explanation[i].probs.shape == (1, 2, 4, 4)
    assert [single.ids for single in explanation] == [("a",), ("b",)]
    with pytest.raises(IndexError):
        explanation[2]


def test_crop_keeps_the_top_left():
    leader, undisputed = quarters()
    cropped = make_explanation(leader, undisputed=undisputed).part(0, 0, 4, 5)
    assert cropped.probs.shape[-2:] == (4, 5)
    assert torch.equal(cropped.leader, leader[:, :4, :5])
    assert not cropped.undisputed.any()


def test_moves_between_devices_like_a_tensor():
    # Lightning moves what predict_step returns, and would refuse a frozen dataclass without `to`.
    explanation = make_explanation(quarters()[0])
    assert explanation.leader.device.type == "cpu"
    moved = move_data_to_device(explanation, torch.device("meta"))
    assert {moved.probs.device.type, moved.leader.device.type} == {"meta"}
    assert moved.ids == explanation.ids


def test_survives_pickling():
    explanation = make_explanation(quarters()[0])
    again = pickle.loads(pickle.dumps(explanation))
    assert torch.equal(again.who, explanation.who)
    assert again.sources == explanation.sources


def test_wrong_shapes_are_named():
    explanation = make_explanation(quarters()[0])
    with pytest.raises(ValueError, match=r"who has shape \(1, 2, 8, 8\), expected \(1, 3, 8, 8\)"):
        dataclasses.replace(explanation, who=explanation.who[:, :2])
    with pytest.raises(ValueError, match="sources names 1 annotators, expected 3"):
        dataclasses.replace(explanation, sources=explanation.sources[:1])


def test_uncertainty_is_the_entropy_of_the_result_over_its_maximum():
    explanation = make_explanation(torch.zeros(1, 1, 3).long())
    p = torch.tensor([1.0, 0.75, 0.5])  # of 0.75 and 0.25: 0.8113 bits of one
    explanation = dataclasses.replace(explanation, probs=torch.stack([p, 1 - p]).view(1, 2, 1, 3))
    expected = torch.tensor([[[0.0, 0.8113, 1.0]]])
    torch.testing.assert_close(explanation.uncertainty, expected, atol=1e-4, rtol=0)
    three = make_explanation(torch.zeros(1, 1, 1).long(), classes=["background", "cell", "fibre"])
    even = dataclasses.replace(three, probs=torch.full((1, 3, 1, 1), 1 / 3))
    assert even.uncertainty.item() == pytest.approx(1)


def test_sampling_takes_the_same_pixels_of_every_map():
    leader, undisputed = quarters()
    explanation = make_explanation(leader, kernel=leader, undisputed=undisputed)
    sampled = explanation.sampled(torch.tensor([0, 7]), torch.tensor([1, 6, 6]))
    assert sampled.leader.tolist() == [[[0, 1, 1], [2, 0, 0]]]
    assert torch.equal(sampled.reason_kernel, sampled.leader)
    assert sampled.undisputed.tolist() == [[[False] * 3, [False, True, True]]]
    assert sampled.annotator_probs.shape == (1, 3, 2, 2, 3)
