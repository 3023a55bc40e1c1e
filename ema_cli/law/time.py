"""Training time: units, and exact times such as `50ba`. No torch, no numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Final

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError


class Unit(StrEnum):
    """What training time is counted in. A batch is one optimizer step; epochs are completed ones."""

    EPOCH = "ep"
    BATCH = "ba"
    SAMPLE = "sp"
    TOKEN = "tok"

    @property
    def plural(self) -> str:
        """Return the unit as a word, for sentences."""
        return {"ep": "epochs", "ba": "batches", "sp": "samples", "tok": "tokens"}[self.value]


# How else people write the units. What is written is always the short form.
UNIT_NAMES: Mapping[str, Unit] = {
    name: unit
    for unit, names in (
        (Unit.EPOCH, "ep epoch epochs"),
        (Unit.BATCH, "ba batch batches step steps it its iter iters iteration iterations"),
        (Unit.SAMPLE, "sp sample samples"),
        (Unit.TOKEN, "tok token tokens"),
    )
    for name in names.split()
}
_TIME = re.compile(
    r"(?:(?P<inf>inf)|(?P<digits>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e(?P<exponent>[+-]?[0-9]{1,4}))?)"
    rf"(?P<unit>{'|'.join(UNIT_NAMES)})",
    re.IGNORECASE | re.ASCII,
)
_EXAMPLES = "write a number and a unit: 50ba (batches), 2ep (epochs), 1e6sp (samples), 1e9tok (tokens)"
_MAX_DIGITS = 40
_MAX_EXPONENT = 30


@dataclass(frozen=True, slots=True)
class Time:
    """An amount of training time: an exact number (or `math.inf`) and its unit."""

    value: Fraction | float
    unit: Unit

    @classmethod
    def parse(cls, text: str, option: str | None = None, *, subject: str = "time") -> Time:
        """Read `50ba`, `0.5ep`, `1e9tok`, `0ba` or `infba`; `50steps` and the like are read, too.

        An error names the `option` whose value it is, or else the `subject` that holds it.

        Raises:
            UsageError: for a bare number, a negative one, NaN, an unknown unit, over 40 digits or 10^30.
        """
        match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise UsageError(
                f"'{str(text)[:60]}' is not a time", option=option, subject=None if option else subject, hint=_EXAMPLES
            )
        unit = UNIT_NAMES[match["unit"].lower()]
        if match["inf"]:
            return cls(math.inf, unit)
        digits, exponent = match["digits"], int(match["exponent"] or 0)
        if len(digits.replace(".", "")) > _MAX_DIGITS or abs(exponent) > _MAX_EXPONENT:
            raise UsageError(
                f"'{text[:60]}' is out of range",
                option=option,
                subject=None if option else subject,
                hint=f"at most {_MAX_DIGITS} digits and an exponent of at most {_MAX_EXPONENT}",
            )
        return cls(Fraction(digits) * Fraction(10) ** exponent, unit)

    def __str__(self) -> str:
        return f"{format_number(self.value)}{self.unit}"

    def __repr__(self) -> str:
        return f"Time.parse('{self}')"


class Every(StrEnum):
    """The update interval with which each checkpoint is an update event; while a model trains, each update."""

    EVERY = "every"


EVERY: Final = Every.EVERY


def as_time(value: object, option: str) -> Time:
    """Return a time, or read the text of one: for what a caller from Python gives as the value of an `option`.

    Raises:
        UsageError: for anything else, such as a bare number.
    """
    if isinstance(value, str):
        return Time.parse(value, option)
    if isinstance(value, Time) and value.value >= 0:
        return value
    shown = str(value) if isinstance(value, Time) else repr(value)
    raise UsageError(f"{shown} is not a time", option=option, hint="write a number and a unit: '50ba'")


def parse_interval(text: str, *, subject: str = "time") -> Time | Every:
    """Read a time, or `every`.

    Raises:
        UsageError: for anything else, as `Time.parse`.
    """
    return EVERY if text == EVERY else Time.parse(text, subject=subject)


def interval_text(interval: Time | None) -> str:
    """Write the distance between update events; None, where each checkpoint is one, is `every`."""
    return str(interval or EVERY)


def format_number(value: Fraction | float) -> str:
    """Write an exact number in full, as `Time.parse` reads it (up to its 40 digits); endless ones to 6 digits."""
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}"
    if value.denominator == 1:
        digits = str(value.numerator)
        zeros = len(digits) - len(digits.rstrip("0"))
        return digits if zeros < 6 else f"{digits[:-zeros]}e{zeros}"
    places = _decimal_places(value.denominator)
    if places is None:
        return f"{float(value):.6g}"
    scaled = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{scaled[:-places]}.{scaled[-places:]}"


def _decimal_places(denominator: int) -> int | None:
    """Return how many decimals 1/denominator has, or None if it never ends."""
    places = 0
    for prime in (2, 5):
        count = 0
        while denominator % prime == 0:
            denominator //= prime
            count += 1
        places = max(places, count)
    return places if denominator == 1 else None
