"""The Lightning modules of the method, and what happens around training."""

from tax_lightning.modules.add_annotators import AddedAnnotators
from tax_lightning.modules.base import MultiAnnotatorModule
from tax_lightning.modules.schedule import Schedule
from tax_lightning.modules.tax import TAXLightningModule

__all__ = ["AddedAnnotators", "MultiAnnotatorModule", "Schedule", "TAXLightningModule"]
