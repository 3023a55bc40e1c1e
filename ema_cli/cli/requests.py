"""Read the options that several commands share, and check what goes together: the parts that requests are made of.

No checkpoint is opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, cast

from ema_cli.cli.law_options import RecipeOptions
from ema_cli.cli.option_groups import (
    ClockOptions,
    EnteringOptions,
    FormOptions,
    GateOptions,
    ModelOptions,
    RunOptions,
)
from ema_cli.cli.sources import RawSource, StoredSource
from ema_cli.errors import UsageError, option
from ema_cli.formats.options import Choice, ReadOptions
from ema_cli.law.bema import Bema
from ema_cli.law.laws import LAW_KEYS
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.coefficients import read_coefficients
from ema_cli.planning.gates import Gates, read_keys
from ema_cli.planning.series import Series
from ema_cli.runs.options import OpenOptions


def given(family: RecipeOptions | EnteringOptions | ModelOptions | ClockOptions | FormOptions) -> Iterator[str]:
    """Yield the names of the options that are given, as a command line has them."""
    for field in fields(family):
        value = getattr(family, field.name)
        if value is not None and value is not False and value != ():  # 0 is given
            yield "from" if field.name == "source" else field.name


def recipes(law: RecipeOptions) -> tuple[Recipe, ...]:
    """Return a recipe for each half-life, or for each window of a profile, or one for the smoothing or the profile.

    Raises:
        UsageError: for a value that makes no sense, and a half-life or a window that is given twice.
    """
    made: list[Recipe] = []
    varied = "half_life" if law.half_life else "window"
    options: dict[str, Any] = {name: getattr(law, name) for name in LAW_KEYS}
    options |= {name: next(iter(options[name]), None) for name in ("half_life", "window")}
    options["any_sum"] = law.any_sum or None
    if law.coefficients is not None:
        options["coefficients"] = read_coefficients(law.coefficients)
    for value in law.half_life or law.window or (None,):
        recipe = Recipe(
            **{**options, varied: value},
            update_interval=law.update_interval,
            start=law.start,
            stop=law.stop,
            last=law.last,
            bias_correction=law.bias_correction,
        )
        if recipe in made:
            raise UsageError(f"'{value}' is given twice", option=varied)
        made.append(recipe)
    return tuple(made)


def series(law: RecipeOptions) -> Series | None:
    """Return at which clocks there is an average of a series; None where none is asked for.

    Raises:
        UsageError: for a value that makes no sense.
    """
    if not law.series and law.series_every is None:
        return None
    return Series(_time(law.series_every, "series_every"))


def source(options: RunOptions, *, allow_approximate: bool) -> RawSource | StoredSource:
    """Return what is averaged: raw checkpoints or stored averages.

    Raises:
        UsageError: for a value that is unknown, and for options of raw checkpoints where averages are stored.
    """
    read = read_options(options.model, options.copy, options.clocks.clock_key)
    kind, clocks, base = options.law.source, options.clocks, options.law.base
    if base is not None and options.law.profile != Bema.profile:
        raise UsageError(f"goes with {option('profile', Bema.profile)}", option="base", hint="leave out one, or add it")
    if kind not in (None, "raw", "stored"):
        raise UsageError(f"'{kind}' is neither raw nor stored", option="from")
    if kind != "stored":
        opened = OpenOptions(
            read,
            _time(clocks.epoch_length, "epoch_length"),
            _time(clocks.spacing, "spacing"),
            clocks.name_clock,
            clocks.ignore_clocks,
            options.entering.exclude,
            options.entering.skip_damaged,
            options.merge_into,
            base,
        )
        return RawSource(options.paths, opened)
    whole_models = [name for name, value in (("merge_into", options.merge_into), ("base", base)) if value is not None]
    for name in (*given(options.model), *given(clocks), *given(options.entering), *whole_models):
        if name != "component":
            raise UsageError("is for raw checkpoints; stored averages say what they are", option=name)
    return StoredSource(options.paths, options.copy, options.model.component, allow_approximate)


def read_options(model: ModelOptions, copy: tuple[str, ...] = (), clock_key: tuple[str, ...] = ()) -> ReadOptions:
    """Return how checkpoints are read.

    Raises:
        UsageError: for a value that is unknown.
    """
    weights = cast("Choice", model.weights)  # which is checked there
    return ReadOptions(model.key, weights, model.component, model.keep_prefix, copy, clock_key, masters=model.masters)


def gates(options: GateOptions) -> Gates:
    """Return what is demanded of an average.

    Raises:
        UsageError: for a value that makes no sense, and a list of names that cannot be read.
    """
    keys = read_keys(options.expect_keys) if options.expect_keys is not None else None
    return Gates(options.min_count, options.max_share, options.strict, keys)


def _time(text: str | None, name: str) -> Time | None:
    return None if text is None else Time.parse(text, name)


def check_threads(number: int | None) -> None:
    """Raise a UsageError for no thread."""
    if number is not None and number < 1:
        raise UsageError(f"{number} is not a number of threads", option="threads", hint="at least 1")
