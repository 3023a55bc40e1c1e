"""The clocks of a live training: counted by the averages, or given by the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from fractions import Fraction
from numbers import Rational, Real

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law.time import Time, Unit

Count = int | float | Fraction
_KEYWORDS = {Unit.BATCH: "batch", Unit.EPOCH: "epoch", Unit.SAMPLE: "sample", Unit.TOKEN: "token"}
_MOST = 2**100  # of batches, samples or tokens: no training has so many


@dataclass(slots=True)
class Clocks:
    """The exact training time that has passed, by unit, in all known units."""

    passed: dict[Unit, Fraction] = field(default_factory=dict)

    def advanced(self, counts: Mapping[Unit, Count | None]) -> Clocks:
        """Return the clocks after an update: with the given `counts`, or one batch later if no count is given.

        Raises:
            UsageError: for a clock that is no count, or goes back.
        """
        given = {unit: _exact(unit, value) for unit, value in counts.items() if value is not None}
        for unit, value in given.items():
            if value < self.passed.get(unit, Fraction(0)):
                raise UsageError(
                    f"update({_KEYWORDS[unit]}={_text(value)}): the clock goes back, from {_text(self.passed[unit])}",
                    hint="give what has passed since the training began; load_state_dict sets clocks back",
                )
        return Clocks({**self.passed, **(given or {Unit.BATCH: self.passed.get(Unit.BATCH, Fraction(0)) + 1})})

    def read(self, unit: Unit) -> Fraction:
        """Return the clock in `unit`.

        Raises:
            UsageError: if it is not known.
        """
        if unit not in self.passed:
            raise UsageError(
                f"the average counts in {unit.plural}, which update() was not told",
                hint=f"call update({_KEYWORDS[unit]}=...) with what has passed since the training began",
            )
        return self.passed[unit]

    def reached(self, start: Time) -> bool:
        """Return whether the clock is at `start` or later."""
        return start.value == 0 or self.read(start.unit) >= start.value


def _exact(unit: Unit, value: object) -> Fraction:
    """Return a count as an exact fraction: a Python or numpy number, or a tensor or array without dimensions."""
    exact = None
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, Rational):
        exact = Fraction(int(value.numerator), int(value.denominator))
    elif isinstance(value, Real) and math.isfinite(value):
        # A float means its decimal text, not the binary number: 0.3 epochs are exactly three times 0.1.
        exact = Fraction(repr(float(value)))
    if exact is None or not 0 <= exact <= _MOST:
        raise UsageError(f"update({_KEYWORDS[unit]}={value}): is no count of {unit.plural}")
    return exact


def _text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else str(float(value))
