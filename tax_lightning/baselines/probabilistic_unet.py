"""Probabilistic U-Net: any number of segmentations of an image, of nobody in particular."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tax_lightning.baselines.baseline import Baseline
from tax_lightning.baselines.latent import LatentHead, noise, start
from tax_lightning.batch import Batch
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.models.backbone import DenseNetwork, evaluating
from tax_lightning.models.output import ModelOutput

WIDTHS = (32, 64, 128)  # of the two encoders, one stride of 2 each
LOG_SIGMA = 7.0  # beyond which a standard deviation is no longer one


class ProbabilisticUNet(Baseline):
    """A network whose head also reads a latent vector, drawn from a distribution over the image.

    In training, the posterior net sees the image and the labels of one of its annotators, drawn
    anew at each step, and gives the distribution from which those labels can be drawn again; the
    prior net, which sees the image alone, learns to give the same. In evaluation vectors are drawn
    from the prior net. Who would draw which sample is not known.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        latent_dim: length of a latent vector.
        head_layers: number of 1x1 convolutions in the head, at least 2.
        samples: segmentations drawn in evaluation, by the same noise every time; the result is
            their mean.
        kl_weight: beta, weight of the divergence of posterior and prior; both sides of the
            objective are per pixel.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Raises:
        ValueError: for ``reference="none"``, or if a number is below 1.

    Example:
        >>> module = ProbabilisticUNet(
        ...     ["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1)
        ... )
        >>> module.sample(torch.randn(1, 3, 8, 8), samples=5).shape
        torch.Size([1, 5, 2, 8, 8])

    Source:
        S. Kohl and others, "A probabilistic U-Net for segmentation of ambiguous images", NeurIPS
        2018. Departures: any backbone; smaller encoders; strides in place of pooling.
    """

    named = False

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        latent_dim: int = 6,
        head_layers: int = 3,
        samples: int = 16,
        kl_weight: float = 10.0,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        for name, value in (("latent_dim", latent_dim), ("samples", samples)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")
        if self.reference == "none":
            raise ValueError(
                "reference='none': ProbabilisticUNet names no annotator, so the reference is all "
                "that its checkpoints can be chosen by. Set reference='majority', 'staple' or "
                "'given'."
            )
        self.save_hyperparameters(
            {
                "latent_dim": latent_dim,
                "head_layers": head_layers,
                "samples": samples,
                "kl_weight": kl_weight,
            }
        )
        self.weights = {"kl": kl_weight}
        self.samples = samples
        self.network = DenseNetwork(**self.backbone)
        self.head = LatentHead(self.network.channels, latent_dim, len(self.classes), head_layers)
        channels = self.backbone["in_channels"]
        self.prior = GaussianEncoder(channels, latent_dim)
        self.posterior = GaussianEncoder(channels + len(self.classes), latent_dim)

    def forward(self, images: Tensor) -> ModelOutput:
        """Samples and their mean."""
        drawn = self._drawn(images, self.samples, seed=None if self.training else 0)
        even = torch.zeros_like(drawn[:, :, 0]).log_softmax(dim=1)
        mean = (drawn + even.unsqueeze(2)).logsumexp(dim=1)
        return ModelOutput(mean, drawn[:, :0], even[:, :0], log_samples=drawn)

    def sample(self, images: Tensor, samples: int | None = None, seed: int = 0) -> Tensor:
        """ModelOutput drawn of images.

        Args:
            images: ``[B, ch, H, W]``.
            samples: how many S of each image; by default as many as in evaluation.
            seed: of the draw.

        Returns:
            Probabilities ``[B, S, C, H, W]``.
        """
        with torch.no_grad(), evaluating(self):
            return self._drawn(images, samples or self.samples, seed).exp()

    def _drawn(self, images: Tensor, samples: int, seed: int | None) -> Tensor:
        """Log of samples ``[B, S, C, H, W]``."""
        prior = self.prior(images)
        standard = noise(samples, 1, 1, prior.loc.shape[1], like=prior.loc, seed=seed)
        latents = prior.loc[:, None] + prior.scale[:, None] * standard
        drawn = self.head(self.network.features(images), latents.to(images.dtype))
        return torch.cat(list(drawn), dim=1)

    def _segment(self, images: Tensor, chosen: list[int] | None) -> Tensor:
        if chosen is not None:
            raise ValueError(
                "predict: ProbabilisticUNet draws samples of nobody in particular. Leave out "
                "annotator=... and panel=..., or take sample(images)."
            )
        return super()._segment(images, chosen)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The labels of one annotator an image, drawn again, and the divergence, per pixel."""
        images, labels = batch["image"], _of_one_each(batch["masks"], batch["present"])
        posterior = self.posterior(torch.cat([images, _one_hot(labels, self.classes, images)], 1))
        latents = posterior.rsample().to(images.dtype)[None, :, None]
        (drawn,) = self.head(self.network.features(images), latents)
        labelled = (labels != IGNORE_INDEX).flatten(1).any(dim=1)
        divergence = kl_divergence(posterior, self.prior(images)).sum(dim=1) * labelled
        return {
            "drawn": self.loss.between(drawn, labels.unsqueeze(1)),
            "kl": divergence.sum() / labelled.sum().clamp_min(1) / labels[0].numel(),
        }

    def segmentation_terms(
        self, batch: Batch, output: ModelOutput, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """In evaluation: the mean of the samples against what each annotator drew."""
        masks = batch["masks"]
        everyone = output.log_probs.unsqueeze(1).expand(-1, masks.shape[1], -1, -1, -1)
        return {"annotator": self.loss.between(everyone, masks)}


class GaussianEncoder(nn.Module):
    """From images to a normal distribution over latent vectors, with a diagonal covariance.

    Args:
        channels: of an image.
        latent_dim: length L of a latent vector.

    Example:
        >>> GaussianEncoder(3, latent_dim=6)(torch.randn(2, 3, 20, 30)).mean.shape
        torch.Size([2, 6])
    """

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        for layer in layers[::2]:
            assert isinstance(layer, nn.Conv2d)
            start(layer, inputs=9 * layer.in_channels)
        self.layers = nn.Sequential(*layers)
        self.parameters_of = nn.Linear(WIDTHS[-1], 2 * latent_dim)

    def forward(self, images: Tensor) -> Normal:
        """The distribution of each number of each image's vector, ``[B, L]``."""
        pooled = self.layers(images).mean(dim=(2, 3))
        mean, log_sigma = self.parameters_of(pooled).float().chunk(2, dim=1)
        sigma = log_sigma.clamp(-LOG_SIGMA, LOG_SIGMA).exp()
        return Normal(mean, sigma, validate_args=False)


def _of_one_each(masks: Tensor, present: Tensor) -> Tensor:
    """Labels ``[B, H, W]`` of one annotator an image, drawn from those present."""
    nobody = ~present.any(dim=1, keepdim=True)
    who = torch.multinomial((present | nobody).float(), 1)
    return masks.gather(1, who[..., None, None].expand(-1, 1, *masks.shape[2:])).squeeze(1)


def _one_hot(labels: Tensor, classes: Sequence[str], like: Tensor) -> Tensor:
    """A plane a class ``[B, C, H, W]``; all are 0 where nothing is labelled."""
    planes = F.one_hot(labels.masked_fill(labels == IGNORE_INDEX, len(classes)), len(classes) + 1)
    return planes[..., :-1].movedim(-1, 1).to(like.dtype)
