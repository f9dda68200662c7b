"""The cache of decoded samples: what is kept, when it is made anew, and who may share it."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.cache import CachedTable
from tax_lightning.data.files import Part, Pictures
from tax_lightning.data.samples import Sample, SampleTable

CLASSES = ("background", "cell", "debris")
SIZE = (21, 13)  # no multiple of eight pixels a row


def drawn(high: int, dtype=np.uint8, shape=SIZE) -> np.ndarray:
    return np.random.default_rng(high).integers(0, high, shape).astype(dtype)


@pytest.fixture
def table(tmp_path) -> SampleTable:
    """Labels of two classes, of three, of one, and an annotator who is absent."""
    root = tmp_path / "files"
    masks = {
        "Ann": save(root / "two.png", drawn(2)),
        "Cai": save(root / "three.png", drawn(3)),
        "Dee": save(root / "one.png", np.zeros(SIZE, np.uint8)),
    }
    image = save(root / "image.png", drawn(256, shape=(*SIZE, 3)))
    deep = save(root / "deep.png", drawn(65536, np.uint16))
    samples = (
        Sample("colour", image, masks, reference=masks["Cai"]),
        Sample("deep", deep, {"Bob": masks["Ann"]}),
    )
    return SampleTable(samples, ("Ann", "Bob", "Cai", "Dee"), CLASSES)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(raw, other) -> None:
    assert raw.id == other.id
    for name in ("image", "masks", "present", "reference"):
        np.testing.assert_array_equal(getattr(raw, name), getattr(other, name), strict=True)


def refuse(*args) -> None:
    raise AssertionError("a file was decoded")


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it, and nothing can be decoded any more."""

    def forbid():
        for name in ("image", "mask"):
            monkeypatch.setattr(Pictures, name, refuse)

    return forbid


# What is kept


def test_samples_come_back_without_decoding(table, folder, no_decoding):
    expected = [table[0], table[1]]
    first = [CachedTable(table, folder)[index] for index in (0, 1)]
    no_decoding()
    again = [CachedTable(table, folder)[index] for index in (0, 1)]
    for raw, stored, looked_up in zip(expected, first, again, strict=True):
        assert_same(stored, raw)
        assert_same(looked_up, raw)
    assert again[1].image.dtype == np.float32
    assert len(entries(folder)) == 2
    assert (CachedTable(table, folder).ids, len(CachedTable(table, folder))) == (table.ids, 2)


def test_samples_from_the_cache_may_be_written_to(table, folder):
    cached = CachedTable(table, folder)
    for _ in range(2):
        raw = cached[0]
        for array in (raw.image, raw.masks, raw.reference):
            array[...] = 1
    assert_same(cached[0], table[0])


def test_labels_of_two_classes_take_a_bit_a_pixel(tmp_path, folder):
    image = save(tmp_path / "image.png", np.zeros((64, 64), np.uint8))
    two, three = (save(tmp_path / f"{n}.png", drawn(n, shape=(64, 64))) for n in (2, 3))
    blank = save(tmp_path / "blank.png", np.full((64, 64), 9, np.uint8))
    sizes = {}
    for name, mask in (("none", None), ("two", two), ("three", three), ("blank", blank)):
        sample = Sample(name, image, {} if mask is None else {"Ann": mask})
        meaning = {0: "background", 1: "cell", 2: "debris", 9: "ignore"}
        made = SampleTable((sample,), ("Ann",), CLASSES, meaning)
        assert_same(CachedTable(made, folder)[0], CachedTable(made, folder)[0])
        (path,) = set(entries(folder)) - set(sizes.values())
        sizes[name] = path
    none, *counts = (path.stat().st_size for path in sizes.values())
    assert none < 64 * 64 * 3 + 400
    differences = [count - none for count in counts]
    assert differences[0] == pytest.approx(64 * 8, abs=64)
    assert differences[1] == pytest.approx(64 * 64, abs=64)
    assert differences[2] == pytest.approx(0, abs=64)


