"""Are the predictions uncertain where they differ from the annotators?"""

from __future__ import annotations

import torch
from torch import Tensor

from tax_lightning.metrics.inputs import check_inputs, labelled_pixels
from tax_lightning.metrics.pooled import ImageAverage

_LEAST = 1e-8  # what a probability of 0 counts as, so that its logarithm is finite
_ROUNDING = 1e-6  # values that differ by this share of the largest are the same


def _correlation(expected: Tensor, observed: Tensor, cases: Tensor) -> Tensor:
    """Pearson's correlation over the cases, the last axis of all three, each ``[..., HW]``.

    Values are at least 0. NaN where what is observed is constant or has no case; 0 where only the
    expectation is.
    """

    def centred(values: Tensor) -> Tensor:
        mean = torch.where(cases, values, 0).sum(-1, keepdim=True) / cases.sum(-1, keepdim=True)
        return torch.where(cases, values - mean, 0)

    def constant(values: Tensor) -> Tensor:
        highest = values.masked_fill(~cases, -torch.inf).amax(-1)
        lowest = values.masked_fill(~cases, torch.inf).amin(-1)
        return highest - lowest <= _ROUNDING * highest

    first, second = centred(expected), centred(observed)
    correlation: Tensor = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    correlation = correlation.clamp(-1, 1).masked_fill(constant(expected), 0)
    return correlation.masked_fill(constant(observed), torch.nan)


def normalized_cross_correlation(annotator_probs: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Correlation of the predictions' uncertainty with their error, over the pixels of an image.

    The zero-normalised cross-correlation of E_s[CE(s, mean of s)] with E_s[CE(s, y_n)], the mean
    over annotators n, where CE(s, y) = -sum_c y_c log s_c at a pixel and s are the predictions. For
    annotator n it is taken over the pixels that n labelled. A probability below 1e-8 counts as
    that much.

    Where the error for an annotator is the same at all pixels, there is nothing to foretell: the
    annotator is left out. Where only the uncertainty is the same at all pixels, it foretells
    nothing: the correlation is 0.

    Args:
        annotator_probs: Class probabilities of each prediction ``[B, S, C, H, W]``: those of the N
            annotators, or of any number of samples.
        masks: Class ids given by the annotators ``[B, N, H, W]``, 255 where not labelled.
        present: Which annotators labelled the image, boolean ``[B, N]``.

    Returns:
        Correlations in [-1, 1] ``[B]``, 1 is best; NaN for an image of which nobody counts.

    Raises:
        ValueError: If the shapes do not fit one another.

    Example:
        >>> import torch
        >>> cell = torch.tensor([[[[0.1, 0.6, 0.1]], [[0.1, 0.4, 0.1]]]])
        >>> probs = torch.stack([1 - cell, cell], 2)
        >>> masks = torch.tensor([[[[0, 1, 0]]]])
        >>> normalized_cross_correlation(probs, masks, torch.tensor([[True]]))
        tensor([1.])

    Source:
        C. F. Baumgartner et al., "PHiSeg: Capturing Uncertainty in Medical Image Segmentation",
        2019.
    """
    check_inputs(
        ("annotator_probs", annotator_probs, "BSCHW"),
        ("masks", masks, "BNHW"),
        ("present", present, "BN"),
    )
    probs = annotator_probs.float()
    # Both expectations are linear in the mean logarithm, so that no pair is ever made.
    mean_log = probs.clamp(min=_LEAST).log_().mean(1)
    uncertainty = -(probs.mean(1) * mean_log).sum(1, keepdim=True)
    labelled = labelled_pixels(masks, present)
    error = -mean_log.gather(1, masks.masked_fill(~labelled, 0).long())
    return _correlation(uncertainty.flatten(2), error.flatten(2), labelled.flatten(2)).nanmean(1)


class NormalizedCrossCorrelation(ImageAverage):
    """Correlation of the predictions' uncertainty with their error, over the pixels of an image.

    Averages :func:`normalized_cross_correlation` over the images that have one.

    ``update`` takes ``annotator_probs`` ``[B, S, C, H, W]`` (of the annotators or any number of
    samples), ``masks`` ``[B, N, H, W]`` (255 where not labelled) and ``present`` (boolean
    ``[B, N]``). ``compute`` returns ``{"ncc"}``, in [-1, 1], 1 is best; NaN without a case.

    Raises:
        ValueError: If tensors do not fit.

    Example:
        >>> import torch
        >>> metric = NormalizedCrossCorrelation()
        >>> cell = torch.tensor([[[[0.1, 0.6, 0.1]], [[0.1, 0.4, 0.1]]]])
        >>> metric.update(
        ...     annotator_probs=torch.stack([1 - cell, cell], 2),
        ...     masks=torch.tensor([[[[0, 1, 0]]]]),
        ...     present=torch.tensor([[True]]),
        ... )
        >>> metric.compute()
        {'ncc': tensor(1.)}
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__("ncc")

    def update(self, *, annotator_probs: Tensor, masks: Tensor, present: Tensor) -> None:
        """Add one batch."""
        self.add_images(normalized_cross_correlation(annotator_probs, masks, present))
