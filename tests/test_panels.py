import dataclasses

import numpy as np
import pytest
import torch
from made_up import KERNELS, make_explanation, quarters

from tax_lightning.explain.callouts import SourcePatch, find_callouts
from tax_lightning.explain.maps import who_index_map
from tax_lightning.explain.palette import annotator_palette, kernel_shade
from tax_lightning.explain.panels import render_panel

TILES = ("image", "annotators", "result", "who", "why")
MAGENTA = (255, 0, 255)


def plain_image(height, width, colour=MAGENTA):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def cut_tiles(panel):
    """The five tiles of a panel whose image is all magenta, which nothing else in it is."""
    rows, cols = np.nonzero((panel == MAGENTA).all(axis=2))
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    width = right - left
    step = (panel.shape[1] - 2 * left - width) // 4
    return {
        name: panel[top:bottom, left + i * step : left + i * step + width]
        for i, name in enumerate(TILES)
    }


def is_grey(picture):
    return (picture[..., 0] == picture[..., 1]) & (picture[..., 1] == picture[..., 2])


def count_inks(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


def test_several_images_are_refused():
    explanation = make_explanation(torch.zeros(2, 4, 4).long())
    for function in (who_index_map, find_callouts):
        with pytest.raises(ValueError, match="of 2 images, expected 1"):
            function(explanation)
    with pytest.raises(ValueError, match="of 2 images, expected 1"):
        render_panel(explanation, plain_image(4, 4))


def test_who_tile_shows_the_palette_and_greys_exactly_the_undecided_pixels():
    leader, undecided = quarters()
    explanation = make_explanation(leader, undecided=undecided)
    who = cut_tiles(render_panel(explanation, plain_image(8, 8)))["who"]
    assert who.shape == (256, 256, 3)
    shown = undecided[0].numpy().repeat(32, axis=0).repeat(32, axis=1)
    np.testing.assert_array_equal(is_grey(who), shown)
    colours = np.array(annotator_palette(3))[leader[0]].repeat(32, axis=0).repeat(32, axis=1)
    np.testing.assert_array_equal(who[~shown], colours[~shown])
    hatched = who[shown]
    assert len(np.unique(hatched)) == 2  # ground and lines


def test_who_tile_fades_with_certainty():
    explanation = make_explanation(quarters()[0], weight=2 / 3)  # certainty 1/2
    who = cut_tiles(render_panel(explanation, plain_image(8, 8)))["who"]
    grey = round(0.299 * 255 + 0.114 * 255)
    expected = (np.array(annotator_palette(1)[0]) + grey) / 2
    np.testing.assert_allclose(who[10, 10], expected, atol=1)


def test_why_tile_shows_shades_and_as_many_numbers_as_cards():
    leader, undecided = quarters(64)
    explanation = make_explanation(leader, leader, undecided)
    patches = {(n, n): SourcePatch(plain_image(9, 9, (1, 2, 3)), 4, 4) for n in range(3)}
    panel = render_panel(explanation, plain_image(64, 64), patches=patches)
    why = cut_tiles(panel)["why"]
    for n, (y, x) in enumerate([(20, 20), (20, 230), (230, 20)]):
        assert tuple(why[y, x]) == kernel_shade(annotator_palette(3)[n], n, KERNELS)
    assert is_grey(why[140:, 140:]).all()
    for callout in find_callouts(explanation):
        disc = why[int(4 * callout.y) - 6 : int(4 * callout.y) + 10, int(4 * callout.x) - 6 :][
            :, :16
        ]
        assert is_grey(disc).mean() > 0.9  # a white number on a dark disc covers the colour
    cards = panel[360:]
    patch_pixels = count_inks(cards, (1, 2, 3))
    assert 3 * 0.9 * 96**2 < patch_pixels < 3 * 96**2  # three patches, each with a mark on it


def test_seams_run_between_prototypes_and_nowhere_else():
    leader, undecided = quarters(64)
    kernel = torch.zeros_like(leader)
    kernel[:, :32, 16:] = 1  # a seam within the first quarter, and one towards the second
    why = cut_tiles(render_panel(make_explanation(leader, kernel, undecided), plain_image(64, 64)))[
        "why"
    ]
    black = (why == 0).all(axis=2)
    assert black[:128, 64].all()
    assert black[:128, 128].all()
    assert black[128, :128].all()
    assert not black[128:, 128:].any()
    assert not black[140:, 100:].any()


def test_thin_regions_keep_their_pixels_visible():
    leader = torch.zeros(1, 64, 64).long()
    leader[:, 30:32] = 1
    undecided = leader == 0
    why = cut_tiles(render_panel(make_explanation(leader, 0, undecided), plain_image(64, 64)))[
        "why"
    ]
    assert (~is_grey(why)).sum() > 0.8 * 2 * 64 * 16


def test_a_missing_patch_leaves_its_frame_empty():
    explanation = make_explanation(quarters()[0])
    panel = render_panel(explanation, plain_image(8, 8))
    assert count_inks(panel[360:], (238, 238, 238)) >= 3 * 96**2


def test_coinciding_contours_show_all_their_colours():
    masks = np.zeros((3, 64, 64), dtype=np.int64)
    masks[:2, 16:48, 16:48] = 1
    explanation = make_explanation(quarters(64)[0])
    tile = cut_tiles(render_panel(explanation, plain_image(64, 64), masks))["annotators"]
    first, second, third = (count_inks(tile, colour) for colour in annotator_palette(3))
    assert first > 300
    assert second > 300
    assert third == 0


def test_contours_without_masks_are_the_predicted_ones():
    explanation = make_explanation(quarters(64)[0])  # Ben says class 1 everywhere
    annotator_probs = explanation.annotator_probs.clone()
    annotator_probs[:, 1, 1, :10] = 0
    annotator_probs[:, 1, 0, :10] = 1
    explanation = dataclasses.replace(explanation, annotator_probs=annotator_probs)
    tile = cut_tiles(render_panel(explanation, plain_image(64, 64)))["annotators"]
    assert count_inks(tile, annotator_palette(2)[1]) > 200
    assert count_inks(tile, annotator_palette(1)[0]) == 0


def test_reference_is_drawn_only_where_given():
    leader, undecided = quarters(64)
    explanation = make_explanation(leader * 2 % 2, undecided=undecided)  # background everywhere
    reference = np.zeros((64, 64), dtype=np.int64)
    reference[10:30, 10:30] = 1
    reference[:5] = 255
    for given_reference, found in ((None, False), (reference, True)):
        panel = render_panel(explanation, plain_image(64, 64), None, given_reference)
        result = cut_tiles(panel)["result"]
        assert (count_inks(result, (255, 255, 255)) > 200) is found


def test_absent_and_empty_masks_are_drawn_without_contour():
    masks = np.zeros((3, 8, 8), dtype=np.int64)
    masks[0] = 255
    panel = render_panel(make_explanation(quarters()[0]), plain_image(8, 8), masks)
    tile = cut_tiles(panel)["annotators"]
    assert is_grey(tile).all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), 256), ((100, 100), 300), ((1000, 1000), 512), ((600, 300), 512), ((300, 600), 512)],
)
def test_tiles_are_legible_at_any_size(size, shown):
    leader = torch.zeros(1, *size).long()
    leader[:, size[0] // 2 :] = 1
    tiles = cut_tiles(render_panel(make_explanation(leader), plain_image(*size)))
    height, width = tiles["who"].shape[:2]
    assert max(height, width) == shown
    assert height / width == pytest.approx(size[0] / size[1], rel=0.01)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1), (3, 700)])
