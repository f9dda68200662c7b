"""3D Slicer: segmentations by slicerio, and those that we write."""

from pathlib import Path

import numpy as np
import pytest

from tax_lightning.exporters import seg_nrrd as to_slicer
from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.importers import seg_nrrd
from tax_lightning.importers.writer import write

slicerio = pytest.importorskip("slicerio")
nrrd = pytest.importorskip("nrrd")

SHAPE = (4, 5, 3)
LPS = np.array([[0.5, 0, 0, -90], [0, 0.7, 0, -40], [0, 0, 3, 7], [0, 0, 0, 1.0]])


def save_segmentation(path: Path, voxels: np.ndarray, *segments: tuple[str, int, int]) -> None:
    named = [{"name": name, "labelValue": v, "layer": layer} for name, v, layer in segments]
    slicerio.write_segmentation(
        str(path), {"voxels": voxels, "ijkToLPS": LPS, "segments": named}, compression_level=1
    )


def box(*place: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[place] = 1
    return mask


LIVER, CYST = box(slice(0, 3), slice(1, 4), slice(0, 2)), box(slice(2, 4), slice(2, 3), slice(1))


@pytest.fixture
def root(tmp_path) -> Path:
    """Ann's segments share a layer; Bob's overlap in two layers, one of another value."""
    folder = tmp_path / "data" / "case 1"
    folder.mkdir(parents=True)
    header = {
        "space": "left-posterior-superior",
        "space directions": LPS[:3, :3].T,
        "space origin": LPS[:3, 3],
    }
    nrrd.write(str(folder / "image.nrrd"), np.arange(60, dtype=np.int16).reshape(SHAPE), header)
    shared = LIVER * (1 - CYST) + 2 * CYST
    save_segmentation(folder / "Ann.seg.nrrd", shared, ("liver", 1, 0), ("cyst", 2, 0))
    layers = np.stack([LIVER, 3 * CYST])
    save_segmentation(folder / "Bob.seg.nrrd", layers, ("liver", 1, 0), ("cyst", 3, 1))
    return tmp_path / "data"


def test_segments_in_one_layer_and_in_several(root, tmp_path):
    found = seg_nrrd.find(root, intensity_range=(0, 59))
    assert found.description.classes == ("background", "liver", "cyst")
    assert found.left_out[0].endswith(
        "1 voxels lie in several segments, and have the class that stands last in liver, cyst."
    )
    first, _ = found.cases
    assert first.name == "case 1_slice000"
    expected = np.where(CYST, 2, LIVER)[..., 0].T  # upright as it is stored
    for by in ("Ann", "Bob"):
        np.testing.assert_array_equal(first.masks[by](), expected)
    np.testing.assert_array_equal(first.image(), np.arange(60).reshape(SHAPE)[..., 0].T)
    assert first.facts["spacing"] == "0.7 0.5"
    assert write(found, tmp_path / "out").masks == {"Ann": 2, "Bob": 2}
    other = seg_nrrd.find(root, classes=["cyst", "liver"]).cases[0]
    np.testing.assert_array_equal(other.masks["Bob"](), np.where(LIVER, 2, CYST)[..., 0].T)


def test_a_part_of_the_volume_in_another_space(root):
    part = np.ones((2, 3, 1), np.uint8)
    ras = np.diag([-1.0, -1, 1])
    header = {
        "space": "right-anterior-superior",
        "space directions": (ras @ LPS[:3, :3]).T,
        "space origin": ras @ (LPS @ [1, 2, 1, 1])[:3],
        "kinds": ["domain"] * 3,
        "Segment0_Name": "liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_ID": "a",
    }
    nrrd.write(str(root / "case 1" / "Cid.seg.nrrd"), part, header)
    labels = seg_nrrd.find(root).cases[1].masks["Cid"]()
    expected = np.zeros((5, 4), np.uint8)
    expected[2:, 1:3] = 1
    np.testing.assert_array_equal(labels, expected)


def test_layers_open_in_slicerio_and_are_read_again(root, tmp_path):
    found = seg_nrrd.find(root)
    classes = found.description.classes
    pictures = [
        Segmented(
            case.name,
            "",
            tuple(Layer(by, classes, m()) for by, m in case.masks.items()),
            case.facts,
        )
        for case in found.cases
    ]
    files = to_slicer.write(pictures, tmp_path / "out")
    assert [path.name for path in files] == ["Ann.seg.nrrd", "Bob.seg.nrrd"]
    for path in files:
        again = slicerio.read_segmentation(str(path))
        np.testing.assert_array_equal(again["voxels"], np.where(CYST, 2, LIVER))
        np.testing.assert_allclose(again["ijkToLPS"], LPS)
        assert [s["name"] for s in again["segments"]] == ["liver", "cyst"]
        assert again["segments"][1]["color"] == [0.34, 0.71, 0.91]
    (root / "case 1" / "image.nrrd").rename(files[0].parent / "image.nrrd")
    for case, second in zip(found.cases, seg_nrrd.find(tmp_path / "out").cases, strict=True):
        assert case.facts == second.facts
        for by in ("Ann", "Bob"):
            np.testing.assert_array_equal(case.masks[by](), second.masks[by]())


def test_what_is_wrong_is_named(root):
    with pytest.raises(
        ValueError, match=r"Ann.seg.nrrd has the segment 'cyst', expected some of l"
    ):
        seg_nrrd.find(root, classes=["liver"])
    path = root / "case 1" / "Ann.seg.nrrd"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"Cannot read .*Ann\.seg\.nrrd"):
        seg_nrrd.find(root)
    path.write_bytes(b"NRRD0004\nnothing\n\n")
    with pytest.raises(ValueError, match=r"Cannot read .*Ann\.seg\.nrrd"):
        seg_nrrd.find(root)
    moved = LPS.copy()
    moved[0, 3] -= 10
    slicerio.write_segmentation(
        str(path),
        {
            "voxels": LIVER,
            "ijkToLPS": moved,
            "segments": [{"name": "liver", "labelValue": 1, "layer": 0}],
        },
    )
    with pytest.raises(ValueError, match=r"Ann\.seg\.nrrd has 4 x 5 x 3 voxels .* same grid"):
        seg_nrrd.find(root)
