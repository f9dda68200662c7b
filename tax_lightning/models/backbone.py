"""Any encoder-decoder as the source of dense features."""

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from tax_lightning.configuration import first_fault
from tax_lightning.models.pretrained import load_encoder, packaged_weights
from tax_lightning.refusals import check_memory, refusing


class DenseNetwork(nn.Module):
    """Dense features of images, from segmentation_models_pytorch or from one's own module.

    Args:
        architecture: any architecture of segmentation_models_pytorch, such as ``"unet"``.
        encoder: any encoder of segmentation_models_pytorch, ``"tu-..."`` for those of timm.
        encoder_weights: ``None`` starts from random weights; ``"imagenet"`` takes those of the
            extra ``pretrained`` for the encoder ``"tu-tf_efficientnet_lite0"``, and fetches those
            of any other encoder; the path of a file takes the state dict in it.
        in_channels: channels of an image.
        backbone_options: further arguments for the smp architecture, such as
            ``{"encoder_depth": 3, "decoder_channels": [64, 32, 16]}``.
        backbone: a module that gives dense features ``[B, D, h, w]`` for images ``[B, ch, H, W]``,
            instead of the arguments above, or a pair of these and of a context. Of an smp model the
            segmentation head is removed.
        context: whether to ask for a context too: coarse features that tell what objects are. Those
            of an smp model are the encoder's deepest; its encoder and decoder are then called one
            after the other in place of the model. A backbone of another kind gives a pair.

    ``channels`` is the number of features D, ``context_channels`` that of the context, or 0.

    Raises:
        ValueError: if the architecture or encoder is unknown, or the backbone does not give
            features of four dimensions.

    Example:
        >>> options = {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}
        >>> network = DenseNetwork(encoder="resnet18", backbone_options=options)
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
        context: bool = False,
    ) -> None:
        super().__init__()
        ours = backbone is None
        if backbone is None:
            backbone = _build_backbone(
                architecture, encoder, encoder_weights, in_channels, backbone_options or {}
            )
        # Height and width must be multiples of it; 1 for a module we know nothing of.
        encoder_of: Any = getattr(backbone, "encoder", None)
        self.size_multiple = int(getattr(encoder_of, "output_stride", 1))
        if isinstance(backbone, smp.base.SegmentationModel):
            backbone.segmentation_head = nn.Identity()
        self.backbone = backbone
        self.asks_for_context = context
        # Pad and cut always, by the same operations: a graph exported so is for images of any size.
        self.any_size = False
        arguments = {**(backbone_options or {}), "in_channels": in_channels} if ours else {}
        with refusing(architecture if ours else "backbone", arguments):
            self.channels, self.context_channels = self._dry_run(in_channels, ours=ours)

    def features(self, images: Tensor) -> Tensor:
        """Dense features ``[B, D, H, W]`` at the resolution of the images ``[B, ch, H, W]``."""
        return self.features_and_context(images)[0]

    def features_and_context(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Dense features, and the context ``[B, context_channels, h, w]`` if there is one.

        Images whose sides are no multiple of the encoder's stride are padded and the features cut.
        :meth:`at_pixels` brings the context, or what is made of it, to the images' pixels.
        """
        if not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype}, expected normalised floats [B, ch, H, W]; of a batch "
                "of bytes from one of our loaders, tax_lightning.batch.unpacked makes them."
            )
        weight = next(self.backbone.parameters(), images)
        if not torch.is_autocast_enabled(images.device.type):
            images = images.to(weight.dtype)  # of a module in half precision
        height, width = images.shape[-2:]
        tall, wide = self._padded(height), self._padded(width)
        if self.any_size or (tall, wide) != (height, width):
            images = _with_sides(images, tall, wide)
        features, context = self._run_backbone(images)
        return self.at_pixels(features, height, width), context

    def at_pixels(self, coarse: Tensor, height: int, width: int) -> Tensor:
        """Maps ``[B, D, h, w]`` of padded images, brought to ``[B, D, H, W]`` of the images."""
        tall, wide = self._padded(height), self._padded(width)
        # One side after the other gives the same; on a CPU its gradient takes a third of the time.
        for size in ((coarse.shape[-2], wide), (tall, wide)):
            if coarse.shape[-2:] != size:
                coarse = F.interpolate(coarse, size, mode="bilinear")
        if self.any_size:
            return _with_sides(coarse, height, width)
        return coarse[..., :height, :width]

    def _padded(self, side: int) -> int:
        """A side in pixels, up to the next multiple of the encoder's stride."""
        # Exporters see that this is a multiple; and ONNX divides negative numbers in another way.
        return (side + self.size_multiple - 1) // self.size_multiple * self.size_multiple

    def _run_backbone(self, images: Tensor) -> tuple[Any, Any]:
        """What the backbone gives for padded images: features, and context or ``None``."""
        model: Any = self.backbone
        # Decoders of smp models with a forward of their own take something else than all levels.
        if self.asks_for_context and type(model).forward is smp.base.SegmentationModel.forward:
            levels = model.encoder(images)
            return model.decoder(levels), levels[-1]
        given = model(images)
        features, context = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        return features, context if self.asks_for_context else None

    @torch.enable_grad()
    def _dry_run(self, in_channels: int, *, ours: bool) -> tuple[int, int]:
        """Read the backbone's channels off one image, and take out what has no part in them.

        An encoder of smp that is cut off (``encoder_depth=3``) still has its deeper layers. They
        would be saved with each checkpoint and counted as parameters; and as no gradient reaches
        them, DistributedDataParallel would stop with an error. A backbone that the user gave keeps
        its layers; those without a part are only held still.
        """
        was_training = self.backbone.training
        self.backbone.eval()
        probe = next(self.backbone.parameters(), torch.zeros(1))
        side = 128 * math.ceil(self.size_multiple / 128)
        images = torch.zeros(1, in_channels, side, side, device=probe.device)
        ran: set[nn.Module] = set()
        with register_module_forward_hook(lambda module, *_: ran.add(module)):
            features, context = self._run_backbone(images)
        maps = [features] if context is None else [features, context]
        for given in maps:
            if not isinstance(given, Tensor) or given.ndim != 4:
                found = getattr(given, "shape", type(given).__name__)
                raise ValueError(
                    f"backbone gives {found} for images [1, {in_channels}, {side}, {side}]: "
                    "expected dense features [B, D, h, w], or a pair of these and of coarser ones. "
                    "Take its head off, or wrap it so that it returns the feature map."
                )
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        learnt = [given.sum() for given in maps if given.requires_grad]
        if learnt:
            gradients = torch.autograd.grad(learnt, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)
            if ours:
                _remove_unused(self.backbone, ran)
        self.backbone.train(was_training)
        return features.shape[1], 0 if context is None else context.shape[1]


