"""Lightning callbacks: pictures of explanations, predictions on disk, checkpoints with reasons."""

from tax_lightning.callbacks.checkpoint import ExplainedCheckpoint
from tax_lightning.callbacks.explanation_logger import ExplanationLogger
from tax_lightning.callbacks.prediction_writer import PredictionWriter
from tax_lightning.callbacks.source_patches import read_source_patches
from tax_lightning.callbacks.trackers import send_picture

__all__ = [
    "ExplainedCheckpoint",
    "ExplanationLogger",
    "PredictionWriter",
    "read_source_patches",
    "send_picture",
]
