"""DICOM segmentations: series made by pydicom, segmentations by highdicom."""

from pathlib import Path

import numpy as np
import pytest

from tax_lightning.importers import dicom_seg
from tax_lightning.importers.writer import write

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

ROWS, COLUMNS, SLICES = 6, 5, 4
CT = "1.2.840.10008.5.1.4.1.1.2"


def voxel(row: int, column: int, number: int) -> int:
    return 100 * number + 10 * row + column


@pytest.fixture
def series(tmp_path) -> list[pydicom.Dataset]:
    """Four axial slices, written in another order than they lie in."""
    uid, frame, study = (pydicom.uid.generate_uid(entropy_srcs=[name]) for name in "abc")
    found = []
    for number in range(SLICES):
        head = pydicom.Dataset()
        head.file_meta = pydicom.dataset.FileMetaDataset()
        head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = CT
        head.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[f"slice {number}"])
        head.file_meta.MediaStorageSOPInstanceUID = head.SOPInstanceUID
        head.SeriesInstanceUID, head.FrameOfReferenceUID, head.StudyInstanceUID = uid, frame, study
        head.PatientID, head.Modality, head.SeriesNumber = "P1", "CT", 1
        for key in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
            setattr(head, key, "")
        head.StudyID = head.StudyDate = head.StudyTime = head.ReferringPhysicianName = ""
        head.PositionReferenceIndicator, head.Manufacturer, head.SliceThickness = "", "x", 3
        head.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        head.ImagePositionPatient = [-20, -30, 7 + 3 * number]
        head.PixelSpacing = [0.7, 0.5]
        head.Rows, head.Columns, head.SamplesPerPixel = ROWS, COLUMNS, 1
        head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 16, 16, 15, 1
        head.PhotometricInterpretation = "MONOCHROME2"
        head.RescaleSlope, head.RescaleIntercept, head.InstanceNumber = 1, -1000, number + 1
        pixels = np.fromfunction(lambda r, c, n=number: voxel(r, c, n), (ROWS, COLUMNS))
        head.PixelData = pixels.astype(np.int16).tobytes()
        found.append(head)
    (tmp_path / "ct").mkdir()
    for place, head in enumerate(found):
        head.save_as(tmp_path / "ct" / f"{SLICES - place}.dcm", enforce_file_format=True)
    return found


def segment(path: Path, series, masks: np.ndarray, labels: list[str], creator: str, kind="BINARY"):
    """Masks ``[slices, rows, columns, segments]`` of these slices."""
    code = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [
        hd.seg.SegmentDescription(i + 1, name, code, code, "MANUAL")
        for i, name in enumerate(labels)
    ]
    written = hd.seg.Segmentation(
        series,
        masks,
        kind,
        described,
        pydicom.uid.generate_uid(),
        9,
        pydicom.uid.generate_uid(),
        1,
        "x",
        "x",
        "1",
        "1",
        content_creator_name=creator,
    )
    path.parent.mkdir(exist_ok=True)
    written.save_as(path)


@pytest.fixture
def root(series, tmp_path) -> Path:
    masks = np.zeros((SLICES, ROWS, COLUMNS, 2), np.uint8)
    masks[1:3, 1:4, 0:2, 0] = 1
    masks[2, 3:5, 1:3, 1] = 1  # one pixel is in both
    segment(tmp_path / "seg" / "1.dcm", series, masks, ["liver", "cyst"], "Ann^")
    # Bob drew on the outer slices alone, of which highdicom stores no others
    outer = np.zeros((SLICES, ROWS, COLUMNS, 1), np.uint8)
    outer[[0, 3], 5, 4] = 1
    segment(tmp_path / "seg" / "2.dcm", series[::-1], outer, ["cyst"], "Bob^")
    (tmp_path / "readme.txt").write_text("no DICOM")
    return tmp_path


