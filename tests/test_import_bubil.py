"""BU-BIL as published: what is found in it, its oddities, and the messages for what is wrong."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_files import save

from tax_lightning.data.pixels import read_whole
from tax_lightning.importers.bubil import find
from tax_lightning.importers.writer import write

DATA, EXPERTS = "BU-BIL_Dataset1", "BU-BIL_Dataset1/ExpertsAnnotations"
CROWD = "BU-BIL_Dataset1/CrowdsourcedAnnotations/mturk_annotation1-1"
NAMES = [f"B{number:02d}" for number in range(1, 5)]
SIZE = (40, 50)


def cell_of(name: str, more: int = 0) -> np.ndarray:
    """A box, true in the cell, whose size tells the image and the annotator."""
    cell = np.zeros(SIZE, bool)
    cell[15 : 20 + int(name[-1]), 20 : 27 + more] = True
    return cell


def drawn(cell: np.ndarray) -> np.ndarray:
    """As in the files: black on white."""
    return np.where(cell, 0, 255).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    """Data set 1 with four images, two annotators and one column of the crowd."""
    root = tmp_path / "in"
    for name in NAMES:
        save(root / DATA / f"RawImages/{name}.png", np.full(SIZE, 20 * int(name[-1]), np.uint8))
        save(root / DATA / f"GoldStandard/seg_{name}.png", drawn(cell_of(name)), "1")
        save(root / EXPERTS / f"Person1_Amira/Seg_{name}.png", drawn(cell_of(name)), "L")
        save(root / EXPERTS / f"Person2_ImageJ/seg_{name}.png", drawn(cell_of(name, 2)), "RGB")
        height = 5 + int(name[-1])
        shown = np.zeros((2 * ((height + 1) // 2) + height + 1, 7 + 8 + 1), bool)
        shown[2:-2, 3:-3] = True
        save(root / CROWD / f"seg_{name}.png", drawn(shown), "RGBA")
    return root


def by_name(found):
    return {case.name: case for case in found.cases}


@pytest.mark.parametrize("inside", [False, True])
def test_the_official_layout(root, tmp_path, inside):
    found = find(root / DATA if inside else root)
    assert [case.name for case in found.cases] == NAMES
    assert found.annotators == {
        "Person1_Amira": {"person": "Person1", "tool": "Amira"},
        "Person2_ImageJ": {"person": "Person2", "tool": "ImageJ"},
    }
    assert found.description.persons
    assert write(found, tmp_path / "out").masks == {"Person1_Amira": 4, "Person2_ImageJ": 4}
    for name in NAMES:
        for annotator, more in (("Person1_Amira", 0), ("Person2_ImageJ", 2)):
            mask = read_whole(tmp_path / "out" / "masks" / annotator / f"{name}.png")
            np.testing.assert_array_equal(mask, cell_of(name, more))
        assert (read_whole(tmp_path / "out" / "images" / f"{name}.png") == 20 * int(name[-1])).all()


def test_names_of_dataset_6_and_its_gold_in_small_letters(root):
    (root / EXPERTS).rename(root / DATA / "ExpertAnnotations")
    for path in sorted((root / DATA / "GoldStandard").iterdir()):
        path.rename(path.with_name(path.name.lower()))
    found = find(root, reference="gold")
    np.testing.assert_array_equal(by_name(found)["B03"].reference(), cell_of("B03"))
    assert any("equals Person2_ImageJ" in reason for reason in found.left_out)
    (root / DATA / "GoldStandard/seg_b04.png").unlink()
    with pytest.raises(ValueError, match=r"reference='gold': .*B04\.png has no mask in GoldSt"):
        find(root, reference="gold")


def test_greys_and_palettes(root):
    path = root / EXPERTS / "Person1_Amira/Seg_B01.png"
    mask = by_name(find(root))["B01"].masks["Person1_Amira"]
    save(path, np.array([[0, 24, 127, 128, 254, 255]], np.uint8))
    assert mask().tolist() == [[1, 1, 1, 0, 0, 0]]
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path)
    assert mask().tolist() == [[1, 0]]
    save(path, np.zeros((2, 2), np.uint16))
    with pytest.raises(ValueError, match=r"Seg_B01\.png has more than 8 bits a pixel, expected bl"):
        mask()


def test_pictures_of_12_bits(root):
    deep = np.zeros(SIZE, np.uint16)
    deep[0, :3] = 0, 819, 4095
    save(root / DATA / "RawImages/B01.png", deep)
    mixed = find(root)
    assert by_name(mixed)["B01"].image()[0, :3].tolist() == [0, 13107, 65535]
    assert mixed.description.intensity_range is None
    assert "rescaled to 16 bits" in mixed.left_out[0]
    for name in NAMES:
        save(root / DATA / f"RawImages/{name}.png", deep)
    alone = find(root)
    np.testing.assert_array_equal(by_name(alone)["B02"].image(), deep)
    assert alone.description.intensity_range == (0, 4095)
    save(root / DATA / "RawImages/B02.png", deep + np.uint16(1))
    with pytest.raises(ValueError, match=r"B02\.png holds values up to 4096, expected 0 to 4095"):
        by_name(alone)["B02"].image()


def test_coloured_pictures_become_grey(root):
    save(root / DATA / "RawImages/B01.png", np.full((*SIZE, 3), (10, 20, 30), np.uint8))
    assert (by_name(find(root))["B01"].image() == 18).all()  # 2.99 + 11.74 + 3.42


def test_a_missing_mask_is_no_label_and_an_image_without_any_is_left_out(root):
    (root / EXPERTS / "Person1_Amira/Seg_B02.png").unlink()
    save(root / DATA / "RawImages/B09.png", np.zeros(SIZE, np.uint8))
    found = find(root)
    assert list(by_name(found)["B02"].masks) == ["Person2_ImageJ"]
    assert len(found.cases) == 4
    assert found.left_out[0].startswith("1 image(s) without a mask of any annotator, e.g. ")


def test_the_parts_of_dataset_2(root):
    """Part 2A is by the persons of the other data sets, part 2B by others of the same names."""
    second = root / "BU-BIL_Dataset2"
    for name, part in (("P01", "2A"), ("Chian1_01", "2B")):
        save(second / f"RawImages/{name}.png", np.zeros(SIZE, np.uint8))
        save(
            second / f"ExpertsAnnotations/{part}/Person1_Amira/seg_{name}.png", drawn(cell_of("B1"))
        )
    (second / "ExpertsAnnotations/README.txt").touch()
    found = find(root)
    assert found.annotators["2B Person1_Amira"] == {"person": "2B Person1", "tool": "Amira"}
    cases = by_name(found)
    assert list(cases["BU-BIL_Dataset2_P01"].masks) == ["Person1_Amira"]
    assert list(cases["BU-BIL_Dataset2_Chian1_01"].masks) == ["2B Person1_Amira"]
    assert list(cases["BU-BIL_Dataset1_B01"].masks) == ["Person1_Amira", "Person2_ImageJ"]


# The crowd


def test_the_crowd_is_laid_where_it_looked(root):
    found = find(root, crowd=True)
    assert not found.description.persons
    # the gold box is 6 x 7 at (15, 20): 3 rows and 4 columns more on each side, and one before
    expected = np.full(SIZE, 255)
    expected[11:24, 15:31] = 0
    expected[13:22, 18:28] = 1
    np.testing.assert_array_equal(by_name(found)["B01"].masks["crowd 1"](), expected)


def test_what_the_crowd_saw_ends_with_the_picture(root):
    gold = np.zeros(SIZE, bool)
    gold[1:7, 44:50] = True  # 3 more on each side, and one before: rows 0..9, columns 40..49
    save(root / DATA / "GoldStandard/seg_B01.png", drawn(gold))
    save(root / CROWD / "seg_B01.png", drawn(np.ones((10, 10), bool)))
    mask = by_name(find(root, crowd=True))["B01"].masks["crowd 1"]()
    assert (mask[:10, 40:] == 1).all()
    assert Counter(mask.flat) == {1: 100, 255: 1900}


def test_images_that_were_cut_out_are_for_the_crowd_only(root):
    """In data sets 4 to 6, the crowd's masks have the size of the images, and no others have."""
    for name in NAMES:
        with Image.open(root / CROWD / f"seg_{name}.png") as image:
            pixels = np.zeros((image.height, image.width), np.uint8)
        save(root / DATA / f"RawImages/{name}.png", pixels)
    with pytest.raises(
        ValueError, match=r"no masks that fit their images: .* need the option crow"
    ):
        find(root)
    found = find(root, crowd=True)
    assert "The experts' masks of" in found.left_out[0]
    assert found.annotators == {"crowd 1": {"person": "crowd 1", "tool": "crowd"}}
    assert set(np.unique(by_name(found)["B01"].masks["crowd 1"]())) == {0, 1}


