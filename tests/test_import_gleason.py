"""Gleason 2019: grades by name, absent pathologists, whole slides, and wrong files named."""

import numpy as np
import pytest
from layouts_pictures import grades, photograph, write_gleason
from written_files import save

from tax_lightning.importers.gleason import find
from tax_lightning.importers.writer import write

CLASS_OF = {0: 0, 1: 1, 6: 1, 3: 2, 4: 3, 5: 4}  # grey value -> class id


@pytest.fixture
def root(tmp_path):
    return write_gleason(tmp_path / "data")


def core(root):
    (case,) = (case for case in find(root).cases if case.name == "slide001_core003")
    return case


def test_grades_absent_pathologists_and_slides(root, tmp_path):
    masks = core(root).masks
    assert list(masks) == [f"pathologist {number}" for number in (1, 2, 3, 4)]
    for number, mask in enumerate(masks.values(), start=1):
        np.testing.assert_array_equal(mask(), np.vectorize(CLASS_OF.get)(grades(1, 3, number)))
    found = find(root)
    assert len(found.cases) == 12
    assert all(case.group == case.name[:8] for case in found.cases)
    report = write(found, tmp_path / "out", tile=32)  # cores of 60 x 60 pixels
    assert report.images == 4 * 12
    assert report.masks["pathologist 1"] == 4 * 12


def test_folders_lie_deeper_and_are_spelled_otherwise(root):
    (root / "Train_imgs").rename(root / "Train Imgs")
    (root / "Maps2_T").rename(root / "inner")
    (root / "Maps2_T").mkdir()
    (root / "inner").rename(root / "Maps2_T" / "Maps2_T")
    maps = root / "Maps1_T"
    (maps / "slide001_core003_classimg_nonconvex.png").rename(
        maps / "slide1_core03_classimg_nonconvex.png"
    )
    assert len(core(root).masks) == 4


def test_missing_and_double_folders(root):
    write_gleason(root / "copy", 1, 1)
    with pytest.raises(ValueError, match=r"two folders of one kind, .*Train_imgs and .*copy"):
        find(root)
    with pytest.raises(FileNotFoundError, match="no folder Maps4_T with image files"):
        find(root / "copy")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        find(root / "nowhere")


def test_wrong_names_and_values(root):
    mask = root / "Maps1_T" / "slide001_core003_classimg_nonconvex.png"
    save(mask, np.full((60, 60), 2, np.uint8))
    with pytest.raises(ValueError, match=r"Maps1_T.* holds the value\(s\) 2, expected 0 \(b"):
        core(root).masks["pathologist 1"]()
    mask = mask.rename(mask.with_name("slide009_core001_classimg_nonconvex.png"))
    with pytest.raises(ValueError, match=r"slide009.* belongs to no image: none is named 'slide0"):
        find(root)
    mask.rename(mask.with_name("slide001_core003_classimg.png"))
    with pytest.raises(ValueError, match=r"core003_classimg\.png is named as no file .* like slid"):
        find(root)
    save(root / "Train_imgs" / "slide1_core1.jpg", photograph((60, 60)))
    with pytest.raises(ValueError, match="are both slide001_core001, expected one file"):
        find(root)
