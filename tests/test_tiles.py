import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, quarters

from tax_lightning.visualization.palette import (
    annotator_palette,
    class_palette,
    kernel_shade,
    uncertainty_colours,
)
from tax_lightning.visualization.tiles import (
    View,
    contour_picture,
    result_picture,
    uncertainty_picture,
    who_picture,
    why_picture,
)

RED = (255, 0, 0)
GREY_OF_RED = 76


def view_of(explanation, masks=None, reference=None):
    """The view of an image that is all red, of which no grey value is one of a hatching."""
    height, width = explanation.probs.shape[-2:]
    return View(explanation, np.full((height, width, 3), RED, dtype=np.uint8), masks, reference)


def enlarged(maps, size):
    """The last two axes at the size of a tile, every pixel as often as it is shown."""
    array = np.asarray(maps)
    zoom = size // array.shape[-1]
    return array.repeat(zoom, axis=-2).repeat(zoom, axis=-1)


def is_grey(picture):
    return (picture[..., 0] == picture[..., 1]) & (picture[..., 1] == picture[..., 2])


def count_inks(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


@given(seed=st.integers(0, 1000), size=st.sampled_from([4, 16, 64]))
def test_who_has_the_colour_of_the_leader_and_is_grey_exactly_where_unanimous(seed, size):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, size, size), generator=generator)
    unanimous = torch.rand(1, size, size, generator=generator) < 0.4
    picture = who_picture(view_of(make_explanation(leader, unanimous=unanimous)))
    assert picture.shape == (256, 256, 3)
    hatched = enlarged(unanimous[0], 256)
    np.testing.assert_array_equal(is_grey(picture), hatched)
    expected = np.array(annotator_palette(3))[enlarged(leader[0], 256)]
    np.testing.assert_array_equal(picture[~hatched], expected[~hatched])


def test_unanimous_pixels_are_dimmed_and_hatched():
    leader, unanimous = quarters()
    picture = who_picture(view_of(make_explanation(leader, unanimous=unanimous)))[128:, 128:, 0]
    ground, line = round(0.25 * GREY_OF_RED + 176), 178
    assert np.unique(picture).tolist() == [line, ground]
    # Lines of one pixel in seven, falling to the left.
    rows, cols = np.indices((128, 128)) + 128
    np.testing.assert_array_equal(picture == line, (rows + cols) % 7 == 0)


def test_who_fades_with_certainty():
    explanation = make_explanation(quarters()[0], weight=2 / 3)  # of three: certainty 1/2
    picture = who_picture(view_of(explanation))
    expected = (np.array(annotator_palette(1)[0]) + GREY_OF_RED) / 2
    np.testing.assert_allclose(picture[10, 10], expected, atol=1)


@given(seed=st.integers(0, 1000))
def test_why_has_the_shade_of_the_leaders_kernel(seed):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 4, 4), generator=generator)
    kernel = torch.randint(KERNELS, (1, 4, 4), generator=generator)
    unanimous = torch.rand(1, 4, 4, generator=generator) < 0.3
    picture = why_picture(view_of(make_explanation(leader, kernel, unanimous)))
    for y in range(4):
        for x in range(4):
            middle = picture[64 * y + 32, 64 * x + 32]
            if unanimous[0, y, x]:
                assert is_grey(middle)
            else:
                colour = annotator_palette(3)[leader[0, y, x]]
                assert tuple(middle) == kernel_shade(colour, int(kernel[0, y, x]), KERNELS)


def test_seams_run_between_prototypes_and_nowhere_else():
    leader, unanimous = quarters(64)
    kernel = torch.zeros_like(leader)
    kernel[:, :32, 16:] = 1  # a seam within the first quarter, and one towards the second
    black = (why_picture(view_of(make_explanation(leader, kernel, unanimous))) == 0).all(axis=2)
    expected = np.zeros((256, 256), dtype=bool)
    expected[:128, 64] = expected[:128, 128] = expected[128, :128] = True
    np.testing.assert_array_equal(black, expected)


def test_uncertainty_runs_from_sure_to_even_odds_on_one_scale_for_all_images():
    explanation = make_explanation(torch.zeros(1, 1, 3).long())
    p = torch.tensor([1.0, 0.89, 0.5])  # of 0.89: 0.4999 bits
    explanation = dataclasses.replace(explanation, probs=torch.stack([1 - p, p]).view(1, 2, 1, 3))
    picture = uncertainty_picture(view_of(explanation))
    scale = uncertainty_colours(np.array([[0.0, 0.5, 1.0]]))[0]
    for x, colour in zip((0, 128, 255), scale, strict=True):
        np.testing.assert_allclose(picture[0, x], colour, atol=3)


