"""What is known of annotators: read from a table, refused where it is wrong, and grouped."""

import numpy as np
import pytest
from test_bad_files import save
from test_inspection import Given, disc, sample

from tax_lightning.data import FolderDataModule
from tax_lightning.inspection.audit import audit
from tax_lightning.inspection.tables import tables

GOOD = "annotator,person,tool\nAnn_pen,Ann,pen\nBob_pen,Bob,pen\nAnn_mouse,Ann,mouse\n"
NAMES = ("Ann_pen", "Bob_pen", "Ann_mouse")


@pytest.fixture
def root(tmp_path):
    for place in ("images", *(f"masks/{name}" for name in NAMES)):
        for number in range(4):
            save(tmp_path / place / f"cell{number}.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "annotators.csv").write_text(GOOD, encoding="utf-8")
    return tmp_path


def load(root, **options):
    return FolderDataModule(root, ["background", "cell"], **options)


def test_annotators_are_grouped_by_a_column(root):
    assert load(root).groups == {}
    assert load(root, group_by="tool").groups == {
        "tool mouse": ("Ann_mouse",),
        "tool pen": ("Ann_pen", "Bob_pen"),
    }
    chosen = load(root, group_by="person", exclude_annotators=["Ann_pen"])
    assert chosen.groups == {"person Ann": ("Ann_mouse",), "person Bob": ("Bob_pen",)}


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        (GOOD, "skill", r"group_by='skill': nothing is known of Ann_mouse.*one of person, tool"),
        (GOOD.replace("Bob,pen", "Bob,"), "tool", r"group_by='tool'.*of Bob_pen"),
        (GOOD + "Cem,Cem,pen\n", None, r"annotators.csv, line 5: there is no annotator 'Cem'"),
        (GOOD + "Bob_pen,Bob,pen\n", None, r"annotators.csv, line 5: 'Bob_pen' stands twice"),
        (GOOD.replace("Bob_pen,Bob,pen\n", ""), None, r"lacks 1 annotator\(s\), e.g. 'Bob_pen'"),
        ("annotator\nAnn_pen\n", None, r"has the column\(s\) annotator; expected annotator and at"),
        ("name,tool\nAnn_pen,pen\n", None, r"has the column\(s\) name, tool; expected annotator"),
        (GOOD.replace(",tool", ",person"), None, "expected .* each once"),
        (GOOD.replace(",tool", ","), None, "column 3 has no name"),
        (GOOD.replace("Bob,pen", "B\xf6b,pen").encode("latin-1"), None, "Save it as CSV in UTF-8"),
        ("", None, "expected annotator"),
    ],
)
def test_a_bad_table_is_one_plain_error(root, text, column, words):
    data = text if isinstance(text, bytes) else text.encode()
    (root / "annotators.csv").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        load(root, group_by=column)


def test_without_a_table_the_cure_is_named(root):
    (root / "annotators.csv").unlink()
    with pytest.raises(ValueError, match=r"group_by='tool'.*one of no columns.*annotators\.csv"):
        load(root, group_by="tool")


def test_tables_tell_of_groups():
    masks = [disc(radius=radius) for radius in (5, 6, 7)]
    data = Given({"train": [sample("a", masks)]}, ("Ann", "Bob", "Cem"))
    alone = {table.name: table for table in tables(audit(data))}
    data.groups = {"tool pen": ("Ann", "Cem"), "tool mouse": ("Bob",)}
    found = {table.name: table for table in tables(audit(data))}
    for name, table in alone.items():
        assert list(table.rows.items()) == list(found[name].rows.items())[: len(table.rows)]
    assert list(found["Coverage"].rows["tool pen"]) == ["2", "2", "0", "0"]
    drawn = found["How annotators draw"].rows
    area = [float(drawn[name][0]) for name in ("Ann", "Cem", "tool pen")]
    assert area[2] == pytest.approx((area[0] + area[1]) / 2, abs=0.01)
    pairs = found["Dice of each two groups of annotators"].rows
    dice = found["Dice of each two annotators"].rows
    assert pairs["tool pen"][0] == dice["Ann"][2]
    assert pairs["tool mouse"] == [pairs["tool pen"][1], "·"]
    assert found["How annotators differ from the consensus"].rows["tool mouse"][0] == "+0.0"
