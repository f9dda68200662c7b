"""Networks that draw: each latent vector gives another segmentation of the same image."""

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

from tax_lightning.baselines.baseline import Baseline, Names, Terms
from tax_lightning.batch import Batch
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.models.backbone import DenseNetwork, evaluating
from tax_lightning.models.output import ModelOutput

PRIOR_SIGMA, START_SIGMA = 2.0, 8.0  # of Pionono's prior, and of the means at the start
WIDTHS = (32, 64, 128)  # of the Probabilistic U-Net's two encoders; a stride of 2 before each
LOG_SIGMA = 7.0  # limit of the logarithm of a standard deviation, which would overflow


class Pionono(Baseline):
    """p_n = E p(y | features, z) over z ~ q(z | n), a normal distribution for each annotator n.

    Its mean and full covariance are learnt; their divergence from a prior is kept small. The result
    is the mean over the annotators. A. Schmidt, P. Morales-Alvarez, R. Molina, "Probabilistic
    modeling of inter- and intra-observer variability in medical image segmentation", ICCV 2023; the
    defaults are those of the authors' code.

    Args:
        latent_dim: length L of a latent vector.
        train_samples: draws of z for each annotator and image in training.
        samples: draws of z for each annotator in evaluation; the same ones every time.
        kl_weight: weight of the divergence from the prior.
        latent_rate: learning rate of the distributions; the optimizer's is for the rest.

    Example:
        >>> module = Pionono(["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1))
        >>> module.annotator_distributions().covariance_matrix.shape
        torch.Size([2, 8, 8])
    """

    def __init__(
        self,
        annotators: Names,
        classes: Names,
        latent_dim: int = 8,
        train_samples: int = 5,
        samples: int = 20,
        kl_weight: float = 5e-4,
        latent_rate: float = 0.02,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(annotators, classes, **options)
        counts = {"latent_dim": latent_dim, "train_samples": train_samples, "samples": samples}
        _check_positive(counts)
        self.save_hyperparameters({**counts, "kl_weight": kl_weight, "latent_rate": latent_rate})
        self.weights = {"kl": kl_weight}
        self.train_samples, self.samples, self.latent_rate = train_samples, samples, latent_rate
        self.network = DenseNetwork(**self.backbone)
        self.head = LatentHead(self.network.channels, latent_dim, len(self.classes))
        self.mean = nn.Parameter(START_SIGMA * torch.randn(len(self.annotators), latent_dim))
        # Below the diagonal the factor of the covariance, on it the logarithm of the factor.
        start = math.log(PRIOR_SIGMA) * torch.eye(latent_dim)
        self.factor = nn.Parameter(start.repeat(len(self.annotators), 1, 1))

    def annotator_distributions(self) -> MultivariateNormal:
        """q(z | n) of all annotators."""
        factor = self.factor.float()
        scale = factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=1, dim2=2).exp())
        return MultivariateNormal(self.mean.float(), scale_tril=scale, validate_args=False)

    def divergence(self) -> Tensor:
        """KL(q(z | n) || prior) of each annotator, ``[N]``."""
        annotators = self.annotator_distributions()
        zero = torch.zeros_like(annotators.loc)
        scale = PRIOR_SIGMA * torch.eye(zero.shape[1]).to(zero)
        prior = MultivariateNormal(zero, scale_tril=scale, validate_args=False)
        return kl_divergence(annotators, prior)

    def forward(self, images: Tensor) -> ModelOutput:
        """The mean over draws of each annotator's prediction, and the mean of these."""
        training, evaluation = (self.train_samples, len(images), None), (self.samples, 1, 0)
        draws, drawn_for, seed = training if self.training else evaluation
        annotators = self.annotator_distributions()
        standard = noise(draws, drawn_for, *self.mean.shape, like=self.mean, seed=seed)
        spread = torch.einsum("nij,sbnj->sbni", annotators.scale_tril, standard)
        latents = (annotators.loc + spread).to(self.mean.dtype)
        drawn = self.head(self.network.features(images), latents)
        return ModelOutput.weighing_all_alike(reduce(torch.logaddexp, drawn) - math.log(draws))

    def terms(self, batch: Batch) -> Terms:
        """``annotator``, and the mean divergence ``kl``."""
        return {**super().terms(batch), "kl": self.divergence().mean()}

    def _optimized(self) -> list[Any]:
        """The distributions have a learning rate of their own and no weight decay."""
        latent = [self.mean, self.factor]
        rest = [p for p in super()._optimized() if all(p is not other for other in latent)]
        return [{"params": rest}, {"params": latent, "lr": self.latent_rate, "weight_decay": 0.0}]


