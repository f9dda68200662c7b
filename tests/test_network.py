"""The arithmetic of the method by hand, and networks of any architecture."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.network import Seen, TAXNetwork

TINY = "tu-test_resnet.r160_in1k"


def make_network(annotators: int = 3, classes: int = 2, **options) -> TAXNetwork:
    """A network on one small convolution."""
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    options = {"backbone": backbone, "kernels": 2, "embedding_channels": 8} | options
    return TAXNetwork(annotators, classes, **options)


def in_the_plane(**options) -> TAXNetwork:
    """Two annotators with two kernels each, on features that are their own embedding.

    The temperature makes a difference of .2 between cosines a factor of 2 between weights.
    """
    network = TAXNetwork(
        2,
        2,
        backbone=nn.Identity(),
        in_channels=2,
        kernels=2,
        kernel_size=1,
        embedding_channels=2,
        temperature=0.2 / math.log(2),
        **options,
    )
    with torch.no_grad():
        network.projection.weight.copy_(torch.eye(2)[..., None, None])
        network.projection.bias.zero_()
        network.bank.weight.zero_()
        network.bank.bias.zero_()
    return network.eval()


def by_hand(**options) -> TAXNetwork:
    """A network of which every number is known.

    Cosines with the pixel (3, 4) are .6, .8, 1 and 0, which the temperature turns into evidence of
    8, 16, 32 and 1; the second annotator's prior divides by 3.
    """
    network = in_the_plane(**options)
    log3 = math.log(3)
    with torch.no_grad():
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
    close(output.kernel_probs[..., 1, :, :], [[3 / 4, 1 / 4], [1 / 2, 1 / 12]])
    close(output.annotator_probs, [[7 / 12, 5 / 12], [203 / 396, 193 / 396]])
    close(output.probs, [707 / 1260, 553 / 1260])
    shares = network.shares(output, torch.zeros(1, 1, 1).long())
    close(shares, [[72 / 707, 432 / 707], [192 / 707, 11 / 707]])
    shares = network.shares(output, torch.ones(1, 1, 1).long())
    close(shares, [[216 / 553, 144 / 553], [192 / 553, 1 / 553]])


@torch.no_grad()
def test_shares_and_weights_sum_to_one():
    network = make_network(annotators=3, classes=4, kernels=5).eval()
    output = network(torch.randn(2, 3, 9, 7))
    ones = torch.ones(2, 9, 7)
    assert output.who.min() >= 0
    torch.testing.assert_close(output.who.sum(dim=1), ones)
    assert output.within.min() >= 0
    torch.testing.assert_close(output.within.sum(dim=2), torch.ones(2, 3, 9, 7))
    torch.testing.assert_close(output.kernel_probs.sum(dim=3), torch.ones(2, 3, 5, 9, 7))
    torch.testing.assert_close(output.annotator_probs.sum(dim=2), torch.ones(2, 3, 9, 7))
    torch.testing.assert_close(output.probs.sum(dim=1), ones)
    for decision in (output.probs.argmax(dim=1), torch.randint(0, 4, (2, 9, 7))):
        shares = network.shares(output, decision)
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
    by_kernel = (assignment.unsqueeze(3) * output.kernel_probs).sum(dim=(1, 2))
    evidence = network.memory(output.embedding).flatten(1, 2).softmax(dim=1)
    from_scratch = (evidence.unsqueeze(2) * output.kernel_probs.flatten(1, 2)).sum(dim=1)
    for other in (by_annotator, by_kernel, from_scratch):
        torch.testing.assert_close(output.probs, other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_annotators_with_the_same_prototypes_weigh_the_same():
    network = make_network(annotators=3).eval()
    network.memory.vectors[:] = network.memory.vectors[:1].clone()
    who = network(torch.randn(1, 3, 5, 5)).who
    torch.testing.assert_close(who, torch.full_like(who, 1 / 3))


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
def test_a_dead_prototype_gets_no_weight():
    network = by_hand()
    network.memory.active[0, 1] = False
    output = network(PIXEL)
    close(output.within, [[1, 0], [32 / 33, 1 / 33]])
    close(output.annotator_probs[:, 0], [1 / 4, 3 / 4])
    close(network.shares(output, torch.ones(1, 1, 1).long())[0, 0, 1], 0.0)
    close(output.who.sum(), 1.0)
    for tensor in (output.probs, output.who, output.annotator_probs):
        assert tensor.isfinite().all()


def test_dead_prototypes_let_gradients_through_the_others():
    network = make_network()
    network.memory.active[0, 1] = False
    network(torch.randn(2, 3, 8, 8)).annotator_probs[:, :, 1].log().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert (network.memory.vectors.grad[0, 1] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_extreme_temperatures_are_safe(temperature):
    network = make_network(temperature=temperature).eval()
    output = network(torch.randn(1, 3, 8, 8))
    shares = network.shares(output, output.probs.argmax(dim=1))
    torch.testing.assert_close(shares.sum(dim=(1, 2)), torch.ones(1, 8, 8))
    torch.testing.assert_close(output.probs.sum(dim=1), torch.ones(1, 8, 8))


@torch.no_grad()
def test_low_precision_features_keep_exact_probabilities():
    network = make_network(classes=3).eval()
    images = torch.randn(2, 3, 16, 16)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
    for name in ("probs", "annotator_probs", "log_who", "log_within", "embedding", "kernel_probs"):
        assert getattr(output, name).dtype == torch.float32, name
    torch.testing.assert_close(output.probs.sum(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(output.who.sum(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(
        output.embedding.norm(dim=1), torch.ones(2, 16, 16), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(output.probs, exact.probs, atol=0.05, rtol=0)


# ---------------------------------------------------------------------- mixing of logits


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@torch.no_grad()
def test_logits_of_one_pixel_by_hand():
    # Class 1 has the logits ln 3, -ln 3, 0 and -ln 11 over class 0. The first annotator weighs them
    # by 1/3 and 2/3, the second by 32/33 and 1/33; the two annotators by 24/35 and 11/35.
    network = by_hand(mixing="logit")
    output = network(PIXEL)
    first, second = -math.log(3) / 3, -math.log(11) / 33
    fused = 24 / 35 * first + 11 / 35 * second
    close(output.annotator_probs[:, :, 1], [sigmoid(first), sigmoid(second)])
    close(output.probs, [sigmoid(-fused), sigmoid(fused)])
    # Who and why depend on the prototypes alone, not on how kernels are mixed.
    close(output.who, [24 / 35, 11 / 35])
    close(output.within, [[1 / 3, 2 / 3], [32 / 33, 1 / 33]])
    for decision in (torch.zeros(1, 1, 1).long(), torch.ones(1, 1, 1).long()):
        close(network.shares(output, decision), [[8 / 35, 16 / 35], [32 / 105, 1 / 105]])


@torch.no_grad()
def test_mixing_logits_is_mixing_the_kernels_themselves():
    network = make_network(annotators=3, classes=4, mixing="logit").eval()
    torch.nn.init.normal_(network.bank.bias)
    images = torch.randn(1, 3, 6, 5) * 3
    output = network(images)
    logits = network.bank(network.features(images))
    assignment = output.who.unsqueeze(2) * output.within  # [B, N, K, H, W]
    one_kernel = (assignment.unsqueeze(3) * logits).sum(dim=(1, 2)).softmax(dim=1)
    torch.testing.assert_close(output.probs, one_kernel)
    own = (output.within.unsqueeze(3) * logits).sum(dim=2).softmax(dim=2)
    torch.testing.assert_close(output.annotator_probs, own)
    shares = network.shares(output, output.probs.argmax(dim=1))
    torch.testing.assert_close(shares, assignment)


@pytest.mark.parametrize("bank", ["private", "shared"])
def test_dead_prototypes_let_gradients_through_mixed_logits(bank):
    network = make_network(mixing="logit", bank=bank)
    network.memory.active[0, 1] = False
    output = network(torch.randn(2, 3, 8, 8))
    assert output.log_probs.isfinite().all()
    output.log_annotator_probs[:, :, 1].mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert (network.memory.vectors.grad[0, 1] == 0).all()


# ---------------------------------------------------------------------- shared banks


@torch.no_grad()
def test_a_shared_bank_by_hand():
    # The pixel (3, 4) has the cosines .6 and .8, which give 8 and 16. The second annotator's prior
    # of .2 for the second kernel counts like a cosine: 32.
    network = in_the_plane(bank="shared")
    memory = network.memory
    memory.vectors.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    memory.prior.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.2]]))
    # Class 1 has the probabilities 3/4 and 1/4, whoever uses the kernel.
    network.bank.bias.copy_(torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]]))
    output = network(PIXEL)
    close(output.who, [24 / 64, 40 / 64])
    close(output.within, [[8 / 24, 16 / 24], [8 / 40, 32 / 40]])
    close(output.kernel_probs[..., 1, :, :], [[3 / 4, 1 / 4], [3 / 4, 1 / 4]])
    close(output.annotator_probs[:, :, 1], [5 / 12, 7 / 20])
    close(output.probs, [1 - 3 / 8, 3 / 8])
    shares = network.shares(output, torch.ones(1, 1, 1).long())
    close(shares, [[6 / 24, 4 / 24], [6 / 24, 8 / 24]])


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["prob", "logit"])
def test_shares_in_a_shared_bank_sum_to_one(mixing):
    network = make_network(annotators=3, classes=4, bank="shared", mixing=mixing).eval()
    torch.nn.init.normal_(network.memory.prior, std=0.3)
    output = network(torch.randn(2, 3, 6, 5))
    assert output.log_kernel_probs.shape == (2, 3, 2, 4, 6, 5)
    assert output.who.std(dim=1).min() > 1e-3  # the priors tell annotators apart
    shares = network.shares(output, output.probs.argmax(dim=1))
    assert shares.shape == (2, 3, 2, 6, 5)
    torch.testing.assert_close(shares.sum(dim=(1, 2)), torch.ones(2, 6, 5))


@torch.no_grad()
def test_without_priors_a_shared_bank_knows_no_difference_between_annotators():
    network = make_network(annotators=3, bank="shared").eval()
    output = network(torch.randn(1, 3, 5, 5))
    torch.testing.assert_close(output.who, torch.full_like(output.who, 1 / 3))
    for n in (1, 2):
        torch.testing.assert_close(output.annotator_probs[:, n], output.annotator_probs[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank": "public"}, "bank='public': expected one of private, shared."),
        ({"mixing": "sum"}, "mixing='sum': expected one of prob, logit."),
        ({"explanation_gradient": 1.5}, r"explanation_gradient=1.5: expected a share in \[0, 1\]."),
    ],
)
def test_unknown_kinds_name_the_argument(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_network(**options)


def test_a_share_of_the_gradient_of_who_reaches_the_features():
    def gradients(share: float) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        network = make_network(explanation_gradient=share)
        features = torch.randn(1, network.channels, 5, 5, requires_grad=True)
        output = network.assign(Seen(features, network.embed(features)))
        output.log_who[:, 0].sum().backward()
        return output.log_who, features.grad, network.projection.weight.grad

    whole, third, none = (gradients(share) for share in (1.0, 1 / 3, 0.0))
    torch.testing.assert_close(third[1], whole[1] / 3)
    assert whole[1].abs().max() > 0
    assert (none[1] == 0).all()
    for other in (third, none):  # what is said, and what the projection learns, are the same
        assert torch.equal(other[0], whole[0])
        assert torch.equal(other[2], whole[2])


# ---------------------------------------------------------------------- context


class Halves(nn.Module):
    """The image for features; a value for its left and one for its right half for context."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, F.adaptive_avg_pool2d(images[:, :1], (1, 2))


