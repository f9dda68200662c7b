"""Annotators whose habits are known, over scenes that are drawn or masks of one person."""

from tax_lightning.simulation.annotators import Habit, SimulatedAnnotator, When
from tax_lightning.simulation.simulated import BetaAvailability, SimulatedAnnotatorsDataModule
from tax_lightning.simulation.synthetic import SyntheticDataModule

__all__ = [
    "BetaAvailability",
    "Habit",
    "SimulatedAnnotator",
    "SimulatedAnnotatorsDataModule",
    "SyntheticDataModule",
    "When",
]
