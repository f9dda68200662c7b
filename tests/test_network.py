"""The arithmetic of the method by hand, and networks of any architecture."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.models.mixture import probs_of
from tax_lightning.models.network import TAXNetwork

TINY = "tu-test_resnet.r160_in1k"
NETWORK = "tax_lightning.models.network"


def make_network(annotators: int = 3, classes: int = 2, **options) -> TAXNetwork:
    """A network on one small convolution."""
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    options = {"backbone": backbone, "kernels": 2} | options
    return TAXNetwork(annotators, classes, **options)


def by_hand() -> TAXNetwork:
    """A network whose features are their own embedding, and of which every number is known.

    Cosines with the pixel (3, 4) are .6, .8, 1 and 0. At this temperature a difference of .2 is a
    factor of 2 between weights: 8, 16, 32 and 1. The second annotator's prior divides by 3.
    """
    size = {"EMBEDDING_CHANNELS": 2, "TEMPERATURE": 0.2 / math.log(2)}
    with patch.multiple(NETWORK, **size):
        network = TAXNetwork(
            2, 2, backbone=nn.Identity(), in_channels=2, kernels=2, kernel_size=1
        ).eval()
    log3 = math.log(3)
    with torch.no_grad():
        network.projection.weight.copy_(torch.eye(2)[..., None, None])
        network.projection.bias.zero_()
        network.bank.weight.zero_()
        network.memory.vectors.copy_(
            torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-0.8, 0.6]]])
        )
        network.memory.prior.copy_(torch.tensor([0.0, -log3]))
        # Class 1 has the probabilities 3/4, 1/4, 1/2 and 1/12.
        network.bank.weight[0, 0, 1, 0] = log3 / 3  # times the feature 3
        network.bank.weight[0, 1, 0, 1] = log3 / 4  # times the feature 4
        network.bank.bias[1, 1, 0] = math.log(11)
    return network


PIXEL = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)


def close(found: Tensor, expected: list) -> None:
    torch.testing.assert_close(found.squeeze(), torch.tensor(expected), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- arithmetic


@torch.no_grad()
def test_every_quantity_of_one_pixel_by_hand():
    network = by_hand()
    output = network(PIXEL)
    close(output.embedding, [0.6, 0.8])
    close(output.who, [24 / 35, 11 / 35])
    close(output.within, [[1 / 3, 2 / 3], [32 / 33, 1 / 33]])
    close(probs_of(output.log_odds)[..., 1, :, :], [[3 / 4, 1 / 4], [1 / 2, 1 / 12]])
    close(output.annotator_probs, [[7 / 12, 5 / 12], [203 / 396, 193 / 396]])
    close(output.probs, [707 / 1260, 553 / 1260])
    shares = output.shares(torch.zeros(1, 1, 1).long())
    close(shares, [[72 / 707, 432 / 707], [192 / 707, 11 / 707]])
    shares = output.shares(torch.ones(1, 1, 1).long())
    close(shares, [[216 / 553, 144 / 553], [192 / 553, 1 / 553]])


@torch.no_grad()
def test_the_calibrated_weights_are_a_power_of_the_weights():
    network = by_hand()
    network.trust.scale.fill_(2.0)
    output = network(PIXEL)
    # 24 and 11 squared; which kernel of an annotator is used does not change.
    close(output.who, [576 / 697, 121 / 697])
    close(output.within, [[1 / 3, 2 / 3], [32 / 33, 1 / 33]])


@torch.no_grad()
def test_shares_and_weights_sum_to_one():
    network = make_network(annotators=3, classes=4, kernels=5).eval()
    output = network(torch.randn(2, 3, 9, 7))
    ones = torch.ones(2, 9, 7)
    assert output.who.min() >= 0
    torch.testing.assert_close(output.who.sum(dim=1), ones)
    assert output.within.min() >= 0
    torch.testing.assert_close(output.within.sum(dim=2), torch.ones(2, 3, 9, 7))
    torch.testing.assert_close(probs_of(output.log_odds).sum(dim=3), torch.ones(2, 3, 5, 9, 7))
    torch.testing.assert_close(output.annotator_probs.sum(dim=2), torch.ones(2, 3, 9, 7))
    torch.testing.assert_close(output.probs.sum(dim=1), ones)
    for decision in (output.probs.argmax(dim=1), torch.randint(0, 4, (2, 9, 7))):
        shares = output.shares(decision)
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(dim=(1, 2)), ones)


@torch.no_grad()
def test_mixing_by_kernel_and_by_annotator_agree():
    network = make_network(annotators=4, classes=3, kernels=3).eval()
    output = network(torch.randn(2, 3, 8, 8) * 5)
    features = network.features(torch.randn(1, 3, 8, 8))
    assert features.shape == (1, 8, 8, 8)
    by_annotator = (output.who.unsqueeze(2) * output.annotator_probs).sum(dim=1)
    assignment = output.who.unsqueeze(2) * output.within
    by_kernel = (assignment.unsqueeze(3) * probs_of(output.log_odds)).sum(dim=(1, 2))
    evidence = network.memory(output.embedding).flatten(1, 2).softmax(dim=1)
    from_scratch = (evidence.unsqueeze(2) * probs_of(output.log_odds).flatten(1, 2)).sum(dim=1)
    for other in (by_annotator, by_kernel, from_scratch):
        torch.testing.assert_close(output.probs, other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_permuted_annotators_permute_the_explanation_and_leave_the_result():
    network = make_network(annotators=3).eval()
    images = torch.randn(1, 3, 6, 6)
    before = network(images)
    order = [2, 0, 1]
    for stacked in (
        network.memory.vectors,
        network.memory.prior,
        network.bank.weight,
        network.bank.bias,
    ):
        stacked.copy_(stacked[order].clone())
    after = network(images)
    torch.testing.assert_close(after.who, before.who[:, order])
    torch.testing.assert_close(after.annotator_probs, before.annotator_probs[:, order])
    torch.testing.assert_close(after.probs, before.probs)


@torch.no_grad()
@torch.no_grad()
def test_of_a_panel_it_says_what_it_would_without_the_others():
    network, images = make_network().eval(), torch.randn(2, 3, 9, 7)
    network.memory.active[2, 1] = False
    whole, some = network(images), network(images, panel=torch.tensor([2, 0]))
    for name in ("log_annotator_probs", "within", "log_odds"):
        torch.testing.assert_close(getattr(some, name), getattr(whole, name)[:, [2, 0]])
    torch.testing.assert_close(some.log_who, whole.log_who[:, [2, 0]].log_softmax(dim=1))


def test_a_pruned_prototype_gets_no_weight():
    network = by_hand()
    network.memory.active[0, 1] = False
    output = network(PIXEL)
    close(output.within, [[1, 0], [32 / 33, 1 / 33]])
    close(output.annotator_probs[:, 0], [1 / 4, 3 / 4])
    close(output.shares(torch.ones(1, 1, 1).long())[0, 0, 1], 0.0)
    close(output.who.sum(), 1.0)
    for tensor in (output.probs, output.who, output.annotator_probs):
        assert tensor.isfinite().all()


@torch.no_grad()
def test_a_pruned_prototype_gets_no_weight_from_other_convolutions_either():
    # A bias of -inf becomes NaN in PyTorch's own convolution, for batches of this size.
    network = TAXNetwork(3, 2, backbone=nn.Identity(), in_channels=6, kernels=2).eval()
    network.memory.active[0, 1] = False
    with torch.backends.mkldnn.flags(enabled=False):
        output = network(torch.randn(32, 6, 32, 32))
    assert output.log_probs.isfinite().all()
    assert (output.within[:, 0, 1] == 0).all()


def test_pruned_prototypes_let_gradients_through_the_others():
    network = make_network()
    network.memory.active[0, 1] = False
    network(torch.randn(2, 3, 8, 8)).annotator_probs[:, :, 1].log().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert (network.memory.vectors.grad[0, 1] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_extreme_temperatures_are_safe(temperature):
    with patch(f"{NETWORK}.TEMPERATURE", temperature):
        network = make_network().eval()
    output = network(torch.randn(1, 3, 8, 8))
    shares = output.shares(output.probs.argmax(dim=1))
    torch.testing.assert_close(shares.sum(dim=(1, 2)), torch.ones(1, 8, 8))
    torch.testing.assert_close(output.probs.sum(dim=1), torch.ones(1, 8, 8))


@torch.no_grad()
def test_low_precision_features_keep_exact_probabilities():
    network = make_network(classes=3).eval()
    images = torch.randn(2, 3, 16, 16)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
    for name, tensor in output._asdict().items():
        assert tensor.dtype == torch.float32, name
    torch.testing.assert_close(output.probs.sum(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(output.who.sum(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(
        output.embedding.norm(dim=1), torch.ones(2, 16, 16), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(output.probs, exact.probs, atol=0.05, rtol=0)


def test_three_tenths_of_the_gradient_are_shipped():
    network = make_network()
    features = torch.randn(1, network.channels, 5, 5, requires_grad=True)
    (shipped,) = torch.autograd.grad(network.embed(features)[:, 0].sum(), features)
    with patch(f"{NETWORK}.GRADIENT_SHARE", 1.0):
        (whole,) = torch.autograd.grad(network.embed(features)[:, 0].sum(), features)
    torch.testing.assert_close(shipped, whole * 0.3)


# ---------------------------------------------------------------------- context


class Halves(nn.Module):
    """The image for features; a value for its left and one for its right half for context."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, F.adaptive_avg_pool2d(images[:, :1], (1, 2))


