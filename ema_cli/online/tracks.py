"""What is averaged how: the laws that a caller asks for, each under a name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ema_cli.errors import UsageError
from ema_cli.law.events import UNIFORM_SIGMA_REL, Gap, HalfLife, Law, Power, Smoothing
from ema_cli.law.recipe import EVERY, Recipe
from ema_cli.law.time import Time, Unit

_LEAST_SHARE = 2.0**-20  # of a difference, at an update
_DEFAULT_HALF_LIFE = "1000ba"  # Composer's

Times = str | Time | Sequence[str | Time]
Numbers = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Tracks:
    """The averages of one model: their laws by name (`25ba`, `smoothing-0.99`, `power-0.1`), and when they are updated.

    `interval` None means that every update is an event. `unit` is that of the clock that counts.
    """

    laws: dict[str, Law]
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
    """Return the averages that are asked for.

    Raises:
        UsageError: for values or combinations that make no sense.
    """
    if sum(each is not None for each in (half_life, smoothing, sigma_rel)) > 1:
        raise UsageError("only one of half_life, smoothing and sigma_rel can be given")
    first = _time(start, "ema_start")
    interval = update_interval if update_interval in (None, EVERY) else _time(update_interval, "update_interval")
    if half_life is None and smoothing is None and sigma_rel is None:
        half_life = _DEFAULT_HALF_LIFE
    if half_life is not None:
        times = [_time(each, "half_life") for each in _several(half_life)]
        recipes = [_recipe(half_life=each, update_interval=interval, start=first) for each in times]
        laws = [(str(each), HalfLife(each.value)) for each in times]
        if not times:
            raise UsageError("half_life: give at least one", hint='as half_life=("25ba", "100ba")')
        unit = times[0].unit
        if any(each.unit is not unit for each in times):
            raise UsageError("half_life: the units of several must agree", hint='as half_life=("25ba", "100ba")')
        intervals = [recipe.interval for recipe in recipes]
        if any(each != intervals[0] for each in intervals):
            raise UsageError(
                "half_life: below one unit every update counts, above it one in each unit",
                hint='say which for all of them: update_interval="1ba", or "every"',
            )
        return _tracks(laws, intervals[0], first, unit)
    every = _time("1ba", "update_interval") if interval is None else interval
    fixed = every if isinstance(every, Time) else None
    unit = fixed.unit if fixed else Unit.BATCH
    _recipe(smoothing=0.0, update_interval=every, start=first)
    if smoothing is not None:
        shares = _numbers(smoothing, "smoothing")
        for share in shares:
            _recipe(smoothing=share, update_interval=every)
        return _tracks([(f"smoothing-{share!r}", Smoothing(share)) for share in shares], fixed, first, unit)
    widths = _numbers(sigma_rel, "sigma_rel")
    if not all(0 < width <= UNIFORM_SIGMA_REL for width in widths):
        raise UsageError("sigma_rel: is above 0 and at most 0.2886", hint="as sigma_rel=(0.05, 0.10)")
    return _tracks([(f"power-{width!r}", Power(width)) for width in widths], fixed, first, unit)


def _warn_of_rest(laws: Sequence[tuple[str, Law]], interval: Time) -> None:
    """Warn of averages that hardly move: so small a part of a difference is rounded away in float32."""
    one = Gap(Fraction(interval.value), 1, Fraction(interval.value))
    for name, law in laws:
        share = law.admitted(one, Fraction(interval.value)) if isinstance(law, HalfLife | Smoothing) else 1.0
        if 0 < share < _LEAST_SHARE:
            warnings.warn(
                f"the average {name} moves by {share:.1g} of a difference at an update, which float32 rounds away: "
                "give a longer update_interval",
                stacklevel=2,
            )


def _tracks(laws: Sequence[tuple[str, Law]], interval: Time | None, start: Time, unit: Unit) -> Tracks:
    if not laws or len(dict(laws)) < len(laws):
        raise UsageError("give each average once, and at least one")
    if interval is not None and unit is Unit.BATCH:  # of samples and tokens many pass from one update to the next
        _warn_of_rest(laws, interval)
    return Tracks(dict(laws), interval, start, unit)


def _several(value: Times) -> list[str | Time]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _numbers(value: Numbers | None, name: str) -> list[float]:
    given = list(value) if isinstance(value, Sequence) else [value]
    if not all(isinstance(each, int | float) for each in given):
        raise UsageError(f"{value!r} is no number", subject=name, hint="as smoothing=0.99, or sigma_rel=(0.05, 0.10)")
    return [float(each) for each in given if each is not None]


def _time(value: object, name: str) -> Time:
    if isinstance(value, Time):
        if not value.value >= 0:
            raise UsageError(f"{value} is not a time", subject=name, hint="write a number and a unit: '50ba'")
        return value
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a time", subject=name, hint="write a number and a unit: '50ba'")
    return Time.parse(value, name)


def _recipe(**asked: object) -> Recipe:
    """Return the recipe, which checks what is asked; its errors speak of options, and here of arguments."""
    try:
        return Recipe(**asked)  # type: ignore[arg-type]
    except UsageError as error:
        hint = None if error.hint is None else _as_arguments(error.hint)
        raise UsageError(_as_arguments(str(error)), hint=hint) from None


def _as_arguments(text: str) -> str:
    names = {"start": "ema_start"}
    return re.sub(r"--([a-z-]+)", lambda option: names.get(option[1], option[1].replace("-", "_")), text)