def test_uncertainty_is_sure_where_any_class_is_certain_and_ignores_their_number():
    classes = ["background", "cell", "fibre", "debris"]
    leader = torch.arange(4).view(1, 2, 2) % 3
    explanation = make_explanation(leader, classes=classes)
    (sure,) = np.unique(uncertainty_picture(view_of(explanation)).reshape(-1, 3), axis=0)
    even = dataclasses.replace(explanation, probs=torch.full_like(explanation.probs, 0.25))
    (unsure,) = np.unique(uncertainty_picture(view_of(even)).reshape(-1, 3), axis=0)
    np.testing.assert_array_equal([sure, unsure], uncertainty_colours(np.array([[0.0, 1.0]]))[0])


def test_coinciding_contours_show_all_their_colours():
    masks = np.zeros((3, 64, 64), dtype=np.int64)
    masks[:2, 16:48, 16:48] = 1
    tile = contour_picture(view_of(make_explanation(quarters(64)[0]), masks))
    first, second, third = (count_inks(tile, colour) for colour in annotator_palette(3))
    # 32 x 32 pixels, shown four times as large, in lines two pixels wide
    assert first + second == 4 * 2 * (128 - 2)
    assert abs(first - second) < 0.1 * (first + second)
    assert third == 0


def test_contours_without_masks_are_the_predicted_ones():
    explanation = make_explanation(quarters(64)[0])  # Ben says class 1 everywhere
    annotator_probs = explanation.annotator_probs.clone()
    annotator_probs[:, 1, 1, :10] = 0
    annotator_probs[:, 1, 0, :10] = 1
    explanation = dataclasses.replace(explanation, annotator_probs=annotator_probs)
    tile = contour_picture(view_of(explanation))
    assert count_inks(tile, annotator_palette(2)[1]) == 2 * 256
    assert count_inks(tile, annotator_palette(1)[0]) == 0


def test_absent_and_empty_masks_have_no_contour():
    masks = np.zeros((3, 8, 8), dtype=np.int64)
    masks[0] = 255
    assert is_grey(contour_picture(view_of(make_explanation(quarters()[0]), masks))).all()


def test_contours_of_those_who_are_not_named_share_one_colour_below_the_others():
    names = [f"rater {n}" for n in range(14)]
    leader = (torch.arange(64 * 64) % 11).view(1, 64, 64)  # so the last three are the others
    masks = np.zeros((14, 64, 64), dtype=np.int64)
    masks[0, 10:20, 10:20] = masks[12, 10:20, 10:20] = 1
    masks[13, 40:60, 40:60] = 1
    tile = contour_picture(view_of(make_explanation(leader, annotators=names), masks))
    palette = annotator_palette(12)
    assert count_inks(tile, palette[0]) == 4 * 2 * (40 - 2)
    assert count_inks(tile, palette[11]) == 4 * (80 - 1)  # of one pixel; those of 12 are covered
    assert sum(count_inks(tile, colour) for colour in palette[1:11]) == 0


def test_result_shows_classes_their_edges_and_the_reference():
    explanation = make_explanation(quarters(64)[0])  # class 1 in the upper right quarter
    reference = np.zeros((64, 64), dtype=np.int64)
    reference[40:60, 10:30] = 1
    reference[:5] = 255
    plain = result_picture(view_of(explanation))
    crimson = np.array(class_palette(2)[1])
    assert count_inks(plain, tuple(crimson)) == 2 * 128 + 2 * 126
    inside = GREY_OF_RED + 0.55 * (crimson - GREY_OF_RED)
    np.testing.assert_allclose(plain[60, 190], inside, atol=1)
    assert tuple(plain[60, 60]) == (GREY_OF_RED,) * 3
    dashed = result_picture(view_of(explanation, None, reference))
    line = (dashed != plain).any(axis=2)
    assert line.sum() == 4 * 2 * (80 - 2)
    assert set(map(tuple, dashed[line])) == {(0, 0, 0), (255, 255, 255)}


def test_thin_regions_keep_their_pixels_visible():
    leader = torch.zeros(1, 64, 64).long()
    leader[:, 30:32] = 1
    tile = why_picture(view_of(make_explanation(leader, 0, unanimous=leader == 0)))
    assert (~is_grey(tile)).sum() == 2 * 64 * 16


@pytest.mark.parametrize("size", [513, 2000])
def test_large_images_are_shown_smaller_with_every_map_from_the_same_pixels(size):
    generator = torch.Generator().manual_seed(0)
    leader = torch.randint(3, (1, size, size), generator=generator)
    view = view_of(
        make_explanation(leader, kernel=leader), leader.numpy().repeat(3, 0), leader[0].numpy()
    )
    assert view.leader.shape == (512, 512)
    assert view.line == 4
    for other in (view.kernel, view.masks[1], view.reference):
        np.testing.assert_array_equal(other, view.leader)
    assert view.leader[0, 0] == leader[0, 0 if size == 513 else 1, 0 if size == 513 else 1]
