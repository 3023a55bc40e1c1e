"""Whether a training time has passed: by the multiples of it that lie between two checkpoints."""

from __future__ import annotations

from fractions import Fraction
from math import floor

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import UsageError
from ema_cli.law.time import Time
from ema_cli.watching.moments import Moment
from ema_cli.watching.past import Past, time_of


def is_due(every: Time | None, moment: Moment, shown: Time) -> bool:
    """Return whether the averages of a moment are to be written, where those of the clock `shown` are.

    Raises:
        UsageError: where a checkpoint records no clock in the unit of `every`.
    """
    if every is None:
        return True
    before = [past for past in moment.journal.folded if time_of(past, moment.journal.unit) == shown]
    return not before or _passed(moment.newest, every) > _passed(before[0], every)


def is_kept(every: Time | None, before: Moment | None, checkpoint: Checkpoint) -> bool:
    """Return whether the moment of a checkpoint stays, after the one before it.

    Raises:
        UsageError: where a checkpoint records no clock in the unit of `every`.
    """
    if every is None:
        return False
    return _passed(checkpoint, every) > (0 if before is None else _passed(before.newest, every))


def _passed(checkpoint: Past | Checkpoint, every: Time) -> int:
    clock = checkpoint.clock(every.unit)
    if clock is None:
        raise UsageError(f"{checkpoint.name} records no clock in {every.unit.plural}: '{every}' cannot be counted")
    return floor(clock / Fraction(every.value))
