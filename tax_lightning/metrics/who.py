"""Does the model name the right annotator where annotators disagree?"""

from __future__ import annotations

import torch
from torch import Tensor

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.metrics.inputs import check_inputs, labelled_pixels, named_annotator, sum_where
from tax_lightning.metrics.pooled import PooledMetric, count, total


def disagreement(masks: Tensor, present: Tensor) -> Tensor:
    """Find the pixels where at least two annotators gave different labels.

    Args:
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Boolean ``[B, H, W]``; false where fewer than two annotators gave a label.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[0, 1, 1]], [[0, 0, 255]]]])
        >>> disagreement(masks, torch.tensor([[True, True]])).tolist()
        [[[False, True, False]]]
    """
    check_inputs(("masks", masks, "BNHW"), ("present", present, "BN"))
    labelled = labelled_pixels(masks, present)
    highest = masks.masked_fill(~labelled, -1).amax(1)
    lowest = masks.masked_fill(~labelled, IGNORE_INDEX).amin(1)
    return highest > lowest


def labelled_and_right(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """Check that they fit; where each annotator gave a label, and where the reference's.

    Returns:
        Two booleans ``[B, N, H, W]``; nobody is right where the reference is unknown.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[0, 255]], [[1, 1]]]])
        >>> reference = torch.tensor([[[1, 1]]])
        >>> _, right = labelled_and_right(masks / 2, masks, torch.ones(1, 2) > 0, reference)
        >>> right.tolist()
        [[[[False, False]], [[True, True]]]]
    """
    check_inputs(
        ("who", who, "BNHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
        ("reference", reference, "BHW"),
    )
    labelled = labelled_pixels(masks, present)
    return labelled, labelled & (masks == reference.unsqueeze(1))


def expert_pixels(
    labelled: Tensor, disputed: Tensor, reference: Tensor, expert: Tensor
) -> tuple[Tensor, Tensor]:
    """The disputed pixels whose reference is known and whose expert gave a label.

    Args:
        labelled: Where each annotator has given a label, boolean ``[B, N, H, W]``.
        disputed: Where annotators disagree, boolean ``[B, H, W]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.
        expert: Index of the expert at each pixel ``[B, H, W]``, 255 where there is none.

    Returns:
        Boolean ``[B, H, W]``, and the expert's index ``[B, 1, H, W]``, 0 where there is none.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> labelled = torch.tensor([[[[True, True]], [[True, False]]]])
        >>> disputed, reference = torch.tensor([[[True, True]]]), torch.tensor([[[1, 1]]])
        >>> expert_pixels(labelled, disputed, reference, torch.tensor([[[1, 1]]]))[0].tolist()
        [[[True, False]]]
    """
    check_inputs(("masks", labelled, "BNHW"), ("expert", expert, "BHW"))
    known = (expert != IGNORE_INDEX) & (reference != IGNORE_INDEX)
    index = expert.masked_fill(~known, 0).unsqueeze(1)
    return disputed & known & labelled.gather(1, index).squeeze(1), index


def _chance(labelled: Tensor) -> Tensor:
    """Chance that a blind guess among the annotators with a label is right ``[B, H, W]``."""
    return 1 / labelled.sum(1)


def _d1_sums(who: Tensor, masks: Tensor, present: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Hits, sum of chances and number of pixels over D1."""
    labelled, right = labelled_and_right(who, masks, present, reference)
    cases = disagreement(masks, present) & (right.sum(1) == 1)
    hits = right.gather(1, named_annotator(who, labelled)).squeeze(1)
    return {
        "hits": (hits & cases).sum(),
        "chance": sum_where(_chance(labelled), cases),
        "pixels": cases.sum(),
    }


def _d1_means(hits: Tensor, chance: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Results of :func:`who_accuracy` from its sums."""
    return {"who_accuracy_d1": hits / pixels, "who_chance_d1": chance / pixels}


def who_accuracy(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor
) -> dict[str, Tensor]:
    """Share of pixels whose named annotator is the one that is right, where only one is (D1).

    D1 are the pixels where annotators disagree and exactly one of them gave the reference's label.
    The annotator named at a pixel is the one with the largest share among those who labelled it.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.

    Returns:
        ``who_accuracy_d1``, in [0, 1], and ``who_chance_d1``, what a blind guess would get: the
        mean over D1 of 1 / number of annotators who labelled the pixel. NaN where D1 is empty.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> who_accuracy(
        ...     who=torch.tensor([[[[0.9, 0.8]], [[0.1, 0.2]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1, 0]]]),
        ... )
        {'who_accuracy_d1': tensor(0.5000), 'who_chance_d1': tensor(0.5000)}
    """
    return _d1_means(**_d1_sums(who, masks, present, reference))


def _needed(masks: Tensor, labelled: Tensor, index: Tensor) -> Tensor:
    """Whether the others outvote annotator ``index``: 1, or 1/2 where the most votes are shared.

    Each of those who labelled the pixel has one vote. ``[B, H, W]``.
    """
    own = masks.gather(1, index)
    others = labelled.scatter(1, index, value=False)
    support = (others & (masks == own)).sum(1)
    rival = torch.zeros_like(support)
    for theirs, voted in zip(masks.unbind(1), others.unbind(1), strict=True):
        votes = (others & (masks == theirs.unsqueeze(1))).sum(1)
        rival = torch.where(voted & (theirs != own.squeeze(1)), rival.maximum(votes), rival)
    needed: Tensor = (rival > support) + (rival == support) / 2
    return needed


def _expert_sums(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor, expert: Tensor
) -> dict[str, Tensor]:
    """Hits, sums of ceilings, chances and needs, and number of pixels that have an expert."""
    labelled, right = labelled_and_right(who, masks, present, reference)
    cases, index = expert_pixels(labelled, disagreement(masks, present), reference, expert)
    hits = (named_annotator(who, labelled) == index).squeeze(1)
    expert_right = cases & right.gather(1, index).squeeze(1)
    return {
        "hits": (hits & cases).sum(),
        "ceiling": sum_where(1 / right.sum(1), expert_right),
        "chance": sum_where(_chance(labelled), cases),
        "needed": sum_where(_needed(masks, labelled, index), cases),
        "pixels": cases.sum(),
    }


def _expert_means(
    hits: Tensor, ceiling: Tensor, chance: Tensor, needed: Tensor, pixels: Tensor
) -> dict[str, Tensor]:
    """Results of :func:`expert_accuracy` from its sums."""
    return {
        "who_accuracy_expert": hits / pixels,
        "who_ceiling_expert": ceiling / pixels,
        "who_chance_expert": chance / pixels,
        "who_needed_expert": needed / pixels,
    }


def expert_accuracy(
    who: Tensor, masks: Tensor, present: Tensor, reference: Tensor, expert: Tensor
) -> dict[str, Tensor]:
    """Share of disputed pixels whose named annotator is the expert who owns the pixel.

    The expert is known for synthetic data only. Counted are the pixels where annotators disagree,
    the reference is known and the expert gave a label. The annotator named at a pixel is the one
    with the largest share among those who labelled it.

    Args:
        who: Share of each annotator in the decision ``[B, N, H, W]``, sums to 1 over N.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.
        reference: True class ids ``[B, H, W]``, 255 where unknown.
        expert: Index of the expert at each pixel ``[B, H, W]``, 255 where there is none.

    Returns:
        ``who_accuracy_expert``; ``who_ceiling_expert``, what one would get who knew the labels and
        the reference alone and guessed among the annotators that are right (0 at a pixel whose
        expert is not among them); ``who_chance_expert``, what a blind guess among the annotators who
        labelled the pixel would get; ``who_needed_expert``, the share at which the labels of the
        others, one vote each, outvote the expert's (a tie counts half): roughly the
        ``who_flip_rate`` (see :func:`~tax_lightning.metrics.removal_effects`) of a model that
        draws what everyone labelled, names the expert and weighs all others alike. Of one that
        names somebody else it may be larger. In [0, 1]; NaN where no pixel counts.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> result = expert_accuracy(
        ...     who=torch.tensor([[[[0.7]], [[0.2]], [[0.1]]]]),
        ...     masks=torch.tensor([[[[1]], [[1]], [[0]]]]),
        ...     present=torch.tensor([[True, True, True]]),
        ...     reference=torch.tensor([[[1]]]),
        ...     expert=torch.tensor([[[0]]]),
        ... )
        >>> for name, value in result.items():
        ...     print(name, round(float(value), 3))
        who_accuracy_expert 1.0
        who_ceiling_expert 0.5
        who_chance_expert 0.333
        who_needed_expert 0.5
    """
    return _expert_means(**_expert_sums(who, masks, present, reference, expert))


class WhoAccuracy(PooledMetric):
    """Does the model name the annotator that is right, where exactly one is right?

    Pools the pixels of all images; see :func:`who_accuracy`.

    ``update`` takes ``who`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255 where not labelled),
    ``present`` (boolean ``[B, N]``) and ``reference`` ``[B, H, W]`` (255 where unknown); without a
    reference a batch adds nothing. ``compute`` returns ``{"who_accuracy_d1", "who_chance_d1"}``, in
    [0, 1]; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = WhoAccuracy()
        >>> metric.update(
        ...     who=torch.tensor([[[[0.9, 0.8]], [[0.1, 0.2]]]]),
        ...     masks=torch.tensor([[[[1, 1]], [[0, 0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1, 0]]]),
        ... )
        >>> metric.compute()
        {'who_accuracy_d1': tensor(0.5000), 'who_chance_d1': tensor(0.5000)}
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(hits=count(), chance=total(), pixels=count())

    def update(
        self, *, who: Tensor, masks: Tensor, present: Tensor, reference: Tensor | None = None
    ) -> None:
        """Add one batch; nothing where it has no reference."""
        if reference is not None:
            self.add(**_d1_sums(who, masks, present, reference))

    def compute(self) -> dict[str, Tensor]:
        """Average over the pixels of D1."""
        return _d1_means(**self.sums)


class ExpertAccuracy(PooledMetric):
    """Does the model name the expert who owns the pixel? For synthetic data.

    Pools the pixels of all images; see :func:`expert_accuracy`.

    ``update`` takes ``who`` ``[B, N, H, W]``, ``masks`` ``[B, N, H, W]`` (255 where not labelled),
    ``present`` (boolean ``[B, N]``), ``reference`` ``[B, H, W]`` (255 where unknown) and ``expert``
    ``[B, H, W]`` (255 where there is none); without a reference or an expert a batch adds nothing.
    ``compute`` returns ``{"who_accuracy_expert", "who_ceiling_expert", "who_chance_expert",
    "who_needed_expert"}``, in [0, 1]; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = ExpertAccuracy()
        >>> metric.update(
        ...     who=torch.tensor([[[[0.7]], [[0.3]]]]),
        ...     masks=torch.tensor([[[[1]], [[0]]]]),
        ...     present=torch.tensor([[True, True]]),
        ...     reference=torch.tensor([[[1]]]),
        ...     expert=torch.tensor([[[0]]]),
        ... )
        >>> metric.compute()["who_accuracy_expert"], metric.compute()["who_needed_expert"]
        (tensor(1.), tensor(1.))
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(
            hits=count(), ceiling=total(), chance=total(), needed=total(), pixels=count()
        )

    def update(
        self,
        *,
        who: Tensor,
        masks: Tensor,
        present: Tensor,
        reference: Tensor | None = None,
        expert: Tensor | None = None,
    ) -> None:
        """Add one batch; nothing where it has no reference or no expert."""
        if reference is not None and expert is not None:
            self.add(**_expert_sums(who, masks, present, reference, expert))

    def compute(self) -> dict[str, Tensor]:
        """Average over the disputed pixels that have an expert."""
        return _expert_means(**self.sums)
