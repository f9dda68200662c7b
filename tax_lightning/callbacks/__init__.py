"""Lightning callbacks: pictures, checkpoints, predictions on disk, scores of single images."""

from tax_lightning.callbacks.checkpoint import ExplainedCheckpoint
from tax_lightning.callbacks.explanation_logger import ExplanationLogger
from tax_lightning.callbacks.image_scores import ImageScores
from tax_lightning.callbacks.interruption import Interruption
from tax_lightning.callbacks.prediction_writer import PredictionWriter

__all__ = [
    "ExplainedCheckpoint",
    "ExplanationLogger",
    "ImageScores",
    "Interruption",
    "PredictionWriter",
]
