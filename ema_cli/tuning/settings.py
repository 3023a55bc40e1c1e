"""What candidates differ in: the half-life, the window, or how far they extrapolate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law.relative import RelativeHalfLife, as_relative
from ema_cli.law.time import UNIT_NAMES, Time, as_time, format_number

_FACTOR = "x"  # before a factor in the name of a candidate


@dataclass(frozen=True, slots=True)
class Setting:
    """The option of a recipe in which a candidate differs from the others.

    Attributes:
        number: of a half-life, a window or a factor.
        unit: what it counts: ba, or %ba for a share of the training so far; empty for a factor.
        profile: what is laid over a window; None for a half-life and a factor.
    """

    number: Fraction | float
    unit: str = ""
    profile: str | None = None

    @property
    def option(self) -> str:
        """Return the option that it is: half_life, window or extrapolate."""
        if self.profile is not None:
            return "window"
        return "half_life" if self.unit else "extrapolate"

    @property
    def noun(self) -> str:
        """Return what it is called."""
        return {"half_life": "half-life", "window": "window", "extrapolate": "factor"}[self.option]

    @property
    def nouns(self) -> str:
        """Return what several are called."""
        return {"half_life": "half-lives", "window": "windows", "extrapolate": "factors"}[self.option]

    @property
    def units(self) -> str:
        """Return its unit as words, for an axis."""
        if not self.unit:
            return "times the distance of the other average"
        plural = UNIT_NAMES[self.unit.removeprefix("%")].plural
        return f"% of the {plural} so far" if self.unit.startswith("%") else plural

    @property
    def text(self) -> str:
        """Return the value of the option: 50ba, 5%ba, 0.5."""
        return f"{format_number(self.number)}{self.unit}" if self.unit else repr(float(self.number)).removesuffix(".0")

    @property
    def name(self) -> str:
        """Return the name of the candidate: 50ba, 5%ba, linear-500ba, x0.5."""
        if self.profile is not None:
            return f"{self.profile}-{self.text}"
        return self.text if self.unit else f"{_FACTOR}{self.text}"

    def options(self) -> dict[str, Any]:
        """Return it as `Recipe` takes it."""
        if not self.unit:
            return {"extrapolate": float(self.number)}
        over = {} if self.profile is None else {"profile": self.profile}
        return {**over, self.option: self.text}

    @classmethod
    def parse(cls, name: str) -> Setting:
        """Return the setting in the name of a candidate.

        Raises:
            UsageError: for what is no name of one.
        """
        if name.startswith(_FACTOR):
            try:
                return cls(float(name.removeprefix(_FACTOR)))
            except ValueError as error:
                raise UsageError(f"'{name[:60]}' is no name of a candidate") from error
        profile, _, text = name.rpartition("-")
        return read_setting(text, "window" if profile else "half_life", profile or None)


def read_setting(value: object, option: str, profile: str | None = None) -> Setting:
    """Return a half-life, or the window of a profile, that is the value of an option.

    Raises:
        UsageError: for what is no time, and no share of the training so far; a window is no share.
    """
    share = value if isinstance(value, RelativeHalfLife) else as_relative(value, option=option)
    if share is None:
        time = value if isinstance(value, Time) and value.value >= 0 else as_time(value, option)
        return Setting(time.value, str(time.unit), profile)
    if profile is not None:
        raise UsageError(
            f"'{share.name}' is a share of the training, and a window is a time", option=option, hint="as 5000ba"
        )
    return Setting(share.percent, f"%{share.unit}")
