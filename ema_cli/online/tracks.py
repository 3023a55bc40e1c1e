"""The averages that are kept of a live model: the laws that a caller gives, by name, and their update events."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.kinds import as_number
from ema_cli.law.events import Gap
from ema_cli.law.exponential import Smoothing
from ema_cli.law.law import LiveLaw
from ema_cli.law.laws import half_life_law
from ema_cli.law.power import Power
from ema_cli.law.recipe import Recipe
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import EVERY, Time, Unit, as_time

_LEAST_SHARE = 2.0**-20  # of a difference at one update; float32 rounds smaller shares away
_DEFAULT_HALF_LIFE = "1000ba"  # Composer's
_DEFAULT_INTERVAL = "1ba"  # for laws without a unit

Times = str | Time | Sequence[str | Time]
Numbers = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Tracks:
    """The laws of the averages of one model, by name (`25ba`, `smoothing-0.99`, `power-0.1`), and their schedule.

    `interval`: the time between update events; None: every update is one. `unit`: the unit of the clock that counts.
    """

    laws: dict[str, LiveLaw]
    interval: Time | None
    start: Time
    unit: Unit


def parse_tracks(
    half_life: Times | None,
    smoothing: Numbers | None,
    start: str | Time,
    update_interval: str | Time | None,
    sigma_rel: Numbers | None,
) -> Tracks:
    """Parse the arguments of `EMA`; without any, return one average with Composer's half-life.

    Args:
        half_life, smoothing, sigma_rel: at most one of the three; a sequence makes several averages.
        start: the clock at which the averages begin.
        update_interval: the time between update events, or `every`.

    Raises:
        UsageError: for values or combinations that make no sense.
    """
    if sum(argument is not None for argument in (half_life, smoothing, sigma_rel)) > 1:
        raise UsageError("only one of half_life, smoothing and sigma_rel can be given")
    first = as_time(start, "ema_start")
    if first.value == math.inf:
        raise UsageError("infinity leaves nothing to average", option="ema_start", hint="give a clock, as 1000ba")
    interval = update_interval if update_interval in (None, EVERY) else as_time(update_interval, "update_interval")
    laws = _laws(half_life, smoothing, sigma_rel, first)
    names = [law.name for law in laws]
    if not laws or len(set(names)) < len(laws):
        raise UsageError("give each average once, and at least one")
    recipes = [Recipe(law, update_interval=interval or (None if law.unit else _DEFAULT_INTERVAL)) for law in laws]
    units = {recipe.unit or Unit.BATCH for recipe in recipes}
    if len(units) > 1:
        raise UsageError("the units of several must agree", option="half_life", hint='as half_life=("25ba", "100ba")')
    intervals = {recipe.interval for recipe in recipes}
    if len(intervals) > 1:
        raise UsageError(
            "below one unit every update counts, above it one in each unit",
            option="half_life",
            hint='say which for all of them: update_interval="1ba", or "every"',
        )
    tracks = Tracks(dict(zip(names, laws, strict=True)), intervals.pop(), first, units.pop())
    _warn_of_tiny_shares(tracks)
    return tracks


def _laws(half_life: Times | None, smoothing: Numbers | None, sigma_rel: Numbers | None, start: Time) -> list[LiveLaw]:
    if smoothing is not None:
        return [Smoothing(share) for share in _numbers(smoothing, "smoothing")]
    if sigma_rel is not None:
        return [Power(width) for width in _numbers(sigma_rel, "sigma_rel")]
    half_life = _DEFAULT_HALF_LIFE if half_life is None else half_life
    several = half_life if isinstance(half_life, Sequence) and not isinstance(half_life, str) else [half_life]
    laws = [half_life_law(value) for value in several]
    return [law.begun_at(start) if isinstance(law, RelativeHalfLife) else law for law in laws]


def _warn_of_tiny_shares(tracks: Tracks) -> None:
    """Warn of averages that hardly move, because float32 rounds so small a share of a difference away."""
    if tracks.interval is None or tracks.unit is not Unit.BATCH:
        return  # many samples or tokens pass between two updates, so the share is not known here
    interval = Fraction(tracks.interval.value)
    for name, law in tracks.laws.items():
        share = law.share(Gap(interval, 1, interval), interval)
        if 0 < share < _LEAST_SHARE:
            warnings.warn(
                f"the average {name} moves by {share:.1g} of a difference at an update, which float32 rounds away: "
                "give a longer update_interval",
                stacklevel=2,
            )


def _numbers(value: Numbers, option: str) -> list[float]:
    numbers = list(value) if isinstance(value, Sequence) else [value]
    if not all(isinstance(number, int | float) for number in numbers):
        raise UsageError(f"{value!r} is no number", option=option, hint="as smoothing=0.99, or sigma_rel=(0.05, 0.10)")
    return [as_number(number, option) for number in numbers]
