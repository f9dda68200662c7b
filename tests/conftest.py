"""Settings and fixtures that every test shares."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from short_last_fit import SHORT_LAST_FIT
from written_files import save

# A tiny network's step takes a hundred times as long with two threads as with one on a busy
# machine. The variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# No test may need the network: weights that are not at hand fail at once, not after a time-out.
os.environ["HF_HUB_OFFLINE"] = "1"

# A slow machine is no failure, and the same commit gives the same result everywhere.
settings.register_profile("tax", deadline=None, derandomize=True, database=None)
settings.load_profile("tax")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; a test that asks for it skips where there is none."""
    folder = os.environ.get("TAX_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set TAX_TEST_DATA to the folder that holds the data sets")
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"TAX_TEST_DATA={folder!r} is not a folder: correct or unset it")
    return Path(folder)


@pytest.fixture(scope="session")
def imported(
    data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Gives the folder that ``tax import SOURCE`` makes of a real data set, made once."""
    done: dict[str, Path] = {}

    def folder_of(source: str, name: str) -> Path:
        from tax_lightning.__main__ import main

        if source not in done:
            done[source] = tmp_path_factory.mktemp("imported") / source
            main(["import", source, str(data_root / name), str(done[source])])
        return done[source]

    return folder_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the black images a.png and b.png of 6 rows and 8 columns."""
    for name in "ab":
        save(tmp_path / "images" / f"{name}.png", np.zeros((6, 8), np.uint8))
    return tmp_path / "images"


@pytest.fixture(scope="session", autouse=True)
def _isolated_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B sends nothing, and writes nothing outside the tests' temporary folder."""
    folder = str(tmp_path_factory.mktemp("wandb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for place in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(place, folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_last_fit() -> Iterator[None]:
    """The kernels' last fit takes few steps and pixels, since many tests train a tiny network."""
    from tax_lightning.modules import calibration

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT_LAST_FIT.items():
            patch.setattr(calibration, name, value)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)
