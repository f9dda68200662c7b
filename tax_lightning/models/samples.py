"""Plausible segmentations drawn from class probabilities, with whole outlines."""

import torch
from torch import Tensor

from tax_lightning.explanation import most_likely


def coherent_samples(log_probs: Tensor, samples: int) -> Tensor:
    """Segmentations that a model holds possible, each whole in itself.

    A sample takes at every pixel the class of the largest log p(c) + g(c), where the Gumbel noise
    g is the same at all pixels of the sample. So a pixel has class c in a share p(c) of the
    samples, and a sample that draws one outline generously draws all outlines generously. (Noise of
    its own at each pixel would have the same shares and give grains instead of outlines.) The noise
    is spread evenly and does not change from call to call: two classes are cut at the thresholds
    (s + 1/2) / S, and more classes take the points of a Sobol sequence.

    From the log of class probabilities ``[..., C, H, W]`` to class ids ``[..., S, H, W]``, of at
    least one sample. With one sample and two classes it has the largest probability.

    Example:
        >>> probs = torch.tensor([[0.8, 0.4], [0.2, 0.6]]).view(2, 1, 2)  # C = 2, two pixels
        >>> coherent_samples(probs.log(), samples=5)[:, 0].T
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0]])

    Source:
        The Gumbel-max trick: E. J. Gumbel, "Statistical theory of extreme values and some practical
        applications", 1954. Noise shared by all pixels is this project's own choice.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1.")
    classes = log_probs.shape[-3]
    noise = _gumbel_noise(samples, classes).to(log_probs)
    # One sample at a time: all at once would need S times the memory of the probabilities.
    drawn = [most_likely(log_probs + shift.view(-1, 1, 1), dim=-3) for shift in noise]
    return torch.stack(drawn, dim=-3)


def _gumbel_noise(samples: int, classes: int) -> Tensor:
    """Noise of each class in each sample, float64 ``[S, C]``."""
    if classes == 2:
        # The difference of two Gumbel variables is logistic: class 1 wins where p(1) > threshold.
        threshold = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
        return torch.stack([torch.zeros_like(threshold), -threshold.logit()], dim=1)
    points = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0).draw(
        samples, dtype=torch.float64
    )
    return -(-points.clamp(1e-12, 1 - 1e-12).log()).log()
