import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, quarters

from tax_lightning.explanation import Example
from tax_lightning.visualization.annotations import (
    example_against,
    example_for,
    find_spots,
    read_patches,
    spot_patches,
)


def test_spots_point_into_the_largest_regions_first():
    leader = torch.zeros(1, 20, 20).long()
    leader[:, :, 12:] = 1  # 8 columns
    leader[:, :4, 12:] = 2  # of which 4 rows go to another
    kernel = torch.zeros_like(leader)
    kernel[:, :, 12:] = 2
    spots = find_spots(make_explanation(leader, kernel, weight=0.8))
    assert [(c.number, c.annotator, c.kernel) for c in spots] == [
        (1, 0, 0),
        (2, 1, 2),
        (3, 2, 2),
    ]
    assert 7 <= spots[1].y <= 16  # well inside 16 rows by 8 columns
    assert spots[1].x in (15, 16)
    assert spots[2].y in (1, 2)
    assert spots[0].share == pytest.approx(0.4)


def test_a_scattered_prototype_has_one_spot_in_its_largest_part():
    leader = torch.zeros(1, 12, 12).long()
    leader[:, 1, 1] = leader[:, 5:9, 5:9] = 1
    spots = find_spots(make_explanation(leader))
    assert [c.annotator for c in spots] == [0, 1]
    assert 5 <= spots[1].y < 9
    assert 5 <= spots[1].x < 9


@given(seed=st.integers(0, 10_000), limit=st.integers(1, 6))
def test_spots_are_of_what_decides_at_their_spot(seed, limit):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 6, 5), generator=generator)
    kernel = torch.randint(KERNELS, (1, 6, 5), generator=generator)
    undisputed = torch.rand(1, 6, 5, generator=generator) < 0.4
    explanation = make_explanation(leader, kernel, undisputed)
    spots = find_spots(explanation, limit)
    assert len(spots) <= limit
    assert len({(c.annotator, c.kernel) for c in spots}) == len(spots)
    for spot in spots:
        place = (0, spot.y, spot.x)
        assert (leader[place], kernel[place]) == (spot.annotator, spot.kernel)
        assert not undisputed[place]
        assert spot.decision == leader[place] % 2


def test_no_spots_where_nothing_is_disputed():
    leader, _ = quarters()
    assert find_spots(make_explanation(leader, undisputed=torch.ones_like(leader).bool())) == ()


def test_examples_for_and_against_have_the_labels_that_they_explain():
    # Ana and Cleo would say background, Ben cell; Ben decides.
    explanation = make_explanation(torch.ones(1, 4, 4).long(), weight=0.9)
    (spot,) = find_spots(explanation)
    assert (spot.annotator, spot.decision, spot.votes) == (1, 1, 1.0)
    assert (spot.dissenter, spot.dissent) == (0, 0)
    assert example_for(explanation, spot).label == "cell"
    assert example_against(explanation, spot).label == "background"
    assert example_for(explanation, spot) in explanation.sources[1][0].examples
    assert example_against(explanation, spot) in explanation.sources[0][0].examples


@given(height=st.integers(1, 80), width=st.integers(1, 300), data=st.data())
def test_patches_hold_the_pixel_wherever_it_is(height, width, data):
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[y, x] = 255
    example = Example("cell", "a", y, x, 0.9)
    patch = read_patches(lambda name: image, [example])[example]
    assert patch.image.shape == (min(48, height), min(48, width), 3)
    assert patch.image[patch.y, patch.x].min() == 255
    assert patch.image.sum() == 3 * 255


def test_of_large_images_patches_are_a_quarter():
    example = Example("cell", "a", 1, 1, 0.9)
    image = np.zeros((400, 900, 3), dtype=np.uint8)
    assert read_patches(lambda name: image, [example])[example].image.shape == (100, 100, 3)


def test_patches_that_cannot_be_read_are_left_out_and_images_are_read_once():
    asked = []

    def read(name):
        asked.append(name)
        if name == "gone":
            raise KeyError(name)
        return np.zeros((9, 9, 3), dtype=np.uint8)

    places = [("gone", 1), ("there", 1), ("there", 8), ("there", 9), ("there", 1)]
    found = read_patches(read, [Example("cell", name, y, 1, 0.9) for name, y in places])
    assert sorted(example.y for example in found) == [1, 8]  # row 9 is outside
    assert asked == ["gone", "there"]


def test_a_panel_gets_the_patches_of_its_spots():
    explanation = make_explanation(torch.tensor([[[0, 0, 1]]]), kernel=1)
    patches = spot_patches([explanation], lambda name: np.zeros((60, 60, 3), dtype=np.uint8))
    assert {(example.label, example.sample_id) for example in patches} == {
        ("background", "b"),
        ("cell", "train-7"),
    }
