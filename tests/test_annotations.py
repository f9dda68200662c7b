import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, quarters

from tax_lightning.explanation import Example
from tax_lightning.visualization.annotations import find_callouts, read_patches


def reasons(callouts):
    return [(c.reason.annotator, c.reason.source.kernel) for c in callouts]


def test_callouts_point_into_the_largest_regions_first():
    leader = torch.zeros(1, 20, 20).long()
    leader[:, :, 12:] = 1  # 8 columns
    leader[:, :4, 12:] = 2  # of which 4 rows go to another
    kernel = torch.zeros_like(leader)
    kernel[:, :, 12:] = 2
    callouts = find_callouts(make_explanation(leader, kernel, weight=0.8))
    assert reasons(callouts) == [(0, 0), (1, 2), (2, 2)]
    assert [callout.number for callout in callouts] == [1, 2, 3]
    assert 7 <= callouts[1].y <= 16  # well inside 16 rows by 8 columns
    assert callouts[1].x in (15, 16)
    assert callouts[2].y in (1, 2)
    assert callouts[0].share == pytest.approx(0.4)


def test_a_scattered_prototype_is_called_out_once_in_its_largest_part():
    leader = torch.zeros(1, 12, 12).long()
    leader[:, 1, 1] = leader[:, 5:9, 5:9] = 1
    callouts = find_callouts(make_explanation(leader))
    assert [c.reason.annotator for c in callouts] == [0, 1]
    assert 5 <= callouts[1].y < 9
    assert 5 <= callouts[1].x < 9


def test_a_spot_lies_where_a_prototypes_region_is_most_disputed():
    explanation = make_explanation(torch.zeros(1, 12, 12).long())
    p = torch.full((1, 3, 12, 12), 0.1)  # of a cell: disputed, but little
    p[:, 1:, 6:9, 2:5] = 0.7
    probs = torch.stack([1 - p, p], dim=2)
    explanation = dataclasses.replace(explanation, annotator_probs=probs, dispute_threshold=0.05)
    (callout,) = find_callouts(explanation)
    assert (callout.y, callout.x) == (7, 3)
    assert callout.against is not None


@given(seed=st.integers(0, 10_000), limit=st.integers(1, 6))
def test_callouts_are_of_the_first_reason_at_their_spot(seed, limit):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 6, 5), generator=generator)
    kernel = torch.randint(KERNELS, (1, 6, 5), generator=generator)
    undisputed = torch.rand(1, 6, 5, generator=generator) < 0.4
    callouts = find_callouts(make_explanation(leader, kernel, undisputed), limit)
    assert len(callouts) <= limit
    assert len(set(reasons(callouts))) == len(callouts)
    for callout in callouts:
        spot = (0, callout.y, callout.x)
        assert reasons([callout]) == [(leader[spot], kernel[spot])]
        assert callout.reason.label == ("background", "cell")[leader[spot] % 2]
        assert not undisputed[spot]


def test_against_is_the_strongest_dissent_with_an_example_of_its_own_class():
    explanation = make_explanation(torch.zeros(1, 2, 2).long())  # the result: background
    p = torch.tensor([0.4, 0.6, 0.9]).view(1, 3, 1, 1).expand(1, 3, 2, 2)  # of a cell
    own = torch.tensor([0, 1, 2]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    explanation = dataclasses.replace(
        explanation, annotator_probs=torch.stack([1 - p, p], dim=2), why_own=own
    )
    (callout,) = find_callouts(explanation)
    against = callout.against
    assert (against.annotator, against.source.kernel, against.label) == (2, 2, "cell")
    assert callout.reason.example.label == "background"
    assert (against.example.label, against.example.y) == ("cell", 4)  # that of kernel 2


def test_where_all_would_rather_say_the_result_nobody_dissents():
    explanation = make_explanation(torch.zeros(1, 2, 2).long())
    p = torch.full((1, 3, 2, 2), 0.4)  # of a cell: disputed, and yet
    explanation = dataclasses.replace(explanation, annotator_probs=torch.stack([1 - p, p], dim=2))
    (callout,) = find_callouts(explanation)
    assert callout.against is None


def test_no_callouts_where_nothing_is_disputed():
    leader, _ = quarters()
    assert find_callouts(make_explanation(leader, undisputed=torch.ones_like(leader).bool())) == ()


def test_in_large_images_spots_are_found_in_a_part_of_the_pixels():
    leader = torch.zeros(1, 1100, 400).long()
    leader[:, 900:] = 1
    callouts = find_callouts(make_explanation(leader))
    assert [c.reason.annotator for c in callouts] == [0, 1]
    for callout in callouts:
        assert leader[0, callout.y, callout.x] == callout.reason.annotator
    assert 990 < callouts[1].y < 1010


@given(height=st.integers(1, 80), width=st.integers(1, 80), data=st.data())
def test_patches_hold_the_pixel_wherever_it_is(height, width, data):
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[y, x] = 255
    example = Example("cell", "a", y, x, 0.9)
    patch = read_patches([example], lambda name: image)[example]
    assert patch.image.shape == (min(48, height), min(48, width), 3)
    assert patch.image[patch.y, patch.x].min() == 255
    assert patch.image.sum() == 3 * 255


def test_patches_that_cannot_be_read_are_left_out():
    def read(name):
        if name == "gone":
            raise KeyError(name)
        return np.zeros((9, 9, 3), dtype=np.uint8)

    places = (("gone", 1, 1), ("there", 9, 1), ("there", 1, 9), ("there", 1, 1))
    examples = [Example("cell", *place, 0.9) for place in places]
    assert list(read_patches(examples, read)) == examples[3:]
    assert read_patches(examples, None) == {}


def test_spots_keep_apart_so_that_no_number_covers_another():
    leader = torch.arange(40).sub(18).div(2, rounding_mode="floor").clamp(0, 2).expand(1, 40, 40)
    disputed = torch.zeros(1, 40, 40).bool()
    disputed[:, :, 18:24] = True  # three stripes side by side, each two pixels wide
    callouts = find_callouts(make_explanation(leader, undisputed=~disputed))
    spots = np.array([(c.y, c.x) for c in callouts])
    apart = np.hypot(*(spots[:, None] - spots).transpose(2, 0, 1))
    assert len(spots) == 3
    assert apart[np.triu_indices(3, 1)].min() > 4
