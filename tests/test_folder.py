"""The plain folder layout: what is read from it, and the messages for what is wrong with it."""

import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import FolderDataModule

CLASSES = ["background", "cell"]
GREY = {0: "background", 255: "cell"}
NAMES = [f"cell{number}" for number in range(8)]


def mask_of(name: str, annotator: str) -> np.ndarray:
    """A square whose side tells the image and the annotator."""
    mask = np.zeros((16, 16), np.uint8)
    side = 1 + int(name[-1]) + (4 if annotator == "Bob" else 0)
    mask[:side, :side] = 255
    return mask


@pytest.fixture
def root(tmp_path) -> Path:
    """Eight images and two annotators, in a folder that some tests then spoil."""
    for name in NAMES:
        save(tmp_path / "images" / f"{name}.png", np.full((16, 16), 20 * int(name[-1]), np.uint8))
        for annotator in ("Ann", "Bob"):
            save(tmp_path / "masks" / annotator / f"{name}.png", mask_of(name, annotator))
    return tmp_path


def load(root: Path, **kwargs) -> FolderDataModule:
    return FolderDataModule(root, CLASSES, **({"mask_values": GREY} | kwargs))


def write_splits(root: Path, *lines: str) -> None:
    (root / "samples.csv").write_text("\n".join(lines), encoding="utf-8")


def splits_of(data: FolderDataModule) -> dict[str, str | None]:
    return {sample.id: sample.split for sample in data.table.samples}


# What is read


def test_folders_may_be_of_nobody_in_particular(root):
    assert load(root).persons
    assert not load(root, persons=False).persons


