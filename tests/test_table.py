"""The data module of a table: folds, patches, and the files that are opened for them."""

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from written_files import save

from tax_lightning.batch import unpacked
from tax_lightning.data import Sample, SampleTable, TableDataModule
from tax_lightning.data.pixels import Pictures

CLASSES = ("background", "cell")
SIZE = (20, 24)


@pytest.fixture
def table(tmp_path) -> SampleTable:
    """Eight images of four patients, and two annotators."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(8):
        image = save(tmp_path / f"images/{number}.png", rng.integers(0, 256, SIZE).astype(np.uint8))
        masks = {
            name: save(tmp_path / name / f"{number}.png", rng.integers(0, 2, SIZE).astype(np.uint8))
            for name in ("Ann", "Bob")
        }
        samples.append(Sample(f"cell{number}", image, masks, group=f"patient{number // 2}"))
    return SampleTable(tuple(samples), ("Ann", "Bob"), CLASSES)


def ids_of(loader) -> list[str]:
    return [name for batch in loader for name in batch["id"]]


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each file was decoded."""
    counts: Counter = Counter()

    def counted(read):
        def count_and_read(decoder, file, window=None):
            counts[file] += 1
            return read(decoder, file, window)

        return count_and_read

    for name in ("image", "mask"):
        monkeypatch.setattr(Pictures, name, counted(getattr(Pictures, name)))
    return counts


# Folds


@given(
    st.lists(st.integers(1, 4), min_size=5, max_size=12),
    st.integers(3, 5),
    st.sampled_from([0.0, 0.25]),
    st.integers(0, 99),
)
def test_every_group_is_tested_in_exactly_one_fold(sizes, folds, val, seed):
    samples = tuple(
        Sample(f"{group}-{n}", Path(), {"Ann": Path()}, group=f"g{group}")
        for group, size in enumerate(sizes)
        for n in range(size)
    )
    table = SampleTable(samples, ("Ann",), CLASSES)
    tested = []
    for fold in range(folds):
        data = TableDataModule(table, folds=folds, fold=fold, val_fraction=val, split_seed=seed)
        groups = {
            split: {sample.group for sample in data.table.select(split).samples}
            for split in ("train", "val", "test")
        }
        assert sum(map(len, groups.values())) == len(sizes)
        assert groups["train"]
        assert bool(groups["val"]) == (val > 0)
        tested += groups["test"]
    assert sorted(tested) == sorted(f"g{group}" for group in range(len(sizes)))


def test_folds_are_loaded(table):
    tested = []
    for fold in range(4):
        data = TableDataModule(table, folds=4, fold=fold, val_fraction=0.25, batch_size=1)
        data.setup("fit")
        data.setup("test")
        assert len(ids_of(data.train_dataloader())) == 4
        assert len(ids_of(data.val_dataloader())) == 2
        tested += ids_of(data.test_dataloader())
    assert sorted(tested) == sorted(table.ids)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"folds": 1}, "folds=1: expected at least 2"),
        ({"folds": 5}, r"folds=5: expected at most one for each of the 4 group\(s\)"),
        ({"folds": 2, "fold": 2}, r"fold=2: expected 0\.\.1, as folds=2"),
        ({"patch_stride": 4}, "patch_stride=4: expected patch_size too"),
        ({"patch_size": 0}, "patch size 0: expected a number of pixels from 1 up"),
        ({"patch_size": 8, "patch_stride": 9}, r"patch stride 9: expected 1\.\.8"),
    ],
)
def test_bad_options(table, options, text):
    with pytest.raises(ValueError, match=text):
        TableDataModule(table, **options)


def test_folds_are_not_drawn_where_the_data_set_has_splits(table):
    table = replace(table, samples=tuple(replace(s, split="train") for s in table.samples))
    with pytest.raises(ValueError, match="folds=2: the data set says which image is in which"):
        TableDataModule(table, folds=2)


# Patches


def test_patches_of_all_splits(table):
    options = {"val_fraction": 0.25, "test_fraction": 0.25, "train_transforms": []}
    data = TableDataModule(table, patch_size=12, batch_size=2, **options)
    whole = TableDataModule(table, **options)
    for stage in ("fit", "test"):
        data.setup(stage)
    for split, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        names = whole.table.select(split).ids
        expected = {f"{name}@{top},{left}" for name in names for top in (0, 8) for left in (0, 12)}
        seen = set()
        for batch in loader:
            assert batch["image"].shape[-2:] == (12, 12)
            for place, patch in enumerate(batch["id"]):
                name, at = patch.split("@")
                top, left = map(int, at.split(","))
                inside = (..., slice(top, top + 12), slice(left, left + 12))
                sample = whole.read(name)
                assert torch.equal(unpacked(batch)["image"][place], sample["image"][inside])
                labels, whole_labels = batch["masks"][place], sample["masks"][inside]
                known = labels != 255  # val and test count a pixel in one patch only
                assert torch.equal(labels[known], whole_labels[known])
                seen.add(patch)
        assert seen == expected
    assert data.read(f"{names[0]}@8,12")["image"].shape == (3, 12, 12)


def test_patches_of_an_image_share_its_split(table):
    data = TableDataModule(table, patch_size=8, folds=4, val_fraction=0.25)
    groups = {split: {s.group for s in data._source(split).samples} for split in ("train", "test")}
    assert len(groups["train"]) == 2
    assert len(groups["test"]) == 1
    assert not groups["train"] & groups["test"]


def test_new_images_stay_whole(table, tmp_path):
    save(tmp_path / "new/a.png", np.zeros((30, 40), np.uint8))
    data = TableDataModule(table, tmp_path / "new", patch_size=8)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["id"] == ["a"]
    assert batch["size"].tolist() == [[30, 40]]
    assert data.read("a")["image"].shape == (3, 30, 40)


# What is decoded


def files_of(table: SampleTable) -> set[Path]:
    return {file for sample in table.samples for file in (sample.image, *sample.mask_files)}


def test_every_file_is_decoded_once_a_sample(table, decoded):
    data = TableDataModule(table, check_files=False, batch_size=1)
    data.setup("fit")
    assert not decoded
    assert ids_of(data.train_dataloader())
    assert decoded == dict.fromkeys(files_of(data.table.select("train")), 1)


def test_broken_files_are_found_before_the_run(table):
    data = TableDataModule(table)
    path = data.table.select("val").samples[0].masks["Bob"]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"Cannot read .*Bob.{path.name}"):
        data.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("test")
