import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNELS, make_explanation, make_sources, quarters
from reading import places_of, says, written

from tax_lightning.explanation import TrustBasis
from tax_lightning.palette import (
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.annotations import SourcePatch, find_callouts
from tax_lightning.visualization.panel import (
    View,
    annotator_entries,
    argument_words,
    callout_words,
    dispute_notes,
    render_panel,
)
from tax_lightning.visualization.summary import Summary

BODY = 14  # height of the letters in a panel whose tiles are 256 wide
RED = (255, 0, 0)
GREY_OF_RED = 76
CONSTANT = TrustBasis("constant", "majority", (0.28, 0.24, 0.25))


def view_on(explanation, image, masks=None, reference=None):
    return View(explanation, image, masks, reference, Summary.of(explanation))


def view_of(explanation, masks=None, reference=None):
    """The view of an image that is all red, of which no grey value is one of a hatching."""
    height, width = explanation.probs.shape[-2:]
    image = np.full((height, width, 3), RED, dtype=np.uint8)
    return view_on(explanation, image, masks, reference)


def with_support(explanation, support):
    """The same with these probabilities [N, H, W] of the class 1, whatever the weights."""
    p = torch.as_tensor(support, dtype=torch.float32)[None]
    probs = torch.stack([1 - p, p], dim=2)
    return dataclasses.replace(explanation, annotator_probs=probs)


def enlarged(maps, size):
    """The last two axes at the size of a tile, every pixel as often as it is shown."""
    array = np.asarray(maps)
    zoom = size // array.shape[-1]
    return array.repeat(zoom, axis=-2).repeat(zoom, axis=-1)


def is_grey(picture):
    return (picture[..., 0] == picture[..., 1]) & (picture[..., 1] == picture[..., 2])


def count_inks(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, 3)).astype(np.uint8)


def texts(entries):
    return [entry.text for entry in entries]


# ------------------------------------------------------------------------------------------ tiles


@given(seed=st.integers(0, 1000), size=st.sampled_from([4, 16, 64]))
def test_who_has_the_colour_of_the_leader_and_is_grey_exactly_where_undisputed(seed, size):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, size, size), generator=generator)
    undisputed = torch.rand(1, size, size, generator=generator) < 0.4
    picture = view_of(make_explanation(leader, undisputed=undisputed)).who()
    assert picture.shape == (256, 256, 3)
    hatched = enlarged(undisputed[0], 256)
    np.testing.assert_array_equal(is_grey(picture), hatched)
    expected = np.array(annotator_palette(3))[enlarged(leader[0], 256)]
    np.testing.assert_array_equal(picture[~hatched], expected[~hatched])


def test_undisputed_pixels_are_dimmed_and_hatched():
    leader, undisputed = quarters()
    picture = view_of(make_explanation(leader, undisputed=undisputed)).who()[128:, 128:, 0]
    ground, line = round(0.25 * GREY_OF_RED + 176), 178
    assert np.unique(picture).tolist() == [line, ground]
    # Lines of one pixel in seven, falling to the left.
    rows, cols = np.indices((128, 128)) + 128
    np.testing.assert_array_equal(picture == line, (rows + cols) % 7 == 0)


def test_who_fades_with_certainty():
    explanation = make_explanation(quarters()[0], weight=2 / 3)  # of three: certainty 1/2
    expected = (np.array(annotator_palette(1)[0]) + GREY_OF_RED) / 2
    np.testing.assert_allclose(view_of(explanation).who()[10, 10], expected, atol=1)


def test_votes_are_light_where_all_and_dark_where_half_say_the_result():
    explanation = make_explanation(torch.ones(1, 1, 3).long(), annotators=("Ana", "Ben"))
    explanation = with_support(explanation, [[[0.9, 0.8, 0.5]], [[0.8, 0.7, 0.5]]])
    explanation = dataclasses.replace(explanation, dispute_threshold=0.0)
    picture, shares = view_of(explanation).votes_map(), np.array([0.85, 0.75, 0.5])
    for x, share in zip((40, 128, 250), shares, strict=True):
        np.testing.assert_allclose(picture[0, x], value_colours(2 * (1 - share[None]))[0], atol=3)


def test_dispute_runs_from_no_pair_to_even_odds():
    explanation = make_explanation(torch.ones(1, 1, 3).long(), annotators=("Ana", "Ben"))
    explanation = with_support(explanation, [[[1.0, 0.75, 0.5]], [[1.0, 1.0, 0.5]]])
    picture = view_of(explanation).dispute_map()
    scale = value_colours(np.array([[0.0, 0.5, 1.0]]))[0]
    for x, colour in zip((0, 128, 255), scale, strict=True):
        np.testing.assert_allclose(picture[0, x], colour, atol=3)


