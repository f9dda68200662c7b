"""Lightning callbacks: pictures of explanations, predictions on disk, checkpoints with reasons."""

from tax_lightning.callbacks.checkpoint import ExplainedCheckpoint
from tax_lightning.callbacks.explanation_logger import ExplanationLogger
from tax_lightning.callbacks.prediction_writer import PredictionWriter
from tax_lightning.callbacks.trackers import send_picture
from tax_lightning.visualization.annotations import read_source_patches

__all__ = [
    "ExplainedCheckpoint",
    "ExplanationLogger",
    "PredictionWriter",
    "read_source_patches",
    "send_picture",
]