@torch.no_grad()
def test_the_context_is_added_to_the_embedding_and_to_nothing_else():
    network = TAXNetwork(2, 2, backbone=Halves(), in_channels=2, kernels=2, embedding_channels=2)
    assert (network.channels, network.context_channels) == (2, 1)
    network.projection.weight.copy_(torch.eye(2)[..., None, None])
    network.projection.bias.zero_()
    network.context_projection.weight.copy_(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
    image = torch.tensor([[3.0, 0.0]]).T.view(1, 2, 1, 1).repeat(1, 1, 4, 8)
    image[..., 4:] = torch.tensor([-1.0, 0.0]).view(2, 1, 1)
    features, embedding = network.see(image)
    assert torch.equal(features, image)
    # Left (3, 0) + 2 * 3 (0, 1), right (-1, 0) - 2 (0, 1); interpolated between.
    close(embedding[0, :, 0, 0], [3 / math.sqrt(45), 6 / math.sqrt(45)])
    close(embedding[0, :, 0, -1], [-1 / math.sqrt(5), -2 / math.sqrt(5)])
    assert 0 < embedding[0, 1, 0, 4] < embedding[0, 1, 0, 3]  # 3 and -1 meet at 1


@torch.no_grad()
def test_without_context_only_the_features_of_the_pixel_count():
    network = TAXNetwork(2, 2, backbone=Halves(), in_channels=2, kernels=2, context=False).eval()
    image = torch.randn(1, 2, 4, 8)
    other = torch.cat([image[..., :1], torch.randn(1, 2, 4, 7)], dim=-1)
    first, second = (network.see(x).embedding[..., 0] for x in (image, other))
    assert torch.equal(first, second)
    assert network.context_projection is None


def test_what_makes_a_context_that_nobody_asked_for_waits_for_no_gradient():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.local, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.local(images), self.wide(images[..., ::2, ::2])

    def learns(**options) -> bool:
        network = TAXNetwork(2, 2, backbone=Pair(), **options)
        return network.backbone.wide.weight.requires_grad

    assert learns()
    assert not learns(context=False)
    assert not DenseNetwork(backbone=Pair()).backbone.wide.weight.requires_grad


@torch.no_grad()
def test_the_context_of_an_smp_model_is_what_its_encoder_gives_last():
    network = TAXNetwork(2, 2, encoder=TINY, kernels=2).eval()
    images = torch.randn(2, 3, 40, 64)
    features, context = network.features_and_context(images)
    padded = F.pad(images, (0, 0, 0, 24), mode="replicate")
    assert torch.equal(context, network.backbone.encoder(padded)[-1])
    assert network.context_channels == context.shape[1]
    torch.testing.assert_close(features, network.backbone(padded)[:, :, :40])


def test_an_embedding_without_gradient_of_the_features_still_teaches_the_context():
    def reached(**options) -> bool:
        network = TAXNetwork(2, 2, encoder=TINY, kernels=2, explanation_gradient=0, **options)
        network(torch.randn(2, 3, 64, 64)).log_who[:, 0].sum().backward()
        gradients = [parameter.grad for parameter in network.backbone.encoder.parameters()]
        return any(gradient is not None and gradient.any() for gradient in gradients)

    assert reached()
    assert not reached(context=False)


# ---------------------------------------------------------------------- bands


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("options", [{}, {"bank": "shared", "mixing": "logit"}], ids=str)
@pytest.mark.parametrize(("most_values", "heights"), [(1, [1] * 11), (600, [4, 4, 3])])
def test_bands_say_what_the_whole_says(kernel_size, options, most_values, heights):
    # At a pixel 3 * 2 * 2 values, so that four rows of six pixels of two images hold 576.
    network = make_network(kernel_size=kernel_size, **options).eval()
    torch.nn.init.normal_(network.bank.weight)
    seen = network.see(torch.randn(2, 3, 11, 6))
    whole = network.assign(seen)
    bands = list(network.bands(seen, most_values))
    assert [band.log_probs.shape[-2] for band in bands] == heights
    for name, expected, *parts in zip(whole._fields, whole, *bands, strict=True):
        found = torch.cat(parts, dim=-2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)


@torch.no_grad()
def test_a_small_image_is_one_band():
    network = make_network().eval()
    seen = network.see(torch.randn(1, 3, 9, 9))
    (band,) = network.bands(seen)
    assert torch.equal(band.log_probs, network.assign(seen).log_probs)


# ---------------------------------------------------------------------- images and backbones


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (31, 33), (32, 64), (70, 97)])
def test_images_of_any_size(size):
    network = TAXNetwork(2, 3, encoder=TINY, kernels=2).eval()
    output = network(torch.randn(2, 3, *size))
    assert output.probs.shape == (2, 3, *size)
    assert output.who.shape == (2, 2, *size)
    assert output.embedding.shape == (2, 32, *size)


