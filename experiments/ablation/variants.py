"""What the study runs: variants of the configuration, in groups that each become a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DATA = ("synthetic", "bubil_mini")
DEFAULT = "default"
REFERENCE = {"synthetic": "given", "bubil_mini": "majority"}  # as in the configurations
KERNELS = "4"  # an annotator, the default when the rows were measured; it is 2 now
LOSS_TERMS = ("annotator", "fused", "who", "cluster", "separation")
MODEL = "model.init_args"
BASE = (f"--{MODEL}.kernels={KERNELS}",)
# Without a reference there is no fused Dice to select by.
WITHOUT_REFERENCE = (f"--{MODEL}.reference=none", "--checkpoint.monitor=val/dice/mean")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: In the table of results. A variant that stands in several groups has one name.
        label: What its row in a group is called.
        flags: Options of ``tax fit``; the default has none.
    """

    name: str
    label: str
    flags: tuple[str, ...] = ()


def groups(data: str) -> dict[str, list[Variant]]:
    """The groups of variants of a data set, by title; the default is a row in each.

    Example:
        >>> [variant.name for variant in groups("synthetic")["Kernels an annotator"]]
        ['kernels=1', 'kernels=2', 'default', 'kernels=8']
        >>> groups("synthetic")["Kernels an annotator"][0].flags
        ('--model.init_args.kernels=1',)
    """
    given = ["given"] if data == "synthetic" else []  # only there the truth is known
    return {
        "Loss terms": [
            _default("all terms"),
            *(_without(term) for term in LOSS_TERMS),
            _without("cluster", "separation"),
        ],
        "Weight of cluster": _options("loss_weights.cluster", ["0", "0.2", "1"], "0.2"),
        "Window of who, pixels": _options("who_window", ["11", "23", "47"], "23"),
        "Kernels an annotator": _options("kernels", ["1", "2", "4", "8"], KERNELS),
        "Side of a kernel, pixels": _options("kernel_size", ["1", "3"], "3"),
        "Projection of prototypes": [
            _default("on"),
            Variant("projection=off", "off", (f"--{MODEL}.schedule.enabled=false",)),
        ],
        "Labels an image": [
            Variant("labels=1", "1", ("--data.init_args.labels_per_image=1",)),
            Variant("labels=2", "2", ("--data.init_args.labels_per_image=2",)),
            _default("all"),
        ],
        "Reference in training": [
            *_options("reference", [*given, "majority", "staple"], REFERENCE[data]),
            Variant("reference=none", "none", WITHOUT_REFERENCE),
        ],
    }


def variants(data: str) -> dict[str, Variant]:
    """Every variant of a data set once, by name, the default first.

    Example:
        >>> list(variants("synthetic"))[:3]
        ['default', 'annotator=0', 'fused=0']
    """
    return {variant.name: variant for rows in groups(data).values() for variant in rows}


def _default(label: str) -> Variant:
    """The configuration itself, in which all terms take part; all others change one thing."""
    return Variant(DEFAULT, f"{label} (base)")


def _without(*terms: str) -> Variant:
    flags = tuple(f"--{MODEL}.loss_weights.{term}=0" for term in terms)
    return Variant(f"{'+'.join(terms)}=0", f"without {', '.join(terms)}", flags)


def _options(option: str, values: Sequence[str], default: str) -> list[Variant]:
    """A row for each value of an option of the model."""
    short = option.rpartition(".")[2]
    return [
        _default(value)
        if value == default
        else Variant(f"{short}={value}", value, (f"--{MODEL}.{option}={value}",))
        for value in values
    ]
