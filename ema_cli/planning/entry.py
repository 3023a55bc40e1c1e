"""A checkpoint in a plan: one that enters, with its weight, or one that does not, with the reason."""

from __future__ import annotations

from fractions import Fraction

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time

COUNTED = "order of names"  # where a clock is from that nobody recorded: it counts the checkpoints


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint that enters.

    `clock` is in the plan's unit; `gap` is the distance to the checkpoint folded before it, in training time or, with a
    smoothing, in updates; `weight` is its share in the average, negative by some laws and of some stored averages.
    """

    checkpoint: Checkpoint
    clock: Time
    gap: Fraction
    weight: float

    @property
    def has_clock(self) -> bool:
        """Return whether the clock says when the checkpoint was saved; else the checkpoints were only counted."""
        clock = self.checkpoint.progress.clocks.get(self.clock.unit)
        return clock is None or clock.source != COUNTED


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that does not enter, and why; `between_updates`: it would, if each checkpoint were an update."""

    checkpoint: Checkpoint
    reason: str
    between_updates: bool = False