@torch.no_grad()
def test_padding_to_the_stride_does_not_move_the_image():
    network = TAXNetwork(2, 2, encoder=TINY, kernels=2).eval()
    image = torch.randn(1, 3, 40, 50)
    padded = F.pad(image, (0, 14, 0, 24), mode="replicate")
    torch.testing.assert_close(network.features(image), network.features(padded)[..., :40, :50])


@torch.no_grad()
def test_coarse_features_are_brought_to_the_size_of_the_image():
    backbone = nn.Conv2d(1, 5, 4, stride=4)
    network = TAXNetwork(2, 2, backbone=backbone, in_channels=1, kernels=2)
    image = torch.zeros(1, 1, 16, 24)
    image[..., 12:] = 1.0
    features = network.features(image)
    assert features.shape == (1, 5, 16, 24)
    torch.testing.assert_close(features[..., :8], backbone(image)[..., :1, :1].expand(1, 5, 16, 8))


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 24), (7, 24), (16, 5), (3, 7)])
def test_coarse_maps_are_interpolated_bilinearly(size):
    network = DenseNetwork(backbone=nn.Identity(), in_channels=3)
    coarse = torch.randn(2, 3, *size)
    expected = F.interpolate(coarse, (16, 24), mode="bilinear")
    torch.testing.assert_close(network.at_pixels(coarse, 16, 24), expected)


