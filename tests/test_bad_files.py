"""Odd and broken input: read correctly, or refused before training with the file and the cure."""

import os
import struct
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reading import read_image
from written_files import save

from tax_lightning.__main__ import main
from tax_lightning.data import FolderDataModule
from tax_lightning.data.pixels import read_mask, read_size
from tax_lightning.refusals import refusal

GREY = {0: "background", 255: "cell"}
SPLITS = dict(
    zip([f"cell{i}" for i in range(5)], ["train", "train", "train", "val", "test"], strict=True)
)
MASK = np.zeros((8, 10), np.uint8)
MASK[2:5, 3:9] = 1
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
TURNED = Image.Exif()
TURNED[274] = 3


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    pixels: np.ndarray,
    kind: int = 0,
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
    more: bytes = b"",
) -> bytes:
    """A PNG file, written by hand where Pillow cannot: 16-bit colours, Adam7, a false size."""
    height, width = size or pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    starts = [(0, 0, 1, 1)]
    if interlaced:
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        starts += [(0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[top::down, left::right] for top, left, down, right in starts]
    rows = [
        b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes()
        for part in passes
        if part.shape[1]
        for row in part
    ]
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + more + chunk(b"IEND", b"")


@pytest.fixture
def root(tmp_path) -> Path:
    """Five images of 10 x 8 pixels with masks of Ann and Bob, which a test then spoils."""
    for name in SPLITS:
        save(tmp_path / f"images/{name}.png", IMAGE)
        for annotator in ("Ann", "Bob"):
            save(tmp_path / f"masks/{annotator}/{name}.png", 255 * MASK)
    write_splits(tmp_path)
    return tmp_path


def write_splits(root: Path, head: str = "name,split", coding: str = "utf-8", **split_of) -> None:
    lines = [head, *(f"{name},{split}" for name, split in (SPLITS | split_of).items())]
    (root / "samples.csv").write_bytes("\r\n".join(lines).encode(coding))


def load(root: Path, **options) -> FolderDataModule:
    return FolderDataModule(root, ["background", "cell"], **({"mask_values": GREY} | options))


def replace_file(root: Path, name: str, write: Callable[[Path], object]) -> Path:
    """Write a file in place of the ``.png`` of its name, whatever its own extension."""
    path = root / name
    path.with_suffix(".png").unlink(missing_ok=True)
    write(path)
    return path


def refused(root: Path, *texts: str, **options) -> str:
    """What is said before training starts, which the command line shows without a traceback."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(root, **options).setup("fit")
    assert refusal(caught.value) is caught.value
    said = str(caught.value)
    for text in texts:
        assert text in said
    return said


# Files that are read


def content(pixels: np.ndarray, suffix: str, mode: str | None = None, **options):
    """What saves the pixels under a name with this extension."""
    return suffix, lambda path: save(path, pixels, mode, **options)


def raw(data: bytes):
    return "png", lambda path: path.write_bytes(data)


def tiff(pixels: np.ndarray, **options):
    return "tif", lambda path: tifffile.imwrite(path, pixels, **options)


def palette(path: Path, **options) -> None:
    image = Image.fromarray(MASK)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(path, **options)


DEEP = MASK.astype(np.uint16)
GREY_16 = {0: "background", 65535: "cell"}
CLASS_IDS = None
OPAQUE = np.stack([255 * MASK, np.full_like(MASK, 255)], 2)
CLEAR = np.stack([np.zeros_like(MASK), 255 * MASK], 2)  # drawn in the transparency alone
COLOURS = np.stack([255 * MASK, MASK, MASK], 2)
MASKS = {
    "16-bit class ids": (content(DEEP, "png"), CLASS_IDS),
    "16-bit black and white": (content(65535 * DEEP, "png"), GREY_16),
    "16-bit TIFF": (tiff(65535 * DEEP, byteorder=">"), GREY_16),
    "32-bit class ids": (tiff(MASK.astype(np.int32)), CLASS_IDS),
    "64-bit class ids": (tiff(MASK.astype(np.int64)), CLASS_IDS),
    "class ids as float": (tiff(MASK.astype(np.float32)), CLASS_IDS),
    "truth values": (tiff(MASK > 0), GREY),
    "white is the lowest": (tiff(255 * MASK, photometric="miniswhite"), GREY),
    "16-bit RGB": (raw(png(np.dstack([DEEP] * 3), 2)), CLASS_IDS),
    "16-bit RGB TIFF": (tiff(np.dstack([DEEP] * 3), photometric="rgb"), CLASS_IDS),
    "palette": (("png", palette), CLASS_IDS),
    "palette with transparency": (("png", lambda p: palette(p, transparency=0)), CLASS_IDS),
    "palette in a GIF": (("gif", palette), CLASS_IDS),
    "LA": (content(OPAQUE, "png"), GREY),
    "RGBA": (content(255 * MASK, "png", "RGBA"), GREY),
    "RGB of equal channels": (content(255 * MASK, "png", "RGB"), GREY),
    "1-bit as white": (content(255 * MASK, "png", "1"), GREY),
    "1-bit as class ids": (content(255 * MASK, "png", "1"), CLASS_IDS),
    "1-bit TIFF listed as 1": (content(255 * MASK, "tif", "1"), {0: "background", 1: "cell"}),
    "1-bit BMP": (content(255 * MASK, "bmp", "1"), CLASS_IDS),
    "interlaced": (raw(png(255 * MASK, interlaced=True)), GREY),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_read(root, name):
    (suffix, write), mask_values = MASKS[name]
    for mask in root.glob("masks/*/*.png"):
        save(mask, MASK, "L") if mask_values is None else save(mask, 255 * MASK)
    if mask_values not in (None, GREY):
        for mask in root.glob("masks/*/*.png"):
            save(mask, (max(mask_values) * MASK.astype(np.uint16)))
    replace_file(root, f"masks/Ann/cell1.{suffix}", write)
    data = load(root, mask_values=mask_values)
    data.setup("fit")
    np.testing.assert_array_equal(data.read("cell1")["masks"][0].numpy(), MASK)


def test_a_mask_of_one_value(root):
    save(root / "masks/Ann/cell1.png", np.full_like(MASK, 255))
    assert (load(root).read("cell1")["masks"][0] == 1).all()


LIGHT = IMAGE[..., 0]
IMAGES = {
    "interlaced": (raw(png(IMAGE, 2, interlaced=True)), IMAGE),
    "with transparency": (content(np.dstack([IMAGE, LIGHT]), "png"), IMAGE),
    "upright by EXIF": (
        raw(
            png(
                IMAGE,
                2,
                more=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\1\0\0\0\0\0\0"),
            )
        ),
        IMAGE,
    ),
    "CMYK": (
        ("jpg", lambda p: Image.new("CMYK", (10, 8), (0, 255, 0, 0)).save(p, quality=100)),
        np.broadcast_to(np.array([255, 0, 255]), IMAGE.shape),
    ),
    "planes of a TIFF": (
        tiff(np.ascontiguousarray(IMAGE.transpose(2, 0, 1)), photometric="rgb"),
        IMAGE,
    ),
    "16-bit RGB": (raw(png(257 * IMAGE.astype(np.uint16), 2)), IMAGE),
    "float TIFF": (tiff((LIGHT / 255).astype(np.float32)), LIGHT[..., None].repeat(3, 2)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_read(root, name):
    (suffix, write), expected = IMAGES[name]
    replace_file(root, f"images/cell1.{suffix}", write)
    data = load(root)
    data.setup("fit")
    found = data.to_picture(data.read("cell1")["image"]).astype(int)
    assert np.abs(found - expected).max() <= (1 if suffix == "jpg" else 0)


def test_twelve_bits_in_sixteen_take_their_white(root):
    deep = (LIGHT.astype(np.uint16) * 16)[..., None]
    for image in root.glob("images/*.png"):
        save(image, deep[..., 0])
    data = load(root, intensity_range=(0, 4080))
    np.testing.assert_array_equal(
        data.to_picture(data.read("cell1")["image"]), LIGHT[..., None].repeat(3, 2)
    )


# Files that are refused


def cut_at(share: float):
    """A mask of noise that breaks off at a share of its bytes."""
    noise = png(np.random.default_rng(1).integers(0, 2, (8, 10), np.uint8) * 255)
    return raw(noise[: int(share * len(noise))])


def spoilt(kind: bytes):
    """A mask with a bit of the checksum of a chunk turned over."""
    data = bytearray(png(255 * MASK))
    start = data.index(kind)
    length = struct.unpack(">I", data[start - 4 : start])[0]
    data[start + 4 + length] ^= 1
    return raw(bytes(data))


def stack(path: Path) -> None:
    page = Image.fromarray(255 * MASK)
    page.save(path, save_all=True, append_images=[Image.fromarray(254 * (1 - MASK))])


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


WHOLE = ("Cannot read", "replace it or remove it")
BAD_MASKS = {
    **{f"cut at {share}": (cut_at(share), WHOLE) for share in (0.02, 0.2, 0.5, 0.7, 0.9)},
    "checksum of the header": (spoilt(b"IHDR"), WHOLE),
    "checksum of the pixels": (spoilt(b"IDAT"), WHOLE),
    "no byte": (raw(b""), WHOLE),
    "text": (raw(b"cell1: see the other folder"), WHOLE),
    "folder": (("png", Path.mkdir), WHOLE),
    "link to nothing": (("png", lambda p: p.symlink_to("gone.png")), WHOLE),
    "link to itself": (("png", to_itself), WHOLE),
    "half of a JPEG": (
        ("jpg", lambda p: p.write_bytes(save(p, 255 * MASK).read_bytes()[:200])),
        WHOLE,
    ),
    "half of a TIFF": (("tif", lambda p: p.write_bytes(save(p, MASK).read_bytes()[:60])), WHOLE),
    "huge": (raw(png(MASK, size=(60000, 60000))), ("declared too large", "Cut it")),
    "too few rows": (raw(png(255 * MASK[:5], size=(8, 10))), ("lacks pixels", "Replace it")),
    "JPEG with stray values": (content(255 * MASK, "jpg"), ("JPEG", "Export it anew as PNG")),
    "JPEG of class ids": (content(MASK, "jpg"), ("JPEG", "Export it anew as PNG")),
    "stray values": (content(250 * MASK, "png"), ("value(s) 250", "say under mask_values")),
    "LA with its drawing in the alpha": (content(CLEAR, "png"), ("transparent", "Flatten it")),
    "RGBA with holes": (
        content(np.dstack([255 * np.dstack([MASK] * 3), 255 - 55 * MASK]), "png"),
        ("transparent", "Flatten it"),
    ),
    "RGB of unequal channels": (content(COLOURS, "png"), ('"255,1,1"', "say under mask_values")),
    "16-bit LA": (raw(png(np.dstack([DEEP, DEEP]), 4)), ("16 bits a channel", "16-bit grey")),
    "float": (tiff(MASK.astype(np.float32) / 2), ("float32", "Export it as")),
    "negative": (tiff(-MASK.astype(np.int32)), ("value(s) -1,", "Cure")),
    "pages": (("tif", stack), ("holds 2 pages", "Save every page")),
    "animated": (("gif", stack), ("holds 2 pages", "Save every page")),
    "a pixel larger": (content(np.pad(MASK, (0, 1)), "png"), ("11 x 9", "10 x 8", "Export the")),
    "transposed": (content(MASK.T.copy(), "png"), ("8 x 10", "10 x 8", "Export the mask")),
    "upside down by EXIF": (
        content(255 * MASK, "png", exif=TURNED),
        ("EXIF orientation 3", "Turn the pixels"),
    ),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_masks_that_are_refused(root, name):
    (suffix, write), texts = BAD_MASKS[name]
    path = replace_file(root, f"masks/Ann/cell1.{suffix}", write)
    refused(root, str(path), *texts)


def deep(value: float):
    pixels = np.full((8, 10), 0.5, np.float32)
    pixels[3, 4] = value
    return tiff(pixels)


BAD_IMAGES = {
    "cut off": (cut_at(0.7), WHOLE),
    "huge": (raw(png(IMAGE, 2, size=(60000, 60000))), ("declared too large", "Cut it")),
    "NaN": (deep(np.nan), ("nan to nan", "intensity_range")),
    "infinite": (deep(np.inf), ("0.5 to inf", "intensity_range")),
    "negative": (deep(-1), ("-1.0 to 0.5", "Set intensity_range, e.g. [-1, 0.5]")),
    "above white": (deep(255), ("0.5 to 255.0", "Set intensity_range, e.g. [0.5, 255]")),
    "turned photograph": (content(IMAGE, "jpg", exif=TURNED), ("orientation 3", "Turn the")),
    "turned PNG": (content(IMAGE, "png", exif=TURNED), ("orientation 3", "Turn the pixels")),
    "turned behind the pixels": (
        raw(png(IMAGE, 2, more=chunk(b"eXIf", TURNED.tobytes()[6:]))),
        ("orientation 3", "Turn the pixels"),
    ),
    "turned TIFF": (tiff(IMAGE, extratags=[(274, "H", 1, 6, True)]), ("orientation 6", "Turn")),
    "pages": (("tif", stack), ("holds 2 pages", "Save every page")),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_are_refused(root, name):
    (suffix, write), texts = BAD_IMAGES[name]
    path = replace_file(root, f"images/cell4.{suffix}", write)
    write_splits(root, cell4="val")
    refused(root, str(path), *texts)


@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_a_huge_declared_size_takes_no_memory(tmp_path, read):
    path = tmp_path / "huge.png"
    path.write_bytes(png(MASK, size=(60000, 60000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"huge\.png is declared too large"):
        read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_files_without_permission_are_named(root):
    path = root / "masks/Ann/cell1.png"
    path.chmod(0)
    refused(root, str(path), "Permission denied")


def test_grey_values_that_are_no_class(root):
    """Without mask_values, 255 is no class id, and 0, 3, 7 are not 0, 1, 2."""
    path = root / "masks/Ann/cell0.png"
    refused(root, str(path), "add mask_values: {0: background, 255: cell}", mask_values=None)
    save(path, np.full_like(MASK, 255))
    refused(root, str(path), "value(s) 255", "say under mask_values", mask_values=None)
    save(path, np.array([[0, 3, 7]], np.uint8).repeat(8, 0).repeat(4, 1)[:, :10].copy())
    data = FolderDataModule(root, ["background", "cell", "nucleus"])
    with pytest.raises(ValueError, match=r"mask_values: \{0: background, 3: cell, 7: nucleus\}"):
        data.setup("fit")


@pytest.mark.parametrize(
    "values", [{"zero": "background"}, {"background": 0}, {"1,2": "cell"}, {"1,2,256": "cell"}]
)
def test_grey_values_are_numbers(root, values):
    refused(
        root,
        "is no grey value and no colour",
        "e.g. {0: background, 255: cell}",
        mask_values=values,
    )


# Folders


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_a_single_image(root):
    for path in root.rglob("cell[1-4].png"):
        path.unlink()
    (root / "samples.csv").unlink()
    refused(root, "'val' got no samples: 1 group(s)", "Add images", "val_fraction to 0")


def test_an_empty_folder_of_images(root):
    empty(root / "images")
    refused(root, str(root / "images"), "holds no image files", "images/NAME.png")


def test_an_annotator_without_a_mask(root):
    empty(root / "masks/Ann")
    refused(root, str(root / "masks/Ann"), "Add the masks")


def test_no_annotators(root):
    (root / "masks").rename(root / "labels")
    (root / "masks").mkdir()
    refused(root, str(root / "masks"), "holds no annotators' folders", "masks/ANNOTATOR/NAME.png")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("masks/Ben", "masks/Ben"),
        ("reference", "reference"),
        ("samples.csv", "samples.csv"),
    ],
)
@pytest.mark.parametrize("target", ["gone", "itself"])
def test_links_that_lead_nowhere_are_not_passed_over(root, place, text, target):
    path = root / place
    path.unlink(missing_ok=True)
    path.symlink_to(path.name if target == "itself" else "gone")
    refused(root, str(root / text), "a link that leads nowhere", "Mend it or remove it")


def test_links_are_followed(root):
    for name in ("images/cell1.png", "masks/Ann"):
        (root / name).rename(root / "elsewhere.png")
        (root / name).symlink_to(root / "elsewhere.png")
        data = load(root)
        data.setup("fit")
        np.testing.assert_array_equal(data.read("cell1")["masks"][0].numpy(), MASK)
        (root / name).unlink()
        (root / "elsewhere.png").rename(root / name)


def test_a_folder_within_itself_is_not_walked(root):
    (root / "images/again").symlink_to(root / "images")
    assert len(load(root).table) == 5


@pytest.mark.parametrize("name", ["Dr. Ann Lee", "Zoë", "李", "n" * 240])
def test_names_of_annotators(root, name):
    decomposed = unicodedata.normalize("NFD", name)
    (root / "masks/Bob").rename(root / "masks" / decomposed)
    assert load(root).annotators == ("Ann", unicodedata.normalize("NFC", name))
    assert load(root, annotators=[decomposed]).annotators == (name,)


def test_two_spellings_of_one_annotator(root):
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Zoë")
        save(root / f"masks/{name}/cell{1 + (form == 'NFD')}.png", 255 * MASK)
    refused(root, "have the same name 'Zoë'", str(root / "masks"), "put them together")


def test_names_that_differ_in_case_only(root):
    save(root / "images/CELL1.png", 255 - IMAGE)
    if (root / "images/cell1.png").read_bytes() == (root / "images/CELL1.png").read_bytes():
        pytest.skip("this file system does not tell them apart")
    save(root / "masks/Ann/CELL1.png", 255 * (1 - MASK))
    write_splits(root, CELL1="train")
    data = load(root)
    for name, image, mask in (("cell1", IMAGE, MASK), ("CELL1", 255 - IMAGE, 1 - MASK)):
        sample = data.read(name)
        np.testing.assert_array_equal(data.to_picture(sample["image"]), image)
        np.testing.assert_array_equal(sample["masks"][0].numpy(), mask)


@pytest.mark.parametrize("folder", ["images", "masks/Ann"])
def test_names_that_differ_in_the_extension_only(root, folder):
    save(root / folder / "cell1.tif", IMAGE)
    refused(root, str(root / folder / "cell1.tif"), "cell1.png", "delete or rename one")


@pytest.mark.parametrize("name", [".DS_Store", "._cell1.png", "Thumbs.db"])
def test_files_of_the_system_are_passed_over(root, name):
    for folder in ("", "images", "masks", "masks/Ann"):
        (root / folder / name).write_bytes(b"no picture")
    data = load(root)
    data.setup("fit")
    assert data.annotators == ("Ann", "Bob")
    assert len(data.table) == 5


@pytest.mark.parametrize("stray", ["cell01", "CELL1"])
def test_masks_without_an_image(root, stray):
    (root / "masks/Ann/cell1.png").rename(root / f"masks/Ann/{stray}.png")
    refused(root, f"{stray}.png belongs to no image", "nearest name is 'cell1'", "rename the file")


@pytest.mark.parametrize("name", ["cell1.npy", "cell1.json", "cell1"])
def test_masks_of_another_kind_do_not_count_as_missing(root, name):
    path = root / "masks/Ann" / name
    path.touch()
    load(root)  # beside a mask
    path.with_suffix(".png").unlink()
    refused(root, str(path), "would count as missing", "or move it away")


def test_long_names(root):
    name = "x" * 250
    for folder in ("images", "masks/Ann", "masks/Bob"):
        (root / folder / "cell1.png").rename(root / folder / f"{name}.png")
    refused(root, "there is no image named 'cell1'")
    write_splits(root)
    text = (root / "samples.csv").read_text()
    (root / "samples.csv").write_text(text.replace("cell1", name))
    np.testing.assert_array_equal(load(root).read(name)["masks"][0].numpy(), MASK)
    (root / "samples.csv").write_text(text.replace("cell1", "x" * 300))
    refused(root, "samples.csv, line 3: there is no image named", "x" * 300, "The nearest name is")


# Tables of splits


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("head", ["name,split", "Name , SPLIT"])
def test_tables_that_are_read(root, coding, head):
    write_splits(root, head, coding)
    assert {sample.id: sample.split for sample in load(root).table.samples} == SPLITS


def test_a_heading_in_capitals_does_not_lose_the_splits(root):
    lines = [f"{name},{split},{name}" for name, split in SPLITS.items()]
    (root / "samples.csv").write_text("\n".join(["Name,Split,Group", *lines]))
    assert {sample.id: sample.split for sample in load(root).table.samples} == SPLITS


BAD_TABLES = {
    "semicolons": (b"name;split\r\ncell0;train\r\n", ("name;split", "separated by commas")),
    "empty": (b"", ("expected name, and others",)),
    "no name": (b"image,split\ncell0,train\n", ("image, split", "expected name")),
    "unknown split": (b"name,split\ncell0,dev\n", ("line 2: split 'dev'", "train, val, test")),
    "twice": (b"name,split\ncell0,train\ncell0,val\n", ("line 3: 'cell0' stands twice",)),
    "incomplete": (b"name,split\ncell0,train\n", ("lacks 4 image(s)", "Add a line for each")),
    "UTF-16": ("name,split\n".encode("utf-16"), ("Save it as CSV in UTF-8",)),
    "huge cell": (b'name,split\n"' + b"x" * 140000, ("field larger", "Save it as CSV in UTF-8")),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_tables_that_are_refused(root, name):
    data, texts = BAD_TABLES[name]
    (root / "samples.csv").write_bytes(data)
    refused(root, str(root / "samples.csv"), *texts)


def test_groups_in_two_splits(root):
    lines = [f"{name},{split},patient" for name, split in SPLITS.items()]
    (root / "samples.csv").write_text("\n".join(["name,split,group", *lines]))
    refused(root, "Group 'patient' lies in two splits, train and val", "Put all of them into one")


# Wrong bytes anywhere


def encoded(kind: str, **options) -> bytes:
    stream = BytesIO()
    Image.fromarray(255 * MASK).save(stream, kind, **options)
    return stream.getvalue()


KINDS = {
    "png": png(255 * MASK),
    "tif": encoded("TIFF"),
    "deflated.tif": encoded("TIFF", compression="tiff_adobe_deflate"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
}


def attempt(read, path: Path):
    """The pixels, or the error that there are none."""
    try:
        return read(path)
    except ValueError as error:
        return error


@settings(max_examples=50)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    cut=st.floats(0.01, 1),
    flips=st.dictionaries(st.floats(0, 0.999), st.integers(1, 255), max_size=3),
)
def test_wrong_bytes_are_an_error_that_names_the_file(tmp_path_factory, kind, cut, flips):
    data = bytearray(KINDS[kind])
    data = data[: max(1, int(cut * len(data)))]
    for place, change in flips.items():
        data[int(place * len(data))] ^= change
    path = tmp_path_factory.getbasetemp() / f"bad.{kind}"
    path.write_bytes(data)
    for read in (read_mask, read_image):
        found = attempt(read, path)
        if isinstance(found, ValueError):
            assert str(path) in str(found)
            assert refusal(found) is found
        else:
            assert found.ndim in ((2, 3) if read is read_mask else (3,))
            if kind == "png" and read is read_mask:  # whose checksums tell of every change
                np.testing.assert_array_equal(found, 255 * MASK)


@pytest.mark.parametrize("kind", ["grey", "RGB", "16-bit"])
def test_no_change_to_a_png_file_goes_unnoticed(tmp_path, kind):
    whole = {"grey": LIGHT, "RGB": IMAGE, "16-bit": LIGHT.astype(np.uint16)}[kind]
    data = png(whole // 128 * 255, 2 if kind == "RGB" else 0)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = read_image(path)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        changed = attempt(read_image, path)
        path.write_bytes(data[:place])
        for found in (changed, attempt(read_image, path)):
            assert isinstance(found, ValueError) or np.array_equal(found, expected), place


# The command line


@pytest.fixture
def config(root, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("command") / "experiment.yaml"
    network = {"encoder": "tu-test_resnet.r160_in1k", "encoder_weights": None}
    options = {"root": str(root), "classes": ["background", "cell"], "mask_values": GREY}
    trainer = {"accelerator": "cpu", "logger": False, "default_root_dir": str(path.parent / "run")}
    data = {"class_path": "FolderDataModule", "init_args": options}
    model = {"class_path": "TAXLightningModule", "init_args": network}
    path.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    return path


@pytest.mark.parametrize("name", ["cut at 0.7", "pages", "JPEG of class ids"])
def test_the_command_says_one_line_and_writes_nothing(root, config, name, capsys):
    (suffix, write), texts = BAD_MASKS[name]
    path = replace_file(root, f"masks/Ann/cell1.{suffix}", write)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config)])
    said = stop.value.code  # a text: it is printed, and the exit status is 1
    assert isinstance(said, str)
    assert said.startswith("tax: error: ")
    lines = said.split("\n")
    assert len(lines) == (1 if len(said) < 290 else 2)
    for text in (str(path), *texts):
        assert text in " ".join(lines)
    assert "Traceback" not in capsys.readouterr().err
    assert [file for file in config.parent.rglob("*") if file.is_file()] == [config]


def test_grey_values_in_quotes_are_numbers_on_the_command_line(config, capsys):
    settings_ = yaml.safe_load(config.read_text())
    settings_["data"]["init_args"]["mask_values"] = {"0": "background", "255": "cell"}
    config.write_text(yaml.safe_dump(settings_))
    assert "'255'" in config.read_text()
    output = config.parent / "report"
    main(["inspect", "--config", str(config), f"--output={output}"])
    assert "Ann equals Bob on all 5 images" in capsys.readouterr().out
