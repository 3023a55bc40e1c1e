"""The profiles that have no number of their own, one class each, and what all profiles have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import ClassVar

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law import weights
from ema_cli.law.law import EveryCheckpoint, Law, Words
from ema_cli.law.time import Time, Unit
from ema_cli.law.weights import Gaps


class Profile(EveryCheckpoint):
    """What profiles have in common: their weights are shares of the training time, in any unit."""

    __slots__ = ()

    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = True

    @property
    def unit(self) -> Unit | None:
        """Return None: any clock will do."""
        return None


@dataclass(frozen=True, slots=True)
class PlainProfile(Profile, ABC):
    """A profile without a number of its own, over all of the training, or over a `window` before its end.

    Raises:
        UsageError: for a window that is no stretch of training time.
    """

    window: Time | None = None

    profile: ClassVar[str]

    def __post_init__(self) -> None:
        if self.window is not None and not 0 < self.window.value < math.inf:
            raise UsageError(
                f"'{self.window}' is no stretch of training time",
                option="window",
                hint="how long before the newest checkpoint it begins, as 5000ba",
            )

    @property
    def name(self) -> str:
        """Return `linear`, with a window `linear-500ba`."""
        return self.profile if self.window is None else f"{self.profile}-{self.window}"

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the window; without one any clock will do."""
        return None if self.window is None else self.window.unit

    @abstractmethod
    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights, as `Law.weights`."""

    def words(self) -> Words:
        """Return the profile and its window as people read them."""
        window = () if self.window is None else (f"window {self.window}",)
        return Words("profile", self.name, (f"profile {self.profile}", *window))

    def phrase(self, interval: Time | None) -> str:
        """Return the profile for a sentence."""
        return f"the profile {self.profile}{f' over the last {self.window}' if self.window else ''}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the profile, and the window where there is one."""
        return {"profile": self.profile, **({} if self.window is None else {"window": str(self.window)})}


@dataclass(frozen=True, slots=True)
class Uniform(PlainProfile):
    """All of the training counts the same."""

    profile: ClassVar[str] = "uniform"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights in proportion to the gaps."""
        return weights.uniform_weights(gaps)


@dataclass(frozen=True, slots=True)
class Linear(PlainProfile):
    """Emulates a learning rate that falls to 0 in a straight line (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "linear"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.linear_mean)


@dataclass(frozen=True, slots=True)
class SquareRoot(PlainProfile):
    """Emulates a learning rate that falls to 0 as 1 - sqrt(x) (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "1-sqrt"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.square_root_mean)


@dataclass(frozen=True, slots=True)
class Cosine(PlainProfile):
    """Emulates a learning rate that falls to 0 as half a cosine (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "cosine"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.cosine_mean)


@dataclass(frozen=True, slots=True)
class InverseSquareRoot(PlainProfile):
    """Emulates a learning rate that falls with the root of the clock, never to 0 (Vaswani et al. 2017)."""

    profile: ClassVar[str] = "inverse-sqrt"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.inverse_square_root_weights(clocks)


_ALL: tuple[type[PlainProfile], ...] = (Uniform, Linear, SquareRoot, Cosine, InverseSquareRoot)
PLAIN_PROFILES: Mapping[str, Callable[[Time | None], Law]] = {law.profile: law for law in _ALL}