def test_segmentations_lie_on_their_series(root, tmp_path):
    found = dicom_seg.find(root, intensity_range=(-1000, 0))
    assert found.description.classes == ("background", "liver", "cyst")
    assert [case.name for case in found.cases] == [f"P1_slice00{n}" for n in range(4)]
    ann = [case.masks["Ann"]() for case in found.cases]
    bob = [case.masks["Bob"]() for case in found.cases]
    for number, case in enumerate(found.cases):
        expected = np.zeros((ROWS, COLUMNS), np.uint8)
        if number in (1, 2):
            expected[1:4, 0:2] = 1
        if number == 2:
            expected[3:5, 1:3] = 2
        np.testing.assert_array_equal(ann[number], expected)
        assert bob[number].sum() == (2 if number in (0, 3) else 0)
        assert case.image()[2, 3] == voxel(2, 3, number) - 1000
    assert bob[0][5, 4] == 2
    assert found.cases[0].facts["spacing"] == "0.7 0.5"
    assert found.left_out[0] == "1 files that are no DICOM images."
    assert "1.dcm: 1 voxels lie in several segments" in found.left_out[1]
    assert write(found, tmp_path / "out").masks == {"Ann": 4, "Bob": 4}


def test_fractional_segments_are_cut_at_one_half(root, series):
    shares = np.zeros((SLICES, ROWS, COLUMNS), np.float32)
    shares[0, 0, :3] = 0.4, 0.6, 1
    segment(root / "seg" / "3.dcm", series, shares, ["liver"], "Cid^", "FRACTIONAL")
    case = dicom_seg.find(root).cases[0]
    assert case.masks["Cid"]()[0].tolist() == [0, 1, 1, 0, 0]


def test_label_maps(root, series):
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[0, 0, :2] = 1, 2
    segment(root / "seg" / "3.dcm", series, labels, ["cyst", "liver"], "Cid^", "LABELMAP")
    case = dicom_seg.find(root).cases[0]
    assert case.masks["Cid"]()[0].tolist() == [2, 1, 0, 0, 0]


def test_annotators_by_file(root):
    assert sorted(dicom_seg.find(root, annotator="file").cases[0].masks) == ["1", "2"]
    with pytest.raises(ValueError, match=r"annotator: 'x', expected one of creator, file, folder"):
        dicom_seg.find(root, annotator="x")
    with pytest.raises(ValueError, match=r"2\.dcm and .*1\.dcm are both by 'seg' and of one"):
        dicom_seg.find(root, annotator="folder")
    with pytest.raises(ValueError, match=r"1\.dcm says nothing of its series"):
        dicom_seg.find(root, annotator="series")


def test_what_is_wrong_is_named(root):
    with pytest.raises(ValueError, match=r"1\.dcm has the segment 'cyst', expected some of liver"):
        dicom_seg.find(root, classes=["liver"])
    (root / "ct" / "3.dcm").unlink()
    with pytest.raises(ValueError, match=r"slices in .*ct are 3.0 to 6.0 mm apart"):
        dicom_seg.find(root)
    for path in (root / "ct").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"1\.dcm belongs to .* of which 0 are there"):
        dicom_seg.find(root)
    with pytest.raises(FileNotFoundError, match="holds no DICOM segmentation"):
        dicom_seg.find(root / "ct")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("ct/1.dcm", {"PixelSpacing": None}),
        ("ct/2.dcm", {"ImagePositionPatient": [1, 2]}),
        ("ct/1.dcm", {"ImageOrientationPatient": [0] * 6}),
        ("seg/1.dcm", {"SegmentSequence": None}),
        ("seg/1.dcm", {"PerFrameFunctionalGroupsSequence": None}),
        ("seg/1.dcm", {"Rows": None}),
    ],
)
def test_a_damaged_header_is_named(root, file, change):
    head = pydicom.dcmread(root / file)
    for key, value in change.items():
        setattr(head, key, value)
        if value is None:
            delattr(head, key)
    head.save_as(root / file)
    with pytest.raises(ValueError, match=rf"^(Cannot read )?\S*{file}"):
        dicom_seg.find(root)
