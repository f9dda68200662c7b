"""Folders of any layout: five that people use, tables, and what is said where they do not fit."""

import numpy as np
import pytest
from written_files import save

from tax_lightning.data import FolderDataModule
from tax_lightning.data.layouts import from_csv, from_patterns

CELL = {0: "background", 255: "cell"}
LAYOUTS = {  # arguments, and where an image, its masks and its reference lie
    "by case": (
        {"images": "{name}/image.png", "masks": "{name}/annotator_{annotator}.png"},
        ("{n}/image.png", "{n}/annotator_{a}.png"),
    ),
    "by annotator": (
        {"images": "scans/{name}.png", "masks": "{annotator}/{name}.png"},
        ("scans/{n}.png", "{a}/{n}.png"),
    ),
    "suffixes": (
        {"images": "{name}.png", "masks": "{name}_{annotator}.png"},
        ("{n}.png", "{n}_{a}.png"),
    ),
    "nested": (
        {
            "images": "{group}/images/{name}.png",
            "masks": "{group}/labels/{annotator}/{name}_mask.png",
        },
        ("p{g}/images/{n}.png", "p{g}/labels/{a}/{n}_mask.png"),
    ),
    "csv": ({"table": "table.csv"}, ("x/{n}.png", "y/{a}-{n}.png")),
}


def drawn(case: int, annotator: str) -> np.ndarray:
    mask = np.zeros((8, 8), np.uint8)
    mask[: 1 + case % 7, : 3 + len(annotator)] = 255
    return mask


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fourteen_cases_in_each_layout(tmp_path, layout):
    options, (image, mask) = LAYOUTS[layout]
    rows = ["image,annotator,mask,group"]
    for case in range(14):
        name = {"n": f"case_{case}", "g": case // 2}
        save(tmp_path / image.format(**name), np.full((8, 8), case, np.uint8))
        for annotator in ("Ann", "Bo_b"):
            if (case, annotator) == (3, "Bo_b"):
                continue  # who did not label that image
            save(tmp_path / mask.format(a=annotator, **name), drawn(case, annotator))
            files = image.format(**name), annotator, mask.format(a=annotator, **name)
            rows.append(",".join([*files, f"p{case // 2}"]))
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = FolderDataModule(tmp_path, ["background", "cell"], CELL, **options)
    assert data.annotators == ("Ann", "Bo_b")
    assert len(data.table) == 14
    for sample in data.table.samples:
        raw = data.table.read(sample)
        case = int(raw.image[0, 0, 0])
        assert sample.id == (f"p{case // 2}/case_{case}" if layout == "nested" else f"case_{case}")
        assert sample.group == (f"p{case // 2}" if layout in ("nested", "csv") else "")
        assert raw.present.tolist() == [True, case != 3]
        for label, name in zip(raw.masks[raw.present], data.annotators, strict=False):
            np.testing.assert_array_equal(label * 255, drawn(case, name))
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["masks"].shape[1] == 2


def test_without_classes_the_lines_to_write_are_proposed(tmp_path):
    for case in range(4):
        save(tmp_path / f"images/{case}.png", np.zeros((8, 8), np.uint8))
        save(tmp_path / f"masks/Ann/{case}.png", drawn(case, "Ann") // 255 * 7)
    with pytest.raises(ValueError, match=r"hold the value.* 0, 7 \(4 of 4") as caught:
        FolderDataModule(tmp_path)
    assert str(caught.value).endswith(
        "classes: [background, class1]\nmask_values:\n  0: background\n  7: class1"
    )
    save(tmp_path / "masks/Ann/0.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(ValueError, match=r"hold 64 values.*Save them as PNG"):
        FolderDataModule(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"images": "{name}.png", "masks": "{name}.png"}, r"expected \{annotator\}, \{name\}"),
        ({"images": "x.png", "masks": "{annotator}{name}.png"}, r"has no fields, expected \{name"),
        ({"images": "{name}.tif", "masks": "{annotator}/{name}.png"}, "images: no file below"),
        ({"images": "*/{name}.png", "masks": "*/{name}-{annotator}.png"}, "both stand for 'a'"),
        ({"images": "i/{name}.png", "masks": "{annotator}/{name}.png"}, "by j of 'b', but no"),
    ],
)
def test_patterns_that_do_not_fit(tmp_path, options, text):
    for file in ("i/a.png", "j/a.png", "j/b.png"):
        save(tmp_path / file, np.zeros((2, 2), np.uint8))
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        from_patterns(tmp_path, **options)


def test_patterns_find_references(tmp_path):
    for file in ("a.png", "by_Ann/a.png", "truth/a.png", "b.png", "by_Ann/b.png"):
        save(tmp_path / file, np.zeros((2, 2), np.uint8))
    patterns = "{name}.png", "by_{annotator}/{name}.png", "truth/{name}.png"
    samples, names = from_patterns(tmp_path, *patterns)
    assert names == ("Ann",)
    assert [sample.reference is None for sample in samples] == [False, True]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["image,mask", "a.png,a.png"], "annotator is not there"),
        (["image,annotator,mask", "a.png,Ann,gone.png"], "line 2: there is no file 'gone.png'"),
        (["image,annotator,mask", *["a.png,Ann,a.png"] * 2], "line 3: Ann stands twice for 'a'"),
        (
            ["image,annotator,mask,split", "a.png,Ann,a.png,val", "a.png,Bob,a.png,test"],
            "line 3: 'a' has another image, group, split",
        ),
        (
            ["image,annotator,mask,name", "a.png,Ann,a.png,x", "a.png,Bob,a.png,y"],
            "has two names, expected one",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, lines, text):
    save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        from_csv(tmp_path, tmp_path / "table.csv")
