"""Pionono and the Probabilistic U-Net: latent vectors, their distributions, what is drawn."""

import math

import pytest
import torch
from baseline_scenes import ANNOTATORS, images, loader, make, make_trainer, scenes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tax_lightning.baselines import Pionono, ProbabilisticUNet
from tax_lightning.baselines.latent import LatentHead, noise
from tax_lightning.baselines.probabilistic_unet import _of_one_each, _one_hot

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
]

# ---------------------------------------------------------------------- the head


@given(
    layers=st.integers(2, 4),
    latent_dim=st.integers(1, 5),
    vectors=st.integers(1, 3),
    by_image=st.booleans(),
)
def test_a_bias_for_each_vector_is_the_vector_repeated_and_joined_to_the_features(
    layers, latent_dim, vectors, by_image
):
    head = LatentHead(channels=4, latent_dim=latent_dim, classes=3, layers=layers)
    features = torch.randn(2, 4, 5, 6)
    latents = torch.randn(3, 2 if by_image else 1, vectors, latent_dim)
    # The first convolution over features and vector together, written out.
    weight = torch.cat([head.of_features.weight, head.of_latent.weight[..., None, None]], dim=1)
    for drawn, part in zip(head(features, latents), latents, strict=True):
        assert drawn.shape == (2, vectors, 3, 5, 6)
        for i in range(2):
            for m in range(vectors):
                vector = part[i if by_image else 0, m]
                tiled = vector[:, None, None].expand(-1, 5, 6)
                joined = torch.cat([features[i], tiled])[None]
                logits = head.rest(F.conv2d(joined, weight, head.of_features.bias))
                expected = logits.log_softmax(dim=1)[0]
                torch.testing.assert_close(drawn[i, m], expected, atol=1e-5, rtol=1e-4)


def test_a_head_has_at_least_two_layers():
    with pytest.raises(ValueError, match=r"^head_layers=1: expected at least 2\."):
        LatentHead(4, 2, 3, layers=1)


def test_seeded_noise_disturbs_no_other_draw():
    like = torch.zeros(1)
    state = torch.get_rng_state()
    first = noise(4, 2, like=like, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise(4, 2, like=like, seed=3), first)
    assert not torch.equal(noise(4, 2, like=like, seed=4), first)
    assert not torch.equal(noise(4, 2, like=like, seed=None), noise(4, 2, like=like, seed=None))


# ---------------------------------------------------------------------- Pionono


def test_annotators_differ_at_the_start_by_their_means_only():
    module = make(Pionono, latent_dim=64)
    annotators = module.annotator_distributions()
    assert annotators.loc.std().item() == pytest.approx(8, rel=0.2)
    expected = 4 * torch.eye(64).expand(3, -1, -1)  # the prior's standard deviation is 2
    torch.testing.assert_close(annotators.covariance_matrix, expected)


def test_the_divergence_in_closed_form():
    module = make(Pionono, latent_dim=2, prior_sigma=3.0)
    module.mean.data = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]])
    module.factor.data[0] = math.log(3) * torch.eye(2)  # the prior itself
    # The factor ((1, 0), (0.5, 2)); what lies above the diagonal does not count.
    module.factor.data[1] = torch.tensor([[0.0, 7.0], [0.5, math.log(2)]])
    trace, distance = (1 + 0.25 + 4) / 9, (1 + 4) / 9
    expected = (trace + distance - 2 + 2 * math.log(9) - 2 * math.log(2)) / 2
    found = module.divergence().detach()
    assert float(found[0]) == pytest.approx(0, abs=1e-6)
    assert float(found[1]) == pytest.approx(expected, rel=1e-5)
    covariance = module.annotator_distributions().covariance_matrix[1]
    torch.testing.assert_close(covariance, torch.tensor([[1.0, 0.5], [0.5, 4.25]]))


@torch.no_grad()
def test_what_an_annotator_would_draw_is_the_mean_over_draws_of_their_vector():
    module = make(Pionono, samples=7).eval()
    seen = images()[:2]
    annotators = module.annotator_distributions()
    standard = noise(7, 1, *module.mean.shape, like=seen, seed=0)
    latents = annotators.loc + (annotators.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)
    drawn = torch.stack(list(module.head(module.network.features(seen), latents)))
    expected = drawn.exp().mean(dim=0)
    torch.testing.assert_close(module(seen).log_annotator_probs.exp(), expected)
    torch.testing.assert_close(module(seen).log_probs.exp(), expected.mean(dim=1))


def test_in_training_vectors_are_drawn_anew_for_each_image():
    module = make(Pionono, train_samples=1)
    module.network.eval()
    same = images()[:1].expand(2, -1, -1, -1)
    first, second = module(same), module(same)
    assert not torch.allclose(first.log_annotator_probs, second.log_annotator_probs)
    assert not torch.allclose(first.log_annotator_probs[0], first.log_annotator_probs[1])


