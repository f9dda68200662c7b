"""Dense features from any encoder-decoder, and what of it is kept."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.network import TAXNetwork

TINY = "tu-test_resnet.r160_in1k"

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


def test_bytes_are_refused_with_the_way_to_make_floats_of_them():
    network = TAXNetwork(2, 2, backbone=nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"images are torch.uint8, expected normalised floats"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# ---------------------------------------------------------------------- shortened encoders

SHORT = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}


def make_pair(encoder: str, **options) -> tuple[nn.Module, DenseNetwork]:
    """A model of smp as it is, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, **options)
    theirs.segmentation_head = nn.Identity()
    torch.manual_seed(0)
    return theirs, DenseNetwork(encoder=encoder, backbone_options=options)


def number(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "encoder", ["resnet18", "mobilenet_v2", "efficientnet-b0", "vgg11", "mit_b0"]
)
def test_layers_that_a_shortened_encoder_never_runs_are_not_built(encoder):
    theirs, ours = make_pair(encoder, **SHORT)
    assert number(ours) < number(theirs)
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        torch.manual_seed(1)
        expected = theirs.train(training)(images)
        torch.manual_seed(1)
        found = ours.train(training).features(images)
        assert torch.equal(found, expected)
    found.square().mean().backward()
    expected.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    kept = dict(ours.backbone.named_parameters())
    assert set(gradients) <= set(kept)
    for name, parameter in kept.items():
        assert parameter.requires_grad == (name in gradients), name
        if name in gradients:
            assert torch.equal(parameter.grad, gradients[name]), name


def test_all_parameters_of_the_quick_starts_encoder_are_trained():
    _, ours = make_pair("resnet18", **SHORT)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert number(ours) < 800_000  # 11.3 million with the layers that never run
    again = DenseNetwork(encoder="resnet18", backbone_options=SHORT)
    again.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval().features(images), ours.eval().features(images))


def test_a_model_of_ones_own_keeps_layers_that_never_run_but_holds_them_still():
    own = smp.Unet("resnet18", encoder_weights=None, **SHORT)
    before = number(own)
    network = DenseNetwork(backbone=own)
    assert number(own) == before - number(
        smp.Unet("resnet18", encoder_weights=None, **SHORT).segmentation_head
    )
    assert not any(p.requires_grad for p in network.backbone.encoder.layer4.parameters())
    assert all(p.requires_grad for p in network.backbone.encoder.layer2.parameters())
