"""What the study runs: variants of the configuration, in groups of which each becomes a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DATA = ("synthetic", "bubil_mini")
DEFAULT = "default"
REFERENCE = {"synthetic": "given", "bubil_mini": "majority"}  # as in the configurations
LOSS_TERMS = ("annotator", "fused", "who", "balance", "cluster", "pull", "spread")
UNLABELLED_TERMS = LOSS_TERMS[3:]  # those that compare with no label
MODEL = "model.init_args"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: Of the folder of its results. A variant that stands in several groups has one name.
        label: What its row in a table is called.
        flags: Options of ``tax fit``, without dashes, and their values; the default has none.
    """

    name: str
    label: str
    flags: Mapping[str, str]


def groups(data: str) -> dict[str, list[Variant]]:
    """The groups of variants, by title; the default is a row in each.

    Args:
        data: Name of the data set, one of `DATA`.

    Returns:
        For each title the rows, in order.

    Example:
        >>> [variant.name for variant in groups("synthetic")["Kernels an annotator"]]
        ['kernels=1', 'kernels=2', 'default', 'kernels=8']
        >>> dict(groups("synthetic")["Kernels an annotator"][0].flags)
        {'model.init_args.kernels': '1'}
    """
    given = data == "synthetic"  # only there the truth and its experts are known
    return {
        "Loss terms": [
            _default("all terms"),
            *(_without(term) for term in LOSS_TERMS),
            _without("pull", "spread"),
            _without(*UNLABELLED_TERMS),
        ],
        "Weight of pull": _options("loss_weights.pull", ("0", "0.2", "1"), "0.2"),
        "What who is taught": _options(
            "who_target", ("window", "agree", *(("expert",) if given else ()), "none"), "window"
        ),
        "Window of who, pixels": _options("who_window", ("11", "23", "47"), "23"),
        "Kernels an annotator": _options("kernels", ("1", "2", "4", "8"), "4"),
        "Side of a kernel, pixels": _options("kernel_size", ("1", "3"), "3"),
        "Whether the encoder's deepest features are seen too": _options(
            "context", ("true", "false"), "true"
        ),
        "Share of the gradient of who and why that reaches the last features": _options(
            "explanation_gradient", ("0", "0.3", "1"), "0.3"
        ),
        "Kernel bank": _options("bank", ("private", "shared"), "private"),
        "Mixing": _options("mixing", ("prob", "logit"), "prob"),
        "How prototypes learn": _options("prototype_update", ("gradient", "ema"), "gradient"),
        "Projection of prototypes": [
            _default("on"),
            Variant("projection=off", "off", {f"{MODEL}.schedule.enabled": "false"}),
        ],
        "Labels an image": [
            *(
                Variant(f"labels={count}", count, {"data.init_args.labels_per_image": count})
                for count in ("1", "2")
            ),
            _default("all"),
        ],
        "Reference in training": [
            *_options(
                "reference",
                (*(("given",) if given else ()), "majority", "staple"),
                REFERENCE[data],
            ),
            _no_reference(),
        ],
    }


def variants(data: str) -> dict[str, Variant]:
    """Every variant once, by name, the default first.

    Args:
        data: Name of the data set, one of `DATA`.

    Example:
        >>> list(variants("synthetic"))[:3]
        ['default', 'annotator=0', 'fused=0']
    """
    return {variant.name: variant for rows in groups(data).values() for variant in rows}


def _default(label: str) -> Variant:
    """What all others change one thing of: the configuration, in which all terms take part."""
    return Variant(DEFAULT, f"{label} (base)", {})


def _without(*terms: str) -> Variant:
    flags = {f"{MODEL}.loss_weights.{term}": "0" for term in terms}
    name = "prototype-terms=0" if terms == UNLABELLED_TERMS else f"{'+'.join(terms)}=0"
    return Variant(name, f"without {', '.join(terms)}", flags)


def _options(option: str, values: Sequence[str], default: str) -> list[Variant]:
    """A row for each value of an option of the model."""
    short = option.rpartition(".")[2]
    return [
        _default(value)
        if value == default
        else Variant(f"{short}={value}", value, {f"{MODEL}.{option}": value})
        for value in values
    ]


def _no_reference() -> Variant:
    """Without a reference there is nothing to teach who, and no fused Dice to select by."""
    flags = {
        f"{MODEL}.reference": "none",
        f"{MODEL}.who_target": "none",
        "checkpoint.monitor": "val/dice/mean",
    }
    return Variant("reference=none", "none", flags)
