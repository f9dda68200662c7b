"""RIGA: outlines become labels, the layout with its oddities is read, and wrong files are named."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts_pictures import border, drawn, ellipse, fit, photograph, truth_of, write_riga
from PIL import Image
from written_files import save

from tax_lightning.data.files import Part, Window
from tax_lightning.data.riga import RATERS, ContourDrawings, RIGADataModule, fill_contours

SHAPE = (300, 360)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def outlines(truth: np.ndarray, width: float = 3) -> np.ndarray:
    return border(truth > 0, width) | border(truth > 1, width)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> RIGADataModule:
    with pytest.warns(UserWarning, match="image48"):
        return RIGADataModule(write_riga(tmp_path_factory.mktemp("riga")), batch_size=2)


# From lines to labels


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_outlines_are_found_in_jpeg_files(width, quality, subsampling, tmp_path):
    clean = save(tmp_path / "prime.jpg", photograph(SHAPE), quality=quality)
    with Image.open(clean) as image:
        copy = drawn(np.asarray(image), truth := truth_of(SHAPE, 2), width)
    file = save(tmp_path / "drawn.jpg", copy, quality=quality, subsampling=subsampling)
    found = ContourDrawings().mask(Part(file, str(clean)))
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
    """A photograph and its drawing, as files without loss."""
    picture = photograph(SHAPE)
    clean = save(tmp_path / "image5prime.tif", picture)
    return picture, clean, tmp_path / "image5-2.tif"


def test_no_closed_line_is_an_error(pair):
    picture, clean, file = pair
    save(file, picture)
    with pytest.raises(ValueError, match=r"image5-2\.tif .*no closed line .* exclude_drawings"):
        ContourDrawings().mask(Part(file, str(clean)))


def test_a_drawing_that_is_too_faint(pair):
    picture, clean, file = pair
    lines = outlines(truth_of(SHAPE, 1))
    save(file, np.where(lines[..., None], picture + np.uint8(20), picture))
    with pytest.raises(ValueError, match="by more than 20, expected the outline"):
        ContourDrawings().mask(Part(file, str(clean)))
    assert ContourDrawings(threshold=10).mask(Part(file, str(clean))).max() == 2


def test_a_disc_without_cup_is_said(pair):
    picture, clean, file = pair
    disc = truth_of(SHAPE, 1) > 0
    save(file, drawn(picture, disc.astype(np.uint8)))
    with pytest.warns(UserWarning, match=r"image5-2\.tif.* its mask has no cup"):
        found = ContourDrawings().mask(Part(file, str(clean)))
    assert set(np.unique(found)) == {0, 1}
    assert iou(found > 0, disc) > 0.97


def test_a_copy_of_another_size(pair):
    picture, clean, file = pair
    save(file, picture[:, ::2])
    with pytest.raises(ValueError, match=r"image5-2\.tif is 180 x 300 .* is 360 x 300"):
        ContourDrawings().mask(Part(file, str(clean)))


def test_a_copy_of_another_photograph(pair):
    picture, clean, file = pair
    save(file, 255 - picture)
    with pytest.raises(ValueError, match=r"differs from its photograph .* in 100% of the pixels"):
        ContourDrawings().mask(Part(file, str(clean)))


def test_windows_and_sizes(pair):
    picture, clean, file = pair
    save(file, drawn(picture, truth_of(SHAPE, 1)))
    decoder, part, window = ContourDrawings(), Part(file, str(clean)), Window(40, 50, 60, 70)
    np.testing.assert_array_equal(decoder.mask(part, window), decoder.mask(part)[40:100, 50:120])
    np.testing.assert_array_equal(decoder.image(clean, window), picture[40:100, 50:120])
    assert decoder.size(part) == decoder.size(clean) == SHAPE
    with pytest.raises(ValueError, match="expected a Part"):
        decoder.mask(file)


# The layout


def test_every_part_is_read_with_its_oddities(data):
    assert data.annotators == RATERS
    assert data.classes == ("background", "disc", "cup")
    folders = [name.split("/")[0] for name in data.table.ids]
    assert {name: folders.count(name) for name in folders} == {
        "BinRushed1-Corrected": 2,
        "BinRushed2": 2,
        "BinRushed3": 2,
        "BinRushed4": 2,
        "MagrabiaMale": 2,
        "MagrabiFemale": 2,
        "MESSIDOR": 2,
    }
    assert all(len(sample.masks) == 6 for sample in data.table.samples)  # Image1-1 among them
    assert all(sample.group == "" for sample in data.table.samples)


@pytest.mark.parametrize("name", ["MagrabiaMale/image2", "BinRushed3/image12", "BinRushed4/image1"])
def test_labels_of_every_rater(data, name):
    sample = data.read(name)
    assert sample["present"].all()
    for number, mask in enumerate(sample["masks"].numpy(), start=1):
        truth = truth_of((96, 120), number)  # a cup of 12 pixels: half a pixel is much
        assert iou(mask > 0, truth > 0) > 0.95
        assert iou(mask > 1, truth > 1) > 0.9


def test_the_drawing_that_is_too_faint_is_left_out(tmp_path):
    write_riga(tmp_path)
    folder = tmp_path / "Magrabia" / "MagrabiFemale"
    for path in list(folder.glob("[iI]mage2[-p]*")):
        path.rename(path.with_name(path.name.replace("mage2", "mage26")))
    with pytest.warns(UserWarning, match=r"MagrabiFemale/image48 is .* image48prime, the photog"):
        data = RIGADataModule(tmp_path, sources=["Magrabia"])
    masks = {sample.id: set(sample.masks) for sample in data.table.samples}
    assert masks["MagrabiFemale/image26"] == set(RATERS) - {"rater 3"}
    assert masks["MagrabiaMale/image2"] == set(RATERS)


def test_parts_raters_and_drawings_can_be_chosen(tmp_path):
    write_riga(tmp_path / "around")
    chosen = {"sources": ["MESSIDOR", "BinRushed"], "annotators": ["rater 4", "rater 2"]}
    excluded = ["BinRushed2/image12-2", "MESSIDOR/image1-2", "MESSIDOR/image1-4"]
    with pytest.warns(UserWarning, match=r"1 image\(s\) without a mask .*image1prime\.tif"):
        data = RIGADataModule(tmp_path, exclude_drawings=excluded, **chosen)
    assert data.annotators == ("rater 4", "rater 2")
    masks = {sample.id: set(sample.masks) for sample in data.table.samples}
    assert len(masks) == 9
    assert masks["BinRushed2/image12"] == {"rater 4"}
    assert "MESSIDOR/image1" not in masks


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sources": ["Messidor"]}, "sources: 'Messidor' .* expected some of BinRushed, Magrabia"),
        ({"annotators": ["rater 7"]}, "annotators: 'rater 7' is nobody .* expected some of rater"),
        ({"exclude_drawings": ["image1-2"]}, "no drawing 'image1-2', .* 'MESSIDOR/image1-1'"),
    ],
)
def test_unknown_names(tmp_path, options, text):
    write_riga(tmp_path)
    with pytest.raises(ValueError, match=text):
        RIGADataModule(tmp_path, **({"sources": ["MESSIDOR"]} | options))


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        RIGADataModule(tmp_path / "nowhere")
    write_riga(tmp_path)
    (tmp_path / "BinRushed" / "BinRushed2").rename(tmp_path / "BinRushed" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder BinRushed2 with image files"):
        RIGADataModule(tmp_path, sources=["BinRushed"])


def test_wrong_and_double_files(tmp_path):
    folder = write_riga(tmp_path) / "MESSIDOR"
    for name in ("image1-7.tif", "image1-1 (2).tif", "notes.png"):
        save(folder / name, photograph((8, 8)))
        with pytest.raises(ValueError, match=r"is named as no file .* a name like image12prime\.j"):
            RIGADataModule(tmp_path, sources=["MESSIDOR"])
        (folder / name).unlink()
    (folder / "Thumbs.db").touch()
    save(folder / "image1-1.jpg", photograph((8, 8)))
    with pytest.raises(ValueError, match=r"image1-1\.jpg and .* are both MESSIDOR/image1-1"):
        RIGADataModule(tmp_path, sources=["MESSIDOR"])


def test_the_configuration_runs(tmp_path):
    write_riga(tmp_path / "data")
    resized = '[{"class_path": "albumentations.LongestMaxSize", "init_args": {"max_size": 64}}]'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(
            "riga",
            tmp_path / "data",
            tmp_path,
            "--data.init_args.sources=[MESSIDOR, BinRushed]",
            *(f"--data.init_args.{when}_transforms={resized}" for when in ("train", "eval")),
        )
