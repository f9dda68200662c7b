import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import find_boundaries

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.visualization.drawing import (
    as_picture,
    contours,
    data_uri,
    taking_turns,
)
from tax_lightning.visualization.sheet import shorten


def test_eight_bit_images_stay_as_they_are():
    colours = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(as_picture(colours), colours)
    for grey in (colours[..., 0], colours[..., :1], colours[..., [0, 2]], colours[..., [0] * 5]):
        np.testing.assert_array_equal(as_picture(grey), colours[..., :1].repeat(3, axis=2))


def test_deep_images_are_stretched_between_values_that_they_hold():
    image = np.linspace(1000, 3000, 100 * 100).astype(np.uint16).reshape(100, 100)
    image[0, 0] = 65535  # a hot pixel does not make all others dark
    shown = as_picture(image)
    assert shown[0, 0].tolist() == [255] * 3
    assert shown[-1, -1].tolist() == [255] * 3
    assert shown[0, 1].tolist() == [0] * 3
    assert int(shown[50, 0, 0]) == pytest.approx(127, abs=2)


@pytest.mark.parametrize("kind", [bool, np.int16, np.uint16, np.float16, np.float32, np.float64])
def test_any_kind_of_number_is_shown(kind):
    shown = as_picture(np.array([[0, 1], [1, 0]], dtype=kind))
    assert shown.tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]


def test_what_is_no_number_is_black_and_an_even_image_has_no_range():
    image = np.array([[0.5, np.nan, np.inf, 1.5]])
    assert as_picture(image)[0, :, 0].tolist() == [0, 0, 255, 255]
    assert not as_picture(np.full((3, 3), np.nan)).any()
    assert not as_picture(np.full((3, 3), 7.0)).any()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 2, 3, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"image has shape \(.*\), expected \[H, W\]"):
        as_picture(np.zeros(shape, dtype=np.uint8))


@given(seed=st.integers(0, 10_000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_contours_many_maps_are_those_of_each(seed, height, width):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, IGNORE_INDEX], (4, height, width))
    thickness = int(rng.integers(1, 5))
    found = contours(labels, thickness)
    for one, outline in zip(labels, found, strict=True):
        known = np.where(one == IGNORE_INDEX, 0, one)
        edge = find_boundaries(known, mode="inner", background=0)
        expected = ndimage.maximum_filter(edge, size=2 * thickness - 1) & (known > 0)
        np.testing.assert_array_equal(outline, expected)


def test_lines_that_coincide_take_turns_of_six_pixels():
    lines = np.zeros((3, 1, 18), dtype=bool)
    lines[0] = lines[2] = True
    lines[0, :, 12:] = False
    line, whose = taking_turns(lines)
    assert line.all()
    assert whose[0].tolist() == [0] * 6 + [2] * 6 + [2] * 6
    lines[:, :, 3] = False
    assert taking_turns(lines)[0][0].tolist() == [x != 3 for x in range(18)]


@given(name=st.text(max_size=60), limit=st.integers(3, 40))
def test_shortened_names_fit_and_keep_both_ends(name, limit):
    short = shorten(name, limit)
    assert len(short) <= limit
    if len(name) > limit:
        assert short[0] == name[0]
        assert short[-1] == name[-1]
    else:
        assert short == name


def test_pictures_are_stored_in_the_smaller_form():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg")
    assert data_uri(np.full((100, 120, 3), 90, np.uint8)).startswith("data:image/png")
