"""Tables of samples: decoding, class ids, splits, and the messages for bad input."""

import random
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from reading import read_image
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.labels import labels_from_values
from tax_lightning.data.pixels import Pictures, find_images, read_mask, read_size
from tax_lightning.data.samples import Sample, SampleTable
from tax_lightning.data.splits import fold_groups, split_groups
from tax_lightning.windows import Window, cover

CLASSES = ("background", "cell")
GREY = {0: "background", 255: "cell"}


def make_table(samples, annotators=("Ann", "Bob"), classes=CLASSES, **kwargs) -> SampleTable:
    return SampleTable(tuple(samples), tuple(annotators), tuple(classes), **kwargs)


@pytest.fixture
def checker() -> np.ndarray:
    return np.array([[0, 255, 0], [255, 255, 0]], np.uint8)


# Images


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bit_images_of_any_mode(tmp_path, checker, mode, channels):
    path = save(tmp_path / "a.png", checker, mode)
    image = read_image(path, channels)
    assert image.dtype == np.uint8
    assert image.shape == (2, 3, channels)
    np.testing.assert_array_equal(image, checker[..., None].repeat(channels, 2))


def test_rgb_to_grey_uses_luminance(tmp_path):
    green = np.zeros((2, 2, 3), np.uint8)
    green[..., 1] = 255
    assert read_image(save(tmp_path / "a.png", green), channels=1)[0, 0].tolist() == [150]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_images(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", np.array([[0, 65535], [4095, 1]], np.uint16))
    image = read_image(path, 3)
    assert image.dtype == np.float32
    assert image.shape == (2, 2, 3)
    np.testing.assert_allclose(image[..., 1], [[0, 1], [4095 / 65535, 1 / 65535]], rtol=1e-6)


def test_the_intensity_range_scales_deep_images(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 4095]], np.uint16))
    np.testing.assert_allclose(read_image(path, 1, intensity_range=(0, 4095))[..., 0], [[0, 1]])


def test_floating_point_images_need_a_known_range(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0.0, 0.5]], np.float32))
    np.testing.assert_allclose(read_image(path, 1)[..., 0], [[0, 0.5]])
    path = save(tmp_path / "b.tif", np.array([[0.0, 900.0]], np.float32))
    with pytest.raises(ValueError, match=r"b\.tif .* from 0\.0 to 900\.0.*intensity_range"):
        read_image(path, 1)
    np.testing.assert_allclose(read_image(path, 1, intensity_range=(0, 1800))[..., 0], [[0, 0.5]])


def test_broken_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half.png", "text.png", "absent.png"):
        with pytest.raises(ValueError, match=rf"Cannot read .*{name}"):
            read_image(tmp_path / name)


def test_stacks_of_pages_are_refused(tmp_path, checker):
    page = Image.fromarray(checker)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(ValueError, match=r"a\.tif holds 3 pages"):
        read_image(tmp_path / "a.tif")


# Masks


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA"])
def test_masks_of_any_grey_mode(tmp_path, checker, mode):
    path = save(tmp_path / "a.png", checker, mode)
    np.testing.assert_array_equal(read_mask(path), checker)


def test_one_bit_masks_as_class_ids(tmp_path, checker):
    path = save(tmp_path / "a.png", checker, "1")
    np.testing.assert_array_equal(read_mask(path, white=1), checker // 255)


def test_palette_masks_give_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1], [2, 1]]


def test_sixteen_bit_masks(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1000]], np.uint16))
    values = read_mask(path)
    meaning = {0: "background", 1000: "cell"}
    assert labels_from_values(values, CLASSES, meaning, path).tolist() == [[0, 1]]


def test_colour_masks_are_refused(tmp_path):
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = (255, 0, 0)
    mask = save(tmp_path / "a.png", colours)
    table = make_table([Sample("a", mask, {"Ann": mask})], mask_values=GREY)
    with pytest.raises(ValueError, match=r'a\.png holds .*"255,0,0".* say under mask_values'):
        table.check()
    named = {"0,0,0": "background", "255, 0,0": "cell"}
    assert replace(table, mask_values=named)[0].masks[0].tolist() == [[1, 0], [0, 0]]


