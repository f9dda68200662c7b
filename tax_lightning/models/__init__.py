"""The networks, in plain PyTorch: backbone, kernel bank, prototypes, and what they say."""

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.network import TAXNetwork
from tax_lightning.models.output import ModelOutput, TAXOutput
from tax_lightning.models.prototypes import PrototypeMemory

__all__ = [
    "DenseNetwork",
    "KernelBank",
    "ModelOutput",
    "PrototypeMemory",
    "TAXNetwork",
    "TAXOutput",
]
