"""Pretrained encoders without a network: from a file or an installed package."""

import pytest
import segmentation_models_pytorch as smp
import torch

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.pretrained import PACKAGED_ENCODER, packaged_weights

SHORT = {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}


def built(weights, encoder="resnet18", **options):
    """A dense network whose encoder starts from these weights."""
    options = {"backbone_options": SHORT, **options}
    return DenseNetwork(encoder=encoder, encoder_weights=weights, **options).backbone.encoder


@pytest.fixture
def other():
    """An encoder of the same kind with weights of its own."""
    torch.manual_seed(1)
    return smp.Unet("resnet18", encoder_weights=None).encoder


@pytest.mark.parametrize("prefix", ["", "encoder.", "module."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_the_encoder_or_of_a_whole_model(tmp_path, other, prefix, nested):
    stored = {prefix + name: tensor for name, tensor in other.state_dict().items()}
    stored["fc.weight"] = torch.zeros(1000, 512)  # a classifier's head is left out
    torch.save({"state_dict": stored} if nested else stored, tmp_path / "weights.pth")
    encoder = built(str(tmp_path / "weights.pth"))
    assert torch.equal(encoder.conv1.weight, other.conv1.weight)
    assert torch.equal(encoder.layer2[0].bn1.running_mean, other.layer2[0].bn1.running_mean)


def test_names_of_timm_and_of_smp_are_the_same_weights(tmp_path):
    theirs = smp.Unet(PACKAGED_ENCODER, encoder_weights=None).encoder.state_dict()
    stored = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
    torch.save(stored, tmp_path / "timm.pth")
    encoder = built(str(tmp_path / "timm.pth"), PACKAGED_ENCODER)
    assert torch.equal(encoder.model.conv_stem.weight, stored["conv_stem.weight"])


def test_images_of_one_channel_get_the_sum_over_channels(tmp_path, other):
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    encoder = built(str(tmp_path / "weights.pth"), in_channels=1)
    torch.testing.assert_close(encoder.conv1.weight, other.conv1.weight.sum(1, keepdim=True))


def test_the_package_brings_imagenet_weights():
    """Their first layer holds edge and colour filters, far from what random weights are."""
    if packaged_weights(PACKAGED_ENCODER) is None:
        pytest.skip("the extra `pretrained` is not installed")
    options = {"backbone_options": {}}
    encoder, again = (built("imagenet", PACKAGED_ENCODER, **options) for _ in range(2))
    assert torch.equal(encoder.model.conv_stem.weight, again.model.conv_stem.weight)
    # Statistics of batch normalisation are 0 and 1 until images were seen.
    assert encoder.model.blocks[5][3].bn3.running_var.sub(1).abs().max() > 0.1


def test_no_other_encoder_has_a_package():
    assert packaged_weights("resnet18") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"not a checkpoint", "not a file of tensors"),
        ([torch.zeros(1)], "holds list"),
        ({"conv1.weight": torch.zeros(1)}, r"conv1.weight \(\[1\], expected \[64, 3, 7, 7\]\)"),
        ({}, r"conv1.weight \(absent"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((FileNotFoundError, ValueError), match=words) as error:
        built(str(path))
    assert "weights.pth" in str(error.value)
