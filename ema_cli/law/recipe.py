"""What is asked for, as data: the law, and which checkpoints it is applied to. No torch, no numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from ema_cli.errors import UsageError, option
from ema_cli.law.events import UNIFORM_SIGMA_REL
from ema_cli.law.time import Time, Unit

EVERY = "every"
POWER, UNIFORM, LINEAR, SQUARE_ROOT = PROFILES = ("power", "uniform", "linear", "1-sqrt")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for. Exactly one of `half_life`, `smoothing` (a share per update, in [0, 1]) and `profile`.

    `profile` is one of `PROFILES`; `POWER` has a relative width `sigma_rel`, in (0, 12 ** -0.5]. `update_interval` is a
    time, `EVERY` (each checkpoint is an event), or None: 1 in the unit of the half-life, `EVERY` for a half-life below
    one unit, with `smoothing` or `profile`. `start` and `stop` are inclusive.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    half_life: Time | None = None
    update_interval: Time | str | None = None
    smoothing: float | None = None
    start: Time | None = None
    stop: Time | None = None
    last: int | None = None
    bias_correction: bool = False
    profile: str | None = None
    sigma_rel: float | None = None

    def __post_init__(self) -> None:
        given = sum(each is not None for each in (self.half_life, self.smoothing, self.profile))
        if given != 1:
            raise UsageError(
                f"{'only one' if given else 'one'} of {option('half_life')}, "
                f"{option('smoothing')} and {option('profile')} is needed",
                hint=f"for instance {option('half_life', '50ba')}: after 50 batches a checkpoint counts half",
            )
        self._check_profile()
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise UsageError(
                f"{self.smoothing:g} is not in [0, 1]",
                option="smoothing",
                hint="the share of the old average that is kept at one update, as 0.99",
            )
        if isinstance(self.update_interval, Time):
            self._check_interval(self.update_interval)
        elif self.update_interval not in (None, EVERY):
            raise UsageError(f"'{self.update_interval}' is neither a time nor '{EVERY}'", option="update_interval")
        if self.last is not None and self.last < 1:
            raise UsageError(f"{self.last} is not a number of checkpoints", option="last", hint="at least 1")
        if self.start is not None and self.start.value == math.inf:
            raise UsageError("infinity leaves nothing to average", option="start", hint="give a clock, as 1000ba")

    def _check_profile(self) -> None:
        if self.profile is not None and self.profile not in PROFILES:
            raise UsageError(f"'{self.profile}' is unknown", option="profile", hint=f"one of {', '.join(PROFILES)}")
        if (self.sigma_rel is not None) != (self.profile == POWER):
            raise UsageError(
                f"{option('sigma_rel')} is the width of {option('profile', 'power')}, and goes with it",
                hint=f"as {option('profile', 'power')} {option('sigma_rel', '0.1')}",
            )
        if self.sigma_rel is not None and not 0 < self.sigma_rel <= UNIFORM_SIGMA_REL:
            raise UsageError(
                f"{self.sigma_rel:g} is not above 0 and at most {UNIFORM_SIGMA_REL:.4f}",
                option="sigma_rel",
                hint="its standard deviation as a share of the training: 0.05, 0.1; the largest is a uniform average",
            )
        if self.profile is not None and self.bias_correction:
            raise UsageError(
                f"{option('bias_correction', True)} is for a half-life or a "
                "smoothing: a profile gives the first no excess",
                hint="leave it out",
            )

    def _check_interval(self, interval: Time) -> None:
        if not 0 < interval.value < math.inf:
            raise UsageError(
                f"'{interval}' is no distance between updates",
                option="update_interval",
                hint=f"as 10ba, or '{EVERY}' to fold each checkpoint",
            )
        if self.half_life is not None and interval.unit != self.half_life.unit:
            raise UsageError(
                f"'{interval}' and {option('half_life')} '{self.half_life}' have different units",
                option="update_interval",
                hint="give both in the same unit",
            )

    @property
    def law(self) -> str:
        """Return what is asked for as a name: `50ba`, `smoothing-0.99`, `power-0.1`, `uniform`."""
        if self.half_life is not None:
            return str(self.half_life)
        if self.smoothing is not None:
            return f"smoothing-{self.smoothing!r}"
        return f"{self.profile}-{self.sigma_rel!r}" if self.profile == POWER else str(self.profile)

    @property
    def interval(self) -> Time | None:
        """Return the distance between update events, None where each checkpoint is one."""
        if isinstance(self.update_interval, Time):
            return self.update_interval
        if self.update_interval == EVERY or self.half_life is None or self.half_life.value < 1:
            return None
        return Time(Fraction(1), self.half_life.unit)

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the clocks that the law needs, None where an order is enough."""
        if self.half_life is not None:
            return self.half_life.unit
        return self.interval.unit if self.interval else None
