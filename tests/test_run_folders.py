"""Where the files of a run lie, and how one goes on."""

import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from tax_lightning.__main__ import main
from tax_lightning.run_folders import mark_latest, run_folder

REPO = Path(__file__).parent.parent
TINY = [
    "--config",
    str(REPO / "experiments" / "quickstart.yaml"),
    "--config",
    str(REPO / "tests" / "tiny.yaml"),
    "--trainer.max_epochs=1",
]
OFFLINE = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, of a process that belongs to no job."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "SLURM_JOB_ID",
        "SLURM_NTASKS",
        "SLURM_JOB_NAME",
        "TORCHELASTIC_RUN_ID",
        "LOCAL_RANK",
        "TAX_RUN_STARTED",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_is_one_folder_and_the_commands_after_it_find_their_way(here):
    main(["fit", *TINY, *OFFLINE])
    (dated,) = (path for path in (here / "runs" / "quickstart").iterdir() if path.name != "latest")
    latest = here / "runs" / "quickstart" / "latest"
    assert latest.resolve() == dated
    assert names(here) == ["runs"]
    assert names(dated) == ["checkpoints", "explanations", "quickstart"]
    assert names(dated / "checkpoints") == ["best.ckpt", "last.ckpt", "metrics.json"]

    def files():
        return {path for path in dated.rglob("*") if path.is_file()}

    before = files()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The dirpath has changed")
        main(["test", *TINY, "--ckpt_path", str(latest)])
    # no run of the tracker, no second configuration
    assert files() - before == {dated / "checkpoints" / "test_images.csv"}
    main(["predict", *TINY, "--ckpt_path", str(latest)])
    assert names(here) == ["runs"]
    assert (dated / "predictions" / "manifest.json").is_file()
    main(["predict", *TINY, "--ckpt_path", str(latest), "--output", "elsewhere"])
    assert (here / "elsewhere" / "manifest.json").is_file()
    main(["explain", *TINY[:-1], "--ckpt_path", str(latest), "--output", "report"])
    assert "segmented by best.ckpt" in (here / "report" / "index.html").read_text()

    with pytest.raises(SystemExit) as stop:
        main(["fit", *TINY, *OFFLINE, "--ckpt_path", str(latest)])
    said = str(stop.value)
    assert "this run is finished, it made 1 of trainer.max_epochs=1. Raise trainer.max_ep" in said
    before = torch.load(dated / "checkpoints" / "last.ckpt", weights_only=True)
    main(["fit", *TINY, *OFFLINE, "--ckpt_path", str(latest), "--trainer.max_epochs=2"])
    assert names(here / "runs" / "quickstart") == sorted([dated.name, "latest"])
    after = torch.load(dated / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == 2 * before["global_step"]
    score, now = (
        next(x for name, x in end["callbacks"].items() if "Checkpoint" in name)["best_model_score"]
        for end in (before, after)
    )
    assert now >= score
    assert latest.resolve() == dated


def test_a_saved_configuration_starts_a_run_of_its_own_in_a_folder_of_the_trainer(here):
    main(["fit", *TINY, "--trainer.logger=false", "--output=mine"])
    assert names(here) == ["mine"]
    assert names(here / "mine") == ["checkpoints", "config.yaml", "explanations"]
    config = here / "mine" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    assert settings["trainer"]["default_root_dir"] is None
    assert settings["checkpoint"]["dirpath"] is None
    assert settings["output"] is None
    before = config.stat().st_mtime_ns
    main(["fit", f"--config={config}", "--trainer.default_root_dir=again"])
    assert names(here) == ["again", "mine"]
    assert names(here / "again") == ["checkpoints", "config.yaml", "explanations"]
    assert config.stat().st_mtime_ns == before


def test_all_processes_of_a_run_and_a_requeued_job_have_one_folder(here, monkeypatch):
    first = run_folder("cells")
    first.mkdir(parents=True)
    assert run_folder("cells") != first  # another run in the same second
    monkeypatch.setenv("TAX_RUN_STARTED", "2026-01-01_00-00-00")
    assert run_folder("cells").name != "2026-01-01_00-00-00"  # a new run has its own time
    started = os.environ["TAX_RUN_STARTED"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder("cells") == first.with_name(started)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run_folder("cells") == first.with_name(started)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert run_folder("cells") == first.with_name(started)  # many runs in one interactive job
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert run_folder("cells") == Path("runs", "cells", "job-17")


def test_latest_moves_on_and_is_never_missing(here):
    for name in ("one", "two"):
        (here / name).mkdir()
        mark_latest(here / name)
        assert (here / "latest").resolve() == here / name
    assert names(here) == ["latest", "one", "two"]
    (here / "taken").mkdir()
    (here / "taken" / "latest").mkdir()
    (here / "taken" / "run").mkdir()
    with pytest.raises(OSError, match="latest"):
        mark_latest(here / "taken" / "run")
    assert names(here / "taken") == ["latest", "run"]