def test_palettes_that_differ_are_no_class_ids(tmp_path):
    """The same picture, quantised twice: number 1 is the object in one, the ground in the other."""
    for name, palette in (("a", [0, 0, 0, 200, 0, 0]), ("b", [200, 0, 0, 0, 0, 0])):
        image = Image.fromarray(np.array([[0, 1]], np.uint8) ^ (name == "b"))
        image.putpalette(palette)
        image.save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    table = make_table([Sample("a", a, {"Ann": a, "Bob": b})])
    with pytest.raises(ValueError, match=r"a\.png and .*b\.png have palettes that differ: number"):
        table.check()
    named = {"0,0,0": "background", "200,0,0": "cell"}
    assert replace(table, mask_values=named)[0].masks.tolist() == [[[0, 1]], [[0, 1]]]


@given(
    st.lists(st.integers(0, 65535), min_size=3, max_size=6, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_labels_follow_mask_values(values, seed):
    classes = [f"class{index}" for index in range(len(values) - 1)]
    meaning = dict(zip(values, [*classes, "ignore"], strict=True))
    drawn = np.random.default_rng(seed).choice(values, (5, 4)).astype(np.uint16)
    labels = labels_from_values(drawn, classes, meaning, "mask.png")
    assert labels.dtype == np.uint8
    for value, label in zip(drawn.ravel().tolist(), labels.ravel().tolist(), strict=True):
        assert ("ignore" if label == IGNORE_INDEX else classes[label]) == meaning[value]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_only_known_values_become_labels(values):
    grey = np.array(values, np.int32)
    if set(values) <= {0, 1, 2}:
        assert labels_from_values(grey, ["a", "b", "c"], None, "mask.png").tolist() == values
    else:
        with pytest.raises(ValueError, match=r"Mask mask\.png holds the value"):
            labels_from_values(grey, ["a", "b", "c"], None, "mask.png")


def test_unknown_values_come_with_a_cure():
    grey = np.array([[0, 255]], np.uint8)
    with pytest.raises(ValueError, match=r"add mask_values: {0: background, 255: cell}") as caught:
        labels_from_values(grey, CLASSES, None, "ann/a.png")
    text = str(caught.value)
    assert "ann/a.png" in text
    assert "value(s) 255" in text
    assert "class ids 0..1 (background, cell)" in text


def test_stray_values_hint_at_jpeg():
    grey = np.arange(20, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"1, 2, 3, 4, 5, 6, 7, 8 and 11 more.*JPEG"):
        labels_from_values(grey, CLASSES, GREY, "a.jpg")


# Tables


def test_read_tells_absent_from_empty(tmp_path, checker):
    image = save(tmp_path / "image.png", checker)
    empty = save(tmp_path / "empty.png", np.zeros_like(checker))
    table = make_table([Sample("a", image, {"Bob": empty})], mask_values=GREY)
    raw = table[0]
    assert raw.present.tolist() == [False, True]
    assert (raw.masks[0] == IGNORE_INDEX).all()
    assert (raw.masks[1] == 0).all()
    assert raw.reference is None


def test_one_bit_masks_fit_both_codings(tmp_path, checker):
    image = save(tmp_path / "image.png", checker)
    sample = Sample("a", image, {"Ann": save(tmp_path / "m.png", checker, "1")})
    for mask_values, white in ((None, 1), (GREY, 255), ({0: "background", 1: "cell"}, 1)):
        table = make_table([sample], mask_values=mask_values, pictures=Pictures(white=white))
        raw = table[0]
        np.testing.assert_array_equal(raw.masks[0], checker // 255)


def test_missing_references_are_unknown_where_others_have_one(tmp_path, checker):
    image = save(tmp_path / "image.png", checker)
    table = make_table(
        [Sample("a", image, {"Ann": image}, reference=image), Sample("b", image, {"Ann": image})],
        mask_values=GREY,
    )
    np.testing.assert_array_equal(table[0].reference, checker // 255)
    assert (table[1].reference == IGNORE_INDEX).all()


def test_references_stay_unknown_in_a_split_without_any(tmp_path, checker):
    image = save(tmp_path / "image.png", checker)
    table = make_table(
        [
            Sample("a", image, {"Ann": image}, reference=image, split="train"),
            Sample("b", image, {"Ann": image}, split="val"),
        ],
        mask_values=GREY,
    )
    assert (table.select("val")[0].reference == IGNORE_INDEX).all()


def test_sizes_must_agree(tmp_path, checker):
    image = save(tmp_path / "image.png", checker)
    mask = save(tmp_path / "mask.png", checker.T.copy())
    table = make_table([Sample("a", image, {"Ann": mask})], mask_values=GREY)
    with pytest.raises(ValueError, match=r"mask\.png is 2 x 3 .*image\.png is 3 x 2"):
        table[0]


def test_check_opens_every_file(tmp_path, checker):
    good = save(tmp_path / "good.png", checker)
    samples = [Sample(f"s{n}", good, {"Ann": good, "Bob": good}) for n in range(20)]
    make_table(samples, mask_values=GREY).check()
    bad = save(tmp_path / "bad.png", checker // 2)
    samples[17] = Sample("s17", good, {"Ann": good, "Bob": bad})
    with pytest.raises(ValueError, match=r"bad\.png holds the value\(s\) 127"):
        make_table(samples, mask_values=GREY).check()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": ["cell"]}, r"classes: \[cell\].*e\.g\. \[background, cell\]"),
        ({"classes": ["a", "b", "a"]}, "classes: the name 'a' stands twice"),
        ({"classes": ["a", "ignore"]}, "'ignore' is reserved"),
        ({"annotators": []}, "annotators is empty"),
        ({"annotators": ["Ann", "Bob", "Ann"]}, "annotators: the name 'Ann' stands twice"),
        ({"mask_values": {0: "background", 1: "cel"}}, "value 1 means 'cel', which is no class"),
        ({"mask_values": {0: "background"}}, "no value means the class 'cell'"),
        ({"mask_values": {0: "background", -1: "cell"}}, "grey value -1, expected 0..65535"),
    ],
)
def test_bad_names_and_options(change, text):
    with pytest.raises(ValueError, match=text):
        make_table([], **change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"channels": 0}, "channels=0: expected 1"),
        ({"intensity_range": (4, 4)}, r"intensity_range \[4, 4\]: expected the value of black"),
    ],
)
def test_bad_options_of_pictures(change, text):
    with pytest.raises(ValueError, match=text):
        Pictures(**change)


