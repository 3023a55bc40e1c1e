"""What is asked for, as data: the law, and which checkpoints it is applied to. No torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.kinds import as_count, check_flags, check_keywords
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.extrapolated import Extrapolated
from ema_cli.law.law import Law
from ema_cli.law.laws import LAW_KEYS, LawOptions, make_law
from ema_cli.law.plain_profiles import Uniform
from ema_cli.law.relative import RelativeHalfLife, as_relative
from ema_cli.law.time import EVERY, Every, Time, Unit, as_time, interval_text, parse_interval

_ALWAYS_THERE = ("half_life", "smoothing", "profile", "sigma_rel", "window")


@dataclass(frozen=True, slots=True, init=False)
class Recipe:
    """What is asked for: a law, and which checkpoints it is applied to.

        Recipe(half_life="50ba", start="100ba")
        Recipe(half_life="5%ba")
        Recipe(smoothing=0.99)
        Recipe(profile="power", sigma_rel=0.1)
        Recipe(profile="linear", window="5000ba")
        Recipe(profile="bema")  # of a run that was opened with its base
        Recipe(half_life="50ba", extrapolate=0.5, extrapolate_from="100ba")
        Recipe(coefficients={"step-100": -0.5, "200ba": 1.5})

    Attributes:
        law: how checkpoints are weighted.
        update_interval: the distance between update events, `EVERY` (each checkpoint is one), or None: what the law
            has by default.
        start, stop: the first and the last clock that enter; both inclusive.
        last: how many of the newest checkpoints enter.
        bias_correction: begin from zero, as in Adam, instead of with the first checkpoint.
    """

    law: Law
    update_interval: Time | Every | None
    start: Time | None
    stop: Time | None
    last: int | None
    bias_correction: bool

    def __init__(
        self,
        law: Law | None = None,
        *,
        update_interval: Time | str | None = None,
        start: Time | str | None = None,
        stop: Time | str | None = None,
        last: int | None = None,
        bias_correction: bool = False,
        **options: Unpack[LawOptions],
    ) -> None:
        """Take a `law`, or the options that choose one: those of `LawOptions`. Texts are read as times.

        Raises:
            UsageError: for values or combinations that make no sense.
            TypeError: for an option that there is not.
        """
        check_keywords("Recipe", options, LawOptions)
        if law is not None and any(value is not None for value in options.values()):
            raise UsageError("a law is given twice", option="law", hint="a law, or the options that choose one")
        if law is None and last == 1 and all(value is None for value in options.values()):
            law = Uniform()  # one checkpoint has weight 1 by any law
        law = make_law(**options) if law is None else law
        if not isinstance(law, Law):
            raise UsageError(f"{law!r} is no law", option="law", hint="give the options that choose one")
        check_flags(bias_correction=bias_correction)
        if bias_correction and not law.corrects_bias:
            raise UsageError(
                f"{option('bias_correction', True)} is for a fixed half-life or a smoothing, where the first has an "
                f"excess, not for {law.words().short}",
                hint="leave it out",
            )
        if update_interval is not None:
            update_interval = EVERY if update_interval == EVERY else as_time(update_interval, "update_interval")
        if isinstance(update_interval, Time):
            _check_interval(update_interval, law)
        last = None if last is None else as_count(last, "last", "checkpoints")
        start = None if start is None else as_time(start, "start")
        if start is not None and start.value == math.inf:
            raise UsageError("infinity leaves nothing to average", option="start", hint="give a clock, as 1000ba")
        if isinstance(law, RelativeHalfLife | Extrapolated):
            law = law.begun_at(start)
        stop = None if stop is None else as_time(stop, "stop")
        if isinstance(law, Coefficients):
            _check_alone(update_interval=update_interval, start=start, stop=stop, last=last)
        for name, value in (
            ("law", law),
            ("update_interval", update_interval),
            ("start", start),
            ("stop", stop),
            ("last", last),
            ("bias_correction", bias_correction),
        ):
            object.__setattr__(self, name, value)

    @property
    def interval(self) -> Time | None:
        """Return the distance between update events, None where each checkpoint is one."""
        if self.update_interval is None:
            return self.law.default_interval
        return None if self.update_interval is EVERY else self.update_interval

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the clocks that are needed, None where any will do."""
        return self.law.unit or (self.interval.unit if self.interval else None)

    def needs_no_order(self, count: int) -> bool:
        """Return whether so many checkpoints enter alike, whatever their order: `last` leaves none out."""
        is_whole = self.start is None and self.stop is None and (self.last is None or count <= self.last)
        return self.law == Uniform() and self.interval is None and is_whole

    def __repr__(self) -> str:
        """Return the call that makes the recipe, with texts for times."""
        options = {**self.to_dict(), "law": None}
        if self.update_interval is None:
            options["update_interval"] = None
        given = (f"{name}={value!r}" for name, value in options.items() if value not in (None, False))
        return f"Recipe({', '.join(given)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a manifest has it, with the interval that the law has by default written out."""
        return {
            **law_to_dict(self.law),
            "update_interval": interval_text(self.interval),
            "start": None if self.start is None else str(self.start),
            "stop": None if self.stop is None else str(self.stop),
            "last": self.last,
            "bias_correction": self.bias_correction,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, subject: str = "the manifest") -> Recipe:
        """Read what `to_dict` returned. An interval that is the law's by default is left to the law.

        Raises:
            UsageError: where the data are no recipe; it names the `subject` that holds them.
        """

        def time(name: str) -> Time | None:
            return None if data[name] is None else Time.parse(data[name], subject=subject)

        law = law_from_dict(data, subject=subject)
        interval = parse_interval(data["update_interval"], subject=subject)
        is_default = str(interval) == interval_text(law.default_interval)
        return cls(
            law,
            update_interval=None if is_default else interval,
            start=time("start"),
            stop=time("stop"),
            last=data["last"],
            bias_correction=data["bias_correction"],
        )


def law_to_dict(law: Law) -> dict[str, Any]:
    """Return the law of a recipe as data: its name, and each option that chooses a law, null where it does not.

    What only a few laws know is not there where it is not needed.
    """
    return {"law": law.name, **dict.fromkeys(_ALWAYS_THERE), **law.to_dict()}


def law_from_dict(data: Mapping[str, Any], *, subject: str = "the manifest") -> Law:
    """Read what `law_to_dict` returned.

    Raises:
        UsageError: where the data are no law; it names the `subject` that holds them.
    """
    options: dict[str, Any] = {name: data.get(name) for name in LAW_KEYS}
    for name in ("half_life", "window"):
        if options[name] is not None:
            share = as_relative(options[name], subject=subject) if name == "half_life" else None
            options[name] = share or Time.parse(options[name], subject=subject)
    return make_law(**options)


def _check_alone(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{option('coefficients')} says what enters", option=name, hint="leave it out")


def _check_interval(interval: Time, law: Law) -> None:
    if not 0 < interval.value < math.inf:
        raise UsageError(
            f"'{interval}' is no distance between updates",
            option="update_interval",
            hint=f"as 10ba, or '{EVERY}' to fold each checkpoint",
        )
    if law.unit not in (None, interval.unit):
        raise UsageError(
            f"'{interval}' and {option('window' if law.window else 'half_life')} '{law.window or law.name}' "
            "have different units",
            option="update_interval",
            hint="give both in the same unit",
        )
