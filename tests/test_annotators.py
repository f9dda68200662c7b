"""Simulated annotators: each rule on a hand-made mask, and what must hold whatever the rules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.simulation.annotators import (
    Habit,
    ObjectInfo,
    SimulatedAnnotator,
    When,
    annotate,
    draw_presence,
    draw_reference,
    expert_map,
    find_objects,
    measure_contrast,
    rule_names,
)
from tax_lightning.simulation.rules import (
    Chain,
    ConvexHull,
    Fracture,
    Miss,
    Noise,
    OverSegment,
    PermuteClasses,
    Polygon,
    Rule,
    Shift,
    Smooth,
    SwapClass,
    UnderSegment,
    Wobble,
    disc,
)


def picture(*rows):
    """A mask from text, # being the object."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def redrawn(rule, *rows):
    """What a rule makes of a mask, as text."""
    drawn = rule.redraw(picture(*rows), np.random.default_rng(0))
    return ["".join("#" if pixel else "." for pixel in row) for row in drawn]


def thing(mask, label=1, kind="cell", contrast=1.0):
    return ObjectInfo(mask, label, kind, contrast)


def rng():
    return np.random.default_rng(0)


def test_over_segment_adds_a_rim():
    assert redrawn(OverSegment(1), ".....", ".....", "..#..", ".....") == [
        ".....",
        "..#..",
        ".###.",
        "..#..",
    ]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_square_brush_is_so_many_steps_of_three_by_three(times):
    mask = np.random.default_rng(0).random((20, 24)) < 0.1
    three = np.ones((3, 3))
    wide = ndimage.binary_dilation(mask, three, iterations=times)
    tight = ndimage.binary_erosion(wide, three, iterations=times, border_value=1)
    assert (OverSegment(times, "square").redraw(mask, rng()) == wide).all()
    assert (UnderSegment(times, "square").redraw(wide, rng()) == tight).all()


def test_under_segment_takes_a_rim_but_not_from_the_edge_of_the_image():
    assert redrawn(UnderSegment(1), "###..", "###..", "###..", ".....") == [
        "##...",
        "##...",
        ".....",
        ".....",
    ]


def test_miss_draws_nothing():
    assert redrawn(Miss(), "##", "##") == ["..", ".."]


def test_shift_loses_what_leaves_the_image():
    assert redrawn(Shift(1, -1), "##.", ".#.", "..#") == ["...", "#..", "#.."]


def test_convex_hull_fills_bays_and_holes():
    assert redrawn(ConvexHull(), "#.#", "#.#", "###") == ["###", "###", "###"]
    assert redrawn(ConvexHull(), "###", "#.#", "###") == ["###", "###", "###"]


def test_polygon_cuts_the_corners_of_a_square_that_lie_between_its_clicks():
    drawn = redrawn(Polygon(4), "#####", "#####", "#####", "#####", "#####")
    assert drawn == ["..#..", ".###.", "#####", ".###.", "..#.."]


def test_polygon_of_a_single_pixel_is_that_pixel():
    assert redrawn(Polygon(5), "...", ".#.", "...") == ["...", ".#.", "..."]


def test_smooth_cuts_spikes():
    assert redrawn(Smooth(1), "..#...", ".###..", "..####", "......") == [
        "..#...",
        ".###..",
        "..#...",
        "......",
    ]


def test_fracture_runs_across_the_object():
    assert redrawn(Fracture(2, 4), "########", "########") == ["#.#.#.#.", "#.#.#.#."]
    assert redrawn(Fracture(2, 4), "##", "##", "##", "##") == ["##", "..", "##", ".."]


