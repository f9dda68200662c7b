"""The command ``tax`` as a user meets it."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tax_lightning import __version__
from tax_lightning.__main__ import main
from tax_lightning.cli import TAXCLI
from tax_lightning.modules.checkpoints import checkpoint_in
from tax_lightning.tables import metric_table

NETWORK = {
    "encoder": "tu-test_resnet.r160_in1k",
    "encoder_weights": None,
    "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "kernels": 2,
}


def make_folder(root):
    """Eight images of 40 x 48 pixels, labelled by Ana (all) and Ben (all but the first)."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks/Ana", "masks/Ben"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((40, 48), np.uint8)
        mask[8:24, 8 + i : 28 + i] = 1
        image = rng.integers(0, 80, (40, 48, 3)) + 150 * mask[..., None]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"cell {i}.png")
        Image.fromarray(mask).save(root / "masks" / "Ana" / f"cell {i}.png")
        if i:
            Image.fromarray(np.roll(mask, 2, axis=0)).save(root / "masks" / "Ben" / f"cell {i}.png")
    return root


def make_config(root, target):
    """A configuration for that folder, in a file of the target folder, as its run will be."""
    path = target / "experiment.yaml"
    settings = {
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "default_root_dir": str(target / "run"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {"class_path": "TAXLightningModule", "init_args": NETWORK},
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {
                "root": str(root),
                "classes": ["background", "cell"],
                "batch_size": 2,
            },
        },
        "explanations": {"samples": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data")


@pytest.fixture
def config(folder, tmp_path):
    return make_config(folder, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which such a configuration was trained, and what the command said."""
    target, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["fit", "--config", str(make_config(make_folder(target / "data"), target))])
    return target, said.getvalue()


@pytest.fixture
def checkpoint(trained, tmp_path):
    """The checkpoint of a run with that configuration."""
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    return str(tmp_path / "run" / "checkpoints" / "best.ckpt")


def refused(arguments, capsys) -> str:
    """What the command says when it refuses its input, all in one message."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = str(stop.value) if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "--help"], "coco"),
        (["import", "coco", "a", "b", "--tilse=8"], "Did you mean tile?"),
        (["import", "arrays", "--help"], "--tile"),
        (["inspect", "--help"], "--ckpt_path"),
        (["inspect", "--config", "mine.yaml", "--outptu=x"], "Did you mean output?"),
        (["explain", "--help"], "--images"),
        (["export", "best.ckpt", "a.onx"], "expected .onnx"),
        (["compare", "--help"], "--folds"),
        (["compare", "--config", "a.yaml", "--sedes", "1"], "Did you mean seeds?"),
    ],
)
def test_help_and_errors_in_a_commands_own_options_need_no_torch(arguments, said):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'lightning', 'scipy.stats')));"
        "from tax_lightning.__main__ import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help_need_no_torch():
    program = (
        "import sys; from tax_lightning.__main__ import main; main(['--version']); main([]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"tax-lightning {__version__}\nusage: tax COMMAND")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_help_names_every_command(arguments, capsys):
    main(arguments)
    said = capsys.readouterr().out
    for command in (*TAXCLI.subcommands(), "compare", "explain", "import", "inspect"):
        assert re.search(rf"^  {command} +[A-Z]", said, re.MULTILINE)
    assert "Look at a data set before training" in said


def test_fit_ends_with_metrics_by_name_and_paths(trained):
    folder, said = trained
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "Ana" in lines["dice"]
    assert "Ben" in lines["dice"]
    assert "cell" in lines["fused_iou"]
    checkpoint = lines["checkpoint"].split(maxsplit=1)[1]
    assert checkpoint == str(folder / "run" / "checkpoints" / "best.ckpt")
    assert Path(checkpoint).is_file()
    assert list((folder / "run").rglob("final-*.png"))


def test_later_configuration_files_and_flags_win(config, tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    kernels: 5\n    who_window: 11\n")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                *("--config", str(config)),
                *("--config", str(overlay)),
                "--model.init_args.who_window=31",
                "--print_config",
            ]
        )
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["kernels"] == 5
    assert printed["model"]["init_args"]["who_window"] == 31
    assert "annotators" not in printed["model"]["init_args"]  # said once, by the data