# Plain PNG files, which OpenCV decodes


def write_png(path: Path, pixels: np.ndarray, **chunks: bytes) -> None:
    """A PNG file with further chunks before its pixels."""
    image = Image.fromarray(pixels)
    image.save(path)
    data = path.read_bytes()
    added = b"".join(
        struct.pack(">I", len(body))
        + kind.encode()
        + body
        + struct.pack(">I", zlib.crc32(kind.encode() + body))
        for kind, body in chunks.items()
    )
    path.write_bytes(data[:33] + added + data[33:])


@pytest.mark.parametrize("kind", ["grey", "RGB"])
@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"pHYs": b"\0\0\x0b\x12\0\0\x0b\x12\1", "tEXt": b"Software\0a program"},
        {"gAMA": struct.pack(">I", 220000)},
        {"tRNS": b"\0\x05\0\x06\0\x07"},
    ],
    ids=lambda chunks: "+".join(chunks) or "none",
)
def test_png_files_give_the_pixels_that_pillow_finds(tmp_path, kind, chunks):
    path = tmp_path / "a.png"
    if "tRNS" in chunks and kind == "grey":
        chunks = {"tRNS": chunks["tRNS"][:2]}
    write_png(path, noise(kind), **chunks)
    for channels, mode in ((1, "L"), (3, "RGB")):
        expected = np.asarray(Image.open(path).convert(mode)).reshape(70, 53, channels)
        found = read_image(path, channels)
        np.testing.assert_array_equal(found, expected, strict=True)
    if kind == "grey":
        np.testing.assert_array_equal(read_mask(path), noise(kind), strict=True)


