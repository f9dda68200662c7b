"""Gleason 2019: grades by name, absent pathologists, whole slides, and wrong files named."""

import numpy as np
import pytest
from layouts_pictures import fit, grades, photograph, write_gleason
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.gleason import PATHOLOGISTS, GleasonDataModule

CLASS_OF = {0: 0, 1: 1, 6: 1, 3: 2, 4: 3, 5: 4}  # grey value -> class id


@pytest.fixture
def root(tmp_path):
    return write_gleason(tmp_path / "data")


def test_grades_and_absent_pathologists(root):
    data = GleasonDataModule(root)
    assert data.annotators == PATHOLOGISTS
    assert data.classes == ("background", "benign", "grade 3", "grade 4", "grade 5")
    sample = data.read("slide001_core003")
    assert sample["present"].tolist() == [True, True, True, True, False, False]
    for number, mask in enumerate(sample["masks"].numpy()[:4], start=1):
        expected = np.vectorize(CLASS_OF.get)(grades(1, 3, number))
        np.testing.assert_array_equal(mask, expected)
    assert (sample["masks"][4:] == IGNORE_INDEX).all()


def test_a_slide_stays_in_one_split(root):
    data = GleasonDataModule(root, val_fraction=0.25, test_fraction=0.25)
    splits = {}
    for sample in data.table.samples:
        assert sample.group == sample.id[:8]
        splits.setdefault(sample.group, set()).add(sample.split)
    assert len(data.table) == 12
    assert sorted(map(sorted, splits.values())) == [["test"], ["train"], ["train"], ["val"]]


def test_cores_in_patches(root):
    data = GleasonDataModule(root, patch_size=32, val_fraction=0.25, test_fraction=0.25)
    batch = next(iter(data.test_dataloader()))
    assert batch["masks"].shape[-2:] == (32, 32)


def test_folders_lie_deeper_and_are_spelled_otherwise(root):
    (root / "Train_imgs").rename(root / "Train Imgs")
    (root / "Maps2_T").rename(root / "inner")
    (root / "Maps2_T").mkdir()
    (root / "inner").rename(root / "Maps2_T" / "Maps2_T")
    maps = root / "Maps1_T"
    (maps / "slide001_core003_classimg_nonconvex.png").rename(
        maps / "slide1_core03_classimg_nonconvex.png"
    )
    sample = GleasonDataModule(root).read("slide001_core003")
    assert sample["present"].tolist() == [True, True, True, True, False, False]


def test_pathologists_can_be_chosen(root):
    with pytest.warns(UserWarning, match=r"10 image\(s\) without a mask"):
        data = GleasonDataModule(
            root, annotators=["pathologist 6"], val_fraction=0, test_fraction=0.5
        )
    assert data.annotators == ("pathologist 6",)
    assert data.table.ids == ("slide003_core003", "slide004_core002")
    with pytest.raises(ValueError, match=r"'Maps1' is nobody of this data set, .* pathologist 1"):
        GleasonDataModule(root, annotators=["Maps1"])


def test_missing_folders(root):
    for path in (root / "Maps4_T").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no folder Maps4_T with image files"):
        GleasonDataModule(root)
    GleasonDataModule(root, annotators=["pathologist 1", "pathologist 3"])
    (root / "Train_imgs").rename(root / "Test_imgs")
    with pytest.raises(FileNotFoundError, match="no folder Train_imgs or Train Imgs with image"):
        GleasonDataModule(root)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        GleasonDataModule(root / "nowhere")


def test_two_copies_of_a_folder(root):
    write_gleason(root / "copy", 1, 1)
    with pytest.raises(ValueError, match=r"two folders of one kind, .*Train_imgs and .*copy"):
        GleasonDataModule(root)


def test_wrong_names(root):
    mask = root / "Maps3_T" / "slide009_core001_classimg_nonconvex.png"
    save(mask, grades(1, 1, 3))
    with pytest.raises(ValueError, match=r"slide009.* belongs to no image: none is named 'slide0"):
        GleasonDataModule(root)
    mask.rename(mask.with_name("slide001_core001_classimg.png"))
    with pytest.raises(ValueError, match=r"core001_classimg\.png is named as no file .* like slid"):
        GleasonDataModule(root)
    mask.with_name("slide001_core001_classimg.png").unlink()
    save(root / "Train_imgs" / "slide1_core1.jpg", photograph((60, 60)))
    with pytest.raises(ValueError, match="are both slide001_core001, expected one file"):
        GleasonDataModule(root)


def test_wrong_sizes_and_values(root):
    mask = root / "Maps1_T" / "slide001_core001_classimg_nonconvex.png"
    save(mask, grades(1, 1, 1, size=54))
    with pytest.raises(ValueError, match=r"Maps1_T.* is 54 x 54 pixels, .* is 60 x 60"):
        GleasonDataModule(root).read("slide001_core001")
    save(mask, np.full((60, 60), 2, np.uint8))
    with pytest.raises(ValueError, match=r"Maps1_T.* holds the value\(s\) 2, expected 0 \(backgr"):
        GleasonDataModule(root).read("slide001_core001")


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_runs(root, tmp_path):
    fit(
        "gleason",
        root,
        tmp_path,
        "--data.init_args.patch_size=32",
        "--data.init_args.annotators=[pathologist 1, pathologist 3]",
    )