@given(seed=st.integers(0, 1000))
def test_why_has_the_shade_of_the_first_reason(seed):
    generator = torch.Generator().manual_seed(seed)
    leader = torch.randint(3, (1, 4, 4), generator=generator)
    kernel = torch.randint(KERNELS, (1, 4, 4), generator=generator)
    undisputed = torch.rand(1, 4, 4, generator=generator) < 0.3
    explanation = make_explanation(leader, kernel, undisputed)
    other = explanation.why_share.roll(1, dims=1)  # Ben is the reason where Ana leads, and so on
    picture = view_of(dataclasses.replace(explanation, why_share=other)).why()
    for y in range(4):
        for x in range(4):
            middle = picture[64 * y + 32, 64 * x + 32]
            if undisputed[0, y, x]:
                assert is_grey(middle)
            else:
                colour = annotator_palette(3)[(leader[0, y, x] + 1) % 3]
                assert tuple(middle) == kernel_shade(colour, int(kernel[0, y, x]), KERNELS)


def test_coinciding_contours_show_all_their_colours():
    masks = np.zeros((3, 64, 64), dtype=np.int64)
    masks[:2, 16:48, 16:48] = 1
    tile = view_of(make_explanation(quarters(64)[0]), masks).contours()
    first, second, third = (count_inks(tile, colour) for colour in annotator_palette(3))
    # 32 x 32 pixels, shown four times as large, in lines two pixels wide
    assert first + second == 4 * 2 * (128 - 2)
    assert abs(first - second) < 0.1 * (first + second)
    assert third == 0


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


@pytest.mark.parametrize("given", [True, False])
def test_own_maps_show_what_is_added_and_what_left_out(given):
    leader = torch.zeros(1, 64, 64).long()
    leader[:, :32, :32] = 1  # the result: Ben's cell in a quarter; Ana says nothing, Ben all
    explanation = make_explanation(leader)
    masks = np.zeros((3, 64, 64), dtype=np.int64)
    masks[1], masks[2] = 1, 255
    view = view_of(explanation, masks if given else None)
    ana, ben = annotator_palette(2)
    picture, more, less = view.own(0)
    assert (more, less) == (0, 1)
    assert count_inks(picture[:128, :128], ana) == pytest.approx(128**2 / 2, rel=0.1)
    assert count_inks(picture[128:], ana) == 0
    picture, more, less = view.own(1)
    assert (more, less) == (3, 0)
    assert count_inks(picture, ben) == 256**2 - 128**2
    _, more, less = view.own(2)  # who did not label the image changes nothing
    assert (more, less) == ((0, 0) if given else (0, 1))


@pytest.mark.parametrize("size", [513, 2000])
def test_large_images_are_shown_smaller_with_every_map_from_the_same_pixels(size):
    generator = torch.Generator().manual_seed(0)
    leader = torch.randint(3, (1, size, size), generator=generator)
    masks = leader.numpy().repeat(3, 0)
    view = view_of(make_explanation(leader, kernel=leader), masks, leader[0].numpy())
    shown = view.map("leader")
    assert shown.shape == (512, 512)
    assert view.line == 4
    for other in (view.map("reason"), view.map("reason_kernel"), view.masks[1], view.reference):
        np.testing.assert_array_equal(other, shown)
    assert shown[0, 0] == leader[0, 0 if size == 513 else 1, 0 if size == 513 else 1]


# ------------------------------------------------------------------------------------------ panel


def test_the_tiles_stand_in_two_rows_of_three():
    leader, undisputed = quarters(32)
    explanation = make_explanation(leader, undisputed=undisputed, weight=0.8)
    image, masks = noise(32, 32), np.stack([leader[0].numpy() == n for n in range(3)]).astype(int)
    view = view_on(explanation, image, masks, masks[0])
    panel = render_panel(explanation, image, masks, masks[0])
    drawn = (view.image, view.contours(), view.result())
    places = [places_of(tile, panel) for tile in (*drawn, view.who())]
    ((top, left),), ((_, second),), ((_, third),), ((below, again),) = places
    assert [(top, second), (top, third)] == [p[0] for p in places[1:3]]
    assert third - second == second - left == 256 + 16
    assert (again, below > top + 256) == (left, True)
    assert (below, third) in places_of(view.dispute_map(), panel)


