"""How unlikely masks are, given those of the others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tax_lightning.inspection.unlikely import (
    Habits,
    contexts,
    count_cases,
    majority_of_others,
    scores,
)

masks_of_four = arrays(np.uint8, (4, 5, 6), elements=st.sampled_from([0, 1, 2, 255]))


def square(top=4, left=4, side=12, size=32):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def of_images(images, classes=2):
    """How unlikely the masks of images are ``[I, N]``."""
    cases = [count_cases(np.stack(masks), classes) for masks in images]
    habits = Habits.of(cases, len(images[0]), classes)
    return np.stack([habits.of_masks(one) for one in cases])


def test_the_majority_of_others_by_hand():
    masks = np.array([[[0, 1, 255]], [[1, 1, 255]], [[1, 2, 2]]], np.uint8)
    most, share = majority_of_others(masks, 3)
    # Cem's third pixel: nobody else labelled it; a tie goes to the first class
    assert most[:, 0].tolist() == [[1, 1, 2], [0, 1, 2], [0, 1, -1]]
    assert share[:, 0].tolist() == [[1, 0.5, 1], [0.5, 0.5, 1], [0.5, 1, 0]]


def test_contexts_tell_pixels_by_distance_from_the_outline():
    masks = np.stack([square(), square()])
    context = contexts(masks, 2)[0]
    # at the outline's two sides, two and more pixels away
    assert len({context[4, 10], context[3, 10], context[5, 10], context[2, 10]}) == 4
    assert context[4, 10] == context[15, 10] == context[4, 4]


@given(masks_of_four)
def test_cases_count_every_pixel_that_can_be_compared_once(masks):
    cases = count_cases(masks, 3)
    others = (masks != 255).sum(0) - (masks != 255)
    assert cases.pixels.sum() == ((masks != 255) & (others > 0)).sum()


@given(st.lists(masks_of_four, min_size=1, max_size=3), st.permutations(range(4)))
def test_permuting_annotators_permutes_what_is_unlikely(images, order):
    straight, permuted = of_images(images, 3), of_images([m[list(order)] for m in images], 3)
    np.testing.assert_allclose(permuted, straight[:, list(order)])


@given(masks_of_four)
def test_pixels_add_up_to_masks(masks):
    cases = [count_cases(masks, 3), count_cases(np.roll(masks, 1, 2), 3)]
    habits = Habits.of(cases, 4, 3)
    expected = np.nan_to_num(habits.of_masks(cases[0]))
    np.testing.assert_allclose(habits.of_pixels(masks).sum((1, 2)), expected)


def test_a_habit_is_no_surprise_and_a_lapse_is():
    wide, tight = square(2, 2, 16), square()
    images = [[tight, tight, tight, tight, wide] for _ in range(20)]
    images[7] = [tight, wide, tight, tight, wide]  # once the second draws as the last always does
    found = scores(of_images(images))
    assert found.argmax() == 7 * 5 + 1
    assert found[7, 1] > 3
    assert found[:7].max() < 1


def test_an_image_that_is_hard_for_all_is_no_fault_of_anybody():
    easy = [square(), square(5), square(4, 5), square(5, 5)]
    hard = [square(2, 2, 20), square(8, 8, 6), square(4, 8, 20), square(8, 2, 14)]
    found = of_images([easy] * 10 + [hard])
    lone = of_images([easy] * 10 + [[*easy[:3], hard[3]]])
    assert scores(found)[10].max() < scores(lone)[10, 3]


def test_who_is_absent_or_alone_has_no_score():
    unknown = np.full((32, 32), 255, np.uint8)
    found = scores(of_images([[square(), unknown, square(5)], [square(), unknown, unknown]]))
    assert np.isnan(found).tolist() == [[False, True, False], [True, True, True]]
