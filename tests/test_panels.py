import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, make_sources, quarters
from PIL import Image

from tax_lightning.explain.panels import (
    UNDECIDED_INDEX,
    SourcePatch,
    annotator_palette,
    callout_caption,
    class_palette,
    find_callouts,
    indexed_png,
    kernel_shade,
    legend_entries,
    render_panel,
    shorten,
    who_index_map,
)

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


# ------------------------------------------------------------------------------------- colours


def test_annotator_colours_are_distinct_stable_and_never_grey():
    colours = annotator_palette(254)
    assert len(set(colours)) == 254
    assert annotator_palette(5) == colours[:5]
    assert all(max(colour) - min(colour) > 40 for colour in colours)


def test_class_colours_are_distinct_and_none_is_an_annotators():
    assert len(set(class_palette(60))) == 60
    assert not set(class_palette(6)) & set(annotator_palette(12))


def test_kernel_shades_are_distinct_and_keep_the_colour_in_the_middle():
    shades = [kernel_shade((0, 114, 178), k, 5) for k in range(5)]
    assert len(set(shades)) == 5
    assert shades[2] == (0, 114, 178)
    assert [sum(shade) for shade in shades] == sorted(sum(shade) for shade in shades)


# ---------------------------------------------------------------------------------- index maps


def test_who_index_map_reads_back_from_a_file(tmp_path):
    leader, undecided = quarters()
    indices = who_index_map(make_explanation(leader, undecided=undecided))
    expected = leader[0].numpy().copy()
    expected[4:, 4:] = UNDECIDED_INDEX
    np.testing.assert_array_equal(indices, expected)
    palette = {**dict(enumerate(annotator_palette(3))), UNDECIDED_INDEX: (200, 200, 200)}
    indexed_png(indices, palette).save(tmp_path / "who.png")
    with Image.open(tmp_path / "who.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), expected)
        assert stored.convert("RGB").getpixel((7, 0)) == annotator_palette(3)[1]


def test_who_index_map_refuses_more_annotators_than_it_can_name():
    names = [str(n) for n in range(255)]
    explanation = make_explanation(torch.zeros(1, 1, 1).long(), annotators=names)
    with pytest.raises(ValueError, match="255 annotators"):
        who_index_map(explanation)


def test_several_images_are_refused():
    explanation = make_explanation(torch.zeros(2, 4, 4).long())
    for function in (who_index_map, find_callouts):
        with pytest.raises(ValueError, match="of 2 images, expected 1"):
            function(explanation)
    with pytest.raises(ValueError, match="of 2 images, expected 1"):
        render_panel(explanation, plain_image(4, 4))


# ----------------------------------------------------------------------------------- call-outs


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
    undecided = torch.rand(1, 6, 5, generator=generator) < 0.4
    explanation = make_explanation(leader, kernel, undecided)
    callouts = find_callouts(explanation, limit)
    assert len(callouts) <= limit
    assert len({(c.annotator, c.kernel) for c in callouts}) == len(callouts)
    for callout in callouts:
        spot = (0, callout.y, callout.x)
        assert (leader[spot], kernel[spot]) == (callout.annotator, callout.kernel)
        assert not undecided[spot]


def test_no_callouts_where_nobody_decides():
    leader, _ = quarters()
    assert find_callouts(make_explanation(leader, undecided=torch.ones_like(leader).bool())) == ()


# -------------------------------------------------------------------------------------- words


def test_captions_name_annotator_prototype_source_and_share():
    explanation = make_explanation(quarters()[0], kernel=2)
    callout = find_callouts(explanation)[0]
    assert callout_caption(explanation, callout) == (
        "Ana · prototype 2",
        "from train-7",
        "at y 4, x 3",
        "labelled: cell",
        "share 50%",
    )
    assert "(image not found)" in callout_caption(explanation, callout, has_patch=False)


def test_caption_before_the_projection():
    sources = make_sources(("Ana", "Ben", "Cleo"), sample_id="")
    explanation = make_explanation(quarters()[0], sources=sources)
    caption = callout_caption(explanation, find_callouts(explanation)[0], has_patch=False)
    assert caption == ("Ana · prototype 0", "not yet projected", "share 50%")


def test_legend_names_every_annotator_with_colour_and_part():
    leader, undecided = quarters()
    title, *entries = legend_entries(make_explanation(leader, undecided=undecided))
    assert "share of the decided pixels" in title.text
    assert [entry.text for entry in entries] == ["Ana 33%", "Ben 33%", "Cleo 33%"]
    assert [tuple(entry.chip[0, 0]) for entry in entries] == list(annotator_palette(3))


def test_legend_of_forty_long_names_stays_distinct():
    names = [f"radiologist-with-a-very-long-name-{i:02d}" for i in range(40)]
    explanation = make_explanation(torch.zeros(1, 4, 4).long(), annotators=names)
    texts = [entry.text for entry in legend_entries(explanation)[1:]]
    assert len(set(texts)) == 40
    assert all("…" in text and len(text) < 30 for text in texts)


@given(name=st.text(max_size=60), limit=st.integers(3, 40))
def test_shortened_names_fit_and_keep_both_ends(name, limit):
    short = shorten(name, limit)
    assert len(short) <= limit
    if len(name) > limit:
        assert short[0] == name[0]
        assert short[-1] == name[-1]
    else:
        assert short == name


# --------------------------------------------------------------------------- the picture itself


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
