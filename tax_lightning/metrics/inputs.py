"""What all metrics share: checks of arguments, reading of label maps, and states that add up."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from tax_lightning.consensus import disagreement
from tax_lightning.constants import IGNORE_INDEX


def check_inputs(*arguments: tuple[str, Tensor, str], **sizes: int) -> None:
    """Check that tensors fit one another; looks at shapes and types only, never at values.

    A layout is a letter a dimension; a letter stands for one size in all layouts.
    """
    for name, tensor, layout in arguments:
        fits = tensor.ndim == len(layout) and all(
            sizes.setdefault(letter, size) == size
            for letter, size in zip(layout, tensor.shape, strict=True)
        )
        if not fits:
            expected = ", ".join(f"{x}={sizes[x]}" if x in sizes else x for x in layout)
            raise ValueError(
                f"`{name}` has shape {list(tensor.shape)}, expected [{expected}]; pass tensors of "
                "one batch, in the order of the names that the metric was built with."
            )
        if name == "present" and tensor.dtype is not torch.bool:
            raise ValueError(
                f"`present` has dtype {tensor.dtype}, expected torch.bool; pass `present.bool()`."
            )


def check_names(argument: str, names: Sequence[str], least: int) -> tuple[str, ...]:
    """Return names that become keys; a ValueError if some are equal, reserved or too few."""
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or len(names) < least or len(set(names)) < len(names) or "mean" in names:
        hint = " Name the background first, then at least one class." if least == 2 else ""
        raise ValueError(
            f"{argument}={names!r}: expected a list of at least {least} different names, none of "
            f"them 'mean', which is the key of the average.{hint}"
        )
    return tuple(names)


def check_count(argument: str, number: int) -> int:
    """Return the number; a ValueError if it is below 1."""
    if number < 1:
        raise ValueError(f"`{argument}` is {number}, expected at least 1; pass the number of them.")
    return number


def labelled_pixels(masks: Tensor, present: Tensor) -> Tensor:
    """Where each annotator gave a label, boolean ``[B, N, H, W]``; checks both arguments."""
    check_inputs(("masks", masks, "BNHW"), ("present", present, "BN"))
    return (masks != IGNORE_INDEX) & present[:, :, None, None]


def disputed_pixels(masks: Tensor, present: Tensor) -> Tensor:
    """Where two annotators gave different labels, boolean ``[B, H, W]``; checks both arguments."""
    return disagreement(masks.masked_fill(~labelled_pixels(masks, present), IGNORE_INDEX))


def foreground_masks(labels: Tensor, num_classes: int) -> Tensor:
    """One boolean mask a foreground class ``[B, N, num_classes - 1, H, W]``.

    An eighth of the memory of one-hot integers. Pixels without a label are in no mask.
    """
    foreground = torch.arange(1, num_classes, device=labels.device)
    return labels.unsqueeze(2) == foreground[:, None, None]


def macro_over_classes(scores: Tensor) -> Tensor:
    """Average over the classes ``[..., C]`` that are not NaN; 1 where neither side has any."""
    return scores.nanmean(-1).nan_to_num(nan=1.0)


class PooledMetric(Metric):
    """A metric that is a function of sums by name, so that parts of the data merge to the whole."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **starts: Tensor) -> None:
        super().__init__()
        for name, start in starts.items():
            self.add_state(name, start, dist_reduce_fx="sum")

    def add(self, **values: Tensor) -> None:
        """Add a batch's part to each sum."""
        for name, value in values.items():
            getattr(self, name).add_(value)

    @property
    def sums(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {name: getattr(self, name) for name in self._defaults}


class Averages(PooledMetric):
    """Averages over images or over pixels by key, NaN without a case; and further sums."""

    def __init__(self, *keys: str, **starts: Tensor) -> None:
        totals, cases = torch.zeros(len(keys)), torch.zeros(len(keys), dtype=torch.long)
        super().__init__(totals=totals, cases=cases, **starts)
        self.keys = keys

    def add_images(self, *scores: Tensor) -> None:
        """Add scores of images ``[B]``, one tensor a key, NaN where an image is no case."""
        self.add_pixels(*((score, ~score.isnan()) for score in scores))

    def add_pixels(self, *parts: tuple[Tensor, Tensor]) -> None:
        """Add values and where they are cases, one pair a key; other values may be anything."""
        totals = [torch.where(cases, values, 0).sum().float() for values, cases in parts]
        self.add(totals=torch.stack(totals), cases=torch.stack([c.sum() for _, c in parts]))

    @property
    def averages(self) -> Tensor:
        """The averages in the order of the keys."""
        return self.sums["totals"] / self.sums["cases"]

    def compute(self) -> dict[str, Tensor]:
        """The averages by key."""
        return dict(zip(self.keys, self.averages.unbind(), strict=True))
