"""QUBIQ: generated folders in the official layout, and the messages for what is wrong with them."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from layouts_pictures import fit
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.qubiq import QUBIQDataModule

nibabel = pytest.importorskip("nibabel")

TRAINING = [1, 2, 4, 5, 9, 10]  # the numbers of cases skip
VALIDATION = [3, 11]
SIZE = (12, 10)


def mask_of(number: int, rater: int, task: int = 1) -> np.ndarray:
    """A rectangle that tells the case, the rater and the task."""
    mask = np.zeros(SIZE, np.uint8)
    mask[: 1 + number % 11, : rater + task] = 1
    return mask


def picture(number: int, *more: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(0, 900, (*SIZE, *more)).astype(np.float32)


def cases_of(root: Path) -> list[tuple[int, Path]]:
    parts = {"Training": TRAINING, "Validation": VALIDATION}
    return [
        (number, root / part / f"case{number:02d}")
        for part, numbers in parts.items()
        for number in numbers
    ]


@pytest.fixture
def prostate(tmp_path) -> Path:
    """Two tasks, six raters, of whom the last did not label case 4; one slice in three axes."""
    root = tmp_path / "prostate"
    for number, case in cases_of(root):
        save(case / "image.nii.gz", picture(number, 1))
        for task in (1, 2):
            for rater in range(1, 6 if number == 4 else 7):
                file = case / f"task{task:02d}_seg{rater:02d}.nii.gz"
                save(file, mask_of(number, rater, task)[..., None])
    return root


@pytest.fixture
def tumor(tmp_path) -> Path:
    """Three tasks, three raters, four modalities in one file; masks without the last axis."""
    root = tmp_path / "brain-tumor"
    for number, case in cases_of(root):
        save(case / "image.nii.gz", picture(number, 4))
        for task in (1, 2, 3):
            for rater in (1, 2, 3):
                file = case / f"task{task:02d}_seg{rater:02d}.nii.gz"
                save(file, mask_of(number, rater, task).astype(np.float64))
    return root


@pytest.fixture
def pancreas(tmp_path) -> Path:
    """Volumes sliced along the first axis; training cases without a folder; pairs of scans."""
    root = tmp_path / "pancreas"
    names = [*(f"case{n}-{m}" for n in (1, 2, 5, 6) for m in (1, 2)), "Validation/case13-1"]
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        save(root / name / "image.nii.gz", rng.integers(-1024, 1051, (5, *SIZE)).astype(np.int16))
        for rater in (1, 2):
            mask = np.zeros((5, *SIZE), np.int16)
            mask[rater, :4, : rater + 2] = 255  # rater 1 on slice 1, rater 2 on slice 2
            save(root / name / f"task01_seg{rater:02d}.nii.gz", mask)
    return root


def splits_of(data: QUBIQDataModule) -> dict[str, str | None]:
    return {sample.id: sample.split for sample in data.table.samples}


# What is read


@pytest.mark.parametrize("task", [1, 2])
def test_a_task_and_its_raters(prostate, task):
    data = QUBIQDataModule(prostate, task=task)
    assert data.annotators == tuple(f"rater {rater}" for rater in range(1, 7))
    assert data.classes == ("background", f"prostate {task}")
    assert data.channels == 1
    for number, case in cases_of(prostate):
        sample = data.read(f"{case.parent.name}_{case.name}")
        for rater in range(1, 6):
            np.testing.assert_array_equal(
                sample["masks"][rater - 1].numpy(), mask_of(number, rater, task)
            )
        assert sample["present"].tolist() == [True] * 5 + [number != 4]
        if number == 4:
            assert (sample["masks"][5] == IGNORE_INDEX).all()


def test_four_modalities_in_one_file(tumor):
    data = QUBIQDataModule(tumor, task=3, class_name="core")
    assert data.channels == 4
    assert data.classes == ("background", "core")
    sample = data.table.read(data.table.samples[0])
    voxels = picture(1, 4)
    low, high = np.percentile(voxels, (0.5, 99.5), axis=(0, 1))
    expected = ((voxels - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(sample.image, expected, atol=1e-5)
    assert data.read("Training_case01")["image"].shape == (4, *SIZE)
    np.testing.assert_array_equal(sample.masks[1], mask_of(1, 2, 3))


def test_validation_is_the_test_split_and_val_is_drawn_from_training(prostate):
    splits = splits_of(QUBIQDataModule(prostate, val_fraction=0.34))
    tested = {name for name, split in splits.items() if split == "test"}
    assert tested == {"Validation_case03", "Validation_case11"}
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 4 + ["val"] * 2
    drawn = {
        tuple(splits_of(QUBIQDataModule(prostate, split_seed=seed)).values()) for seed in range(5)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("published", ["there", "unlabelled", "gone"])
def test_otherwise_all_splits_are_drawn(prostate, published):
    options = {"published_split": published != "there"}
    if published == "gone":
        shutil.rmtree(prostate / "Validation")
    if published == "unlabelled":
        for mask in (prostate / "Validation").rglob("task*"):
            mask.unlink()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"2 case\(s\) without a mask")
        data = QUBIQDataModule(prostate, val_fraction=0.2, test_fraction=0.4, **options)
    count = 8 if published == "there" else 6
    assert len(data.table) == count
    assert list(splits_of(data).values()).count("test") == round(0.4 * count)


def test_folds_over_all_cases(prostate):
    tested = []
    for fold in range(4):
        data = QUBIQDataModule(prostate, published_split=False, folds=4, fold=fold)
        tested += [name for name, split in splits_of(data).items() if split == "test"]
    assert sorted(tested) == sorted(splits_of(data))
    with pytest.raises(ValueError, match="folds=4: the data set says which image is in which"):
        QUBIQDataModule(prostate, folds=4)


def test_volumes_are_sliced_along_the_first_axis_without_empty_slices(pancreas):
    data = QUBIQDataModule(pancreas)
    assert data.classes == ("background", "pancreas")
    assert data.annotators == ("rater 1", "rater 2")
    assert len(data.table) == 9 * 2
    sample = data.read("Training_case1-1_001")
    assert sample["image"].shape == (1, *SIZE)
    assert sample["present"].all()
    assert sample["masks"].sum(dim=(1, 2)).tolist() == [12, 0]  # an empty mask is a label
    assert data.read("Training_case1-1_002")["masks"].sum(dim=(1, 2)).tolist() == [0, 16]
    assert len(QUBIQDataModule(pancreas, empty_slices=True).table) == 9 * 5


def test_scans_of_one_patient_stay_together(pancreas):
    for seed in range(5):
        data = QUBIQDataModule(pancreas, val_fraction=0.5, split_seed=seed)
        splits: dict[str, set[str | None]] = {}
        for sample in data.table.samples:
            splits.setdefault(sample.id.split("-")[0], set()).add(sample.split)
        assert all(len(found) == 1 for found in splits.values())
        assert splits["Validation_case13"] == {"test"}


def test_axis_and_intensities_can_be_set(pancreas):
    data = QUBIQDataModule(pancreas, axis=2, intensity_range=(-125, 275), empty_slices=True)
    assert data.read("Training_case1-1_009")["image"].shape == (1, 5, 12)
    voxels = np.random.default_rng(0).integers(-1024, 1051, (5, *SIZE)).astype(np.int16)
    expected = ((voxels[..., 9] + 125.0) / 400).clip(0, 1)
    np.testing.assert_allclose(data.table[9].image[..., 0], expected, atol=1e-6)


def test_plain_files_other_files_and_masks_named_after_the_case(prostate):
    case = prostate / "Training" / "case01"
    save(case / "task01_seg01.nii", mask_of(1, 1) * 255)
    (case / "task01_seg01.nii.gz").unlink()
    for name in ("._image.nii.gz", ".DS_Store", "readme.txt"):
        (case / name).touch()
    (prostate / "Training" / "cases.csv").touch()
    named = prostate / "Training" / "case02"
    for path in named.glob("task01*"):
        path.rename(named / path.name.replace("task01", "case02"))
    data = QUBIQDataModule(prostate)
    np.testing.assert_array_equal(data.read("Training_case01")["masks"][0], mask_of(1, 1))
    assert data.read("Training_case02")["present"].all()


def test_cases_without_masks_are_left_out(prostate):
    for path in (prostate / "Training" / "case05").glob("task01*"):
        path.unlink()
    with pytest.warns(UserWarning, match=r"1 case\(s\) without a mask for task 1 .*case05"):
        data = QUBIQDataModule(prostate)
    assert "Training_case05" not in data.table.ids


def test_nothing_but_headers_is_read_of_flat_cases(prostate):
    path = prostate / "Training" / "case01" / "task01_seg02.nii"
    path.with_name(f"{path.name}.gz").unlink()
    save(path, mask_of(1, 2))
    path.write_bytes(path.read_bytes()[:-40])
    data = QUBIQDataModule(prostate, published_split=False)
    with pytest.raises(ValueError, match=r"Cannot read .*task01_seg02\.nii: "):
        data.table.check()


# What is said of what is wrong


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder\. Expected this layout"):
        QUBIQDataModule(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no folders of cases"):
        QUBIQDataModule(tmp_path)


def test_no_such_task(prostate):
    with pytest.raises(ValueError, match=r"task=3: .* has no such task, expected one of: 1, 2\."):
        QUBIQDataModule(prostate, task=3)


def test_a_case_without_image(prostate):
    (prostate / "Training" / "case04" / "image.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case04 holds no image\.nii\.gz"):
        QUBIQDataModule(prostate)


def test_a_mask_that_stands_twice(prostate):
    case = prostate / "Training" / "case04"
    save(case / "task01_seg1.nii.gz", mask_of(4, 1))
    with pytest.raises(ValueError, match=r"are masks of the same task and rater"):
        QUBIQDataModule(prostate)
    (case / "task01_seg1.nii.gz").unlink()
    save(case / "task01_seg01.nii", mask_of(4, 1))
    with pytest.raises(ValueError, match=r"have the same name 'task01_seg01'"):
        QUBIQDataModule(prostate)


def test_a_mask_of_another_shape(prostate):
    save(prostate / "Training" / "case05" / "task01_seg03.nii.gz", np.zeros((10, 12), np.uint8))
    text = r"task01_seg03\.nii\.gz has 1 slice\(s\) of 10 x 12 voxels, but .*image\.nii\.gz has 1 "
    with pytest.raises(ValueError, match=text):
        QUBIQDataModule(prostate)


def test_a_mask_with_other_values(prostate):
    save(prostate / "Training" / "case05" / "task01_seg03.nii.gz", mask_of(5, 3) * 2)
    with pytest.raises(ValueError, match=r"(?s)task01_seg03\.nii\.gz .*holds the value\(s\) 2"):
        QUBIQDataModule(prostate).table.check()


def test_an_image_of_other_modalities(tumor):
    save(tumor / "Training" / "case05" / "image.nii.gz", picture(5, 3))
    with pytest.raises(ValueError, match=r"case05.*holds an array of 12 x 10 x 3, expected .* 4 "):
        QUBIQDataModule(tumor)


def test_nothing_drawn_at_all(pancreas):
    for path in pancreas.rglob("task*"):
        save(path, np.zeros((5, *SIZE), np.int16))
    with pytest.raises(ValueError, match=r"All masks in .* are empty.*empty_slices=True"):
        QUBIQDataModule(pancreas)


# The configuration


def test_the_configuration_runs(tumor, tmp_path, capsys):
    fit("qubiq", tumor, tmp_path)
    assert "fused_dice" in capsys.readouterr().out
