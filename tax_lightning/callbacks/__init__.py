"""Lightning callbacks: pictures of explanations, predictions on disk, checkpoints with reasons."""

from tax_lightning.callbacks.checkpoint import ExplainedCheckpoint
from tax_lightning.callbacks.explanation_logger import ExplanationLogger
from tax_lightning.callbacks.prediction_writer import PredictionWriter

__all__ = ["ExplainedCheckpoint", "ExplanationLogger", "PredictionWriter"]
