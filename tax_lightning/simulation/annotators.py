"""Simulated annotators: rules that turn a reference into what a person of known habits draws.

Every pixel on which a simulated annotator differs from the reference differs because of one known
rule, so that a who map and an explanation can be held against a truth. The rules need nothing but
the objects of a reference mask: they serve drawn scenes (`tax_lightning.simulation.synthetic`)
and real masks of a single annotator (see `find_objects`) alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.refusals import check_number
from tax_lightning.simulation.rules import (
    BoolArray,
    Box,
    ByteArray,
    Rule,
    bounds,
    class_id,
    disc,
    known_id,
)

Side = Literal["left", "right", "top", "bottom"]

BACKGROUND = 0
AGREES = "agrees"
"""Name of deviation id 0 in `rule_names`."""
_RING = 5
"""Width in pixels of the surroundings that an object's contrast is measured against."""


@dataclass(frozen=True, eq=False)
class ObjectInfo:
    """One object of a reference mask: all that an annotator's habits may depend on.

    Args:
        pixels: Pixels of the object, bool ``[h, w]``, at least one of them true: those of the
            whole image, or of a part of it that holds the whole object.
        label: Class id of the object, not the background's 0.
        kind: Name of the object's type. Several kinds may share a class.
        contrast: How far the object stands out from its surroundings, in ``[0, 1]``.
        corner: Row and column of the part's first pixel in the image.
        size: Height and width of the image; None: those of ``pixels``.

    Example:
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> mask[1:3, 4:6] = True
        >>> thing = ObjectInfo(mask, label=1, kind="cell")
        >>> thing.area, thing.centre
        (4, (1.5, 4.5))
    """

    pixels: BoolArray
    label: int
    kind: str
    contrast: float = 1.0
    corner: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.size or (self.pixels.shape[0], self.pixels.shape[1])

    @property
    def mask(self) -> BoolArray:
        """Pixels of the object in the whole image, bool ``[H, W]``."""
        return self.cut(margin=None)[1]

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.pixels.sum())

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Mean row and column of the object's pixels."""
        rows, columns = np.nonzero(self.pixels)
        return float(rows.mean()) + self.corner[0], float(columns.mean()) + self.corner[1]

    @cached_property
    def box(self) -> Box:
        """Bounding box in the image."""
        return _moved(bounds(self.pixels), self.corner)

    def cut(self, margin: int | None) -> tuple[Box, BoolArray]:
        """The part of the image round the object.

        Args:
            margin: Pixels that are added to the bounding box, as far as the image goes; None: the
                whole image.

        Returns:
            box: The part's place in the image.
            mask: The object in it, bool.
        """
        wide = max(self.shape) if margin is None else margin
        box = tuple(
            slice(max(side.start - wide, 0), min(side.stop + wide, length))
            for side, length in zip(self.box, self.shape, strict=True)
        )
        rows, columns = box
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.bool_)
        inner = _moved(self.box, (-rows.start, -columns.start))
        mask[inner] = self.pixels[_moved(self.box, (-self.corner[0], -self.corner[1]))]
        return (rows, columns), mask


@dataclass(frozen=True)
class When:
    """The objects that a habit is for: those that meet every condition given here.

    Args:
        kinds: Names of object types; empty for all.
        labels: Class ids or names; empty for all.
        min_area: Smallest number of pixels.
        max_area: Largest number of pixels.
        min_contrast: Faintest contrast, in ``[0, 1]``.
        max_contrast: Strongest contrast, in ``[0, 1]``.
        side: Half of the image that the object's centre lies in; None for both.

    Raises:
        ValueError: If a number is below 0, or the largest below the smallest.

    Example:
        >>> speck = ObjectInfo(np.eye(3, dtype=bool), label=2, kind="debris")
        >>> When(labels=(2,), max_area=10)(speck), When(min_area=10)(speck)
        (True, False)
    """

    kinds: tuple[str, ...] = ()
    labels: tuple[int | str, ...] = ()
    min_area: float = 0
    max_area: float = np.inf
    min_contrast: float = 0
    max_contrast: float = np.inf
    side: Side | None = None

    def __post_init__(self) -> None:
        check_number("When.min_area", self.min_area, 0)
        check_number("When.max_area", self.max_area, max(1, self.min_area))
        check_number("When.min_contrast", self.min_contrast, 0)
        check_number("When.max_contrast", self.max_contrast, self.min_contrast)

    def __call__(self, thing: ObjectInfo) -> bool:
        """Returns whether ``thing`` meets all conditions."""
        return (
            (not self.kinds or thing.kind in self.kinds)
            and (not self.labels or thing.label in map(known_id, self.labels))
            and self.min_area <= thing.area <= self.max_area
            and self.min_contrast <= thing.contrast <= self.max_contrast
            and self._on_side(thing)
        )

    def resolved(self, classes: Sequence[str]) -> Self:
        """Returns the condition with class ids in the place of class names; see `Rule.resolved`."""
        return replace(self, labels=tuple(class_id(given, classes) for given in self.labels))

    def _on_side(self, thing: ObjectInfo) -> bool:
        """Whether the centre lies in the wanted half."""
        axis = 0 if self.side in ("top", "bottom") else 1
        first_half = thing.centre[axis] < (thing.shape[axis] - 1) / 2
        return self.side is None or first_half == (self.side in ("top", "left"))


