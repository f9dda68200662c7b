"""What is counted about a data set before training, and what is found in the counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import FolderDataModule, MultiAnnotatorDataModule, RawSample
from tax_lightning.findings import LabelCounts, pair_confusion
from tax_lightning.inspection.audit import (
    ABSENT,
    DRAWN,
    EMPTY,
    audit,
    pair_dice,
)
from tax_lightning.inspection.findings import findings
from tax_lightning.inspection.tables import tables
from tax_lightning.simulation import SyntheticDataModule

BUBIL1 = "BU-BIL/BU-BIL_Dataset1"


class Listed(list):
    """Samples as a source."""

    @property
    def ids(self):
        return [sample.id for sample in self]


class Given(MultiAnnotatorDataModule):
    """A data module over samples that a test lists by split."""

    def __init__(self, splits, annotators, classes=("background", "cell")):
        super().__init__(annotators, classes, channels=1)
        self.splits = splits

    def _source(self, split):
        return Listed(self.splits.get(split, ()))


def sample(name, masks, present=None, image=None, reference=None):
    """A sample of hand-written masks; its image is made from its name."""
    masks = np.asarray(masks, np.uint8)
    if image is None:
        image = np.frombuffer(name.encode().ljust(64)[:64], np.uint8).reshape(8, 8, 1)
    there = np.ones(len(masks), bool) if present is None else np.asarray(present)
    return RawSample(name, image, masks, there, reference)


def disc(centre=(16, 16), radius=6.0, size=32):
    rows, columns = np.mgrid[:size, :size]
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return inside.astype(np.uint8)


def kinds(found):
    return [finding.kind for finding in found]


def only(found, kind):
    """The one finding of a kind."""
    (finding,) = (finding for finding in found if finding.kind == kind)
    return finding


def audit_of(*samples, annotators, **kwargs):
    return audit(Given({"train": samples}, annotators, **kwargs))


# Agreement of pairs


def test_dice_and_kappa_by_hand():
    # first 1100, second 1000: both 1, first alone 1, neither 2
    planes = np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]], np.uint8)
    confusion = pair_confusion(planes, 2)
    assert confusion[0, :, 1].tolist() == [[2, 0], [1, 1]]
    assert pair_dice(confusion)[0, 1] == pytest.approx(2 * 1 / (2 + 1))
    # agreed 3/4; by chance 1/2 * 3/4 + 1/2 * 1/4 = 1/2
    assert LabelCounts.of(planes, 2).kappa[0, 1] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))


def test_dice_averages_the_foreground_classes_present_in_either():
    planes = np.array([[[0, 1, 1, 2]], [[0, 1, 0, 0]]], np.uint8)
    # class 1: 2 * 1 / 3; class 2: 0; class 3 is in neither
    assert pair_dice(pair_confusion(planes, 4))[0, 1] == pytest.approx((2 / 3 + 0) / 2)


def test_unlabelled_pixels_count_for_nobody():
    planes = np.array([[[1, 1, 255, 0]], [[1, 0, 1, 255]]], np.uint8)
    confusion = pair_confusion(planes, 2)
    assert confusion[0, :, 1].tolist() == [[0, 0], [1, 1]]
    assert pair_dice(confusion)[0, 1] == pytest.approx(2 / 3)
    # on the two pixels that both labelled: agreed 1/2; by chance 1 * 1/2
    assert LabelCounts.of(planes, 2).kappa[0, 1] == pytest.approx(0)


def test_two_empty_masks_have_no_dice_and_no_kappa():
    empty = np.zeros((2, 3, 3), np.uint8)
    assert np.isnan(pair_dice(pair_confusion(empty, 2))).all()
    assert np.isnan(LabelCounts.of(empty, 2).kappa).all()


labels = st.sampled_from([0, 1, 2, IGNORE_INDEX])
planes_of_four = arrays(np.uint8, (4, 5, 6), elements=labels)


@given(planes_of_four)
def test_confusion_counts_as_one_does_by_hand(planes):
    confusion = pair_confusion(planes, 3)
    for i, first in enumerate(planes):
        for j, second in enumerate(planes):
            for c in range(3):
                for d in range(3):
                    assert confusion[i, c, j, d] == ((first == c) & (second == d)).sum()


def test_large_images_are_counted_in_parts(monkeypatch):
    planes = np.random.default_rng(0).integers(0, 3, (3, 40, 50)).astype(np.uint8)
    whole = pair_confusion(planes, 3)
    monkeypatch.setattr("tax_lightning.findings._ENTRIES", 70)
    np.testing.assert_array_equal(pair_confusion(planes, 3), whole)


@given(st.lists(planes_of_four, min_size=1, max_size=3), st.permutations(range(4)))
def test_permuting_annotators_permutes_the_matrices(images, order):
    order = list(order)
    names = np.array(["Ann", "Bob", "Cem", "Dee"])
    classes = ("background", "cell", "fibre")

    def counted(chosen):
        samples = [sample(f"s{i}", masks[chosen]) for i, masks in enumerate(images)]
        return audit_of(*samples, annotators=names[chosen].tolist(), classes=classes)

    straight, permuted = counted([0, 1, 2, 3]), counted(order)
    for matrix in ("dice", "kappa", "together"):
        np.testing.assert_allclose(
            getattr(permuted, matrix), getattr(straight, matrix)[np.ix_(order, order)]
        )
    for vector in ("relative_area", "objects", "object_size", "class_shares"):
        np.testing.assert_allclose(getattr(permuted, vector), getattr(straight, vector)[order])


@given(planes_of_four.filter(lambda planes: np.isin(planes[0], (1, 2)).any()))
def test_a_copy_has_dice_one_and_is_told_from_everybody_else(planes):
    planes[3] = planes[0]
    counted = audit_of(
        sample("a", planes),
        annotators=["Ann", "Bob", "Cem", "Dee"],
        classes=("background", "cell", "fibre"),
    )
    assert counted.dice[0, 3] == 1
    np.testing.assert_array_equal(counted.dice[0], counted.dice[3])
    assert (0, 3) in counted.images[0].equal


# Counts


@pytest.fixture
def small():
    """Two training images and a validation image of four pixels, by Ann and Bob."""
    return Given(
        {
            "train": [
                sample("a", [[[1, 1, 1, 0]], [[1, 0, 0, 0]]]),
                sample("b", [[[0, 0, 0, 0]], [[1, 1, 0, 0]]]),
            ],
            "val": [sample("c", [[[1, 0, 1, 0]], [[9, 9, 9, 9]]], present=[True, False])],
        },
        ["Ann", "Bob"],
    )


def test_coverage_tells_absent_from_empty(small):
    counted = audit(small)
    assert counted.masks(DRAWN).tolist() == [2, 2]
    assert counted.masks(EMPTY).tolist() == [1, 0]
    assert counted.masks(ABSENT).tolist() == [0, 1]
    assert counted.masks(ABSENT, "train").tolist() == [0, 0]
    assert [len(counted.rows(split)) for split in ("train", "val", "test")] == [2, 1, 0]
    coverage = tables(counted)[1]
    assert coverage.columns == ("train", "val", "with foreground", "empty", "missing")
    assert coverage.rows == {"Ann": ("2", "1", "2", "1", "0"), "Bob": ("2", "0", "2", "0", "1")}


def test_areas_shares_and_objects_by_hand(small):
    counted = audit(small)
    # a: 3 and 1 of a mean of 2; b: 0 and 2 of a mean of 1; c: Ann alone
    np.testing.assert_allclose(counted.relative_area, [(1.5 + 0 + 1) / 3, (0.5 + 2) / 2])
    np.testing.assert_allclose(counted.class_shares, [[7 / 12, 5 / 12], [5 / 8, 3 / 8]])
    np.testing.assert_allclose(counted.objects, [(1 + 2) / 2, (1 + 1) / 2])
    np.testing.assert_allclose(counted.object_size, [5 / 3, 3 / 2])


def test_dice_is_a_mean_over_images_and_kappa_over_pixels(small):
    counted = audit(small)
    assert counted.dice[0, 1] == pytest.approx((2 * 1 / (3 + 1) + 0) / 2)
    # of 8 pixels: both 1, Ann alone 2, Bob alone 2, neither 3; each calls 3/8 a cell
    chance = (3 / 8) ** 2 + (5 / 8) ** 2
    assert counted.kappa[0, 1] == pytest.approx((4 / 8 - chance) / (1 - chance))


def test_touching_objects_of_different_classes_are_two():
    counted = audit_of(
        sample("a", [[[1, 2, 0, 255]]]), annotators=["Ann"], classes=("background", "x", "y")
    )
    assert counted.objects.tolist() == [2]
    assert counted.ignored.tolist() == [1]
    assert "not labelled" in tables(counted)[3].columns


def test_threads_change_nothing():
    data = SyntheticDataModule(train_samples=6, val_samples=2, test_samples=0, missing=0.3, seed=3)
    one, four = audit(data, threads=1), audit(data, threads=4)
    assert one.images == four.images
    assert one.quick == four.quick
    for values in ("dice", "kappa", "relative_area", "reference_dice", "thumbs", "disputes"):
        np.testing.assert_array_equal(getattr(one, values), getattr(four, values))


def test_progress_counts_to_the_end(small):
    seen = []
    audit(small, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_transforms_are_left_out():
    class Loud(Given):
        def _eval_dataset(self, source):
            raise AssertionError("transforms are not for counting")

    assert len(audit(Loud({"test": [sample("a", [disc()])]}, ["Ann"])).images) == 1


def test_no_samples_at_all():
    with pytest.raises(ValueError, match="Given has no samples in any split, expected at least"):
        audit(Given({}, ["Ann"]))


# Findings


def circles(count=6, copies=0, name="s{}"):
    """Images with three masks each; on the first ``copies`` the last equals the first."""
    found = []
    for i in range(count):
        first, second, third = (disc((16, 14 + k), 5 + i / 8 + k / 3) for k in range(3))
        found.append(sample(name.format(i), [first, second, first if i < copies else third]))
    return found


PEOPLE = ["Ann", "Bob", "Cem"]


def test_one_annotator_entered_twice():
    found = findings(audit_of(*circles(6, 6), annotators=PEOPLE))
    assert only(found, "duplicate").text == (
        "Ann equals Cem on all 6 images: one annotator entered twice? Exclude one with "
        "exclude_annotators."
    )
    assert only(found, "duplicate").severity == "warning"


def test_everybody_draws_the_same():
    masks = [sample(f"s{i}", [disc(radius=4 + i)] * 3) for i in range(4)]
    found = findings(audit_of(*masks, annotators=PEOPLE))
    assert kinds(found) == ["identical"]
    assert found[0].title == "All 3 annotators draw the same"


def test_one_who_draws_noise():
    rng = np.random.default_rng(0)
    noisy = [sample(s.id, [*s.masks[:2], rng.integers(0, 2, (32, 32))]) for s in circles()]
    finding = only(findings(audit_of(*noisy, annotators=PEOPLE)), "noise")
    assert finding.title == "What Cem draws has nothing to do with what the others draw"


def test_an_error_of_all_and_ties():
    """One object that nobody sees, and pixels on which two of four draw."""
    small, large = disc(radius=6), disc(radius=8)
    masks = [small, small, large, large]
    counted = audit_of(*(sample(f"s{i}", masks) for i in range(2)), annotators=[*PEOPLE, "Dan"])
    title = "On 100% of the pixels where annotators differ their majority is a tie"
    assert only(findings(counted), "ties").title == title
    unseen = large + disc((4, 4), 5.0) * (large == 0)
    counted = audit_of(sample("s", masks, reference=unseen), annotators=[*PEOPLE, "Dan"])
    assert "ties" not in kinds(findings(counted))
    share = (unseen > large).sum() / unseen.sum()
    assert only(findings(counted), "wrong-alike").title.startswith(f"On {share:.0%} of what is")


def test_nearly_all_masks_equal():
    found = findings(audit_of(*circles(40, 39), annotators=PEOPLE))
    assert "on 39 of 40 images" in only(found, "duplicate").text


def test_entered_twice_in_part_of_the_data():
    samples = [*circles(5, 5, "one_{}"), *circles(5, 0, "two_{}")]
    finding = only(findings(audit_of(*samples, annotators=PEOPLE)), "duplicate")
    assert "Ann equals Cem throughout one (5 images), and on 0 of the 5 other" in finding.text
    assert finding.severity == "warning"


def test_equal_now_and_then_is_a_hint():
    finding = only(findings(audit_of(*circles(10, 4), annotators=PEOPLE)), "duplicate")
    assert "on 4 of the 10 images" in finding.text
    assert finding.severity == "hint"


def test_empty_masks_are_no_copies():
    blank = np.zeros((32, 32), np.uint8)
    samples = [sample(f"s{i}", [blank, blank, disc(radius=3 + i)]) for i in range(5)]
    found = findings(audit_of(*samples, annotators=PEOPLE))
    assert "duplicate" not in kinds(found)
    assert "10 of 15 masks (67%)" in only(found, "empty").text


def test_a_reference_that_is_an_annotator():
    samples = [
        sample(f"s{i}", [disc(radius=4 + i), disc(radius=5 + i)], reference=disc(radius=5 + i))
        for i in range(4)
    ]
    counted = audit_of(*samples, annotators=["Ann", "Bob"])
    assert counted.reference_dice[1] == 1
    assert only(findings(counted), "reference").title == "The reference is Bob"


def test_one_annotator_inverted():
    samples = [sample(s.id, [s.masks[0], 1 - s.masks[1], s.masks[2]]) for s in circles()]
    finding = only(findings(audit_of(*samples, annotators=PEOPLE)), "polarity")
    assert finding.title == "Object and background of Bob look swapped"


def test_of_two_who_contradict_each_other_the_one_on_the_border_is_inverted():
    samples = [sample(s.id, [1 - s.masks[0], s.masks[1]]) for s in circles()]
    finding = only(findings(audit_of(*samples, annotators=["Ann", "Bob"])), "polarity")
    assert finding.title == "Object and background of Ann look swapped"


def test_everybody_inverted():
    samples = [sample(s.id, 1 - s.masks) for s in circles()]
    finding = only(findings(audit_of(*samples, annotators=PEOPLE)), "polarity")
    assert finding.title == "Object and background look swapped: all annotators"
    assert "In 18 of 18 masks" in finding.text
    assert "mask_values" in finding.text


def test_nothing_to_point_out():
    assert findings(audit_of(*circles(), annotators=PEOPLE))[0].kind == "sizes"
    assert not [f for f in findings(audit_of(*circles(), annotators=PEOPLE)) if f.kind != "sizes"]


def test_who_leaves_out_small_objects():
    samples = []
    for i in range(6):
        large, small, other = disc((10, 10), 5), disc((24, 24), 2), disc((8, 26), 2)
        masks = [large | small, large | small, large, large | small | other]
        samples.append(sample(f"s{i}", masks))
    found = only(findings(audit_of(*samples, annotators=[*PEOPLE, "Dan"])), "objects")
    assert found.severity == "hint"
    # The majority has two objects in each image. Cem has one of them, Dan has one more.
    assert "Cem leaves out 50% of the majority's objects" in found.text
    assert "Dan draws 50 others for 100 of the majority's objects" in found.text
    assert "Ann" not in found.text


def test_two_who_agree_with_nobody():
    rng = np.random.default_rng(0)
    noisy = [sample(f"s{i}", rng.integers(0, 2, (2, 64, 64))) for i in range(3)]
    found = only(findings(audit_of(*noisy, annotators=["Ann", "Bob"])), "strangers")
    assert found.severity == "warning"
    assert "Ann (" in found.text
    assert "Bob (" in found.text


def test_who_labelled_few_images_or_few_pixels():
    unknown = np.full((32, 32), IGNORE_INDEX, np.uint8)
    scribble = unknown.copy()
    scribble[15:18, :] = disc()[15:18]
    rest = [
        sample(f"s{i}", [disc(), unknown, scribble], present=[True, False, True]) for i in range(11)
    ]
    found = findings(audit_of(*circles(1), *rest, annotators=PEOPLE))
    text = only(found, "coverage").text
    assert text.startswith("Bob labelled 1 of 12 images. ")  # Cem: (1024 + 11 * 96) / (12 * 1024)
    alone = audit_of(*rest, annotators=PEOPLE)
    assert "Cem left 90.6% of the pixels of 11 masks unlabelled" in str(findings(alone))


def test_nobody_drew_anything_and_images_show_nothing():
    blank = np.zeros((2, 32, 32), np.uint8)
    flat = np.zeros((32, 32, 1), np.uint8)
    found = findings(audit_of(sample("a", blank, image=flat), annotators=["Ann", "Bob"]))
    assert [f.kind for f in found if f.severity == "warning"][:2] == ["nothing-drawn", "constant"]


def test_matrices_say_on_how_many_images_they_rest():
    both = audit_of(*circles(3), annotators=PEOPLE)
    (dice,) = (table for table in tables(both) if table.name == "Dice of each two annotators")
    assert "Both labelled 3 images." in dice.caption
    assert "(" not in dice.rows["Ann"][1]
    lone = sample("x", [disc()] * 3, present=[True, True, False])
    counted = audit_of(*circles(3), lone, annotators=PEOPLE)
    assert counted.together.tolist() == [[4, 4, 3], [4, 4, 3], [3, 3, 3]]
    (dice,) = (table for table in tables(counted) if table.name == "Dice of each two annotators")
    assert [cell.partition(" ")[2] for cell in dice.rows["Ann"]] == ["", "(4)", "(3)"]


def test_the_same_pixels_in_two_splits():
    image = np.full((4, 4, 1), 7, np.uint8)
    masks = [disc(), disc(radius=5)]
    splits = {
        "train": [sample("a", masks, image=image), sample("b", masks, image=image + 1)],
        "test": [sample("c", masks, image=image.copy())],
    }
    found = findings(audit(Given(splits, ["Ann", "Bob"])))
    assert "a (train) and c (test)" in only(found, "leak").text
    assert "copies" not in kinds(found)


def test_the_same_pixels_twice_in_one_split():
    image = np.full((4, 4, 1), 7, np.uint8)
    found = findings(
        audit_of(
            sample("a", [disc()], image=image), sample("b", [disc()], image=image), annotators=["A"]
        )
    )
    assert only(found, "copies").severity == "hint"
    assert "leak" not in kinds(found)


def test_names_that_begin_alike_in_two_splits():
    splits = {
        "train": [sample("p1_1", [disc()]), sample("p2_1", [disc()])],
        "test": [sample("p1_2", [disc()]), sample("p3-1_1", [disc()])],
    }
    finding = only(findings(audit(Given(splits, ["Ann"]))), "prefix")
    assert finding.text.startswith("1 beginning of names, e.g. p1 (train and test)")
    assert finding.severity == "hint"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("pattern", "hinted"), [(None, True), ("(p[0-9])_", False)])
def test_groups_silence_the_hint(tmp_path, pattern, hinted):
    for number in range(12):
        name = f"p{number % 4}_{number}.png"
        save(tmp_path / "images" / name, np.full((8, 8), number, np.uint8))
        save(tmp_path / "masks" / "Ann" / name, disc((4, 4), 2, 8))
    data = FolderDataModule(
        tmp_path, ["background", "cell"], group_pattern=pattern, val_fraction=0.3
    )
    counted = audit(data)
    assert ("prefix" in kinds(findings(counted))) is hinted
    groups = [row[1] for row in tables(counted)[0].rows.values()]
    assert (groups == ["–"] * 3) is hinted


def test_slots_are_not_persons():
    class Slots(Given):
        persons = False

    samples = circles()
    counted = audit(Slots({"train": samples}, PEOPLE))
    found = findings(counted)
    assert found[0].title == "These annotators are not persons"
    assert "Ann, Bob and Cem" in found[0].text
    assert "sizes" not in kinds(found)


def test_who_labelled_no_training_image_and_which_class_nobody_used():
    splits = {
        "train": [sample("a", [disc(), disc()], present=[True, False])],
        "val": [sample("b", [disc(), disc(radius=5)])],
    }
    found = findings(audit(Given(splits, ["Ann", "Bob"], ("background", "cell", "fibre"))))
    assert only(found, "idle").title == "No training image labelled by Bob"
    assert only(found, "classes").title == "Nobody used the class fibre"


# Real data


@pytest.fixture
def dataset1(data_root, tmp_path):
    """Crops of BU-BIL dataset 1 in the plain layout, in a folder of links."""
    mini = data_root / "bubil_mini"
    for path in mini.glob("*/**/ds1_*.png"):
        link = tmp_path / path.relative_to(mini)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return tmp_path


def by_folder(root, **kwargs):
    grey = {0: "background", 255: "cell"}
    return FolderDataModule(root, ["background", "cell"], mask_values=grey, **kwargs)


def check_dataset1(counted):
    """What is known about these data."""
    (duplicate,) = (f for f in findings(counted) if f.kind == "duplicate")
    assert duplicate.text.startswith("Person2_Amira equals Person2_ImageJ on all 35 images")
    area = dict(zip(counted.annotators, counted.relative_area.tolist(), strict=True))
    assert min(area, key=area.get) == "Person1_ImageJ"
    assert max(area, key=area.get) == "Person5_Amira"
    assert 0.80 < area["Person1_ImageJ"] < 0.85
    assert 1.10 < area["Person5_Amira"] < 1.19
    assert "polarity" not in kinds(findings(counted))


def test_bubil_dataset_1_cropped(dataset1):
    check_dataset1(audit(by_folder(dataset1)))


def shrunk(path):
    """Grey values at a quarter of the size."""
    return np.asarray(Image.open(path).convert("L").resize((256, 203), Image.Resampling.NEAREST))


def test_bubil_read_naively_has_object_and_background_swapped(data_root, tmp_path):
    source = data_root / BUBIL1
    for image in sorted((source / "RawImages").iterdir())[:6]:
        save(tmp_path / "images" / f"{image.stem}.png", shrunk(image))
        for annotator in ("Person1_Amira", "Person3_ImageJ", "Person5_Amira"):
            (mask,) = (source / "ExpertsAnnotations" / annotator).glob(f"*{image.stem}.*")
            grey = np.where(shrunk(mask) > 127, 255, 0).astype(np.uint8)
            save(tmp_path / "masks" / annotator / f"{image.stem}.png", grey)
    finding = only(findings(audit(by_folder(tmp_path))), "polarity")
    assert finding.title == "Object and background look swapped: all annotators"
    assert "In 18 of 18 masks" in finding.text


def test_lidc_has_many_empty_masks_and_slots(imported):
    data = FolderDataModule(imported("lidc", "lidc_mini"))
    counted = audit(data)
    # 17, 18, 18 and 18 of the 71 crops have 1, 2, 3 and 4 masks that are not empty
    assert counted.masks(DRAWN).sum() == 17 + 2 * 18 + 3 * 18 + 4 * 18
    found = findings(counted)
    assert "105 of 284 masks (37%)" in only(found, "empty").text
    assert only(found, "slots")
    assert "prefix" not in kinds(found)
    assert "leak" not in kinds(found)