def test_wobble_is_random_repeatable_and_stays_near_the_outline():
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    drawn = [Wobble(1.5).redraw(mask, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert (drawn[0] != mask).any()
    assert drawn[0][17:23, 17:23].all()
    assert not drawn[0][[0, -1]].any()


def test_wobble_of_an_object_that_fills_the_image_stays_in_the_image():
    drawn = Wobble(1).redraw(np.ones((12, 12), dtype=bool), rng())
    assert drawn[4:8, 4:8].all()


def test_noise_flips_its_share_near_the_outline_or_anywhere():
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:50, 10:60] = True
    near = Noise(0.25, within=2).redraw(mask, rng()) != mask
    band = ndimage.binary_dilation(mask, disc(2)) & ~ndimage.binary_erosion(mask, disc(2))
    assert not near[~band].any()
    assert near[band].mean() == pytest.approx(0.25, abs=0.05)
    assert (Noise(0.1).redraw(mask, rng()) != mask).mean() == pytest.approx(0.1, abs=0.02)
    assert (Noise(1).redraw(mask, rng()) == ~mask).all()
    assert (Noise(0.5).redraw(mask, rng()) == Noise(0.5).redraw(mask, rng())).all()


def test_noise_needs_a_probability():
    with pytest.raises(ValueError, match=r"share=2: expected a probability from 0 to 1"):
        Noise(2)


def test_permuted_classes():
    rule = PermuteClasses((1, 4, 2))
    assert [rule.relabel(label) for label in (1, 2, 3, 4)] == [4, 1, 3, 2]
    assert [rule.concerns(label) for label in (1, 2, 3, 4)] == [True, True, False, True]
    named = PermuteClasses(("cell", "fibre")).resolved(("background", "cell", "fibre"))
    assert named.name == "calls cell fibre, fibre cell"
    assert named.cycle == (1, 2)
    of_four = PermuteClasses().resolved(("background", "edema", "core", "tumour", "rest"))
    assert [of_four.relabel(label) for label in (1, 2, 3, 4)] == [4, 1, 2, 3]


@pytest.mark.parametrize("cycle", [(1,), (1, 2, 1)])
def test_a_cycle_holds_several_classes_once(cycle):
    with pytest.raises(ValueError, match=r"cycle=.*expected at least two classes, each of them on"):
        PermuteClasses(cycle)


def test_classes_may_be_given_by_name_once_they_are_resolved():
    classes = ("background", "cell", "fibre")
    wrong = Chain((UnderSegment(1), SwapClass("fibre")))
    given = SimulatedAnnotator("Ana", (Habit(wrong, When(labels=("cell",))),))
    ana = given.resolved(classes, ["blob"])
    rule = ana.rule_for(thing(picture("##")))
    assert rule.relabel(1) == 2
    assert rule.name == "under-segments by 1 px, then calls it fibre"
    assert ana.rule_for(thing(picture("##"), label=2)) is None
    with pytest.raises(ValueError, match=r"'cell' is given by name, .* call resolved\(classes\)"):
        given.rule_for(thing(picture("##")))
    with pytest.raises(ValueError, match=r"Annotator 'Ana': .*'cell', expected one of background"):
        given.resolved(("background", "fibre"), ["blob"])


def test_a_habit_for_a_kind_that_is_not_there_is_refused():
    ana = SimulatedAnnotator("Ana", (Habit(UnderSegment(1), When(kinds=("blub",))),))
    with pytest.raises(
        ValueError, match="Annotator 'Ana': a habit is for the kind 'blub', but obj"
    ):
        ana.resolved(("background", "cell"), ["blob"])


@pytest.mark.parametrize("label", [-1, 3])
def test_class_ids_out_of_range(label):
    with pytest.raises(ValueError, match=rf"the class {label}, expected .* an id from 0 to 2"):
        When(labels=(label,)).resolved(("background", "cell", "fibre"))


def test_a_rule_that_does_nothing_to_a_class_leaves_it_to_the_next_habit():
    panel = SimulatedAnnotator("Ana", (Habit(SwapClass(2, "fibre")), Habit(Miss())))
    assert panel.rule_for(thing(picture("#"), label=1)) == SwapClass(2, "fibre")
    assert panel.rule_for(thing(picture("#"), label=2)) == Miss()
    confused = SimulatedAnnotator("Ben", (Habit(PermuteClasses((1, 2))),))
    assert confused.rule_for(thing(picture("#"), label=3)) is None


def test_a_habit_without_rule_is_an_exception():
    panel = SimulatedAnnotator("Ana", (Habit(None, When(max_area=4)), Habit(Miss())))
    assert panel.rule_for(thing(picture("##"))) is None
    assert panel.rule_for(thing(picture("#####"))) == Miss()
    assert rule_names([panel]) == ("agrees", "misses")


def test_swap_class_keeps_the_outline():
    rule = SwapClass(3, "debris")
    assert redrawn(rule, "#.", ".#") == ["#.", ".#"]
    assert rule.relabel(1) == 3


def test_chain_applies_its_rules_in_order_and_what_vanished_stays_away():
    tight_then_left = Chain((UnderSegment(1), Shift(0, -1), SwapClass(2, "fibre")))
    assert redrawn(tight_then_left, ".....", ".###.", ".###.", ".###.", ".....")[2] == ".#..."
    assert tight_then_left.relabel(1) == 2
    assert redrawn(Chain((Miss(), ConvexHull())), "##", "##") == ["..", ".."]


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        (When(), True),
        (When(kinds=("spot", "cell")), True),
        (When(kinds=("spot",)), False),
        (When(labels=(1,)), True),
        (When(labels=(2, 3)), False),
        (When(min_area=2, max_area=2), True),
        (When(min_area=3), False),
        (When(max_area=1), False),
        (When(min_contrast=0.4, max_contrast=0.6), True),
        (When(min_contrast=0.6), False),
        (When(max_contrast=0.4), False),
        (When(side="left"), True),
        (When(side="right"), False),
        (When(side="bottom"), True),
        (When(side="top"), False),
        (When(kinds=("cell",), side="top"), False),
    ],
)
def test_when(when, fits):
    lower_left = picture("....", "....", "#...", "#...")
    assert when(thing(lower_left, contrast=0.5)) is fits


