"""Reference labels and agreement with them, against brute force."""

import math
import sys

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.consensus import (
    agreement,
    box_mean,
    disagreement,
    majority,
    reference_labels,
    relevance,
    right_labels,
    staple,
)

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


@given(labels((2, 3, 2, 2)))
def test_a_disagreement_is_two_different_labels(masks):
    for image, found in zip(masks, disagreement(masks), strict=True):
        given = [set(pixel.tolist()) - {255} for pixel in image.flatten(1).T]
        assert found.flatten().tolist() == [len(kinds) > 1 for kinds in given]


def test_right_labels_by_hand():
    masks = rows((1, 1, 1, 255), (1, 0, 0, 255), (0, 2, 255, 255))  # most, none of three, a tie

    def right(reference: str) -> list[list[int]]:
        """The labels that are right at each pixel."""
        found = right_labels(reference, {"masks": masks, "reference": row(2, 0, 255, 1)}, 3)
        return [pixel.nonzero().flatten().tolist() for pixel in found[0, :, 0].T]

    assert right("majority") == [[1], [0, 1, 2], [0, 1], []]
    assert right("given") == right("staple") == [[2], [0], [], [1]]
    assert right("none") == [[], [], [], []]


# ---------------------------------------------------------------------- staple


@pytest.fixture
def sitk():
    """SimpleITK, where it is installed."""
    return pytest.importorskip("SimpleITK")


def half_and_half(height: int = 6, width: int = 12):
    """An image whose lower half is an object ``[1, H, W]``."""
    truth = torch.zeros(1, height, width).long()
    truth[:, height // 2 :] = 1
    return truth


def two_reliable_and_three_careless(truth):
    """Masks ``[1, 5, H, W]`` of which the majority is wrong in the first column.

    There three careless annotators are wrong together, against two who never err. That these three
    are careless shows in three further columns each, in which they err alone.
    """
    masks = truth.unsqueeze(1).repeat(1, 5, 1, 1)
    for n, columns in ((2, [0, 1, 2, 3]), (3, [0, 4, 5, 6]), (4, [0, 7, 8, 9])):
        masks[:, n, :, columns] = 1 - truth[:, :, columns]
    return masks


@pytest.mark.usefixtures("sitk")
def test_staple_believes_a_reliable_minority():
    truth = half_and_half()
    masks = two_reliable_and_three_careless(truth)
    voted = majority(masks, 2)
    assert torch.equal(voted[:, :, 0], 1 - truth[:, :, 0])
    assert torch.equal(voted[:, :, 1:], truth[:, :, 1:])
    assert torch.equal(staple(masks, 2), truth)


@pytest.mark.usefixtures("sitk")
def test_staple_ignores_who_is_absent():
    masks = torch.randint(0, 2, (3, 4, 8, 8))
    masks[0, 1] = masks[1, 3] = masks[2] = 255
    labels = staple(masks, 2)
    assert torch.equal(labels[:1], staple(masks[:1, [0, 2, 3]], 2))
    assert torch.equal(labels[1:2], staple(masks[1:2, :3], 2))
    assert (labels[2] == 255).all()


@pytest.mark.usefixtures("sitk")
def test_staple_knows_several_classes():
    truth = torch.arange(4).repeat_interleave(3).repeat(6, 1)[None]  # [1, 6, 12], four stripes
    masks = truth.unsqueeze(1).repeat(1, 3, 1, 1)
    masks[:, 2] = 3 - masks[:, 2]
    assert torch.equal(staple(masks, 4), truth)


@pytest.mark.usefixtures("sitk")
def test_where_someone_labelled_only_a_part_the_majority_decides_the_rest():
    truth = half_and_half()
    masks = two_reliable_and_three_careless(truth)
    masks[:, 0, :2, 0] = 255  # one of the reliable: there three stand against one
    masks[:, :, :, 11] = 255  # nobody
    masks[:, 2:, 0, 10] = masks[:, 3:, 1, 10] = 255  # two of two, and three of three
    labels = staple(masks, 2)
    expected = truth.clone()
    expected[:, :2, 0] = 1
    expected[:, :, 11] = 255
    assert torch.equal(labels, expected)


def test_without_simpleitk_staple_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    message = r"^reference='staple' needs SimpleITK.*pip install 'tax-lightning\[staple\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        staple(torch.zeros(1, 2, 3, 3).long(), 2)


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


@given(labels((1, 4, 5)), WINDOWS)
def test_relevance_is_full_near_a_difference_only(values, window):
    differs = values == 0
    weight = relevance(differs, window, elsewhere=0.25)
    for y in range(4):
        for x in range(5):
            near = window_of(differs[0], y, x, window).any()
            assert weight[0, y, x] == (1.0 if near else 0.25)


def test_loaders_of_ones_own_must_bring_the_estimate():
    batch = {"masks": torch.zeros(1, 3, 4, 4).long()}
    with pytest.raises(ValueError, match=r"^reference='staple': .*consensus\.staple\(masks, num_c"):
        reference_labels("staple", batch, 2)
    batch["reference"] = torch.ones(1, 4, 4).long()
    assert reference_labels("staple", batch, 2) is batch["reference"]
