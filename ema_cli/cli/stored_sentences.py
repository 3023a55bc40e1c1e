"""Averages that a training stored, in words: how near one comes, which half-lives they make. No rich."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from ema_cli.errors import EmaError, at_terminal
from ema_cli.law.exponential import HalfLife
from ema_cli.law.live import NEAR_ENOUGH
from ema_cli.law.time import Time
from ema_cli.planning.series import at_the_end
from ema_cli.text import plural

if TYPE_CHECKING:  # each command loads what it shows
    from ema_cli.cli.views import StoredView
    from ema_cli.planning.plan import Approximation, Plan


_MENTIONED = 0.1  # of an error: the share from which on a part of it is named


def how_far(approximation: Approximation, asked: str = "") -> str:
    """Return how far off an average is from what is asked for."""
    rounding, source = approximation.rounding, f" from {asked}" if asked else ""
    rounded = ""
    if rounding is None:
        rounded = " and its rounding, which was not written down when the averages were stored"
    elif rounding >= _MENTIONED * approximation.error:
        rounded = f", of which {rounding:.2%} by rounding"
    return f"{approximation.error:.2%} off{source}{rounded}"


def reach_lines(approximation: Approximation) -> list[str]:
    """Return which half-lives the stored averages make, and how exactly."""
    lines = []
    for within, half_lives in approximation.reach.items():
        ranges = ", ".join(_range(low, high) for low, high in half_lives)
        lines.append(f"Within {within:.0%}: {ranges or 'no half-life'}")
    return lines


def _range(low: Time, high: Time) -> str:
    if low == high:
        return str(low)
    return f"{low} to {high}" if isfinite(high.value) else f"{low} and longer"


def _how_near(plan: Plan | EmaError) -> str:
    if isinstance(plan, EmaError):
        return plan.message(at_terminal)
    if plan.approximation is None:
        return ""
    far = plan.approximation.error > NEAR_ENOUGH
    return how_far(plan.approximation) + ("; to have it, store averages nearer to it, or more often" if far else "")


def stored_lines(stored: StoredView | None, plans: Sequence[Plan]) -> list[str]:
    """Return what else could be averaged: what the training stored, or what it might store the next time."""
    if stored is None:
        return _store_next_time(plans)
    if isinstance(stored.run, EmaError):
        return [f"Stored averages: {stored.run.message(at_terminal)}"]
    first = "" if stored.run.has_first_copy else ", without the first copy"
    return [
        f"Stored averages: {', '.join(stored.run.names)}, at {plural(len(stored.run.clocks), 'clock')} up to "
        f"{stored.run.clocks[-1]}{first} (--from stored)",
        *(f"  {recipe.law.name}: {_how_near(plan)}" for recipe, plan in stored.plans),
    ]


def _store_next_time(plans: Sequence[Plan]) -> list[str]:
    # A heavy first checkpoint is that of a long half-life: stored averages would have it, too.
    sparse = [
        plan for plan in at_the_end(plans) if isinstance(plan.recipe.law, HalfLife) and plan.advice.newest_is_heavy
    ]
    advised = dict.fromkeys(str(half_life) for plan in sparse for half_life in plan.advice.half_lives_to_store)
    if not advised:
        return []
    names = ", ".join(f'"{half_life}"' for half_life in advised)
    every = ', update_interval="every"' if any(plan.recipe.interval is None for plan in sparse) else ""
    return [
        "Checkpoints this far apart cannot make so short a half-life. Averages that the training stores can:",
        f"  ema = EMA(model, half_life=({names}){every}), then ema.store(folder) now and then",
        "How: docs/how-to/half-life-afterwards.md",
    ]
