"""Order the checkpoints of a run by their clocks, and notice where one of the clocks goes back.

A run that was resumed with other data goes on in batches and back in epochs; one whose steps begin again in each epoch
does the opposite. One unit orders such a run, and the other is of no use where it goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import groupby, pairwise

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time, Unit
from ema_cli.runs.entering import preference
from ema_cli.text import natural_key, plural

PREFERENCE = (Unit.BATCH, Unit.TOKEN, Unit.SAMPLE, Unit.EPOCH)  # the unit that orders a run best comes first


@dataclass(frozen=True, slots=True)
class Fall:
    """Two neighbours in a run of which the newer is the earlier one by another unit than the run is ordered by."""

    older: Checkpoint
    newer: Checkpoint
    unit: Unit

    def words(self, leading: Unit) -> str:
        """Return the contradiction as the rest of a sentence about the newer one."""
        before, after = (Time(_clock(checkpoint, self.unit), self.unit) for checkpoint in (self.older, self.newer))
        return (
            f"is later than {self.older.name} in {leading.plural}, but earlier in {self.unit.plural}"
            f" ({after} after {before})"
        )


def order_checkpoints(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], tuple[Unit, ...], list[str]]:
    """Return the checkpoints oldest first, the units in which all have clocks, and warnings of clocks that go back.

    The first unit is the one that the order is by. Without any, the order is the natural one of the names.
    """
    units = order_units(checkpoints)
    if not units:
        return tuple(sorted(checkpoints, key=lambda checkpoint: natural_key(checkpoint.name))), (), []
    ordered = _sorted(checkpoints, units)
    if any(falls(ordered, unit) for unit in units):
        leading = _leading(checkpoints, units)
        units = (leading, *(unit for unit in units if unit is not leading))
        ordered = _sorted(checkpoints, units)
    warnings = []
    for unit in units[1:]:
        found = falls(ordered, unit)
        if found:
            more = f", and so {plural(len(found) - 1, 'time')} more" if len(found) > 1 else ""
            warnings.append(
                f"{found[0].newer.name} {found[0].words(units[0])}{more}: the run is ordered by {units[0].plural}"
            )
    return ordered, units, warnings


def order_units(checkpoints: Sequence[Checkpoint]) -> tuple[Unit, ...]:
    """Return the units in which every checkpoint has a clock, the one that orders best first."""
    return tuple(
        unit
        for unit in PREFERENCE
        if checkpoints and all(unit in checkpoint.progress.clocks for checkpoint in checkpoints)
    )


def falls(ordered: Iterable[Checkpoint], unit: Unit) -> list[Fall]:
    """Return where the clock in `unit` goes back in a run that is ordered by another."""
    return [Fall(older, newer, unit) for older, newer in pairwise(ordered) if _clock(older, unit) > _clock(newer, unit)]


def _sorted(checkpoints: Iterable[Checkpoint], units: Sequence[Unit]) -> tuple[Checkpoint, ...]:
    def clocks(checkpoint: Checkpoint) -> list[Fraction]:
        return [_clock(checkpoint, unit) for unit in units]

    moments = (list(moment) for _, moment in groupby(sorted(checkpoints, key=clocks), key=clocks))
    # Of one moment there is mostly one.
    return tuple(one for moment in moments for one in (moment if len(moment) == 1 else sorted(moment, key=preference)))


def _leading(checkpoints: Sequence[Checkpoint], units: tuple[Unit, ...]) -> Unit:
    """Return which of several units that contradict each other orders the run.

    A counter that has one number for several states is not the run's, except that an epoch may hold several. Of the
    others it is the one by which the rest goes back least often.
    """
    states = len({tuple(_clock(checkpoint, unit) for unit in units) for checkpoint in checkpoints})
    able = [
        unit
        for unit in units
        if unit is Unit.EPOCH or len({_clock(checkpoint, unit) for checkpoint in checkpoints}) == states
    ]

    def contradictions(leading: Unit) -> int:
        others = [unit for unit in units if unit is not leading]
        ordered = _sorted(checkpoints, (leading, *others))
        return sum(len(falls(ordered, unit)) for unit in others)

    return min(able or units, key=contradictions)


def _clock(checkpoint: Checkpoint, unit: Unit) -> Fraction:
    return checkpoint.progress.clocks[unit].value
