"""Large images in windows: where these lie, how they become one, and that nothing is lost."""

import json
import re
import shutil

import albumentations as A
import lightning as L
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from tax_lightning import FolderDataModule, TAXLightningModule
from tax_lightning.baselines import GatedMultiHead, MultiHead, Pionono, ProbabilisticUNet
from tax_lightning.blending import Parts, blend
from tax_lightning.callbacks import ImageScores, PredictionWriter
from tax_lightning.data.images import ExplainedImages
from tax_lightning.data.pixels import Pictures
from tax_lightning.visualization.report import write_report
from tax_lightning.windows import Window, cover, tiles

NAMES = ("Ana", "Ben", "Cleo"), ("background", "cell")
TILE, REACH = 48, 3  # the network sees two pixels, a kernel one more
HEIGHT, WIDTH = 90, 117


def module_of(kind, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1))
    return kind(*NAMES, network=network, **options).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def inner(height, width, tile, reach):
    """Pixels that no window's edge is near to, but where that is the edge of the image."""
    far = torch.ones(height, width, dtype=torch.bool)
    for top, left, h, w in tiles(height, width, tile):
        seen = torch.zeros(height, width, dtype=torch.bool)
        rows = slice(top and top + reach, top + h - reach * (top + h < height))
        seen[rows, left and left + reach : left + w - reach * (left + w < width)] = True
        shown = torch.zeros(height, width, dtype=torch.bool)
        shown[top : top + h, left : left + w] = True
        far &= seen | ~shown
    return far


# ------------------------------------------------------------------------------------- the windows


def test_tiles_overlap_by_a_quarter_and_show_every_pixel():
    shown = np.zeros((HEIGHT, WIDTH), int)
    for top, left, height, width in tiles(HEIGHT, WIDTH, TILE):
        shown[top : top + height, left : left + width] += 1
    assert shown.min() == 1
    assert sorted({top for top, *_ in tiles(HEIGHT, WIDTH, TILE)}) == [0, 36, 42]
    assert tiles(20, 30, 64) == [Window(0, 0, 20, 30)]


def test_a_tile_that_is_too_small_is_refused(images):
    with pytest.raises(ValueError, match="tile=8: expected the side of a window in pixels"):
        module_of(MultiHead).predict(images, tile=8)


def test_parts_become_what_they_were_cut_from(tmp_path):
    values = {"p": torch.rand(3, 20, 30), "index": torch.randint(9, (20, 30))}
    places = cover(20, 30, 8, 5)
    cuts = [(place, {name: place.of(v) for name, v in values.items()}) for place in places]
    whole = blend(cuts, range(20), range(30), ["p"])
    torch.testing.assert_close(whole["p"], values["p"])
    assert torch.equal(whole["index"], values["index"])
    rows, columns = [0, 7, 19], range(3, 30, 4)
    some = blend(cuts, rows, columns, ["p"])
    torch.testing.assert_close(some["p"], values["p"][:, rows][..., columns])
    assert torch.equal(some["index"], values["index"][rows][..., columns])
    parts = Parts(tmp_path)
    for place, maps in cuts:
        parts.add(place, maps)
    band = blend(parts.showing(8, 14), range(8, 14), range(30), ["p"])
    torch.testing.assert_close(band["p"], values["p"][:, 8:14], atol=1e-3, rtol=0)
    assert torch.equal(band["index"].long(), values["index"][8:14])
    parts.forget(14)
    assert {place.top for place, _ in parts.showing(0, 20)} == {10, 12}


# -------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("kind", [TAXLightningModule, MultiHead, GatedMultiHead, Pionono])
def test_tiles_say_what_the_whole_image_says_away_from_their_borders(kind, images):
    module, far = module_of(kind), inner(HEIGHT, WIDTH, TILE, REACH)
    assert far.float().mean() > 0.5
    for options in ({}, {"annotator": "Ben"}, {"panel": ["Ana", "Cleo"]}):
        whole, tiled = (
            module.predict(images, **options),
            module.predict(images, tile=TILE, **options),
        )
        torch.testing.assert_close(tiled[..., far], whole[..., far], atol=1e-5, rtol=0)
        torch.testing.assert_close(tiled.sum(1), torch.ones(2, HEIGHT, WIDTH))
    drawn = module.predict(images, samples=3, tile=TILE)
    same = drawn == module.predict(images, samples=3)
    assert same[..., far].float().mean() > 0.9999


