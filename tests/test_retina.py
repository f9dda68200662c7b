"""STARE, CHASE_DB1 and DRIVE: what is read from each, and wrong files named."""

import gzip

import numpy as np
import pytest
from layouts_pictures import (
    ellipse,
    fit,
    photograph,
    vessels,
    write_chase,
    write_drive,
    write_stare,
)
from PIL import Image
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.files import Window
from tax_lightning.data.retina import (
    ChaseDataModule,
    DriveDataModule,
    GreyMasks,
    StareDataModule,
)

drive_warns = pytest.mark.filterwarnings("ignore:DRIVE. the annotator '1st' is two persons")


def check_vessels(sample, number: int, annotators: int = 2) -> None:
    for index in range(annotators):
        np.testing.assert_array_equal(sample["masks"][index].numpy(), vessels(number, index) // 255)


# STARE


@pytest.mark.parametrize("suffix", [".ppm", ".ppm.gz"])
def test_stare(tmp_path, suffix):
    data = StareDataModule(write_stare(tmp_path, suffix=suffix))
    assert data.annotators == ("ah", "vk")
    assert data.classes == ("background", "vessel")
    assert sorted(data.table.ids) == [f"im000{number}" for number in range(1, 9)]
    assert {sample.group for sample in data.table.samples} == {""}
    check_vessels(data.read("im0003"), 3)
    picture = data.to_picture(data.read("im0003")["image"])
    np.testing.assert_array_equal(picture, photograph((64, 72), 3))
    data.setup("fit")  # opens every file


def test_stare_without_some_files(tmp_path):
    write_stare(tmp_path)
    (tmp_path / "labels-vk" / "im0002.vk.ppm.gz").unlink()
    save(tmp_path / "stare-images" / "im0300.ppm", photograph((64, 72)))
    with pytest.warns(UserWarning, match=r"1 image\(s\) without a mask .*im0300\.ppm"):
        data = StareDataModule(tmp_path)
    assert data.read("im0002")["present"].tolist() == [True, False]
    (tmp_path / "labels-vk").rename(tmp_path / "labels")
    with pytest.raises(FileNotFoundError, match="no folder labels-vk with image files"):
        StareDataModule(tmp_path)


def test_stare_with_wrong_files(tmp_path):
    write_stare(tmp_path)
    file = tmp_path / "labels-ah" / "im0001.vk.ppm.gz"
    (tmp_path / "labels-ah" / "im0001.ah.ppm.gz").rename(file)
    with pytest.raises(ValueError, match=r"im0001\.vk\.ppm\.gz is named .* like im0001\.ah\.ppm"):
        StareDataModule(tmp_path)
    file = file.rename(file.with_name("im0099.ah.ppm.gz"))
    with pytest.raises(ValueError, match=r"im0099\.ah\.ppm\.gz belongs to no image"):
        StareDataModule(tmp_path)
    file = file.rename(file.with_name("im0001.ah.ppm.gz"))
    save(file, vessels(1, 0, (60, 72)))
    with pytest.raises(ValueError, match=r"im0001\.ah.* is 72 x 60 pixels, .* is 72 x 64"):
        StareDataModule(tmp_path).read("im0001")
    save(file, np.full((64, 72), 128, np.uint8))
    with pytest.raises(ValueError, match=r"holds the value\(s\) 128, expected 0 \(background\), 2"):
        StareDataModule(tmp_path).read("im0001")


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"no picture", mtime=0), b""],
    ids=["no gzip", "no picture", "empty"],
)
def test_broken_archives(tmp_path, content):
    write_stare(tmp_path)
    (tmp_path / "labels-ah" / "im0001.ah.ppm.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*im0001\.ah\.ppm\.gz: .* unpack it anew"):
        StareDataModule(tmp_path).read("im0001")


def test_cut_off_archives(tmp_path):
    file = save(tmp_path / "a.ppm.gz", photograph((64, 72)))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"Cannot read .*a\.ppm\.gz"):
        GreyMasks().image(file)


# CHASE_DB1


def test_chase(tmp_path):
    data = ChaseDataModule(write_chase(tmp_path), val_fraction=0.25, test_fraction=0.25)
    assert data.annotators == ("1stHO", "2ndHO")
    assert len(data.table) == 8
    check_vessels(data.read("Image_02R"), 2)
    splits = {}
    for sample in data.table.samples:
        splits.setdefault(sample.group, []).append(sample.split)
    assert sorted(splits) == ["01", "02", "03", "04"]
    assert all(left == right for left, right in splits.values())