def test_the_user_beats_the_checkpoint_and_the_checkpoint_beats_the_defaults(checkpoint, config):
    data = yaml.safe_load(config.read_text())
    network = data["model"]["init_args"]
    data["model"]["init_args"] = {"loss_weights": {"who": 0.125}}
    config.write_text(yaml.safe_dump(data))
    cli = TAXCLI.run(
        [
            "validate",
            *("--config", str(config)),
            *("--ckpt_path", checkpoint),
            "--model.init_args.who_window=7",
        ]
    )
    assert cli.model.hparams["loss_weights"]["who"] == 0.125
    assert cli.model.hparams["who_window"] == 7
    assert cli.model.hparams["kernels"] == network["kernels"]
    assert cli.model.hparams["encoder"] == network["encoder"]


def test_model_is_built_from_the_checkpoint_alone(checkpoint, config, capsys):
    data = yaml.safe_load(config.read_text())
    del data["model"]
    config.write_text(yaml.safe_dump(data))
    cli = TAXCLI.run(["test", "--config", str(config), "--ckpt_path", checkpoint])
    assert cli.model.annotators == ("Ana", "Ben")
    noted = json.loads(Path(checkpoint).with_name("metrics.json").read_text())
    assert noted.keys() == {"fit", "test"}
    assert noted["fit"]["metrics"]["val/dice/Ana"] is not None
    last = capsys.readouterr().out.rpartition("\ntest\n")[2]
    assert f"Annotator Dice ↑  {noted['test']['metrics']['test/dice/mean']:.3f}" in re.sub(
        " {2,}", "  ", last
    )
    tested = noted["test"]
    assert tested["metrics"]["test/dice/mean"] == cli.trainer.callback_metrics["test/dice/mean"]
    assert tested["checkpoint"] == checkpoint
    assert tested["sha256"] == hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    assert tested["versions"]["torch"] == version("torch")


def test_predict_writes_every_kind_of_output(checkpoint, config, tmp_path):
    output = tmp_path / "predictions"
    main(
        [
            "predict",
            *("--config", str(config)),
            *("--ckpt_path", checkpoint),
            f"--predictions.output_dir={output}",
            "--predictions.samples=2",
        ]
    )
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["checkpoint"] == checkpoint
    assert len(manifest["sha256"]) == 64
    assert [annotator["name"] for annotator in manifest["annotators"]] == ["Ana", "Ben"]
    for image in manifest["images"]:
        files = image["files"]
        fused = np.asarray(Image.open(output / files["fused"]))
        assert fused.shape == (40, 48)
        assert set(files["annotators"]) == {"Ana", "Ben"}
        samples = [np.asarray(Image.open(output / file)) for file in files["samples"]["Ben"]]
        assert [sample.shape for sample in samples] == 2 * [fused.shape]
        assert Image.open(output / files.get("who", files.get("votes"))).mode == "P"
        with np.load(output / files["maps"]) as arrays:
            assert np.allclose(arrays["who"].sum(0), 1, atol=1e-2)
            assert arrays["why"][1].max() < NETWORK["kernels"]


def test_metric_table_is_empty_without_metrics():
    assert metric_table({}, "val/") == ""


def test_inspect_takes_the_configuration_of_fit(config, folder, tmp_path, capsys):
    for i in range(1, 8):
        name = f"cell {i}.png"
        (folder / "masks" / "Ben" / name).write_bytes((folder / "masks/Ana" / name).read_bytes())
    output = tmp_path / "report"
    main(["inspect", "--config", str(config), f"--output={output}"])
    said = capsys.readouterr().out
    assert "Ana equals Ben on all 7 images" in said
    assert said.endswith(f"page  {output / 'index.html'}\n")
    assert "<h1>experiment" in (output / "index.html").read_text(encoding="utf-8")
    assert (output / "review.csv").read_text(encoding="utf-8").startswith("rank,image,annotator,")


