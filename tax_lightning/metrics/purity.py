"""Does a prototype stand for one thing?

For every prototype the pixels most similar to it are kept, one an image, and compared by an
attribute that the model does not choose: the class of the pixel, or what the annotator did there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.clustering import adjusted_mutual_info_score

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import check_inputs

TOP = 10  # pixels kept for a prototype, each from another image
NEAR = 0.16  # of the image's side
CONSISTENT = 0.8  # of the images
LEAST_IMAGES = 5

EVENTS = ("agree", "misses", "adds", "other class")


def events(masks: Tensor, reference: Tensor) -> Tensor:
    """What each annotator did at each pixel, compared with the reference.

    Args:
        masks: Class ids given by the annotators ``[B, N, H, W]``, 0 is the background, 255 where
            not labelled.
        reference: True class ids ``[B, H, W]``, 255 where unknown.

    Returns:
        Indices into :data:`EVENTS` ``[B, N, H, W]`` int64: 0 agrees; 1 misses (calls an object
        background); 2 adds (calls background an object); 3 takes an object for another class; 255
        where either side is unknown.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[1, 0, 1, 2, 255]]]])
        >>> events(masks, torch.tensor([[[1, 1, 0, 1, 0]]])).tolist()
        [[[[0, 1, 2, 3, 255]]]]
    """
    check_inputs(("masks", masks, "BNHW"), ("reference", reference, "BHW"))
    truth = reference.unsqueeze(1).expand_as(masks)
    event = torch.full_like(masks, 3, dtype=torch.long)
    event = event.masked_fill(truth == 0, 2).masked_fill(masks == 0, 1)
    event = event.masked_fill(masks == truth, 0)
    return event.masked_fill((masks == IGNORE_INDEX) | (truth == IGNORE_INDEX), IGNORE_INDEX)


def prototype_purity(values: Tensor, usage: Tensor) -> Tensor:
    """Largest share of one value among each prototype's pixels, averaged by usage.

    Args:
        values: The attribute at the pixels kept for each prototype, integers ``[N, K, T]``, 255
            where there is none; those do not count.
        usage: Weight of each prototype in the average ``[N, K]``, such as its number of pixels.

    Returns:
        A scalar in [1/T, 1], 1 where each prototype has pixels of one value only; NaN where no
        prototype of positive weight has a pixel. It rises with the number of prototypes and falls
        with that of their pixels, so compare it with its shuffled control.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> values = torch.tensor([[[0, 0, 0, 1], [2, 2, 255, 255]]])  # 3/4 and 2/2
        >>> prototype_purity(values, usage=torch.tensor([[3.0, 1.0]]))
        tensor(0.8125)
    """
    check_inputs(("values", values, "NKT"), ("usage", usage, "NK"))
    known = values != IGNORE_INDEX
    same = (values.unsqueeze(-1) == values.unsqueeze(-2)) & known.unsqueeze(-1)
    largest, counts = same.sum(-1).amax(-1), known.sum(-1)
    weights = usage.float().masked_fill(counts == 0, 0)
    return (weights * largest / counts.clamp(min=1)).sum() / weights.sum()


def attribute_information(values: Tensor) -> Tensor:
    """Adjusted mutual information between the prototype of a pixel and its attribute.

    Unlike purity it does not rise with the number of prototypes: 0 is what chance gives, 1 says
    that prototypes and values correspond one to one.

    Args:
        values: The attribute at the pixels kept for each prototype, integers ``[N, K, T]``, 255
            where there is none; those do not count.

    Returns:
        A scalar of at most 1, below 0 where it is worse than chance; NaN where no prototype has
        two pixels, for there is nothing to compare then.

    Raises:
        ValueError: If ``values`` has not three dimensions.

    Example:
        >>> import torch
        >>> attribute_information(torch.tensor([[[0, 0], [1, 1]]]))
        tensor(1.)

    Source:
        N. X. Vinh, J. Epps, J. Bailey, "Information theoretic measures for clusterings
        comparison", 2010; the entropies are averaged arithmetically.
    """
    check_inputs(("values", values, "NKT"))
    rows = values.flatten(0, 1).cpu()  # a loop over single numbers, which suits no GPU
    known = rows != IGNORE_INDEX
    if known.sum() == 0 or known.sum(1).max() < 2:
        return torch.full((), torch.nan, device=values.device)
    prototype = torch.arange(len(rows)).unsqueeze(1).expand_as(rows)
    # torchmetrics builds a sparse tensor; torch wants to be told whether to check such tensors.
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        score: Tensor = adjusted_mutual_info_score(prototype[known], rows[known])
    return score.to(values.device)


def prototype_consistency(values: Tensor, near: Tensor) -> Tensor:
    """Share of prototypes that point at the same thing in nearly all of their images.

    A prototype is consistent if some value of the attribute is near its pixel in at least 80% of
    its images. Only images where the attribute at the pixel itself is known count, and only
    prototypes with five of them. A value that is everywhere, such as the background, makes all
    prototypes consistent: compare with the shuffled control.

    Args:
        values: The attribute at the pixels kept for each prototype, integers ``[N, K, T]``, 255
            where there is none.
        near: Whether value v is near the pixel, boolean ``[N, K, T, V]``.

    Returns:
        A scalar in [0, 1]; NaN where no prototype has five images.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> values = torch.tensor([[[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]])
        >>> prototype_consistency(values, near=torch.nn.functional.one_hot(values).bool())
        tensor(0.5000)

    Source:
        The consistency score of Q. Huang and others, "Evaluation and Improvement of
        Interpretability for Self-Explainable Part-Prototype Networks", arXiv 2212.05946.
    """
    check_inputs(("values", values, "NKT"), ("near", near, "NKTV"))
    known = values != IGNORE_INDEX
    counts = known.sum(2)
    share = (near & known.unsqueeze(-1)).sum(2) / counts.unsqueeze(-1)
    consistent = share.amax(-1) >= CONSISTENT
    return consistent[counts >= LEAST_IMAGES].float().mean()


def _shuffled(values: Tensor, near: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Give each pixel the attribute of another pixel, of any prototype and image."""
    known = values != IGNORE_INDEX
    order = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(seed))
    given = torch.empty_like(order)
    given[order] = order.roll(1)  # one cycle through all pixels, so that none keeps its own
    given = given.to(values.device)
    values, near = values.clone(), near.clone()
    values[known], near[known] = values[known][given], near[known][given]
    return values, near


