"""Pionono and the Probabilistic U-Net: latent vectors, their distributions, what is drawn."""

import math
from functools import partial

import pytest
import torch
from baseline_scenes import adam, make, scenes, stacked, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tax_lightning.baselines import Pionono, ProbabilisticUNet
from tax_lightning.baselines.latent import LatentHead, _of_one_each, noise


@given(latent_dim=st.integers(1, 5), vectors=st.integers(1, 3), by_image=st.booleans())
def test_a_bias_for_each_vector_is_the_vector_repeated_and_joined_to_the_features(
    latent_dim, vectors, by_image
):
    head = LatentHead(channels=4, latent_dim=latent_dim, classes=3)
    features = torch.randn(2, 4, 5, 6)
    latents = torch.randn(3, 2 if by_image else 1, vectors, latent_dim)
    # The first convolution over features and vector together, written out.
    weight = torch.cat([head.of_features.weight, head.of_latent.weight[..., None, None]], dim=1)
    first = partial(F.conv2d, weight=weight, bias=head.of_features.bias)
    for drawn, part in zip(head(features, latents), latents, strict=True):
        assert drawn.shape == (2, vectors, 3, 5, 6)
        for m in range(vectors):
            tiled = part[:, m, :, None, None].expand(2, -1, 5, 6)
            expected = head.rest(first(torch.cat([features, tiled], dim=1))).log_softmax(dim=1)
            torch.testing.assert_close(drawn[:, m], expected, atol=1e-5, rtol=1e-4)


def test_annotators_differ_at_the_start_by_their_means_only():
    annotators = make(Pionono, latent_dim=64).annotator_distributions()
    assert annotators.loc.std().item() == pytest.approx(8, rel=0.2)
    expected = 4 * torch.eye(64).expand(3, -1, -1)  # the prior's standard deviation is 2
    torch.testing.assert_close(annotators.covariance_matrix, expected)


def test_the_divergence_in_closed_form():
    module = make(Pionono, latent_dim=2)
    module.mean.data = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]])
    # The factor ((1, 0), (0.5, 2)); what lies above the diagonal does not count.
    module.factor.data[1] = torch.tensor([[0.0, 7.0], [0.5, math.log(2)]])
    trace, distance = (1 + 0.25 + 4) / 4, (1 + 4) / 4
    expected = (trace + distance - 2 + 2 * math.log(4) - 2 * math.log(2)) / 2
    # The others are the prior itself.
    assert module.divergence().tolist() == pytest.approx([0, expected, 0], rel=1e-5, abs=1e-6)
    covariance = module.annotator_distributions().covariance_matrix[1]
    torch.testing.assert_close(covariance, torch.tensor([[1.0, 0.5], [0.5, 4.25]]))


@torch.no_grad()
def test_what_an_annotator_would_draw_is_the_mean_over_draws_of_their_vector():
    module, images = make(Pionono, samples=7).eval(), stacked("image")[:2]
    annotators = module.annotator_distributions()
    standard = noise(7, 1, *module.mean.shape, like=images, seed=0)
    latents = annotators.loc + (annotators.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)
    drawn = torch.stack(list(module.head(module.network.features(images), latents)))
    expected = drawn.exp().mean(dim=0)
    torch.testing.assert_close(module(images).log_annotator_probs.exp(), expected)


def test_in_training_vectors_are_drawn_anew_for_each_image():
    module = make(Pionono, train_samples=1)
    module.network.eval()
    same = stacked("image")[:1].expand(2, -1, -1, -1)
    first, second = module(same).log_annotator_probs, module(same).log_annotator_probs
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])


def test_distributions_have_a_learning_rate_of_their_own():
    module = make(Pionono, latent_rate=0.3)
    network, latent = module.configure_optimizers().param_groups
    assert (network["lr"], latent["lr"], latent["weight_decay"]) == (1e-2, 0.3, 0)
    mine = {id(module.mean), id(module.factor)}
    assert {id(p) for p in latent["params"]} == mine
    assert {id(p) for p in network["params"]} == {id(p) for p in module.parameters()} - mine


