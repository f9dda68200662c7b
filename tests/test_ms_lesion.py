"""MS lesions: generated folders in the official layout, and the messages for what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from layouts_pictures import fit
from written_files import save

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.cache import CachedTable
from tax_lightning.data.ms_lesion import MODALITIES, MSLesionDataModule

nibabel = pytest.importorskip("nibabel")

SHAPE = (11, 13, 6)
TIMES = {1: 2, 2: 1, 4: 2, 5: 3}  # patient -> time points; numbers skip


def image_of(patient: int, time: int, modality: str) -> np.ndarray:
    """A head of noise in a background of zeros, as after skull stripping."""
    rng = np.random.default_rng((patient, time, MODALITIES.index(modality)))
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2:-2, 2:-2] = rng.uniform(100, 400, (7, 9, 6))
    return voxels


def mask_of(patient: int, rater: int) -> np.ndarray:
    """Lesions of both raters on slice 2, of the second one on slice 4 too."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[3 : 3 + patient, 4 : 5 + rater, 2] = 1
    if rater == 2:
        mask[5, 5, 4] = 1
    return mask


@pytest.fixture
def root(tmp_path) -> Path:
    """Four patients; some files are compressed."""
    for patient, times in TIMES.items():
        folder = tmp_path / "training" / f"training{patient:02d}"
        for time in range(1, times + 1):
            scan = f"training{patient:02d}_{time:02d}"
            for modality in MODALITIES:
                suffix = ".nii.gz" if modality == "pd" else ".nii"
                file = folder / "preprocessed" / f"{scan}_{modality}_pp{suffix}"
                save(file, image_of(patient, time, modality))
            for rater in (1, 2):
                suffix = ".nii.gz" if patient == 2 else ".nii"
                save(folder / "masks" / f"{scan}_mask{rater}{suffix}", mask_of(patient, rater))
    return tmp_path


def test_a_cache_notices_a_change_of_any_modality(root, tmp_path):
    data = MSLesionDataModule(root)
    cached = CachedTable(data.table, tmp_path / "cache")
    before = cached[0].image
    path = next((root / "training/training01/preprocessed").glob("training01_01_t2_pp.nii"))
    save(path, 1000 - image_of(1, 1, "t2"))
    after = cached[0].image
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, data.table[0].image)


def test_slices_of_all_modalities(root):
    data = MSLesionDataModule(root)
    assert data.annotators == ("rater 1", "rater 2")
    assert data.classes == ("background", "lesion")
    assert data.channels == 4
    assert len(data.table) == 8 * 2
    for sample in data.table.samples:
        scan, number = sample.id.rsplit("_", 1)
        patient, time = int(scan[8:10]), int(scan[11:])
        raw = data.table.read(sample)
        assert raw.image.shape == (11, 13, 4)
        for channel, modality in enumerate(MODALITIES):
            voxels = image_of(patient, time, modality)
            low, high = np.percentile(voxels, (0.5, 99.5))
            expected = ((voxels[..., int(number)] - low) / (high - low)).clip(0, 1)
            np.testing.assert_allclose(raw.image[..., channel], expected, atol=1e-5)
        for rater in (1, 2):
            expected = mask_of(patient, rater)[..., int(number)]
            np.testing.assert_array_equal(raw.masks[rater - 1], expected)
        assert raw.present.all()


def test_chosen_modalities_in_their_order(root):
    whole = MSLesionDataModule(root).table[3]
    data = MSLesionDataModule(root, modalities=("pd", "flair"))
    assert data.channels == 2
    assert data.table[3].id == whole.id
    np.testing.assert_array_equal(data.table[3].image, whole.image[..., [2, 0]])


def test_other_axes_and_empty_slices(root):
    assert len(MSLesionDataModule(root, empty_slices=True).table) == 8 * 6
    data = MSLesionDataModule(root, axis=0, modalities=("flair",))
    assert data.table[0].id == "training01_01_003"
    assert data.table[0].image.shape == (13, 6, 1)


