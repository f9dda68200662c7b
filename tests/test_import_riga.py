"""RIGA: outlines become labels, the layout with its oddities, and wrong files named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts_pictures import border, drawn, ellipse, photograph, truth_of, write_riga
from PIL import Image
from written_files import save

from tax_lightning.importers.riga import _mask, fill_contours, find
from tax_lightning.importers.writer import write

SHAPE = (300, 360)
RATERS = [f"rater {number}" for number in range(1, 7)]


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def outlines(truth: np.ndarray, width: float = 3) -> np.ndarray:
    return border(truth > 0, width) | border(truth > 1, width)


# From lines to labels


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_outlines_are_found_in_jpeg_files(width, quality, subsampling, tmp_path):
    clean = save(tmp_path / "prime.jpg", photograph(SHAPE), quality=quality)
    with Image.open(clean) as image:
        copy = drawn(np.asarray(image), truth := truth_of(SHAPE, 2), width)
    file = save(tmp_path / "drawn.jpg", copy, quality=quality, subsampling=subsampling)
    found = _mask({"a": clean}, "a", file)
    assert iou(found > 0, truth > 0) > 0.97
    assert iou(found > 1, truth > 1) > 0.95


@given(st.integers(30, 60), st.integers(30, 60), st.floats(0.3, 0.8), st.sampled_from([1, 2, 3, 4]))
def test_the_middle_of_a_line_is_the_border(height, width, ratio, line):
    truth = ellipse((160, 160), (80, 80), (height, width)).astype(np.uint8)
    truth += ellipse((160, 160), (80, 80), (ratio * height, ratio * width))
    found = fill_contours(outlines(truth, line))
    for label in (1, 2):
        wrong = (found >= label) != (truth >= label)
        assert not (wrong & ~border(truth >= label, 3)).any()


def test_lines_that_touch_each_other():
    disc = ellipse(SHAPE, (150, 180), (90, 90))
    cup = ellipse(SHAPE, (150, 213), (55, 55))  # 2 pixels from the disc's border
    truth = disc.astype(np.uint8) + cup
    found = fill_contours(outlines(truth, 4))
    assert iou(found > 0, truth > 0) > 0.97
    assert iou(found > 1, truth > 1) > 0.95


@pytest.mark.parametrize("gap", [4, 10, 20])
def test_broken_lines_are_closed(gap):
    truth = truth_of(SHAPE, 1)
    lines = outlines(truth)
    lines[150 : 150 + gap, :] = False  # breaks both lines on both sides
    found = fill_contours(lines)
    assert iou(found > 0, truth > 0) > 0.97
    assert iou(found > 1, truth > 1) > 0.95


def test_specks_and_loose_strokes_do_not_matter():
    truth = truth_of(SHAPE, 1)
    lines = outlines(truth)
    clean = fill_contours(lines)
    lines |= np.random.default_rng(0).random(SHAPE) < 0.002
    lines[5:8, 10:200] = True  # a stroke outside
    lines[150, 170:190] = True  # and one in the cup
    lines[100:106, 175:181] = border(ellipse((6, 6), (2.5, 2.5), (2, 2)), 2)  # a small loop
    found = fill_contours(lines)
    assert (found != clean).mean() < 0.002


def test_the_larger_outline_counts_wherever_it_lies():
    far = ellipse(SHAPE, (40, 40), (20, 20))
    truth = truth_of(SHAPE, 1)
    found = fill_contours(outlines(truth) | border(far, 3))
    assert not found[far].any()
    assert iou(found > 1, truth > 1) > 0.95


def test_noise_does_not_close_a_broken_line_elsewhere():
    truth = truth_of(SHAPE, 1)
    lines = outlines(truth)
    lines[150:170, :] = False
    lines |= np.random.default_rng(0).random(SHAPE) < 0.01
    found = fill_contours(lines)
    assert iou(found > 0, truth > 0) > 0.97
    assert iou(found > 1, truth > 1) > 0.95


@pytest.mark.parametrize("gap", [0, 10])
def test_a_small_loop_is_neither_cup_nor_disc(gap):
    disc = truth_of(SHAPE, 1) > 0
    lines = border(disc, 3)
    lines[150 : 150 + gap, :] = False
    for row, column in ((130, 180), (20, 20)):  # in the disc and far from it
        lines |= border(ellipse(SHAPE, (row, column), (6, 6)), 3)
    found = fill_contours(lines)
    assert set(np.unique(found)) == {0, 1}
    assert iou(found > 0, disc) > 0.97


def test_lines_that_enclose_nothing():
    lines = np.zeros((40, 40), bool)
    assert not fill_contours(lines).any()
    lines[20, 5:35] = True
    assert not fill_contours(lines).any()


# Files


@pytest.fixture
def pair(tmp_path):
    """A photograph and where its drawing goes, as files without loss."""
    picture = photograph(SHAPE)
    clean = save(tmp_path / "image5prime.tif", picture)
    return picture, {"M/image5": clean}, tmp_path / "image5-2.tif"


def test_no_closed_line_is_an_error(pair):
    picture, images, file = pair
    lines = outlines(truth_of(SHAPE, 1))
    save(file, np.where(lines[..., None], picture + np.uint8(20), picture))  # too faint by one
    with pytest.raises(
        ValueError, match=r"image5-2\.tif.*more than 20.*exclude_drawings: M/image5-2"
    ):
        _mask(images, "M/image5", file)
    save(file, np.where(lines[..., None], picture + np.uint8(21), picture))
    assert _mask(images, "M/image5", file).max() == 2


def test_a_disc_without_cup_is_said(pair):
    picture, images, file = pair
    disc = truth_of(SHAPE, 1) > 0
    save(file, drawn(picture, disc.astype(np.uint8)))
    with pytest.warns(UserWarning, match=r"image5-2\.tif.* its mask has no cup"):
        found = _mask(images, "M/image5", file)
    assert set(np.unique(found)) == {0, 1}
    assert iou(found > 0, disc) > 0.97


def test_a_copy_of_another_photograph(pair):
    picture, images, file = pair
    save(file, picture[:, ::2])
    with pytest.raises(ValueError, match=r"image5-2\.tif is 180 x 300 .* is 360 x 300"):
        _mask(images, "M/image5", file)
    save(file, 255 - picture)
    with pytest.raises(ValueError, match=r"differs from its photograph .* in 100% of the pixels"):
        _mask(images, "M/image5", file)


# The layout


def test_every_part_is_found_with_its_oddities(tmp_path):
    found = find(write_riga(tmp_path))
    folders = [case.name.split("/")[0] for case in found.cases]
    assert {name: folders.count(name) for name in folders} == {
        "BinRushed1-Corrected": 2,
        "BinRushed2": 2,
        "BinRushed3": 2,
        "BinRushed4": 2,
        "MagrabiaMale": 2,
        "MagrabiFemale": 2,
        "MESSIDOR": 2,
    }
    assert all(list(case.masks) == RATERS for case in found.cases)  # Image1-1 among them
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("MagrabiFemale/image48: ")
    for name in ("MagrabiaMale/image2", "BinRushed3/image12", "BinRushed4/image1"):
        (case,) = (case for case in found.cases if case.name == name)
        for rater, mask in enumerate(case.masks.values(), start=1):
            labels, truth = mask(), truth_of((96, 120), rater)
            assert iou(labels > 0, truth > 0) > 0.95
            assert iou(labels > 1, truth > 1) > 0.9  # 12 pixels wide: half a pixel is much


def test_the_drawing_that_is_too_faint_is_left_out(tmp_path):
    write_riga(tmp_path)
    folder = tmp_path / "Magrabia" / "MagrabiFemale"
    for path in list(folder.glob("image2[-p]*")):
        path.rename(path.with_name(path.name.replace("image2", "image26")))
    found = find(tmp_path, sources=["Magrabia"])
    masks = {case.name: list(case.masks) for case in found.cases}
    assert masks["MagrabiFemale/image26"] == [name for name in RATERS if name != "rater 3"]
    assert masks["MagrabiaMale/image2"] == RATERS
    assert "The drawing MagrabiFemale/image26-3." in found.left_out


def test_parts_and_drawings_can_be_chosen(tmp_path):
    write_riga(tmp_path / "in" / "around")
    excluded = [f"MESSIDOR/image1-{rater}" for rater in range(1, 7)]
    found = find(tmp_path / "in", ["MESSIDOR"], excluded)
    assert write(found, tmp_path / "out").masks == dict.fromkeys(RATERS, 1)
    assert found.left_out[-1].startswith("1 image(s) without a mask of any annotator")
    with pytest.raises(ValueError, match=r"sources: 'Messidor' .* some of BinRushed, Magrabia, ME"):
        find(tmp_path, sources=["Messidor"])
    with pytest.raises(ValueError, match=r"no drawing 'image1-2', .* like 'MESSIDOR/image1-1'"):
        find(tmp_path, ["MESSIDOR"], ["image1-2"])


def test_missing_and_wrong_files(tmp_path):
    folder = write_riga(tmp_path) / "MESSIDOR"
    (tmp_path / "BinRushed" / "BinRushed2").rename(tmp_path / "BinRushed" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder BinRushed2 with image files"):
        find(tmp_path, ["BinRushed"])
    (folder / "Thumbs.db").touch()
    for name in ("image1-7.tif", "image1-1 (2).tif", "notes.png"):
        save(folder / name, photograph((8, 8)))
        with pytest.raises(ValueError, match=r"is named as no file .* a name like image12prime\.j"):
            find(tmp_path, ["MESSIDOR"])
        (folder / name).unlink()
    save(folder / "image1-1.jpg", photograph((8, 8)))
    with pytest.raises(ValueError, match=r"image1-1\.jpg and .* are both MESSIDOR/image1-1"):
        find(tmp_path, ["MESSIDOR"])