def test_plain_png_files_are_not_left_to_pillow(tmp_path, monkeypatch):
    write_png(tmp_path / "grey.png", noise("grey"), tEXt=b"Software\0a program")
    write_png(tmp_path / "RGB.png", noise("RGB"))
    monkeypatch.setattr(Image, "open", refuse)
    np.testing.assert_array_equal(read_image(tmp_path / "RGB.png"), noise("RGB"))
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), noise("grey"))


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_png_files_spoilt_inside_are_named(tmp_path, place):
    path = save(tmp_path / "a.png", noise("grey"))
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    data[at : at + 9] = bytes(9)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.png"):
        read_mask(path)


# Windows


def noise(kind: str, height: int = 70, width: int = 53) -> np.ndarray:
    """Random pixels of a kind of picture."""
    rng = np.random.default_rng(0)
    if kind == "float":
        return rng.random((height, width), np.float32)
    shape = (height, width, 3) if kind == "RGB" else (height, width)
    high, dtype = (65536, np.uint16) if kind == "16-bit" else (256, np.uint8)
    return rng.integers(0, high, shape, dtype)


def write_pillow(path: Path, kind: str, **options) -> None:
    image = Image.fromarray(noise("RGB" if kind == "RGB" else "grey"))
    (image if kind in ("grey", "RGB") else image.convert(kind)).save(path, **options)


def write_tiff(path: Path, kind: str, **options) -> None:
    photometric = "rgb" if kind == "RGB" else "minisblack"
    tifffile.imwrite(path, noise(kind), **({"photometric": photometric} | options))


TILES = {"tile": (32, 16)}
STRIPS = {"rowsperstrip": 7}
TURNED = [(274, "H", 1, 6, True)]
PREDICTED = {"compression": "zlib", "predictor": True}
FILES = {
    **{f"{kind}.tif": (write_tiff, kind, {}) for kind in ("grey", "RGB", "16-bit", "float")},
    "other_bytes.tif": (write_tiff, "16-bit", {"byteorder": ">"}),
    "strips.tif": (write_tiff, "RGB", STRIPS),
    "tiles.tif": (write_tiff, "RGB", TILES),
    "tiles_16.tif": (write_tiff, "16-bit", {"byteorder": ">", **TILES}),
    "deflated.tif": (write_tiff, "RGB", {"compression": "zlib", **STRIPS}),
    "deflated_tiles.tif": (write_tiff, "grey", {"compression": "zlib", **TILES}),
    "predicted.tif": (write_tiff, "RGB", PREDICTED | STRIPS),
    "predicted_16.tif": (write_tiff, "16-bit", PREDICTED | TILES),
    **{f"{kind}.png": (write_pillow, kind, {}) for kind in ("grey", "RGB", "P", "1", "LA")},
    "16-bit.png": (lambda path, kind: save(path, noise(kind)), "16-bit", {}),
    "RGB.jpg": (write_pillow, "RGB", {}),
    "lzw.tif": (write_pillow, "RGB", {"compression": "tiff_lzw"}),
    "bits.tif": (write_pillow, "1", {}),
    "palette.tif": (write_pillow, "P", {}),
    "alpha.tif": (write_pillow, "RGBA", {}),
    "white_is_zero.tif": (write_tiff, "grey", {"photometric": "miniswhite"}),
    "predicted_float.tif": (write_tiff, "float", {"compression": "zlib", **STRIPS}),
}
WINDOWS = [Window(0, 0, 53, 53), Window(31, 17, 9, 20), Window(52, 52, 1, 1), Window(7, 0, 14, 53)]


