"""What a person should know before training, drawn from the counts and said in plain words."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tax_lightning.data.splits import SPLITS
from tax_lightning.findings import Finding, listed, noise, slots, ties, wrong_alike
from tax_lightning.inspection.audit import ABSENT, DRAWN, EMPTY, Audit, ImageRow
from tax_lightning.tendencies import SIZES, SUMS, figures

NEARLY_ALL = 0.95
"""Share of equal masks from which two annotators count as one."""
SOME = 0.2
"""Share of equal masks from which it is worth a word."""
FEW = 3
"""With fewer common images than this, equal masks say nothing."""
LEAST_OBJECTS = 5
"""Of the majority; of fewer nothing is said about who leaves objects out."""
LITTLE = 0.1
"""Share of the images, or of the pixels of masks, below which an annotator labelled few."""

_SEPARATORS = r"[_\-./ ]"


def findings(audit: Audit) -> list[Finding]:
    """All findings, warnings first.

    Args:
        audit: The counts.

    Example:
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> from tax_lightning.inspection.audit import audit
        >>> data = SyntheticDataModule(train_samples=2, val_samples=0, test_samples=0)
        >>> [finding.kind for finding in findings(audit(data)) if finding.severity == "warning"]
        []
    """
    checks: Sequence[Callable[[Audit], Iterator[Finding]]] = (
        lambda audit: iter(audit.quick),
        _shared,
        _duplicates,
        _reference,
        _leaks,
        _idle,
        _unused_classes,
        _coverage,
        _sizes,
        _objects,
        _empty,
        _name_prefixes,
    )
    found = [finding for check in checks for finding in check(audit)]
    return sorted(found, key=lambda finding: finding.severity != "warning")


def _shared(audit: Audit) -> Iterator[Finding]:
    """What is said of a model's images in the same words."""
    if not audit.persons:
        yield slots(audit.annotators)
    else:
        yield from noise(audit.annotators, audit.kappa, audit.labels.classes, given=True)
    yield from wrong_alike(audit.labels) if audit.has_reference else ties(audit.labels)


def _duplicates(audit: Audit) -> Iterator[Finding]:
    """One annotator entered twice, everywhere or in part of the data."""
    people = len(audit.annotators)
    pairs = {pair for row in audit.images for pair in row.equal if max(pair) < people}
    everywhere: list[Finding] = []
    for first, second in sorted(pairs):
        rows = [row for row in audit.images if row.status[first] == row.status[second] == DRAWN]
        equal = [row for row in rows if (first, second) in row.equal]
        names = (audit.annotators[first], audit.annotators[second])
        if len(equal) < FEW:
            continue
        if len(equal) >= NEARLY_ALL * len(rows):
            everywhere.append(_duplicate_everywhere(names, len(equal), len(rows)))
        elif parts := _equal_parts(equal, rows):
            yield _duplicate_in_part(names, parts, equal, rows)
        elif len(equal) >= SOME * len(rows):
            yield _equal_now_and_then(names, len(equal), len(rows))
    if len(everywhere) > 1 and len(everywhere) == people * (people - 1) / 2:
        yield _identical(people)
    else:
        yield from everywhere


def _identical(people: int) -> Finding:
    return Finding(
        "identical",
        "warning",
        f"All {people} annotators draw the same",
        f"Their masks are equal on {NEARLY_ALL:.0%} of the images or more, so that nothing can be "
        "learnt about any of them: was one mask entered for everybody? Look at the files, or keep "
        "one annotator with exclude_annotators.",
    )


def _duplicate_everywhere(names: tuple[str, str], equal: int, images: int) -> Finding:
    where = f"all {images}" if equal == images else f"{equal} of {images}"
    return Finding(
        "duplicate",
        "warning",
        f"{names[0]} and {names[1]} look like one annotator",
        f"{names[0]} equals {names[1]} on {where} images: one annotator entered twice? Exclude one "
        "with exclude_annotators.",
    )