def test_extreme_sizes(size):
    panel = render_panel(make_explanation(torch.zeros(1, *size).long()), plain_image(*size))
    assert panel.dtype == np.uint8
    assert panel.shape[0] > 150


@pytest.mark.parametrize("n", [1, 2, 12, 40])
@pytest.mark.parametrize("classes", [2, 7])
def test_any_number_of_annotators_and_classes(n, classes):
    names = ["Zoë", "Иван", "中村", *[f"radiologist with a long name {i}" for i in range(37)]][:n]
    leader = torch.arange(20 * 20).view(1, 20, 20) // 10 % n
    explanation = make_explanation(
        leader, annotators=names, classes=[f"class {c}" for c in range(classes)]
    )
    masks = explanation.annotator_decisions[0].numpy()
    panel = render_panel(explanation, plain_image(20, 20), masks, masks[0])
    assert panel.shape[1] < 1600


def test_nobody_decides():
    leader, _ = quarters()
    explanation = make_explanation(leader, undecided=torch.ones_like(leader).bool())
    tiles = cut_tiles(render_panel(explanation, plain_image(8, 8)))
    assert is_grey(tiles["who"]).all()
    assert is_grey(tiles["why"]).all()


def test_half_precision():
    explanation = make_explanation(quarters()[0], weight=0.8)
    tensors = {
        name: getattr(explanation, name).bfloat16() for name in ("probs", "who", "why_share")
    }
    assert render_panel(dataclasses.replace(explanation, **tensors), plain_image(8, 8)).any()


def test_wrong_sizes_are_named():
    explanation = make_explanation(quarters()[0])
    with pytest.raises(ValueError, match=r"image is uint8 \(8, 9, 3\), expected uint8 \(8, 8, 3\)"):
        render_panel(explanation, plain_image(8, 9))
    with pytest.raises(ValueError, match=r"image is float64"):
        render_panel(explanation, np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"masks has shape \(2, 8, 8\), expected \(3, 8, 8\)"):
        render_panel(explanation, plain_image(8, 8), np.zeros((2, 8, 8), dtype=int))
    with pytest.raises(ValueError, match=r"reference has shape \(4, 8\), expected \(8, 8\)"):
        render_panel(explanation, plain_image(8, 8), None, np.zeros((4, 8), dtype=int))