class ProbabilisticUNet(Baseline):
    """p(y | features, z) with z ~ prior(z | image); the result is the mean over draws of z.

    In training, z comes from a posterior net, which sees the image and the labels of one annotator,
    drawn anew at each step. The prior net sees the image alone and learns to give the same
    distribution: loss = segmentation + beta KL(posterior || prior), both per pixel. S. Kohl and
    others, "A probabilistic U-Net for segmentation of ambiguous images", NeurIPS 2018.

    Args:
        latent_dim: length L of a latent vector.
        samples: draws of z in evaluation; the same ones every time.
        kl_weight: beta.

    Example:
        >>> names = ["Ana", "Ben"], ["background", "cell"]
        >>> module = ProbabilisticUNet(*names, network=nn.Conv2d(3, 4, 1))
        >>> module.sample(torch.randn(1, 3, 8, 8), samples=5).shape
        torch.Size([1, 5, 2, 8, 8])
    """

    named = False
    needs_reference = "names no annotator, so only a reference can choose its checkpoints"

    def __init__(
        self,
        annotators: Names,
        classes: Names,
        latent_dim: int = 6,
        samples: int = 16,
        kl_weight: float = 10.0,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(annotators, classes, **options)
        counts = {"latent_dim": latent_dim, "samples": samples}
        _check_positive(counts)
        self.save_hyperparameters({**counts, "kl_weight": kl_weight})
        self.weights, self.samples = {"kl": kl_weight}, samples
        self.network = DenseNetwork(**self.backbone)
        self.head = LatentHead(self.network.channels, latent_dim, len(self.classes))
        channels = self.backbone["in_channels"]
        self.prior = GaussianEncoder(channels, latent_dim)
        self.posterior = GaussianEncoder(channels + len(self.classes), latent_dim)

    def forward(self, images: Tensor) -> ModelOutput:
        """Samples and their mean."""
        drawn = self._drawn(images, self.samples, seed=None if self.training else 0)
        even = torch.zeros_like(drawn[:, :, 0]).log_softmax(dim=1)
        mean = (drawn + even.unsqueeze(2)).logsumexp(dim=1)
        return ModelOutput(mean, drawn[:, :0], even[:, :0], log_samples=drawn)

    @torch.no_grad()
    def sample(self, images: Tensor, samples: int | None = None, seed: int = 0) -> Tensor:
        """Probabilities ``[B, S, C, H, W]`` of S draws, by default as many as in evaluation."""
        with evaluating(self):
            return self._drawn(images, samples or self.samples, seed).exp()

    def _drawn(self, images: Tensor, samples: int, seed: int | None) -> Tensor:
        """Log of samples ``[B, S, C, H, W]``."""
        prior = self.prior(images)
        standard = noise(samples, 1, 1, prior.loc.shape[1], like=prior.loc, seed=seed)
        latents = prior.loc[:, None] + prior.scale[:, None] * standard
        drawn = self.head(self.network.features(images), latents.to(images.dtype))
        return torch.cat(list(drawn), dim=1)

    def terms(self, batch: Batch) -> Terms:
        """The labels of one annotator per image, ``drawn`` again, and ``kl``, both per pixel."""
        images, labels = batch["image"], _of_one_each(batch["masks"], batch["present"])
        known, count = labels != IGNORE_INDEX, len(self.classes)
        # A plane for each class; all are 0 where nothing is labelled.
        planes = F.one_hot(labels.where(known, 0), count).movedim(-1, 1) * known[:, None]
        posterior = self.posterior(torch.cat([images, planes.to(images.dtype)], dim=1))
        latents = posterior.rsample().to(images.dtype)[None, :, None]
        (drawn,) = self.head(self.network.features(images), latents)
        labelled = known.flatten(1).any(dim=1)
        divergence = kl_divergence(posterior, self.prior(images)).sum(dim=1) * labelled
        return {
            "drawn": self.loss.between(drawn, labels.unsqueeze(1)),
            "kl": divergence.sum() / labelled.sum().clamp_min(1) / labels[0].numel(),
        }

    def common_terms(self, batch: Batch, output: ModelOutput, reference: Tensor | None) -> Terms:
        """In evaluation: the mean of the samples against each annotator's mask."""
        masks = batch["masks"]
        everyone = output.log_probs.unsqueeze(1).expand(-1, masks.shape[1], -1, -1, -1)
        return {"annotator": self.loss.between(everyone, masks)}


class LatentHead(nn.Module):
    """Reads features and a latent vector together, by three 1x1 convolutions, as in both papers.

    There the vector is repeated at every pixel and joined to the features. The part of a
    1x1 convolution that sees the vector is then the same at every pixel: a bias. So the features
    are read once for any number of vectors.
    """

    def __init__(self, channels: int, latent_dim: int, classes: int) -> None:
        super().__init__()
        self.of_features = nn.Conv2d(channels, channels, 1)
        self.of_latent = nn.Linear(latent_dim, channels, bias=False)
        hidden, last = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, classes, 1)
        self.rest = nn.Sequential(nn.ReLU(), hidden, nn.ReLU(), last)
        _start(self.of_features, hidden, last)
        # Both together are one convolution, of so many inputs.
        for layer in (self.of_features, self.of_latent):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (channels + latent_dim)))

    def forward(self, features: Tensor, latents: Tensor) -> Iterator[Tensor]:
        """Log of probabilities ``[B, M, C, H, W]`` S times, for vectors ``[S, 1 or B, M, L]``.

        One set of M at a time: without gradients only its hidden layers are in memory.
        """
        seen = self.of_features(features).unsqueeze(1)
        for part in latents:
            hidden = seen + self.of_latent(part)[..., None, None]
            logits: Tensor = self.rest(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
            yield logits.float().log_softmax(dim=2)


class GaussianEncoder(nn.Module):
    """From images ``[B, ch, H, W]`` to normal distributions of latent vectors ``[B, L]``."""

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        convs = []
        for before, width in zip((channels, *WIDTHS), WIDTHS, strict=False):
            convs.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            convs.append(nn.Conv2d(width, width, 3, padding=1))
        _start(*convs)
        self.layers = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.parameters_of = nn.Linear(WIDTHS[-1], 2 * latent_dim)

    def forward(self, images: Tensor) -> Normal:
        """With a diagonal covariance."""
        pooled = self.layers(images).mean(dim=(2, 3))
        mean, log_sigma = self.parameters_of(pooled).float().chunk(2, dim=1)
        return Normal(mean, log_sigma.clamp(-LOG_SIGMA, LOG_SIGMA).exp(), validate_args=False)


def noise(*shape: int, like: Tensor, seed: int | None) -> Tensor:
    """Standard normal noise in float32; a seed leaves the process's own random state as it is."""
    if seed is None:
        return torch.randn(shape, device=like.device, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like.device)


def _start(*layers: nn.Conv2d) -> None:
    """Weights for layers before a ReLU (He and others, ICCV 2015), and no bias."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_positive(counts: Mapping[str, int]) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")


def _of_one_each(masks: Tensor, present: Tensor) -> Tensor:
    """Labels ``[B, H, W]`` of one annotator an image, drawn from those present."""
    nobody = ~present.any(dim=1, keepdim=True)
    who = torch.multinomial((present | nobody).float(), 1)
    return masks.gather(1, who[..., None, None].expand(-1, 1, *masks.shape[2:])).squeeze(1)
