"""LIDC-IDRI: the forms in which its crops are passed round, and cutting them out of the scans."""

import hashlib
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from written_files import save

from tax_lightning.importers.lidc import SLOTS, find
from tax_lightning.importers.writer import write

SERIES = {  # split -> series -> slices
    "train": {"1.3.6.1": ["slice1", "slice2"], "1.3.6.2": ["slice7"]},
    "val": {"1.3.6.3": ["slice1"]},
    "test": {"1.3.6.4": ["slice1"]},
}


def mask_of(series: str, name: str, slot: int) -> np.ndarray:
    """A square whose side tells the slice and the slot; slot 3 is always empty."""
    mask = np.zeros((16, 16), np.uint8)
    if slot < 3:
        mask[: 1 + int(series[-1]) + slot, : int(name[-1])] = 1
    return mask


def crops() -> list[tuple[str, str, str]]:
    return [
        (split, series, name)
        for split, parts in SERIES.items()
        for series, names in parts.items()
        for name in names
    ]


def write_form(root: Path, form: str) -> Path:
    """The crops in one of the forms."""
    if form == "pickle":
        path = root / "data_lidc.pickle"
        content = {
            f"{series}_{name}": {
                "image": np.full((16, 16), 0.25 * int(series[-1])),
                "masks": [mask_of(series, name, slot) for slot in range(4)],
                "series_uid": series,
            }
            for _, series, name in crops()
        }
        root.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return path
    for split, series, name in crops():
        folder = root / split if form != "plain" else root
        masks, between = ("lesions", "_") if form == "flat" else ("gt", "/")
        save(
            folder / f"images/{series}{between}{name}.png",
            np.full((16, 16), round(63.75 * int(series[-1])), np.uint8),
        )
        for slot in range(4):
            path = folder / f"{masks}/{series}{between}{name}_l{slot}.png"
            save(path, 255 * mask_of(series, name, slot))
    return root


FORMS = ["nested", "flat", "plain", "pickle"]


# What is read


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_crops(tmp_path, form):
    path = write_form(tmp_path / "in", form)
    found = find(path)
    assert not found.description.persons
    assert "slots 0 to 3 are not persons" in found.left_out[0]
    split = {name: split for split, names in SERIES.items() for name in names}
    for case, (_, series, name) in zip(
        sorted(found.cases, key=lambda case: case.name), crops(), strict=True
    ):
        assert (case.name, case.group) == (f"{series}_{name}", series)
        assert case.split == (split[series] if form in ("nested", "flat") else "")
        assert tuple(case.masks) == SLOTS
        for slot, mask in enumerate(case.masks.values()):
            np.testing.assert_array_equal(mask(), mask_of(series, name, slot))
    report = write(found, tmp_path / "out")
    assert report.masks == dict.fromkeys(SLOTS, 5)
    assert report.empty == {"slot 3": 5}
    if form == "pickle":
        assert found.cases[0].image().dtype == np.float32
        assert [case.name for case in find(path.parent).cases] == [c.name for c in found.cases]


def test_published_crops_without_one_of_the_splits(tmp_path):
    root = write_form(tmp_path, "nested")
    (root / "val").rename(root / "elsewhere")
    assert {case.split for case in find(root).cases} == {"train", "test"}


def test_masks_of_ones_are_read_and_of_others_refused(tmp_path):
    root = write_form(tmp_path, "nested")
    path = root / "train/gt/1.3.6.1/slice2_l1.png"
    save(path, mask_of("1.3.6.1", "slice2", 1))
    (case,) = (case for case in find(root).cases if case.name == "1.3.6.1_slice2")
    np.testing.assert_array_equal(case.masks["slot 1"](), mask_of("1.3.6.1", "slice2", 1))
    save(path, np.full((16, 16), 7, np.uint8))
    with pytest.raises(ValueError, match=r"slice2_l1\.png holds the value\(s\) 7, expected 0 "):
        case.masks["slot 1"]()


# What is wrong with a folder


def test_missing_folders(tmp_path):
    root = write_form(tmp_path, "nested")
    with pytest.raises(FileNotFoundError, match=r"nowhere is neither a folder nor .*Expected one"):
        find(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"gt/images is missing or holds no images\. Exp"):
        find(root / "train/gt")
    (root / "val/lesions").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val has 2 of the folders gt and lesions, expect"):
        find(root)


