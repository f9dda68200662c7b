"""Predictions on disk, read back."""

import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace

import albumentations as A
import cv2
import lightning as L
import numpy as np
import pytest
import tifffile
import torch
from made_up import make_explanation
from PIL import Image
from small_runs import ANNOTATORS, SIDE, Images, Model, make_trainer
from torch.utils.data import DataLoader

from tax_lightning.baselines import MultiHead, ProbabilisticUNet
from tax_lightning.batch import unpacked
from tax_lightning.callbacks import PredictionWriter, prediction_writer
from tax_lightning.data import FolderDataModule
from tax_lightning.data.description import Description
from tax_lightning.data.patches import Place
from tax_lightning.explanation import Prediction, TrustBasis
from tax_lightning.importers.cases import Case, Found
from tax_lightning.importers.writer import write
from tax_lightning.visualization import annotator_palette

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


class Named(Images):
    """Images with names of choice."""

    def __init__(self, names, padded=False):
        super().__init__("predict", len(names), padded)
        self.names = names

    def __getitem__(self, i):
        return {**super().__getitem__(i), "id": self.names[i]}


def predict(folder, ids=("a", "b", "c"), padded=False, explain=None, model=None, **options):
    writer, model = PredictionWriter(str(folder), **options), model or Model()
    if explain is not None:
        model.explain = explain
    loader = DataLoader(Named(ids, padded), batch_size=2)
    make_trainer(folder.parent, [writer]).predict(model, loader, return_predictions=False)
    return json.loads(writer.manifest.read_text(encoding="utf-8"))


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def read_maps(folder, image):
    """The numbers by name, of a file for all maps or of one for each."""
    files = image["files"]["maps"]
    if isinstance(files, dict):
        maps = {name: tifffile.imread(folder / file) for name, file in files.items()}
        maps["annotator_probs"] = maps["annotator_probs"].reshape(-1, *maps["probs"].shape)
        return maps
    with np.load(folder / files) as maps:
        return dict(maps)


def all_differ(images, ids):
    """In image ``i`` annotator ``i`` decides; annotator ``n`` draws class ``n`` by kernel ``n``."""
    leader = torch.stack([torch.full((SIDE, SIDE), int(i)) for i in ids])
    classes = ("background", "cell", "fibre")
    undisputed = (leader == 1) & (torch.arange(SIDE) == 0)
    return make_explanation(leader, leader, undisputed, 0.8, classes=classes, ids=ids)


