"""LIDC-IDRI: the forms in which its crops are passed round, and cutting them out of the scans."""

import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from written_files import save

from tax_lightning.data.files import Part, Window
from tax_lightning.data.lidc import LIDCDataModule, LIDCDicomDataModule, PickledCrops, crop_nodules

pytestmark = pytest.mark.filterwarnings("ignore:LIDC-IDRI. slots")

SLOTS = ("slot 0", "slot 1", "slot 2", "slot 3")
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


def write(root: Path, form: str) -> Path:
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
@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_gives_the_same_crops(tmp_path, form, channels):
    data = LIDCDataModule(
        write(tmp_path, form),
        channels,
        **({} if form in ("nested", "flat") else {"val_fraction": 0.2, "test_fraction": 0.2}),
    )
    assert data.annotators == SLOTS
    assert data.classes == ("background", "nodule")
    assert data.channels == channels
    assert sorted(data.table.ids) == sorted(f"{series}_{name}" for _, series, name in crops())
    data.table.check()
    for _, series, name in crops():
        sample = data.read(f"{series}_{name}")
        assert sample["present"].all()
        for slot, mask in enumerate(sample["masks"]):
            np.testing.assert_array_equal(mask.numpy(), mask_of(series, name, slot))
        grey = data.to_picture(sample["image"]).reshape(256, -1)
        assert abs(grey / 255 - 0.25 * int(series[-1])).max() < 0.003
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (channels, 16, 16)


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_published_splits_are_kept_with_the_series_as_group(tmp_path, form):
    data = LIDCDataModule(write(tmp_path, form))
    found = {(sample.split, sample.group, sample.id) for sample in data.table.samples}
    assert found == {(split, series, f"{series}_{name}") for split, series, name in crops()}


@pytest.mark.parametrize("form", ["plain", "pickle"])
@pytest.mark.parametrize("seed", range(4))
def test_other_splits_are_drawn_with_every_series_whole(tmp_path, form, seed):
    data = LIDCDataModule(
        write(tmp_path, form), val_fraction=0.2, test_fraction=0.2, split_seed=seed
    )
    splits = {(sample.group, sample.split) for sample in data.table.samples}
    assert len(splits) == 4
    assert {split for _, split in splits} == {"train", "val", "test"}


def test_published_crops_without_one_of_the_splits(tmp_path):
    root = write(tmp_path, "nested")
    (root / "val").rename(root / "elsewhere")
    data = LIDCDataModule(root)
    assert {sample.split for sample in data.table.samples} == {"train", "test"}


@pytest.mark.filterwarnings("default:LIDC-IDRI. slots")
def test_slots_are_not_persons(tmp_path):
    with pytest.warns(UserWarning, match="slots 0 to 3 are not persons") as caught:
        data = LIDCDataModule(write(tmp_path, "nested"))
    assert len(caught) == 1
    assert not data.persons