@pytest.mark.parametrize("name", FILES)
def test_a_window_is_what_the_whole_picture_has_there(tmp_path, name):
    write, kind, options = FILES[name]
    write(tmp_path / name, kind, **options)
    reads = [Pictures(1).image, Pictures(3).image]
    if kind not in ("RGB", "RGBA", "float"):
        reads.append(Pictures().mask)
    for read in reads:
        whole = read(tmp_path / name)
        assert whole.shape[:2] == read_size(tmp_path / name)
        assert len(np.unique(whole)) > 1
        for window in WINDOWS:
            top, left, height, width = window
            part = read(tmp_path / name, window)
            assert part.dtype == whole.dtype.newbyteorder("=")
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def refuse(*args) -> None:
    raise AssertionError("the whole file was decoded")


def test_a_broken_off_tiff_file_is_named(tmp_path):
    write_tiff(tmp_path / "a.tif", "grey")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"Cannot read .*a\.tif"):
        read_mask(tmp_path / "a.tif")


def write_declared(path: Path, side: int) -> None:
    """A PNG file that says how large it is and holds no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    sums = struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 100) + b"IDAT"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + sums)


def test_huge_declared_sizes_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    write_declared(tmp_path / "huge.png", 60000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for read in (read_image, read_mask, read_size):
        with pytest.raises(ValueError, match=r"huge\.png is declared too large: .*3600000000"):
            read(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"huge\.png is declared too large"):
        read_image(tmp_path / "huge.png", window=Window(0, 0, 8, 8))


def test_large_pictures_are_read_without_a_warning(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (5000, 5000), 7).save(path, compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_size(path) == (5000, 5000)
        assert (read_mask(path) == 7).all()


# Patches


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_patches_cover_every_pixel_and_stay_inside(height, width, size, stride):
    windows = cover(height, width, size, min(stride, size))
    seen = np.zeros((height, width), int)
    for top, left, rows, columns in windows:
        assert (rows, columns) == (min(size, height), min(size, width))
        assert top + rows <= height
        assert left + columns <= width
        seen[top : top + rows, left : left + columns] += 1
    assert seen.min() == 1
    assert len(set(windows)) == len(windows)


def test_the_last_patches_are_moved_inwards():
    assert cover(5, 7, 3) == [Window(top, left, 3, 3) for top in (0, 2) for left in (0, 3, 4)]
    assert cover(4, 4, 4) == [Window(0, 0, 4, 4)]
    assert cover(2, 9, 4, 3) == [Window(0, left, 2, 4) for left in (0, 3, 5)]


@pytest.fixture
def large(tmp_path) -> SampleTable:
    """One image of 70 x 53 with a mask and a reference, and one of 8 x 8."""
    image, small = save(tmp_path / "large.png", noise("RGB")), tmp_path / "small.png"
    mask = save(tmp_path / "mask.png", noise("grey") // 128)
    reference = save(tmp_path / "reference.png", noise("grey") % 2)
    save(small, np.eye(8, dtype=np.uint8))
    return make_table(
        [
            Sample("large", image, {"Bob": mask}, reference, split="train"),
            Sample("small", small, {"Ann": small}, group="patient", split="val"),
        ]
    )


def test_patches_are_cut_from_image_masks_and_reference_alike(large):
    patches = large.in_patches(32, 30)
    assert patches.ids == (
        *(f"large@{top},{left}" for top in (0, 30, 38) for left in (0, 21)),
        "small",
    )
    whole = large[0]
    for sample, raw in zip(patches.samples[:-1], patches, strict=False):
        inside = np.s_[sample.window.top :, sample.window.left :]
        np.testing.assert_array_equal(raw.image, whole.image[inside][:32, :32])
        np.testing.assert_array_equal(raw.masks[1], whole.masks[1][inside][:32, :32])
        np.testing.assert_array_equal(raw.reference, whole.reference[inside][:32, :32])
        assert (raw.masks[0] == IGNORE_INDEX).all()
        assert raw.id == sample.id
        assert raw.present.tolist() == [False, True]


def test_patches_stay_in_the_group_and_the_split_of_their_image(large):
    patches = large.in_patches(32).samples
    assert {(sample.group_name, sample.split) for sample in patches} == {
        ("large", "train"),
        ("patient", "val"),
    }
    alone = replace(large, samples=tuple(replace(s, split=None) for s in large.samples))
    drawn = alone.in_patches(10).split_by_seed(0.0, 0.5)
    assert len({(sample.group_name, sample.split) for sample in drawn.samples}) == 2


def test_patches_can_be_cut_again(large):
    twice = large.in_patches(40).in_patches(20)
    assert twice.ids[5] == "large@0,13@0,20"
    assert twice.samples[5].window == Window(0, 33, 20, 20)


def test_patches_need_no_decoding(large, monkeypatch):
    for name in ("image", "mask"):
        monkeypatch.setattr(Pictures, name, refuse)
    assert len(large.in_patches(32)) == 7


def test_patches_of_masks_of_another_size_are_refused(large, tmp_path):
    save(tmp_path / "mask.png", noise("grey", 140, 106))
    with pytest.raises(ValueError, match=r"mask\.png is 106 x 140 .*large\.png is 53 x 70"):
        large.in_patches(32)


@pytest.mark.parametrize(
    ("size", "stride", "text"),
    [
        (0, None, "patch size 0: expected a number of pixels from 1 up"),
        (8, 9, r"patch stride 9: expected 1\.\.8, the patch size"),
        (8, 0, r"patch stride 0: expected 1\.\.8"),
    ],
)
def test_bad_patches(size, stride, text):
    with pytest.raises(ValueError, match=text):
        make_table([]).in_patches(size, stride)


# Bad samples


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([Sample("a", Path(), {}), Sample("a", Path(), {})], "Sample id 'a' stands twice"),
        ([Sample("a", Path(), {"Eve": Path()})], "mask of 'Eve', who is not among"),
        ([Sample("a", Path(), {}, split="dev")], "in split 'dev', expected one of train, val"),
        (
            [
                Sample("a", Path(), {}, group="patient7", split="train"),
                Sample("b", Path(), {}, group="patient7", split="test"),
            ],
            "Group 'patient7' lies in two splits, train and test",
        ),
    ],
)
def test_bad_samples(samples, text):
    with pytest.raises(ValueError, match=text):
        make_table(samples)


def test_select_knows_the_splits():
    with pytest.raises(ValueError, match="split='dev': expected one of train, val, test"):
        make_table([]).select("dev")


# Splits


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 9), min_size=3, max_size=25),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
    st.integers(0, 99),
)
def test_splits_keep_groups_whole_and_fill_every_split(sizes, val, test, seed):
    samples = [
        Sample(f"{group}#{n}", Path(), {}, group=group)
        for group, size in sizes.items()
        for n in range(size)
    ]
    table = make_table(samples).split_by_seed(val, test, seed)
    assert {sample.split for sample in table.samples} == {"train", "val", "test"}
    assert len({(sample.group, sample.split) for sample in table.samples}) == len(sizes)
    random.Random(seed).shuffle(samples)
    again = make_table(samples).split_by_seed(val, test, seed)
    assert {s.id: s.split for s in again.samples} == {s.id: s.split for s in table.samples}


@pytest.mark.parametrize("seed", range(5))
def test_splits_come_close_to_their_fractions(seed):
    sizes = {f"patient{n}": 1 + n % 4 for n in range(40)}
    splits = split_groups(sizes, 0.2, 0.1, seed)
    for split, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        count = sum(size for name, size in sizes.items() if splits[name] == split)
        assert count == pytest.approx(share * sum(sizes.values()), abs=2)


def test_a_huge_group_goes_to_training():
    splits = split_groups({"huge": 50, "big": 40, **dict.fromkeys("abcdefghij", 1)}, 0.1, 0.1, 0)
    assert splits["huge"] == splits["big"] == "train"
    assert set(splits.values()) == {"train", "val", "test"}


def test_splits_differ_by_seed():
    sizes = dict.fromkeys(map(str, range(20)), 1)
    assert split_groups(sizes, 0.2, 0.2, 0) != split_groups(sizes, 0.2, 0.2, 1)


def test_a_fraction_of_zero_asks_for_no_split():
    assert set(split_groups({"a": 1, "b": 1}, 0.5, 0, 0).values()) == {"train", "val"}


def test_splits_that_would_stay_empty_are_named():
    with pytest.raises(ValueError, match=r"'test' got no samples: 2 group.*test_fraction to 0"):
        split_groups({"a": 5, "b": 5}, 0.2, 0.2, 0)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (1.0, 0.0)])
def test_fractions_must_leave_something_to_learn_from(val, test):
    with pytest.raises(ValueError, match="something is left for training"):
        split_groups({"a": 1, "b": 1, "c": 1}, val, test, 0)


# Folds


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 9), min_size=5, max_size=25),
    st.integers(3, 5),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 99),
)
def test_every_group_is_tested_in_exactly_one_fold(sizes, folds, val, seed):
    samples = [
        Sample(f"{group}#{n}", Path(), {}, group=group)
        for group, size in sizes.items()
        for n in range(size)
    ]
    random.Random(seed).shuffle(samples)
    tested = []
    for fold in range(folds):
        table = make_table(samples).split_by_fold(fold, folds, val, seed)
        placed = {(sample.group, sample.split) for sample in table.samples}
        assert len(placed) == len(sizes)
        assert {split for _, split in placed} == {"train", "test"} | ({"val"} if val else set())
        tested += [group for group, split in placed if split == "test"]
    assert sorted(tested) == sorted(sizes)


@given(st.integers(2, 40), st.integers(2, 10), st.integers(0, 99))
def test_folds_of_equal_groups_differ_by_one_at_most(groups, folds, seed):
    folds = min(folds, groups)
    fold_of = fold_groups({f"p{n}": 2 for n in range(groups)}, folds, seed)
    counts = np.bincount(list(fold_of.values()), minlength=folds)
    assert counts.sum() == groups
    assert counts.max() - counts.min() <= 1


def test_large_groups_share_no_fold_as_long_as_others_are_smaller():
    fold_of = fold_groups({"a": 6, "b": 3, "c": 3, "d": 5, "e": 1}, folds=3, seed=4)
    assert fold_of["b"] == fold_of["c"]
    assert fold_of["e"] == fold_of["d"]
    assert len({fold_of[name] for name in "abd"}) == 3


def test_folds_are_drawn_by_seed():
    sizes = dict.fromkeys(map(str, range(20)), 1)
    assert fold_groups(sizes, 4, 0) == fold_groups(dict(reversed(sizes.items())), 4, 0)
    assert fold_groups(sizes, 4, 0) != fold_groups(sizes, 4, 1)


@pytest.mark.parametrize(
    ("fold", "folds", "text"),
    [
        (0, 1, "folds=1: expected at least 2"),
        (0, 5, r"folds=5: expected at most one for each of the 4 group\(s\)"),
        (3, 3, r"fold=3: expected 0\.\.2, as folds=3"),
        (-1, 3, r"fold=-1: expected 0\.\.2"),
    ],
)
def test_bad_folds(fold, folds, text):
    table = make_table([Sample(name, Path(), {}) for name in "abcd"])
    with pytest.raises(ValueError, match=text):
        table.split_by_fold(fold, folds)


def test_a_fold_must_leave_groups_for_training_and_validation():
    table = make_table([Sample(name, Path(), {}) for name in "ab"])
    with pytest.raises(ValueError, match=r"'val' got no samples: 1 group.*val_fraction to 0"):
        table.split_by_fold(0, 2, val_fraction=0.2)
    assert [s.split for s in table.split_by_fold(0, 2, val_fraction=0).samples].count("test") == 1


# Folders


def test_find_images_passes_over_other_files(tmp_path, checker):
    for name in ("b.png", "a.JPG", "c d é.tif"):
        save(tmp_path / name, checker)
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == ["a", "b", "c d é"]


def test_find_images_refuses_one_name_twice(tmp_path, checker):
    save(tmp_path / "a.png", checker)
    save(tmp_path / "a.jpg", checker)
    with pytest.raises(ValueError, match=r"have the same name 'a'"):
        find_images(tmp_path)


def test_label_conventions_come_without_lightning():
    code = (
        "import sys; from tax_lightning.constants import IGNORE_INDEX; "
        "assert not {'lightning', 'torch', 'albumentations'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
