"""What a watch cannot go on with, and what to do: with the options that it has."""

from __future__ import annotations

from fractions import Fraction
from glob import escape
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import NonFiniteError, RunError, option
from ema_cli.law.time import Time, Unit
from ema_cli.watching.asked import Asked
from ema_cli.watching.moments import Moment, moments_in
from ema_cli.watching.past import Past, time_of


def other_contents(asked: Asked, checkpoint: Checkpoint, known: Past, unit: Unit) -> RunError:
    """Return the error for a checkpoint at a clock at which another one was folded."""
    clock = time_of(checkpoint, unit)
    what = "skipped" if known.skipped is not None else "folded"
    return RunError(
        f"is at {clock}, where {known.name} was {what}, and has other contents: the training was resumed, or it is "
        "another one",
        subject=checkpoint.path,
        hint=_way_back(asked, checkpoint, clock),
    )


def goes_back(asked: Asked, checkpoint: Checkpoint, moment: Moment, unit: Unit) -> RunError:
    """Return the error for a checkpoint with a clock that was passed."""
    clock = time_of(checkpoint, unit)
    return RunError(
        f"is at {clock}, but the averages are at {moment.clock}: the training was resumed from an earlier point",
        subject=checkpoint.path,
        hint=_way_back(asked, checkpoint, clock),
    )


def _way_back(asked: Asked, checkpoint: Checkpoint, clock: Time) -> str:
    clocks = [Time.parse(path.name) for path in moments_in(asked.folder)]
    kept = [one for one in clocks if Fraction(one.value) < Fraction(clock.value)]
    anew = f"begin anew with another {option('o')}"
    leave_out = f"leave it out: {option('exclude', escape(checkpoint.name))}"
    if kept:
        return (
            f"go back to a moment that is kept, before it was resumed: {option('restart_from', str(kept[-1]))}; "
            f"or {anew}; or {leave_out}"
        )
    return f"{anew}, or {leave_out}; next time {option('store_every')} keeps moments to go back to"


def no_clock(path: Path) -> RunError:
    """Return the error for a run, or a checkpoint, that records no clock: a watch can count no checkpoints instead."""
    return RunError(
        "records no clock: nobody knows what is new",
        subject=path,
        hint=f"say where clocks are: {option('name_clock', 'ba')}, or {option('clock_key', 'step=ba')}",
    )


def not_finite(error: NonFiniteError, checkpoint: Checkpoint) -> NonFiniteError:
    """Return the error for a value that is not finite in a checkpoint, or in what was folded before it."""
    leave_out = f"leave it out with {option('exclude', escape(checkpoint.name))}"
    if error.subject == checkpoint.path:
        return NonFiniteError(error.fact, subject=checkpoint.path, hint=leave_out)
    return NonFiniteError(
        f"{error.fact} of the averages so far, but is here: it must be infinite in all checkpoints, or in none",
        subject=checkpoint.path,
        hint=f"{leave_out}; or begin anew with another {option('o')}, and leave out those before it",
    )