def test_distributions_have_a_learning_rate_of_their_own():
    module = make(Pionono, latent_rate=0.3)
    optimizer = module.configure_optimizers()
    network, latent = optimizer.param_groups
    assert (network["lr"], latent["lr"]) == (1e-2, 0.3)
    assert latent["weight_decay"] == 0
    assert {id(p) for p in latent["params"]} == {id(module.mean), id(module.factor)}
    everything = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert everything == {id(p) for p in module.parameters()}


def test_pionono_learns_who_draws_how():
    module = make(Pionono)
    make_trainer(max_epochs=40).fit(module, loader())
    areas = [module.predict(images(), annotator=name)[:, 1:].sum() for name in ANNOTATORS]
    assert areas[1] > 1.5 * areas[0] > 2 * areas[2]


@pytest.mark.parametrize("option", ["latent_dim", "train_samples", "samples", "prior_sigma"])
def test_pionono_refuses_numbers_without_a_meaning(option):
    with pytest.raises(ValueError, match=rf"^{option}=0: expected more than 0\."):
        make(Pionono, **{option: 0})


# ---------------------------------------------------------------------- Probabilistic U-Net


@pytest.fixture(scope="module")
def trained() -> ProbabilisticUNet:
    torch.manual_seed(0)
    module = make(
        ProbabilisticUNet, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
    )
    make_trainer(max_epochs=60).fit(module, loader())
    return module


def test_samples_differ_and_a_seed_repeats_them(trained):
    seen = images()[:2]
    drawn = trained.sample(seen, samples=6, seed=3)
    assert drawn.shape == (2, 6, 3, 24, 24)
    torch.testing.assert_close(drawn.sum(dim=2), torch.ones(2, 6, 24, 24))
    assert torch.equal(trained.sample(seen, samples=6, seed=3), drawn)
    assert not torch.equal(trained.sample(seen, samples=6, seed=4), drawn)
    assert all(not torch.allclose(drawn[:, 0], drawn[:, i]) for i in range(1, 6))


def test_samples_are_as_different_as_the_annotators(trained):
    areas = trained.sample(images(), samples=32)[:, :, 1:].sum(dim=(2, 3, 4)).mean(dim=0)
    # Of the squares the annotators draw sides of 9, 15 and 5 pixels.
    assert areas.max() > 1.6 * 81
    assert areas.min() < 0.8 * 81


def test_the_result_is_the_mean_of_the_samples(trained):
    seen = images()[:2]
    torch.testing.assert_close(trained.predict(seen), trained.sample(seen).mean(dim=1))


def test_nobody_is_named(trained):
    for chosen in ({"annotator": "Ana"}, {"panel": ["Ana", "Ben"]}):
        with pytest.raises(ValueError, match=r"^predict: ProbabilisticUNet draws samples"):
            trained.predict(images()[:1], **chosen)


def test_the_divergence_of_two_nets_in_closed_form_and_per_pixel():
    module = make(ProbabilisticUNet, latent_dim=2)
    for net, mean, sigma in (
        (module.posterior, (1.0, 0.0), (0.5, 2.0)),
        (module.prior, (0.0, 0.0), (1.0, 1.0)),
    ):
        nn.init.zeros_(net.parameters_of.weight)
        net.parameters_of.bias.data = torch.cat([torch.tensor(mean), torch.tensor(sigma).log()])
    samples = scenes(2, absent={1: [0, 1, 2]})  # an image without labels does not count
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "masks")}
    batch["present"] = torch.tensor([[True] * 3, [False] * 3])
    expected = (0.25 + 1) / 2 - 0.5 - math.log(0.5) + (4 / 2 - 0.5 - math.log(2))
    assert float(module.terms(batch)["kl"]) == pytest.approx(expected / 24**2, rel=1e-5)


def test_the_labels_are_drawn_from_those_present():
    masks = torch.arange(3).view(1, 3, 1, 1).expand(400, -1, 2, 2)
    present = torch.tensor([[True, False, True]]).expand(400, -1)
    drawn = _of_one_each(masks, present)
    assert drawn.shape == (400, 2, 2)
    assert set(drawn.unique().tolist()) == {0, 2}
    assert 150 < (drawn[:, 0, 0] == 0).sum() < 250
    nobody = _of_one_each(torch.full((2, 3, 2, 2), 255), torch.zeros(2, 3, dtype=torch.bool))
    assert (nobody == 255).all()


def test_the_posterior_sees_a_plane_a_class_and_nothing_where_there_is_no_label():
    planes = _one_hot(torch.tensor([[[0, 2, 255]]]), ["a", "b", "c"], torch.zeros(1))
    assert planes.dtype == torch.float32
    assert planes[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("option", ["latent_dim", "samples"])
def test_the_probabilistic_unet_refuses_numbers_below_1(option):
    with pytest.raises(ValueError, match=rf"^{option}=0: expected at least 1\."):
        make(ProbabilisticUNet, **{option: 0})
