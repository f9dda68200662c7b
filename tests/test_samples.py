"""Tables of samples: decoding, class ids, splits, and the messages for bad input."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tax_lightning.data.files import Part, Pictures, Window, find_images, read_image, read_mask
from tax_lightning.data.labels import IGNORE_INDEX, labels_from_values
from tax_lightning.data.samples import Sample, SampleTable, split_groups

CLASSES = ("background", "cell")
GREY = {0: "background", 255: "cell"}


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


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


def test_max_value_scales_deep_images(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 4095]], np.uint16))
    np.testing.assert_allclose(read_image(path, 1, max_value=4095)[..., 0], [[0, 1]])


def test_floating_point_images_need_a_known_range(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0.0, 0.5]], np.float32))
    np.testing.assert_allclose(read_image(path, 1)[..., 0], [[0, 0.5]])
    path = save(tmp_path / "b.tif", np.array([[0.0, 900.0]], np.float32))
    with pytest.raises(ValueError, match=r"b\.tif holds values from 0\.0 to 900\.0.*max_value"):
        read_image(path, 1)
    np.testing.assert_allclose(read_image(path, 1, max_value=1800)[..., 0], [[0, 0.5]])


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
    with pytest.raises(ValueError, match=r"a\.png is a colour .* \(mode RGB\)"):
        read_mask(save(tmp_path / "a.png", colours))


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
        table = make_table([sample], mask_values=mask_values, decoder=Pictures(set_pixel=white))
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
        ({"channels": 4}, "channels=4: expected 1"),
        ({"max_value": 0}, "max_value=0: expected a number above 0"),
    ],
)
def test_bad_options_of_pictures(change, text):
    with pytest.raises(ValueError, match=text):
        Pictures(**change)


def test_pictures_read_no_parts_of_files(tmp_path, checker):
    part = Part(save(tmp_path / "a.png", checker), 3)
    with pytest.raises(ValueError, match=r"a\.png \[3\]: expected a file with one picture"):
        Pictures().mask(part)


def test_a_window_is_what_the_whole_picture_has_there(tmp_path, checker):
    path = save(tmp_path / "a.png", checker)
    window = Window(top=1, left=0, height=1, width=2)
    for read in (Pictures().image, Pictures().mask):
        np.testing.assert_array_equal(read(path, window), read(path)[1:2, 0:2])


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
        "import sys; from tax_lightning.data.samples import IGNORE_INDEX; "
        "assert not {'lightning', 'torch', 'albumentations'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