def test_masks_of_ones_are_read_too(tmp_path):
    root = write(tmp_path, "nested")
    for path in root.rglob("*_l*.png"):
        save(path, np.asarray(Image.open(path)) // 255)
    np.testing.assert_array_equal(
        LIDCDataModule(root).read("1.3.6.1_slice2")["masks"][1], mask_of("1.3.6.1", "slice2", 1)
    )


def test_windows_of_the_pickle(tmp_path):
    path = write(tmp_path, "pickle")
    window = Window(1, 2, 5, 3)
    decoder = PickledCrops()
    image, mask = Part(path, "1.3.6.2_slice7"), Part(path, "1.3.6.2_slice7_l1")
    assert decoder.image(image, window).shape == (5, 3, 1)
    assert decoder.image(image).dtype == np.float32
    np.testing.assert_array_equal(decoder.mask(mask, window), decoder.mask(mask)[1:6, 2:5])


def test_the_pickle_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    loads = []
    from tax_lightning.data import lidc

    load = lidc.load_pickle
    monkeypatch.setattr(lidc, "load_pickle", lambda path: loads.append(path) or load(path))
    path = write(tmp_path, "pickle")
    data = LIDCDataModule(path, val_fraction=0.2, test_fraction=0.2)
    data.table.check()
    assert len(loads) == 1
    content = pickle.loads(path.read_bytes())
    content["1.3.6.1_slice1"]["image"][:] = 1.0
    path.write_bytes(pickle.dumps(content))
    os.utime(path, ns=(0, 0))
    assert data.table.decoder.image(Part(path, "1.3.6.1_slice1")).min() == 1
    assert len(loads) == 2


# What is wrong with a folder


def test_missing_folders(tmp_path):
    root = write(tmp_path, "nested")
    with pytest.raises(FileNotFoundError, match=r"root: .*nowhere is neither .*Expected one of"):
        LIDCDataModule(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"gt/images is missing or holds no images\. Exp"):
        LIDCDataModule(root / "train/gt")
    (root / "val/gt").rename(root / "val/labels")
    with pytest.raises(FileNotFoundError, match=r"val has 0 of the folders gt and lesions, expect"):
        LIDCDataModule(root)
    (root / "val/labels").rename(root / "val/gt")
    (root / "val/lesions").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val has 2 of the folders gt and lesions, expect"):
        LIDCDataModule(root)


def test_a_missing_slot(tmp_path):
    root = write(tmp_path, "nested")
    (root / "train/gt/1.3.6.1/slice2_l2.png").unlink()
    with pytest.raises(ValueError, match=r"1\.3\.6\.1/slice2\.png lacks its mask slice2_l2 in "):
        LIDCDataModule(root)


@pytest.mark.parametrize("name", ["slice9_l0", "slice2_l4", "slice2"])
def test_a_mask_without_an_image(tmp_path, name):
    root = write(tmp_path, "nested")
    save(root / f"train/gt/1.3.6.1/{name}.png", mask_of("1", "1", 0))
    with pytest.raises(ValueError, match=rf"gt/1\.3\.6\.1/{name}\.png belongs to no image of"):
        LIDCDataModule(root)


def test_a_flat_name_without_a_series(tmp_path):
    root = write(tmp_path, "flat")
    save(root / "train/images/slice1.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"images/slice1\.png names no series, expected SERIES_SL"):
        LIDCDataModule(root)


def test_two_files_with_one_name(tmp_path):
    root = write(tmp_path, "nested")
    save(root / "train/images/1.3.6.1/slice1.tif", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"slice1\.tif and .*slice1\.png have the same name"):
        LIDCDataModule(root)


def test_a_series_in_two_splits(tmp_path):
    root = write(tmp_path, "nested")
    (root / "val/images/1.3.6.3").rename(root / "val/images/1.3.6.1")
    (root / "val/gt/1.3.6.3").rename(root / "val/gt/1.3.6.1")
    for path in sorted((root / "val").rglob("slice1*")):
        path.rename(path.with_name(path.name.replace("slice1", "slice8")))
    with pytest.raises(ValueError, match=r"1\.3\.6\.1"):
        LIDCDataModule(root)


def test_a_mask_of_another_size_or_with_other_values(tmp_path):
    root = write(tmp_path, "nested")
    path = root / "train/gt/1.3.6.1/slice2_l2.png"
    save(path, np.zeros((8, 16), np.uint8))
    with pytest.raises(ValueError, match=r"slice2_l2\.png is 16 x 8 pixels, but its image"):
        LIDCDataModule(root).table.check()
    save(path, np.full((16, 16), 7, np.uint8))
    with pytest.raises(ValueError, match=r"slice2_l2\.png holds the value\(s\) 7, expected"):
        LIDCDataModule(root).table.check()


# What is wrong with a pickle


def spoilt(tmp_path, **changes) -> Path:
    path = write(tmp_path, "pickle")
    content = pickle.loads(path.read_bytes())
    crop = content["1.3.6.1_slice2"]
    for name, value in changes.items():
        if value is None:
            del crop[name]
        else:
            crop[name] = value
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series_uid": None}, r"crop '1\.3\.6\.1_slice2' lacks series_uid, expected image, mas"),
        ({"masks": [np.zeros((16, 16))] * 3}, r"crop '1\.3\.6\.1_slice2' has 3 masks, expected 4"),
        ({"masks": 7}, r"crop '1\.3\.6\.1_slice2' has 7 for masks, expected 4"),
    ],
)
def test_crops_that_lack_something(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"data_lidc\.pickle: {message}"):
        LIDCDataModule(spoilt(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.full((16, 16), 1.5)}, r"slice2\] holds values from 1\.5 to 1\.5, expected 0"),
        ({"image": np.full((16, 16), np.nan)}, r"slice2\] holds values from nan to nan, expected"),
        ({"image": np.zeros((16, 16, 3))}, r"slice2\] is an array \[16, 16, 3\] of float64, expec"),
        ({"image": [["a", "b"]]}, r"slice2\] is an array \[1, 2\] of <U1, expected one number"),
        ({"masks": [np.full((16, 16), 2)] * 4}, r"slice2_l0\] is .* of int64, expected 0 or 1"),
        ({"masks": [np.zeros((16, 8))] * 4}, r"slice2_l0\] is 8 x 16 pixels, but its image .*16"),
    ],
)
def test_crops_with_wrong_pixels(tmp_path, changes, message):
    data = LIDCDataModule(spoilt(tmp_path, **changes), val_fraction=0.2, test_fraction=0.2)
    with pytest.raises(ValueError, match=message):
        data.table.check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"holds list, expected a dictionary of crops"),
        ({}, r"holds dict, expected a dictionary of crops"),
        ({3: {}}, r"entry 3 is no crop with a name"),
        ({"a": 3}, r"entry 'a' is no crop with a name"),
    ],
)
def test_another_pickle(tmp_path, content, message):
    path = tmp_path / "data_lidc.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        LIDCDataModule(path)