def test_each_file_holds_what_its_own_annotator_says_of_its_own_image(tmp_path):
    manifest = predict(tmp_path, ["0", "1", "2"], padded=True, explain=all_differ)
    size = (SIDE - 4, SIDE - 6)
    assert [image["id"] for image in manifest["images"]] == ["0", "1", "2"]
    for i, image in enumerate(manifest["images"]):
        files = image["files"]
        assert (image["height"], image["width"]) == size
        np.testing.assert_array_equal(read(tmp_path / files["fused"]), np.full(size, i))
        who = np.full(size, i)
        who[:, 0] = 254 if i == 1 else i
        np.testing.assert_array_equal(read(tmp_path / files["who"]), who)
        assert list(files["annotators"]) == list(ANNOTATORS)
        for n, name in enumerate(ANNOTATORS):
            assert files["annotators"][name] == f"{i}/{name}.png"
            drawn = np.where(who == 254, 1, n)
            np.testing.assert_array_equal(read(tmp_path / str(i) / f"{name}.png"), drawn)
        with np.load(tmp_path / files["maps"]) as maps:
            assert (maps["who"].dtype, maps["why"].dtype) == (np.float16, np.int16)
            assert maps["who"].shape == maps["support"].shape == (3, *size)
            weights = [0.8 if n == i else 0.1 for n in range(3)]
            np.testing.assert_allclose(maps["who"][:, 1, 1], weights, atol=1e-3)
            assert maps["support"][:, 1, 1].tolist() == [n == i for n in range(3)]
            assert maps["why"][:, 1, 1].tolist() == [i, i]
            np.testing.assert_array_equal(maps["dispute"], who != 254)
            assert maps["annotators"].tolist() == list(ANNOTATORS)
            assert maps["classes"].tolist() == ["background", "cell", "fibre"]
    palette = annotator_palette(3)
    assert manifest["annotators"] == [
        {"index": n, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*palette[n])}
        for n, name in enumerate(ANNOTATORS)
    ]
    assert [entry["name"] for entry in manifest["classes"]] == ["background", "cell", "fibre"]
    with Image.open(tmp_path / "2" / "who.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == palette[2]
    sources = [(source["annotator"], source["kernel"]) for source in manifest["prototypes"]]
    assert sources == [(name, kernel) for name in ANNOTATORS for kernel in range(3)]


def test_votes_are_written_where_who_does_not_follow_the_image(tmp_path):
    trust = TrustBasis("constant", "majority")

    def explain(images, ids):
        return dataclasses.replace(all_differ(images, ids), trust=trust)

    manifest = predict(tmp_path, ["1"], explain=explain)
    (image,) = manifest["images"]
    assert "who" not in image["files"]
    votes = np.ones((SIDE, SIDE))
    votes[:, 0] = 254
    np.testing.assert_array_equal(read(tmp_path / image["files"]["votes"]), votes)
    # Numbers that JSON lacks become null.
    assert manifest["trust"] == {
        "kind": "constant",
        "reference": "majority",
        "scores": [None, None, None],
    }


@pytest.mark.parametrize("kind", [MultiHead, ProbabilisticUNet])
def test_samples_are_written_by_annotator_or_of_the_set(kind, tmp_path):
    """The mean over samples of "is class c" is the probability of c, padding is cut off."""
    torch.manual_seed(0)
    options = {"samples": 2} if kind is ProbabilisticUNet else {}
    options |= {"network": torch.nn.Conv2d(1, 4, 3, padding=1), "in_channels": 1}
    module = kind(ANNOTATORS, ("background", "cell"), **options)
    manifest = predict(tmp_path, ["a", "b"], padded=True, model=module, samples=20)
    image = Named(["a", "b"], padded=True)[1]["image"][None]
    output = module.eval()(image)
    expected = output.log_sample_probs.detach().exp()[0, :, 1, : SIDE - 4, : SIDE - 6]
    files = manifest["images"][1]["files"]["samples"]
    assert list(files) == (list(ANNOTATORS) if module.named else ["set"])
    name = next(iter(files))
    assert files[name][:2] == [f"b/samples/{name}-1.png", f"b/samples/{name}-2.png"]
    drawn = np.stack([read(tmp_path / file) for file in itertools.chain(*files.values())])
    assert set(np.unique(drawn)) == {0, 1}
    shares = drawn.reshape(len(expected), 20, *drawn.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(shares, expected, atol=0.5 / 20 + 1e-4)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match=r"samples=-1, expected 0 \(none\) or more"):
        PredictionWriter(samples=-1)
    with pytest.raises(ValueError, match=r"format='paper' is unknown, expected some of"):
        PredictionWriter(format=["paper"])


def test_more_annotators_than_a_picture_can_name_are_refused(tmp_path):
    def explain(images, ids):
        names = [str(n) for n in range(254)]
        return make_explanation(torch.zeros(1, 1, 1).long(), annotators=names, ids=ids)

    with pytest.raises(ValueError, match="254 annotators, but a picture of indices tells at most"):
        predict(tmp_path, ["a"], explain=explain)


def test_the_manifest_names_every_file(tmp_path):
    manifest = predict(tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.*")}
    named = {"manifest.json"}
    for image in manifest["images"]:
        own = image["files"].pop("annotators")
        named |= {*image["files"].values(), *own.values()}
    assert written == named


def test_any_id_gives_a_folder_of_its_own(tmp_path):
    ids = ["a/b", "a b", "a_b", "é", "e", "..", "", "x" * 300, "/abs", "a\\b", "日本", "中国"]
    manifest = predict(tmp_path / "out", ids)
    folders = [image["files"]["fused"].split("/")[0] for image in manifest["images"]]
    assert len(set(folders)) == len(ids)
    assert all(folder.isascii() and 0 < len(folder) < 100 for folder in folders)
    assert "a_b" in folders
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert sorted(image["id"] for image in manifest["images"]) == sorted(ids)


def test_annotators_may_have_the_names_of_other_files(tmp_path):
    def renamed(images, ids):
        leader = (torch.arange(SIDE) % 3).expand(len(ids), SIDE, SIDE)
        return make_explanation(leader, annotators=("who", "Fused", "a/b"), ids=ids)

    (image,) = predict(tmp_path, ["x"], explain=renamed)["images"]
    files = image["files"].pop("annotators")
    assert len({*files.values(), *image["files"].values()}) == 6
    assert set(np.unique(read(tmp_path / image["files"]["who"]))) == {0, 1, 2}


def test_predictions_are_not_overwritten_unless_asked(tmp_path):
    predict(tmp_path)
    with pytest.raises(FileExistsError, match="give another folder, or set overwrite=true"):
        predict(tmp_path, ["d"])
    manifest = predict(tmp_path, ["d"], overwrite=True)
    assert [image["id"] for image in manifest["images"]] == ["d"]


def test_an_interrupted_run_leaves_no_manifest(tmp_path):
    predict(tmp_path)
    with pytest.raises(ZeroDivisionError):
        predict(tmp_path, overwrite=True, explain=lambda images, ids: 1 / 0)
    assert not (tmp_path / "manifest.json").exists()
    predict(tmp_path)


def test_two_images_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two images have the id 'a'"):
        predict(tmp_path, ["a", "b", "a"])


def test_other_predictions_are_refused(tmp_path):
    with pytest.raises(TypeError, match="predict_step returned Tensor, expected an Explanation"):
        predict(tmp_path, explain=lambda images, ids: images)


def test_rank_zero_alone_writes_one_manifest_of_all_processes(tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(
        prediction_writer, "from_all_processes", lambda module, mine: (parts.append(mine), parts)[1]
    )
    for rank in (2, 1, 0):  # more processes than images: none for rank 0
        strategy = SimpleNamespace(barrier=lambda: None)
        trainer = SimpleNamespace(
            is_global_zero=rank == 0, world_size=3, strategy=strategy, ckpt_path=None
        )
        writer = PredictionWriter(str(tmp_path))
        writer.setup(trainer, Model(), "predict")
        if rank:
            explanation = make_explanation(torch.zeros(1, 4, 4).long(), ids=[f"image-{rank}"])
            writer.write_on_batch_end(trainer, Model(), explanation, [rank], {}, 0, 0)
        writer.on_predict_end(trainer, Model())
        assert writer.manifest.exists() == (rank == 0)
    manifest = json.loads(writer.manifest.read_text())
    assert [image["id"] for image in manifest["images"]] == ["image-1", "image-2"]
    assert len(manifest["annotators"]) == 3


# Whole images, in their own pixels


class Ramp(L.LightningModule):
    """Says of a pixel how bright it is, whatever lies around it."""

    def predict_step(self, batch, batch_idx):
        images = unpacked(batch)["image"][:, 0].clamp(0, 1)
        probs = torch.stack([1 - images, images], 1)
        own = torch.stack([probs, probs.flip(1)], 1)
        return Prediction(tuple(batch["id"]), ("Ann", "Bob"), ("no", "yes"), probs, own)


@pytest.fixture
def ramp(tmp_path):
    """One image of 50 x 40 pixels, dark at the left and bright at the right; half of it drawn."""
    pixels = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (50, 1))
    for place, drawn in (("images", pixels), ("masks/Ann", pixels // 128)):
        (tmp_path / "in" / place).mkdir(parents=True)
        Image.fromarray(drawn).save(tmp_path / "in" / place / "a.png")
    return tmp_path / "in", pixels / 255


def predict_folder(root, **options):
    names, plain = ["no", "yes"], {"channels": 1, "mean": (0.0,), "std": (1.0,)}
    fractions = {"val_fraction": 0.0, "test_fraction": 0.0, "predict_split": "train"}
    writer = PredictionWriter(str(root.parent / "out"), overwrite=True, samples=4, maps=True)
    data = FolderDataModule(root, names, **plain, **fractions, **options)
    make_trainer(root.parent, [writer]).predict(Ramp(), datamodule=data, return_predictions=False)
    (image,) = json.loads(writer.manifest.read_text())["images"]
    assert not list(writer.output_dir.glob(".parts"))
    maps = read_maps(writer.output_dir, image)
    return image, maps, read(writer.output_dir / image["files"]["fused"])


@pytest.mark.parametrize(
    "options",
    [{}, {"patch_size": 16}, {"patch_size": 24, "patch_stride": 9}, {"tile": 16}, {"tile": 48}],
)
def test_patches_become_one_image_again(ramp, options):
    root, bright = ramp
    image, maps, fused = predict_folder(root, **options)
    assert (image["id"], image["height"], image["width"]) == ("a", 50, 40)
    assert image["facts"] == {"file": "a.png"}
    np.testing.assert_allclose(maps["probs"][1], bright, atol=2e-3)
    np.testing.assert_allclose(maps["annotator_probs"][1, 0], bright, atol=2e-3)
    np.testing.assert_array_equal(fused, bright > 0.5)
    drawn = [read(root.parent / "out" / file) for file in image["files"]["samples"]["Ann"]]
    assert [int(sample.sum()) for sample in drawn] == [
        int((bright > cut).sum()) for cut in (0.125, 0.375, 0.625, 0.875)
    ]


def test_tiles_of_an_import_become_one_image_again(ramp, tmp_path):
    root, bright = ramp
    pixels, mask = read(root / "images/a.png"), read(root / "masks/Ann/a.png")
    case = Case("whole", lambda: pixels, {"Ann": lambda: mask}, facts={"spacing": "1 2"})
    write(Found(Description("a", ("no", "yes"), ("grey",)), [case]), tmp_path / "tiles", tile=24)
    image, maps, _ = predict_folder(tmp_path / "tiles", mask_values={0: "no", 1: "yes"})
    assert (image["id"], image["facts"]) == ("whole", {"spacing": "1 2"})
    np.testing.assert_allclose(maps["probs"][1], bright, atol=2e-3)


def test_resizing_and_padding_are_undone(ramp):
    root, bright = ramp
    transforms = [A.LongestMaxSize(100), A.PadIfNeeded(128, 128)]
    image, maps, fused = predict_folder(root, eval_transforms=transforms)
    assert fused.shape == (50, 40)
    np.testing.assert_allclose(maps["probs"][1], bright, atol=0.02)
    assert (image["height"], image["width"]) == (50, 40)


@pytest.mark.parametrize(
    "transform",
    [
        A.HorizontalFlip(p=1),
        A.CenterCrop(20, 20),
        A.PadIfNeeded(64, 64, border_mode=cv2.BORDER_REFLECT_101),
    ],
)
def test_transforms_that_cannot_be_undone_are_refused(ramp, transform):
    expected = rf"Image 'a': eval_transforms \({type(transform).__name__}\) turn, mirror or crop"
    with pytest.raises(ValueError, match=expected):
        predict_folder(ramp[0], eval_transforms=[transform])


def parts_of(tmp_path, monkeypatch, parts, rows=6, columns=8, kind=torch.float32, **options):
    """Predict parts of one image, each in a process of its own; returns the writer of the last.

    A part is the column where it starts and the annotator whom everything there follows; it is six
    rows and four columns large.
    """
    said = []
    gather = lambda module, mine: (said.append(mine), said)[1]  # noqa: E731
    monkeypatch.setattr(prediction_writer, "from_all_processes", gather)
    for rank in reversed(range(len(parts))):
        strategy = SimpleNamespace(barrier=lambda: None)
        trainer = SimpleNamespace(
            is_global_zero=rank == 0,
            global_rank=rank,
            world_size=len(parts),
            strategy=strategy,
            ckpt_path=None,
        )
        writer = PredictionWriter(str(tmp_path / "out"), maps=True, **options)
        if rank == len(parts) - 1:
            writer.setup(trainer, Model(), "predict")
        left, who = parts[rank]
        leader = torch.full((1, 6, 4), who)
        part = make_explanation(leader, leader, weight=0.8, ids=[f"w@0,{left}"])
        maps = {name: getattr(part, name).to(kind) for name in ("probs", "annotator_probs", "who")}
        place = Place("w", 0, left, rows, columns).facts()
        batch = {"facts": [{**place, "spacing": "1 2"}]}
        part = dataclasses.replace(part, **maps)
        writer.write_on_batch_end(trainer, Model(), part, [0], batch, 0, 0)
        writer.on_predict_end(trainer, Model())
    return writer


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_parts_that_two_processes_predict_are_averaged(tmp_path, monkeypatch, kind):
    writer = parts_of(tmp_path, monkeypatch, [(0, 0), (2, 1)], columns=6, kind=kind)
    (image,) = json.loads(writer.manifest.read_text())["images"]
    assert (image["id"], image["width"], image["facts"]) == ("w", 6, {"spacing": "1 2"})
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["w"]
    maps = read_maps(tmp_path / "out", image)
    # Columns 2 and 3 are shared: they lie 1/8 and 3/8 of a part's width off its middle, 1 and 3
    # standard deviations of the weights.
    near, far = np.exp(-0.5), np.exp(-4.5)
    share = np.array([1, 1, near / (near + far), far / (near + far), 0, 0])
    expected = np.stack([0.1 + 0.7 * share, 0.8 - 0.7 * share, np.full(6, 0.1)])
    np.testing.assert_allclose(maps["who"][:, 3], expected, atol=4e-3)
    np.testing.assert_allclose(maps["probs"].sum(0), 1, atol=4e-3)
    assert maps["why"][:, 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2  # of the part around
    assert read(tmp_path / "out" / image["files"]["who"])[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_pixels_of_no_part_are_unknown(tmp_path, monkeypatch):
    seen = []
    paper = SimpleNamespace(write=lambda images, folder: seen.extend(images))
    monkeypatch.setitem(prediction_writer.FORMATS, "paper", None)
    monkeypatch.setitem(sys.modules, "tax_lightning.exporters.paper", paper)
    with pytest.warns(UserWarning, match="Image 'w': 50% of its pixels have no result"):
        writer = parts_of(tmp_path, monkeypatch, [(4, 1)], format=["paper"])
    (image,) = json.loads(writer.manifest.read_text())["images"]
    files = image["files"]
    for file in (files["fused"], files["who"], *files["annotators"].values()):
        assert ((read(tmp_path / "out" / file) == 255) == (np.arange(8) < 4)).all()
    maps = read_maps(tmp_path / "out", image)
    assert (np.isnan(maps["probs"]) == (np.arange(8) < 4)).all()
    assert ((maps["why"] == -1) == (np.arange(8) < 4)).all()
    assert seen[0].layers[-1].labels[0].tolist() == [255] * 4 + [1] * 4


@pytest.mark.parametrize(("parts", "size"), [([(5, 0)], 8), ([(0, 0)], 3)])
def test_parts_outside_of_their_image_are_refused(tmp_path, monkeypatch, parts, size):
    with pytest.raises(ValueError, match=r"'w@0,.' has 6 x 4 pixels at row 0 and column"):
        parts_of(tmp_path, monkeypatch, parts, columns=size)


def test_a_place_that_is_none_is_refused(ramp):
    root, _ = ramp
    (root / "samples.csv").write_text("name,whole,top\na,b,1.5\n")
    with pytest.raises(ValueError, match=r"'a' is a part.*top='1.5', left='', whole_height=''"):
        predict_folder(root)


def test_parts_of_an_interrupted_run_are_removed(ramp, monkeypatch):
    root, _ = ramp

    def broken(self, batch, number, said=Ramp.predict_step):
        return said(self, batch, number) if number == 0 else 1 / 0

    monkeypatch.setattr(Ramp, "predict_step", broken)
    with pytest.raises(ZeroDivisionError):
        predict_folder(root, patch_size=16, batch_size=1)
    assert list((root.parent / "out").iterdir()) == []


def test_a_pixel_that_two_patches_show_is_measured_once(ramp):
    root, _ = ramp
    (root / "samples.csv").write_text("name,split\na,test\n")
    data = FolderDataModule(root, ["no", "yes"], channels=1, patch_size=24, patch_stride=9)
    labelled, shown = np.zeros((2, 50, 40), int)
    for batch in data.test_dataloader():
        for id, masks in zip(batch["id"], batch["masks"].numpy(), strict=True):
            top, left = map(int, id.split("@")[1].split(","))
            place = slice(top, top + 24), slice(left, left + 24)
            labelled[place] += masks[0] != 255
            shown[place] += 1
    assert (labelled == 1).all()
    assert shown.max() == 9  # every 9 pixels one of 24


def test_formats_get_every_layer_of_every_image(tmp_path, monkeypatch):
    seen = []
    paper = SimpleNamespace(write=lambda images, folder: seen.extend([folder, *images]))
    monkeypatch.setitem(prediction_writer.FORMATS, "paper", None)
    monkeypatch.setitem(sys.modules, "tax_lightning.exporters.paper", paper)
    predict(tmp_path / "out", ["1", "2"], explain=all_differ, format=["paper"])
    folder, first, second = seen
    assert folder == tmp_path / "out" / "paper"
    assert (first.name, first.file, second.name) == ("1", "1.png", "2")
    assert [layer.name for layer in first.layers] == ["result", *ANNOTATORS, "dispute"]
    assert (first.layers[0].labels == 1).all()
    assert first.layers[-1].labels[:, :2].tolist() == [[0, 1]] * SIDE


def test_a_format_that_fails_leaves_the_predictions(tmp_path, monkeypatch):
    paper = SimpleNamespace(write=lambda images, folder: 1 / 0)
    monkeypatch.setitem(prediction_writer.FORMATS, "paper", None)
    monkeypatch.setitem(sys.modules, "tax_lightning.exporters.paper", paper)
    with pytest.raises(ZeroDivisionError):
        predict(tmp_path / "out", format=["paper"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [image["id"] for image in manifest["images"]] == ["a", "b", "c"]


def test_a_format_whose_library_is_missing_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ModuleNotFoundError, match=r"need nibabel.*tax-lightning\[volumes"):
        predict(tmp_path / "out", format=["nifti"], explain=lambda images, ids: 1 / 0)
