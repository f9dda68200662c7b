"""``tax explain`` as a user meets it, and images prepared as those of the training were."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from tax_lightning import FolderDataModule, SyntheticDataModule, TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.data.images import images_for, images_on_disk
from tax_lightning.data.pixels import Pictures
from tax_lightning.data.preparation import Preparation
from tax_lightning.simulation import SimulatedAnnotatorsDataModule

NETWORK = {
    "encoder": "tu-test_resnet.r160_in1k",
    "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "kernels": 2,
}
DATA = {
    "classes": ["background", "cell"],
    "channels": 1,
    "intensity_range": [0, 4095],
    "mean": [0.4],
    "std": [0.2],
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of 12-bit images, the configuration of a run on it, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    root = folder / "data"
    for name in ("images", "masks/Ana", "masks/Ben"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((32, 40), np.uint8)
        mask[8:24, 8 + i : 24 + i] = 1
        image = (rng.integers(0, 1500, mask.shape) + 2500 * (mask > 0)).astype(np.uint16)
        Image.fromarray(image).save(root / "images" / f"cell {i}.png")
        Image.fromarray(mask).save(root / "masks" / "Ana" / f"cell {i}.png")
        Image.fromarray(np.roll(mask, 2, axis=0)).save(root / "masks" / "Ben" / f"cell {i}.png")
    settings = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {"class_path": "TAXLightningModule", "init_args": NETWORK},
        "data": {"class_path": "FolderDataModule", "init_args": {"root": str(root), **DATA}},
        "explanations": {"samples": 1},
    }
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(settings))
    main(["fit", "--config", str(config)])
    (checkpoint,) = (folder / "run").rglob("best.ckpt")
    return root, config, checkpoint


@pytest.fixture
def new_images(trained, tmp_path):
    """Three images of the same kind, without masks."""
    folder = tmp_path / "new"
    folder.mkdir()
    for i in range(3):
        shutil.copy(trained[0] / "images" / f"cell {i}.png", folder / f"new {i}.png")
    return folder


def with_preparation(checkpoint, path, **changes):
    """A copy of a checkpoint that notes something else; nothing if nothing is given."""
    content = torch.load(checkpoint, weights_only=True)
    noted = content.pop("preparation")
    if changes:
        content["preparation"] = {**noted, **changes}
    torch.save(content, path)
    return path


def load(checkpoint):
    return TAXLightningModule.load_from_checkpoint(checkpoint, weights_only=True)


def explained(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def refused(arguments, capsys):
    """What the command says when it refuses its input, all in one message."""
    with pytest.raises(SystemExit) as stop:
        main(["explain", *map(str, arguments)])
    said = str(stop.value) if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert "Traceback" not in said
    return said


# ------------------------------------------------------------------------------------ the command


def test_explain_by_the_checkpoint_alone(trained, new_images, tmp_path, capsys):
    output = tmp_path / "report"
    main(
        ["explain", f"--ckpt_path={trained[2]}", "--images", str(new_images), f"--output={output}"]
    )
    said = capsys.readouterr()
    assert said.out.endswith(f"page  {output / 'index.html'}\n")
    listed = explained(output)
    progress = [f"{done} of 3 images" for done in (1, 2, 3)]
    assert said.err.splitlines() == [*progress, *(f"note  {note}" for note in listed["notes"])]
    assert [image["id"] for image in listed["images"]] == ["new 0", "new 1", "new 2"]
    assert [annotator["name"] for annotator in listed["annotators"]] == ["Ana", "Ben"]
    for image in listed["images"]:
        assert all((output / file).is_file() for file in image["files"].values())
    page = (output / "index.html").read_text(encoding="utf-8")
    assert re.search(r"The training images of \d+ of \d+ prototypes are not at hand", page)
    assert re.search(r"(Ana|Ben), prototype \d. cell \d at y \d+, x \d+, labelled ", page)


def test_explain_with_the_configuration_shows_the_examples(trained, new_images, tmp_path):
    _, config, checkpoint = trained
    output = tmp_path / "report"
    main(
        [
            "explain",
            *("--config", str(config)),
            *("--ckpt_path", str(checkpoint)),
            *("--images", str(new_images / "new 2.png"), str(new_images / "new 0.png")),
            *("--output", str(output)),
            "--title=Two images",
        ]
    )
    assert [image["id"] for image in explained(output)["images"]] == ["new 2", "new 0"]
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "not at hand" not in page
    assert 'id="crop-0-' in page
    assert "<h1>Two images</h1>" in page


def test_without_images_those_of_predict_are_explained(trained, tmp_path):
    _, config, checkpoint = trained
    arguments = ["--config", str(config), "--ckpt_path", str(checkpoint), "--output", str(tmp_path)]
    main(["explain", *arguments, "--data.init_args.test_fraction=0.25"])
    data = FolderDataModule(trained[0], **{**DATA, "test_fraction": 0.25})
    images = explained(tmp_path)["images"]
    samples = data.predict_dataloader().dataset
    assert [image["id"] for image in images] == list(samples.source.ids)
    # Their masks are at hand.
    differ = [
        (sample["masks"][0] != sample["masks"][1]).double().mean().item() for sample in samples
    ]
    assert [image["disputed_in_masks"] for image in images] == pytest.approx(differ)


def test_a_checkpoint_that_does_not_say_how_images_were_prepared(
    trained, new_images, tmp_path, capsys
):
    checkpoint = with_preparation(trained[2], tmp_path / "old.ckpt")
    for path in new_images.iterdir():  # 8 bits, which need no more to be said
        Image.fromarray((np.asarray(Image.open(path)) >> 4).astype(np.uint8)).save(path)
    output = tmp_path / "report"
    main(["explain", f"--ckpt_path={checkpoint}", f"--images={new_images}", f"--output={output}"])
    said = "does not say how its training images were normalised"
    assert said in capsys.readouterr().err
    page = (output / "index.html").read_text(encoding="utf-8")
    assert said in page
    assert "mean (0.5,), standard deviation (0.25,)" in page


def test_missing_checkpoint(new_images, capsys):
    said = refused(["--ckpt_path=nowhere.ckpt", f"--images={new_images}"], capsys)
    assert said.startswith("tax: error: --ckpt_path=nowhere.ckpt: there is no such file.")


def test_checkpoint_of_a_class_that_is_not_there(
    trained, new_images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("TAX_TRUSTED", "nowhere")
    content = torch.load(trained[2], weights_only=True) | {"class_path": "nowhere.Model"}
    torch.save(content, tmp_path / "odd.ckpt")
    said = refused([f"--ckpt_path={tmp_path / 'odd.ckpt'}", f"--images={new_images}"], capsys)
    assert "its model is of the class nowhere.Model, which cannot be imported" in said


def test_neither_images_nor_data(trained, capsys):
    assert "--images is missing" in refused([f"--ckpt_path={trained[2]}"], capsys)


def test_images_that_are_not_there(trained, tmp_path, capsys):
    arguments = [f"--ckpt_path={trained[2]}", f"--images={tmp_path / 'nowhere'}"]
    assert "nowhere does not exist, expected an image file or a folder" in refused(
        arguments, capsys
    )


def test_folder_without_images(trained, tmp_path, capsys):
    arguments = [f"--ckpt_path={trained[2]}", f"--images={tmp_path}"]
    said = refused(arguments, capsys)
    assert f"--images: the folder {tmp_path} holds no images, expected files that end in" in said


def test_unreadable_image(trained, new_images, tmp_path, capsys):
    (new_images / "new 1.png").write_bytes(b"not a picture")
    output = tmp_path / "report"
    arguments = [f"--ckpt_path={trained[2]}", f"--images={new_images}", f"--output={output}"]
    assert "new 1.png" in refused(arguments, capsys)
    assert not output.exists()


def test_images_of_one_name(trained, new_images, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = shutil.copy(new_images / "new 1.png", tmp_path / "other")
    said = refused([f"--ckpt_path={trained[2]}", "--images", new_images, other], capsys)
    assert "have the same name 'new 1'" in said


def test_output_that_holds_a_report(trained, new_images, tmp_path, capsys):
    arguments = [f"--ckpt_path={trained[2]}", f"--images={new_images}", f"--output={tmp_path}"]
    main(["explain", *arguments])
    assert "holds a report already" in refused(arguments, capsys)
    main(["explain", *arguments, "--overwrite=true"])


def test_configuration_that_prepares_images_in_another_way(trained, new_images, capsys):
    _, config, checkpoint = trained
    said = refused(
        [
            *("--config", config),
            *(f"--ckpt_path={checkpoint}", f"--images={new_images}"),
            *("--data.init_args.mean=[0.3]", "--data.init_args.intensity_range=null"),
        ],
        capsys,
    )
    assert "prepare images with mean=(0.3,) in place of (0.4,)" in said
    assert "intensity_range=None in place of (0.0, 4095.0)" in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"transforms": ["Resize"]}, "Resize")],
)
def test_preparation_that_a_checkpoint_does_not_hold(
    trained, new_images, tmp_path, capsys, changes, named
):
    checkpoint = with_preparation(trained[2], tmp_path / "more.ckpt", **changes)
    said = refused([f"--ckpt_path={checkpoint}", f"--images={new_images}"], capsys)
    assert said.startswith("tax: error: --config is missing")
    assert named in said


def test_device_that_is_none(trained, new_images, capsys):
    arguments = [f"--ckpt_path={trained[2]}", f"--images={new_images}", "--device=abacus"]
    assert "--device abacus" in refused(arguments, capsys)


# ------------------------------------------------------------------------- prepared as in training


@pytest.mark.parametrize("with_data", [True, False])
def test_images_are_prepared_as_the_data_module_does(trained, new_images, with_data):
    data = FolderDataModule(trained[0], **DATA, predict_images=new_images)
    model = load(trained[2])
    given = images_for(model, [new_images], data if with_data else None)
    theirs = data.predict_dataloader().dataset
    assert len(given.images) == 3
    for own, expected in zip(given.images, theirs, strict=True):
        assert own["id"] == expected["id"]
        assert torch.equal(own["image"], expected["image"])
        picture = given.to_picture(own["image"])
        assert np.array_equal(picture, data.to_picture(expected["image"]))
    grey = np.asarray(Image.open(new_images / "new 2.png"), np.float32) / 4095
    normalised = torch.from_numpy((grey - 0.4) / 0.2)
    assert torch.allclose(own["image"][0], normalised, atol=1e-6)


def test_the_checkpoint_notes_the_preparation(trained):
    noted = torch.load(trained[2], weights_only=True)["preparation"]
    assert noted == {
        "channels": 1,
        "mean": [0.4],
        "std": [0.2],
        "intensity_range": [0.0, 4095.0],
        "transforms": [],
    }
    assert load(trained[2]).preparation == Preparation.from_primitives(noted)


def test_a_model_that_was_trained_elsewhere_notes_nothing():
    model = TAXLightningModule(["Ana", "Ben"], ["background", "cell"], **NETWORK)
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    assert "preparation" not in checkpoint


def test_the_preparation_survives_another_saving(trained):
    model, checkpoint = load(trained[2]), {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["preparation"]["mean"] == [0.4]


def test_simulated_annotators_read_the_files_of_their_data(trained):
    inner = FolderDataModule(trained[0], **DATA)
    data = SimulatedAnnotatorsDataModule(inner, ["good", "over"], source="Ana")
    assert data.preparation.intensity_range == (0.0, 4095.0)
    assert data.preparation.mean == (0.5,)  # loading options are its own


def test_data_without_files_take_plain_ones():
    data = SyntheticDataModule(train_samples=1)
    assert data.preparation == Preparation.usual(3)
    assert data.preparation.known_in_full


# -------------------------------------------------------------------------------- kinds of images


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_colour_and_deep_images_of_all_sizes(tmp_path, channels):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(tmp_path / "colour.jpg")
    Image.fromarray(rng.integers(0, 65536, (31, 16), np.uint16)).save(tmp_path / "deep.tif")
    table = images_on_disk([tmp_path], Pictures(channels), ["Ana"], ["background", "cell"])
    shapes = {id: table[i].image.shape for i, id in enumerate(table.ids)}
    assert shapes == {
        "colour": (9, 7, channels),
        "deep": (31, 16, channels),
        "grey": (20, 30, channels),
    }


def test_images_of_many_channels(tmp_path):
    scan = np.random.default_rng(0).integers(0, 65536, (12, 10, 4), np.uint16)
    tifffile.imwrite(tmp_path / "last.tif", scan, photometric="minisblack", planarconfig="contig")
    first = scan.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "first.tif", first, imagej=True, metadata={"axes": "CYX"})
    table = images_on_disk([tmp_path], Pictures(4), ["Ana"], ["background", "cell"])
    assert table.ids == ("first", "last")
    for i in range(2):
        assert np.allclose(table[i].image, scan / 65535)


def test_images_of_other_channels_are_refused(tmp_path):
    five = np.zeros((12, 10, 5), np.uint8)
    tifffile.imwrite(tmp_path / "scan.tif", five, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"scan.tif has 5 channel\(s\), expected 4"):
        images_on_disk([tmp_path], Pictures(4), ["Ana"], ["background", "cell"])
