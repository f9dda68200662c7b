"""What a checkpoint holds beside the weights: its format, names, and arguments as primitives.

It consists of tensors and primitives only, so it loads with ``weights_only=True``.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.core import LightningModule
from torch import Tensor, nn

Settings = TypeVar("Settings")

FORMAT_VERSION = 4
"""Version of what checkpoints hold; those of tax-lightning 0.1 have none."""

TRUSTED = (
    *("albumentations", "lightning", "segmentation_models_pytorch", "tax_lightning", "torch"),
    *("torchmetrics", "torchvision"),
)
"""Packages of which a checkpoint may name a class; TAX_TRUSTED in the environment adds others."""

TRAIN_AGAIN = (
    "Train again with this version, or load it with the version of tax-lightning that wrote it "
    "(0.1 wrote no format version)."
)


def settings_from(kind: type[Settings], value: Settings | Mapping[str, Any] | None) -> Settings:
    """A dataclass of settings from what a checkpoint has of it; the defaults for ``None``.

    Example:
        >>> from tax_lightning.losses import LossWeights
        >>> settings_from(LossWeights, {"separation": 0.0}) == LossWeights(separation=0.0)
        True
    """
    if not isinstance(value, Mapping):
        return kind() if value is None else value
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    for name in value:
        if name not in known:
            raise ValueError(
                f"{kind.__name__}: {name!r} is unknown, expected some of {', '.join(known)}. "
                f"If this comes from a checkpoint: {TRAIN_AGAIN}"
            )
    return kind(**value)


def checkpoint_in(path: str, name: str = "best.ckpt", argument: str = "--ckpt_path") -> str:
    """The one checkpoint of this name below a folder; another path as it is."""
    if not Path(path).is_dir():
        return path
    found = sorted(Path(path).rglob(name))
    if len(found) > 1:
        raise ValueError(
            f"{argument} {path}: this folder holds {len(found)} files {name}, expected one. "
            f"Give one of them, such as {found[-1]}."
        )
    if not found:
        raise FileNotFoundError(
            f"{argument} {path}: there is no {name} in this folder. Give the .ckpt file, or a "
            f"folder that holds the {name} of a run."
        )
    return str(found[0])


def read_checkpoint(
    path: str, argument: str, keys: Iterable[str] = ("hyper_parameters", "class_path")
) -> dict[str, Any]:
    """The contents of a checkpoint of this library, on the CPU; it must hold these keys.

    A folder stands for the one ``best.ckpt`` in it.

    The ``argument`` that gave the path is named where the file is refused.
    """
    cure = "Give the .ckpt file that tax fit named at its end."
    path = checkpoint_in(path, argument=argument)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{argument}={path}: there is no such file. {cure}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        for key in keys:
            checkpoint[key]
    except Exception as error:
        raise ValueError(
            f"{argument}={path}: this is no checkpoint of tax-lightning ({error}). {cure}"
        ) from error
    check_format(checkpoint, f"{argument}={path}")
    check_plain(checkpoint["hyper_parameters"], f"{argument}={path}")
    return checkpoint


def is_trusted(module: str) -> bool:
    """Whether a foreign file may have a module imported.

    Example:
        >>> is_trusted("torch.optim"), is_trusted("antigravity")
        (True, False)
    """
    more = os.environ.get("TAX_TRUSTED", "").replace(",", " ").split()
    return any(module == one or module.startswith(f"{one}.") for one in (*TRUSTED, *more))


def check_plain(value: Any, source: str) -> None:  # noqa: ANN401 - any part of hyper-parameters
    """Refuse hyper-parameters of a checkpoint by which the parser would import something.

    Args:
        value: Hyper-parameters, or a part of them.
        source: What the message begins with.

    Raises:
        ValueError: If they hold a class (``class_path``), or the name of something in a module that
            can be imported and is not trusted. A checkpoint of this library holds neither.

    Example:
        >>> check_plain({"encoder": "resnet18", "kernels": 2}, "best.ckpt")
    """
    if isinstance(value, Mapping):
        if "class_path" in value:
            raise ValueError(
                f"{source}: its hyper-parameters name the class {value['class_path']}, and a "
                "checkpoint is not to make objects of its own. Give it in your configuration."
            )
        for part in value.values():
            check_plain(part, source)
    elif isinstance(value, list | tuple):
        for part in value:
            if not isinstance(part, str):  # of names, such as those of annotators
                check_plain(part, source)
    elif isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        module = value.rpartition(".")[0]
        if _is_there(module.partition(".")[0]) and not is_trusted(module):
            raise ValueError(_not_trusted(source, f"its hyper-parameters name {value}", module))


def _is_there(package: str) -> bool:
    try:
        return package in sys.modules or find_spec(package) is not None
    except ValueError:  # a module that was made by hand
        return True


def _not_trusted(source: str, what: str, module: str) -> str:
    return (
        f"{source}: {what}, and a checkpoint may import modules of tax-lightning and of PyTorch's "
        f"own libraries only. If you trust {module}, set the environment variable "
        f"TAX_TRUSTED={module.partition('.')[0]}."
    )


def trusted_class(name: str, source: str) -> type[LightningModule]:
    """The class of a model that a foreign file names.

    Its module is imported only if it is of this library, of PyTorch's own, or of those that the
    environment variable ``TAX_TRUSTED`` names. A module that is imported already, as the user's
    program or configuration did, is as good.

    Args:
        name: The class with its module.
        source: What the message begins with.

    Raises:
        ValueError: If the module is another one, if it cannot be imported, or if it holds no such
            class.

    Example:
        >>> trusted_class("tax_lightning.TAXLightningModule", "best.ckpt").__name__
        'TAXLightningModule'
    """
    module, _, kind = name.rpartition(".")
    if module not in sys.modules and not is_trusted(module):
        raise ValueError(_not_trusted(source, f"its model is of the class {name}", module))
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{source}: its model is of the class {name}, which cannot be imported ({error}). Run "
            "from where your script is, or install it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise ValueError(f"{source}: {name} is no LightningModule, expected the class of a model.")
    return found


def check_format(checkpoint: Mapping[str, Any], source: str = "checkpoint") -> None:
    """Raise a ``ValueError`` unless this version can read the checkpoint.

    Its arguments must ask for as many kernels as it has weights of: the model is built of them
    before its weights are compared, and may take all memory.

    Example:
        >>> check_format({"format_version": FORMAT_VERSION})
    """
    found = checkpoint.get("format_version")
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{source}: its format version is {found}, expected {FORMAT_VERSION}. {TRAIN_AGAIN}"
        )
    bank = (checkpoint.get("state_dict") or {}).get("network.bank.weight")
    if not isinstance(bank, Tensor) or bank.ndim != 6:
        return
    asked = checkpoint.get("hyper_parameters", {})
    for name, stored in (("kernels", bank.shape[1]), ("kernel_size", bank.shape[5])):
        if asked.get(name, stored) != stored:
            raise ValueError(
                f"{source}: it asks for {name}={asked[name]}, but has the weights of {stored}: it "
                "was changed or is damaged. Take another one."
            )


def check_same_names(checkpoint: Mapping[str, Any], **names: tuple[str, ...]) -> None:
    """Raise a ``ValueError`` if a checkpoint is one of other annotators or classes.

    Example:
        >>> checkpoint = {"names": {"annotators": ["Ana", "Ben"]}}
        >>> check_same_names(checkpoint, annotators=("Ana", "Ben"))
    """
    # Not from the hyper-parameters: Lightning has overwritten those with what is asked for.
    for kind, theirs in checkpoint.get("names", {}).items():
        if tuple(theirs) != names[kind]:
            raise ValueError(
                f"checkpoint: its {kind} are {theirs}, but {names[kind]} were asked for. Use the "
                f"data that it was trained for, or name the same {kind} in the same order."
            )


def check_weights(checkpoint: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` unless a checkpoint has finite weights of these shapes.

    Example:
        >>> check_weights({"state_dict": {"scale": torch.ones(2)}}, {"scale": torch.ones(2)})
    """
    cure = "Give the one of this model, or the options that it was trained with."
    stored = checkpoint.get("state_dict")
    if not isinstance(stored, Mapping):
        raise ValueError(f"checkpoint: it holds no weights (state_dict). {cure}")
    for name, parameter in parameters.items():
        found: Tensor | None = stored.get(name)
        if found is None:  # refused by PyTorch, unless the user does not mind
            continue
        if found.shape != parameter.shape:
            raise ValueError(
                f"checkpoint: its weight {name} has the shape {tuple(found.shape)}, expected "
                f"{tuple(parameter.shape)}. {cure}"
            )
        if not found.isfinite().all():
            raise ValueError(
                f"checkpoint: its weight {name} holds numbers that are not finite: the training "
                "diverged. Take an earlier checkpoint, or train with a lower learning rate."
            )


def load_model(path: str, argument: str) -> Any:  # noqa: ANN401 - of the class that it names
    """The model in a checkpoint, of the class that the checkpoint names.

    Refused, beside what :func:`read_checkpoint` refuses, are a class that :func:`trusted_class`
    refuses and the user's own network, which a checkpoint cannot hold.
    """
    path = checkpoint_in(path, argument=argument)
    model = trusted_class(str(read_checkpoint(path, argument)["class_path"]), f"{argument}={path}")
    return model.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def given_network(network: nn.Module | str | None) -> nn.Module | None:
    """The user's own network; a ``ValueError`` if there is only a checkpoint's note of one."""
    if isinstance(network, str):
        raise ValueError(
            "this checkpoint was trained with a network of your own, which a checkpoint cannot "
            "hold: give it again, as in load_from_checkpoint(path, network=network)."
        )
    return network
