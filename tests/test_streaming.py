"""Shards: what is written is what is read, in training once an epoch, also after a stop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from two_processes import in_two_processes
from written_files import save

from tax_lightning.__main__ import main
from tax_lightning.data import FolderDataModule, StreamingDataModule, collate_samples, write_shards
from tax_lightning.data.description import Description
from tax_lightning.data.shards import _packed, _unpacked

boto3 = pytest.importorskip("boto3")
downloader = pytest.importorskip("litdata.streaming.downloader")
REPO = Path(__file__).parent.parent
SPLITS = {"train": 24, "val": 5, "test": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """32 images of several sizes; of Bob every third mask is missing, every fifth one empty."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    lines = ["name,split,group,scanner"]
    for number in range(sum(SPLITS.values())):
        name, size = f"scan{number:02d}", (20 + number % 3, 24)
        save(root / "images" / f"{name}.png", rng.integers(0, 4000, size, np.uint16))
        mask = rng.integers(0, 3, size, np.uint8)
        save(root / "masks" / "Ann" / f"{name}.png", mask)
        if number % 3:
            save(root / "masks" / "Bob" / f"{name}.png", mask * (number % 5 > 0))
        mask[:4] = 255
        if number % 2:
            save(root / "reference" / f"{name}.png", mask)
        split = next(s for s, end in (("train", 24), ("val", 29), ("test", 32)) if number < end)
        lines.append(f"{name},{split},{split}{number // 2},{'AB'[number % 2]}")
    (root / "samples.csv").write_text("\n".join(lines))
    (root / "annotators.csv").write_text("annotator,tool\nAnn,pen\nBob,mouse\n")
    Description("scans", ("back", "cell", "rim"), ("grey",), (0, 4095), False).write(root)
    return root


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory) -> Path:
    """The same as shards."""
    place = tmp_path_factory.mktemp("streamed") / "shards"
    main(["optimize", str(root), str(place)])
    return place


def stream(place, **options) -> StreamingDataModule:
    return StreamingDataModule(place, **{"train_transforms": "none", "batch_size": 4} | options)


def assert_same(first: object, second: object) -> None:
    assert type(first) is type(second)
    if isinstance(first, np.ndarray | torch.Tensor):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        assert first == second


# What is written is what is read


def test_all_that_a_data_module_says_is_the_same(root, shards):
    folder, streamed = FolderDataModule(root, group_by="tool"), stream(shards, group_by="tool")
    for name in ("annotators", "classes", "channels", "metadata", "groups", "persons"):
        assert_same(getattr(folder, name), getattr(streamed, name))
    assert streamed.preparation == folder.preparation
    assert streamed.preparation.intensity_range == (0, 4095)
    groups = {s.id: s.group for s in folder.table.samples}
    assert streamed.contents.sample_groups == groups


@pytest.mark.parametrize("split", SPLITS)
def test_every_sample_is_the_same(root, shards, split):
    folder, streamed = (
        data._samples_of(split) for data in (FolderDataModule(root), stream(shards))
    )
    assert len(folder.ids) == SPLITS[split]
    # Those for training are mixed, so that a shard does not hold the slices of one patient.
    assert (tuple(streamed.ids) == folder.ids) == (split != "train")
    assert sorted(streamed.ids) == sorted(folder.ids)
    for index, name in enumerate(streamed.ids):
        assert_same(vars(folder[folder.ids.index(name)]), vars(streamed[index]))