def test_images_and_masks_are_joined_by_name(root):
    data = load(root)
    assert data.annotators == ("Ann", "Bob")
    assert data.classes == ("background", "cell")
    for name in NAMES:
        sample = data.read(name)
        for annotator, mask in zip(data.annotators, sample["masks"], strict=True):
            np.testing.assert_array_equal(mask.numpy(), mask_of(name, annotator) // 255)
        assert (data.to_picture(sample["image"]) == 20 * int(name[-1])).all()
        assert "reference" not in sample


def test_batches_of_every_stage(root):
    data = load(root, batch_size=2)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    sizes = {split: len(data.table.select(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 6, "val": 1, "test": 1}
    assert [len(batch["id"]) for batch in data.train_dataloader()] == [2, 2, 2]
    assert next(iter(data.predict_dataloader()))["id"] == list(data.table.select("test").ids)


def test_a_missing_mask_means_absent_and_an_empty_one_present(root):
    (root / "masks/Ann/cell3.png").unlink()
    save(root / "masks/Bob/cell3.png", np.zeros((16, 16), np.uint8))
    sample = load(root).read("cell3")
    assert sample["present"].tolist() == [False, True]
    assert (sample["masks"][0] == IGNORE_INDEX).all()
    assert (sample["masks"][1] == 0).all()


def test_references_may_be_there_for_some_images_only(root):
    save(root / "reference/cell2.png", mask_of("cell2", "Ann"))
    data = load(root)
    np.testing.assert_array_equal(
        data.read("cell2")["reference"].numpy(), mask_of("cell2", "Ann") // 255
    )
    for name in set(NAMES) - {"cell2"}:
        assert (data.read(name)["reference"] == IGNORE_INDEX).all()


def test_extensions_need_not_agree(root):
    (root / "images/cell0.png").unlink()
    save(root / "images/cell0.TIF", np.zeros((16, 16), np.uint16))
    (root / "masks/Ann/cell0.png").unlink()
    save(root / "masks/Ann/cell0.bmp", mask_of("cell0", "Ann"))
    assert load(root).read("cell0")["present"].all()


def test_names_with_blanks_dots_and_accents(root):
    name = "Zelle 1.größe ß9"
    save(root / "images" / f"{unicodedata.normalize('NFD', name)}.png", mask_of(name, "Ann"))
    for annotator in ("Ann", "Bob"):
        save(root / "masks" / annotator / f"{name}.png", mask_of(name, annotator))
    write_splits(root, "name,group", f"{name},größe", *(f"{n},g{n}" for n in NAMES))
    data = load(root)
    assert data.read(name)["id"] == name
    assert {sample.group for sample in data.table.samples} >= {"größe"}


def test_other_files_do_not_disturb(root):
    for path in ("images/.DS_Store", "masks/.DS_Store", "masks/Ann/notes.txt", "readme.md"):
        (root / path).touch()
    (root / "masks/.cache").mkdir()
    assert load(root).annotators == ("Ann", "Bob")


def test_annotators_can_be_chosen_ordered_and_left_out(root):
    save(root / "masks/Cai/cell0.png", mask_of("cell0", "Ann"))
    assert load(root, annotators=["Cai", "Ann"]).annotators == ("Cai", "Ann")
    assert load(root, exclude_annotators=["Ann"]).annotators == ("Bob", "Cai")
    data = load(root, annotators=["Bob"])
    np.testing.assert_array_equal(
        data.read("cell1")["masks"].numpy(), mask_of("cell1", "Bob")[None] // 255
    )


def test_images_that_nobody_labelled_are_left_out_aloud(root):
    for annotator in ("Ann", "Bob"):
        (root / "masks" / annotator / "cell5.png").unlink()
    with pytest.warns(UserWarning, match=r"1 image\(s\) without a mask .*cell5\.png"):
        data = load(root)
    assert "cell5" not in data.table.ids
    assert len(data.table) == 7


def test_an_annotator_without_training_images_is_told(root):
    for name in NAMES[1:]:
        (root / "masks/Bob" / f"{name}.png").unlink()
    write_splits(root, "name,split", "cell0,val", *(f"{name},train" for name in NAMES[1:]))
    with pytest.warns(UserWarning, match=r"Annotator\(s\) Bob labelled no training image"):
        load(root).setup("fit")


def test_new_images_can_be_predicted_on(root, tmp_path):
    for name, size in (("new1", (8, 12)), ("new2", (16, 10))):
        save(tmp_path / "new" / f"{name}.png", np.zeros(size, np.uint8))
    data = load(root, predict_images=tmp_path / "new")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["id"] == ["new1", "new2"]
    assert batch["size"].tolist() == [[8, 12], [16, 10]]
    assert not batch["present"].any()
    assert (batch["masks"] == IGNORE_INDEX).all()
    assert data.read("new2")["image"].shape == (3, 16, 10)


# Splits


def test_splits_come_from_the_table(root):
    splits = dict(zip(NAMES, ["train"] * 5 + ["val", "test", "test"], strict=True))
    write_splits(root, "name, split, group", *(f"{n}, {s}, {s}" for n, s in splits.items()))
    data = load(root)
    assert splits_of(data) == splits
    assert data.table.samples[0].group == "train"


def test_splits_may_name_files_with_extension(root):
    write_splits(root, "name,split", *(f"{name}.png,train" for name in NAMES))
    assert set(splits_of(load(root)).values()) == {"train"}


def test_a_table_from_a_spreadsheet_with_byte_order_mark(root):
    write_splits(root, "\ufeffname,split", *(f"{name},train" for name in NAMES), "")
    assert set(splits_of(load(root)).values()) == {"train"}


@pytest.mark.parametrize("how", ["column", "pattern"])
def test_groups_stay_whole_when_splits_are_drawn(root, how):
    groups = {name: f"p{int(name[-1]) // 2}" for name in NAMES}
    if how == "column":
        write_splits(root, "name,group", *(f"{n},{g}" for n, g in groups.items()))
        data = load(root, val_fraction=0.25, test_fraction=0.25)
    else:
        for folder in (root / "images", root / "masks/Ann", root / "masks/Bob"):
            for name, group in groups.items():
                (folder / f"{name}.png").rename(folder / f"{group}_{name}.png")
        data = load(root, val_fraction=0.25, test_fraction=0.25, group_pattern=r"(p\d)_")
    placed = {(sample.group, sample.split) for sample in data.table.samples}
    assert {group for group, _ in placed} == set(groups.values())
    assert len(placed) == 4
    assert {split for _, split in placed} == {"train", "val", "test"}


def test_the_split_is_drawn_by_its_seed(root):
    drawn = [splits_of(load(root, split_seed=seed)) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] or drawn[0] != drawn[3]


# What is wrong


def test_a_missing_root_shows_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder[\s\S]*masks/ANNOTATOR/NAME"):
        load(tmp_path / "nowhere")


def remove(root: Path, folder: str) -> None:
    for path in sorted((root / folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / folder).rmdir()


@pytest.mark.parametrize(
    ("folder", "error", "text"),
    [
        (
            "images",
            FileNotFoundError,
            r"images is missing or holds no image files[\s\S]*images/NAME",
        ),
        ("masks", FileNotFoundError, r"masks holds no annotators' folders[\s\S]*masks/ANNOTATOR"),
    ],
)
def test_missing_folders(root, folder, error, text):
    remove(root, folder)
    with pytest.raises(error, match=text):
        load(root)


def test_an_annotators_folder_without_files(root):
    (root / "masks/Eve").mkdir()
    with pytest.raises(ValueError, match=r"Eve holds no image files.*exclude_annotators: \[Eve\]"):
        load(root)
    assert load(root, exclude_annotators=["Eve"]).annotators == ("Ann", "Bob")


@pytest.mark.parametrize("option", ["annotators", "exclude_annotators"])
def test_unknown_annotators(root, option):
    with pytest.raises(ValueError, match=rf"{option}: 'Anne' drew none .* one of Ann, Bob"):
        load(root, **{option: ["Anne"]})


def test_nobody_left(root):
    with pytest.raises(ValueError, match="leave nobody of Ann, Bob"):
        load(root, exclude_annotators=["Ann", "Bob"])


@pytest.mark.parametrize("folder", ["masks/Ann", "reference"])
def test_masks_without_an_image(root, folder):
    save(root / folder / "cell3_mask.png", mask_of("cell3", "Ann"))
    with pytest.raises(ValueError, match=r"cell3_mask\.png belongs to no image.*name is 'cell3'"):
        load(root)


def test_two_images_of_one_name(root):
    save(root / "images/cell0.jpg", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match="have the same name 'cell0'"):
        load(root)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["name;split", "cell0;train"], r"column\(s\) name;split; expected name, and others"),
        (["", *NAMES], "expected name, and others such as split or group"),
        (["name,split", "cel0,train"], r"line 2: there is no image named 'cel0'.*'cell0'"),
        (["name,split", "cell0,train", "cell0,val"], "line 3: 'cell0' stands twice"),
        (["name,split", "cell0,dev"], "line 2: split 'dev', expected one of train, val, test"),
        (["name,split", "cell0,train"], r"lacks 7 image\(s\) of images/, e\.g\. 'cell1'"),
        (
            ["name,split", *(f"{n},train" for n in NAMES[:-1]), "cell7,"],
            r"no split for 1 image\(s\), e\.g\. 'cell7'",
        ),
        (
            ["name,split,group", *(f"{n},train,p1" for n in NAMES[:-1]), "cell7,val,p1"],
            "Group 'p1' lies in two splits, train and val",
        ),
    ],
)
def test_bad_split_tables(root, lines, text):
    write_splits(root, *lines)
    with pytest.raises(ValueError, match=text):
        load(root)


def test_split_tables_are_utf8(root):
    (root / "samples.csv").write_bytes("name,group\ncell0,Müller".encode("latin-1"))
    with pytest.raises(ValueError, match=r"samples\.csv is not encoded .*Save it as CSV in UTF-8"):
        load(root)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(p", "is no regular expression"),
        ("cell", "has 0 groups in parentheses"),
        ("(cell[0-3])", "finds no group in the image name 'cell4'"),
    ],
)
def test_bad_group_patterns(root, pattern, text):
    with pytest.raises(ValueError, match=text):
        load(root, group_pattern=pattern)


