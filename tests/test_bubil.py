"""BU-BIL as published: what is read from it, its oddities, and the messages for what is wrong."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_files import save

from tax_lightning.data.bubil import BUBILDataModule, BUBILPictures
from tax_lightning.data.files import Part, Window

columns_are_no_persons = pytest.mark.filterwarnings("ignore:crowd. a column")

EXPERTS = "BU-BIL_Dataset1/ExpertsAnnotations"
CROWD = "BU-BIL_Dataset1/CrowdsourcedAnnotations"
NAMES = [f"B{number:02d}" for number in range(1, 9)]
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
    """Data set 1 with eight images, two annotators and two columns of the crowd."""
    data = tmp_path / "BU-BIL_Dataset1"
    for name in NAMES:
        save(data / f"RawImages/{name}.png", np.full(SIZE, 20 * int(name[-1]), np.uint8))
        save(data / f"GoldStandard/seg_{name}.png", drawn(cell_of(name)), "1")
        save(tmp_path / EXPERTS / f"Person1_Amira/Seg_{name}.png", drawn(cell_of(name)), "L")
        save(tmp_path / EXPERTS / f"Person2_ImageJ/seg_{name}.png", drawn(cell_of(name, 2)), "RGB")
        height = 5 + int(name[-1])
        rows = 2 * ((height + 1) // 2) + height + 1
        for column in (1, 2):
            shown = np.zeros((rows, 7 + 8 + 1), bool)
            shown[2:-2, 3:-3] = True
            save(
                tmp_path / CROWD / f"mturk_annotation1-{column}/seg_{name}.png",
                drawn(shown),
                "RGBA",
            )
    return tmp_path


# What is read


@pytest.mark.parametrize("inside", [False, True])
def test_the_official_layout(root, inside):
    data = BUBILDataModule(root / "BU-BIL_Dataset1" if inside else root)
    assert data.annotators == ("Person1_Amira", "Person2_ImageJ")
    assert data.classes == ("background", "cell")
    assert data.channels == 3
    assert sorted(data.table.ids) == NAMES
    data.table.check()
    for name in NAMES:
        sample = data.read(name)
        for mask, more in zip(sample["masks"], (0, 2), strict=True):
            np.testing.assert_array_equal(mask.numpy(), cell_of(name, more))
        assert (data.to_picture(sample["image"]) == 20 * int(name[-1])).all()
        assert "reference" not in sample


def test_batches_of_every_stage(root):
    data = BUBILDataModule(root, batch_size=2, channels=1)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, *SIZE)


def test_the_experts_folder_of_dataset_6_and_its_gold_in_small_letters(root):
    experts = root / EXPERTS
    experts.rename(experts.with_name("ExpertAnnotations"))
    gold = root / "BU-BIL_Dataset1/GoldStandard"
    for name in NAMES:
        (gold / f"seg_{name}.png").rename(gold / f"seg_{name.lower()}.png")
    with pytest.warns(UserWarning, match="Person2_ImageJ"):
        data = BUBILDataModule(root, reference="gold")
    np.testing.assert_array_equal(data.read("B03")["reference"].numpy(), cell_of("B03"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_mode_of_masks_is_black_on_white(tmp_path, mode):
    save(tmp_path / "seg_B01.png", drawn(cell_of("B01")), mode)
    mask = BUBILPictures().mask(tmp_path / "seg_B01.png")
    np.testing.assert_array_equal(mask, cell_of("B01"))


def test_indices_of_a_palette_are_no_grey_values(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "seg_1.png")
    assert BUBILPictures().mask(tmp_path / "seg_1.png").tolist() == [[1, 0]]


def test_stray_grey_values_are_cut_at_the_middle(tmp_path):
    save(tmp_path / "seg_B01.png", np.array([[0, 24, 127, 128, 254, 255]], np.uint8))
    assert BUBILPictures().mask(tmp_path / "seg_B01.png").tolist() == [[1, 1, 1, 0, 0, 0]]


def test_pictures_of_16_bits_are_white_at_4095(tmp_path):
    save(tmp_path / "m01.png", np.array([[0, 819, 4095]], np.uint16))
    image = BUBILPictures(channels=1).image(tmp_path / "m01.png")
    np.testing.assert_allclose(image[..., 0], [[0, 0.2, 1]], atol=1e-6)
    assert image.dtype == np.float32
    save(tmp_path / "m02.png", np.array([[0, 5000]], np.uint16))
    with pytest.raises(ValueError, match=r"m02\.png holds values up to 5000, expected 0 to 4095"):
        BUBILPictures().image(tmp_path / "m02.png")


def test_an_empty_mask_is_a_label_and_a_missing_one_is_none(root):
    (root / EXPERTS / "Person1_Amira/Seg_B02.png").unlink()
    save(root / EXPERTS / "Person2_ImageJ/seg_B02.png", drawn(np.zeros(SIZE, bool)))
    sample = BUBILDataModule(root).read("B02")
    assert sample["present"].tolist() == [False, True]
    assert not sample["masks"][1].any()


def test_annotators_are_chosen_and_left_out(root):
    assert BUBILDataModule(root, ["Person2_ImageJ"]).annotators == ("Person2_ImageJ",)
    data = BUBILDataModule(root, exclude_annotators=["Person2_ImageJ"])
    assert data.annotators == ("Person1_Amira",)


def test_the_parts_of_dataset_2(root):
    """Part 2A is by the persons of the other data sets, part 2B by others of the same names."""
    second = root / "BU-BIL_Dataset2"
    for name, part in (("P01", "2A"), ("Chian1_01", "2B")):
        save(second / f"RawImages/{name}.png", np.zeros(SIZE, np.uint8))
        mask = second / f"ExpertsAnnotations/{part}/Person1_Amira/seg_{name}.png"
        save(mask, drawn(cell_of("B01")))
    (second / "ExpertsAnnotations/README.txt").touch()
    data = BUBILDataModule(root)
    assert data.annotators == ("2B Person1_Amira", "Person1_Amira", "Person2_ImageJ")
    assert data.read("BU-BIL_Dataset2_P01")["present"].tolist() == [False, True, False]
    assert data.read("BU-BIL_Dataset2_Chian1_01")["present"].tolist() == [True, False, False]
    assert data.read("BU-BIL_Dataset1_B01")["present"].tolist() == [False, True, True]


# The crowd and the gold standard


def test_nothing_is_said_and_no_pixel_read_without_a_reason(root):
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:45])  # the size, and no pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BUBILDataModule(root)


def test_the_crowd_is_laid_where_it_looked(root):
    with pytest.warns(UserWarning, match="a column of the crowd's masks is probably not one"):
        data = BUBILDataModule(root, crowd=True)
    assert data.annotators == ("Person1_Amira", "Person2_ImageJ", "crowd 1", "crowd 2")
    data.table.check()
    mask = data.read("B01")["masks"][2].numpy()
    # the gold box is 6 x 7 at (15, 20): 3 rows and 4 columns more on each side, and one before
    expected = np.full(SIZE, 255)
    expected[11:24, 15:31] = 0
    expected[13:22, 18:28] = 1
    np.testing.assert_array_equal(mask, expected)
    file = data.table.samples[0].masks["crowd 1"]
    window = Window(10, 12, 9, 20)
    np.testing.assert_array_equal(
        data.table.decoder.mask(file, window), data.table.decoder.mask(file)[10:19, 12:32]
    )


def test_what_the_crowd_saw_ends_with_the_picture(tmp_path):
    gold = np.zeros((10, 12), bool)
    gold[1:7, 6:12] = True  # 3 more on each side: rows 0..9 and columns 2..11
    save(tmp_path / "gold.png", drawn(gold))
    save(tmp_path / "crowd.png", drawn(np.ones((10, 10), bool)))
    mask = BUBILPictures().mask(Part(tmp_path / "crowd.png", str(tmp_path / "gold.png")))
    assert (mask[:, 2:] == 1).all()
    assert (mask[:, :2] == 255).all()


@columns_are_no_persons
def test_images_that_were_cut_out_are_for_the_crowd_only(root):
    """In data sets 4 to 6, the crowd's masks have the size of the images, and no others have."""
    for name in NAMES:
        mask = root / CROWD / f"mturk_annotation1-1/seg_{name}.png"
        with Image.open(mask) as image:
            pixels = np.zeros((image.height, image.width), np.uint8)
        save(root / f"BU-BIL_Dataset1/RawImages/{name}.png", pixels)
    with (
        pytest.warns(UserWarning, match=r"BU-BIL_Dataset1: the images are cut out"),
        pytest.raises(ValueError, match="no masks that fit their images"),
    ):
        BUBILDataModule(root)
    with pytest.warns(UserWarning, match="The experts' masks are left out"):
        data = BUBILDataModule(root, crowd=True)
    assert data.annotators == ("crowd 1", "crowd 2")
    data.table.check()
    assert set(np.unique(data.read("B01")["masks"])) == {0, 1}