@dataclass(frozen=True)
class Habit:
    """A rule and the objects it is applied to.

    Args:
        rule: What is drawn otherwise; None: these objects are drawn faithfully.
        when: Which objects it happens to; by default all.
    """

    rule: Rule | None
    when: When = field(default_factory=When)

    def fits(self, thing: ObjectInfo) -> bool:
        """Returns whether this is what happens to ``thing``."""
        return self.when(thing) and (self.rule is None or self.rule.concerns(thing.label))

    def resolved(self, classes: Sequence[str]) -> Self:
        """Returns the habit with class ids in the place of class names; see `Rule.resolved`."""
        rule = None if self.rule is None else self.rule.resolved(classes)
        return replace(self, rule=rule, when=self.when.resolved(classes))


@dataclass(frozen=True)
class SimulatedAnnotator:
    """A named annotator with habits. Objects that no habit is for are drawn faithfully.

    Args:
        name: The annotator's name.
        habits: The habits; of those that fit an object, the first one applies.
    """

    name: str
    habits: tuple[Habit, ...] = ()

    def rule_for(self, thing: ObjectInfo) -> Rule | None:
        """Returns the rule that this annotator draws ``thing`` by, None where faithful."""
        return next((habit.rule for habit in self.habits if habit.fits(thing)), None)

    def resolved(self, classes: Sequence[str], kinds: Sequence[str]) -> Self:
        """Returns the annotator with class ids in the place of class names.

        Args:
            classes: Names of the classes; the index is the class id.
            kinds: Names of the types of object that there are.

        Raises:
            ValueError: If a habit names another class or kind; the message names the annotator.
        """
        for kind in (kind for habit in self.habits for kind in habit.when.kinds):
            if kind not in kinds:
                raise ValueError(
                    f"Annotator {self.name!r}: a habit is for the kind {kind!r}, but objects are "
                    f"of the kinds {', '.join(kinds)}."
                )
        try:
            habits = tuple(habit.resolved(classes) for habit in self.habits)
        except ValueError as error:
            raise ValueError(f"Annotator {self.name!r}: {error}") from error
        return replace(self, habits=habits)


def rule_names(annotators: Sequence[SimulatedAnnotator]) -> tuple[str, ...]:
    """Lists the names of the rules by deviation id, the index into this tuple.

    Args:
        annotators: The simulated annotators, in the order given to `annotate`.

    Returns:
        ``"agrees"`` for id 0, then the name of each rule in the order of first mention.

    Example:
        >>> from tax_lightning.simulation.rules import Miss
        >>> rule_names([SimulatedAnnotator("Ana", (Habit(Miss()),)), SimulatedAnnotator("Ben")])
        ('agrees', 'misses')
    """
    return (AGREES, *(rule.name for rule in _rules(annotators)))


