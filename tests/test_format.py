"""The one format on disk: written by an import, read by the folder's data module."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tax_lightning.__main__ import main
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import FolderDataModule
from tax_lightning.data.description import Description
from tax_lightning.files import file_of, name_of
from tax_lightning.importers.cases import Case, Found
from tax_lightning.importers.command import SOURCES
from tax_lightning.importers.writer import JOURNAL, write

CLASSES = ("background", "cell", "debris")


def image(seed: int, channels: int = 1, dtype=np.uint8, size=(12, 10)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 250, (*size, channels))
    return (pixels / 250 if np.dtype(dtype).kind == "f" else pixels).astype(dtype)


def mask(seed: int, size=(12, 10)) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    drawn[0, 0] = IGNORE_INDEX
    return drawn


def found(cases, channels: int = 1, **said) -> Found:
    names = tuple(f"channel {i}" for i in range(channels))
    return Found(Description("made up", CLASSES, names, **said), cases)


def case(name: str, seed: int = 0, **options) -> Case:
    own = {"Ann": lambda: mask(seed), "Zoë/2": lambda: np.zeros((12, 10), np.uint8)}
    return Case(name, **({"image": lambda: image(seed), "masks": own} | options))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_is_written_is_read(tmp_path, channels, dtype):
    pixels = image(1, channels, dtype)
    limits = (0, 250) if dtype == "int16" else None
    cases = [case(f"c:{i}/x", i, image=lambda: pixels, group=f"g{i}") for i in range(4)]
    write(found(cases, channels, intensity_range=limits, persons=False), tmp_path / "to")
    data = FolderDataModule(tmp_path / "to")
    assert (data.classes, data.channels, data.persons) == (CLASSES, channels, False)
    assert data.annotators == ("Ann", "Zoë/2")
    assert {sample.group for sample in data.table.samples} == {"g0", "g1", "g2", "g3"}
    white = {"uint8": 1, "uint16": 65535, "int16": 250, "float32": 1}[dtype]
    for sample in data.table.samples:
        raw = data.table.read(sample)
        np.testing.assert_allclose(raw.image, pixels.astype(np.float64) / white, rtol=1e-6)
        np.testing.assert_array_equal(raw.masks[0], mask(int(sample.id[2])))
        assert not raw.masks[1].any()
    data.setup("fit")


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_names_of_files_can_be_read_back(name):
    file = file_of(name)
    assert name_of(file) == name
    assert not set(file) & set('/\\:*?"<>|\0\n')
    assert file[0] not in ". "
    assert file[-1] not in ". "


def test_files_that_fit_are_copied_as_they_are(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(image(0)[..., 0]).save(path, compress_level=1)
    write(found([case("a", image=path)]), tmp_path / "to")
    assert (tmp_path / "to/images/a.png").read_bytes() == path.read_bytes()


def test_an_interrupted_import_goes_on(tmp_path):
    def broken():
        raise ValueError("the disk was taken away")

    cases = [case(f"case {i}", i) for i in range(3)]
    stopped = [*cases[:2], case("case 2", 2, image=broken)]
    with pytest.raises(ValueError, match="taken away"):
        write(found(stopped), tmp_path / "to", "origin")
    with pytest.raises(ValueError, match=r"import that was interrupted\. Run the same"):
        FolderDataModule(tmp_path / "to")
    with pytest.raises(ValueError, match="unfinished import of another kind"):
        write(found(cases), tmp_path / "to", "another origin")
    with (tmp_path / "to" / JOURNAL).open("a") as file:
        file.write('["case 2", [{"sam')  # a line that was not finished
    once = [case(name, image=broken) for name in ("case 0", "case 1")]  # not read again
    report = write(found([*once, cases[2]]), tmp_path / "to", "origin")
    assert (report.images, report.masks["Ann"], report.empty) == (3, 3, {"Zoë/2": 3})
    assert not list((tmp_path / "to").rglob("*.part"))
    assert len(FolderDataModule(tmp_path / "to").table) == 3
    with pytest.raises(ValueError, match="holds a data set already"):
        write(found(cases), tmp_path / "to", "origin")


def test_large_images_are_cut_and_tell_their_place(tmp_path):
    whole = image(0, size=(30, 40))
    cases = [
        case(
            "slide",
            image=lambda: whole,
            masks={"Ann": lambda: mask(1, (30, 40))},
            reference=lambda: mask(2, (30, 40)),
            facts={"spacing": "0.5 0.5"},
        ),
        case("small"),
    ]
    write(found(cases), tmp_path / "to", tile=16)
    data = FolderDataModule(tmp_path / "to", val_fraction=0, test_fraction=0.5)
    again, labels = np.zeros((30, 40)), np.zeros((30, 40))
    tiles = [sample for sample in data.table.samples if sample.facts]
    assert {sample.group for sample in tiles} == {"slide"}
    assert {sample.facts["whole_width"] for sample in tiles} == {"40"}
    for sample in tiles:
        top, left = int(sample.facts["top"]), int(sample.facts["left"])
        raw = data.table.read(sample)
        again[top : top + 16, left : left + 16] = raw.image[..., 0]
        labels[top : top + 16, left : left + 16] = raw.masks[0]
        assert raw.image.shape == (16, 16, 1)
    np.testing.assert_array_equal(again, whole[..., 0])
    np.testing.assert_array_equal(labels, mask(1, (30, 40)))


def test_a_mask_that_is_larger_than_its_image_is_refused_before_it_is_cut(tmp_path):
    large = case(
        "a", image=lambda: image(0, size=(20, 20)), masks={"Ann": lambda: mask(0, (30, 30))}
    )
    with pytest.raises(ValueError, match=r"Ann has the shape \(30, 30\), its image \(20, 20\)"):
        write(found([large]), tmp_path / "to", tile=16)


@pytest.mark.parametrize(
    ("cases", "text"),
    [
        ([], "no image has a mask"),
        ([case("a"), case("A")], "Two images are called 'A' and 'a'"),
        ([case("a", group="g", split="train"), case("b", group="g", split="val")], "'g' lies in"),
        ([case("a", masks={"Ann": lambda: mask(0, (3, 3))})], r"Ann has the shape \(3, 3\)"),
        ([case("a", masks={"Ann": lambda: mask(0) * 0 + 3})], "values .3., expected class ids"),
        ([case("a", reference=lambda: mask(0).astype(int))], "reference holds int64"),
        ([case("a", image=lambda: image(0, 2))], "expected the channels channel 0"),
    ],
)
def test_cases_that_are_refused(tmp_path, cases, text):
    with pytest.raises(ValueError, match=text):
        write(found(cases), tmp_path / "to")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "has the format 2, expected `format: 1`"),
        ({"classes": "cell"}, "classes is 'cell', expected a list of names"),
        ({"persons": "no"}, "persons is 'no', expected true or false"),
        ({"intensity_range": [4, 1]}, r"intensity_range \[4, 1\]: expected the value of black"),
        ({"colour": 1}, "'colour' is unknown, expected some of name, classes"),
        ({"name": None}, "name is None, expected a text"),
        ({"ignore": 0}, "expected `ignore: 255`"),
    ],
)
def test_descriptions_that_are_refused(tmp_path, change, text):
    Description("a", CLASSES, ("grey",)).write(tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(ValueError, match=text):
        Description.read(tmp_path)


def test_the_schema_knows_what_is_written(tmp_path):
    Description("a", CLASSES, ("grey",), (0, 9)).write(tmp_path)
    written = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    schema = json.loads((Path(__file__).parent.parent / "docs/dataset.schema.json").read_text())
    assert set(written) == set(schema["properties"])
    assert set(schema["required"]) < set(written)


def test_experts_are_read_where_a_folder_tells_them(tmp_path):
    write(found([case(f"c{i}") for i in range(3)]), tmp_path / "to")
    owner = np.full((12, 10), IGNORE_INDEX, np.uint8)
    owner[:4] = 1
    (tmp_path / "to/owner").mkdir()
    Image.fromarray(owner).save(tmp_path / "to/owner/c1.png")
    table = FolderDataModule(tmp_path / "to", val_fraction=0).table
    experts = {sample.id: table.read(sample).expert for sample in table.samples}
    np.testing.assert_array_equal(experts["c1"], owner)


# The command


def test_the_command_lists_sources_and_knows_the_nearest(capsys):
    main(["import"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in SOURCES)
    with pytest.raises(SystemExit, match=r"'bubli' is unknown\. The nearest name is 'bubil'"):
        main(["import", "bubli", "a", "b"])
    with pytest.raises(SystemExit, match=r"FROM: gone does not exist"):
        main(["import", "bubil", "gone", "to"])


def test_every_source_tells_what_it_reads(capsys):
    for name in SOURCES:
        with pytest.raises(SystemExit):
            main(["import", name, "--help"])
        assert "--tile" in capsys.readouterr().out


def test_options_of_slices_are_those_that_mean_something_to_a_source(capsys):
    for name, has_affines in (("nifti", True), ("arrays", False), ("dicom_seg", False)):
        with pytest.raises(SystemExit):
            main(["import", name, "--help"])
        said = capsys.readouterr().out
        assert all(f"--{option}" in said for option in ("axis", "intensity_range", "empty_slices"))
        assert ("--use_affines" in said) == has_affines
