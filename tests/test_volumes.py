"""Slices of NIfTI files: that they are what was written, and what is said of broken files."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import save

import tax_lightning.data.volumes as volumes
from tax_lightning.data.files import Part, Window
from tax_lightning.data.volumes import Volumes, find_volumes, slice_scan

nibabel = pytest.importorskip("nibabel")


def volume(*shape: int, dtype: type = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# What is read


@given(
    sides=st.tuples(*[st.integers(2, 5)] * 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    axis=st.integers(0, 2),
    data=st.data(),
)
def test_a_slice_is_what_was_written(tmp_path_factory, sides, dtype, suffix, axis, data):
    voxels = volume(*sides, dtype=dtype)
    path = save(tmp_path_factory.mktemp("volume") / f"mask{suffix}", voxels)
    number = data.draw(st.integers(0, sides[axis] - 1))
    expected = voxels.take(number, axis)
    decoder = Volumes(axis=axis, intensity_range=(0, voxels.size))
    np.testing.assert_array_equal(decoder.mask(Part(path, number)), expected)
    image = decoder.image(Part(path, number))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[..., 0], expected / voxels.size, rtol=1e-6)
    assert decoder.image_shape(path) == (*expected.shape, sides[axis])


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (1, 4, 3), (4, 1, 3), (4, 3, 1, 1)])
def test_a_picture_may_be_stored_as_one_slice(tmp_path, shape):
    path = save(tmp_path / "mask.nii.gz", volume(*shape))
    assert Volumes().mask_shape(path) == (4, 3, 1)
    np.testing.assert_array_equal(Volumes().mask(Part(path, 0)), volume(4, 3))
    np.testing.assert_array_equal(Volumes().mask(path), volume(4, 3))


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 1, 2), (4, 3, 5, 2)])
def test_modalities_may_be_the_last_axis(tmp_path, shape):
    voxels = volume(*shape)
    path = save(tmp_path / "image.nii", voxels)
    decoder = Volumes(channels=2, intensity_range=(0, voxels.size))
    slices = shape[2] if len(shape) == 4 else 1
    assert decoder.image_shape(path) == (4, 3, slices)
    expected = voxels.reshape(4, 3, slices, 2)[:, :, -1]
    found = decoder.image(Part(path, slices - 1))
    np.testing.assert_allclose(found, expected / voxels.size, rtol=1e-6)


def test_modalities_may_be_files_plain_and_compressed(tmp_path):
    first, second = volume(4, 3, 5), volume(4, 3, 5)[::-1]
    path = save(tmp_path / "a_flair.nii", first)
    save(tmp_path / "a_t2.nii.gz", second)
    decoder = Volumes(2, intensity_range=(0, 60), endings=("_flair", "_t2"))
    found = decoder.image(Part(path, 4))
    np.testing.assert_allclose(found[..., 0], first[..., 4] / 60, rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], second[..., 4] / 60, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_intensities_are_scaled_by_percentiles_of_the_whole_volume(tmp_path, suffix):
    voxels = np.arange(1001.0, dtype=np.float32).reshape(7, 11, 13)  # percentiles 5 and 995
    image = Volumes().image(Part(save(tmp_path / f"image{suffix}", voxels), 6))
    np.testing.assert_allclose(image[..., 0], ((voxels[..., 6] - 5) / 990).clip(0, 1), atol=1e-6)


def test_each_modality_has_its_own_scale(tmp_path):
    voxels = np.stack([volume(4, 3), 100 * volume(4, 3) - 50], axis=-1)
    image = Volumes(channels=2).image(save(tmp_path / "image.nii", voxels))
    np.testing.assert_allclose(image[..., 0], image[..., 1], atol=1e-5)
    assert image.min() == 0
    assert image.max() == 1


def test_a_nearly_constant_volume_is_scaled_by_its_extremes(tmp_path):
    voxels = np.zeros((20, 20, 4), np.int16)
    voxels[3, 5, 2] = 40
    image = Volumes().image(Part(save(tmp_path / "image.nii", voxels), 2))
    assert image[3, 5, 0] == 1
    assert image.sum() == 1


def test_a_constant_volume_is_black(tmp_path):
    path = save(tmp_path / "image.nii", np.full((4, 3, 2), -7, np.int16))
    assert (Volumes().image(Part(path, 1)) == 0).all()


def test_voxels_that_are_no_numbers(tmp_path):
    voxels = volume(4, 3, dtype=np.float32)
    voxels[0, :] = np.nan, np.inf, -np.inf
    image = Volumes(intensity_range=(0, 12)).image(save(tmp_path / "a.nii", voxels))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 0])
    image = Volumes().image(save(tmp_path / "b.nii.gz", voxels))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 0])
    assert image[3, 2] == 1  # the percentiles are those of the numbers
    nothing = save(tmp_path / "c.nii", np.full((4, 3), np.nan, np.float32))
    assert (Volumes().image(nothing) == 0).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_slope_in_the_header_is_applied(tmp_path, suffix):
    image = nibabel.Nifti1Image(np.array([[0, 1], [1, 0]], np.float64), np.eye(4))
    image.set_data_dtype(np.uint8)  # stored as 0 and 255 with a slope of 1/255
    nibabel.save(image, tmp_path / f"mask{suffix}")
    assert nibabel.load(tmp_path / f"mask{suffix}").dataobj.slope == pytest.approx(1 / 255)
    np.testing.assert_array_equal(Volumes().mask(tmp_path / f"mask{suffix}"), [[0, 1], [1, 0]])


def test_a_window_is_cut_from_the_slice(tmp_path):
    path = save(tmp_path / "image.nii.gz", volume(8, 6, 3))
    part, window = Part(path, 1), Window(2, 1, 4, 3)
    np.testing.assert_array_equal(Volumes().image(part, window), Volumes().image(part)[2:6, 1:4])
    np.testing.assert_array_equal(Volumes().mask(part, window), volume(8, 6, 3)[2:6, 1:4, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_where_something_is_drawn(tmp_path, axis):
    voxels = np.zeros((4, 3, 5), np.uint8)
    voxels[2, 1, 3] = 1
    drawn = Volumes(axis=axis).drawn(save(tmp_path / "mask.nii.gz", voxels))
    assert np.flatnonzero(drawn).tolist() == [(2, 1, 3)[axis]]
    assert len(drawn) == voxels.shape[axis]
    flat = save(tmp_path / "flat.nii", voxels[:, 1])
    assert Volumes(axis=axis).drawn(flat).tolist() == [True]


# Compressed volumes are kept, within bounds


def count_decompressions(monkeypatch) -> list[tuple[int, ...]]:
    """A list that grows by one entry with every volume that is decompressed."""
    opened: list[tuple[int, ...]] = []
    compact = volumes._compact

    def counted(voxels):
        opened.append(voxels.shape)
        return compact(voxels)

    monkeypatch.setattr(volumes, "_compact", counted)
    monkeypatch.setattr(volumes, "_DECOMPRESSED", volumes._Decompressed())
    return opened


def test_a_compressed_volume_is_decompressed_once(tmp_path, monkeypatch):
    opened = count_decompressions(monkeypatch)
    path = save(tmp_path / "image.nii.gz", volume(4, 3, 20))
    for number in range(20):
        Volumes().image(Part(path, number))
    assert len(opened) == 1


def test_kept_volumes_take_no_more_than_the_bound(tmp_path, monkeypatch):
    opened = count_decompressions(monkeypatch)
    paths = [save(tmp_path / f"{name}.nii.gz", volume(4, 5, 5)) for name in "abc"]  # 200 bytes each
    monkeypatch.setattr(volumes, "CACHE_BYTES", 400)
    for path in paths:
        Volumes().mask(Part(path, 0))
    assert volumes._DECOMPRESSED.nbytes == 400
    Volumes().mask(Part(paths[2], 1))
    assert len(opened) == 3
    Volumes().mask(Part(paths[0], 1))  # the first one went
    assert len(opened) == 4
    monkeypatch.setattr(volumes, "CACHE_BYTES", 1)
    np.testing.assert_array_equal(Volumes().mask(Part(paths[1], 2)), volume(4, 5, 5)[..., 2])
    assert volumes._DECOMPRESSED.nbytes == 200


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_that_changed_is_read_anew(tmp_path, suffix):
    path = save(tmp_path / f"image{suffix}", volume(4, 3, 2))
    before = Volumes().image(Part(path, 0))
    save(path, volume(5, 3, 2)[::-1])
    os.utime(path, ns=(1, 1))
    after = Volumes().image(Part(path, 0))
    assert before.shape == (4, 3, 1)
    assert after.shape == (5, 3, 1)
    assert after[0, 0] > after[4, 0]


def test_pixels_handed_out_do_not_change_the_kept_ones(tmp_path):
    part = Part(save(tmp_path / "image.nii.gz", volume(4, 3, 2)), 1)
    Volumes().image(part)[:] = 0.5
    with pytest.raises(ValueError, match="read-only"):
        Volumes().mask(part)[:] = 7
    np.testing.assert_array_equal(Volumes().mask(part), volume(4, 3, 2)[..., 1])


# What is said of what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"channels=0: expected at least 1"),
        ({"axis": 3}, r"axis=3: expected 0, 1 or 2"),
        ({"intensity_range": (5, 5)}, r"intensity_range=\(5, 5\): expected two numbers"),
        ({"endings": ("_a", "_b")}, r"expected one for each of the 1 channels"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Volumes(**options)


def test_masks_that_are_no_whole_numbers(tmp_path):
    for value in (0.5, np.nan, np.inf):
        path = save(tmp_path / "mask.nii", np.array([[0, 1], [value, 0]], np.float32))
        with pytest.raises(ValueError, match=rf"mask.nii \[0\] holds {value}, expected whole"):
            Volumes().mask(Part(path, 0))


def test_values_beyond_any_grey_value_stay_unknown(tmp_path):
    path = save(tmp_path / "mask.nii", np.array([[-3, 1], [1e12, 0]], np.float32))
    np.testing.assert_array_equal(Volumes().mask(path), [[-1, 1], [65536, 0]])


def test_a_slice_that_is_not_there(tmp_path):
    path = save(tmp_path / "mask.nii.gz", volume(4, 3, 2))
    for number in (-1, 2):
        with pytest.raises(
            ValueError, match=rf"has no slice {number}, expected one of its 2 slice"
        ):
            Volumes().mask(Part(path, number))
    with pytest.raises(ValueError, match=r"expected the number of a slice in brackets, found 'b'"):
        Volumes().mask(Part(path, "b"))


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3), (2, 3, 4, 3, 4)])
def test_another_number_of_modalities(tmp_path, shape):
    path = save(tmp_path / "image.nii", volume(*shape))
    text = r"holds an array of .*expected a picture \(two axes\) or a volume .* 4 modalities"
    with pytest.raises(ValueError, match=text):
        Volumes(channels=4).image(Part(path, 0))


def test_a_missing_modality(tmp_path):
    decoder = Volumes(2, endings=("_flair", "_t2"))
    path = save(tmp_path / "a_flair.nii", volume(4, 3, 2))
    with pytest.raises(ValueError, match=r"a_t2\.nii is not there, neither plain nor compressed"):
        decoder.image(Part(path, 0))
    with pytest.raises(ValueError, match=r"expected a name that ends in '_flair'"):
        decoder.image(Part(save(tmp_path / "b.nii", volume(4, 3)), 0))
    save(tmp_path / "a_t2.nii", volume(4, 3, 3))
    with pytest.raises(ValueError, match=r"a_t2\.nii has 3 slice\(s\) of 4 x 3 voxels, but"):
        decoder.image_shape(path)


def spoil(path: Path, way: str) -> None:
    whole = path.read_bytes()
    spoilt = {
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"no volume at all" * 40,
        "flipped": whole[:800] + bytes(byte ^ 255 for byte in whole[800:900]) + whole[900:],
    }
    path.write_bytes(spoilt[way])


@pytest.mark.parametrize("way", ["cut off", "empty", "text", "flipped", "gone"])
def test_broken_compressed_files(tmp_path, way):
    noise = np.random.default_rng(0).integers(0, 999, (16, 16, 8)).astype(np.int16)
    path = save(tmp_path / "image.nii.gz", noise)
    path.unlink() if way == "gone" else spoil(path, way)
    text = r"Cannot read .*image\.nii\.gz: .*Expected a whole NIfTI file \(\.nii, \.nii\.gz\)"
    with pytest.raises(ValueError, match=f"(?s){text}"):
        Volumes().image(Part(path, 7))


@pytest.mark.parametrize("way", ["cut off", "empty", "text"])
def test_broken_plain_files(tmp_path, way):
    path = save(tmp_path / "image.nii", volume(16, 16, 8))
    spoil(path, way)
    with pytest.raises(ValueError, match=r"(?s)Cannot read .*image\.nii: .*Expected a whole NIfTI"):
        Volumes().image(Part(path, 7))


def test_colour_files(tmp_path):
    colours = np.zeros((4, 3, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = save(tmp_path / "image.nii", colours)
    with pytest.raises(ValueError, match=r"image\.nii: its voxels are of type .*expected numbers"):
        Volumes().image(path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "image.nii", volume(4, 3))
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "nibabel":
            raise ModuleNotFoundError("No module named 'nibabel'", name="nibabel")
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tax-lightning\[volumes\]'"):
        Volumes().image(path)


# Folders and scans


def test_files_of_a_folder(tmp_path):
    for name in ("b.nii.gz", "a.1.nii", ".hidden.nii", "._a.nii.gz", "notes.txt", "c.gz"):
        (tmp_path / name).touch()
    assert {name: path.name for name, path in find_volumes(tmp_path).items()} == {
        "a.1": "a.1.nii",
        "b": "b.nii.gz",
    }
    assert find_volumes(tmp_path / "nowhere") == {}
    (tmp_path / "b.nii").touch()
    with pytest.raises(ValueError, match=r"b\.nii\.gz and .*b\.nii have the same name 'b'"):
        find_volumes(tmp_path)


def test_a_scan_without_its_empty_slices(tmp_path):
    image = save(tmp_path / "image.nii", volume(4, 3, 6))
    ann, bob = np.zeros((2, 4, 3, 6), np.uint8)
    ann[0, 0, 1] = bob[0, 0, 4] = 1
    masks = {
        "Ann": save(tmp_path / "ann.nii.gz", ann),
        "Bob": save(tmp_path / "bob.nii", bob),
    }
    samples = slice_scan("scan", image, masks, "patient", Volumes())
    assert [sample.id for sample in samples] == ["scan_001", "scan_004"]
    assert samples[1].image == Part(image, 4)
    assert samples[1].masks == {name: Part(path, 4) for name, path in masks.items()}
    assert {sample.group for sample in samples} == {"patient"}
    assert len(slice_scan("scan", image, masks, "patient", Volumes(), empty_slices=True)) == 6
    nobody = slice_scan("scan", image, {"Ann": save(tmp_path / "no.nii", 0 * ann)}, "", Volumes())
    assert nobody == ()


def test_a_scan_of_one_slice_is_kept(tmp_path):
    image = save(tmp_path / "image.nii.gz", volume(4, 3, 1))
    mask = save(tmp_path / "mask.nii.gz", np.zeros((4, 3), np.uint8))
    (sample,) = slice_scan("scan", image, {"Ann": mask}, "", Volumes())
    assert sample.id == "scan"


def test_files_of_different_shape(tmp_path):
    image = save(tmp_path / "image.nii", volume(4, 3, 6))
    for shape in ((3, 4, 6), (4, 3, 5), (4, 3)):
        mask = save(tmp_path / "mask.nii", volume(*shape))
        text = r"mask\.nii has .* voxels, but .*image\.nii has 6 slice\(s\) of 4 x 3 voxels"
        with pytest.raises(ValueError, match=text):
            slice_scan("scan", image, {"Ann": mask}, "", Volumes())