def _best(rows: Tensor) -> Tensor:
    """The ten rows of ``[N, K, R, F]`` whose first field, the similarity, is largest."""
    order = rows[..., 0].argsort(dim=2, descending=True, stable=True)[..., :TOP]
    return rows.take_along_dim(order.unsqueeze(-1), dim=2)


def _merge(parts: Tensor) -> Tensor:
    """Merge what several processes kept, ``[processes, N, K, T, F]`` to ``[N, K, T, F]``."""
    return _best(parts.movedim(0, 2).flatten(2, 3))


def _near(labels: Tensor, value: int, y: Tensor, x: Tensor) -> Tensor:
    """Whether a value is in the box around the pixels y, x ``[B, N, K]``; of ``[B, 1 or N, H, W]``.

    Counts by an integral image: four look-ups a box, whatever its size.
    """
    height, width = labels.shape[-2:]
    down, right = int(NEAR * height), int(NEAR * width)
    counts = (labels == value).cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)
    table = F.pad(counts, (1, 0, 1, 0)).expand(-1, y.shape[1], -1, -1).flatten(2)
    y0, y1 = (y - down).clamp(min=0), (y + down + 1).clamp(max=height)
    x0, x1 = (x - right).clamp(min=0), (x + right + 1).clamp(max=width)

    def above_left(row: Tensor, column: Tensor) -> Tensor:
        return table.gather(2, row * (width + 1) + column)

    inside = above_left(y1, x1) - above_left(y0, x1) - above_left(y1, x0) + above_left(y0, x0)
    return inside > 0


def _attribute_fields(labels: Tensor, size: int, name: str, index: Tensor, found: Tensor) -> Tensor:
    """Value at each peak, then for each of the V values whether it is near ``[B, N, K, 1 + V]``."""
    maps = labels.expand(-1, index.shape[1], -1, -1).flatten(2)
    values = maps.gather(2, index).masked_fill(~found, IGNORE_INDEX)
    unknown = values[(values != IGNORE_INDEX) & ((values < 0) | (values >= size))]
    if unknown.numel():
        raise ValueError(
            f"attribute {name!r} has the value {int(unknown[0])}, expected 0 to {size - 1}, or 255 "
            "where there is none; give the metric the right number of values."
        )
    y, x = index // labels.shape[-1], index % labels.shape[-1]
    near = [_near(labels, value, y, x) & found for value in range(size)]
    return torch.stack([values, *near], dim=-1)