def test_groups_come_from_one_place_only(root):
    write_splits(root, "name,group", *(f"{name},{name}" for name in NAMES))
    with pytest.raises(ValueError, match=r"group_pattern is set although the data name groups"):
        load(root, group_pattern="(cell.)")


def test_broken_files_are_found_before_training(root):
    data = load(root)
    (name, *_) = data.table.select("val").ids
    (root / f"masks/Bob/{name}.png").write_bytes(b"\x89PNG and no more")
    data.setup("test")
    with pytest.raises(ValueError, match=rf"Cannot read .*Bob.{name}\.png"):
        data.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(root, check_files=False).setup("fit")


def test_values_that_are_no_class_come_with_the_cure(root):
    with pytest.raises(ValueError, match=r"add mask_values: \{0: background, 255: cell\}"):
        load(root, mask_values=None).setup("fit")


def test_a_folder_to_predict_on_must_hold_images(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"predict_images: .*nowhere is no folder"):
        load(root, predict_images=tmp_path / "nowhere")


# Real data


def test_bubil_mini(data_root):
    data = FolderDataModule(
        data_root / "bubil_mini", CLASSES, GREY, group_pattern="^(ds.*)$", batch_size=4
    )
    assert len(data.annotators) == 10
    assert data.annotators[0] == "Person1_Amira"
    assert len(data.table) == 116
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["masks"].shape == (4, 10, 128, 128)
    assert batch["present"].all()
    assert set(batch["masks"].unique().tolist()) == {0, 1}
    areas = {name: [] for name in data.annotators}
    for name in data.table.select("val").ids:
        masks = data.read(name)["masks"].float().mean((1, 2))
        for annotator, area in zip(data.annotators, masks / masks.mean(), strict=True):
            areas[annotator].append(float(area))
    assert np.mean(areas["Person1_ImageJ"]) < 0.9
    assert np.mean(areas["Person5_Amira"]) > 1.05