def _duplicate_in_part(
    names: tuple[str, str],
    parts: dict[str, int],
    equal: Sequence[ImageRow],
    rows: Sequence[ImageRow],
) -> Finding:
    named = listed([f"{part} ({_count(count, 'image')})" for part, count in sorted(parts.items())])
    inside = sum(not _parts(row).isdisjoint(parts) for row in equal)
    outside = sum(_parts(row).isdisjoint(parts) for row in rows)
    return Finding(
        "duplicate",
        "warning",
        f"{names[0]} and {names[1]} look like one annotator in part of the data",
        f"{names[0]} equals {names[1]} throughout {named}, and on {len(equal) - inside} of the "
        f"{outside} other images on which both drew something: one annotator entered twice there? "
        "Exclude one with exclude_annotators, or take one's masks of those images away.",
    )


def _equal_now_and_then(names: tuple[str, str], equal: int, images: int) -> Finding:
    return Finding(
        "duplicate",
        "hint",
        f"{names[0]} and {names[1]} have many masks in common",
        f"{names[0]} equals {names[1]} on {equal} of the {images} images on which both drew "
        "something. Masks drawn by hand are seldom equal, unless objects are tiny: was one copied?",
    )


def _equal_parts(equal: Sequence[ImageRow], rows: Sequence[ImageRow]) -> dict[str, int]:
    """Groups of images, or beginnings of names, throughout which (nearly) all masks are equal."""
    shared = Counter(part for row in equal for part in _parts(row))
    total = Counter(part for row in rows for part in _parts(row))
    return {
        part: count
        for part, count in shared.items()
        if count >= FEW and count >= NEARLY_ALL * total[part]
    }


def _parts(row: ImageRow) -> set[str]:
    """What the image may belong to: its group, and what its name begins with."""
    start = re.match(rf"(.+?){_SEPARATORS}", row.place.id)
    return {part for part in (row.place.group, start[1] if start else "") if part}


def _reference(audit: Audit) -> Iterator[Finding]:
    """A reference that is one of the annotators is no independent truth."""
    if not audit.has_reference:
        return
    people = len(audit.annotators)
    for index, name in enumerate(audit.annotators):
        equal = sum((index, people) in row.equal for row in audit.images)
        drawn = int(audit.masks(DRAWN)[index])
        if equal >= FEW and equal >= NEARLY_ALL * drawn:
            yield Finding(
                "reference",
                "warning",
                f"The reference is {name}",
                f"The reference equals {name} on {equal} of {drawn} images with foreground: it is "
                "no independent truth, and scores against it flatter whoever agrees with "
                f"{name}.",
            )


def _leaks(audit: Audit) -> Iterator[Finding]:
    """The same pixels under two names."""
    same: defaultdict[bytes, list[ImageRow]] = defaultdict(list)
    for row in audit.images:
        same[row.digest].append(row)
    double = [rows for rows in same.values() if len(rows) > 1]
    across = [rows for rows in double if len({row.place.split for row in rows}) > 1]
    within = [rows for rows in double if len({row.place.split for row in rows}) == 1]
    if across:
        yield Finding(
            "leak",
            "warning",
            "The same image lies in two splits",
            f"{_count(len(across), 'image')} with identical pixels in more than one split, e.g. "
            f"{_example(across[0])}. Results on the later splits are flattered: give copies the "
            "same group, or remove them.",
        )
    if within:
        yield Finding(
            "copies",
            "hint",
            "The same image stands twice",
            f"{_count(len(within), 'image')} with identical pixels under several names in one "
            f"split, e.g. {_example(within[0])}.",
        )


def _example(rows: Sequence[ImageRow]) -> str:
    return listed([f"{row.place.id} ({row.place.split})" for row in rows])


