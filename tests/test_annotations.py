import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, quarters

from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.annotations import (
    callout_patches,
    find_callouts,
    read_source_patches,
)


def test_callouts_point_into_the_largest_regions_first():
    leader = torch.zeros(1, 20, 20).long()
    leader[:, :, 12:] = 1  # 8 columns
    leader[:, :4, 12:] = 2  # of which 4 rows go to another
    kernel = torch.zeros_like(leader)
    kernel[:, :, 12:] = 2
    callouts = find_callouts(make_explanation(leader, kernel, weight=0.8))
    assert [(c.number, c.annotator, c.kernel) for c in callouts] == [
        (1, 0, 0),
        (2, 1, 2),
        (3, 2, 2),
    ]
    assert 7 <= callouts[1].y <= 16  # well inside 16 rows by 8 columns
    assert callouts[1].x in (15, 16)
    assert callouts[2].y in (1, 2)
    assert callouts[0].share == pytest.approx(0.4)


def test_a_scattered_prototype_is_called_out_once_in_its_largest_part():
    leader = torch.zeros(1, 12, 12).long()
    leader[:, 1, 1] = leader[:, 5:9, 5:9] = 1
    callouts = find_callouts(make_explanation(leader))
    assert [c.annotator for c in callouts] == [0, 1]
    assert 5 <= callouts[1].y < 9
    assert 5 <= callouts[1].x < 9


@given(seed=st.integers(0, 10_000), limit=st.integers(1, 6))
def test_callouts_are_of_what_decides_at_their_spot(seed, limit):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 6, 5), generator=generator)
    kernel = torch.randint(KERNELS, (1, 6, 5), generator=generator)
    unanimous = torch.rand(1, 6, 5, generator=generator) < 0.4
    explanation = make_explanation(leader, kernel, unanimous)
    callouts = find_callouts(explanation, limit)
    assert len(callouts) <= limit
    assert len({(c.annotator, c.kernel) for c in callouts}) == len(callouts)
    for callout in callouts:
        spot = (0, callout.y, callout.x)
        assert (leader[spot], kernel[spot]) == (callout.annotator, callout.kernel)
        assert not unanimous[spot]


def test_no_callouts_where_nobody_decides():
    leader, _ = quarters()
    assert find_callouts(make_explanation(leader, unanimous=torch.ones_like(leader).bool())) == ()


@given(height=st.integers(1, 80), width=st.integers(1, 300), data=st.data())
def test_patches_hold_the_source_pixel_wherever_it_is(height, width, data):
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[y, x] = 255
    source = PrototypeSource("Ana", 0, "a", y, x, 0.9, "cell", True, ())
    patch = read_source_patches(lambda name: image, {(0, 0): source})[0, 0]
    assert patch.image.shape == (min(48, height), min(48, width), 3)
    assert patch.image[patch.y, patch.x].min() == 255
    assert patch.image.sum() == 3 * 255


def test_of_large_images_patches_are_a_quarter():
    source = PrototypeSource("Ana", 0, "a", 1, 1, 0.9, "cell", True, ())
    image = np.zeros((400, 900, 3), dtype=np.uint8)
    assert read_source_patches(lambda name: image, {0: source})[0].image.shape == (100, 100, 3)


def test_patches_that_cannot_be_read_are_left_out_and_images_are_read_once():
    asked = []

    def read(name):
        asked.append(name)
        if name == "gone":
            raise KeyError(name)
        return np.zeros((9, 9, 3), dtype=np.uint8)

    places = {0: ("gone", 1), 1: ("", 1), 2: ("there", 1), 3: ("there", 8), 4: ("there", 9)}
    sources = {
        key: PrototypeSource("Ana", 0, name, y, 1, 0.9, "cell", True, ())
        for key, (name, y) in places.items()
    }
    assert list(read_source_patches(read, sources)) == [2, 3]  # row 9 is outside
    assert asked == ["gone", "there"]


def test_a_panel_gets_the_patches_of_the_prototypes_that_decide_in_it():
    explanation = make_explanation(torch.tensor([[[0, 0, 1]]]), kernel=1)
    patches = callout_patches([explanation], lambda name: np.zeros((60, 60, 3), dtype=np.uint8))
    assert set(patches) == {(0, 1), (1, 1)}
