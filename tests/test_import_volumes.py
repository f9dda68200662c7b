"""Volumes: masks laid on images by affines, slices, and the data sets in NIfTI."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tax_lightning.data.pixels import read_mask, read_whole
from tax_lightning.exporters import nifti as to_nifti
from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.exporters.slices import Slice
from tax_lightning.importers import array_files, dicom_seg, ms_lesion, nifti, qubiq, seg_nrrd
from tax_lightning.importers.volumes import Volume, laid_on, scaled, whole_numbers
from tax_lightning.importers.writer import write

nibabel = pytest.importorskip("nibabel")

SHAPE = (4, 5, 3)
VOXELS = np.arange(60, dtype=np.int16).reshape(SHAPE)
AFFINE = np.array([[-0.5, 0, 0, 90], [0, 0.7, 0, -40], [0, 0, 3, 7], [0, 0, 0, 1.0]])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def turned(voxels: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume stored along other axes, with the affine that says so."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    there = nibabel.orientations.axcodes2ornt(tuple(code))
    here = nibabel.orientations.io_orientation(AFFINE)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(here, there))
    return np.asarray(image.dataobj), image.affine


@pytest.fixture
def curvas(tmp_path) -> Path:
    """Two cases; annotator 2 did not label the second, and 3 drew on one slice."""
    rng = np.random.default_rng(0)
    for case, raters in (("A", (1, 2)), ("B", (1, 3))):
        save(tmp_path / case / "image.nii.gz", rng.integers(-1000, 1000, SHAPE).astype(np.int16))
        for rater in raters:
            mask = np.zeros(SHAPE, np.uint8)
            mask[1, 2:, 1] = rater
            mask[:2, 1, 2] = 1 if rater < 3 else 0
            save(tmp_path / case / f"label_annot_{rater}.nii.gz", mask)
    return tmp_path


# Where volumes lie


@given(
    code=st.sampled_from(["RAS", "LPS", "LAS", "SRP", "PIR", "ASL"]),
    mask_code=st.sampled_from(["RAS", "LPS", "AIL", "SRP"]),
)
def test_masks_stored_in_any_orientation_lie_on_their_image(code, mask_code):
    voxels = VOXELS
    (image, place), (mask, other) = turned(voxels, code), turned(voxels, mask_code)
    lie = laid_on(
        Volume(Path("mask"), mask.shape, other, lambda: mask),
        Volume(Path("image"), image.shape, place, lambda: image),
    )
    np.testing.assert_array_equal(lie(mask), image)


@pytest.mark.parametrize("off", ["origin", "spacing", "shape", "oblique"])
def test_other_grids_are_refused(tmp_path, off):
    affine, shape = AFFINE.copy(), SHAPE
    if off == "origin":
        affine[0, 3] += 0.5
    elif off == "spacing":
        affine[2, 2] = 3.3
    elif off == "shape":
        shape = (4, 4, 3)
    else:
        affine[0, 1] = 0.2
    save(tmp_path / "a" / "image.nii", np.ones(SHAPE, np.int16))
    save(tmp_path / "a" / "label_annot_1.nii", np.ones(shape, np.uint8), affine)
    with pytest.raises(ValueError, match=r"label_annot_1.nii has .* mm from .* Expected the same"):
        nifti.find(tmp_path)
    if off != "shape":
        assert len(nifti.find(tmp_path, use_affines=False).cases) == 3


def test_a_part_of_the_image_is_filled_up():
    affine = AFFINE.copy()
    affine[:, 3] = AFFINE @ [1, 2, 0, 1]
    image = Volume(Path("image"), SHAPE, AFFINE, lambda: np.zeros(SHAPE))
    part = Volume(Path("mask"), (2, 2, 3), affine, lambda: np.zeros(()))
    placed = laid_on(part, image, whole=False)(np.ones((2, 2, 3)))
    assert placed[1:3, 2:4].all()
    assert placed.sum() == 12
    with pytest.raises(ValueError, match="same grid"):
        laid_on(part, image)


@given(code=st.sampled_from(["RAS", "LPS", "SRP", "PIR", "ASL"]), axis=st.integers(0, 2))
def test_slices_go_back_to_where_they_were_cut(code, axis):
    voxels, affine = turned(VOXELS, code)
    again = np.zeros_like(voxels)
    for number in range(voxels.shape[axis]):
        part = Slice("v", number, axis, voxels.shape, affine)
        picture = part.cut(voxels)
        Slice.of(part.facts(), "v", picture.shape).put(picture, again)
    np.testing.assert_array_equal(again, voxels)


@given(code=st.sampled_from(["RAS", "LPS", "SRP", "PIR", "ASL"]))
def test_pictures_stand_upright_however_they_are_stored(code):
    voxels, affine = turned(VOXELS, code)
    axis = next(i for i, letter in enumerate(code) if letter in "SI")
    number = 0 if code[axis] == "S" else 2
    part = Slice("v", number, axis, voxels.shape, affine)
    lps, _ = turned(VOXELS, "LPS")
    np.testing.assert_array_equal(part.cut(voxels), lps[..., 0].T)
    assert part.spacing == pytest.approx((0.7, 0.5))


# NIfTI


def test_a_rater_a_file(curvas, tmp_path):
    found = nifti.find(curvas, intensity_range=(-1000, 1000))
    assert found.description.classes == ("background", "class 1", "class 2", "class 3")
    assert [case.name for case in found.cases] == [f"{c}_slice00{n}" for c in "AB" for n in (1, 2)]
    assert [sorted(case.masks) for case in found.cases] == [["1", "2"]] * 2 + [["1", "3"]] * 2
    case = found.cases[2]
    assert case.group == "B"
    assert case.facts["spacing"] == "0.7 0.5"
    # the first axis runs to the left already, the second to the front: it is turned round
    expected = np.zeros((5, 4), np.uint8)
    expected[:3, 1] = 3
    np.testing.assert_array_equal(case.masks["3"](), expected)
    out = tmp_path / "out"
    report = write(found, out)
    assert report.masks == {"1": 4, "2": 2, "3": 2}
    assert report.empty == {"3": 1}
    stored = read_whole(out / "images" / "B_slice001.tif")
    voxels = np.asarray(nibabel.load(curvas / "B" / "image.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, voxels[:, ::-1, 1].T)
    np.testing.assert_array_equal(read_mask(out / "masks/3/B_slice001.png"), expected)


def test_named_classes_and_all_slices(curvas):
    names = ("background", "liver", "kidney", "spleen")
    found = nifti.find(curvas, classes=names, empty_slices=True, axis=0)
    assert found.description.classes == names
    assert len(found.cases) == 8
    with pytest.raises(ValueError, match=r"label_annot_3.* holds the value\(s\) 3, expected 0 "):
        nifti.find(curvas, classes=names[:3])


def test_without_intensities_percentiles_become_black_and_white():
    voxels = np.arange(1001, dtype=np.float64)
    grey = scaled(voxels)
    assert grey[[0, 5, 995, 1000]].tolist() == [0, 0, 65535, 65535]
    assert grey[500] == 32768  # 65535 / 2
    assert scaled(np.array([7, 7])).tolist() == [0, 0]
    assert scaled(np.array([0] * 999 + [4])).tolist()[-1] == 65535


def test_values_that_are_not_whole_or_not_known(curvas):
    with pytest.raises(ValueError, match=r"holds 0.5, expected whole numbers"):
        whole_numbers(np.array([0, 0.5]), Path("m.nii"))
    odd = np.zeros(SHAPE, np.int32)
    odd[0, 0] = -1, 0, 70000
    save(curvas / "A" / "label_annot_1.nii.gz", odd)
    with pytest.raises(ValueError, match=r"annot_1.* holds the value\(s\) -1, 70000, expected 0"):
        nifti.find(curvas, classes=["background", "a"])


def test_broken_files_are_named(curvas):
    path = curvas / "A" / "label_annot_1.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Cannot read .*label_annot_1\.nii\.gz"):
        nifti.find(curvas, classes=["background", "a"])
    (curvas / "A" / "image.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Cannot read .*image\.nii\.gz"):
        nifti.find(curvas)


@pytest.mark.parametrize(
    ("library", "extra", "read"),
    [
        ("nibabel", "volumes", lambda root: nifti.find(root)),
        ("nibabel", "volumes", lambda root: to_nifti.write([], root)),
        ("slicerio", "slicer", lambda root: seg_nrrd.find(root, masks="{name}/l_{annotator}.nii*")),
        ("pydicom", "dicom", lambda root: dicom_seg.find(root)),
        ("h5py", "hdf5", lambda root: array_files.open_arrays(root / "a.h5")),
    ],
)
def test_a_missing_library_is_named(curvas, monkeypatch, library, extra, read):
    save(curvas / "A" / "l_1.nii", np.zeros(SHAPE, np.uint8))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "tax-lightning\[{extra}\]"'):
        read(curvas)


def test_without_known_affines_shapes_decide(tmp_path):
    for name in ("image", "label_annot_1"):
        save(tmp_path / "a" / f"{name}.nii", np.ones((4, 5), np.uint8), None)
    (case,) = nifti.find(tmp_path).cases
    assert case.name == "a"
    assert "affine" not in case.facts


def test_layers_become_files_that_are_read_again(curvas, tmp_path):
    found = nifti.find(curvas, classes=["background", "a", "b", "c"])
    pictures = []
    for case in found.cases:
        layers = [
            Layer(name, found.description.classes, mask()) for name, mask in case.masks.items()
        ]
        pictures.append(Segmented(case.name, "", tuple(layers), case.facts))
    files = to_nifti.write(pictures, tmp_path / "out")
    assert [f"{path.parent.name}/{path.name}" for path in files] == [
        *("A/1.nii.gz", "A/2.nii.gz", "B/1.nii.gz", "B/3.nii.gz")
    ]
    for path in files:
        stem = path.name.removesuffix(".nii.gz")
        source = nibabel.load(curvas / path.parent.name / f"label_annot_{stem}.nii.gz")
        again = nibabel.load(path)
        np.testing.assert_array_equal(again.affine, source.affine)
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(source.dataobj))
        assert again.header.extensions[0].get_content() in (
            *(b"0 background\n1 a\n2 b\n3 c", "0 background\n1 a\n2 b\n3 c"),
        )
    with pytest.raises(ValueError, match="came before others"):
        to_nifti.write([pictures[0], pictures[2], pictures[1]], tmp_path / "mixed")
    with pytest.raises(ValueError, match="came already"):
        to_nifti.write([pictures[0], pictures[0]], tmp_path / "twice")


def test_pictures_that_are_no_slices_are_volumes_of_one(tmp_path):
    labels = np.array([[1, 2, 255], [0, 1, 1]], np.uint8)
    (path,) = to_nifti.write([Segmented("a/b", "", (Layer("x", ("0",), labels),))], tmp_path)
    assert path == tmp_path / "a%2Fb" / "x.nii.gz"
    assert np.asarray(nibabel.load(path).dataobj).tolist() == [[[1, 2, 0], [0, 1, 1]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"slice": "9"}, "put tiles together"), ({"shape": "4"}, "expected volume, slice, axis")],
)
def test_facts_that_do_not_fit_a_picture(change, message):
    facts = Slice("v", 1, 2, SHAPE, AFFINE).facts() | change
    with pytest.raises(ValueError, match=message):
        Slice.of(facts, "v_slice001", (5, 4))


# QUBIQ


def organ(root: Path, sizes: tuple[int, ...], flat: bool = True) -> Path:
    for part, numbers in (("Training", (1, 2, 4, 10)), ("Validation", (3,))):
        for number in numbers:
            case = root / part / f"case{number:02d}"
            save(case / "image.nii.gz", np.random.default_rng(number).uniform(0, 900, sizes))
            for task in (1, 2):
                for rater in (1, 2, 3) if number != 4 else (1, 3):
                    mask = np.zeros(sizes[:2] if flat else sizes, np.float64)
                    mask[: 1 + rater, :task] = 255 if rater == 3 else 1
                    save(case / f"task{task:02d}_seg{rater:02d}.nii.gz", mask)
    return root


def test_one_task_of_an_organ(tmp_path):
    found = qubiq.find(organ(tmp_path / "brain-tumor", (6, 4, 4)), task=2, val_fraction=0.25)
    assert found.description.classes == ("background", "brain-tumor 2")
    assert len(found.description.channels) == 4
    assert not found.description.persons
    assert sorted(case.split for case in found.cases) == ["test"] + ["train"] * 3 + ["val"]
    assert found.cases[-1].name == "Validation_case03"
    assert [sorted(c.masks) for c in found.cases][2] == ["rater 1", "rater 3"]
    # rows are the second stored axis, turned round; the first one runs to the left already
    assert found.cases[0].masks["rater 3"]()[:, 0].tolist() == [0, 0, 1, 1]
    assert found.cases[0].image().shape == (4, 6, 4)
    assert all(
        c.split == "" for c in qubiq.find(tmp_path / "brain-tumor", published_split=False).cases
    )
    with pytest.raises(ValueError, match=r"task=3: .* expected one of: 1, 2\."):
        qubiq.find(tmp_path / "brain-tumor", task=3)


def test_the_pancreas_is_sliced_along_its_first_axis(tmp_path):
    root = tmp_path / "pancreas"
    for name in ("case1-1", "case1-2", "Validation/case2-1"):
        save(root / name / "image.nii.gz", np.ones((5, 4, 3), np.int16))
        mask = np.zeros((5, 4, 3), np.int16)
        mask[2, 1, 1] = 255
        save(root / name / "task01_seg01.nii.gz", mask)
    save(root / "case9" / "image.nii.gz", np.ones((5, 4, 3), np.int16))
    found = qubiq.find(root, intensity_range=(-125, 275), val_fraction=0)
    names = [
        "Training_case1-1_slice002",
        "Training_case1-2_slice002",
        "Validation_case2-1_slice002",
    ]
    assert [case.name for case in found.cases] == names
    assert [case.group for case in found.cases] == ["Training_case1"] * 2 + ["Validation_case2"]
    assert found.description.intensity_range == (-125, 275)
    assert found.left_out == ["Training/case9 has no mask for task 1."]
    assert len(qubiq.find(root, empty_slices=True, val_fraction=0).cases) == 15


def test_what_is_wrong_with_a_folder_of_qubiq(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no cases with masks"):
        qubiq.find(tmp_path)
    root = organ(tmp_path / "kidney", (6, 4))
    save(root / "Training/case01/task01_seg1.nii", np.zeros((6, 4), np.uint8))
    with pytest.raises(ValueError, match="are masks of the same task and rater"):
        qubiq.find(root)
    (root / "Training/case01/image.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case01 holds no image\.nii\.gz"):
        qubiq.find(root)


# MS lesions


@pytest.fixture
def lesions(tmp_path) -> Path:
    for patient, times in ((1, 2), (3, 1)):
        for time in range(1, times + 1):
            folder = tmp_path / "training" / f"training{patient:02d}"
            scan = f"training{patient:02d}_{time:02d}"
            for place, name in enumerate(ms_lesion.MODALITIES):
                voxels = np.zeros(SHAPE, np.float32)
                voxels[place] = np.arange(15).reshape(5, 3)
                save(folder / "preprocessed" / f"{scan}_{name}_pp.nii", voxels)
            for rater in (1, 2):
                mask = np.zeros(SHAPE, np.uint8)
                mask[1, 1, rater] = 1
                save(folder / "masks" / f"{scan}_mask{rater}.nii.gz", mask)
    return tmp_path


def test_scans_of_ms_lesions(lesions):
    found = ms_lesion.find(lesions, modalities=("t2", "flair"))
    assert found.description.channels == ("t2", "flair")
    assert [case.name for case in found.cases][:2] == [f"training01_01_slice00{n}" for n in (1, 2)]
    assert {case.group for case in found.cases} == {"training01", "training03"}
    assert len(found.cases) == 6
    image = found.cases[0].image()
    assert image[..., 0].any(axis=0).tolist() == [False, False, False, True]  # t2 is at place 3
    assert image[..., 1].any(axis=0).tolist() == [True, False, False, False]
    assert [case.masks["rater 2"]().sum() for case in found.cases[:2]] == [0, 1]


def test_what_is_wrong_with_ms_lesions(lesions):
    with pytest.raises(ValueError, match=r"modalities: \[t1\], expected one or more of flair"):
        ms_lesion.find(lesions, modalities=["t1"])
    folder = lesions / "training/training03"
    (folder / "masks/training03_01_mask1.nii.gz").unlink()
    (folder / "masks/training03_01_mask2.nii.gz").unlink()
    assert ms_lesion.find(lesions).left_out == ["training03_01 has no mask."]
    (folder / "preprocessed/training03_01_pd_pp.nii").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks training03_01_pd_pp\.nii"):
        ms_lesion.find(lesions)
    save(folder / "masks/training03_09_mask1.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match=r"training03_09_mask1\.nii belongs to no scan"):
        ms_lesion.find(lesions)
