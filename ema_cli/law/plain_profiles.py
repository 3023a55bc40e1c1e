"""The profiles that have no number of their own, one class each, and what all profiles have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from ema_cli.law import weights
from ema_cli.law.events import Gap
from ema_cli.law.law import Law, Words
from ema_cli.law.time import Time
from ema_cli.law.weights import Gaps


class Profile:
    """What profiles have in common: their weights are shares of the training time, in any unit."""

    __slots__ = ()

    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = True

    @property
    def unit(self) -> None:
        """Return None: any clock will do."""

    @property
    def default_interval(self) -> None:
        """Return None: each checkpoint counts."""

    def measure(self, gap: Gap) -> Fraction:
        """Return the training time from one checkpoint to the next."""
        return gap.elapsed


class _PlainProfile(Profile):
    """A profile without a number of its own."""

    __slots__ = ()

    profile: ClassVar[str]

    @property
    def name(self) -> str:
        """Return the profile."""
        return self.profile

    def words(self) -> Words:
        """Return the profile as people read it."""
        return Words("profile", self.profile, (f"profile {self.profile}",))

    def phrase(self, interval: Time | None) -> str:
        """Return the profile for a sentence."""
        return f"the profile {self.profile}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the profile."""
        return {"profile": self.profile}


@dataclass(frozen=True, slots=True)
class Uniform(_PlainProfile):
    """All of the training counts the same."""

    profile: ClassVar[str] = "uniform"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights in proportion to the gaps."""
        return weights.uniform_weights(gaps)


@dataclass(frozen=True, slots=True)
class Linear(_PlainProfile):
    """Emulates a learning rate that falls to 0 in a straight line (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "linear"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.linear_mean)


@dataclass(frozen=True, slots=True)
class SquareRoot(_PlainProfile):
    """Emulates a learning rate that falls to 0 as 1 - sqrt(x) (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "1-sqrt"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.square_root_mean)


@dataclass(frozen=True, slots=True)
class Cosine(_PlainProfile):
    """Emulates a learning rate that falls to 0 as half a cosine (WSM, arXiv 2507.17634)."""

    profile: ClassVar[str] = "cosine"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.decay_weights(clocks, weights.cosine_mean)


@dataclass(frozen=True, slots=True)
class InverseSquareRoot(_PlainProfile):
    """Emulates a learning rate that falls with the root of the clock, never to 0 (Vaswani et al. 2017)."""

    profile: ClassVar[str] = "inverse-sqrt"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return weights that add up to the falling learning rate."""
        return weights.inverse_square_root_weights(clocks)


_ALL = (Uniform(), Linear(), SquareRoot(), Cosine(), InverseSquareRoot())
PLAIN_PROFILES: Mapping[str, Law] = {law.profile: law for law in _ALL}