@torch.no_grad()
@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_of_smp_gives_features(architecture):
    encoder = "tu-test_vit.r160_in1k" if architecture == "dpt" else TINY
    network = TAXNetwork(2, 2, architecture=architecture, encoder=encoder, kernels=2).eval()
    output = network(torch.randn(1, 3, 128, 160))
    assert output.probs.shape == (1, 2, 128, 160)
    assert output.probs.std(dim=(2, 3)).min() > 0  # dense: not one answer for the whole image
    assert isinstance(network.backbone.segmentation_head, nn.Identity)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["fpn", "deeplabv3plus", "segformer", "upernet"])
def test_odd_sizes_of_other_architectures(architecture):
    network = TAXNetwork(2, 2, architecture=architecture, encoder=TINY, kernels=2).eval()
    assert network(torch.randn(1, 3, 45, 33)).probs.shape == (1, 2, 45, 33)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(channels):
    network = TAXNetwork(2, 2, encoder=TINY, in_channels=channels, kernels=2).eval()
    assert network(torch.randn(1, channels, 32, 32)).probs.shape == (1, 2, 32, 32)


def test_a_model_of_ones_own_keeps_its_weights_and_mode():
    backbone = smp.Unet(TINY, encoder_weights=None, classes=7).eval()
    weight = next(backbone.parameters()).clone()
    statistics = [buffer.clone() for buffer in backbone.buffers()]
    network = TAXNetwork(2, 2, backbone=backbone, kernels=2)
    assert network.bank.weight.shape[3] == 16  # features, not the 7 classes of the head
    assert network.backbone is backbone
    assert not backbone.training
    assert torch.equal(next(backbone.parameters()), weight)
    for before, after in zip(statistics, backbone.buffers(), strict=True):
        assert torch.equal(before, after)