@pytest.mark.parametrize("kind", ["image", "constant", "uniform"])
def test_who_is_shown_where_it_follows_the_image_and_votes_elsewhere(kind):
    leader, undisputed = quarters(32)
    trust = TrustBasis(kind, "majority", (0.28, 0.24, 0.25))
    explanation = make_explanation(leader, undisputed=undisputed, trust=trust)
    image, follows = noise(32, 32), kind == "image"
    view, panel = view_on(explanation, image), render_panel(explanation, image)
    assert bool(places_of(view.who(), panel)) == follows
    assert bool(places_of(view.votes_map(), panel)) != follows
    assert says(panel, "WHO weighs most", 18) == follows
    assert says(panel, "VOTES", 18) != follows


def test_every_name_stands_in_the_legend_beside_its_colour():
    leader, undisputed = quarters()
    panel = render_panel(make_explanation(leader, undisputed=undisputed), noise(8, 8))
    # Ana and Cleo say background at 2 of 3 disputed quarters, Ben cell at one.
    names = ("Ana 67%", "Ben 33%", "Cleo 67%")
    for name, colour in zip(names, annotator_palette(3), strict=True):
        ((row, column),) = places_of(written(name, BODY), panel)
        chip = panel[row - 2 : row + 16, column - 20 : column]
        assert count_inks(chip, colour) > 0.8 * 14 * 14
    for text in ("cell", "background", "8 x 8 pixels"):
        assert says(panel, text, BODY)
    assert says(panel, "hatched: fewer than 1 pair of annotators in 10 is expected to differ", BODY)


def test_of_forty_annotators_eleven_are_named_and_the_others_counted():
    names = [f"rater {n:02}" for n in range(40)]
    leader = (torch.arange(40 * 40) % 11 * 3).view(1, 40, 40)  # raters 0, 3, ... 30
    explanation = make_explanation(leader, annotators=names)
    summary = Summary.of(explanation)
    said = texts(annotator_entries(view_of(explanation), names, summary))
    assert [text[:8] for text in said[1:-1]] == names[:31:3]
    assert said[-1] == "29 others"
    assert says(render_panel(explanation, noise(40, 40)), "29 others", round(BODY * 280 / 256))


def test_callouts_have_numbers_in_the_picture_and_cards_below():
    leader, undisputed = quarters(64)
    explanation = make_explanation(leader, leader, undisputed)
    callouts = find_callouts(explanation)
    examples = {side.example for c in callouts for side in (c.reason, c.against)}
    grey = {
        e: SourcePatch(np.full((9, 9, 3), (1, 2, n), np.uint8), 4, 4)
        for n, e in enumerate(examples)
    }
    image = noise(64, 64)
    panel = render_panel(explanation, image, patches=grey)
    ((top, left),) = places_of(view_on(explanation, image).who(), panel)
    why = panel[top : top + 256, left + 272 : left + 272 + 256]
    for callout in callouts:
        y, x = 4 * callout.y + 2, 4 * callout.x + 2
        assert is_grey(why[y - 6 : y + 6, x - 6 : x + 6]).all()  # a white number on a dark disc
    shown = sum(count_inks(panel, (1, 2, n)) for n in range(len(examples)))
    assert 5.4 * 96**2 < shown < 6 * 96**2  # for and against at three spots, less their marks
    assert says(panel, "FOR background: 50%", BODY)
    assert says(panel, "AGAINST: Ben would", BODY)


def test_the_foot_says_what_trust_is_worth():
    panel = render_panel(make_explanation(quarters(64)[0], trust=CONSTANT), noise(64, 64))
    assert says(panel, "Trust in the annotators was taught with the majority", BODY)


@pytest.mark.parametrize(
    ("support", "said"),
    [
        ((0.6, 0.6, 0.6), "The model expects the same of all 3 annotators"),
        ((0.9, 0.3, 0.9), "The model expects nearly the same of Ana and Cleo"),
        ((0.1, 0.3, 0.2), "The result is background everywhere. The model found nothing at any"),
    ],
)
def test_what_misleads_is_called_by_name(support, said):
    trust = TrustBasis("image", "given")  # nor was that measured
    explanation = make_explanation(torch.zeros(1, 8, 8).long(), trust=trust)
    explanation = with_support(
        explanation, np.broadcast_to(np.reshape(support, (3, 1, 1)), (3, 8, 8))
    )
    explanation = dataclasses.replace(explanation, probs=explanation.annotator_probs.mean(dim=1))
    panel = render_panel(explanation, noise(8, 8))
    assert says(panel, said, BODY)
    assert says(panel, "do not rely on them.", BODY)


