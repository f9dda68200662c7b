"""What a checkpoint holds beside the weights: names, and arguments as primitives.

Of tensors and primitives only, it loads with ``weights_only=True``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

Settings = TypeVar("Settings")


def to_primitives(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    """Fields of a dataclass of settings, tuples as lists.

    Example:
        >>> from tax_lightning.modules.schedule import Schedule
        >>> to_primitives(Schedule(trials=(0.5, 0.6)))["trials"]
        [0.5, 0.6]
    """
    values = asdict(settings)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def from_primitives(kind: type[Settings], value: Settings | Mapping[str, Any] | None) -> Settings:
    """A dataclass of settings from what a checkpoint has of it; the defaults for ``None``.

    Example:
        >>> from tax_lightning.losses import LossWeights
        >>> from_primitives(LossWeights, {"spread": 0.0}) == LossWeights(spread=0.0)
        True
    """
    if isinstance(value, Mapping):
        return kind(**value)
    return kind() if value is None else value


def read_checkpoint(
    path: str, argument: str, keys: Iterable[str] = ("hyper_parameters", "class_path")
) -> dict[str, Any]:
    """The contents of a checkpoint of this library, on the CPU.

    Args:
        path: of the file.
        argument: that gave the path, for the messages.
        keys: what it must hold.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else.
    """
    cure = "Give the .ckpt file that tax fit named at its end."
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
    return checkpoint


def load_model(path: str, argument: str) -> Any:  # noqa: ANN401 - of the class that it names
    """The model in a checkpoint, of the class that the checkpoint names.

    Args:
        path: of the file.
        argument: that gave the path, for the messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, its class is not to be found, or it was trained with
            one's own network, which a checkpoint cannot hold.
    """
    name = str(read_checkpoint(path, argument)["class_path"])
    place, _, kind = name.rpartition(".")
    try:
        model = getattr(import_module(place), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{argument}={path}: its model is of the class {name}, which cannot be imported "
            f"({error}). Run from where your script is, or install it."
        ) from error
    return model.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def given_network(network: nn.Module | str | None) -> nn.Module | None:
    """One's own network, of which a checkpoint has no more than the word that there was one.

    Raises:
        ValueError: if there is only this word.
    """
    if isinstance(network, str):
        raise ValueError(
            "this checkpoint was trained with a network of your own, which a checkpoint cannot "
            "hold: give it again, as in load_from_checkpoint(path, network=network)."
        )
    return network


def check_same_names(checkpoint: Mapping[str, Any], **names: tuple[str, ...]) -> None:
    """Raise a ``ValueError`` if a checkpoint is one of other annotators or classes.

    Example:
        >>> checkpoint = {"names": {"annotators": ["Ana", "Ben"]}}
        >>> check_same_names(checkpoint, annotators=("Ana", "Ben"))
    """
    # Not from the hyper-parameters: those Lightning has overwritten with what is asked for.
    for kind, theirs in checkpoint.get("names", {}).items():
        if tuple(theirs) != names[kind]:
            raise ValueError(
                f"checkpoint: its {kind} are {theirs}, but {names[kind]} were asked for. Use the "
                f"data that it was trained for, or name the same {kind} in the same order."
            )