@pytest.fixture(scope="module")
def unet() -> ProbabilisticUNet:
    return trained(ProbabilisticUNet, 60, optimizer=adam(5e-3, weight_decay=0.0))


def test_samples_differ_and_a_seed_repeats_them(unet):
    images = stacked("image")[:2]
    drawn = unet.sample(images, samples=6, seed=3)
    assert drawn.shape == (2, 6, 3, 24, 24)
    assert torch.equal(unet.sample(images, samples=6, seed=3), drawn)
    assert not torch.equal(unet.sample(images, samples=6, seed=4), drawn)
    assert all(not torch.allclose(drawn[:, 0], drawn[:, i]) for i in range(1, 6))
    torch.testing.assert_close(unet.predict(images), unet.sample(images).mean(dim=1))


def test_samples_are_as_different_as_the_annotators(unet):
    areas = unet.sample(stacked("image"), samples=32)[:, :, 1:].sum(dim=(2, 3, 4)).mean(dim=0)
    # Annotators draw squares with sides of 9, 15 and 5 pixels.
    assert areas.max() > 1.6 * 81
    assert areas.min() < 0.8 * 81


def test_nobody_is_named():
    for chosen in ({"annotator": "Ana"}, {"panel": ["Ana", "Ben"]}):
        with pytest.raises(ValueError, match=r"^predict: ProbabilisticUNet draws samples"):
            make(ProbabilisticUNet).predict(stacked("image")[:1], **chosen)
    drawn = make(ProbabilisticUNet, samples=4).predict(stacked("image")[:2], samples=3)
    assert drawn.shape == (2, 4 * 3, 24, 24)


def test_the_divergence_of_two_nets_in_closed_form_and_per_pixel():
    module = make(ProbabilisticUNet, latent_dim=2)
    # Means and logarithms of the standard deviations 0.5 and 2; a standard normal distribution.
    for net, bias in (
        (module.posterior, [1, 0, -math.log(2), math.log(2)]),
        (module.prior, [0] * 4),
    ):
        nn.init.zeros_(net.parameters_of.weight)
        net.parameters_of.bias.data = torch.tensor(bias).float()
    samples = scenes(2, absent={1: [0, 1, 2]})  # an image without labels does not count
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "masks")}
    batch["present"] = torch.tensor([[True] * 3, [False] * 3])
    expected = (0.25 + 1) / 2 - 0.5 - math.log(0.5) + (4 / 2 - 0.5 - math.log(2))
    assert module.terms(batch)["kl"].item() == pytest.approx(expected / 24**2, rel=1e-5)


def test_the_labels_are_drawn_from_those_present():
    masks = torch.arange(3).view(1, 3, 1, 1).expand(400, -1, 2, 2)
    drawn = _of_one_each(masks, torch.tensor([[True, False, True]]).expand(400, -1))
    assert set(drawn.unique().tolist()) == {0, 2}
    assert 150 < (drawn == 0).all(dim=(1, 2)).sum() < 250


def test_the_posterior_sees_a_plane_a_class_and_nothing_where_there_is_no_label():
    module, seen = make(ProbabilisticUNet, network=nn.Conv2d(3, 4, 1)), []
    module.posterior.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    masks = torch.tensor([0, 2, 255]).expand(1, 3, 1, 3)
    everyone = torch.ones(1, 3, dtype=torch.bool)
    module.terms({"image": torch.full((1, 3, 1, 3), 7.0), "masks": masks, "present": everyone})
    expected = [[7, 7, 7, 1, 0, 0], [7, 7, 7, 0, 0, 1], [7, 7, 7, 0, 0, 0]]
    assert seen[0][0, :, 0].T.tolist() == expected


@pytest.mark.parametrize("kind", [Pionono, ProbabilisticUNet])
def test_numbers_without_a_meaning(kind):
    for option in ("latent_dim", "samples", *["train_samples"] * (kind is Pionono)):
        with pytest.raises(ValueError, match=rf"^{option}=0: expected at least 1\."):
            make(kind, **{option: 0})
