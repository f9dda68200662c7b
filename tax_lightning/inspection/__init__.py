"""Inspection of a data set before training: what is in it, and what to look at first."""

from tax_lightning.inspection.report import inspect

__all__ = ["inspect"]