def _name_prefixes(audit: Audit) -> Iterator[Finding]:
    """Names that begin alike in several splits, where nobody said which images belong together."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for row in audit.images:
        head = re.split(rf"{_SEPARATORS}(?=[^_\-./ ]*$)", row.place.id)
        if not row.place.group and len(head) > 1:
            splits[head[0]].add(row.place.split)
    crossing = sorted(prefix for prefix, where in splits.items() if len(where) > 1)
    if crossing and len(splits) > 1:
        yield Finding(
            "prefix",
            "hint",
            "Names that begin alike lie in several splits",
            f"{_count(len(crossing), 'beginning')} of names, e.g. {crossing[0]} "
            f"({listed([s for s in SPLITS if s in splits[crossing[0]]])}), and no group is set. "
            "If it stands for a patient, slide or scan, its images leak from training into "
            "testing: name the groups, e.g. with group_pattern.",
        )


def _idle(audit: Audit) -> Iterator[Finding]:
    """Annotators about whom nothing can be learnt."""
    if not audit.rows("train"):
        return
    labelled = len(audit.rows("train")) - audit.masks(ABSENT, "train")
    idle = [name for name, count in zip(audit.annotators, labelled, strict=True) if not count]
    if idle:
        yield Finding(
            "idle",
            "warning",
            f"No training image labelled by {listed(idle)}",
            "Nothing can be learnt about them: leave them out with exclude_annotators, or draw the "
            "splits with another split_seed.",
        )


def _coverage(audit: Audit) -> Iterator[Finding]:
    """Annotators of whom little is known."""
    images, masks = len(audit.images), len(audit.images) - audit.masks(ABSENT)
    known = audit.class_pixels.sum(1)
    shares = known / np.maximum(known + audit.ignored, 1)
    said = [
        f"{name} labelled {count} of {_count(images, 'image')}"
        if count < LITTLE * images
        else f"{name} left {1 - share:.1%} of the pixels of {_count(count, 'mask')} unlabelled"
        for name, count, share in zip(audit.annotators, masks.tolist(), shares, strict=True)
        if count < LITTLE * images or share < LITTLE
    ]
    if said:
        yield Finding(
            "coverage",
            "warning",
            "Little is known of some annotators",
            f"{listed(said, 4)}. What a model says of them, and every figure of them here, rests "
            "on little. Have more labelled by them, or leave them out with exclude_annotators.",
        )


def _unused_classes(audit: Audit) -> Iterator[Finding]:
    drawn = audit.class_pixels.sum(0)
    unused = [name for name, count in zip(audit.classes, drawn, strict=True) if not count]
    if unused:
        yield Finding(
            "classes",
            "warning",
            f"Nobody used the class {listed(unused)}",
            "No pixel of any mask bears it. Is its value in mask_values right?",
        )


def _sizes(audit: Audit) -> Iterator[Finding]:
    """Who draws large and who small, where an annotator is somebody."""
    areas = audit.relative_area
    if not audit.persons or np.isnan(areas).sum() > len(areas) - 2:
        return
    small, large = int(np.nanargmin(areas)), int(np.nanargmax(areas))
    if areas[large] - areas[small] >= 0.1:
        yield Finding(
            "sizes",
            "hint",
            "Annotators draw at different sizes",
            f"All objects together, {audit.annotators[large]} draws {areas[large]:.2f} times the "
            f"mean area of an image's annotators, {audit.annotators[small]} {areas[small]:.2f} "
            "times.",
        )


def _objects(audit: Audit) -> Iterator[Finding]:
    """Who leaves out objects of the majority, and who draws others, where that is a habit."""
    if not audit.persons:
        return
    said = []
    for name, sums in zip(audit.annotators, audit.tendencies.sum(1), strict=True):  # by size
        objects, of_all = sums[:, SUMS.index("objects")], figures(sums.sum(0))
        if objects.sum() < LEAST_OBJECTS:
            continue
        if of_all["missed"] >= SOME:
            sizes = zip(SIZES, figures(sums)["missed"], objects, strict=True)
            shares = [f"{size} {share:.0%}" for size, share, count in sizes if count]
            detail = f" ({', '.join(shares)})" if len(shares) > 1 else ""
            said.append(
                f"{name} leaves out {of_all['missed']:.0%} of the majority's objects{detail}"
            )
        if of_all["added"] >= SOME:
            said.append(
                f"{name} draws {100 * of_all['added']:.0f} others for 100 of the majority's objects"
            )
    if said:
        yield Finding(
            "objects",
            "hint",
            "Some annotators differ from the majority in which objects they draw",
            f"{listed(said, 4)}. Do they follow another rule, or was it an oversight?",
        )


def _empty(audit: Audit) -> Iterator[Finding]:
    empty, drawn = int(audit.masks(EMPTY).sum()), int(audit.masks(DRAWN).sum())
    if empty and empty >= 0.1 * (empty + drawn):
        yield Finding(
            "empty",
            "hint",
            "Many masks are empty",
            f"{empty} of {empty + drawn} masks ({empty / (empty + drawn):.0%}) hold no foreground. "
            "An empty mask says that there is nothing to see; where it should say that nobody "
            "looked, take the file away.",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
