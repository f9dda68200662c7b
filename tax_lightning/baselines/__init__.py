"""What one would use otherwise, on equal terms: same batch, backbone, metrics and command line."""

from tax_lightning.baselines.baseline import Baseline
from tax_lightning.baselines.confusion import ConfusionGlobal, ConfusionPixel
from tax_lightning.baselines.consensus import Consensus
from tax_lightning.baselines.multi_head import GatedMultiHead, MultiHead
from tax_lightning.baselines.pionono import Pionono
from tax_lightning.baselines.probabilistic_unet import ProbabilisticUNet
from tax_lightning.baselines.separate import Separate

__all__ = [
    "Baseline",
    "ConfusionGlobal",
    "ConfusionPixel",
    "Consensus",
    "GatedMultiHead",
    "MultiHead",
    "Pionono",
    "ProbabilisticUNet",
    "Separate",
]