def test_masks_that_do_not_match(tmp_path):
    root = write_form(tmp_path, "nested")
    stray = save(root / "train/gt/1.3.6.1/slice2_l4.png", mask_of("1", "1", 0))
    with pytest.raises(ValueError, match=r"gt/1\.3\.6\.1/slice2_l4\.png belongs to no image of"):
        find(root)
    stray.unlink()
    (root / "train/gt/1.3.6.1/slice2_l2.png").unlink()
    with pytest.raises(ValueError, match=r"1\.3\.6\.1/slice2\.png lacks its mask slice2_l2 in "):
        find(root)
    save(root / "train/images/slice1.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"images/slice1\.png names no series, expected SERIES_SL"):
        find(root)


# What is wrong with a pickle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series_uid": None}, r"lacks series_uid, expected image, masks"),
        ({"masks": [np.zeros((16, 16))] * 3}, r"has 3 masks, expected 4"),
        ({"masks": 7}, r"has 7 for masks, expected 4"),
        ({"image": np.full((16, 16), 1.5)}, r"with values from 1\.5 to 1\.5, expected 0 to 1"),
        ({"image": np.full((16, 16), np.nan)}, r"with values from nan to nan, expected"),
        ({"image": np.zeros((16, 16, 3))}, r"is an array \[16, 16, 3\] of float64, expected a num"),
        ({"masks": [np.full((16, 16), 2)] * 4}, r"slot 0, is .* of int64, expected 0 or 1"),
    ],
)
def test_crops_that_lack_something(tmp_path, changes, message):
    path = write_form(tmp_path / "in", "pickle")
    content = pickle.loads(path.read_bytes())
    crop = content["1.3.6.1_slice2"]
    crop |= changes
    if crop["series_uid"] is None:
        del crop["series_uid"]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=rf"data_lidc\.pickle: crop '1\.3\.6\.1_slice2'.* {message}"
    ):
        write(find(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"holds list, expected a dictionary of crops"),
        ({3: {}}, r"entry 3 is no crop with a name"),
        ({"a": {"image": os.getcwd}}, r"was refused: it asks for "),
    ],
)
def test_another_pickle(tmp_path, content, message):
    path = tmp_path / "data_lidc.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        find(path)


# From the DICOM files: a stand-in with pylidc's interface, as of its version 0.2.3


class Scan:
    """A CT scan of 40 x 30 pixels and 9 slices, each slice of one density."""

    nodules: list

    def __init__(self, number: int, nodules: list, on_disk: bool = True):
        self.id, self.patient_id = number, f"LIDC-IDRI-{number // 2:04d}"
        self.nodules, self.on_disk = nodules, on_disk

    def get_path_to_dicom_files(self):
        if not self.on_disk:
            raise RuntimeError(f"Couldn't find DICOM files for {self.patient_id}")
        return sys.modules["pylidc.Scan"]._get_dicom_file_path_from_config_file()

    def to_volume(self, verbose=True):
        assert Path(self.get_path_to_dicom_files()).is_dir()
        assert not verbose
        return np.broadcast_to(np.arange(-1200, 600, 200, np.int16), (40, 30, 9))

    def cluster_annotations(self, metric="min", tol=None, factor=0.9, min_tol=0.1, verbose=True):
        assert np.int is int  # which pylidc needs here
        return self.nodules


def outline(rows: slice, columns: slice, levels: slice) -> tuple[slice, ...]:
    return rows, columns, levels


def consensus(anns, clevel=0.5, pad=None, ret_masks=True):
    """The box around all outlines, and each within it."""
    ends = np.array([[(part.start, part.stop) for part in ann] for ann in anns])
    box = tuple(slice(a, b) for a, b in zip(ends.min(0)[:, 0], ends.max(0)[:, 1], strict=True))
    masks = []
    for ann in anns:
        volume = np.zeros((40, 30, 9), bool)
        volume[ann] = True
        masks.append(volume[box])
    return np.mean(masks, axis=0) >= clevel, box, masks


