"""Any encoder-decoder as the source of dense features."""

from __future__ import annotations

import difflib
import math
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseNetwork(nn.Module):
    """Dense features of images, from segmentation_models_pytorch or from one's own module.

    Args:
        architecture: any architecture of segmentation_models_pytorch, such as ``"unet"``.
        encoder: any encoder of segmentation_models_pytorch, ``"tu-..."`` for those of timm.
        encoder_weights: ``"imagenet"`` to fetch pretrained weights; ``None`` starts from random
            ones and stays offline.
        in_channels: channels of an image.
        backbone_options: further arguments for the smp architecture, such as
            ``{"encoder_depth": 3, "decoder_channels": [64, 32, 16]}``.
        backbone: a module that gives dense features ``[B, D, h, w]`` for images ``[B, ch, H, W]``,
            instead of the arguments above. Of an smp model the segmentation head is removed.

    Attributes:
        channels: number of features D.

    Raises:
        ValueError: if the architecture or encoder is unknown, or the backbone does not give
            features of four dimensions.

    Example:
        >>> network = DenseNetwork(
        ...     encoder="resnet18",
        ...     backbone_options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]},
        ... )
        >>> network.features(torch.randn(1, 3, 40, 50)).shape
        torch.Size([1, 8, 40, 50])
    """

    def __init__(
        self,
        *,
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if backbone is None:
            backbone = _build_backbone(
                architecture, encoder, encoder_weights, in_channels, backbone_options or {}
            )
        self.size_multiple = _size_multiple(backbone)
        if isinstance(backbone, smp.base.SegmentationModel):
            backbone.segmentation_head = nn.Identity()
        self.backbone = backbone
        self.channels = self._dry_run(in_channels)

    def features(self, images: Tensor) -> Tensor:
        """Dense features ``[B, D, H, W]`` at the resolution of the images ``[B, ch, H, W]``.

        Images whose sides are no multiple of the encoder's stride are padded and the features cut.

        Raises:
            ValueError: if the images are not floats.
        """
        if not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype}, expected normalised floats [B, ch, H, W]; of a batch "
                "of bytes from one of our loaders, tax_lightning.batch.unpacked makes them."
            )
        height, width = images.shape[-2:]
        bottom, right = -height % self.size_multiple, -width % self.size_multiple
        padded = (
            F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
        )
        features: Tensor = self.backbone(padded)
        if features.shape[-2:] != padded.shape[-2:]:
            features = F.interpolate(features, padded.shape[-2:], mode="bilinear")
        return features[..., :height, :width]

    @torch.enable_grad()
    def _dry_run(self, in_channels: int) -> int:
        """Read the backbone's channels off one image, and hold still what has no part in them.

        A shortened encoder (``encoder_depth=3``) keeps the parameters of its deeper layers. No
        gradient would ever reach them, for which DistributedDataParallel stops with an error.
        """
        was_training = self.backbone.training
        self.backbone.eval()
        probe = next(self.backbone.parameters(), torch.zeros(1))
        side = 128 * math.ceil(self.size_multiple / 128)
        features = self.backbone(torch.zeros(1, in_channels, side, side, device=probe.device))
        if not isinstance(features, Tensor) or features.ndim != 4:
            found = getattr(features, "shape", type(features).__name__)
            raise ValueError(
                f"backbone gives {found} for images [1, {in_channels}, {side}, {side}]: expected "
                "dense features [B, D, h, w]. Take its head off, or wrap it so that it returns the "
                "feature map."
            )
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        if features.requires_grad:
            gradients = torch.autograd.grad(features.sum(), trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)
        self.backbone.train(was_training)
        return features.shape[1]


def _build_backbone(
    architecture: str,
    encoder: str,
    encoder_weights: str | None,
    in_channels: int,
    options: dict[str, Any],
) -> nn.Module:
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise _unknown("architecture", architecture, list(smp.MODEL_ARCHITECTURES_MAPPING))
    known = smp.encoders.get_encoder_names()
    if encoder.startswith("tu-"):
        known = [f"tu-{name}" for name in timm.list_models()]
    if encoder.split(".")[0] not in known:  # timm's names may end with the weights' tag
        raise _unknown("encoder", encoder, known, "; encoders of timm start with 'tu-'")
    model: nn.Module = smp.create_model(
        architecture,
        encoder_name=encoder,
        encoder_weights=encoder_weights,
        in_channels=in_channels,
        classes=1,
        **options,
    )
    return model


def _unknown(argument: str, value: str, known: list[str], hint: str = "") -> ValueError:
    near = difflib.get_close_matches(value, known, n=3) or sorted(known)[:8]
    return ValueError(
        f"{argument}={value!r} is not known to segmentation_models_pytorch; "
        f"did you mean {', '.join(near)}?{hint}"
    )


def _size_multiple(backbone: nn.Module) -> int:
    """The number that height and width must be multiples of; 1 for a module we know nothing of."""
    encoder = getattr(backbone, "encoder", None)
    return int(getattr(encoder, "output_stride", 1))
