"""Types of annotation: what is learnt where the masks of an image are nobody's.

The masks of such data are slots, drawn by unknown people in changing order, so that an annotator's
model would learn a mixture of everybody. As many types are learnt as there are masks an image: such
as masks that are large, tight, or empty. In each image every mask belongs to one type, and the
masks are put into the order of the types, by the largest likelihood of all labels of the image.
From there on a type is treated as an annotator is.

Such a hard assignment is that of a mixture trained by hard EM, with every type used once an image,
which keeps types from dying. Whether two sets of masks are alike does not depend on their order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.batch import Batch
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import Averages, labelled_pixels

LEAST_LOG_PROB = -1e4  # in place of -inf, which times 0 is no number, and of what is none
MOSTLY = 0.5  # share of empty masks from which a type is called "nothing"
CLEARLY = 0.1  # of an area, from which a type is called larger or smaller than the consensus


def best_order(masks: Tensor, log_probs: Tensor) -> Tensor:
    """For each type the mask of the image that is its own, so that the labels are most probable.

    Places ``[B, N]`` among the masks ``[B, N, H, W]``, each once, by the log of what the model
    expects of each type, ``[B, N, C, H, W]``.

    Example:
        >>> large, tight = torch.tensor([[0.9, 0.9], [0.9, 0.1]])
        >>> cell = torch.stack([large, tight])
        >>> log_probs = torch.stack([1 - cell, cell], dim=1).log().view(1, 2, 2, 1, 2)
        >>> best_order(torch.tensor([[1, 0], [1, 1]]).view(1, 2, 1, 2), log_probs)
        tensor([[1, 0]])
    """
    classes = log_probs.shape[2]
    known = masks != IGNORE_INDEX
    said = F.one_hot(masks.where(known, 0), classes).movedim(-1, 2) * known.unsqueeze(2)
    with torch.autocast(masks.device.type, enabled=False):
        log_probs = log_probs.float().nan_to_num(LEAST_LOG_PROB).clamp_min(LEAST_LOG_PROB)
        likely = log_probs.flatten(2) @ said.float().flatten(2).mT  # [B, types, masks]
    pairs = [linear_sum_assignment(one, maximize=True)[1] for one in likely.cpu().numpy()]
    return torch.from_numpy(np.stack(pairs)).to(masks.device)


def order_of_areas(masks: Tensor) -> Tensor:
    """Places ``[B, N]`` of the masks ``[B, N, H, W]``, from the largest foreground to the smallest.

    Example:
        >>> order_of_areas(torch.tensor([[0, 0], [1, 1], [0, 1]]).view(1, 3, 1, 2))
        tensor([[1, 2, 0]])
    """
    area = ((masks != 0) & (masks != IGNORE_INDEX)).sum((2, 3))
    return area.argsort(dim=1, descending=True, stable=True)


def in_order(batch: Batch, order: Tensor) -> Batch:
    """The batch with its masks in an order ``[B, N]``; without experts, who are persons."""
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)
    ordered = {key: batch[key][rows, order] for key in ("masks", "present")}
    return {key: value for key, value in batch.items() if key != "expert"} | ordered


class TypeNumbers(Averages):
    """How large the masks of each type are, beside the consensus, and how often they are empty.

    ``compute`` returns ``{"type_area/<type>", "type_empty/<type>"}``: the area of a mask divided by
    that which most masks of the image cover, mean over the images where neither is empty; and the
    share of empty masks.

    Example:
        >>> numbers = TypeNumbers(["type 1", "type 2", "type 3"])
        >>> masks = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).view(1, 3, 1, 3)
        >>> numbers.update(masks=masks, present=torch.ones(1, 3, dtype=torch.bool))
        >>> type_words(numbers.compute(), ["type 1", "type 2", "type 3"])
        ['large', 'middle', 'nothing']
    """

    def __init__(self, types: Sequence[str]) -> None:
        super().__init__(*(f"type_{kind}/{name}" for kind in ("area", "empty") for name in types))

    def update(self, *, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        labelled = labelled_pixels(masks, present)
        drawn = labelled & (masks != 0)
        most = 2 * drawn.sum(1, keepdim=True) > labelled.sum(1, keepdim=True)
        area, consensus = drawn.sum((2, 3)), most.sum((2, 3))
        ratio = (area / consensus).masked_fill((area == 0) | (consensus == 0), torch.nan)
        empty = (area == 0).float().masked_fill(~labelled.flatten(2).any(2), torch.nan)
        self.add_images(*torch.cat([ratio, empty], dim=1).unbind(1))


def type_words(values: Mapping[str, Tensor], types: Sequence[str]) -> list[str]:
    """A word for each type by the values of :class:`TypeNumbers`; "" where nothing is known."""
    words = []
    for name in types:
        area, empty = (float(values[f"type_{kind}/{name}"]) for kind in ("area", "empty"))
        if empty >= MOSTLY:
            words.append("nothing")
        elif area > 1 + CLEARLY:
            words.append("large")
        elif area < 1 - CLEARLY:
            words.append("tight")
        else:
            words.append("" if np.isnan(area) else "middle")
    return words