def test_the_gold_standard_is_a_reference_on_request_only(root):
    with pytest.warns(UserWarning, match=r"equals the masks of Person2_ImageJ in datasets 1 to 3"):
        data = BUBILDataModule(root, reference="gold")
    np.testing.assert_array_equal(data.read("B04")["reference"].numpy(), cell_of("B04"))
    (root / "BU-BIL_Dataset1/GoldStandard/seg_B04.png").unlink()
    with pytest.raises(ValueError, match=r"reference='gold': .*B04\.png has no mask in GoldSt"):
        BUBILDataModule(root, reference="gold")


# What is wrong with a folder


def test_missing_folders(root):
    with pytest.raises(FileNotFoundError, match=r"root: .*nowhere is no folder\. Expected this la"):
        BUBILDataModule(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no folder RawImages\. Expected this layout"):
        BUBILDataModule(root / EXPERTS)
    experts = root / EXPERTS
    for annotator in experts.iterdir():
        annotator.rename(root / annotator.name)
    with pytest.raises(FileNotFoundError, match=r"ExpertsAnnotations holds no annotators' folders"):
        BUBILDataModule(root)
    experts.rmdir()
    with pytest.raises(FileNotFoundError, match=r"Dataset1 has no folder ExpertsAnnotations\."):
        BUBILDataModule(root)


def test_missing_crowd_and_images(root):
    (root / CROWD).rename(root / "crowd")
    with pytest.raises(FileNotFoundError, match=r"crowd: .*CrowdsourcedAnnotations is no folder"):
        BUBILDataModule(root, crowd=True)
    for image in (root / "BU-BIL_Dataset1/RawImages").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"RawImages holds no image files"):
        BUBILDataModule(root)


