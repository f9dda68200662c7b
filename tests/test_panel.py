import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, make_sources, quarters
from reading import places_of, says, written

from tax_lightning.visualization.annotations import SourcePatch, find_callouts
from tax_lightning.visualization.drawing import who_index_map
from tax_lightning.visualization.palette import (
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.panel import (
    View,
    annotator_entries,
    callout_caption,
    image_notes,
    mask_notes,
    render_panel,
    scale_entries,
)
from tax_lightning.visualization.summary import Summary

BODY = 14  # height of the letters in a panel whose tiles are 256 wide
RED = (255, 0, 0)
GREY_OF_RED = 76


def view_of(explanation, masks=None, reference=None):
    """The view of an image that is all red, of which no grey value is one of a hatching."""
    height, width = explanation.probs.shape[-2:]
    image = np.full((height, width, 3), RED, dtype=np.uint8)
    return View(explanation, image, masks, reference)


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
    picture = view_of(make_explanation(leader, unanimous=unanimous)).who()
    assert picture.shape == (256, 256, 3)
    hatched = enlarged(unanimous[0], 256)
    np.testing.assert_array_equal(is_grey(picture), hatched)
    expected = np.array(annotator_palette(3))[enlarged(leader[0], 256)]
    np.testing.assert_array_equal(picture[~hatched], expected[~hatched])


def test_unanimous_pixels_are_dimmed_and_hatched():
    leader, unanimous = quarters()
    picture = view_of(make_explanation(leader, unanimous=unanimous)).who()[128:, 128:, 0]
    ground, line = round(0.25 * GREY_OF_RED + 176), 178
    assert np.unique(picture).tolist() == [line, ground]
    # Lines of one pixel in seven, falling to the left.
    rows, cols = np.indices((128, 128)) + 128
    np.testing.assert_array_equal(picture == line, (rows + cols) % 7 == 0)


def test_who_fades_with_certainty():
    explanation = make_explanation(quarters()[0], weight=2 / 3)  # of three: certainty 1/2
    picture = view_of(explanation).who()
    expected = (np.array(annotator_palette(1)[0]) + GREY_OF_RED) / 2
    np.testing.assert_allclose(picture[10, 10], expected, atol=1)


@given(seed=st.integers(0, 1000))
def test_why_has_the_shade_of_the_leaders_kernel(seed):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 4, 4), generator=generator)
    kernel = torch.randint(KERNELS, (1, 4, 4), generator=generator)
    unanimous = torch.rand(1, 4, 4, generator=generator) < 0.3
    picture = view_of(make_explanation(leader, kernel, unanimous)).why()
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
    black = (view_of(make_explanation(leader, kernel, unanimous)).why() == 0).all(axis=2)
    expected = np.zeros((256, 256), dtype=bool)
    expected[:128, 64] = expected[:128, 128] = expected[128, :128] = True
    np.testing.assert_array_equal(black, expected)


def test_uncertainty_runs_from_sure_to_even_odds_on_one_scale_for_all_images():
    explanation = make_explanation(torch.zeros(1, 1, 3).long())
    p = torch.tensor([1.0, 0.89, 0.5])  # of 0.89: 0.4999 bits
    explanation = dataclasses.replace(explanation, probs=torch.stack([1 - p, p]).view(1, 2, 1, 3))
    picture = view_of(explanation).uncertainty()
    scale = value_colours(np.array([[0.0, 0.5, 1.0]]))[0]
    for x, colour in zip((0, 128, 255), scale, strict=True):
        np.testing.assert_allclose(picture[0, x], colour, atol=3)


def test_coinciding_contours_show_all_their_colours():
    masks = np.zeros((3, 64, 64), dtype=np.int64)
    masks[:2, 16:48, 16:48] = 1
    tile = view_of(make_explanation(quarters(64)[0]), masks).contours()
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
    tile = view_of(explanation).contours()
    assert count_inks(tile, annotator_palette(2)[1]) == 2 * 256
    assert count_inks(tile, annotator_palette(1)[0]) == 0


