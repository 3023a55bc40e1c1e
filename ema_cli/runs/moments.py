"""Compare the moments of two checkpoints, before the clocks of their run are settled."""

from __future__ import annotations

import re
from fractions import Fraction

from ema_cli.checkpoint import Checkpoint
from ema_cli.formats.trainers.names import name_clocks, stem
from ema_cli.law.time import Unit


def known_clocks(checkpoint: Checkpoint) -> dict[Unit, Fraction]:
    """Return the clocks of a checkpoint before those of the run are settled: recorded ones, else those of its name."""
    clocks = {**name_clocks(checkpoint.name).clocks, **checkpoint.progress.clocks}
    return {unit: clock.value for unit, clock in clocks.items()}


def _clock_pairs(one: Checkpoint, other: Checkpoint) -> list[tuple[Fraction, Fraction]]:
    """Return the clocks of two checkpoints in each unit that both have."""
    mine, theirs = known_clocks(one), known_clocks(other)
    return [(mine[unit], theirs[unit]) for unit in mine.keys() & theirs.keys()]


def is_partner(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints are of one moment by their clocks or, without clocks, by their numbers."""
    return at_one_clock(one, other) or _at_one_number(one, other)


def at_one_clock(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints have clocks, and those that both have are equal."""
    pairs = _clock_pairs(one, other)
    return bool(pairs) and all(mine == theirs for mine, theirs in pairs)


def _at_one_number(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether neither has a clock and both names end with one number: model000010.pt, ema_0.9999_000010.pt."""
    if known_clocks(one) or known_clocks(other):
        return False
    ends = [re.findall("[0-9]+", stem(checkpoint.name))[-1:] for checkpoint in (one, other)]
    return bool(ends[0]) and ends[0] == ends[1]


def is_older(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether one is the older by each clock that both have."""
    pairs = _clock_pairs(one, other)
    return bool(pairs) and all(mine < theirs for mine, theirs in pairs)
