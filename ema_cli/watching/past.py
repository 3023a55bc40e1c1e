"""Checkpoints that were folded, and may be gone: what is known of each, and stand-ins for them in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time, Unit, format_number


@dataclass(frozen=True, slots=True)
class Past:
    """A checkpoint that was looked at.

    Attributes:
        name: relative to the run's folder.
        clocks: its clocks, each with its source.
        format, trainer: as of a checkpoint.
        fingerprint: tells its contents.
        look: what tells its files from others without reading them, as `look_of` returns it.
        skipped: why it was not folded; None where it was.
    """

    name: str
    clocks: Mapping[Unit, Clock]
    format: str
    trainer: str | None
    fingerprint: str
    look: str
    skipped: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, fingerprint: str, look: str, skipped: str | None = None) -> Past:
        """Return what is known of a checkpoint that is there."""
        return cls(
            checkpoint.name,
            checkpoint.progress.clocks,
            checkpoint.format,
            checkpoint.trainer,
            fingerprint,
            look,
            skipped,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        clocks = {str(unit): [str(clock.value), clock.source] for unit, clock in self.clocks.items()}
        row = {
            "name": self.name,
            "clocks": clocks,
            "format": self.format,
            "trainer": self.trainer,
            "fingerprint": self.fingerprint,
            "look": self.look,
        }
        return row if self.skipped is None else {**row, "skipped": self.skipped}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Past:
        """Read what `to_dict` returned.

        Raises:
            ArithmeticError, ValueError, LookupError, TypeError, AttributeError: where it is nothing of the kind.
        """
        clocks = {Unit(unit): Clock(Fraction(value), str(source)) for unit, (value, source) in row["clocks"].items()}
        trainer, skipped = row["trainer"], row.get("skipped")
        return cls(
            str(row["name"]),
            clocks,
            str(row["format"]),
            None if trainer is None else str(trainer),
            str(row["fingerprint"]),
            str(row["look"]),
            None if skipped is None else str(skipped),
        )

    def named(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return what was read of it elsewhere as this checkpoint: with its name and its clocks."""
        return replace(checkpoint, name=self.name, progress=Progress(self.clocks))

    def clock(self, unit: Unit) -> Fraction | None:
        """Return the clock in a unit, None where it has none."""
        clock = self.clocks.get(unit)
        return None if clock is None else clock.value


def clocks_text(clocks: Mapping[Unit, Clock]) -> dict[str, str]:
    """Return clocks as a stored average has them."""
    return {str(unit): format_number(clock.value) for unit, clock in sorted(clocks.items())}


def time_of(past: Past | Checkpoint, unit: Unit) -> Time:
    """Return a clock that is known to be there."""
    clock = past.clock(unit)
    assert clock is not None
    return Time(clock, unit)