def test_first_fitting_habit_applies():
    panel = SimulatedAnnotator(
        "Ana", (Habit(Miss(), When(max_area=4)), Habit(OverSegment(1), When(labels=(1,))))
    )
    small, large = picture("##", "##"), picture("###", "###", "###")
    assert panel.rule_for(thing(small)) == Miss()
    assert panel.rule_for(thing(large)) == OverSegment(1)
    assert panel.rule_for(thing(large, label=2)) is None


def test_equal_rules_share_one_id():
    panel = (
        SimulatedAnnotator("Ana", (Habit(Miss()), Habit(OverSegment(2)))),
        SimulatedAnnotator("Ben", (Habit(OverSegment(2)), Habit(OverSegment(3)))),
    )
    assert rule_names(panel) == (
        "agrees",
        "misses",
        "over-segments by 2 px",
        "over-segments by 3 px",
    )


def test_every_rule_has_its_own_name():
    rules = [
        *(OverSegment(1), OverSegment(2), UnderSegment(1), Miss(), Shift(1, 0), Shift(0, 1)),
        *(ConvexHull(), Polygon(4), Smooth(1), Fracture(1, 2), Wobble(1), SwapClass(1, "cell")),
        *(OverSegment(1, "square"), UnderSegment(1, "square"), Noise(0.1), Noise(0.1, 2)),
        *(PermuteClasses((1, 2)), PermuteClasses((1, 3)), Chain((Miss(), Smooth(1)))),
    ]
    assert len({rule.name for rule in rules}) == len(rules)


def test_annotate_notes_the_rule_that_changed_each_pixel():
    mask = picture(".......", ".###...", ".###...", ".###...", ".......")
    panel = (
        SimulatedAnnotator("Ana", (Habit(SwapClass(2, "fibre")),)),
        SimulatedAnnotator("Ben", (Habit(Shift(0, 1)),)),
        SimulatedAnnotator("Chloe"),
    )
    masks, deviation = annotate([thing(mask)], panel, mask.shape, rng())
    assert masks[0].tolist() == (2 * mask).tolist()
    assert deviation[0].tolist() == (1 * mask).tolist()
    assert masks[1, 2].tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert deviation[1, 2].tolist() == [0, 2, 0, 0, 2, 0, 0]
    assert masks[2].tolist() == (1 * mask).tolist()
    assert not deviation[2].any()


def test_additions_stop_half_way_to_the_neighbour():
    left, right = picture("#......."), picture(".....###")
    generous = SimulatedAnnotator("Ana", (Habit(OverSegment(9), When(kinds=("big",))),))
    objects = [thing(left, kind="big"), thing(right, label=2, kind="small")]
    masks, _ = annotate(objects, [generous], (1, 8), rng())
    assert masks[0, 0].tolist() == [1, 1, 1, 0, 0, 2, 2, 2]


def test_overlapping_objects_are_refused():
    mask = picture("##")
    with pytest.raises(ValueError, match=r"objects\[1\] \(fibre\) overlaps .* cut the overlap out"):
        annotate([thing(mask), thing(mask, kind="fibre")], [], (1, 2), rng())


def test_no_objects():
    masks, deviation = annotate([], [SimulatedAnnotator("Ana")], (2, 3), rng())
    assert masks.tolist() == deviation.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert (expert_map([], [SimulatedAnnotator("Ana")], (2, 3), band=3) == IGNORE_INDEX).all()