@pytest.fixture
def pylidc(monkeypatch):
    """The stand-in, to be given scans."""
    package, utils = ModuleType("pylidc"), ModuleType("pylidc.utils")
    scans = []
    package.Scan, utils.consensus, package.query = Scan, consensus, lambda kind: scans
    monkeypatch.setitem(sys.modules, "pylidc", package)
    monkeypatch.setitem(sys.modules, "pylidc.utils", utils)
    scan = ModuleType("pylidc.Scan")
    scan._get_dicom_file_path_from_config_file = lambda: "nowhere"
    monkeypatch.setitem(sys.modules, "pylidc.Scan", scan)
    return scans


def test_nodules_are_cropped(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    two = outline(slice(12, 18), slice(12, 18), slice(3, 6))
    corner = outline(slice(0, 2), slice(28, 30), slice(8, 9))
    pylidc += [Scan(2, [[one, two], [corner]]), Scan(3, [[one] * 4]), Scan(5, [])]
    found = find(tmp_path, dicom=True, size=8)
    assert not hasattr(np, "int")  # lent for the time of the call
    assert Counter(case.group for case in found.cases) == {"LIDC-IDRI-0001": 7}
    cases = {case.name.removeprefix("LIDC-IDRI-0001_"): case for case in found.cases}
    masks = [mask() for mask in cases["scan0002-0-slice003"].masks.values()]
    # the outlines span rows 10..17 and columns 12..17: the crop starts at row 10 and column 11
    expected = np.zeros((4, 8, 8), np.uint8)
    expected[0, 0:4, 1:5] = 1
    expected[1, 2:8, 1:7] = 1
    np.testing.assert_array_equal(masks, expected)
    below = cases["scan0002-0-slice002"]
    assert [mask().any() for mask in below.masks.values()] == [True, False, False, False]
    assert (below.image() == round(255 * 200 / 1400)).all()  # -800 of -1000 to 400
    at_the_corner = cases["scan0002-1-slice008"]
    assert at_the_corner.masks["slot 0"]()[:2, 6:].all()
    assert at_the_corner.masks["slot 0"]().sum() == 4
    assert (at_the_corner.image() == 255).all()
    assert write(found, tmp_path / "out").images == 7
    with pytest.raises(ValueError, match=r"size=31: a scan has slices of 40 x 30 pixels"):
        find(tmp_path, dicom=True, size=31).cases[0].image()


def test_what_is_left_out_is_said(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    pylidc += [Scan(2, [[one] * 5, [one]]), Scan(4, [[one]], on_disk=False)]
    found = find(tmp_path, dicom=True, size=8)
    assert len(found.cases) == 2
    assert found.left_out[1] == "1 scan(s) that are not on disk."
    assert found.left_out[2].startswith("1 group(s) of more than 4 outlines")


def test_no_scan_is_found(pylidc, tmp_path):
    pylidc += [Scan(2, [], on_disk=False)]
    with pytest.raises(FileNotFoundError, match=r"no scan of .*files for LIDC-IDRI-0001\)"):
        find(tmp_path, dicom=True)
    assert not hasattr(np, "int")


@pytest.mark.parametrize("wrong", [{"size": 0}, {"hounsfield": (400, -1000)}])
def test_arguments_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"expected a size from 1 up, and the density of black"):
        find(tmp_path, dicom=True, **wrong)


def test_the_extra_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pylidc", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tax-lightning\[pylidc\]"'):
        find(tmp_path, dicom=True)


# The real data


def test_the_real_crops(data_root):
    """The hash is that of the masks as the reader of the first release gave them."""
    cases = find(data_root / "lidc_mini").cases
    assert len(cases) == 71
    assert len({case.group for case in cases}) == 59
    assert Counter(case.split for case in cases) == {"train": 40, "val": 15, "test": 16}
    masks = [[mask() for mask in case.masks.values()] for case in cases]
    drawn = Counter(sum(bool(mask.any()) for mask in own) for own in masks)
    assert drawn == {1: 17, 2: 18, 3: 18, 4: 18}
    assert (
        hashlib.sha256(np.array(masks).tobytes()).hexdigest()
        == "32ee3327f9da4770a48c4916b760269d25d2c8bd48653dd1703741b5929cc95f"
    )
