"""Reference labels and agreement with them, against brute force."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.consensus import agreement, box_mean, majority, relevance

WINDOWS = st.sampled_from([1, 3, 5, 9])


def labels(shape):
    """Class ids 0 to 2, or 255."""
    return hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 255])).map(torch.tensor)


def row(*values):
    """One image of one line of pixels ``[1, 1, W]``."""
    return torch.tensor(values)[None, None]


def rows(*lines):
    """One line of pixels an annotator ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


def window_of(values, y, x, window):
    """What lies within the window around a pixel of ``[..., H, W]`` and inside the image."""
    half = window // 2
    return values[..., max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]


# ---------------------------------------------------------------------- majority


def test_majority_by_hand():
    #             all   2:1   1:1:1  tie of two  one label  nobody  a tie below the first place
    masks = rows(
        (2, 0, 0, 1, 255, 255, 1),
        (2, 1, 1, 255, 1, 255, 1),
        (2, 1, 2, 0, 255, 255, 0),
        (2, 255, 255, 255, 255, 255, 2),
    )
    assert majority(masks, num_classes=3).tolist() == row(2, 1, 255, 255, 1, 255, 1).tolist()


@given(labels((1, 4, 3, 3)), st.permutations(range(4)))
def test_majority_does_not_depend_on_the_order_of_annotators(masks, order):
    assert torch.equal(majority(masks, 3), majority(masks[:, order], 3))


def test_majority_of_one_annotator_is_this_annotator():
    masks = torch.randint(0, 3, (2, 1, 5, 5))
    masks[0, 0, 0] = 255
    assert torch.equal(majority(masks, 3), masks[:, 0])


# ---------------------------------------------------------------------- windows


@given(
    hnp.arrays(np.float64, (2, 2, 4, 6), elements=st.floats(-9, 9)).map(torch.tensor),
    WINDOWS,
)
def test_box_mean_is_the_mean_of_what_lies_inside(values, window):
    means = box_mean(values, window)
    assert means.shape == values.shape
    for y in range(4):
        for x in range(6):
            brute = window_of(values, y, x, window).mean(dim=(2, 3))
            torch.testing.assert_close(means[..., y, x], brute)


@given(labels((1, 2, 4, 5)), labels((1, 4, 5)), WINDOWS, st.sampled_from([1.0, 10.0, 60.0]))
def test_agreement_is_the_share_of_wrong_pixels_of_the_window(masks, reference, window, sharpness):
    values = agreement(masks, reference, window, sharpness)
    for n in range(2):
        for y in range(4):
            for x in range(5):
                said = window_of(masks[0, n], y, x, window)
                truth = window_of(reference[0], y, x, window)
                known = (said != 255) & (truth != 255)
                expected = 0.0
                if known.any():
                    share = (said[known] != truth[known]).double().mean()
                    expected = math.exp(-sharpness * share)
                assert values[0, n, y, x].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_ten_wrong_pixels_of_the_default_window_count_a_third():
    reference = torch.zeros(1, 23, 23).long()
    masks = reference.unsqueeze(1).clone()
    masks[0, 0, 10, 5:15] = 1
    centre = agreement(masks, reference)[0, 0, 11, 11].item()
    assert centre == pytest.approx(math.exp(-60 * 10 / 529), rel=1e-5)
    assert centre == pytest.approx(0.32, abs=0.005)


def test_agreement_of_a_habit_shows_where_the_label_alone_would_not():
    reference = row(0, 0, 0, 0, 0, 0, 0)
    masks = rows((0, 0, 0, 1, 0, 0, 0))
    pixelwise = agreement(masks, reference, window=1, sharpness=3.0)[0, 0, 0]
    window = agreement(masks, reference, window=3, sharpness=3.0)[0, 0, 0]
    around = math.exp(-1)  # one of three
    torch.testing.assert_close(pixelwise, torch.tensor([1, 1, 1, math.exp(-3), 1, 1, 1]))
    torch.testing.assert_close(window, torch.tensor([1, 1, around, around, around, 1, 1]))


@given(labels((1, 2, 4, 5)), labels((1, 4, 5)), WINDOWS)
def test_relevance_is_full_near_a_disagreement_only(masks, reference, window):
    weight = relevance(masks, reference, window, elsewhere=0.25)
    wrong = ((masks != 255) & (reference != 255) & (masks != reference)).any(dim=1)[0]
    for y in range(4):
        for x in range(5):
            expected = 1.0 if window_of(wrong, y, x, window).any() else 0.25
            assert weight[0, y, x] == (0.0 if reference[0, y, x] == 255 else expected)


def test_windows_do_not_reach_into_other_images():
    reference = torch.zeros(2, 3, 3).long()
    masks = torch.zeros(2, 1, 3, 3).long()
    masks[0] = 1
    assert (agreement(masks, reference, window=23)[1] == 1).all()
    assert (relevance(masks, reference)[1] == torch.tensor(0.05)).all()