def annotate(
    objects: Sequence[ObjectInfo],
    annotators: Sequence[SimulatedAnnotator],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[ByteArray, ByteArray]:
    """Draws what each annotator makes of the objects, and notes which rule changed which pixel.

    What an annotator adds to an object takes background only, and of that only the pixels nearest
    to this object: no habit for one object can spoil another object or its surroundings.

    Args:
        objects: Objects of the reference, none overlapping another.
        annotators: N annotators.
        shape: Height and width of the image.
        rng: Source of chance, for rules that need it; every annotator gets a stream.

    Returns:
        masks: Class ids that each annotator draws, ``[N, H, W]``.
        deviation: ``[N, H, W]``; 0 exactly where the mask equals the reference, elsewhere the id
            of the rule that changed the pixel (see `rule_names`).

    Raises:
        ValueError: If two objects overlap.

    Example:
        >>> from tax_lightning.simulation.rules import UnderSegment
        >>> square = np.zeros((8, 8), dtype=bool)
        >>> square[2:6, 2:6] = True
        >>> tight = SimulatedAnnotator("Ben", (Habit(UnderSegment(1)),))
        >>> things = [ObjectInfo(square, label=1, kind="cell")]
        >>> masks, deviation = annotate(things, [tight], (8, 8), np.random.default_rng(0))
        >>> int(masks.sum()), int(deviation.sum())
        (4, 12)
    """
    reference = draw_reference(objects, shape)
    nearest, _ = _nearest_object(objects, shape)
    ids = {rule: number for number, rule in enumerate(_rules(annotators), start=1)}
    masks = np.repeat(reference[None], len(annotators), axis=0)
    deviation = np.zeros_like(masks)
    hands = rng.spawn(len(annotators))
    for annotator, mask, changed, hand in zip(annotators, masks, deviation, hands, strict=True):
        for index, thing in enumerate(objects):
            rule = annotator.rule_for(thing)
            if rule is None:
                continue
            # a pixel more, for rules that look at what lies beyond the outline
            box, outline = thing.cut(None if rule.reach is None else rule.reach + 1)
            own = nearest[box] == index
            drawn = np.where(rule.redraw(outline, hand), rule.relabel(thing.label), BACKGROUND)
            mask[box][own] = drawn[own]
            changed[box][own & (drawn != reference[box])] = ids[rule]
    return masks, deviation


def draw_reference(objects: Sequence[ObjectInfo], shape: tuple[int, int]) -> ByteArray:
    """Draws the objects as they are.

    Args:
        objects: Objects, none overlapping another.
        shape: Height and width of the image.

    Returns:
        Class ids ``[H, W]``, 0 where there is no object.

    Raises:
        ValueError: If two objects overlap.
    """
    reference = np.full(shape, BACKGROUND, dtype=np.uint8)
    for index, thing in enumerate(objects):
        box, own = thing.cut(0)
        if reference[box][own].any():
            raise ValueError(
                f"objects[{index}] ({thing.kind}) overlaps an object before it, expected objects "
                "without common pixels; cut the overlap out of one of the masks"
            )
        reference[box][own] = thing.label
    return reference


def expert_map(
    objects: Sequence[ObjectInfo],
    annotators: Sequence[SimulatedAnnotator],
    shape: tuple[int, int],
    band: float,
) -> ByteArray:
    """Tells at each pixel which annotator is the expert for the object there.

    The expert is the one annotator that has no habit for the object. Where the surroundings of two
    objects meet, the nearer object counts.

    Args:
        objects: Objects of the reference, none overlapping another.
        annotators: N annotators.
        shape: Height and width of the image.
        band: Width of an object's surroundings, in pixels.

    Returns:
        Annotator indices ``[H, W]``; 255 far from all objects, and where nobody or more than one
        annotator is the expert.

    Example:
        >>> from tax_lightning.simulation.rules import Miss
        >>> dot = np.zeros((1, 5), dtype=bool)
        >>> dot[0, 0] = True
        >>> panel = [SimulatedAnnotator("Ana", (Habit(Miss()),)), SimulatedAnnotator("Ben")]
        >>> expert_map([ObjectInfo(dot, label=1, kind="cell")], panel, (1, 5), band=1).tolist()
        [[1, 1, 255, 255, 255]]
    """
    nearest, distance = _nearest_object(objects, shape)
    expert = np.full(shape, IGNORE_INDEX, dtype=np.uint8)
    for index, thing in enumerate(objects):
        faithful = [n for n, annotator in enumerate(annotators) if not annotator.rule_for(thing)]
        if len(faithful) == 1:
            box, _ = thing.cut(ceil(band))
            expert[box][(nearest[box] == index) & (distance[box] <= band)] = faithful[0]
    return expert


def draw_presence(missing: npt.NDArray[np.float64], rng: np.random.Generator) -> BoolArray:
    """Draws who labelled an image, never nobody.

    Args:
        missing: Probability of each annotator not to label it, ``[N]``, in [0, 1].
        rng: Source of chance.

    Returns:
        Bool ``[N]``, at least one of them true. Where the draw leaves nobody, one of those who
        label images at all is drawn.

    Example:
        >>> draw_presence(np.array([1.0, 0.0, 1.0]), np.random.default_rng(0)).tolist()
        [False, True, False]
    """
    present: BoolArray = rng.random(len(missing)) >= missing
    able = np.flatnonzero(missing < 1) if (missing < 1).any() else np.arange(len(missing))
    someone = able[rng.integers(len(able))]
    if not present.any():
        present[someone] = True
    return present


def find_objects(
    mask: ByteArray, classes: Sequence[str], image: npt.NDArray[Any] | None = None
) -> tuple[ObjectInfo, ...]:
    """Splits a reference mask into its objects: the connected parts of every class.

    Args:
        mask: Class ids ``[H, W]``; 0 is the background, 255 pixels are left out.
        classes: Class names by id; an object's kind is the name of its class.
        image: Image ``[H, W, channels]`` that contrast is measured in; without it, contrast is 1.

    Returns:
        The objects, by class and then in reading order. Pixels that touch at a corner are
        connected.

    Raises:
        ValueError: If the mask holds a class id that has no name.

    Example:
        >>> mask = np.array([[1, 1, 0, 2], [0, 0, 0, 2]], dtype=np.uint8)
        >>> [(o.kind, o.area) for o in find_objects(mask, ("background", "cell", "fibre"))]
        [('cell', 2), ('fibre', 2)]
    """
    found = []
    for label in np.setdiff1d(mask, [BACKGROUND, IGNORE_INDEX]).tolist():
        if label >= len(classes):
            raise ValueError(
                f"mask holds class id {label}, expected ids below {len(classes)} ({list(classes)}) "
                f"or {IGNORE_INDEX}; name all classes or map the mask's values to class ids"
            )
        parts, _ = ndimage.label(mask == label, structure=np.ones((3, 3)))
        for part, box in enumerate(ndimage.find_objects(parts), start=1):
            corner = box[0].start, box[1].start
            one = ObjectInfo(parts[box] == part, label, classes[label], 1.0, corner, parts.shape)
            if image is not None:
                around, own = one.cut(_RING)
                contrast = measure_contrast(image[around], own, mask[around] != BACKGROUND)
                one = replace(one, contrast=contrast)
            found.append(one)
    return tuple(found)


def measure_contrast(image: npt.NDArray[Any], mask: BoolArray, foreground: BoolArray) -> float:
    """Measures how far an object's mean colour is from that of the background around it.

    Args:
        image: Image ``[H, W, channels]``: integers of full range, or floats in ``[0, 1]``.
        mask: The object, bool ``[H, W]``.
        foreground: All objects, bool ``[H, W]``; the background is what they leave.

    Returns:
        Mean absolute difference over channels, as a share of the full range. 1 where no
        background lies within reach (5 pixels).
    """
    window = bounds(mask, _RING)
    around = ndimage.binary_dilation(mask[window], disc(_RING)) & ~foreground[window]
    if not around.any():
        return 1.0
    inside, outside = image[window][mask[window]], image[window][around]
    full = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
    return float(np.abs(inside.mean(axis=0) - outside.mean(axis=0)).mean() / full)


def _rules(annotators: Sequence[SimulatedAnnotator]) -> tuple[Rule, ...]:
    """All rules in use, each once, in the order of first mention."""
    habits = (habit for who in annotators for habit in who.habits)
    return tuple(dict.fromkeys(habit.rule for habit in habits if habit.rule is not None))


def _moved(box: Box, by: tuple[int, int]) -> Box:
    """A rectangle so many rows and columns away."""
    (rows, columns), (down, right) = box, by
    return (
        slice(rows.start + down, rows.stop + down),
        slice(columns.start + right, columns.stop + right),
    )


def _nearest_object(
    objects: Sequence[ObjectInfo], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Index of the object nearest to each pixel (-1 without objects), and its distance."""
    numbers = np.full(shape, -1, dtype=np.int64)
    for index, thing in enumerate(objects):
        box, own = thing.cut(0)
        numbers[box][own] = index
    if not objects:
        return numbers, np.full(shape, np.inf)
    distance, (rows, columns) = ndimage.distance_transform_edt(numbers < 0, return_indices=True)
    return numbers[rows, columns], distance