@pytest.mark.parametrize("loader", ["val", "test", "predict"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same(root, shards, loader, workers):
    folder, streamed = (
        getattr(data, f"{loader}_dataloader")()
        for data in (FolderDataModule(root, batch_size=4), stream(shards, num_workers=workers))
    )
    batches = list(zip(folder, streamed, strict=True))
    assert len(batches) == len(folder)
    for first, second in batches:
        assert_same(first, second)


@pytest.mark.parametrize("loader", ["train", "projection"])
def test_training_batches_are_the_same(root, shards, loader):
    folder = FolderDataModule(root)
    samples = {sample["id"]: sample for sample in folder.projection_dataloader().dataset}
    for batch in getattr(stream(shards), f"{loader}_dataloader")():
        expected = collate_samples([samples[name] for name in batch["id"]], folder.annotators)
        assert_same(batch, expected)


def test_read_finds_a_sample_of_any_split(root, shards):
    folder, streamed = FolderDataModule(root), stream(shards)
    for name in ("scan01", "scan24", "scan31"):
        assert_same(folder.read(name), streamed.read(name))
    with pytest.raises(KeyError, match="No sample has the id 'scan99'"):
        streamed.read("scan99")


def test_patches_and_drawn_splits_are_kept(root, tmp_path):
    folder = FolderDataModule(root, patch_size=16, patch_stride=12)
    write_shards(folder, tmp_path / "patches")
    streamed = stream(tmp_path / "patches")
    for split in ("train", "val"):
        own, other = folder._samples_of(split), streamed._samples_of(split)
        assert sorted(own.ids) == sorted(other.ids)
        assert_same(vars(own[own.ids.index(other.ids[3])]), vars(other[3]))


def test_fewer_labels_and_staple_work_on_what_is_streamed(root, shards):
    folder = FolderDataModule(root, labels_per_image=1)
    streamed = stream(shards, labels_per_image=1)
    for data in (folder, streamed):
        data.use_staple()
    samples = {sample["id"]: sample for sample in folder.projection_dataloader().dataset}
    for batch in streamed.train_dataloader():
        assert (batch["present"].sum(1) == 1).all()
        assert_same(batch, collate_samples([samples[n] for n in batch["id"]], folder.annotators))


@pytest.mark.parametrize("highest", [0, 1, 2, 3, 6, 7, 253, 254])
@pytest.mark.parametrize("ignore", [False, True])
def test_labels_come_back_from_their_bits(highest, ignore):
    labels = np.random.default_rng(0).integers(0, highest + 1, (3, 5, 7)).astype(np.uint8)
    labels[0, 0, 0] = highest
    labels[1, 1] = 255 if ignore else 0
    packed = _packed(labels)
    assert_same(_unpacked(packed, labels.shape), labels)
    bits = max(1, (highest + ignore).bit_length())
    assert len(packed) == 1 + bits * 14  # 105 pixels


# Order


def ids_of(loader) -> list[str]:
    return [name for batch in loader for name in batch["id"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_comes_once_an_epoch_in_another_order(shards, workers):
    loader = stream(shards, num_workers=workers).train_dataloader()
    first, second = ids_of(loader), ids_of(loader)
    assert sorted(first) == sorted(second) == [f"scan{number:02d}" for number in range(24)]
    assert first != second
    assert first != sorted(first)
    assert first == ids_of(stream(shards, num_workers=workers).train_dataloader())
    assert first != ids_of(stream(shards, num_workers=workers, seed=1).train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_fills_no_batch_is_left_out_other_samples_each_epoch(shards, workers):
    loader = stream(shards, batch_size=5, num_workers=workers).train_dataloader()
    first, second = ids_of(loader), ids_of(loader)
    assert len(loader) == 4
    assert len(set(first)) == len(first) == len(set(second)) == len(second) == 20
    assert set(first) != set(second)
    assert len(ids_of(stream(shards, batch_size=32).train_dataloader())) == 24


class Noting(L.LightningModule):
    """Notes the samples that it trains with; stops once in the middle of an epoch."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.layer, self.stop_at = nn.Linear(1, 1), stop_at
        self.seen: list[tuple[int, str]] = []

    def training_step(self, batch, batch_idx):
        self.seen += [(self.current_epoch, name) for name in batch["id"]]
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.trainer.should_stop = self.trainer.global_step == self.stop_at

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, module: Noting, checkpoint: Path | None = None, **options) -> L.Trainer:
    quiet = {f"enable_{part}": False for part in ("progress_bar", "model_summary", "checkpointing")}
    quiet |= {"accelerator": "cpu", "logger": False, "max_epochs": 3}
    trainer = L.Trainer(**quiet | options)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize(("workers", "stop_at"), [(0, 5), (0, 6), (2, 6), (2, 8)])  # six an epoch
def test_a_fit_goes_on_within_an_epoch(shards, tmp_path, workers, stop_at):
    whole, before, after = Noting(), Noting(stop_at), Noting()
    fit(stream(shards, num_workers=workers), whole)
    saved = ModelCheckpoint(tmp_path, "stopped", every_n_train_steps=stop_at)
    fit(stream(shards, num_workers=workers), before, callbacks=[saved], enable_checkpointing=True)
    assert len(before.seen) == 4 * stop_at
    fit(stream(shards, num_workers=workers), after, tmp_path / "stopped.ckpt")
    assert before.seen + after.seen == whole.seen
    assert len(set(whole.seen)) == 3 * 24


def train_in_processes(devices: int, folder: Path) -> None:
    """Two epochs; each process notes what it saw."""
    module = Noting()
    data = stream(folder / "shards", batch_size=3)
    trainer = fit(data, module, devices=devices, strategy="ddp", max_epochs=2)
    (folder / f"seen-{trainer.global_rank}.json").write_text(json.dumps(module.seen))


def test_two_processes_see_each_sample_once_an_epoch(shards):
    folder = shards.parent
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    every = [[epoch, f"scan{number:02d}"] for epoch in (0, 1) for number in range(24)]
    assert sorted(first + second) == every
    assert len(first) == len(second)
    assert {name for epoch, name in first if epoch} != {name for epoch, name in first if not epoch}


def test_the_command_line_trains_from_shards(shards, tmp_path):
    main(
        [
            *("fit", "--config", str(REPO / "experiments" / "quickstart.yaml")),
            *("--config", str(REPO / "tests" / "tiny.yaml")),
            *("--data", "StreamingDataModule", "--data.root", str(shards)),
            *(
                "--data.batch_size=4",
                "--trainer.max_epochs=1",
                "--trainer.logger=false",
                "--output",
                str(tmp_path / "run"),
            ),
        ]
    )
    sources = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    pixels = sources["state_dict"]["network.memory._extra_state"]["pixel_ids"]
    names = {name for row in pixels for ids in row for name in ids if name}
    assert names
    assert names <= set(stream(shards).contents.ids["train"])


# An object store


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """Address of an empty bucket of a server on this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "known")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # LitData takes encrypted connections only, which the server has not.
    monkeypatch.setitem(downloader._OBSTORE_CLIENT_OPTIONS, "allow_http", True)
    boto3.client("s3").create_bucket(Bucket="scans")
    yield "s3://scans"
    server.stop()


def test_from_an_object_store_comes_what_a_folder_gives(root, shards, bucket, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_shards(FolderDataModule(root), f"{bucket}/all", interrupted)
    with pytest.raises(FileNotFoundError, match="s3://scans/all holds no finished shards"):
        stream(f"{bucket}/all", cache_dir=tmp_path)
    write_shards(FolderDataModule(root), f"{bucket}/all")
    remote = stream(f"{bucket}/all", cache_dir=tmp_path)
    assert remote.contents == stream(shards).contents
    for loader in ("val", "projection", "train", "train"):
        batches = [getattr(data, f"{loader}_dataloader")() for data in (stream(shards), remote)]
        for first, second in zip(*batches, strict=True):
            assert_same(first, second)
    assert_same(remote.read("scan30"), stream(shards).read("scan30"))
    # Each shard was fetched once: of training, of validation, and of the one sample that was read.
    assert len(list(tmp_path.rglob("*.bin"))) == 8 + 5 + 1
    with pytest.raises(ValueError, match="s3://scans/all is there already"):
        write_shards(FolderDataModule(root), f"{bucket}/all")


# What is refused


def interrupted(done: int, total: int) -> None:
    """Stop in the middle of the last split."""
    if done == total - 2:
        raise KeyboardInterrupt


def test_an_interrupted_writing_leaves_nothing_to_read(root, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_shards(FolderDataModule(root), tmp_path / "shards", interrupted)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="holds no finished shards"):
        stream(tmp_path / "shards")


def test_what_is_there_is_not_written_over(root, shards):
    with pytest.raises(ValueError, match="is there already"):
        write_shards(FolderDataModule(root), shards)


def test_the_command_refuses_what_is_no_data(tmp_path):
    with pytest.raises(SystemExit, match="nothing does not exist"):
        main(["optimize", str(tmp_path / "nothing"), str(tmp_path / "shards")])


def test_the_extra_is_named_where_litdata_is_missing(root, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    for use in (
        lambda: stream(shards),
        lambda: write_shards(FolderDataModule(root), tmp_path / "x"),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"tax-lightning\[streaming\]"):
            use()


def test_the_command_takes_a_configuration_and_options(root, tmp_path, capsys):
    settings = {"class_path": "FolderDataModule", "init_args": {"root": str(root)}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": settings, "seed_everything": 1}))
    place = tmp_path / "shards"
    main(["optimize", str(tmp_path / "mine.yaml"), str(place), "--data.annotators=[Bob]"])
    assert "annotators  Bob" in capsys.readouterr().out
    assert stream(place).annotators == ("Bob",)


if __name__ == "__main__":
    in_two_processes(train_in_processes, Path(sys.argv[1]))
