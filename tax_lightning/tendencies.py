"""How annotators draw, in numbers: where outlines lie, what is missed and what is added.

Measured is against the consensus of an image: the majority of its own masks, or of what a model
expects of the annotators. All figures come from sums, which add up over images, and over the
annotators of a group.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import spearmanr

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.tables import Table

SIZES = {"small": 1, "medium": 32**2, "large": 96**2}
"""Kinds of objects, and their least area in pixels; those of the COCO data set."""

SUMS = ("edges", "distance", "squared", "area", "consensus", "objects", "missed", "added")
"""What is summed for each annotator, class and size."""

FIGURES = {
    "outline": ("outline in px", "+z.1f"),
    "spread": ("spread in px", ".1f"),
    "area": ("area", ".2f"),
    "missed": ("missed", ".1%"),
    "added": ("added", ".1%"),
}
"""What is said of an annotator: its name -> head of its column, and how it is written."""

NOT_LEARNT = 0.2
"""Difference of two shares of objects from which a habit counts as unknown to the model."""

NAME = "How annotators differ from the consensus"
CAPTION = (
    "Measured from the consensus of the same image: the majority of the annotators. Outline: mean "
    "distance in pixels, + outside of the consensus and - inside. Spread: standard deviation of "
    "that distance. Area: that of the consensus is 1. Missed: share of the consensus' objects that "
    "the annotator did not touch. Added: objects that the majority denies, per object of the "
    "consensus. Medium objects have 32 x 32 to 96 x 96 pixels."
)

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Groups = Mapping[str, Sequence[str]]
"""Name of a group -> names of its annotators."""

_NEIGHBOURS = np.ones((3, 3), np.bool_)  # across corners too
_IN_EACH_MASK = np.stack([0 * _NEIGHBOURS, _NEIGHBOURS, 0 * _NEIGHBOURS])


def tendency_sums(masks: npt.NDArray[np.integer], classes: int) -> Array:
    """The sums of one image, by annotator, class of the foreground and size of object.

    Outlines are cut into the edges between pixels. An edge counts for the nearest object of the
    consensus, with its distance from the outline there. Where the votes tie, that outline lies half
    way, and a whole object on which they tie is nobody's mistake.

    Args:
        masks: Class ids ``[N, H, W]``, 255 where not labelled.
        classes: Their number C, with the background.

    Returns:
        ``[N, C - 1, 3, 8]``, in the order of `SIZES` and `SUMS`; 0 for an image that fewer than two
        annotators labelled.

    Example:
        >>> masks = np.zeros((3, 20, 20), np.uint8)
        >>> masks[:, 8:12, 8:12] = 1
        >>> masks[2, 7:13, 7:13] = 1
        >>> figures(tendency_sums(masks, 2).sum((1, 2)))["area"].tolist()
        [1.0, 1.0, 2.25]
    """
    sums = np.zeros((len(masks), classes - 1, len(SIZES), len(SUMS)))
    labelled = masks != IGNORE_INDEX
    if labelled.any((1, 2)).sum() > 1:
        half = labelled.sum(0) / 2
        for c in range(1, classes):
            drawn = masks == c
            for box in ndimage.find_objects(drawn.any(0).astype(np.uint8)):  # one, or none
                part = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
                sums[:, c - 1] = _class_sums(drawn[:, *part], labelled[:, *part], half[part])
    return sums


def _class_sums(drawn: Mask, labelled: Mask, half: Array) -> Array:
    """The sums of one class ``[N, 3, 8]``; ``half`` of the votes is a tie ``[H, W]``."""
    people = len(drawn)
    votes = drawn.sum(0)
    sure, likely = votes > half, (votes >= half) & (votes > 0)
    own, pieces = ndimage.label(drawn, _IN_EACH_MASK)
    sums = {name: np.zeros((people, len(SIZES))) for name in SUMS}
    denied = 1 + np.flatnonzero(~_occur(own[:, likely], pieces)[1:])
    boxes = ndimage.find_objects(own)
    owner = np.array([boxes[piece - 1][0].start for piece in denied], np.int64)
    sums["added"] = _count(people, owner, _size(np.bincount(own.ravel())[denied]))

    objects, count = ndimage.label(sure, _NEIGHBOURS)
    if count:
        place = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
        nearest = objects[tuple(place)]
        size = _size(np.bincount(objects.ravel()))
        seen, hit = (
            np.stack([_occur(objects[where], count) for where in planes])
            for planes in (labelled & sure, drawn & sure)
        )
        for name, whose in (("objects", seen), ("missed", seen & ~hit)):
            n, k = whose.nonzero()
            sums[name] = _count(people, n, size[k])

        doubtful, number = ndimage.label(likely, _NEIGHBOURS)
        likely = _occur(doubtful[sure], number)[doubtful]
        body = _occur(own[:, sure], pieces)[own]
        area = (sure + likely.astype(np.float64)) / 2
        n, y, x = body.nonzero()
        sums["area"] = _count(people, n, size[nearest[y, x]])
        n, y, x = (labelled & hit[:, nearest] & likely).nonzero()
        sums["consensus"] = _count(people, n, size[nearest[y, x]], area[y, x])
        distance = (_signed_distance(sure, half > 0) + _signed_distance(likely, half > 0)) / 2
        for axis in (1, 2):
            ends = [np.arange(drawn.shape[axis] - 1) + step for step in (0, 1)]
            inside, known = ([plane.take(end, axis) for end in ends] for plane in (body, labelled))
            between = np.mean([distance.take(end, axis - 1) for end in ends], 0)
            edge = (inside[0] != inside[1]) & known[0] & known[1] & ~np.isnan(between)
            n, y, x = edge.nonzero()
            for power, name in enumerate(("edges", "distance", "squared")):
                sums[name] += _count(people, n, size[nearest[y, x]], between[y, x] ** power)
    return np.stack(list(sums.values()), -1)


def _occur(labels: npt.NDArray[np.integer], count: int) -> Mask:
    """Which of the labels 1 to count are among these ``[count + 1]``; never the background."""
    found = np.zeros(count + 1, np.bool_)
    found[labels.ravel()] = True
    found[0] = False
    return found


def _size(areas: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    return np.searchsorted(list(SIZES.values())[1:], areas, "right")


def _count(
    people: int,
    who: npt.NDArray[np.integer],
    size: npt.NDArray[np.integer],
    weights: npt.NDArray[np.generic] | None = None,
) -> Array:
    """How many cases each annotator has of each size, or the sum of their weights ``[N, 3]``."""
    shape = people, len(SIZES)
    counts = np.bincount(who * shape[1] + size, weights, people * shape[1])
    return counts.reshape(shape).astype(np.float64)


def _signed_distance(inside: Mask, known: Mask) -> Array:
    """Distance of pixels from the outline, below 0 inside; NaN where there is none."""
    within = inside | ~known
    if within.all():
        return np.full(inside.shape, np.nan)
    outer, inner = (np.asarray(ndimage.distance_transform_edt(p)) for p in (~inside, within))
    return np.where(inside, 0.5 - inner, outer - 0.5)


def figures(sums: Array) -> dict[str, Array]:
    """What is said of annotators, by the names of `FIGURES`; NaN without a case.

    Args:
        sums: Those of `tendency_sums` or a sum of them ``[..., 8]``.
    """
    edges, distance, squared, area, consensus, objects, missed, added = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        outline = distance / edges
        return {
            "outline": outline,
            "spread": np.sqrt(np.maximum(squared / edges - outline**2, 0)),
            "area": area / consensus,
            "missed": missed / objects,
            "added": np.where(objects > 0, added / objects, np.nan),
        }


def agreement(masks: Array, model: Array) -> dict[str, float]:
    """How well what a model expects of annotators agrees with their masks.

    Args:
        masks: Sums of the masks ``[N, C - 1, 3, 8]``.
        model: Sums of the model on the same images.

    Returns:
        The mean absolute difference over annotators of each of the `FIGURES`, ``"<figure>_error"``;
        ``"outline_error_alike"``, that of a model by which all draw alike; and
        ``"outline_spearman"``, the rank correlation over annotators. NaN without a case.
    """
    true, said = (figures(sums.sum((1, 2))) for sums in (masks, model))
    found = {f"{name}_error": _mean(np.abs(true[name] - said[name])) for name in FIGURES}
    found["outline_error_alike"] = _mean(np.abs(true["outline"]))
    pairs = np.stack([true["outline"], said["outline"]])
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    varied = pairs.shape[1] > 2 and bool((np.ptp(pairs, 1) > 0).all())
    found["outline_spearman"] = float(spearmanr(*pairs).statistic) if varied else np.nan
    return found


def not_learnt(annotators: Sequence[str], masks: Array, model: Array) -> str:
    """Who leaves out objects in the masks, and not by the model; "" if the model knows it of all.

    Args:
        annotators: Their names.
        masks: Sums of the masks ``[N, C - 1, 3, 8]``.
        model: Sums of the model on the same images.
    """
    drawn, said = (figures(sums.sum((1, 2)))["missed"] for sums in (masks, model))
    return "".join(
        f" The model has not learnt that {name} leaves out objects: {ours:.0%} of those of the "
        f"majority in the masks, {theirs:.0%} by the model."
        for name, ours, theirs in zip(annotators, drawn, said, strict=True)
        if ours - theirs >= NOT_LEARNT
    )


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


def tendency_table(
    sides: Mapping[str, Array],
    annotators: Sequence[str],
    classes: Sequence[str],
    groups: Groups | None = None,
) -> Table:
    """The figures by name: of all objects, then of each class and size that there is.

    Args:
        sides: ``"masks"``, ``"model"`` or both, in their order -> sums ``[N, C - 1, 3, 8]``.
        annotators: Names.
        classes: Names, the background first.
        groups: Groups of annotators, which follow the annotators.

    Example:
        >>> masks = np.zeros((2, 20, 20), np.uint8)
        >>> masks[0, 8:12, 8:12] = masks[1, 6:14, 6:14] = 1
        >>> sums = tendency_sums(masks, 2)
        >>> print(tendency_table({"masks": sums}, ["Ana", "Bo"], ["background", "cell"]))
        How annotators differ from the consensus
          annotator  outline in px  spread in px  area  missed  added
          Ana                 -1.0           0.0  0.40    0.0%   0.0%
          Bo                  +1.1           0.1  1.60    0.0%   0.0%
    """
    whose = {name: [n] for n, name in enumerate(annotators)}
    whose |= {
        name: [annotators.index(one) for one in names] for name, names in (groups or {}).items()
    }
    objects = sum(sums[..., SUMS.index("objects")].sum(0) for sums in sides.values())
    kinds = {
        f": {size} {classes[c + 1]}": (c, s)
        for c in range(len(classes) - 1)
        for s, size in enumerate(SIZES)
        if objects[c, s]
    }
    rows = {}
    for kind, place in ({"": None} | (kinds if len(kinds) > 1 else {})).items():
        parts = [
            sums.sum((1, 2)) if place is None else sums[:, place[0], place[1]]
            for sums in sides.values()
        ]
        for name, members in whose.items():
            said = [figures(part[members].sum(0)) for part in parts]
            rows[name + kind] = [
                " / ".join(_text(float(one[figure]), form) for one in said)
                for figure, (_, form) in FIGURES.items()
            ]
    compared = f" ({' / '.join(sides)})" if len(sides) > 1 else ""
    columns = tuple(head for head, _ in FIGURES.values())
    return Table(f"{NAME}{compared}", CAPTION, "annotator", columns, rows)


def _text(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)