@torch.no_grad()
def test_the_context_is_added_to_the_embedding_and_to_nothing_else():
    with patch(f"{NETWORK}.EMBEDDING_CHANNELS", 2):
        network = TAXNetwork(2, 2, backbone=Halves(), in_channels=2, kernels=2)
    assert (network.channels, network.context_channels) == (2, 1)
    network.projection.weight.copy_(torch.eye(2)[..., None, None])
    network.projection.bias.zero_()
    network.context_projection.weight.copy_(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
    image = torch.tensor([[3.0, 0.0]]).T.view(1, 2, 1, 1).repeat(1, 1, 4, 8)
    image[..., 4:] = torch.tensor([-1.0, 0.0]).view(2, 1, 1)
    features, embedding = network.encode(image)
    assert torch.equal(features, image)
    # Left (3, 0) + 2 * 3 (0, 1), right (-1, 0) - 2 (0, 1); interpolated between.
    close(embedding[0, :, 0, 0], [3 / math.sqrt(45), 6 / math.sqrt(45)])
    close(embedding[0, :, 0, -1], [-1 / math.sqrt(5), -2 / math.sqrt(5)])
    assert 0 < embedding[0, 1, 0, 4] < embedding[0, 1, 0, 3]  # 3 and -1 meet at 1


@torch.no_grad()
def test_the_context_of_an_smp_model_is_what_its_encoder_gives_last():
    network = TAXNetwork(2, 2, encoder=TINY, kernels=2).eval()
    images = torch.randn(2, 3, 40, 64)
    features, context = network.features_and_context(images)
    padded = F.pad(images, (0, 0, 0, 24), mode="replicate")
    assert torch.equal(context, network.backbone.encoder(padded)[-1])
    assert network.context_channels == context.shape[1]
    torch.testing.assert_close(features, network.backbone(padded)[:, :, :40])


# ---------------------------------------------------------------------- bands


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("most_values", "heights"), [(1, [1] * 11), (600, [4, 4, 3])])
def test_bands_equal_the_whole(kernel_size, most_values, heights):
    # At a pixel 3 * 2 * 2 values, so that four rows of six pixels of two images hold 576.
    network = make_network(kernel_size=kernel_size).eval()
    torch.nn.init.normal_(network.bank.weight)
    encoded = network.encode(torch.randn(2, 3, 11, 6))
    whole = network.decode(encoded)
    bands = list(network.bands(encoded, most_values=most_values))
    assert [band.log_probs.shape[-2] for band in bands] == heights
    for name, expected, *parts in zip(whole._fields, whole, *bands, strict=True):
        found = torch.cat(parts, dim=-2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)


