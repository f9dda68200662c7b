"""IMA++: what its tables say of masks, and wrong or missing files named."""

import csv

import numpy as np
import pytest
from written_files import save

from tax_lightning.importers.imapp import find
from tax_lightning.importers.writer import write

TABLE = "IMAplusplus_seg_metadata.csv"
COLUMNS = ["ISIC_id", "seg_filename", "annotator", "tool", "skill_level", "mskObjectID"]
MASKS = [  # image, annotator, tool, skill, identifier that begins with the time; sides of a square
    ("ISIC_0000001", "A06", "T1", "S1", "54ea8ac3", 3),
    ("ISIC_0000001", "A04", "T1", "S2", "545d08aa", 1),
    ("ISIC_0000001", "A06", "T3", "S1", "54ea8ac4", 4),
    ("ISIC_0000002", "A06", "T1", "S1", "568bb4c2", 5),
    ("ISIC_0000002", "A06", "T1", "S1", "566575bf", 2),
    ("ISIC_0000002", "MV", "MV", "MV", "MV", 6),
    ("ISIC_0000003", "A04", "T1", "S2", "545d08ab", 7),
]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "in"
    rows = []
    for image, *who, identifier, side in MASKS:
        name = "_".join((image, *who, identifier)) + ".png"
        rows.append([image, name, *who, identifier])
        mask = np.zeros((8, 9), np.uint8)
        mask[:side, :side] = 255
        save(root / "segs" / name, mask)
    for image in ("ISIC_0000001", "ISIC_0000002"):
        save(root / "images" / f"{image}.JPG", np.zeros((8, 9, 3), np.uint8))
    write_table(root / TABLE, COLUMNS, rows)
    known = [["ISIC_0000001", "IP_7", "IL_8"], ["ISIC_0000002", "", "IL_9"]]
    write_table(
        root / "IMAplusplus_img_metadata.csv", ["isic_id", "patient_id", "lesion_id"], known
    )
    return root


def write_table(path, columns, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def sides(case):
    return {name: int(mask().any(axis=0).sum()) for name, mask in case.masks.items()}


def test_an_annotator_is_a_person_with_a_tool_and_a_skill(root, tmp_path):
    found = find(root)
    assert [sides(case) for case in found.cases] == [
        {"A04 T1 S2": 1, "A06 T1 S1": 3, "A06 T3 S1": 4},
        {"A06 T1 S1": 5},  # the later of two
    ]
    assert [case.group for case in found.cases] == ["IP_7", "IL_9"]
    assert found.left_out == [
        "1 image(s) whose files are not there.",
        "1 mask(s) by one who drew the image again later.",
        "1 consensus mask(s), which are of nobody.",
    ]
    write(found, tmp_path / "out")
    assert (tmp_path / "out" / "annotators.csv").read_text().splitlines() == [
        "annotator,person,tool,skill",
        "A04 T1 S2,A04,T1,S2",
        "A06 T1 S1,A06,T1,S1",
        "A06 T3 S1,A06,T3,S1",
    ]


def test_an_annotator_is_a_person(root):
    (root / "IMAplusplus_img_metadata.csv").unlink()
    found = find(root, by_person=True)
    assert [sides(case) for case in found.cases] == [{"A04": 1, "A06": 4}, {"A06": 5}]
    assert [case.group for case in found.cases] == ["", ""]


def test_missing_and_double_files(root):
    with pytest.raises(FileNotFoundError, match=r"has no file subset\.csv, at whatever depth"):
        find(root, table="subset.csv")
    mask = root / "segs" / "ISIC_0000001_A06_T1_S1_54ea8ac3.png"
    save(root / "more" / mask.name, np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match=r"more.* and .*segs.* are both isic_0000001_.*Move one"):
        find(root)
    (root / "more" / mask.name).unlink()
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"A06_T1_S1_54ea8ac3\.png is nowhere below .*segs"):
        find(root)
    (root / "images").rename(root.parent / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 3 images .* files like ISIC_000000.\."
    ):
        find(root)


def test_wrong_tables(root):
    path = root / TABLE
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, "ISIC_0000003,cut"]))
    with pytest.raises(ValueError, match=r"seg_metadata\.csv, line 9, is cut off"):
        find(root)
    path.write_text("\n".join([rows[0].replace("tool", "pen"), *rows[1:]]))
    with pytest.raises(
        ValueError, match=r"seg_metadata\.csv has no column 'tool', expected ISIC_i"
    ):
        find(root)
