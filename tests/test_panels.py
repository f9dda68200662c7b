import dataclasses

import numpy as np
import pytest
import torch
from made_up import make_explanation, quarters
from reading import places_of, says, written

from tax_lightning.visualization.callouts import SourcePatch, find_callouts
from tax_lightning.visualization.legend import scale_entries
from tax_lightning.visualization.maps import who_index_map
from tax_lightning.visualization.palette import annotator_palette, kernel_shade, uncertainty_colours
from tax_lightning.visualization.panels import render_panel
from tax_lightning.visualization.tiles import (
    View,
    contour_picture,
    result_picture,
    uncertainty_picture,
    who_picture,
)

BODY = 14  # height of the letters in a panel whose tiles are 256 wide


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def count_inks(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


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
    drawn = (view.image, contour_picture(view), result_picture(view))
    places = [places_of(tile, panel) for tile in (*drawn, who_picture(view))]
    ((top, left),), ((_, second),), ((_, third),), ((below, again),) = places
    assert [(top, second), (top, third)] == [p[0] for p in places[1:3]]
    assert third - second == second - left == 256 + 16
    assert again == left
    assert below > top + 256
    assert (below, third) in places_of(uncertainty_picture(view), panel)


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


def test_of_forty_annotators_eleven_are_named_and_the_others_counted():
    names = [f"rater {n:02}" for n in range(40)]
    leader = torch.zeros(1, 40, 40).long()
    for n in range(40):
        leader[:, n:] = n
    leader[:, :11, 20:] = torch.arange(11)[:, None]  # as the first column, so the first lead
    leader[:, 11:, 20:] = torch.arange(29)[:, None] % 11
    panel = render_panel(make_explanation(leader, annotators=names), noise(40, 40))
    size = round(BODY * 280 / 256)
    assert all(says(panel, name, size) for name in names[:11])
    assert not any(says(panel, name, size) for name in names[11:])
    assert says(panel, "29 others 36%", size)


def test_the_scale_bar_begins_and_ends_in_the_colours_of_its_values():
    panel = render_panel(make_explanation(quarters()[0], weight=0.8), noise(8, 8))
    _, bar, _ = scale_entries()
    ((row, column),) = places_of(bar.chip, panel)
    ends = panel[row, [column, column + bar.chip.shape[1] - 1]]
    np.testing.assert_array_equal(ends, uncertainty_colours(np.array([[0.0, 1.0]]))[0])
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
    ((top, left),) = places_of(who_picture(View(explanation, image, None, None)), panel)
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


def test_what_is_shown_of_the_image_is_said():
    explanation = make_explanation(quarters(64)[0])
    assert says(render_panel(explanation, noise(64, 64)), "64 x 64 pixels", BODY)
    channels = np.zeros((64, 64, 4), dtype=np.uint8)
    assert says(render_panel(explanation, channels), "channel 1 of 4", BODY)
    deep = np.full((64, 64), 300, dtype=np.uint16)
    deep[:, 32:] = 40_000
    panel = render_panel(explanation, deep)
    assert says(panel, "black 300, white 40000", BODY)
    assert places_of(np.repeat([[[0] * 3, [255] * 3]], 256, axis=0).astype(np.uint8), panel)


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
    assert places_of(who_picture(view), panel)
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
    words = "Read next to nothing into who decides: where the annotators differ, the largest"
    for weight, warned in ((0.4, True), (0.9, False)):
        explanation = make_explanation(leader, unanimous=unanimous, weight=weight)
        panel = render_panel(explanation, noise(*leader.shape[-2:]))
        assert says(panel, words, BODY) == warned