def test_a_missing_patch_leaves_its_frame_empty():
    panel = render_panel(make_explanation(quarters()[0]), noise(8, 8))
    assert len(places_of(np.full((96, 96, 3), 238, dtype=np.uint8), panel)) == 6
    assert says(panel, "(image not found)", BODY)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), 256), ((100, 100), 300), ((1000, 1000), 512), ((600, 300), 512), ((300, 600), 512)],
)
def test_tiles_are_legible_at_any_size(size, shown):
    leader = torch.zeros(1, *size).long()
    leader[:, size[0] // 2 :] = 1
    explanation, image = make_explanation(leader), noise(*size)
    view = view_on(explanation, image)
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


def test_nothing_disputed():
    leader, _ = quarters()
    explanation = make_explanation(leader, undisputed=torch.ones_like(leader).bool())
    panel = render_panel(explanation, noise(8, 8))
    nothing = "Nothing is disputed: the model expects all annotators to say the same everywhere."
    assert says(panel, nothing, 18)
    assert not says(panel, "prototype 0 of Ana", BODY)


def test_half_precision():
    explanation = make_explanation(quarters()[0], weight=0.8)
    half = {name: getattr(explanation, name).bfloat16() for name in ("probs", "who", "why_share")}
    panel = render_panel(dataclasses.replace(explanation, **half), noise(8, 8))
    assert says(panel, "Ana 75%", BODY)


def test_several_images_and_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="of 2 images, expected 1"):
        render_panel(make_explanation(torch.zeros(2, 4, 4).long()), noise(4, 4))
    explanation = make_explanation(quarters()[0])
    with pytest.raises(ValueError, match=r"image has shape \(8, 9\), expected \(8, 8\)"):
        render_panel(explanation, noise(8, 9))
    with pytest.raises(ValueError, match=r"masks has shape \(2, 8, 8\), expected \(3, 8, 8\)"):
        render_panel(explanation, noise(8, 8), np.zeros((2, 8, 8), dtype=int))
    with pytest.raises(ValueError, match=r"reference has shape \(4, 8\), expected \(8, 8\)"):
        render_panel(explanation, noise(8, 8), None, np.zeros((4, 8), dtype=int))


# ------------------------------------------------------------------------------------------ words


def test_long_names_stay_distinct():
    names = [f"radiologist-with-a-very-long-name-{i:02d}" for i in range(12)]
    explanation = make_explanation(torch.zeros(1, 4, 4).long(), annotators=names)
    said = texts(annotator_entries(view_of(explanation), names, Summary.of(explanation))[1:])
    assert len(set(said)) == 12
    assert all("…" in text and len(text) < 30 for text in said)


def test_the_real_dispute_stands_beside_the_expected_one():
    leader, undisputed = quarters()
    explanation = make_explanation(leader, undisputed=undisputed)
    masks = np.zeros((3, 8, 8), dtype=np.int64)
    masks[1, :2] = 1
    said = texts(dispute_notes(explanation, Summary.of(explanation, masks)))
    assert said[2:] == ["disputed, as the model expects: 75% of the pixels", "in the masks: 25%"]
    assert len(dispute_notes(explanation, Summary.of(explanation))) == 3


def test_a_leader_decides_is_outvoted_or_shares():
    def words(**options):
        explanation = make_explanation(torch.zeros(1, 4, 4).long(), **options)
        return explanation, callout_words(explanation, find_callouts(explanation)[0])

    assert words(weight=0.8)[1] == [
        "background: 2.0 of 3 would say so",
        "Ana decides (weight 80%)",
    ]
    assert words(weight=0.4)[1][1] == "shared: Ana weighs most (40%)"
    assert words(weight=0.8, trust=CONSTANT)[1] == ["background: 2.0 of 3 would say so"]
    explanation, _ = words(weight=0.8)
    against = dataclasses.replace(explanation, probs=explanation.probs.flip(1))
    said = callout_words(against, find_callouts(against)[0])
    assert said == ["cell: 1.0 of 3 would say so", "Ana weighs most (80%) but is outvoted"]


def test_examples_are_of_the_class_that_they_speak_for():
    explanation = make_explanation(quarters()[0], kernel=2)
    callout = find_callouts(explanation)[0]
    assert (callout.reason.label, callout.against.label) == ("background", "cell")
    found = {callout.reason.example: None}
    assert argument_words(callout.reason, found) == [
        "prototype 2 of Ana",
        "like b at y 1, x 1",
    ]
    assert argument_words(callout.against, found) == [
        "prototype 2 of Ben",
        "like train-7 at y 4, x 3",
        "(image not found)",
    ]


def test_words_where_there_is_no_example():
    sources = make_sources(("Ana", "Ben", "Cleo"), sample_id="")
    explanation = make_explanation(quarters()[0], sources=sources)
    reason = find_callouts(explanation)[0].reason
    assert argument_words(reason, {})[1] == "not yet projected"
    classes = ("tissue", "cell")
    reason = find_callouts(make_explanation(quarters()[0], classes=classes))[0].reason
    assert argument_words(reason, {})[1] == "no pixel like it that Ana labelled so"
