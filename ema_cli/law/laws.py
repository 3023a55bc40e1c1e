"""The laws of averaging, by their options. Add a law here: all that shows, stores or applies laws follows `make_law`.

A law turns the gaps between checkpoints into weights that sum to 1. A live law is also applied update by update while
a model trains. Each is a class: a half-life and a smoothing in `exponential`, the profiles without a number in
`plain_profiles`, others in modules of their own. The equations are in `decay` and `weights`. No torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from ema_cli.errors import UsageError, all_options, mentioned, option
from ema_cli.kinds import as_number, check_flags, check_texts
from ema_cli.law.bema import BEMA_KEYS, Bema
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.extrapolated import Extrapolated
from ema_cli.law.law import Law
from ema_cli.law.plain_profiles import PLAIN_PROFILES
from ema_cli.law.power import Power
from ema_cli.law.relative import RelativeHalfLife, as_relative
from ema_cli.law.time import Time, as_time


class LawOptions(TypedDict, total=False):
    """The options that choose a law: exactly one of `half_life`, `smoothing` and `profile`, with what goes with it.

    Attributes:
        half_life: training time after which a checkpoint counts half: "50ba", "2ep"; or a share of it so far, "5%ba".
        smoothing: the share of the old average that one update keeps, in [0, 1].
        profile: one of `PROFILES`.
        sigma_rel: the relative width of the profile "power", in (0, 12 ** -0.5].
        window: the training time before the newest checkpoint over which another profile is laid; all without it.
        lag, multiplier, bias_power, ema_power: the numbers of the profile "bema".
        extrapolate: how far beyond the average, of a half-life or a window, on the line from another one.
        extrapolate_from: the half-life, or the window, of that; by default twice as long.
        coefficients: instead, the weight of each checkpoint, by name or clock.
        any_sum: take coefficients as they are, whatever their sum.
    """

    half_life: Time | RelativeHalfLife | str | None
    smoothing: float | None
    profile: str | None
    sigma_rel: float | None
    window: Time | str | None
    lag: float | None
    multiplier: float | None
    bias_power: float | None
    ema_power: float | None
    extrapolate: float | None
    extrapolate_from: Time | str | None
    coefficients: Mapping[str, float] | None
    any_sum: bool | None


LAW_KEYS = tuple(LawOptions.__annotations__)
"""The options that choose a law, which are also its keys in manifests and marks."""

PROFILES = (Power.profile, *PLAIN_PROFILES, Bema.profile)


def make_law(**options: Unpack[LawOptions]) -> Law:
    """Return the law that the options choose.

    Raises:
        UsageError: where they choose none or several, or for a value that makes no sense.
    """
    half_life, smoothing = options.get("half_life"), options.get("smoothing")
    profile, sigma_rel, window = options.get("profile"), options.get("sigma_rel"), options.get("window")
    coefficients = options.get("coefficients")
    check_texts(profile=profile)
    check_flags(any_sum=options.get("any_sum") or False)
    _check_companions(options)
    if window is not None and profile not in PLAIN_PROFILES:
        raise UsageError(
            f"{option('window')} is the stretch over which a profile is laid, and goes with one of "
            f"{', '.join(PLAIN_PROFILES)}",
            hint=f"as {option('profile', 'linear')} {option('window', str(window))}",
        )
    given = sum(value is not None for value in (half_life, smoothing, profile, coefficients))
    if given != 1:
        alone = "" if given else f"; the newest checkpoint alone needs none: {option('last', 1)}"
        raise UsageError(
            f"{'only one' if given else 'one'} of {all_options('half_life', 'smoothing', 'profile', 'coefficients')} "
            "is needed",
            hint=f"for instance {option('half_life', '50ba')}: after 50 batches a checkpoint counts half{alone}",
        )
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"'{profile}' is unknown", option="profile", hint=f"one of {', '.join(PROFILES)}")
    if (sigma_rel is not None) != (profile == Power.profile):
        raise UsageError(
            f"{option('sigma_rel')} is the width of {option('profile', 'power')}, and goes with it",
            hint=f"as {option('profile', 'power')} {option('sigma_rel', 0.1)}",
        )
    if (factor := options.get("extrapolate")) is not None:
        return _extrapolated(as_number(factor, "extrapolate"), options)
    if coefficients is not None:
        return Coefficients.of(coefficients, any_sum=bool(options.get("any_sum")))
    if half_life is not None:
        return half_life_law(half_life)
    if smoothing is not None:
        return Smoothing(as_number(smoothing, "smoothing"))
    if sigma_rel is not None:
        return Power(as_number(sigma_rel, "sigma_rel"))
    if profile == Bema.profile:
        named: Mapping[str, Any] = options
        return Bema(**{name: as_number(named[name], name) for name in BEMA_KEYS if named.get(name) is not None})
    return PLAIN_PROFILES[str(profile)](None if window is None else as_time(window, "window"))


def _check_companions(options: LawOptions) -> None:
    """Raise a UsageError for an option that goes with another one, without that."""
    named: Mapping[str, Any] = options
    companions = {
        **dict.fromkeys(BEMA_KEYS, ("profile", Bema.profile)),
        "extrapolate_from": ("extrapolate", 0.5),
        "any_sum": ("coefficients", None),
    }
    for name, (owner, value) in companions.items():
        theirs = named.get(owner)
        own = named.get(name)
        is_given = own is not None and own is not False  # 0 is given
        if is_given and (theirs is None or (owner == "profile" and theirs != value)):
            raise UsageError(f"goes with {option(owner, value)}", option=name, hint="leave out one, or add the other")
    if options.get("extrapolate") is not None and options.get("half_life") is None and options.get("window") is None:
        raise UsageError(
            f"goes on from an average of {option('half_life')}, or of a profile with {option('window')}",
            option="extrapolate",
            hint=f"as {option('half_life', '500ba')} {option('extrapolate', 0.5)}",
        )


def _extrapolated(factor: float, options: LawOptions) -> Extrapolated:
    """Return the law beyond the average that the other options choose; see `Extrapolated`."""
    inner: dict[str, Any] = {**options, "extrapolate": None, "extrapolate_from": None}
    varied = "half_life" if options.get("half_life") is not None else "window"
    average, other = make_law(**inner), options.get("extrapolate_from")
    if other is None:
        if isinstance(average, RelativeHalfLife) and 2 * average.percent > 100:
            another = f"{100 if average.percent < 100 else 50}%{average.unit}"
            raise UsageError(
                f"goes on from a half-life twice as long, and twice {average.name} is more than the training so far",
                option="extrapolate",
                hint=f"name another: {option('extrapolate_from', another)}",
            )
        if isinstance(average, HalfLife | RelativeHalfLife):
            return Extrapolated(average, average.doubled(), factor)
        window = average.window
        other = None if window is None else Time(2 * window.value, window.unit)
    try:
        away_from = make_law(**{**inner, varied: other})
    except UsageError as error:
        raise UsageError(error.fact, option="extrapolate_from", hint=error.advice(mentioned)) from error
    return Extrapolated(average, away_from, factor)


def half_life_law(value: object) -> HalfLife | RelativeHalfLife:
    """Return the law of a half-life: a time, or a share of the training so far.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(value, RelativeHalfLife):
        return value
    return as_relative(value, option="half_life") or HalfLife(as_time(value, "half_life"))
