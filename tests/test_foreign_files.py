"""Files of others do no harm: whatever is in them, they are read right or refused in one line."""

import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import test_import_imapp
import tifffile
from foreign_exports import EXPORTS
from written_files import save

from experiments.reliability import foreign_files
from tax_lightning.__main__ import main
from tax_lightning.data import FolderDataModule
from tax_lightning.data.description import Description
from tax_lightning.importers.array_files import open_arrays
from tax_lightning.importers.cases import Case, Found
from tax_lightning.importers.reading import read_json
from tax_lightning.importers.writer import write
from tax_lightning.inspection import inspect

GREY = Description("made up", ("background", "cell"), ("grey",))


def one_case(name: str = "a", by: str = "Ann", group: str = "", image=None) -> Found:
    black = np.zeros((6, 8), np.uint8)
    return Found(GREY, [Case(name, image or (lambda: black), {by: lambda: black}, group=group)])


@pytest.mark.skipif(sys.platform != "linux", reason="measures the memory of a process of Linux")
@pytest.mark.parametrize("source", EXPORTS)
def test_damaged_exports_are_refused_or_read_right(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    template = foreign_files.write_template(source, tmp_path)
    for number in range(3):
        result = foreign_files.carry_out(source, template, f"test-{source}-{number}")
        assert result["end"] in ("refused", "imported"), result


@pytest.mark.parametrize("name", ["a\nb", "=1+1", "<b onload=x>", "../../x", "a,\"b'", "a\u2028b"])
def test_odd_names_come_back(name, tmp_path):
    write(one_case(name, by=name, group=name), tmp_path / "out")
    data = FolderDataModule(tmp_path / "out", val_fraction=0.0, test_fraction=0.0)
    (sample,) = data.table.samples
    assert (sample.id, sample.group, *sample.masks) == (name, name, name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_are_tidied_unless_two_become_one(tmp_path):
    found = one_case(" e\u0301 ", by="Ann\n", group="\tx")
    found = replace(found, annotators={"Ann\n": {"person": "A"}})
    write(found, tmp_path / "out")
    data = FolderDataModule(tmp_path / "out", val_fraction=0.0, test_fraction=0.0)
    (sample,) = data.table.samples
    assert (sample.id, sample.group, *sample.masks) == ("\xe9", "x", "Ann")
    found.cases[0].masks["Ann"] = None
    with pytest.raises(ValueError, match=r"'Ann', 'Ann\\n': two of them differ by spaces"):
        write(found, tmp_path / "other")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"name": "é" * 101}, "takes 202 bytes as the name of a file, expected 1 to 200"),
        ({"by": "\ud800"}, r"'\\ud800' holds bytes that are no text"),
        ({"group": "\udcff"}, r"'\\udcff' holds bytes that are no text"),
        ({"by": ""}, "takes 0 bytes"),
    ],
)
def test_names_that_no_file_can_have_are_refused(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(one_case(**names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_copied_must_be_whole(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Cannot read .*a\.png"):
        write(one_case(image=path), tmp_path / "out")


def crash(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_mat_file_that_crashes_its_reader_is_refused(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.zeros(3)})
    assert open_arrays(tmp_path / "a.mat")["x"]().shape == (1, 3)
    monkeypatch.setattr(scipy.io, "loadmat", crash)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.mat: .*terminated.*save it anew"):
        open_arrays(tmp_path / "a.mat")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "a.json").symlink_to("/dev/zero")
    for read, name in ((open_arrays, "a.npz"), (read_json, "a.json")):
        with pytest.raises(ValueError, match=rf"{name} is a pipe or a device, expected a file"):
            read(tmp_path / name)


def test_a_kind_of_tiff_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((6, 8), np.uint16))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["BitsPerSample"].overwrite(12)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.tif: .*12-bit"):
        write(one_case(image=path), tmp_path / "out")


@pytest.mark.parametrize("spoil", ["bytes", "folder"])
@pytest.mark.parametrize("name", ["seg", "img"])
def test_tables_that_cannot_be_read_are_named(name, spoil, tmp_path, capsys):
    root = test_import_imapp.root.__wrapped__(tmp_path)
    path = root / f"IMAplusplus_{name}_metadata.csv"
    text = path.read_bytes()
    path.unlink()
    if spoil == "bytes":
        path.write_bytes(text + b"\xff")
    else:
        path.mkdir()
    with pytest.raises(SystemExit, match=rf"^tax: error: .*IMAplusplus_{name}_metadata\.csv"):
        main(["import", "imapp", str(root), str(tmp_path / "out")])
    capsys.readouterr()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [harm]",
        "[" * 1000,
        "format: 1\nname: 2020-99-99",
        "? {a: b}\n: c",
        "a: &a [*a]",
    ],
)
def test_descriptions_run_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.yaml"):
        Description.read(tmp_path)
    assert os.listdir(tmp_path) == ["dataset.yaml"]


def test_names_are_text_on_the_page_of_the_inspection(tmp_path):
    odd = "<b onload=x>&amp;"
    noise = np.random.default_rng(0)
    found = one_case()
    cases = [
        Case(
            f"{odd}{number}",
            lambda: noise.integers(0, 256, (6, 8), np.uint8),
            {by: lambda: noise.integers(0, 2, (6, 8), np.uint8) for by in (odd, "Bob")},
            group=f"{odd}{number}",
        )
        for number in range(6)
    ]
    named = replace(GREY, classes=("background", odd))
    write(replace(found, cases=cases, description=named), tmp_path / "data")
    inspect(FolderDataModule(tmp_path / "data"), tmp_path / "page", odd)
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "<b onload" not in page
    assert "&lt;b onload=x&gt;&amp;amp;" in page


@pytest.mark.parametrize("command", ["fit", "inspect", "compare"])
def test_configurations_run_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("data: !!python/object/apply:os.mkdir [harm]")
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", "a.yaml"])
    assert stop.value.code not in (0, None)
    assert "Traceback" not in capsys.readouterr().err
    assert "harm" not in os.listdir(tmp_path)
