"""What `watch` says, in sentences for people. No rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ema_cli.text import plural

if TYPE_CHECKING:
    from ema_cli.job import Job
    from ema_cli.law.time import Time
    from ema_cli.watching.telling import Entered, Watched


def entered_line(entered: Entered) -> str:
    """Return what became of a checkpoint."""
    if entered.skipped is not None:
        return f"{entered.clock}: {entered.name} does not enter: {entered.skipped}"
    return f"{entered.clock}: {entered.name} entered, in {entered.seconds:.2f} s"


def refreshed_line(clock: Time, seconds: float, job: Job) -> str:
    """Return what was written."""
    what = plural(len(job.outputs), "average")
    return f"{clock}: {what} written to {job.target.path.as_posix()}, in {seconds:.2f} s"


def waiting_line(clock: Time | None) -> str:
    """Return what a terminal shows while nothing happens."""
    return "waiting for the first checkpoint" if clock is None else f"at {clock}; waiting for the next checkpoint"


def watched_line(watched: Watched) -> str:
    """Return what was done in all."""
    if watched.clock is None:
        return "no checkpoint was there to be averaged, and nothing is written"
    missed = f"; {plural(len(watched.gaps), 'gap')}" if watched.gaps else ""
    return f"at {watched.clock}: {plural(watched.folded, 'checkpoint')} averaged, {len(watched.entered)} now{missed}"
