"""Weights that somebody else has chosen: a coefficient for each checkpoint. No torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Self

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.law.law import EveryCheckpoint, Words
from ema_cli.law.time import Time
from ema_cli.law.weights import Gaps

_NEAR_1 = 1e-6 * (1 + 1e-6)  # what a sum may be off that was written with a few digits, and its rounding
_LARGEST = 1e5  # of a coefficient: beyond, float32 sums have no digit that is right


@dataclass(frozen=True, slots=True)
class Coefficients(EveryCheckpoint):
    """Each checkpoint has the weight that is given for it, negative ones too.

    Their sum is 1, to 1e-6, and they are divided by it; with `any_sum` they are taken as they are: then equal values do
    not stay equal.

    Attributes:
        given: for each checkpoint its name, or its clock as text, and its coefficient.
        any_sum: whether the sum may be other than 1.

    Raises:
        UsageError: for no coefficient, one that is no number or beyond 100,000, and for another sum.
    """

    given: tuple[tuple[str, float], ...]
    any_sum: bool = False

    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key, value in self.given:
            if not abs(value) <= _LARGEST:
                raise UsageError(
                    f"'{key[:60]}' has {value:g}, which is no coefficient from {-_LARGEST:g} to {_LARGEST:g}",
                    option="coefficients",
                )
        if not any(value for _, value in self.given):
            raise UsageError(
                "none is other than 0", option="coefficients", hint="as {'step-100': -0.5, 'step-200': 1.5}"
            )
        if not self.any_sum and not abs(self.sum - 1) <= _NEAR_1:
            raise UsageError(
                f"the sum is {self.sum:.9g}, not 1",
                option="coefficients",
                hint=f"give weights of an average, or take them as they are: {option('any_sum', True)}",
            )

    @classmethod
    def of(cls, given: object, *, any_sum: bool = False) -> Self:
        """Return the law of a mapping from names, or clocks, to numbers.

        Raises:
            UsageError: for anything else, and as the class.
        """
        if not isinstance(given, Mapping) or not all(
            isinstance(key, str) and isinstance(value, int | float | Fraction) and not isinstance(value, bool)
            for key, value in given.items()
        ):
            raise UsageError(
                "takes numbers by names or clocks", option="coefficients", hint="as {'step-100': -0.5, '200ba': 1.5}"
            )
        try:
            return cls(tuple((key, float(value)) for key, value in given.items()), any_sum)
        except OverflowError as error:
            raise UsageError("a number is too large", option="coefficients") from error

    @property
    def sum(self) -> float:
        """Return the sum of what is given."""
        return math.fsum(value for _, value in self.given)

    def shares(self) -> dict[str, float]:
        """Return the weight of each checkpoint, by its name or clock."""
        total = 1.0 if self.any_sum else self.sum
        return {key: value / total for key, value in self.given}

    @property
    def name(self) -> str:
        """Return `coefficients`."""
        return "coefficients"

    @property
    def unit(self) -> None:
        """Return None: any clock will do."""

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights, in the order in which they are given."""
        return list(self.shares().values())

    def words(self) -> Words:
        """Return how many are given, and a sum other than 1, as people read it."""
        details = (f"{len(self.given)} coefficients", *([f"their sum {self.sum:g}, as given"] if self.any_sum else []))
        return Words("weights", self.name, details)

    def phrase(self, interval: Time | None) -> str:
        """Return for a sentence that the weights were given."""
        return f"coefficients of the sum {self.sum:g}, as they were given" if self.any_sum else "given coefficients"

    def to_dict(self) -> dict[str, Any]:
        """Return the coefficients as they were given."""
        return {"coefficients": dict(self.given), **({"any_sum": True} if self.any_sum else {})}