class Purity(Metric):
    """Does each prototype stand for one value of an attribute?

    Over a data set it keeps for every prototype the ten most similar pixels, each from another
    image, and the attributes there: memory does not grow with the data. An image must come once
    only; if a sampler repeats some to fill the last batch, these count twice.

    ``update`` takes ``similarity`` ``[B, N, K, H, W]``; ``attributes``, a dict of label maps
    ``[B, H, W]`` or ``[B, N, H, W]`` (255 where there is none), of which a batch may lack some; and
    ``eligible``, boolean ``[B, N, K, H, W]``, the pixels that may stand for (n, k) - give false
    for a prototype that is pruned. A prototype's usage, its weight in the average, is the number of
    pixels at which it is the most similar of its annotator's eligible ones.

    ``compute`` returns for each attribute ``purity/<attribute>`` (:func:`prototype_purity`),
    ``purity_ami/<attribute>`` (:func:`attribute_information`) and ``consistency/<attribute>``
    (:func:`prototype_consistency`; near is a box of 0.16 of the image's height and width to each
    side), and the same with ``_shuffled`` before the slash: the control, where each pixel has the
    attribute of another one. NaN without a case.

    Across processes the kept pixels are gathered and the best ten kept again; as each image is seen
    by one process, this is the result of one process.

    Args:
        annotators: Number N of annotators.
        kernels: Number K of prototypes of an annotator.
        attributes: Number V of values of each attribute by its name, such as
            ``{"class": 3, "event": 4}``; values are 0 .. V - 1.
        seed: Makes the shuffled control reproducible.

    Raises:
        ValueError: If a number is below 1, an attribute is unknown or out of range, or tensors do
            not fit.

    Example:
        >>> import torch
        >>> metric = Purity(annotators=1, kernels=2, attributes={"class": 2})
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # 2 prototypes, 2 pixels
        >>> for _ in range(5):  # five images
        ...     metric.update(
        ...         similarity=similarity[None, None, :, None],
        ...         attributes={"class": torch.tensor([[[0, 1]]])},
        ...     )
        >>> result = metric.compute()
        >>> float(result["purity/class"]), float(result["consistency/class"])
        (1.0, 1.0)
        >>> float(result["purity_shuffled/class"]) < 1
        True
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    kept: Tensor
    usage: Tensor

    def __init__(
        self, annotators: int, kernels: int, attributes: Mapping[str, int], seed: int = 0
    ) -> None:
        super().__init__()
        numbers = {"annotators": annotators, "kernels": kernels, **attributes}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"`{name}` is {number}, expected at least 1; pass its number.")
        self.annotators = annotators
        self.kernels = kernels
        self.attributes = dict(attributes)
        self.seed = seed
        fields = [torch.tensor([-torch.inf])]  # similarity, then value and near of each attribute
        for size in self.attributes.values():
            fields.append(torch.tensor([IGNORE_INDEX] + [0] * size))
        nothing = torch.cat([field.float() for field in fields])
        empty = nothing.repeat(annotators, kernels, TOP, 1)
        self.add_state("kept", empty, dist_reduce_fx=_merge)
        shape = annotators, kernels
        self.add_state("usage", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        *,
        similarity: Tensor,
        attributes: Mapping[str, Tensor],
        eligible: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        maps = self._check(similarity, attributes, eligible)
        if not len(similarity):
            return
        similarity = similarity.float()
        if eligible is not None:
            similarity = similarity.masked_fill(~eligible, -torch.inf)
        highest, index = similarity.flatten(3).max(dim=3)
        found = highest > -torch.inf
        fields = [highest.unsqueeze(-1)]
        for name, size in self.attributes.items():
            fields.append(_attribute_fields(maps[name], size, name, index, found))
        new = torch.cat([field.float() for field in fields], dim=-1)
        self.kept = _best(torch.cat([self.kept, new.movedim(0, 2)], dim=2))
        kernels = torch.arange(self.kernels, device=similarity.device).view(-1, 1, 1)
        leads = similarity.argmax(2, keepdim=True) == kernels
        self.usage += (leads & (similarity > -torch.inf)).sum((0, 3, 4))

    def _check(
        self, similarity: Tensor, attributes: Mapping[str, Tensor], eligible: Tensor | None
    ) -> dict[str, Tensor]:
        """Check the arguments; each attribute's map ``[B, 1 or N, H, W]``, 255 if not given."""
        layouts = [("similarity", similarity, "BNKHW")]
        if eligible is not None:
            layouts.append(("eligible", eligible, "BNKHW"))
        for name, labels in attributes.items():
            if name not in self.attributes:
                raise ValueError(
                    f"attribute {name!r} is not among {list(self.attributes)}, expected one of "
                    "these; name it when the metric is built."
                )
            layouts.append((name, labels, "BHW" if labels.ndim == 3 else "BNHW"))
        check_inputs(*layouts, N=self.annotators, K=self.kernels)
        batch, _, _, height, width = similarity.shape
        none = similarity.new_full((batch, height, width), IGNORE_INDEX, dtype=torch.long)
        maps = {name: attributes.get(name, none).long() for name in self.attributes}
        return {name: m.unsqueeze(1) if m.ndim == 3 else m for name, m in maps.items()}

    def compute(self) -> dict[str, Tensor]:
        """Purity, information and consistency of each attribute, and their shuffled controls."""
        results = {}
        start = 1
        for name, size in self.attributes.items():
            values = self.kept[..., start].long()
            near = self.kept[..., start + 1 : start + 1 + size].bool()
            start += 1 + size
            for kind, (v, n) in {
                "": (values, near),
                "_shuffled": _shuffled(values, near, self.seed),
            }.items():
                results[f"purity{kind}/{name}"] = prototype_purity(v, self.usage)
                results[f"purity_ami{kind}/{name}"] = attribute_information(v)
                results[f"consistency{kind}/{name}"] = prototype_consistency(v, n)
        return results