def test_the_folder_of_the_patients_may_be_named(root):
    assert MSLesionDataModule(root / "training").table.ids == MSLesionDataModule(root).table.ids


def test_patients_stay_in_one_split(root):
    for seed in range(4):
        table = MSLesionDataModule(
            root, val_fraction=0.25, test_fraction=0.25, split_seed=seed
        ).table
        splits: dict[str, set[str | None]] = {}
        for sample in table.samples:
            splits.setdefault(sample.id[:10], set()).add(sample.split)
        assert all(len(found) == 1 for found in splits.values())
        assert set.union(*splits.values()) == {"train", "val", "test"}


def test_a_missing_mask_means_absent(root):
    (root / "training/training04/masks/training04_02_mask2.nii").unlink()
    data = MSLesionDataModule(root)
    sample = data.read("training04_02_002")
    assert sample["present"].tolist() == [True, False]
    assert (sample["masks"][1] == IGNORE_INDEX).all()
    assert "training04_02_004" not in data.table.ids  # only the second rater drew there
    (root / "training/training04/masks/training04_02_mask1.nii").unlink()
    with pytest.warns(UserWarning, match=r"1 scan\(s\) without a mask .* training04_02"):
        assert "training04_02_002" not in MSLesionDataModule(root).table.ids


def test_other_files_do_not_disturb(root):
    folder = root / "training" / "training01"
    (folder / "orig").mkdir()
    (folder / "preprocessed" / "._training01_01_flair_pp.nii").touch()
    (folder / "masks" / "training01_01_mask3.nii").touch()
    (root / "training" / "training.txt").touch()
    assert len(MSLesionDataModule(root).table) == 8 * 2


def test_no_scans(tmp_path, root):
    for folder in (tmp_path / "nowhere", root / "training" / "training01" / "masks"):
        with pytest.raises(FileNotFoundError, match=r"holds no scans\. Expected this layout"):
            MSLesionDataModule(folder)
    for path in root.rglob("*mask*.nii*"):
        path.unlink()
    with (
        pytest.warns(UserWarning, match=r"8 scan\(s\) without a mask"),
        pytest.raises(FileNotFoundError, match=r"None of the scans in .* has a mask"),
    ):
        MSLesionDataModule(root)


@pytest.mark.parametrize("wrong", [[], ["flair", "t1"], ["t2", "t2"]])
def test_wrong_modalities(root, wrong):
    with pytest.raises(ValueError, match=r"modalities: \[.*\], expected one or more of flair, mpr"):
        MSLesionDataModule(root, modalities=wrong)


def test_a_missing_modality(root):
    (root / "training/training05/preprocessed/training05_02_pd_pp.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks training05_02_pd_pp\.nii\. Add the file"):
        MSLesionDataModule(root)
    assert MSLesionDataModule(root, modalities=["flair", "t2"]).channels == 2


def test_a_mask_without_scan(root):
    save(root / "training/training05/masks/training05_09_mask1.nii", mask_of(5, 1))
    with pytest.raises(ValueError, match=r"training05_09_mask1\.nii belongs to no scan"):
        MSLesionDataModule(root)


@pytest.mark.parametrize("name", ["preprocessed/training05_02_t2_pp", "masks/training05_02_mask2"])
def test_files_of_different_shape(root, name):
    save(root / "training/training05" / f"{name}.nii", np.zeros((11, 13, 5), np.uint8))
    with pytest.raises(ValueError, match=rf"{name}\.nii has 5 slice\(s\) of 11 x 13 voxels, but "):
        MSLesionDataModule(root)


def test_no_lesions_at_all(root):
    for path in root.rglob("*mask*.nii*"):
        save(path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match=r"All masks in .* are empty.*empty_slices=True"):
        MSLesionDataModule(root)


def test_the_configuration_runs(root, tmp_path, capsys):
    fit("ms_lesion", root, tmp_path)
    assert "fused_dice" in capsys.readouterr().out
