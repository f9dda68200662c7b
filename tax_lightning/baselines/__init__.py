"""Methods to compare TAX with, on equal terms: same batch, backbone, metrics and command line."""

from tax_lightning.baselines.baseline import Baseline
from tax_lightning.baselines.confusion import ConfusionGlobal, ConfusionPixel
from tax_lightning.baselines.latent import Pionono, ProbabilisticUNet
from tax_lightning.baselines.networks import (
    Consensus,
    GatedMultiHead,
    MultiHead,
    RandomRater,
    Separate,
    SoftVote,
)

__all__ = [
    "Baseline",
    "ConfusionGlobal",
    "ConfusionPixel",
    "Consensus",
    "GatedMultiHead",
    "MultiHead",
    "Pionono",
    "ProbabilisticUNet",
    "RandomRater",
    "Separate",
    "SoftVote",
]