def test_absent_and_empty_masks_have_no_contour():
    masks = np.zeros((3, 8, 8), dtype=np.int64)
    masks[0] = 255
    assert is_grey(view_of(make_explanation(quarters()[0]), masks).contours()).all()


def test_result_shows_classes_their_edges_and_the_reference():
    explanation = make_explanation(quarters(64)[0])  # class 1 in the upper right quarter
    reference = np.zeros((64, 64), dtype=np.int64)
    reference[40:60, 10:30] = 1
    reference[:5] = 255
    plain = view_of(explanation).result()
    crimson = np.array(class_palette(2)[1])
    assert count_inks(plain, tuple(crimson)) == 2 * 128 + 2 * 126
    inside = GREY_OF_RED + 0.55 * (crimson - GREY_OF_RED)
    np.testing.assert_allclose(plain[60, 190], inside, atol=1)
    assert tuple(plain[60, 60]) == (GREY_OF_RED,) * 3
    dashed = view_of(explanation, None, reference).result()
    line = (dashed != plain).any(axis=2)
    assert line.sum() == 4 * 2 * (80 - 2)
    assert set(map(tuple, dashed[line])) == {(0, 0, 0), (255, 255, 255)}


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


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_several_images_are_refused():
    explanation = make_explanation(torch.zeros(2, 4, 4).long())
    for function in (who_index_map, find_callouts):
        with pytest.raises(ValueError, match="of 2 images, expected 1"):
            function(explanation)
    with pytest.raises(ValueError, match="of 2 images, expected 1"):
        render_panel(explanation, noise(4, 4))


def test_the_tiles_stand_in_two_rows_of_three():
    leader, unanimous = quarters(32)
    explanation = make_explanation(leader, unanimous=unanimous, weight=0.8)
    image, masks = noise(32, 32), np.stack([leader[0].numpy() == n for n in range(3)]).astype(int)
    view = View(explanation, image, masks, masks[0])
    panel = render_panel(explanation, image, masks, masks[0])
    drawn = (view.image, view.contours(), view.result())
    places = [places_of(tile, panel) for tile in (*drawn, view.who())]
    ((top, left),), ((_, second),), ((_, third),), ((below, again),) = places
    assert [(top, second), (top, third)] == [p[0] for p in places[1:3]]
    assert third - second == second - left == 256 + 16
    assert again == left
    assert below > top + 256
    assert (below, third) in places_of(view.uncertainty(), panel)


def test_every_name_stands_in_the_legend_beside_its_colour():
    leader, unanimous = quarters()
    panel = render_panel(make_explanation(leader, unanimous=unanimous), noise(8, 8))
    for name, colour in zip(("Ana", "Ben", "Cleo"), annotator_palette(3), strict=True):
        ((row, column),) = places_of(written(f"{name} 33%", BODY), panel)
        chip = panel[row - 2 : row + 16, column - 20 : column]
        assert count_inks(chip, colour) > 0.8 * 14 * 14
    for text in ("cell", "background"):
        assert says(panel, text, BODY)
    assert says(panel, "val-0", 21)


def test_the_scale_bar_begins_and_ends_in_the_colours_of_its_values():
    panel = render_panel(make_explanation(quarters()[0], weight=0.8), noise(8, 8))
    _, bar, _ = scale_entries()
    ((row, column),) = places_of(bar.chip, panel)
    ends = panel[row, [column, column + bar.chip.shape[1] - 1]]
    np.testing.assert_array_equal(ends, value_colours(np.array([[0.0, 1.0]]))[0])
    ((_, before),) = places_of(written("0 sure", BODY), panel)
    ((_, after),) = places_of(written("1 even odds", BODY), panel)
    assert before < column < column + bar.chip.shape[1] <= after