@pytest.mark.parametrize("name", ["seg_B99.png", "mask_B01.png"])
def test_a_mask_without_an_image_or_with_another_prefix(root, name):
    save(root / EXPERTS / "Person1_Amira" / name, drawn(cell_of("B01")))
    with pytest.raises(ValueError, match=rf"Person1_Amira/{name} belongs to no image"):
        BUBILDataModule(root)


def test_two_masks_of_one_image(root):
    save(root / EXPERTS / "Person1_Amira/B03.png", drawn(cell_of("B03")))
    with pytest.raises(ValueError, match=r"B03\.png and .*Seg_B03\.png are both b03, expected one"):
        BUBILDataModule(root)


def test_an_annotator_without_masks(root):
    (root / EXPERTS / "Person9_Amira").mkdir()
    with pytest.raises(ValueError, match="Person9_Amira has no mask, expected at least one"):
        BUBILDataModule(root)


@pytest.mark.parametrize("argument", ["annotators", "exclude_annotators"])
def test_unknown_annotators(root, argument):
    with pytest.raises(ValueError, match=rf"{argument}: 'Ann' is nobody .*some of Person1_Amira"):
        BUBILDataModule(root, **{argument: ["Ann"]})


def test_nobody_is_left(root):
    with pytest.raises(ValueError, match="leave nobody of Person1_Amira, Person2_ImageJ"):
        BUBILDataModule(root, ["Person1_Amira"], ["Person1_Amira"])


def test_a_mask_of_another_size(root):
    save(root / EXPERTS / "Person1_Amira/Seg_B05.png", np.zeros((60, 70), np.uint8))
    data = BUBILDataModule(root)
    with pytest.raises(
        ValueError, match=r"Seg_B05\.png is 70 x 60 pixels, but its image .*50 x 40"
    ):
        data.table.check()


@columns_are_no_persons
def test_a_crowd_mask_that_fits_nowhere(root):
    save(root / CROWD / "mturk_annotation1-1/seg_B05.png", np.zeros((6, 7), np.uint8))
    data = BUBILDataModule(root, crowd=True)
    with pytest.raises(
        ValueError, match=r"seg_B05\.png .*is 7 x 6 pixels, but its image .*50 x 40"
    ):
        data.table.check()


def test_a_broken_mask_is_named(root):
    (root / EXPERTS / "Person1_Amira/Seg_B05.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"Seg_B05\.png"):
        BUBILDataModule(root).table.check()


def test_a_mask_of_16_bits(tmp_path):
    save(tmp_path / "seg_B01.png", np.zeros((2, 2), np.uint16))
    with pytest.raises(ValueError, match=r"seg_B01\.png has more than 8 bits a pixel, expected bl"):
        BUBILPictures().mask(tmp_path / "seg_B01.png")


# The real data


def test_the_real_dataset_1(data_root):
    root = data_root / "BU-BIL"
    with pytest.warns(UserWarning, match="crowd|gold"):
        data = BUBILDataModule(root, crowd=True, reference="gold")
    assert len(data.table) == 35
    experts = [name for name in data.annotators if name.startswith("Person")]
    assert len(experts) == 10
    assert len(data.annotators) == 17
    for sample in (data.table[0], data.table[34]):
        masks = dict(zip(data.annotators, sample.masks, strict=True))
        assert sample.present.all()
        np.testing.assert_array_equal(masks["Person2_Amira"], masks["Person2_ImageJ"])
        np.testing.assert_array_equal(sample.reference, masks["Person2_ImageJ"])
        areas = {name: (mask == 1).mean() for name, mask in masks.items()}
        assert areas["Person1_ImageJ"] < areas["Person5_Amira"] < 0.25
        for name in set(data.annotators) - set(experts):  # who draw coarsely, but at that place
            both = (masks[name] == 1) & (sample.reference == 1)
            assert 2 * both.sum() / ((masks[name] == 1).sum() + sample.reference.sum()) > 0.5
