"""When in a training run the prototypes are started, projected and frozen."""

from dataclasses import dataclass
from typing import Literal

Event = Literal["start", "trial", "final"]


@dataclass(frozen=True)
class Schedule:
    """The course of a training run, in shares of its optimizer steps.

    Until ``start`` only the segmentation terms are trained, so that features form. Then the
    prototypes are started at clusters of those features and the other terms grow to their full
    weight until ``full``. At the trial projections each prototype moves onto its nearest training
    pixel and training goes on. At ``final`` the prototypes become training pixels for good and
    everything but the kernels is frozen; these are fitted to the end and calibrated.

    Args:
        enabled: ``False`` trains all terms at full weight throughout and never projects: who is
            learnt, but no prototype can name its training patch. After a projection by hand only
            the kernels are trained.
        start: share of the run at which the prototypes are started.
        full: share at which all terms have their full weight.
        trials: shares of the trial projections.
        final: share of the final projection. Where it is below 1, kernels are trained for the rest
            of the run, which undoes the calibration in part.

    Raises:
        ValueError: if the shares are not in rising order within [0, 1].

    Example:
        >>> schedule = Schedule(start=0.1, full=0.3)
        >>> [round(schedule.ramp(share), 2) for share in (0.05, 0.1, 0.2, 0.5)]
        [0.0, 0.0, 0.5, 1.0]
        >>> schedule.due(0.65, done=["start"])
        [('trial 1', 'trial')]
    """

    enabled: bool = True
    start: float = 0.1
    full: float = 0.3
    trials: tuple[float, ...] = (0.6, 0.7)
    final: float = 1.0

    def __post_init__(self) -> None:
        shares = (0.0, self.start, self.full, *self.trials, self.final, 1.0)
        if list(shares) != sorted(shares):
            raise ValueError(
                f"schedule: start={self.start}, full={self.full}, trials={self.trials}, "
                f"final={self.final}: expected shares of the run in rising order between 0 and 1."
            )

    def ramp(self, progress: float) -> float:
        """Weight factor in [0, 1] of the terms beside the segmentation terms."""
        if not self.enabled or progress >= self.full:
            return 1.0
        if progress <= self.start:
            return 0.0
        return (progress - self.start) / (self.full - self.start)

    def due(self, progress: float, done: list[str]) -> list[tuple[str, Event]]:
        """Events reached and not in ``done``, as (name, kind), in order."""
        if not self.enabled:
            return []
        plan: list[tuple[float, str, Event]] = [(self.start, "start", "start")]
        plan += [(share, f"trial {i}", "trial") for i, share in enumerate(self.trials, start=1)]
        plan += [(self.final, "final", "final")]
        return [
            (name, kind) for share, name, kind in plan if share <= progress and name not in done
        ]
