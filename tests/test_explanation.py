import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from made_up import make_explanation, quarters


def test_leader_and_its_kernel_are_read_from_the_maps():
    leader, unanimous = quarters()
    explanation = make_explanation(leader, kernel=leader, unanimous=unanimous, weight=0.8)
    assert torch.equal(explanation.leader, leader)
    assert torch.equal(explanation.leader_kernel, leader)
    torch.testing.assert_close(explanation.leader_share, torch.full(leader.shape, 0.4))


def test_leader_kernel_is_that_of_the_leader_and_not_of_another():
    explanation = make_explanation(quarters()[0], weight=0.8)
    why = torch.arange(3).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    explanation = dataclasses.replace(explanation, why=why)
    assert torch.equal(explanation.leader_kernel, explanation.leader)


def test_decisions():
    leader, _ = quarters()
    explanation = make_explanation(leader, weight=0.8)
    assert torch.equal(explanation.decision, leader % 2)
    assert explanation.annotator_decisions[0, :, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("weight", "certainty", "entropy"),
    [(1.0, 1.0, 0.0), (1 / 3, 0.0, 1.0), (2 / 3, 0.5, 0.7896901)],
)
def test_certainty_and_entropy(weight, certainty, entropy):
    explanation = make_explanation(quarters()[0], weight=weight)
    torch.testing.assert_close(explanation.certainty, torch.full((1, 8, 8), certainty))
    torch.testing.assert_close(explanation.entropy, torch.full((1, 8, 8), entropy))


@given(weights=st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_certainty_and_entropy_stay_in_range(weights):
    names = [str(n) for n in range(len(weights))]
    explanation = make_explanation(torch.zeros(1, 1, 1, dtype=torch.int64), annotators=names)
    who = torch.tensor(weights).view(1, -1, 1, 1)
    explanation = dataclasses.replace(explanation, who=who / who.sum())
    assert 0 <= explanation.certainty.item() <= 1
    assert -1e-6 <= explanation.entropy.item() <= 1 + 1e-6


def test_a_single_annotator_is_certain():
    leader = torch.zeros(1, 2, 2, dtype=torch.int64)
    explanation = make_explanation(leader, annotators=["Ana"])
    assert explanation.certainty.eq(1).all()
    assert explanation.entropy.eq(0).all()


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
    leader, unanimous = quarters()
    cropped = make_explanation(leader, unanimous=unanimous).crop(4, 5)
    assert cropped.probs.shape[-2:] == (4, 5)
    assert torch.equal(cropped.leader, leader[:, :4, :5])
    assert not cropped.unanimous.any()


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
    leader, unanimous = quarters()
    explanation = make_explanation(leader, kernel=leader, unanimous=unanimous)
    sampled = explanation.sampled(torch.tensor([0, 7]), torch.tensor([1, 6, 6]))
    assert sampled.leader.tolist() == [[[0, 1, 1], [2, 0, 0]]]
    assert torch.equal(sampled.leader_kernel, sampled.leader)
    assert sampled.unanimous.tolist() == [[[False] * 3, [False, True, True]]]
    assert sampled.annotator_probs.shape == (1, 3, 2, 2, 3)