@given(st.data())
def test_any_window_is_cut_from_the_entry(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("window")
    height, width = (data.draw(st.integers(1, 30), name) for name in ("height", "width"))
    side = data.draw(st.integers(1, 30), "side")
    image = save(root / "i.png", drawn(256, shape=(height, width)))
    masks = {name: save(root / f"{name}.png", drawn(n, shape=(height, width)))
             for n, name in ((2, "Ann"), (3, "Bob"))}  # fmt: skip
    whole = SampleTable((Sample("a", image, masks),), ("Ann", "Bob"), CLASSES)
    patches = whole.in_patches(side, data.draw(st.integers(1, side), "stride"))
    cached = CachedTable(patches, root / "cache")
    for turn in range(2):
        for index in data.draw(st.lists(st.integers(0, len(patches) - 1), max_size=4), str(turn)):
            assert_same(cached[index], patches[index])
    assert len(entries(root / "cache")) <= 1


def test_patches_share_the_entry_of_their_image(table, folder, no_decoding):
    patches = table.in_patches(8, 5)
    expected = [patches[index] for index in range(len(patches))]
    CachedTable(table, folder).check()
    no_decoding()
    cached = CachedTable(patches, folder)
    for index, raw in enumerate(expected):
        assert_same(cached[index], raw)
    assert len(entries(folder)) == 2


def test_references_stay_unknown_where_others_have_one(table, folder):
    cached = CachedTable(table, folder)
    for _ in range(2):
        assert (cached[1].reference == IGNORE_INDEX).all()
    alone = replace(table, samples=table.samples[1:], with_reference=False)
    assert CachedTable(alone, folder)[0].reference is None
    assert len(entries(folder)) == 1


# When it is made anew


def change_file(table: SampleTable) -> SampleTable:
    path = table.samples[0].masks["Ann"]
    save(path, 1 - drawn(2))
    os.utime(path, ns=(1, 1))
    return table


def change_time(table: SampleTable) -> SampleTable:
    os.utime(table.samples[0].image, ns=(1, 1))
    return table


CHANGES = {
    "file": change_file,
    "time": change_time,
    "classes": lambda table: replace(table, classes=("background", "nucleus", "debris")),
    "mask_values": lambda table: replace(
        table, mask_values={0: "background", 1: "debris", 2: "cell"}
    ),
    "decoder": lambda table: replace(table, decoder=Pictures(channels=1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_has_changed_replaces_the_old_entry(table, folder, change):
    table = replace(table, samples=table.samples[:1])
    CachedTable(table, folder).check()
    (old,) = entries(folder)
    table = change(table)
    assert_same(CachedTable(table, folder)[0], table[0])
    assert_same(CachedTable(table, folder)[0], table[0])
    (new,) = entries(folder)
    assert new != old


def test_the_order_of_grey_values_changes_nothing(table, folder, no_decoding):
    meaning = dict(enumerate(CLASSES))
    CachedTable(replace(table, mask_values=meaning), folder).check()
    no_decoding()
    CachedTable(replace(table, mask_values=dict(reversed(meaning.items()))), folder).check()


def test_tables_with_fewer_annotators_keep_their_own_entries(table, folder):
    fewer = replace(
        table,
        annotators=("Ann", "Cai"),
        samples=(replace(table.samples[0], masks={"Ann": table.samples[0].masks["Ann"]}),),
    )
    for _ in range(2):
        assert_same(CachedTable(table, folder)[0], table[0])
        assert_same(CachedTable(fewer, folder)[0], fewer[0])
    assert len(entries(folder)) == 2


def test_parts_of_one_file_have_an_entry_each(table, folder):
    class Numbered(Pictures):
        """Takes the key for the grey value of the whole picture."""

        def image(self, file, window=None):
            return np.full((*SIZE, 3), file.key, np.uint8)

    path = table.samples[0].image
    samples = tuple(Sample(f"slice{key}", Part(path, key), {}) for key in (3, 4))
    parts = replace(table, samples=samples, decoder=Numbered())
    for _ in range(2):
        assert [CachedTable(parts, folder)[index].image.max() for index in (0, 1)] == [3, 4]


SPOILS = {
    "broken off": lambda data: data[:-1],
    "too long": lambda data: data + b"\0",
    "half of its header": lambda data: data[:20],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a text": lambda data: b"Not pixels at all, whatever its name says." * 9,
    "of another format": lambda data: data.replace(b"pixels 1", b"pixels 0", 1),
    "of another header": lambda data: data.replace(b'"shape"', b'"shaqe"', 1),
    "of other pixels": lambda data: data.replace(b"|u1", b"<O8", 1),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_what_is_no_entry_is_replaced(table, folder, spoil, no_decoding):
    table = replace(table, samples=table.samples[:1])
    cached = CachedTable(table, folder)
    expected = cached[0]
    (path,) = entries(folder)
    whole = path.read_bytes()
    assert spoil(whole) != whole
    path.write_bytes(spoil(whole))
    assert_same(cached[0], expected)
    assert path.read_bytes() == whole
    no_decoding()
    assert_same(cached[0], expected)


def test_an_entry_under_another_name_is_not_believed(table, folder):
    cached = CachedTable(table, folder)
    expected = cached[1]
    cached.check()
    first, second = entries(folder)
    for source, target in ((first, second), (second, first)):
        target.write_bytes(source.read_bytes())
        assert_same(cached[1], expected)


# Checks, failures, several processes


def test_check_stores_every_image_and_decodes_none_twice(table, folder, no_decoding):
    CachedTable(table, folder).check()
    assert len(entries(folder)) == 2
    no_decoding()
    CachedTable(table, folder).check()


def test_broken_files_are_named_and_leave_no_entry(table, folder):
    path = table.samples[0].masks["Cai"]
    path.write_bytes(b"\x89PNG and no more")
    cached = CachedTable(table, folder)
    for read in (cached.check, lambda: cached[0]):
        with pytest.raises(ValueError, match=r"Cannot read .*three\.png"):
            read()
    assert all(path.stat().st_size for path in entries(folder))
    path.unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*three\.png"):
        cached[0]


def test_an_image_that_has_become_smaller_is_named(table, folder):
    patches = table.in_patches(8)
    path = table.samples[1].image
    save(path, drawn(65536, np.uint16, (10, 10)))
    save(table.samples[0].masks["Ann"], drawn(2, shape=(10, 10)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"deep\.png: Window\(top=13.* its 10 x 10 pixels"):
            CachedTable(patches, folder)[len(patches) - 1]


def test_a_write_that_fails_leaves_nothing(table, folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cache: cannot write .*pixels: .*No space left"):
        CachedTable(table, folder)[0]
    assert entries(folder) == []


def test_a_cache_in_the_place_of_a_file_is_named(table, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cache: cannot write .*choose another folder"):
        CachedTable(table, tmp_path / "file")[0]


def read_all(cached: CachedTable) -> list:
    return [cached[index] for index in (0, 1) for _ in range(3)]


def test_processes_share_the_folder(table, folder):
    cached = CachedTable(table, folder)
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        for raws in pool.map(read_all, [cached] * 3):
            for raw, index in zip(raws, (0, 0, 0, 1, 1, 1), strict=True):
                assert_same(raw, table[index])
    assert len(entries(folder)) == 2