def test_a_crowd_mask_that_fits_nowhere_is_refused(root, tmp_path):
    save(root / CROWD / "seg_B03.png", np.zeros((6, 7), np.uint8))
    with pytest.raises(ValueError, match=r"'B03': the mask by crowd 1 has the shape \(6, 7\)"):
        write(find(root, crowd=True), tmp_path / "out")


# What is wrong with a folder


def test_missing_folders(root):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder\. Expected this layout"):
        find(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no folder RawImages\. Expected this layout"):
        find(root / EXPERTS)
    (root / CROWD).parent.rename(root / "crowd")
    with pytest.raises(FileNotFoundError, match=r"crowd: .*CrowdsourcedAnnotations is no folder"):
        find(root, crowd=True)
    for annotator in sorted((root / EXPERTS).iterdir()):
        annotator.rename(root / annotator.name)
    with pytest.raises(FileNotFoundError, match=r"ExpertsAnnotations holds no annotators' folders"):
        find(root)


def test_masks_that_do_not_match(root):
    stray = save(root / EXPERTS / "Person1_Amira/mask_B01.png", drawn(cell_of("B01")))
    with pytest.raises(ValueError, match=r"Person1_Amira/mask_B01\.png belongs to no image"):
        find(root)
    stray.rename(stray.with_name("B03.png"))
    with pytest.raises(ValueError, match=r"B03\.png and .*Seg_B03\.png are both B03, expected one"):
        find(root)


# The real data


def test_the_real_dataset_1(data_root):
    """The hash is that of the masks as the reader of the first release gave them."""
    found = find(data_root / "BU-BIL", crowd=True, reference="gold")
    assert len(found.cases) == 35
    assert all(len(case.masks) == 17 for case in found.cases)
    case = by_name(found)["B01"]
    masks = {name: case.masks[name]() for name in sorted(case.masks)}
    digest = hashlib.sha256(b"".join(mask.tobytes() for mask in masks.values())).hexdigest()
    assert digest == "27994ecf4fe6a73f75ea69a1d13321a2c91c95e91a9b283422b29a13abf239ba"
    np.testing.assert_array_equal(case.reference(), masks["Person2_ImageJ"])
    np.testing.assert_array_equal(masks["Person2_Amira"], masks["Person2_ImageJ"])