def test_expert_is_the_only_faithful_annotator_and_the_nearer_object_counts():
    left, right = picture("#.......#.."), picture(".....#.....")
    objects = [thing(left, kind="a"), thing(right, kind="b")]
    panel = [
        SimulatedAnnotator("Ana", (Habit(Miss(), When(("a",))),)),
        SimulatedAnnotator("Ben", (Habit(Miss(), When(("b",))),)),
    ]
    expert = expert_map(objects, panel, (1, 11), band=2)
    assert expert[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("habits", [(), (Habit(Miss()),)])
def test_no_expert_where_both_or_nobody_is_faithful(habits):
    panel = [SimulatedAnnotator("Ana", habits), SimulatedAnnotator("Ben", habits)]
    assert (expert_map([thing(picture("#.."))], panel, (1, 3), band=5) == IGNORE_INDEX).all()


def test_find_objects_splits_classes_into_connected_parts():
    mask = np.array([[1, 0, 2, 2], [0, 1, 0, 255], [0, 0, 0, 1]], dtype=np.uint8)
    found = find_objects(mask, ("background", "cell", "fibre"))
    assert [(o.kind, o.label, o.area) for o in found] == [
        ("cell", 1, 2),
        ("cell", 1, 1),
        ("fibre", 2, 2),
    ]
    expected = np.where(mask == IGNORE_INDEX, 0, mask)
    assert (draw_reference(found, mask.shape) == expected).all()


def test_find_objects_refuses_nameless_classes():
    with pytest.raises(ValueError, match=r"class id 7, expected ids below 2 .*name all classes"):
        find_objects(np.full((2, 2), 7, dtype=np.uint8), ("background", "cell"))


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_contrast_is_a_share_of_the_full_range(dtype, full):
    image = np.zeros((20, 20, 3), dtype=dtype)
    mask = np.zeros((20, 20), dtype=bool)
    mask[8:12, 8:12] = True
    image[mask] = full
    image[0, 0] = full  # too far away to matter
    assert measure_contrast(image, mask, mask) == 1
    assert find_objects(mask.astype(np.uint8), ("background", "cell"), image)[0].contrast == 1
    image[mask] = 0
    assert measure_contrast(image, mask, mask) == 0


def test_contrast_leaves_neighbours_out_and_is_full_without_background():
    image = np.zeros((1, 4, 1))
    image[0, :, 0] = [0.5, 1.0, 0.2, 0.2]
    assert measure_contrast(image, picture("#..."), picture("##..")) == pytest.approx(0.3)
    assert measure_contrast(image, picture("##.."), picture("####")) == 1.0


RULES = st.one_of(
    st.builds(OverSegment, st.integers(1, 5), st.sampled_from(["disc", "square"])),
    st.builds(UnderSegment, st.integers(1, 3), st.sampled_from(["disc", "square"])),
    st.just(Miss()),
    st.builds(Shift, st.integers(-9, 9), st.integers(-9, 9)),
    st.just(ConvexHull()),
    st.builds(Polygon, st.integers(3, 7)),
    st.builds(Smooth, st.integers(1, 3)),
    st.builds(Fracture, st.integers(1, 5), st.integers(6, 12)),
    st.builds(Wobble, st.floats(0.5, 3)),
    st.builds(Noise, st.floats(0, 1), st.sampled_from([None, 1, 2, 4])),
    st.builds(SwapClass, st.integers(1, 3), st.just("other")),
    st.sampled_from([PermuteClasses((1, 3)), PermuteClasses((3, 2, 1))]),
)
RULES = st.one_of(RULES, st.lists(RULES, min_size=1, max_size=3).map(lambda r: Chain(tuple(r))))
HABITS = st.builds(
    Habit,
    RULES,
    st.builds(
        When,
        labels=st.sampled_from([(), (1,), (2,), (1, 3)]),
        max_area=st.sampled_from([10, 40, np.inf]),
        side=st.sampled_from([None, "left", "top"]),
    ),
)
PANELS = st.lists(st.lists(HABITS, max_size=3).map(tuple), min_size=1, max_size=4).map(
    lambda panel: tuple(SimulatedAnnotator(str(n), habits) for n, habits in enumerate(panel))
)


@st.composite
def references(draw):
    """Random patches of three classes, which may touch each other and the image's edge."""
    mask = np.zeros((24, 28), dtype=np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, 22)), draw(st.integers(0, 26))
        height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        mask[top : top + height, left : left + width] = draw(st.integers(0, 3))
    return mask


@given(references(), PANELS, st.integers(1, 6))
def test_whatever_the_habits(reference, panel, band):
    objects = find_objects(reference, ("background", "cell", "fibre", "debris"))
    masks, deviation = annotate(objects, panel, reference.shape, rng())
    expert = expert_map(objects, panel, reference.shape, band)

    assert (draw_reference(objects, reference.shape) == reference).all()
    assert ((masks == reference) == (deviation == 0)).all()
    assert deviation.max() < len(rule_names(panel))
    assert masks.max() <= 3
    for number, annotator in enumerate(panel):
        assert not deviation[number][expert == number].any()
        for one in objects:
            if annotator.rule_for(one) is None:  # no spill from neighbours
                assert (masks[number][one.mask] == one.label).all()
    again, _ = annotate(objects, panel, reference.shape, rng())
    assert (again == masks).all()