def test_chase_with_wrong_files(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images of this data set"):
        ChaseDataModule(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        ChaseDataModule(tmp_path / "nowhere")
    write_chase(tmp_path)
    save(tmp_path / "Image_01L_3rdHO.png", vessels(1, 0))
    with pytest.raises(ValueError, match=r"Image_01L_3rdHO\.png is named .* Image_01L_1stHO"):
        ChaseDataModule(tmp_path)
    (tmp_path / "Image_01L_3rdHO.png").unlink()
    for path in tmp_path.glob("*_2ndHO.png"):
        path.unlink()
    with pytest.raises(ValueError, match="2ndHO has no mask, expected at least one"):
        ChaseDataModule(tmp_path)


# DRIVE


@drive_warns
def test_drive_uses_the_part_with_two_annotators(tmp_path):
    data = DriveDataModule(write_drive(tmp_path))
    assert data.annotators == ("1st", "2nd")
    assert sorted(data.table.ids) == [f"{number:02}" for number in range(1, 9)]
    assert {sample.split for sample in data.table.samples} == {"train", "val", "test"}
    check_vessels(data.read("03"), 3)
    assert IGNORE_INDEX not in data.read("03")["masks"]


@drive_warns
def test_drive_with_the_training_part(tmp_path):
    data = DriveDataModule(write_drive(tmp_path), use_training=True)
    assert len(data.table) == 16
    sample = data.read("22")
    assert sample["present"].tolist() == [True, False]
    check_vessels(sample, 2, annotators=1)


@drive_warns
@pytest.mark.parametrize("use_training", [False, True])
def test_drive_within_the_field_of_view(tmp_path, use_training):
    data = DriveDataModule(write_drive(tmp_path), use_training, field_of_view=True)
    inside = ellipse((64, 72), (32, 36), (31, 35))
    masks = data.read("05")["masks"].numpy()
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(mask == IGNORE_INDEX, ~inside)
        np.testing.assert_array_equal(mask[inside], vessels(5, index)[inside] // 255)
    data.setup("fit")


@drive_warns
def test_drive_in_patches(tmp_path):
    data = DriveDataModule(write_drive(tmp_path), field_of_view=True, patch_size=32)
    whole = DriveDataModule(tmp_path, field_of_view=True).read("05")["masks"]
    np.testing.assert_array_equal(data.read("05@32,40")["masks"], whole[:, 32:64, 40:72])


def test_drive_says_that_its_first_annotator_is_two(tmp_path):
    with pytest.warns(UserWarning, match="annotator '1st' is two persons"):
        DriveDataModule(write_drive(tmp_path))


@drive_warns
def test_drive_with_missing_files(tmp_path):
    write_drive(tmp_path)
    (tmp_path / "test" / "mask" / "04_test_mask.gif").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask has no field of view of 04_test\.tif"):
        DriveDataModule(tmp_path, field_of_view=True)
    DriveDataModule(tmp_path)
    (tmp_path / "training" / "images").rename(tmp_path / "training" / "pictures")
    with pytest.raises(FileNotFoundError, match=r"images is no folder, .* like 01_training\.tif"):
        DriveDataModule(tmp_path, use_training=True)
    (tmp_path / "test" / "2nd_manual").rename(tmp_path / "test" / "third")
    with pytest.raises(
        FileNotFoundError, match=r"2nd_manual is missing.*newer editions leave them"
    ):
        DriveDataModule(tmp_path)


@drive_warns
def test_drive_with_a_field_of_view_of_another_size(tmp_path):
    write_drive(tmp_path)
    save(tmp_path / "test" / "mask" / "04_test_mask.gif", np.full((60, 72), 255, np.uint8))
    with pytest.raises(ValueError, match=r"04_test_mask\.gif is 72 x 60 pixels, but .* 72 x 64"):
        DriveDataModule(tmp_path, field_of_view=True).read("04")


# The decoder


def test_white_is_255_in_every_kind_of_file(tmp_path):
    mask = vessels(3, 1)
    palette = Image.fromarray(mask // 255, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    files = {
        "palette.gif": palette,
        "bit.png": Image.fromarray(mask > 0),
        "grey.gif": Image.fromarray(mask),
        "colour.ppm": Image.fromarray(mask).convert("RGB"),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(GreyMasks().mask(tmp_path / name), mask)
        assert GreyMasks().size(tmp_path / name) == mask.shape
    window = Window(3, 5, 20, 30)
    np.testing.assert_array_equal(GreyMasks().mask(tmp_path / "bit.png", window), mask[3:23, 5:35])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "write"), [("stare", write_stare), ("chase", write_chase), ("drive", write_drive)]
)
def test_the_configurations_run(name, write, tmp_path):
    crop = '{"class_path": "albumentations.RandomCrop", "init_args": {"height": 32, "width": 32}}'
    fit(name, write(tmp_path / "data"), tmp_path, f"--data.init_args.train_transforms=[{crop}]")
