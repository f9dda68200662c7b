"""From a model's explanation in tensors to pictures and pages that a person can read."""

from tax_lightning.palette import annotator_palette
from tax_lightning.visualization.annotations import read_patches
from tax_lightning.visualization.gallery import PrototypeCard, render_card, render_gallery
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.report import write_report

__all__ = [
    "PrototypeCard",
    "annotator_palette",
    "read_patches",
    "render_card",
    "render_gallery",
    "render_panel",
    "write_report",
]