def test_callouts_have_numbers_in_the_picture_and_cards_below():
    leader, unanimous = quarters(64)
    explanation = make_explanation(leader, leader, unanimous)
    patches = {
        (n, n): SourcePatch(np.full((9, 9, 3), (1, 2, n), dtype=np.uint8), 4, 4) for n in range(3)
    }
    image = noise(64, 64)
    panel = render_panel(explanation, image, patches=patches)
    ((top, left),) = places_of(View(explanation, image, None, None).who(), panel)
    why = panel[top : top + 256, left + 272 : left + 272 + 256]
    for n, (y, x) in enumerate([(20, 20), (20, 230), (230, 20)]):
        assert tuple(why[y, x]) == kernel_shade(annotator_palette(3)[n], n, 3)
    for callout in find_callouts(explanation):
        y, x = 4 * callout.y + 2, 4 * callout.x + 2
        disc = why[y - 6 : y + 6, x - 6 : x + 6]
        grey = (disc[..., 0] == disc[..., 1]) & (disc[..., 1] == disc[..., 2])
        assert grey.all()  # a white number on a dark disc covers the colour
        n = callout.annotator
        assert 0.9 * 96**2 < count_inks(panel[top + 256 :], (1, 2, n)) < 96**2  # less its mark
        assert says(panel, f"{explanation.annotators[n]} · prototype {n}", BODY)
    assert says(panel, "labelled: cell", BODY)
    assert says(panel, "50% of the decision", BODY)


def test_a_missing_patch_leaves_its_frame_empty():
    panel = render_panel(make_explanation(quarters()[0]), noise(8, 8))
    assert len(places_of(np.full((96, 96, 3), 238, dtype=np.uint8), panel)) == 3
    assert says(panel, "(image not found)", BODY)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), 256), ((100, 100), 300), ((1000, 1000), 512), ((600, 300), 512), ((300, 600), 512)],
)
def test_tiles_are_legible_at_any_size(size, shown):
    leader = torch.zeros(1, *size).long()
    leader[:, size[0] // 2 :] = 1
    explanation, image = make_explanation(leader), noise(*size)
    view = View(explanation, image, None, None)
    height, width = view.size
    assert max(height, width) == shown
    assert height / width == pytest.approx(size[0] / size[1], rel=0.01)
    panel = render_panel(explanation, image)
    assert places_of(view.who(), panel)
    assert says(panel, "Ana 50%", round(BODY * max(1, width / 256)))


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1), (3, 700)])
def test_extreme_sizes(size):
    panel = render_panel(make_explanation(torch.zeros(1, *size).long()), noise(*size))
    assert panel.dtype == np.uint8
    assert says(panel, "Ana 100%", round(BODY * max(1, min(2, size[1] / 256))))


@pytest.mark.parametrize("n", [1, 2, 12, 40])
@pytest.mark.parametrize("classes", [2, 7])
def test_any_number_of_annotators_and_classes(n, classes):
    names = ["Zoë", "Иван", "中村", *[f"radiologist with a long name {i}" for i in range(37)]][:n]
    leader = torch.arange(20 * 20).view(1, 20, 20) // 10 % n
    explanation = make_explanation(
        leader, annotators=names, classes=[f"class {c}" for c in range(classes)]
    )
    masks = explanation.annotator_decisions[0].numpy()
    panel = render_panel(explanation, noise(20, 20), masks, masks[0])
    assert panel.shape[1] == 3 * 260 + 2 * 16 + 2 * 18


def test_nobody_decides():
    leader, _ = quarters()
    explanation = make_explanation(leader, unanimous=torch.ones_like(leader).bool())
    panel = render_panel(explanation, noise(8, 8))
    nobody = "All annotators would say the same everywhere: nobody in particular decides."
    assert says(panel, nobody, 18)
    assert not says(panel, "prototype 0", BODY)