def _with_sides(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps ``[B, D, h, w]`` cut at the bottom and right, or with the last row and column repeated.

    Example:
        >>> _with_sides(torch.tensor([[[[1, 2], [3, 4]]]]), 1, 3)
        tensor([[[[1, 2, 2]]]])
    """
    for dim, side in ((-2, height), (-1, width)):
        places = torch.arange(side, device=maps.device).clamp(max=maps.shape[dim] - 1)
        maps = maps.index_select(dim, places)
    return maps


def _remove_unused(module: nn.Module, ran: set[nn.Module]) -> None:
    """Replace the layers that did not run and whose parameters got no gradient."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if any(part in ran for part in child.modules()) or any(p.requires_grad for p in parameters):
            _remove_unused(child, ran)
        elif parameters:
            setattr(module, name, nn.Identity())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the block; a module in training mode returns to it."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


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
    packaged = packaged_weights(encoder) if encoder_weights == "imagenet" else None
    of_smp = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", ())
    fetched = encoder_weights in (None, "imagenet", *of_smp)
    file = packaged or (None if fetched else encoder_weights)
    kind = smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()]
    if fault := first_fault({"backbone_options": options}, {}, {"backbone_options": kind}):
        raise ValueError(fault)
    arguments = {**options, "in_channels": in_channels, "encoder": encoder}

    def build(weights: str | None) -> Any:  # noqa: ANN401 - any architecture of smp
        return smp.create_model(
            architecture,
            encoder_name=encoder,
            encoder_weights=weights,
            in_channels=in_channels,
            classes=1,
            **options,
        )

    with refusing(architecture, arguments):
        _refuse_too_large(build)
        model = build(encoder_weights if file is None else None)
    if file is not None:
        load_encoder(model.encoder, file, in_order=packaged is not None)
    network: nn.Module = model
    return network


def _refuse_too_large(build: Callable[[None], nn.Module]) -> None:
    """Refuse a network that memory cannot hold, before any is taken: its weights are on "meta"."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            sizes = [parameter.nbytes for parameter in build(None).parameters()]
    except RuntimeError as error:
        if "overflow" in str(error):
            raise MemoryError("the weights take more GiB than can be counted") from error
        return  # an encoder that looks at its weights, which fails there
    check_memory(sizes)


def _unknown(argument: str, value: str, known: list[str], hint: str = "") -> ValueError:
    near = difflib.get_close_matches(value, known, n=3) or sorted(known)[:8]
    return ValueError(
        f"{argument}={value!r} is not known to segmentation_models_pytorch; "
        f"did you mean {', '.join(near)}?{hint}"
    )
