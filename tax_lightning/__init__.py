"""Multi-annotator semantic segmentation that explains itself: who decides, and why."""

__version__ = "0.1.0"
