"""The power-function profile, which knows its own width. No torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law import decay, weights
from ema_cli.law.events import Gap
from ema_cli.law.law import Growing, Words
from ema_cli.law.plain_profiles import Profile
from ema_cli.law.time import Time
from ema_cli.law.weights import Gaps


@dataclass(frozen=True, slots=True)
class Power(Profile):
    """The power-function profile of Karras et al. 2024 (arXiv 2312.02696): weights grow as clock ** gamma.

    `sigma_rel` is the profile's standard deviation as a share of the training time, in (0, 12 ** -0.5].

    Raises:
        UsageError: for a width outside of that.
    """

    sigma_rel: float

    profile: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel <= decay.UNIFORM_SIGMA_REL:
            raise UsageError(
                f"{self.sigma_rel:g} is not above 0 and at most {decay.UNIFORM_SIGMA_REL:.4f}",
                option="sigma_rel",
                hint="its standard deviation as a share of the training: 0.05, 0.1; the largest is a uniform average",
            )

    @property
    def gamma(self) -> float:
        """Return the exponent, which is solved for once."""
        return decay.power_exponent(self.sigma_rel)

    @property
    def name(self) -> str:
        """Return `power-0.1`."""
        return f"{self.profile}-{self.sigma_rel!r}"

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the share of the profile that each checkpoint stands for."""
        return weights.power_weights(clocks, self.gamma)

    def share(self, gap: Gap, clock: Fraction) -> float:
        """Return 1 - (clock before / clock) ** (gamma + 1)."""
        return decay.power_share(clock - gap.elapsed, clock, self.gamma)

    def course(self, time: float, updates: float) -> Growing:
        """Return the exponent of the sum of weights."""
        return Growing(self.gamma + 1)

    def share_until(self, clock: float, updates: float, end: float, end_updates: float) -> float:
        """Return (clock / end) ** (gamma + 1)."""
        return math.pow(clock / end, self.gamma + 1)

    def words(self) -> Words:
        """Return the profile and its width as people read them."""
        return Words("profile", self.name, (f"profile {self.profile}", f"width {self.sigma_rel:g}"))

    def phrase(self, interval: Time | None) -> str:
        """Return the profile for a sentence."""
        return f"the profile {self.profile} and the relative width {self.sigma_rel!r}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the profile and its width."""
        return {"profile": self.profile, "sigma_rel": self.sigma_rel}
