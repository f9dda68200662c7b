"""Pionono: each annotator is a distribution over latent vectors."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from tax_lightning.baselines.baseline import Baseline
from tax_lightning.baselines.latent import LatentHead, noise
from tax_lightning.batch import Batch
from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.output import ModelOutput


class Pionono(Baseline):
    """A shared network whose head also reads a latent vector, drawn for each annotator.

    Annotator n is a normal distribution q(z | n) with a mean and a full covariance of its own. What
    n would draw is the expected probability over draws of z. Distributions are learnt with the
    network, and held near a prior by the divergence from it.

    Args:
        annotators: names, in the order of the N axis of ``"masks"``.
        classes: names, in the order of class ids; the first is the background.
        latent_dim: length of a latent vector.
        head_layers: number of 1x1 convolutions in the head, at least 2.
        train_samples: draws of z for each annotator and image in training.
        samples: draws of z for each annotator in evaluation; the same ones every time.
        kl_weight: weight of the divergence of the distributions from the prior.
        prior_sigma: standard deviation of the prior, which has the mean 0.
        start_sigma: standard deviation of the distributions' means at the start.
        latent_rate: learning rate of the distributions; that of the rest is the optimizer's.
        options: as of :class:`~tax_lightning.baselines.baseline.Baseline`.

    Example:
        >>> module = Pionono(
        ...     ["Ana", "Ben"], ["background", "cell"], network=nn.Conv2d(3, 4, 1)
        ... )
        >>> module.predict(torch.randn(1, 3, 8, 8), annotator="Ben").shape
        torch.Size([1, 2, 8, 8])

    Source:
        A. Schmidt, P. Morales-Alvarez, R. Molina, "Probabilistic modeling of inter- and
        intra-observer variability in medical image segmentation", ICCV 2023; numbers are those of
        the authors' configuration, whose loss too is that of the expected probability. Departures:
        where nobody is named, the result is the mean over the annotators, not a "gold" annotator
        whom one must choose; the divergence is that of all annotators at each step; what the
        weights of the head decay by is the optimizer's matter.
    """

    def __init__(
        self,
        annotators: Sequence[str],
        classes: Sequence[str],
        latent_dim: int = 8,
        head_layers: int = 3,
        train_samples: int = 5,
        samples: int = 20,
        kl_weight: float = 5e-4,
        prior_sigma: float = 2.0,
        start_sigma: float = 8.0,
        latent_rate: float = 0.02,
        **options: Any,  # noqa: ANN401 - of Baseline
    ) -> None:
        super().__init__(annotators, classes, **options)
        settings: dict[str, Any] = {
            "latent_dim": latent_dim,
            "train_samples": train_samples,
            "samples": samples,
            "prior_sigma": prior_sigma,
        }
        for name, value in settings.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: expected more than 0.")
        self.save_hyperparameters(
            {
                **settings,
                "head_layers": head_layers,
                "kl_weight": kl_weight,
                "start_sigma": start_sigma,
                "latent_rate": latent_rate,
            }
        )
        self.weights = {"kl": kl_weight}
        self.train_samples, self.samples = train_samples, samples
        self.prior_sigma = prior_sigma
        self.latent_rate = latent_rate
        self.network = DenseNetwork(**self.backbone)
        self.head = LatentHead(self.network.channels, latent_dim, len(self.classes), head_layers)
        count = len(self.annotators)
        self.mean = nn.Parameter(start_sigma * torch.randn(count, latent_dim))
        # Below the diagonal the factor of the covariance, on it the logarithm of that.
        log_sigma = math.log(prior_sigma) * torch.eye(latent_dim)
        self.factor = nn.Parameter(log_sigma.repeat(count, 1, 1))

    def annotator_distributions(self) -> MultivariateNormal:
        """q(z | n) of all annotators."""
        factor = self.factor.float()
        diagonal = torch.diag_embed(factor.diagonal(dim1=1, dim2=2).exp())
        return MultivariateNormal(
            self.mean.float(), scale_tril=factor.tril(-1) + diagonal, validate_args=False
        )

    def divergence(self) -> Tensor:
        """KL of each annotator's distribution from the prior, ``[N]``."""
        annotators = self.annotator_distributions()
        prior = MultivariateNormal(
            torch.zeros_like(annotators.loc),
            scale_tril=self.prior_sigma * torch.eye(self.mean.shape[1]).to(annotators.loc),
            validate_args=False,
        )
        return kl_divergence(annotators, prior)

    def forward(self, images: Tensor) -> ModelOutput:
        """What each annotator would draw on average, and the mean of that."""
        if self.training:
            draws, drawn_for, seed = self.train_samples, len(images), None
        else:
            draws, drawn_for, seed = self.samples, 1, 0
        annotators = self.annotator_distributions()
        standard = noise(draws, drawn_for, *self.mean.shape, like=self.mean, seed=seed)
        spread = torch.einsum("nij,sbnj->sbni", annotators.scale_tril, standard)
        latents = (annotators.loc + spread).to(self.mean.dtype)
        drawn = self.head(self.network.features(images), latents)
        own = reduce(torch.logaddexp, drawn) - math.log(draws)
        return ModelOutput.weighing_all_alike(own)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """What each would draw against what each drew, and the mean divergence."""
        return {**super().terms(batch), "kl": self.divergence().mean()}

    def _optimized(self) -> list[Any]:
        """The distributions have a learning rate of their own and do not decay."""
        latent = [self.mean, self.factor]
        ids = {id(parameter) for parameter in latent}
        rest = [parameter for parameter in super()._optimized() if id(parameter) not in ids]
        own = {"params": latent, "lr": self.latent_rate, "weight_decay": 0.0}
        return [{"params": rest}, own]
