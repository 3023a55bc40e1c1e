"""What there is to say of a series of stored averages: at which clocks nothing comes near to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.law.live import NEAR_ENOUGH
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import Series
from ema_cli.runs.stored import StoredRun
from ema_cli.text import some


def out_of_reach_notes(
    stored: StoredRun, recipes: Sequence[Recipe], series: Series, plans: Sequence[Plan]
) -> list[str]:
    """Return a note for each recipe of which a series has no average at some clocks, as what is stored is too far off.

    Args:
        stored: the averages.
        recipes: what is asked for at each clock.
        series: at which clocks.
        plans: those that were made.
    """
    clock_of = {average.checkpoint: average.clock for average in stored.averages if average.law is not None}
    clocks = list(dict.fromkeys(clock_of[end] for end in series.ends(stored.run) if end in clock_of))
    notes = []
    for recipe in recipes:
        reached = {plan.entries[-1].clock for plan in plans if plan.recipe.law == recipe.law}
        missed = [
            str(clock)
            for clock in clocks
            if clock not in reached and (recipe.stop is None or clock.value <= recipe.stop.value)
        ]
        if missed:
            notes.append(
                f"no average of {recipe.law.words().short} at {some(missed)}: what is stored is more than "
                f"{NEAR_ENOUGH:.0%} off there; to take the nearest, allow what is approximate"
            )
    return notes
