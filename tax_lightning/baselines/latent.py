"""ModelOutput of one image that differ by a latent vector."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class LatentHead(nn.Module):
    """Reads features and a latent vector together, by 1x1 convolutions.

    The vector would be repeated at every pixel and joined to the features. Of a 1x1 convolution
    over both, the part that sees the vector is the same everywhere: a bias. So the features are
    read once, whatever the number of vectors, and nothing is repeated.

    Args:
        channels: feature channels D.
        latent_dim: length L of a latent vector.
        classes: number of classes C.
        layers: number of convolutions, at least 2, with a ReLU between any two.

    Raises:
        ValueError: if there are fewer than 2 layers.

    Example:
        >>> head = LatentHead(channels=4, latent_dim=2, classes=3)
        >>> drawn = list(head(torch.randn(1, 4, 8, 8), torch.randn(7, 1, 5, 2)))
        >>> len(drawn), drawn[0].shape
        (7, torch.Size([1, 5, 3, 8, 8]))
    """

    def __init__(self, channels: int, latent_dim: int, classes: int, layers: int = 3) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"head_layers={layers}: expected at least 2.")
        self.of_features = nn.Conv2d(channels, channels, 1)
        self.of_latent = nn.Linear(latent_dim, channels, bias=False)
        rest: list[nn.Module] = []
        for width in (*[channels] * (layers - 2), classes):
            rest += [nn.ReLU(), nn.Conv2d(channels, width, 1)]
        self.rest = nn.Sequential(*rest)
        start(self.of_features, channels + latent_dim)  # with the next one convolution
        start(self.of_latent, channels + latent_dim)
        for layer in rest[1::2]:
            start(layer, channels)

    def forward(self, features: Tensor, latents: Tensor) -> Iterator[Tensor]:
        """Log of the probabilities with each of S sets of M vectors.

        One set at a time, so that no more than its hidden layers are held where nothing is learnt.

        Args:
            features: ``[B, D, H, W]``.
            latents: ``[S, B, M, L]``; B may be 1.

        Yields:
            ``[B, M, C, H, W]``, S times.
        """
        seen = self.of_features(features).unsqueeze(1)
        for part in latents:
            hidden = seen + self.of_latent(part)[..., None, None]
            logits: Tensor = self.rest(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
            yield logits.float().log_softmax(dim=2)


def start(layer: nn.Module, inputs: int) -> None:
    """Draw weights that keep the spread of what passes a ReLU, and set biases to 0.

    Args:
        layer: a convolution or linear layer.
        inputs: that each of its outputs sums up.

    Example:
        >>> layer = nn.Conv2d(64, 64, 3)
        >>> start(layer, inputs=64 * 3 * 3)
        >>> bool(abs(layer.weight.std() - (2 / (64 * 9)) ** 0.5) < 1e-3)
        True

    Source:
        K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def noise(*shape: int, like: Tensor, seed: int | None) -> Tensor:
    """Standard normal noise, float32; with a seed the same every time, disturbing no other draw.

    Args:
        shape: of the result.
        like: a tensor of the same device.
        seed: ``None`` draws on from where the process is.

    Example:
        >>> zero = torch.zeros(1)
        >>> torch.equal(noise(2, 3, like=zero, seed=5), noise(2, 3, like=zero, seed=5))
        True
    """
    if seed is None:
        return torch.randn(shape, device=like.device, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like.device)