# ---------------------------------------------------------------------- freezing


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_a_frozen_network_trains_only_its_kernels():
    network = make_network()
    assert network.frozen_parameters() == []
    network.freeze()
    before = statistics_of(network.backbone)
    network.train()
    assert network.training
    output = network(torch.randn(2, 3, 8, 8))
    output.probs[:, 1].log().mean().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all((parameter.grad != 0).any() for parameter in network.bank.parameters())
    after = statistics_of(network.backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)
    fixed = {id(parameter) for parameter in network.frozen_parameters()}
    free = {name for name, parameter in network.named_parameters() if id(parameter) not in fixed}
    assert free == {"bank.weight", "bank.bias"}


# ---------------------------------------------------------------------- deployment


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_tracing():
    network = make_network().eval()
    traced = torch.jit.trace(network, torch.randn(1, 3, 16, 16))
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        for found, expected in zip(traced(images), network(images), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_as_one_graph_it_says_and_learns_the_same(training):
    network = make_network().train(training)
    images = torch.randn(2, 3, 16, 16)
    # With fullgraph=True a graph break is an error.
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    sums = []
    for model in (network, compiled):
        network.zero_grad()
        output = model(images)
        (output.log_probs.sum() + output.log_who.square().sum()).backward()
        sums.append([output.log_probs, *(p.grad for p in network.parameters())])
    for found, expected in zip(*sums, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch_size(strict):
    network = make_network().eval()
    program = torch.export.export(
        network,
        (torch.randn(2, 3, 16, 16),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        strict=strict,
    )
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        for found, expected in zip(program.module()(images), network(images), strict=True):
            torch.testing.assert_close(found, expected)
