"""Arrays: files by NumPy, SciPy and h5py, as MATLAB and others write them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tax_lightning.importers import arrays, npc170
from tax_lightning.importers.writer import write

h5py = pytest.importorskip("h5py")

IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)
ANN = np.array([[0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]], np.uint8)
BOB = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]], np.uint8)


def npz_keys(folder: Path) -> None:
    np.savez(folder / "a.npz", image=IMAGE, **{"masks/Ann": ANN, "masks/Bob": BOB})


def npz_stack(folder: Path) -> None:
    masks = np.stack([ANN, BOB])
    np.savez_compressed(folder / "a.npz", image=IMAGE, masks=masks, annotators=["Ann", "Bob"])


def mat_struct(folder: Path) -> None:
    savemat(folder / "a.mat", {"image": IMAGE, "masks": {"Ann": ANN, "Bob": BOB.astype(float)}})


def mat_cells(folder: Path) -> None:
    names = np.array(["Ann", "Bob"], dtype=object)
    savemat(folder / "a.mat", {"image": IMAGE, "masks": np.stack([ANN, BOB]), "annotators": names})


def new_mat(folder: Path) -> None:
    """As MATLAB writes version 7.3: a header of 512 bytes, axes in reverse order."""
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        for key, value in (("image", IMAGE), ("masks", np.stack([ANN, BOB]))):
            file[key] = value.T
            file[key].attrs["MATLAB_class"] = np.bytes_("uint8")
        cells = []
        for place, name in enumerate(("Ann", "Bob")):
            file[f"#refs#/{place}"] = np.array([[ord(c)] for c in name], np.uint16)
            cells.append(file[f"#refs#/{place}"].ref)
        file.create_dataset("annotators", data=np.array([cells], h5py.ref_dtype))
        file["annotators"].attrs["MATLAB_class"] = np.bytes_("cell")
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with (folder / "a.mat").open("r+b") as file:
        file.write(head)


def hdf5(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"], file["masks"] = IMAGE, np.stack([ANN, BOB])
        file["annotators"] = ["Ann", "Bob"]


def npy(folder: Path) -> None:
    for name, value in (("images", IMAGE), ("masks/Ann", ANN), ("masks/Bob", BOB)):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "a.npy", value)


@pytest.mark.parametrize("save", [npz_keys, npz_stack, mat_struct, mat_cells, new_mat, hdf5, npy])
def test_one_picture_in_every_kind_of_file(tmp_path, save):
    folder = tmp_path / "data"
    folder.mkdir()
    save(folder)
    found = arrays.find(folder, classes=["background", "liver", "cyst"])
    (case,) = found.cases
    assert case.name == "a"
    assert case.facts == {}
    np.testing.assert_array_equal(case.image(), IMAGE)
    assert case.image().dtype == np.uint8
    np.testing.assert_array_equal(case.masks["Ann"](), ANN)
    np.testing.assert_array_equal(case.masks["Bob"](), BOB)
    assert write(found, tmp_path / "out").masks == {"Ann": 1, "Bob": 1}


def test_volumes_with_channels(tmp_path):
    image = np.random.default_rng(0).uniform(size=(2, 3, 4, 2))
    mask = np.stack([ANN, ANN * 0])
    np.savez(tmp_path / "a.npz", image=image, **{"masks/Ann": mask})
    (case,) = arrays.find(tmp_path).cases
    assert case.name == "a_slice000"
    assert case.facts == {"volume": "a", "slice": "0", "axis": "0", "shape": "2 3 4"}
    np.testing.assert_array_equal(case.image(), image[0].astype(np.float32))
    np.testing.assert_array_equal(case.masks["Ann"](), ANN)


def test_values_without_known_black_and_white(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGE.astype(np.int16) * 100, **{"masks/Ann": ANN})
    with pytest.raises(ValueError, match=r"from 0 to 1100, .* Set intensity_range, e\.g\. \[0, 11"):
        arrays.find(tmp_path).cases[0].image()
    found = arrays.find(tmp_path, intensity_range=(0, 1100))
    assert found.cases[0].image().max() == 1100
    assert found.description.intensity_range == (0, 1100)


def test_what_255_means_must_be_said(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGE, **{"masks/Ann": ANN, "masks/Bob": BOB * 0 + 255})
    with pytest.raises(ValueError, match=r"255 beside other classes\. Name the classes"):
        arrays.find(tmp_path)
    (case,) = arrays.find(tmp_path, classes=["background", "a", "b"]).cases
    assert (case.masks["Bob"]() == 255).all()


def test_objects_are_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.array([{}], object), **{"masks/Ann": ANN})
    with pytest.raises(ValueError, match=r"Cannot read .*a\.npz: Object arrays cannot be loaded"):
        arrays.find(tmp_path)
    (tmp_path / "a.npz").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"Cannot read .*a\.npz"):
        arrays.find(tmp_path)
    (tmp_path / "a.npz").rename(tmp_path / "a.mat")
    with pytest.raises(ValueError, match=r"Cannot read .*a\.mat"):
        arrays.find(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=IMAGE, **{"masks/Ann": ANN})
    method = path.read_bytes().rindex(b"PK\x01\x02") + 10  # of compression, of the last array
    stored = bytearray(path.read_bytes())
    stored[method] = 99
    path.write_bytes(stored)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.npz"):
        arrays.find(tmp_path)
    path.unlink()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = IMAGE
    stored = bytearray((tmp_path / "a.h5").read_bytes())
    stored[stored.index(b"SNOD")] = 0  # signature of the table of names
    (tmp_path / "a.h5").write_bytes(stored)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.h5"):
        arrays.find(tmp_path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"picture": IMAGE}, r"has no array 'image' but picture\. Name"),
        ({"image": IMAGE, "masks": ANN}, r"masks of shape \(3, 4\) and 0 name\(s\) in annotators"),
        ({"image": IMAGE.T, "masks/Ann": ANN}, r"the image has the shape \(4, 3\), and masks Ann"),
        ({"image": IMAGE}, "holds images but no masks"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, stored, message):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        arrays.find(tmp_path)


# NPC-170


@pytest.fixture
def npc(tmp_path) -> Path:
    def save(path: Path, shape: tuple[int, ...], labels: int) -> None:
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            for place, key in enumerate(npc170.SEQUENCES):
                file[key] = np.full(shape, place, np.float32)
                file[key][..., 0, 0] = place + 10
            for number in range(1, labels + 1):
                mask = np.zeros(shape, np.uint8)
                mask[..., :number, 1] = 1
                if len(shape) == 3:
                    mask[0] = 0
                file[f"label_a{number}"] = mask

    save(tmp_path / "training_2d" / "Sample_7_slice_3.h5", (4, 5), 4)
    save(tmp_path / "training_2d" / "Sample_7_slice_12.h5", (4, 5), 3)
    save(tmp_path / "validation" / "Sample_9.h5", (2, 4, 5), 4)
    return tmp_path


def test_slices_and_volumes_of_npc170(npc, tmp_path):
    found = npc170.find(npc, intensity_range=(0, 12))
    assert [(case.name, case.group, case.split) for case in found.cases] == [
        ("train_Sample_7_slice_12", "train_Sample_7_slice", "train"),
        ("train_Sample_7_slice_3", "train_Sample_7_slice", "train"),
        ("val_Sample_9_slice001", "val_Sample_9", "val"),
    ]
    assert [len(case.masks) for case in found.cases] == [3, 4, 4]
    for case in found.cases:
        assert case.image()[0, 0].tolist() == [10, 11, 12]
        assert case.masks["radiologist 2"]()[:, 1].tolist() == [1, 1, 0, 0]
    assert npc170.find(npc).cases[0].image().dtype == np.uint16
    assert write(found, tmp_path / "out").images == 3
    with pytest.raises(ValueError, match=r"has no array 'flair' but label_a1"):
        npc170.find(npc, sequences=["flair"])
    with pytest.raises(FileNotFoundError, match=r"expected \.h5 files in some of the folders"):
        npc170.find(npc / "validation")