def test_tiles_explain_what_the_whole_image_explains(images):
    module, far = module_of(TAXLightningModule), inner(HEIGHT, WIDTH, TILE, REACH)
    whole = module.explain(images, ["a", "b"]).tensors()
    tiled = module.explain(images, ["a", "b"], tile=TILE).tensors()
    for name, values in whole.items():
        torch.testing.assert_close(tiled[name][..., far], values[..., far], atol=1e-5, rtol=0)
    at = [3, 40, 88], range(0, WIDTH, 10)
    for options in ({}, {"tile": TILE}):
        some = module.explain(images, at=at, **options).tensors()
        for name, values in (tiled if options else whole).items():
            assert torch.equal(some[name], values[..., at[0], :][..., at[1]]), name


def test_samples_that_do_not_fit_together_are_refused(images):
    module = module_of(ProbabilisticUNet)
    assert module.predict(images, tile=TILE).shape == (2, 2, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="ProbabilisticUNet draws the samples of each window by"):
        module.predict(images, samples=2, tile=TILE)


# ----------------------------------------------------------------------------- files, the commands


@pytest.fixture
def root(tmp_path):
    """Two images of 90 x 117 pixels, and what three people drew on them."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        drawn = rng.integers(0, 2, (3, HEIGHT // 9, WIDTH // 9)).repeat(9, 1).repeat(9, 2)
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        places = ["images", *(f"masks/{person}" for person in NAMES[0])]
        for place, pixels in zip(places, (image, *drawn), strict=True):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / place / f"{name}.png")
    (tmp_path / "samples.csv").write_text("name,split\na,test\nb,test\n")
    return tmp_path


def data_of(root, **options):
    return FolderDataModule(root, NAMES[1], batch_size=1, num_workers=0, **options)


def trainer_of(*callbacks):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", callbacks=[*callbacks], barebones=False, **quiet)


@pytest.mark.parametrize("kind", [TAXLightningModule, ProbabilisticUNet])
def test_a_test_in_tiles_measures_whole_images(kind, root):
    """With tiles nearly as large as the image, figures differ by what lies at their borders."""
    figures, rows = [], []
    for options in ({}, {"tile": 80}):
        scores = ImageScores()
        module, data = module_of(kind), data_of(root, **options)
        figures += trainer_of(scores).test(module, data, verbose=False)
        rows.append(scores.rows)
        assert sorted(scores.rows) == ["a", "b"]
    assert figures[0].keys() == figures[1].keys()
    assert figures[1] == pytest.approx(figures[0], abs=0.02, nan_ok=True)
    if kind is TAXLightningModule:
        assert figures[1] != figures[0]


@pytest.mark.parametrize("kind", [TAXLightningModule, MultiHead])
def test_predictions_in_tiles_are_those_of_python(kind, root):
    module, writer = module_of(kind), PredictionWriter(str(root / "out"), maps=True)
    data = data_of(root, tile=TILE)
    trainer_of(writer).predict(module, data, return_predictions=False)
    manifest = json.loads(writer.manifest.read_text())
    assert [image["id"] for image in manifest["images"]] == ["a", "b"]
    files = manifest["images"][1]["files"]
    image = data.to_picture(data.read("b")["image"])
    np.testing.assert_array_equal(image, np.asarray(Image.open(root / "images" / "b.png")))
    probs = module.predict(data.read("b")["image"][None], tile=TILE)[0]
    np.testing.assert_allclose(
        tifffile.imread(root / "out" / files["maps"]["probs"]), probs, atol=1e-3
    )
    sure = (probs[0] - 0.5).abs() > 1e-3
    fused = tifffile.imread(root / "out" / files["fused"])
    assert (torch.from_numpy(fused) == probs.argmax(0))[sure].all()
    with tifffile.TiffFile(root / "out" / files["annotators"]["Ben"]) as file:
        assert file.pages[0].is_tiled
        assert file.pages[0].colormap is not None
    assert not (root / "out" / ".parts").exists()


def test_numbers_of_images_in_parts_are_written_on_request(root):
    writer = PredictionWriter(str(root / "out"))
    trainer_of(writer).predict(module_of(MultiHead), data_of(root, tile=TILE))
    files = {path.name for path in (root / "out" / "a").rglob("*")}
    assert files == {"fused.tif", *(f"{name}.tif" for name in NAMES[0])}


def test_parts_that_do_not_come_from_top_to_bottom_are_refused(root):
    data = data_of(root, tile=TILE)
    parts = data._predict_parts()
    data._predict_parts = lambda: parts.__class__(parts.samples[::-1], *NAMES)
    with pytest.raises(ValueError, match="lies above rows of 'b' that are written already"):
        trainer_of(PredictionWriter(str(root / "out"))).predict(module_of(MultiHead), data)


def test_tiles_refuse_transforms_that_move_pixels(root):
    with pytest.raises(
        ValueError, match=r"tile=48: eval_transforms \(LongestMaxSize\) move pixels"
    ):
        data_of(root, tile=48, eval_transforms=[A.LongestMaxSize(64)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("pieces", [{"tile": (16, 32)}, {"rowsperstrip": 7}, {"rowsperstrip": 90}])
def test_a_window_of_a_tiff_file_is_that_of_the_whole(tmp_path, channels, kind, pieces):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 117, channels)).astype(kind)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, pixels.squeeze(), compression="zlib", **pieces)
    pictures = Pictures(channels)
    for window in (Window(0, 0, 90, 117), Window(13, 31, 40, 50), Window(89, 100, 1, 17)):
        part = window.of(torch.from_numpy(pictures.image(file).transpose(2, 0, 1).copy()))
        np.testing.assert_array_equal(pictures.image(file, window).transpose(2, 0, 1), part)


def test_a_file_that_changed_is_read_anew(tmp_path):
    for value in (1, 2):
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / "new.png")
        shutil.move(tmp_path / "new.png", tmp_path / "a.png")
        assert Pictures().image(tmp_path / "a.png", Window(0, 0, 2, 2)).max() == value


# ---------------------------------------------------------------------------------------- the page


def test_a_large_image_is_explained_at_reading_size_with_details_in_full(root):
    data, module = data_of(root, tile=TILE), module_of(TAXLightningModule)
    module.network.dispute_threshold.fill_(0.0)
    options = {"drawn_by": data.annotators, "tile": TILE, "max_side": 39}
    explained = ExplainedImages(module, data.predict_dataset(), data.to_picture, **options)
    items = list(explained)
    small, *details = items[: len(items) // 2]
    image, masks = data.read("a")["image"], data.read("a")["masks"].numpy()
    rows, columns = np.arange(1, HEIGHT, 3), np.arange(1, WIDTH, 3)
    whole = module.explain(image[None], ["a"], tile=TILE)
    assert torch.equal(small[0].probs, whole.probs[..., rows, :][..., columns])
    assert small[1].shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(small[2], masks[:, rows[:, None], columns])
    assert 2 <= len(details) <= 6
    shown = np.zeros((HEIGHT, WIDTH), int)
    for said, picture, drawn, _ in details:
        top, left = map(int, re.findall(r"\d+", said.ids[0]))
        window = Window(top, left, *said.probs.shape[-2:])
        shown[top : top + window.height, left : left + window.width] += 1
        far = slice(REACH, -REACH)
        around = window.of(module.explain(image[None], ["a"]).probs)
        torch.testing.assert_close(said.probs[..., far, far], around[..., far, far])
        assert said.detail_of == "a"
        np.testing.assert_array_equal(drawn, window.of(torch.from_numpy(masks)))
        np.testing.assert_array_equal(picture, data.to_picture(window.of(image)))
    assert shown.max() == 1


def test_the_report_counts_a_large_image_once(root):
    data, module = data_of(root, tile=TILE), module_of(TAXLightningModule)
    module.network.dispute_threshold.fill_(0.0)
    explained = ExplainedImages(
        module, data.predict_dataset(), data.to_picture, tile=TILE, max_side=39
    )
    page = write_report(explained, root / "report", max_side=39).read_text()
    told = json.loads((root / "report" / "report.json").read_text())
    kinds = [image["detail_of"] for image in told["images"]]
    assert kinds.count(None) == 2
    assert "1 of 2: a, disputed" in page
    assert "2 of 2: b, disputed" in page
    assert "detail: b, from row" in page
    assert any("a has 90 x 117 pixels, of which 30 x 39 were" in note for note in told["notes"])
    with np.load(root / "report" / told["images"][0]["files"]["maps"]) as maps:
        assert maps["rows"].tolist() == [*range(1, HEIGHT, 3)]
    disputed = [image["disputed"] for image in told["images"] if image["detail_of"] is None]
    assert told["disputed"] == pytest.approx(sum(disputed) / 2)
