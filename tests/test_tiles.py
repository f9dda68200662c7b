"""Large images in windows: where these lie, how they become one, and that nothing is lost."""

import numpy as np
import pytest
import torch
from torch import nn

from tax_lightning import TAXLightningModule
from tax_lightning.baselines import GatedMultiHead, MultiHead, Pionono, ProbabilisticUNet
from tax_lightning.tiles import Parts, Window, blend, cover, tiles

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