@given(references())
def test_an_over_segmented_object_spills_over_no_other_object(reference):
    objects = find_objects(reference, ("background", "cell", "fibre", "debris"))
    greedy = SimulatedAnnotator("greedy", (Habit(OverSegment(20), When(kinds=("first",))),))
    objects = [replace(one, kind="rest" if n else "first") for n, one in enumerate(objects)]
    masks, _ = annotate(objects, [greedy], reference.shape, rng())
    for one in objects[1:]:
        assert (masks[0][one.mask] == one.label).all()


class Whole(Rule):
    """A rule that is shown the whole image, whatever it says of its reach."""

    def __init__(self, rule):
        self.rule = rule

    @property
    def name(self):
        return self.rule.name

    def redraw(self, mask, rng):
        return self.rule.redraw(mask, rng)

    def relabel(self, label):
        return self.rule.relabel(label)

    def concerns(self, label):
        return self.rule.concerns(label)


@given(references(), PANELS)
def test_a_part_of_the_image_is_enough_for_a_rule(reference, panel):
    objects = find_objects(reference, ("background", "cell", "fibre", "debris"))
    wholes = {}
    slow = [
        replace(
            annotator,
            habits=tuple(
                replace(habit, rule=wholes.setdefault(habit.rule, Whole(habit.rule)))
                for habit in annotator.habits
            ),
        )
        for annotator in panel
    ]
    drawn = annotate(objects, panel, reference.shape, rng())
    for one, other in zip(drawn, annotate(objects, slow, reference.shape, rng()), strict=True):
        np.testing.assert_array_equal(one, other)


@given(references(), PANELS)
def test_masks_can_be_rebuilt_from_the_truth_the_deviation_and_the_rules(reference, panel):
    objects = find_objects(reference, ("background", "cell", "fibre", "debris"))
    masks, deviation = annotate(objects, panel, reference.shape, rng())
    rules = dict.fromkeys(habit.rule for annotator in panel for habit in annotator.habits)
    ids = {rule: number for number, rule in enumerate(rules, start=1)}
    depths = [ndimage.distance_transform_edt(~one.mask) for one in objects]
    for mask, changed, annotator, hand in zip(
        masks, deviation, panel, rng().spawn(len(panel)), strict=True
    ):
        rebuilt = np.where(changed == 0, reference, IGNORE_INDEX)
        for number, one in enumerate(objects):
            rule = annotator.rule_for(one)
            if rule is None:
                continue
            outline = rule.redraw(one.mask, hand)
            value = np.where(outline, rule.relabel(one.label), 0)
            others = [depth for place, depth in enumerate(depths) if place != number]
            nearest = depths[number] <= np.min(others, axis=0, initial=np.inf)
            here = nearest & (changed == ids[rule])
            # where two objects are equally near, either may have been the one
            fits = here & (value != reference)
            rebuilt[fits & (value == mask)] = value[fits & (value == mask)]
            alone = depths[number] < np.min(others, axis=0, initial=np.inf)
            assert (mask[alone] == value[alone]).all()
        np.testing.assert_array_equal(rebuilt, mask)


@given(references())
def test_objects_know_their_place(reference):
    for one in find_objects(reference, ("background", "cell", "fibre", "debris")):
        whole = ObjectInfo(one.mask, one.label, one.kind)
        assert one.mask.shape == one.shape == whole.shape == reference.shape
        assert one.area == whole.area
        assert one.box == whole.box
        assert one.centre == pytest.approx(whole.centre)
        for margin in (0, 2, None):
            (box, mask), (wide_box, wide_mask) = one.cut(margin), whole.cut(margin)
            assert box == wide_box
            assert (mask == wide_mask).all()
            assert (one.mask[box] == mask).all()
            assert mask.sum() == one.area


def test_who_is_there_is_drawn_by_probability_and_never_nobody():
    chance = rng()
    drawn = [draw_presence(np.array([0.2, 0.8, 1.0]), chance) for _ in range(400)]
    shares = np.mean(drawn, axis=0)
    assert np.min(np.sum(drawn, axis=1)) == 1
    # the third is never there; where the draw leaves nobody, one of the others is taken
    assert shares.tolist() == pytest.approx([0.8 + 0.16 / 2, 0.2 + 0.16 / 2, 0], abs=0.06)
    assert draw_presence(np.ones(3), chance).sum() == 1