def test_half_precision():
    explanation = make_explanation(quarters()[0], weight=0.8)
    half = {name: getattr(explanation, name).bfloat16() for name in ("probs", "who", "why_share")}
    panel = render_panel(dataclasses.replace(explanation, **half), noise(8, 8))
    assert says(panel, "Ana 50%", BODY)


def test_wrong_sizes_are_named():
    explanation = make_explanation(quarters()[0])
    with pytest.raises(ValueError, match=r"image has shape \(8, 9, 3\), expected \(8, 8\) or"):
        render_panel(explanation, noise(8, 9))
    with pytest.raises(ValueError, match=r"masks has shape \(2, 8, 8\), expected \(3, 8, 8\)"):
        render_panel(explanation, noise(8, 8), np.zeros((2, 8, 8), dtype=int))
    with pytest.raises(ValueError, match=r"reference has shape \(4, 8\), expected \(8, 8\)"):
        render_panel(explanation, noise(8, 8), None, np.zeros((4, 8), dtype=int))


def test_a_panel_says_where_who_says_next_to_nothing():
    leader, unanimous = quarters()
    words = (
        "Who decides means next to nothing here: where the annotators differ, the largest weight"
    )
    for weight, warned in ((0.4, True), (0.9, False)):
        explanation = make_explanation(leader, unanimous=unanimous, weight=weight)
        panel = render_panel(explanation, noise(*leader.shape[-2:]))
        assert says(panel, words, BODY) == warned


def texts(entries):
    return [entry.text for entry in entries]


def entries_of(explanation):
    return annotator_entries(explanation.annotators, Summary.of(explanation))


def test_where_nobody_decides_there_are_names_without_parts():
    leader, _ = quarters()
    explanation = make_explanation(leader, unanimous=torch.ones_like(leader).bool())
    assert texts(entries_of(explanation)) == ["Annotators:", "Ana", "Ben", "Cleo"]


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((4, 6), np.uint8, ["6 x 4 pixels"]),
        ((4, 6, 3), np.uint8, ["6 x 4 pixels"]),
        ((4, 6, 5), np.uint8, ["6 x 4 pixels", "channel 1 of 5"]),
        ((4, 6, 2), np.uint16, ["6 x 4 pixels", "channel 1 of 2", "black 7, white 7"]),
        ((4, 6, 3), np.float32, ["6 x 4 pixels", "black 7, white 7"]),
    ],
)
def test_what_is_not_shown_of_an_image_is_said(shape, kind, expected):
    assert texts(image_notes(np.full(shape, 7, dtype=kind))) == expected


def test_who_has_no_contour_is_said_with_the_reason():
    explanation = make_explanation(torch.zeros(1, 4, 4).long())
    masks = np.zeros((3, 4, 4), dtype=np.int64)
    masks[0] = 255
    masks[1, 0] = 255  # the rest of it is background
    masks[2, 2] = 1
    assert texts(mask_notes(explanation.annotators, masks)) == [
        "did not label: Ana",
        "drew nothing: Ben",
    ]
    assert texts(mask_notes(explanation.annotators, masks[[2, 2, 2]])) == ["as each of them drew"]
    assert texts(mask_notes(explanation.annotators, None)) == ["as the model expects each to draw"]


def test_captions_name_annotator_prototype_source_and_share():
    explanation = make_explanation(quarters()[0], kernel=2)
    callout = find_callouts(explanation)[0]
    assert callout_caption(explanation, callout, has_patch=True) == (
        "Ana · prototype 2",
        "from train-7",
        "at y 4, x 3",
        "labelled: cell",
        "50% of the decision",
    )
    assert "(image not found)" in callout_caption(explanation, callout, has_patch=False)


def test_caption_before_the_projection():
    sources = make_sources(("Ana", "Ben", "Cleo"), sample_id="")
    explanation = make_explanation(quarters()[0], sources=sources)
    caption = callout_caption(explanation, find_callouts(explanation)[0], has_patch=False)
    assert caption == ("Ana · prototype 0", "not yet projected", "50% of the decision")