def test_a_pickle_that_runs_something(tmp_path):
    class Run:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    path = tmp_path / "data_lidc.pickle"
    path.write_bytes(pickle.dumps({"a": {"image": Run()}}))
    with pytest.raises(ValueError, match=r"data_lidc\.pickle was refused: it asks for .*\.mkdir"):
        LIDCDataModule(path)
    assert not (tmp_path / "canary").exists()


def test_the_decoder_of_pickles_reads_parts_only(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: expected a part of a pickle, not a whole file"):
        PickledCrops().image(tmp_path / "a.png")


# From the DICOM files: a stand-in with pylidc's interface, as of its version 0.2.3


class Scan:
    """A CT scan of 40 x 30 pixels and 9 slices, each slice of one density."""

    nodules: list

    def __init__(self, number: int, nodules: list, on_disk: bool = True):
        self.id, self.patient_id = number, f"LIDC-IDRI-{number // 2:04d}"
        self.nodules, self.on_disk = nodules, on_disk

    def to_volume(self, verbose=True):
        if not self.on_disk:
            raise RuntimeError(f"Couldn't find DICOM files for {self.patient_id}")
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
    return scans


def test_nodules_are_cropped(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    two = outline(slice(12, 18), slice(12, 18), slice(3, 6))
    corner = outline(slice(0, 2), slice(28, 30), slice(8, 9))
    pylidc += [Scan(2, [[one, two], [corner]]), Scan(3, [[one] * 4]), Scan(5, [])]
    assert crop_nodules(tmp_path, size=8) == 4 + 1 + 2
    assert not hasattr(np, "int")  # lent for the time of the call
    with pytest.warns(UserWarning, match="not persons"):
        data = LIDCDataModule(tmp_path, val_fraction=0, test_fraction=0)
    masks = data.table.read(find(data, "scan0002-0-slice003")).masks
    # the outlines span rows 10..17 and columns 12..17: the crop starts at row 10 and column 11
    expected = np.zeros((4, 8, 8), np.uint8)
    expected[0, 0:4, 1:5] = 1
    expected[1, 2:8, 1:7] = 1
    np.testing.assert_array_equal(masks, expected)
    assert masks[2:].max() == 0
    below = data.table.read(find(data, "scan0002-0-slice002"))
    assert below.masks[0].any()
    assert not below.masks[1].any()
    assert (below.image == round(255 * 200 / 1400)).all()  # -800 of -1000 to 400
    at_the_corner = data.table.read(find(data, "scan0002-1-slice008")).masks[0]
    assert at_the_corner[:2, 6:].all()
    assert at_the_corner.sum() == 4
    bright = data.table.read(find(data, "scan0002-1-slice008")).image
    assert (bright == 255).all()


def find(data, name):
    (sample,) = (sample for sample in data.table.samples if sample.id.endswith(name))
    return sample


def test_all_scans_of_a_patient_are_one_group(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    pylidc += [Scan(number, [[one]]) for number in (2, 3, 4)]
    crop_nodules(tmp_path, size=8)
    data = LIDCDataModule(tmp_path, val_fraction=0.4, test_fraction=0)
    groups = Counter(sample.group for sample in data.table.samples)
    assert groups == {"LIDC-IDRI-0001": 4, "LIDC-IDRI-0002": 2}


def test_a_data_module_cuts_the_crops_at_first_use(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    pylidc += [Scan(number, [[one]]) for number in (2, 4)]
    root = tmp_path / "new" / "crops"
    first = LIDCDicomDataModule(root, size=8, val_fraction=0.4, test_fraction=0)
    pylidc.clear()
    again = LIDCDicomDataModule(root, val_fraction=0.4, test_fraction=0)
    assert len(first.table) == len(again.table) == 4
    assert first.read(first.table.ids[0])["masks"].shape == (4, 8, 8)
    assert list(root.parent.iterdir()) == [root]


def test_crops_that_could_not_be_cut_leave_nothing(pylidc, tmp_path):
    pylidc += [Scan(2, [[outline(slice(0, 4), slice(0, 4), slice(2, 4))]])]
    pylidc += [Scan(4, [None])]
    with pytest.raises(TypeError):
        LIDCDicomDataModule(tmp_path / "crops", size=8)
    assert not list(tmp_path.iterdir())
    assert not hasattr(np, "int")


def test_what_is_left_out_is_said(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    pylidc += [Scan(2, [[one] * 5, [one]]), Scan(4, [[one]], on_disk=False)]
    with pytest.warns(UserWarning, match=r"1 scan\(s\) are not on disk .* are 1 group\(s\) of mo"):
        assert crop_nodules(tmp_path, size=8) == 2


def test_no_scan_is_found(pylidc, tmp_path):
    pylidc += [Scan(2, [], on_disk=False)]
    with pytest.raises(FileNotFoundError, match=r"No scan .*files for LIDC-IDRI-0001\).*pylidcrc"):
        crop_nodules(tmp_path)
    assert not hasattr(np, "int")


def test_crops_larger_than_the_slices(pylidc, tmp_path):
    one = outline(slice(10, 14), slice(12, 16), slice(2, 4))
    pylidc += [Scan(2, [[one]])]
    with pytest.raises(ValueError, match=r"size=31: a scan has slices of 40 x 30 pixels"):
        crop_nodules(tmp_path, size=31)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"hounsfield": (400, -1000)}])
def test_arguments_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"expected a size from 1 up, and the density of black"):
        crop_nodules(tmp_path, **wrong)


@pytest.mark.parametrize("missing", ["pylidc", "pylidc.utils"])
def test_the_extra_is_named_where_it_is_missing(pylidc, monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tax-lightning\[pylidc\]'"):
        crop_nodules(tmp_path)


# The real data


def test_the_real_crops(data_root):
    data = LIDCDataModule(data_root / "lidc_mini")
    samples = data.table.samples
    assert len(samples) == 71
    assert len({sample.group for sample in samples}) == 59
    assert Counter(sample.split for sample in samples) == {"train": 40, "val": 15, "test": 16}
    drawn = Counter(int(raw.masks.any((1, 2)).sum()) for raw in map(data.table.read, samples))
    assert drawn == {1: 17, 2: 18, 3: 18, 4: 18}
