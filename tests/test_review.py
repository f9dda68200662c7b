"""The queue of what to look at again."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_inspection import Given, disc, sample

from tax_lightning.explanation import Prediction
from tax_lightning.inspection.audit import audit
from tax_lightning.inspection.review import best_move, expect, review, write_queue

PEOPLE = ["Ann", "Bob", "Cem", "Dee"]
UNKNOWN = np.full((48, 48), 255, np.uint8)


def masks(i):
    """Four masks that differ by a pixel or so."""
    place = (14 + i % 3, 14 + i // 3)
    return [disc(place, 7 + k / 3, 48) for k in range(4)]


def queue_of(changed, number=12, at=5, **kwargs):
    """The queue where Bob's mask of one image is another, and the image's name."""
    samples = [sample(f"s{i}", masks(i)) for i in range(number)]
    drawn = masks(at)
    drawn[1] = changed
    samples[at] = sample(f"s{at}", drawn, **kwargs)
    data = Given({"train": samples}, PEOPLE)
    return review(audit(data), data)


HERE = (16, 15)  # the place of image 5
THEIRS = disc(HERE, 7 + 2 / 3, 48)  # what two of the three others draw there
MOVED = disc((25, 20), 7, 48)
LEFT_OUT = int((THEIRS * (np.arange(48) >= 14)).sum())
DICE = (
    2 * MOVED.sum() / (MOVED.sum() + THEIRS.sum()),
    2 * (MOVED * THEIRS).sum() / (MOVED.sum() + THEIRS.sum()),
)


@pytest.mark.parametrize(
    ("changed", "reason", "box"),
    [
        (0 * disc(size=48), "empty, though the others drew something", (9, 8, 15, 15)),
        (
            MOVED,
            "fits the others after a move of 9 px up 5 px to the left "
            f"(Dice {DICE[0]:.2f}, as it is {DICE[1]:.2f})",
            (18, 13, 15, 15),
        ),
        (
            np.maximum(disc(HERE, 7, 48), disc((40, 40), 4, 48)),
            "draws 49 px of cell where most others drew nothing",
            (36, 36, 9, 9),
        ),
        (
            THEIRS * (np.arange(48) < 14),
            f"leaves out {LEFT_OUT} px of cell that most others drew",
            (9, 14, 15, 9),
        ),
    ],
)
def test_what_is_wrong_with_a_mask_and_where(changed, reason, box):
    first = queue_of(changed)[0]
    assert (first.annotator, first.place.id) == ("Bob", "s5")
    assert first.reason == reason
    assert first.box == box


def test_a_mask_of_another_image():
    far = [sample("far", [disc((36, 36), 4 + k / 3, 48) for k in range(4)])]
    drawn = [sample(f"s{i}", masks(i)) for i in range(12)]
    drawn[5] = sample("s5", [masks(5)[0], np.maximum(far[0].masks[1], 0), *masks(5)[2:]])
    data = Given({"train": drawn + far}, PEOPLE)
    first = review(audit(data), data)[0]
    assert (first.annotator, first.place.id) == ("Bob", "s5")
    assert first.reason.startswith("fits far (Dice 0.9")
    assert first.reason.endswith("better than its image (0.00): exchanged?")


def test_classes_that_are_mistaken():
    samples = [sample(f"s{i}", masks(i)) for i in range(12)]
    drawn = masks(5)
    samples[5] = sample("s5", [drawn[0], 2 * drawn[1], *drawn[2:]])
    data = Given({"train": samples}, PEOPLE, ("background", "cell", "fibre"))
    first = review(audit(data), data)[0]
    assert first.reason.startswith(f"calls {THEIRS.sum()} px fibre that are cell")


def test_whose_missing_label_would_tell_most():
    """Dee is absent twice; the others differ on one of the two."""
    samples = [sample(f"s{i}", masks(i)) for i in range(12)]
    present = [True, True, True, False]
    samples[3] = sample("s3", [*masks(3)[:3], UNKNOWN], present)
    wild = [disc((14, 14), 6, 48), disc((14, 14), 14, 48), disc((14, 14), 10, 48)]
    samples[7] = sample("s7", [*wild, UNKNOWN], present)
    data = Given({"train": samples}, PEOPLE)
    (asked,) = (item for item in review(audit(data), data) if item.annotator == "Dee")
    assert asked.place.id == "s7"
    share = (wild[1].sum() - wild[0].sum()) / 48**2
    assert asked.reason.startswith(f"not labelled; the others differ on {share:.1%} of the pixels")
    assert asked.box == (0, 0, 29, 29)


def test_nothing_is_queued_where_all_draw_as_ever():
    assert queue_of(masks(5)[1]) == []


def test_one_annotator_alone_is_compared_with_nobody():
    data = Given({"train": [sample(f"s{i}", [disc()]) for i in range(3)]}, ["Ann"])
    assert review(audit(data), data) == []


def test_the_queue_as_a_table(tmp_path):
    items = queue_of(0 * disc(size=48))
    write_queue(items, tmp_path / "review.csv")
    with (tmp_path / "review.csv").open(encoding="utf-8", newline="") as file:
        first, *_ = rows = list(csv.DictReader(file))
    assert len(rows) == len(items)
    assert " ".join(first) == "rank image annotator reason score top left height width"
    assert (first["rank"], first["image"], first["annotator"]) == ("1", "s5", "Bob")
    assert [int(first[side]) for side in ("top", "left", "height", "width")] == list(items[0].box)


def test_nothing_leaves_at_one_side_and_enters_at_the_other():
    corner, middle = disc((0, 0), 5, 32), disc((16, 16), 5, 32)
    dice, down, right = best_move(corner, middle)
    assert dice < 0.6
    assert down > 8
    assert right > 8


# With a model


class Sure:
    """A model that is nearly sure of a disc for everybody, but for one part of one image."""

    device = torch.device("cpu")

    def __init__(self, annotators=tuple(PEOPLE)):
        self.annotators = annotators

    def eval(self):
        return self

    def predict_step(self, batch, _):
        (name,) = batch["id"]
        cell = torch.from_numpy(disc(masks_place(int(name[1:])), 7.5, 48)).float() * 0.98 + 0.01
        probs = torch.stack([1 - cell, cell])
        own = probs.expand(len(self.annotators), 2, 48, 48).clone()
        if name == "s2":
            own[:, :, 30:40, 20:45] = 0.5
        return Prediction((name,), self.annotators, ("background", "cell"), probs[None], own[None])


def masks_place(i):
    return (14 + i % 3, 14 + i // 3)


def test_a_model_has_a_say():
    samples = [sample(f"s{i}", masks(i)) for i in range(12)]
    samples = [
        SimpleNamespace(**{**vars(s), "image": np.zeros((48, 48, 1), np.uint8)}) for s in samples
    ]
    samples[5].masks[2] = disc((30, 30), 7, 48)
    data = Given({"train": samples}, PEOPLE)
    expected = expect(Sure(), data, audit(data))
    assert expected.nats.shape == (12, 4)
    assert expected.nats.argmax() == 5 * 4 + 2
    queue = review(audit(data), data, expected)
    assert queue[0].whose in ("Cem on s5", "s2")
    assert {"Cem on s5", "s2"} <= {item.whose for item in queue}
    (disputed,) = (item for item in queue if not item.annotator)
    assert disputed.box == (30, 20, 10, 25)
    assert "the model expects two annotators to differ on" in disputed.reason


def test_a_model_of_other_people_is_refused():
    data = Given({"train": [sample("s0", masks(0))]}, PEOPLE)
    data.splits["train"][0] = SimpleNamespace(
        **{**vars(data.splits["train"][0]), "image": np.zeros((48, 48, 1), np.uint8)}
    )
    with pytest.raises(ValueError, match="its model predicts Eve and the classes"):
        expect(Sure(("Eve",)), data, audit(data))
