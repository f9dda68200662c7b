"""Which masks to look at again, and why: those that are unlikely, and those that are missed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from tax_lightning.batch import unpacked
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.splits import SPLITS
from tax_lightning.explanation import expected_disagreement
from tax_lightning.files import write_table
from tax_lightning.inspection.audit import (
    ABSENT,
    Array,
    Audit,
    Place,
    given_labels,
    thumbnail,
)
from tax_lightning.inspection.unlikely import Habits, majority_of_others, scores

LONGEST = 200
"""Lines of a queue, at most."""
_WORTH = 2.0  # score from which a mask is looked at again
_WORTH_ASKING = 1.0  # score of dispute from which a missing label is asked for
_UNLIKE, _FITS = 0.5, 0.75  # Dice with the others below, and from which, a mask fits badly or well
_MUCH = 0.15  # of Dice that a mask gains by a move, at least

Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


class Item(NamedTuple):
    """One thing to look at again; ``annotator`` is empty where it is the image."""

    score: float
    place: Place
    annotator: str
    reason: str
    box: Box

    @property
    def whose(self) -> str:
        """The annotator, if it is one, and the image."""
        return f"{self.annotator} on {self.place.id}" if self.annotator else self.place.id


class Expected(NamedTuple):
    """What a model says of all images.

    ``nats``: how unlikely each mask is where annotators differ ``[I, N]``, NaN without one;
    ``dispute``: share of the pixels on which two annotators would differ ``[I]``; ``boxes``: where
    most of them are, None where the model sees images at another size.
    """

    nats: Array
    dispute: Array
    boxes: tuple[Box | None, ...]


def mask_scores(audit: Audit, expected: Expected | None = None) -> Array:
    """How much less likely than usual each mask is ``[I, N]``; NaN where it cannot be told.

    Args:
        audit: The counts.
        expected: What a model says of the same images: two scores make one of the same spread.
    """
    people, classes = len(audit.annotators), len(audit.classes)
    habits = Habits.of(audit.cases, people, classes)
    by_others = scores(np.stack([habits.of_masks(cases) for cases in audit.cases]))
    if expected is None:
        return by_others
    both: npt.NDArray[np.float64] = (by_others + scores(expected.nats)) / np.sqrt(2)
    return both


def review(
    audit: Audit, data: MultiAnnotatorDataModule, expected: Expected | None = None
) -> list[Item]:
    """What to look at again, the most urgent first.

    Args:
        audit: The counts of the data.
        data: The data module; the images of the queue are read again.
        expected: What a model says of the images, see `expect`.

    Returns:
        At most `LONGEST` items.

    Example:
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> from tax_lightning.inspection.audit import audit
        >>> data = SyntheticDataModule(64, 24, 0, 0, missing=0.3)
        >>> last = review(audit(data), data)[-1]
        >>> last.whose, last.reason[:50]
        ('Ana on train-0018', 'not labelled; the others differ on 16.4% of the pi')
    """
    unlikely = mask_scores(audit, expected)
    asked = np.full(unlikely.shape, np.nan)
    absent = np.array([list(row.status) for row in audit.images]) == ABSENT
    trusted = np.nan_to_num(audit.mean_with_others(audit.kappa), nan=-1)
    whom = np.where(absent, trusted, -np.inf).argmax(1)  # whose label would tell most
    rows = np.flatnonzero(absent.any(1))
    asked[rows, whom[rows]] = _above_usual(audit.disputes)[rows]
    found = [(score, i, n) for (i, n), score in np.ndenumerate(unlikely) if score >= _WORTH]
    found += [(score, i, n) for (i, n), score in np.ndenumerate(asked) if score >= _WORTH_ASKING]
    look = _Look(audit, data)
    items = [
        Item(score, audit.images[i].place, audit.annotators[n], *look.at(i, n))
        for score, i, n in sorted(sorted(found, reverse=True)[:LONGEST], key=lambda one: one[1])
    ]
    if expected is not None:
        items += _disputed(audit, expected)
    return sorted(items, key=lambda item: -item.score)[:LONGEST]


def _above_usual(values: Array) -> Array:
    """Robust standard deviations of the logarithm above its median ``[I]``."""
    size = np.log(np.nan_to_num(values) + 1e-3)
    away = size - np.median(size)
    return np.asarray(away / np.sqrt((1.4826 * np.median(abs(away))) ** 2 + 0.1))


def _disputed(audit: Audit, expected: Expected) -> Iterator[Item]:
    """Images whose annotators a model expects to differ much."""
    for i, score in enumerate(_above_usual(expected.dispute)):
        if score >= _WORTH:
            row, share = audit.images[i], expected.dispute[i]
            reason = f"the model expects two annotators to differ on {share:.1%} of the pixels"
            yield Item(float(score), row.place, "", reason, expected.boxes[i] or (0, 0, *row.size))


class _Look:
    """Looks at images again, one at a time, for what is odd about a mask."""

    def __init__(self, audit: Audit, data: MultiAnnotatorDataModule) -> None:
        self.audit, self.data, self.image = audit, data, -1
        self.habits = Habits.of(audit.cases, len(audit.annotators), len(audit.classes))

    def at(self, i: int, n: int) -> tuple[str, Box]:
        """The reason to look at the mask of annotator ``n`` on image ``i``, and where."""
        if i != self.image:
            place = self.audit.images[i].place
            self.masks = given_labels(self.data._samples_of(place.split)[place.number])
            self.surprise = self.habits.of_pixels(self.masks)
            self.most, _ = majority_of_others(self.masks, len(self.audit.classes))
            self.image = i
        if (self.masks[n] == IGNORE_INDEX).all():
            return self._missing()
        return self._odd(i, self.masks[n], self.most[n], self.surprise[n])

    def _missing(self) -> tuple[str, Box]:
        labelled = self.masks != IGNORE_INDEX
        low = np.where(labelled, self.masks, IGNORE_INDEX).min(0)
        differ = (labelled & (self.masks != low)).any(0)
        reason = f"not labelled; the others differ on {differ.mean():.1%} of the pixels"
        return f"{reason}, where this label would tell most", largest(differ, differ * 1.0)[1]

    def _odd(
        self, i: int, mask: npt.NDArray[np.uint8], most: npt.NDArray[np.int64], surprise: Array
    ) -> tuple[str, Box]:
        names = self.audit.classes
        known = (mask != IGNORE_INDEX) & (most >= 0)
        own, theirs = known & (mask > 0), known & (most > 0)
        odd, box = largest(known & (mask != most), surprise)
        if not own.any() and theirs.any():
            return "empty, though the others drew something", largest(theirs, surprise)[1]
        dice = 2 * (own & theirs).sum() / max(own.sum() + theirs.sum(), 1)
        moved, down, right = best_move(own, theirs)
        other, fit = self._best_image(i, own)
        if dice < _UNLIKE and fit > max(_FITS, moved):
            there = self.audit.images[other].place.id
            reason = f"fits {there} (Dice {fit:.2f}) better than its image ({dice:.2f}): exchanged?"
            return reason, largest(own, surprise)[1]
        if moved > max(_FITS, dice + _MUCH):
            ways = (f"{abs(down)} px {'down' if down > 0 else 'up'}" if down else "") + (
                f" {abs(right)} px to the {'right' if right > 0 else 'left'}" if right else ""
            )
            return (
                f"fits the others after a move of {ways.strip()} (Dice {moved:.2f}, as it is "
                f"{dice:.2f})"
            ), largest(own, surprise)[1]
        if not odd.any():
            return "less like the others than is usual here", box
        said, others = (int(np.bincount(plane[odd]).argmax()) for plane in (mask, most))
        pixels = f"{int(odd.sum())} px"
        if said == 0:
            return f"leaves out {pixels} of {names[others]} that most others drew", box
        if others == 0:
            return f"draws {pixels} of {names[said]} where most others drew nothing", box
        return f"calls {pixels} {names[said]} that are {names[others]} to most others", box

    def _best_image(self, i: int, own: Mask) -> tuple[int, float]:
        """The other image of this size whose masks are most like this one, and its Dice."""
        thumb = thumbnail(own).astype(np.float64)
        thumbs = self.audit.thumbs.astype(np.float64)
        both = np.minimum(thumbs, thumb).sum((1, 2))
        dice = 2 * both / np.maximum(thumbs.sum((1, 2)) + thumb.sum(), 1)
        size = self.audit.images[i].size
        dice[[j for j, row in enumerate(self.audit.images) if row.size != size or j == i]] = 0
        return int(dice.argmax()), float(dice.max())


def largest(where: Mask, weight: Array) -> tuple[Mask, Box]:
    """The connected piece of most weight, and its box; the whole picture where there is none.

    Args:
        where: The pieces ``[H, W]``.
        weight: Of each pixel ``[H, W]``.
    """
    pieces, count = ndimage.label(where, np.ones((3, 3)))
    if not count:
        return where, (0, 0, *where.shape)
    piece = 1 + int(ndimage.sum_labels(weight + 1e-9, pieces, range(1, count + 1)).argmax())
    rows, columns = ndimage.find_objects(pieces)[piece - 1]
    size = rows.stop - rows.start, columns.stop - columns.start
    return pieces == piece, (rows.start, columns.start, *size)


def best_move(mask: Mask, target: Mask) -> tuple[float, int, int]:
    """The move of a mask by which it fits another best.

    Args:
        mask: ``[H, W]``.
        target: ``[H, W]``.

    Returns:
        Dice after the move, pixels down and pixels to the right.

    Example:
        >>> mask = np.zeros((9, 9), bool)
        >>> mask[1:4, 2:5] = True
        >>> best_move(mask, np.roll(mask, (2, -1), (0, 1)))
        (1.0, 2, -1)
    """
    size = [2 * side for side in mask.shape]  # nothing leaves at one side and enters at the other
    spectra = [np.fft.rfft2(plane, size) for plane in (target, mask)]
    overlap = np.fft.irfft2(spectra[0] * spectra[1].conj(), size)
    down, right = np.unravel_index(int(overlap.argmax()), overlap.shape)
    dice = 2 * round(float(overlap.max())) / max(int(mask.sum() + target.sum()), 1)
    height, width = mask.shape
    return (
        dice,
        int(down) - (2 * height if down >= height else 0),
        int(right) - (2 * width if right >= width else 0),
    )


@torch.no_grad()
def expect(
    model: Any,  # noqa: ANN401 - any module that predicts annotators
    data: MultiAnnotatorDataModule,
    audit: Audit,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Expected:
    """What a trained model says of every image.

    Args:
        model: Model of a checkpoint, on its device.
        data: The data module of its training.
        audit: The counts of the data, which give the order and the sizes of the images.
        progress: Called with the number of images looked at, and of all images.

    Raises:
        ValueError: If the model's annotators or classes are not those of the data.
    """
    sets = [data._eval_dataset(data._samples_of(split)) for split in SPLITS]
    nats, dispute = [], []
    boxes: list[Box | None] = []
    for dataset in sets:
        for number in range(len(dataset)):
            sample = unpacked(dict(dataset[number]))
            images = sample["image"][None].to(model.device)
            said = model.eval().predict_step({"image": images, "id": [sample["id"]]}, 0)
            if (said.annotators, said.classes) != (data.annotators, data.classes):
                raise ValueError(
                    f"--ckpt_path: its model predicts {', '.join(said.annotators) or 'nobody'} and "
                    f"the classes {', '.join(said.classes)}, expected those of the data: "
                    f"{', '.join(data.annotators)}; {', '.join(data.classes)}. Give a checkpoint "
                    "that was trained on these data."
                )
            probs, masks = said.annotator_probs[0].clamp_min(1e-6), sample["masks"]
            known = (masks != IGNORE_INDEX) & sample["present"][:, None, None]
            given = masks.clamp_max(len(data.classes) - 1)
            low = given.where(known, len(data.classes)).amin(0)
            differ = (known & (given != low)).any(0)
            unlikely = -probs.gather(1, given[:, None])[:, 0].log() * (known & differ)
            there = known.any((1, 2))
            nats.append(unlikely.sum((1, 2)).where(there, torch.nan).double().numpy())
            doubt = expected_disagreement(said.annotator_probs)[0].numpy()
            dispute.append(doubt.mean())
            box = largest(doubt > max(doubt.max() / 2, 1e-6), doubt)[1]
            boxes.append(box if doubt.shape == audit.images[len(boxes)].size else None)
            progress(len(nats), len(audit.images))
    return Expected(np.stack(nats), np.array(dispute), tuple(boxes))


def write_queue(items: Sequence[Item], path: Path) -> None:
    """Write a queue as CSV.

    Args:
        items: The queue, first things first.
        path: The file.
    """
    head = ("rank", "image", "annotator", "reason", "score", "top", "left", "height", "width")
    rows = (
        (rank, item.place.id, item.annotator, item.reason, f"{item.score:.2f}", *item.box)
        for rank, item in enumerate(items, start=1)
    )
    write_table(path, head, rows)
