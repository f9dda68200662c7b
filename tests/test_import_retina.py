"""STARE, CHASE_DB1 and DRIVE: what is found in each, and wrong files named."""

import gzip

import numpy as np
import pytest
from layouts_pictures import ellipse, photograph, vessels, write_chase, write_drive, write_stare
from PIL import Image
from written_files import save

from tax_lightning.importers import chase, drive, stare
from tax_lightning.importers.writer import write


def case_of(found, name):
    (case,) = (case for case in found.cases if case.name == name)
    return case


def check_vessels(case, number: int, annotators: tuple[str, ...]) -> None:
    assert tuple(case.masks) == annotators
    for index, mask in enumerate(case.masks.values()):
        np.testing.assert_array_equal(mask(), vessels(number, index) // 255)


# STARE


@pytest.mark.parametrize("suffix", [".ppm", ".ppm.gz"])
def test_stare(tmp_path, suffix):
    found = stare.find(write_stare(tmp_path / "in", suffix=suffix))
    assert [case.name for case in found.cases] == [f"im000{number}" for number in range(1, 9)]
    check_vessels(case_of(found, "im0003"), 3, ("ah", "vk"))
    np.testing.assert_array_equal(case_of(found, "im0003").image(), photograph((64, 72), 3))
    assert write(found, tmp_path / "out").masks == {"ah": 8, "vk": 8}


def test_stare_with_missing_and_wrong_files(tmp_path):
    write_stare(tmp_path, 2)
    (tmp_path / "labels-vk" / "im0002.vk.ppm.gz").unlink()
    save(tmp_path / "stare-images" / "im0300.ppm", photograph((64, 72)))
    found = stare.find(tmp_path)
    assert list(case_of(found, "im0002").masks) == ["ah"]
    assert found.left_out[0].endswith("im0300.ppm.")
    file = tmp_path / "labels-ah" / "im0001.ah.ppm.gz"
    file = file.rename(file.with_name("im0001.vk.ppm.gz"))
    with pytest.raises(ValueError, match=r"im0001\.vk\.ppm\.gz is named .* like im0001\.ah\.ppm"):
        stare.find(tmp_path)
    file.rename(file.with_name("im0099.ah.ppm.gz"))
    with pytest.raises(ValueError, match=r"im0099\.ah\.ppm\.gz belongs to no image"):
        stare.find(tmp_path)
    (tmp_path / "labels-vk").rename(tmp_path / "labels")
    with pytest.raises(FileNotFoundError, match="no folder labels-vk with image files"):
        stare.find(tmp_path)


def test_masks_of_stare_that_hold_something_else(tmp_path):
    write_stare(tmp_path, 1)
    file = tmp_path / "labels-ah" / "im0001.ah.ppm.gz"
    mask = stare.find(tmp_path).cases[0].masks["ah"]
    save(file, np.full((64, 72), 128, np.uint8))
    with pytest.raises(ValueError, match=r"im0001\.ah.* holds the value\(s\) 128, expected 0 "):
        mask()
    whole = gzip.compress(b"P5 1 1 255 a", mtime=0)
    for content in (b"no gzip", gzip.compress(b"no picture", mtime=0), b"", whole[:-9]):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"Cannot read .*im0001\.ah\.ppm\.gz: .* unpack it anew"
        ):
            mask()


# CHASE_DB1


def test_chase(tmp_path):
    found = chase.find(write_chase(tmp_path / "in"))
    assert len(found.cases) == 8
    assert all(case.group == case.name[6:8] for case in found.cases)
    check_vessels(case_of(found, "Image_02R"), 2, ("1stHO", "2ndHO"))
    write(found, tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").glob("*.jpg"))) == 8


def test_chase_with_wrong_files(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images of this data set"):
        chase.find(tmp_path / "empty")
    write_chase(tmp_path)
    stray = save(tmp_path / "Image_01L_3rdHO.png", vessels(1, 0))
    with pytest.raises(ValueError, match=r"Image_01L_3rdHO\.png is named .* Image_01L_1stHO"):
        chase.find(tmp_path)
    stray.unlink()
    for path in tmp_path.glob("*_2ndHO.png"):
        path.unlink()
    with pytest.raises(ValueError, match="2ndHO has no mask, expected at least one"):
        chase.find(tmp_path)


# DRIVE


@pytest.fixture
def root(tmp_path):
    return write_drive(tmp_path / "in", 2)


def test_drive_takes_the_part_with_two_annotators(root, tmp_path):
    found = drive.find(root)
    assert not found.description.persons
    assert [(case.name, case.split) for case in found.cases] == [("01", ""), ("02", "")]
    check_vessels(case_of(found, "02"), 2, ("1st", "2nd"))
    assert any("'1st' is two persons" in reason for reason in found.left_out)
    assert write(found, tmp_path / "out").masks == {"1st": 2, "2nd": 2}


def test_drive_with_the_training_part(root):
    found = drive.find(root, use_training=True)
    assert [case.name for case in found.cases] == ["01", "02", "21", "22"]
    check_vessels(case_of(found, "22"), 2, ("1st",))


@pytest.mark.parametrize("view", [(0, 255), (3, 253)])
def test_nearly_black_and_nearly_white(root, view):
    """The palette of the second observer's files; its greys are 3 and 253."""
    image = Image.fromarray(vessels(1, 1) // 255, "P")
    image.putpalette([4, 2, 4, 252, 254, 252])
    image.save(root / "test" / "2nd_manual" / "01_manual2.gif")
    inside = ellipse((64, 72), (32, 36), (31, 35))
    save(
        root / "test" / "mask" / "01_test_mask.gif", np.where(inside, view[1], view[0]).astype("u1")
    )
    check_vessels(drive.find(root).cases[0], 1, ("1st", "2nd"))
    for index, mask in enumerate(drive.find(root, field_of_view=True).cases[0].masks.values()):
        np.testing.assert_array_equal(
            mask(), np.where(inside, vessels(1, index) // 255, 255).astype("u1")
        )


def test_drive_with_missing_and_wrong_files(root):
    view = root / "test" / "mask" / "02_test_mask.gif"
    save(view, np.full((60, 72), 255, np.uint8))
    with pytest.raises(ValueError, match=r"02_test_mask\.gif is 72 x 60 pixels, but .* 72 x 64"):
        drive.find(root, field_of_view=True).cases[1].masks["1st"]()
    view.unlink()
    with pytest.raises(FileNotFoundError, match=r"mask has no field of view of 02_test\.tif"):
        drive.find(root, field_of_view=True)
    (root / "training" / "images").rename(root / "training" / "pictures")
    with pytest.raises(FileNotFoundError, match=r"images is no folder, .* like 01_training\.tif"):
        drive.find(root, use_training=True)
    (root / "test" / "2nd_manual").rename(root / "test" / "third")
    with pytest.raises(FileNotFoundError, match=r"2nd_manual is missing.*newer editions leave the"):
        drive.find(root)