def test_inspect_takes_flags_and_later_files(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data:\n  init_args:\n    val_fraction: 0.25\n")
    arguments = [f"--config={config}", "--config", str(overlay)]
    main(["inspect", *arguments, "--data.init_args.test_fraction=0.25", "--threads=1"])
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert all(row in rows for row in (["train", "4"], ["val", "2"], ["test", "2"]))
    assert Path("runs/inspect/overlay/index.html").is_file()


def test_inspect_finds_a_data_module_by_its_short_name(tmp_path, capsys):
    counts = [f"--data.init_args.{split}_samples=1" for split in ("train", "val", "test")]
    main(["inspect", "--data=SyntheticDataModule", *counts, f"--output={tmp_path}"])
    assert "Chloe" in capsys.readouterr().out


# ---------------------------------------------------------------------- refused input


def test_mask_of_another_size_than_its_image(config, folder, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / "Ana" / "cell 3.png")
    said = refused(["fit", "--config", str(config)], capsys)
    assert "cell 3.png" in said
    assert "8" in said
    assert "40" in said


def test_class_id_out_of_range(config, folder, capsys):
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(folder / "masks" / "Ben" / "cell 2.png")
    said = refused(["fit", "--config", str(config)], capsys)
    assert "cell 2.png" in said
    assert "7" in said
    assert "mask_values" in said


def test_annotator_folder_without_files(config, folder, capsys):
    (folder / "masks" / "Chloe").mkdir()
    assert "Chloe" in refused(["fit", "--config", str(config)], capsys)


def test_unreadable_image(config, folder, capsys):
    (folder / "images" / "cell 4.png").write_bytes(b"not a picture")
    assert "cell 4.png" in refused(["fit", "--config", str(config)], capsys)


def test_unknown_encoder(config, capsys):
    said = refused(["fit", "--config", str(config), "--model.init_args.encoder=resnet81"], capsys)
    assert "resnet81" in said
    assert "resnet18" in said


@pytest.mark.parametrize("classes", ["1", "[cell]"])
def test_fewer_than_two_classes(config, capsys, classes):
    said = refused(["fit", "--config", str(config), f"--data.init_args.classes={classes}"], capsys)
    assert "classes" in said
    assert "[background, cell]" in said


def test_no_masks_at_all(config, folder, capsys):
    for mask in folder.glob("masks/*/*.png"):
        mask.unlink()
    said = refused(["fit", "--config", str(config)], capsys)
    assert "masks" in said


def test_split_without_samples(config, folder, capsys):
    rows = [f"cell {i},train" for i in range(8)]
    (folder / "samples.csv").write_text("\n".join(["name,split", *rows]) + "\n")
    said = refused(["fit", "--config", str(config)], capsys)
    assert "val" in said


def test_checkpoint_of_other_annotators(checkpoint, config, folder, capsys):
    (folder / "masks" / "Ben").rename(folder / "masks" / "Dara")
    arguments = ["validate", "--config", str(config), "--ckpt_path", checkpoint]
    said = refused(arguments, capsys)
    assert "'Ana', 'Ben'" in said
    assert "'Ana', 'Dara'" in said


def test_missing_checkpoint(config, capsys):
    said = refused(["test", "--config", str(config), "--ckpt_path=nowhere.ckpt"], capsys)
    assert "nowhere.ckpt" in said


def test_file_that_is_no_checkpoint(config, tmp_path, capsys):
    path = tmp_path / "odd.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    said = refused(["test", "--config", str(config), f"--ckpt_path={path}"], capsys)
    assert "odd.ckpt" in said


def test_refused_input_leaves_nothing_half_written(config, folder, tmp_path, capsys):
    (folder / "images" / "cell 4.png").write_bytes(b"not a picture")
    refused(["fit", "--config", str(config)], capsys)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_without_a_reference_the_annotators_dice_selects_the_checkpoint(tmp_path, capsys):
    main(
        [
            "fit",
            *("--config", str(Path(__file__).parent.parent / "experiments" / "quickstart.yaml")),
            *("--config", str(Path(__file__).parent / "tiny.yaml")),
            "--trainer.logger=false",
            f"--trainer.default_root_dir={tmp_path}",
            "--model.init_args.reference=none",
            "--trainer.max_epochs=1",
        ]
    )
    said = capsys.readouterr().out
    assert "fused_dice" not in said
    assert Path(said.split("checkpoint  ")[1].split("\n")[0]).is_file()


def test_inspect_of_a_file_that_is_not_there(capsys):
    said = refused(["inspect", "--config", "nowhere.yaml"], capsys)
    assert said == "tax: error: --config nowhere.yaml is no file, expected a YAML file."


def test_inspect_of_a_file_that_is_no_configuration(tmp_path, capsys):
    path = tmp_path / "odd.yaml"
    path.write_text("just words")
    assert "odd.yaml holds 'just words'" in refused(["inspect", f"--config={path}"], capsys)
    path.write_text("data: [")
    assert "odd.yaml cannot be read as YAML" in refused(["inspect", f"--config={path}"], capsys)


def test_inspect_without_a_file_to_the_option(capsys):
    assert "--config: expected one argument" in refused(["inspect", "--config"], capsys)


def test_inspect_of_data_that_cannot_be_read(config, folder, capsys):
    (folder / "images" / "cell 4.png").write_bytes(b"not a picture")
    assert "cell 4.png" in refused(["inspect", "--config", str(config)], capsys)


def test_inspect_refuses_arguments_that_it_does_not_know(config, capsys):
    said = refused(["inspect", "--config", str(config), "--trainer.max_epochs=1"], capsys)
    assert "trainer.max_epochs is unknown" in said


def test_inspect_answers_a_misspelt_name_by_the_nearest(config, capsys):
    said = refused(["inspect", "--config", str(config), "--data.init_args.clases=[a, b]"], capsys)
    assert "clases is unknown to" in said
    assert "Did you mean classes?" in said
    assert len(said.splitlines()) <= 10


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = f"{sys.executable} -m tax_lightning import | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_a_missing_extra_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    mask = tmp_path / "Training" / "case01"
    mask.mkdir(parents=True)
    for name in ("image.nii.gz", "task01_seg01.nii.gz"):
        (mask / name).write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        main(["import", "qubiq", str(tmp_path), str(tmp_path / "out")])
    assert 'pip install "tax-lightning[volumes]"' in str(stopped.value.code)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_model_that_learnt_nothing_is_not_applied(command, config, tmp_path, capsys):
    said = refused([command, "--config", str(config)], capsys)
    assert f"tax {command}: --ckpt_path is missing" in said
    assert "runs/mine/latest" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_stands_for_the_one_checkpoint_in_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no best\.ckpt"):
        checkpoint_in(str(tmp_path), "best.ckpt")
    best = tmp_path / "a" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    for given in (tmp_path, best):
        assert checkpoint_in(str(given), "best.ckpt") == str(best)
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(ValueError, match=r"2 files best\.ckpt, expected one"):
        checkpoint_in(str(tmp_path), "best.ckpt")


def test_an_unknown_command_names_the_known_and_the_nearest(capsys):
    said = refused(["preditc"], capsys)
    assert "predict, explain, export, inspect, import, optimize, compare." in said
    assert "Did you mean predict?" in said


@pytest.mark.parametrize(
    ("flag", "key", "nearest"),
    [
        ("--trainer.maxepochs=3", "trainer.maxepochs", "trainer.max_epochs"),
        ("--trainer.max_epoch=3", "trainer.max_epoch", "trainer.max_epochs"),  # no abbreviations
        ("--trainer.logger.class_path=WandbLoger", "trainer.logger", "WandbLogger"),
        ("--model=TAXLightnigModule", "model", "TAXLightningModule"),
        ("--model.init_args.kernles=3", "kernles", "kernels"),
        ("--data=FolderDataModul", "data", "FolderDataModule"),
        ("--data.init_args.clases=[a,b]", "clases", "classes"),
        ("--checkpoint.save_lst=true", "checkpoint.save_lst", "checkpoint.save_last"),
        ("--explanations.sampels=2", "explanations.sampels", "explanations.samples"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_nearest(flag, key, nearest, config, capsys):
    said = refused(["fit", "--config", str(config), flag], capsys)
    assert key in said
    assert f"Did you mean {nearest}?" in said
    assert len(said.splitlines()) <= 10
    assert "Namespace" not in said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trainer:\n  maxepochs: 3\n", "maxepochs"),
        ("dta:\n  class_path: FolderDataModule\n", "dta"),
        ("trainer:\n  max_epochs: many\n", "many"),
        ("model:\n  init_args:\n    kernels: few\n", "few"),
        ("data: 3\n", "data"),
        ("trainer:\n  log_every_n_steps: -9\n", "trainer.log_every_n_steps: -9, expected 0"),
        ("data:\n  init_args:\n    batch_size: null\n", "data.init_args.batch_size: null"),
        ("model:\n  init_args:\n    kernels: null\n", "model.init_args.kernels: null"),
    ],
)
def test_a_wrong_file_is_refused_in_ten_lines(text, key, config, tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    said = refused(["fit", "--config", str(config), "--config", str(overlay)], capsys)
    assert key in said
    assert len(said.splitlines()) <= 10
    assert "Namespace" not in said


def test_a_folder_that_cannot_be_written_costs_no_figures(checkpoint, config, capsys):
    noted = Path(checkpoint).with_name("metrics.json")
    noted.write_text("[]")
    with pytest.warns(UserWarning, match=r"metrics\.json beside .*: it holds list"):
        main(["test", "--config", str(config), "--ckpt_path", checkpoint])
    assert "test/dice/mean" in capsys.readouterr().out
    assert noted.read_text() == "[]"