class Several(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return images, images, images


class Pooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("backbone", "found"), [(Several(), "tuple"), (Pooled(), r"torch.Size\(\[1, 3\]\)")]
)
def test_a_backbone_without_dense_features(backbone, found):
    message = rf"^backbone gives {found} for images \[1, 3, \d+, \d+\]: expected dense features \["
    with pytest.raises(ValueError, match=message):
        TAXNetwork(2, 2, backbone=backbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "unett"}, "architecture='unett' is not known .* did you mean unet"),
        ({"architecture": "?"}, "architecture='\\?' is not known .* did you mean deeplabv3, "),
        (
            {"encoder": "resnet35"},
            "encoder='resnet35' .* you mean .*resnet34.*start with 'tu-'",
        ),
        ({"encoder": "tu-resnet35"}, "encoder='tu-resnet35' .* did you mean .*resnet34"),
        ({"encoder": "test_resnet"}, "encoder='test_resnet' .* encoders of timm start with 'tu-'"),
    ],
)
def test_unknown_names_get_suggestions(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TAXNetwork(2, 2, **options)


def test_one_class_is_too_few():
    message = "^classes=1: expected at least 2, the background and one object class.$"
    with pytest.raises(ValueError, match=message):
        TAXNetwork(2, 1, encoder=TINY)


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
    assert free == {"bank.weights.0", "bank.biases.0"}


def test_an_unfrozen_network_moves_its_statistics():
    # Otherwise the test above could not fail.
    network = make_network().train()
    before = statistics_of(network.backbone)
    network(torch.randn(2, 3, 8, 8))
    after = statistics_of(network.backbone)
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_freezing_does_not_change_what_a_network_says():
    network = make_network().eval()
    images = torch.randn(1, 3, 8, 8)
    before = network(images).probs
    network.freeze()
    assert torch.equal(network(images).probs, before)


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


def test_a_copy_of_the_weights_is_the_same_network():
    first, second = make_network().eval(), make_network().eval()
    images = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(first(images).probs, second(images).probs)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images).probs, second(images).probs)


def test_bytes_are_refused_with_the_way_to_make_floats_of_them():
    network = TAXNetwork(2, 2, backbone=nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"images are torch.uint8, expected normalised floats"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
